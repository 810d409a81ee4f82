"""From logits to proposals: which token, how sure, and with which random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.canvas import Ask
from unmask.errors import ConfigError
from unmask.sampling.params import MIN_TEMPERATURE, SamplingParams
from unmask.sampling.rng import gumbel, row_keys, uniform
from unmask.sampling.sampler import STATS, Span, Vocabulary, log_odds, propose

EOS, TURN = 5, 6
VOCABULARY = Vocabulary(torch.arange(10), torch.tensor([7, 9]), EOS, TURN)


def spans_of(rules, **asked):
    """A sequence a row."""
    positions = [np.array([i]) for i in range(len(rules))]
    return [
        Span(position, rule, Ask(position, (0, 1), **asked))
        for position, rule in zip(positions, rules, strict=True)
    ]


def packed_of(logits, rule=None, keys=None, vocabulary=VOCABULARY, **asked):
    logits = torch.as_tensor(logits, dtype=torch.float32).clone()
    rules = rule if isinstance(rule, list) else [rule or SamplingParams()] * len(logits)
    keys = row_keys(0, 0, np.arange(len(logits))) if keys is None else keys
    return propose(logits, spans_of(rules, **asked), keys, vocabulary)[0]


def run(logits, rule=None, keys=None, vocabulary=VOCABULARY):
    packed = packed_of(logits, rule, keys, vocabulary)
    return packed[:, 0].long().tolist(), packed[:, 1].tolist()


def odds(p):
    return np.log(p) - np.log1p(-p)


def test_log_odds_equal_float64():
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) * 4
    tokens = torch.arange(40)
    exact = logits.double()
    own = exact.gather(-1, tokens[:, None])[:, 0]
    others = exact.scatter(-1, tokens[:, None], -torch.inf).logsumexp(dim=-1)
    assert torch.allclose(log_odds(logits, tokens).double(), own - others, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("gap", [20.0, 27.6, 30.0, 36.0, 60.0])
def test_near_certain_tokens_keep_their_log_odds(gap):
    """p is within 1e-12 of 1 and rounds to 1 in float32; the odds do not."""
    logits = torch.zeros(1, 4)
    logits[0, 2] = gap
    found = log_odds(logits, torch.tensor([2])).double().item()
    assert found == pytest.approx(gap - np.log(3), abs=1e-5)


def test_near_certain_tokens_keep_their_order():
    logits = torch.zeros(50, 8)
    logits[:, 3] = 28.0 + torch.arange(50) * 1e-3
    assert bool((torch.softmax(logits, -1)[:, 3] == 1).all()), "probabilities would tie"
    found = log_odds(logits, torch.full((50,), 3))
    assert bool((found.diff() > 0).all())


def test_a_token_that_is_alone_has_infinite_odds_and_an_impossible_one_none():
    logits = torch.tensor([[1.0, -torch.inf], [1.0, -torch.inf]])
    found = log_odds(logits, torch.tensor([0, 1])).tolist()
    assert found == [np.inf, -np.inf]


def test_confidence_is_normalized_over_the_whole_vocabulary():
    """Also over tokens that may not be proposed: a mask that the model wants costs confidence."""
    logits = [[0.0, 2.0, 0, 0, 0, 0, 0, 2.0, 0, 0]]
    tokens, found = run(logits)
    assert tokens == [1]
    assert found[0] == pytest.approx(odds(np.exp(2) / (2 * np.exp(2) + 8)), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 5.0])
def test_forbidden_ids_are_never_proposed(temperature):
    logits = torch.zeros(200, 10)
    logits[:, 7], logits[:, 9], logits[:, 4] = 50.0, 60.0, 1.0
    tokens, found = run(logits, SamplingParams(temperature=temperature))
    assert not {7, 9} & set(tokens)
    assert (set(tokens) == {4}) == (temperature == 0)
    assert all(np.isfinite(found))
    assert max(found) < -40


def test_ties_between_tokens_go_to_the_lowest_id():
    assert run(torch.zeros(1, 10))[0] == [0]
    assert run([[0, 0, 3.0, 0, 3.0, 0, 0, 9.0, 0, 9.0]])[0] == [2]


def test_temperature_draws_tokens_with_their_probabilities():
    """Chi-square over 20000 draws with a fixed seed; 8 degrees of freedom, 30 is p < 0.0003."""
    draws, temperature = 20000, 0.7
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.2, -2.0, 1.5, 99.0, 0.1, -0.5])
    vocabulary = Vocabulary(torch.arange(10), torch.tensor([7]), EOS, None)
    tokens, _ = run(
        logits.expand(draws, -1),
        SamplingParams(temperature=temperature),
        row_keys(3, 1, np.arange(draws)),
        vocabulary,
    )
    allowed = logits.clone()
    allowed[7] = -torch.inf
    expected = torch.softmax(allowed.double() / temperature, -1).numpy() * draws
    counts = np.bincount(tokens, minlength=10)
    assert counts[7] == 0
    keep = expected > 0
    statistic = float((((counts - expected) ** 2)[keep] / expected[keep]).sum())
    assert statistic < 30
    flat = np.full(10, draws / 9)
    assert float((((counts - flat) ** 2)[keep] / flat[keep]).sum()) > 1000


def test_sampled_tokens_are_scored_without_noise():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    tokens, found = run(logits, SamplingParams(temperature=1.0))
    assert len(set(tokens)) > 4
    p = torch.softmax(logits.double(), -1)[range(50), tokens].numpy()
    assert found == pytest.approx(odds(p), abs=1e-5)


def test_rows_with_different_rules_do_not_disturb_each_other():
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(5))
    logits[:, EOS] = 4.0
    keys = row_keys(1, 2, np.arange(4))
    rules = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(logits_eos_inf=True),
        SamplingParams(confidence_eos_eot_inf=True),
    ]
    together = run(logits, rules, keys)
    for row in range(4):
        one = slice(row, row + 1)
        assert run(logits[one], [rules[row]], keys[one]) == (
            together[0][one],
            pytest.approx(together[1][one]),
        )


def test_gumbel_noise_has_gumbels_mean_and_variance_and_no_infinities():
    noise = gumbel(
        torch.from_numpy(row_keys(0, 0, np.arange(500)).view(np.int64)), torch.arange(1000)
    )
    assert noise.dtype == torch.float64
    assert bool(torch.isfinite(noise).all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.02)


def test_gumbel_noise_of_a_row_and_of_a_token_are_independent():
    noise = gumbel(
        torch.from_numpy(row_keys(0, 0, np.arange(60)).view(np.int64)), torch.arange(400)
    )
    between = np.corrcoef(noise.numpy())
    assert abs(between[~np.eye(60, dtype=bool)]).max() < 0.3
    assert len(noise.unique()) == noise.numel()


def test_row_keys_depend_on_seed_forward_and_position_only():
    uids = np.arange(50)
    keys = row_keys(1, 2, uids)
    order = np.random.default_rng(0).permutation(50)
    assert (row_keys(1, 2, uids[order]) == keys[order]).all()
    assert (row_keys(1, 2, uids[7:9]) == keys[7:9]).all()
    different = [row_keys(2, 2, uids), row_keys(1, 3, uids), row_keys(2, 1, uids)]
    assert len({int(key) for part in (keys, *different) for key in part}) == 200


@given(st.integers(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_any_seed_gives_keys_and_numbers_below_one(seed, forward, uid):
    keys = row_keys(seed, forward, np.array([uid]))
    assert keys.dtype == np.uint64
    assert 0 <= uniform(keys)[0] < 1


def test_uniform_numbers_are_uniform():
    numbers = uniform(row_keys(11, 0, np.arange(20000)))
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_uniform_numbers_do_not_repeat_the_gumbel_noise():
    keys = row_keys(0, 0, np.arange(300))
    noise = gumbel(torch.from_numpy(keys.view(np.int64)), torch.arange(64)).numpy()
    for token in range(64):
        assert abs(np.corrcoef(uniform(keys), noise[:, token])[0, 1]) < 0.25


LIKES_EOS = [[0.0, 2.0, 0, 0, 0, 3.0, 2.5, 0, 0, 0]]


def test_logits_eos_inf_proposes_the_next_best_and_renormalizes():
    tokens, found = run(LIKES_EOS, SamplingParams(logits_eos_inf=True))
    assert tokens == [TURN]
    rest = np.exp(2.5) + np.exp(2.0) + 7
    assert found[0] == pytest.approx(odds(np.exp(2.5) / rest), abs=1e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_a_doubted_end_of_text_is_proposed_without_confidence(compat):
    rule = SamplingParams(confidence_eos_eot_inf=True, compat=compat)
    tokens, found = run([LIKES_EOS[0], [0.0, 9, 0, 0, 0, 3, 3, 0, 0, 0]], rule)
    assert tokens == [EOS, 1]
    assert found[0] == -np.inf
    assert found[1] == pytest.approx(9 - np.log(7), abs=1e-5), "the other scores are renormalized"


def test_a_doubted_end_of_turn_is_proposed_without_confidence():
    logits = [[0.0, 2.0, 0, 0, 0, 0, 4.0, 0, 0, 0]]
    assert run(logits, SamplingParams(confidence_eos_eot_inf=True)) == ([TURN], [-np.inf])


@pytest.mark.parametrize(("compat", "suppressed"), [(False, {EOS, TURN}), (True, {TURN})])
def test_at_a_temperature_the_published_code_doubts_only_the_end_of_turn(compat, suppressed):
    logits = torch.zeros(300, 10)
    logits[:, EOS], logits[:, TURN] = 1.0, 1.0
    rule = SamplingParams(confidence_eos_eot_inf=True, temperature=1.0, compat=compat)
    tokens, found = run(logits, rule)
    assert {EOS, TURN, 0} <= set(tokens)
    assert {t for t, value in zip(tokens, found, strict=True) if value == -np.inf} == suppressed


def test_without_an_end_of_turn_only_the_end_of_text_is_doubted():
    vocabulary = Vocabulary(torch.arange(10), torch.tensor([7]), EOS, None)
    rule = SamplingParams(confidence_eos_eot_inf=True)
    logits = [[0.0, 2.0, 0, 0, 0, 0, 4.0, 0, 0, 0]]
    tokens, found = run(logits, rule, vocabulary=vocabulary)
    assert tokens == [TURN]
    assert np.isfinite(found[0])


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["temperature", "cfg_scale"])
def test_a_proposal_refuses_numbers_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})


def test_bfloat16_logits_are_scored_in_float32():
    logits = torch.zeros(1, 10, dtype=torch.bfloat16)
    logits[0, 1] = 2.0
    packed, _ = propose(
        logits, spans_of([SamplingParams()]), row_keys(0, 0, np.arange(1)), VOCABULARY
    )
    assert packed[0, 1].item() == pytest.approx(2 - np.log(9), abs=1e-6)


# statistics


def stat(packed, name):
    return packed[:, 2 + STATS.index(name)]


RANDOM = torch.randn(40, 10, generator=torch.Generator().manual_seed(8)) * 3


def test_entropy_margin_gap_and_end_equal_float64():
    packed = packed_of(RANDOM, stats=frozenset({"entropy", "margin", "gap", "eos"}))
    p = torch.softmax(RANDOM.double(), -1)
    assert torch.allclose(stat(packed, "entropy"), torch.special.entr(p).sum(-1), atol=1e-5)
    assert torch.allclose(stat(packed, "eos"), p[:, EOS], atol=1e-6)
    top = RANDOM.topk(2, dim=-1).values.double()
    assert torch.allclose(stat(packed, "gap"), top[:, 0] - top[:, 1], atol=1e-5)
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    assert torch.allclose(stat(packed, "margin").exp(), 1 - (first - second), atol=1e-6)


def test_entropy_and_margin_keep_the_order_of_near_certain_rows():
    logits = torch.zeros(30, 10)
    logits[:, 3] = 30.0 + torch.arange(30) * 1e-2
    packed = packed_of(logits, stats=frozenset({"entropy", "margin"}))
    for name in ("entropy", "margin"):
        assert bool((stat(packed, name).diff() < 0).all()), name


@pytest.mark.parametrize("name", ["logits_eos_inf", "confidence_eos_eot_inf"])
def test_a_suppressed_end_leaves_every_statistic_a_number(name):
    logits = torch.zeros(2, 10)
    logits[:, EOS] = 9.0
    asked = frozenset({"entropy", "margin", "gap", "eos"})
    packed = packed_of(logits, SamplingParams(**{name: True}), stats=asked)
    assert not packed.isnan().any()


def test_a_proposal_that_the_filters_cut_keeps_its_own_probability():
    """The mask alone passes top_k=1; the proposal is the best of the rest."""
    logits = [[1.0, 0, 0, 0, 0, 0, 0, 9.0, 0, 0]]
    packed = packed_of(
        logits, SamplingParams(top_k=1), from_sampling=True, stats=frozenset({"entropy"})
    )
    assert packed[0, 0] == 0
    assert packed[0, 1].item() == pytest.approx(-8.0, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_confidence_over_the_likeliest_tokens_alone(size):
    packed = packed_of(RANDOM, top_v=size, stats=frozenset({"top_v_entropy"}))
    for row, (token, odds_, *_) in enumerate(packed.tolist()):
        top = RANDOM[row].double().topk(min(size, 10))
        shares = torch.softmax(top.values, -1)
        inside = (top.indices == int(token)).nonzero()
        if not len(inside):
            assert odds_ == -np.inf
            continue
        own = shares[int(inside[0, 0])].item()
        assert odds_ == (pytest.approx(odds(own), abs=1e-4) if own < 1 else np.inf)
        found = stat(packed, "top_v_entropy")[row].item()
        assert found == pytest.approx(float(torch.special.entr(shares).sum()), abs=1e-5)


def test_static_pruning_is_the_users_word_before_the_decoders():
    asked = packed_of(RANDOM, top_v=2)
    ruled = packed_of(RANDOM, SamplingParams(vocabulary="static", vocab_size=2), top_v=9)
    assert torch.equal(asked, ruled)
    whole = packed_of(RANDOM, SamplingParams(vocabulary="none"), top_v=2)
    assert torch.equal(whole, packed_of(RANDOM))


def test_top_p_top_k_and_min_p_restrict_what_is_drawn_but_not_how_sure_the_model_is():
    logits = torch.tensor([[3.0, 2.9, 2.8, 0.0, 0, 0, 0, 50.0, 0, 60.0]]).expand(400, -1)
    keys = row_keys(1, 1, np.arange(400))
    for rule, allowed in (
        (SamplingParams(temperature=1.0, top_k=2), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.3), {0}),
        (SamplingParams(temperature=1.0, top_p=0.4), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.0), {0}),
        (
            SamplingParams(temperature=1.0, min_p=0.85),
            {0, 1},
        ),  # exp(-0.1) = 0.905, exp(-0.2) = 0.819
        (SamplingParams(temperature=0.5, min_p=0.85), {0}),
        (SamplingParams(temperature=1.0, min_p=1.0), {0}),
        (SamplingParams(temperature=1.0, top_k=0, top_p=1.0), {0, 1, 2, 3, 4, 5, 6, 8}),
        (SamplingParams(temperature=1.0), {0, 1, 2, 3, 4, 5, 6, 8}),
    ):
        packed = packed_of(logits, rule, keys)
        assert set(packed[:, 0].long().tolist()) == allowed
        assert float(packed[:, 1].max()) < -40, "the mask that the model wants costs confidence"


def test_told_of_the_sampled_distribution_the_confidence_is_its_probability():
    rule = SamplingParams(top_k=2)
    packed = packed_of([[3.0, 2.0, 1.0, 0, 0, 0, 0, 0, 0, 0]], rule, from_sampling=True)
    assert packed[0, 0] == 0
    assert packed[0, 1].item() == pytest.approx(1.0, abs=1e-5), "odds e^3 : e^2"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"top_p": -0.1}, "top_p=-0.1 must be between 0 and 1"),
        ({"min_p": 1.5}, "min_p=1.5 must be between 0 and 1"),
        ({"top_k": -2}, "top_k=-2 must be at least 1"),
        ({"vocab_size": 5}, "needs vocabulary="),
        ({"vocabulary": "static", "vocab_size": 0}, "must be at least 1"),
        ({"vocabulary": "frequency"}, "needs frequencies=FILE"),
        ({"max_missed": 2.0}, "max_missed=2.0"),
    ],
)
def test_pruning_refuses_what_cannot_be(knobs, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**knobs)


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-7, -0.5, float("inf"), float("nan")])
def test_a_temperature_that_cannot_be_sampled_with_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature={temperature}"):
        SamplingParams(temperature=temperature)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("told", [False, True])
def test_the_lowest_temperature_draws_the_likeliest_token(size, told):
    """1e-6: what is sampled from stays inside float32, which those who are told of it get."""
    logits = size * torch.randn(50, 10, generator=torch.Generator().manual_seed(3))
    rule = SamplingParams(temperature=MIN_TEMPERATURE, top_p=0.9)
    packed = packed_of(logits, rule, from_sampling=told)
    assert packed[:, 0].tolist() == packed_of(logits)[:, 0].tolist()
    assert not packed[:, 1].isnan().any()


def test_keys_of_many_sequences_at_once_are_those_of_each():
    uids = [np.arange(5), np.array([7, 3]), np.arange(0)]
    seeds, forwards, counts = [3, 2**64 - 1, 0], [0, 9, 4], [len(each) for each in uids]
    at_once = row_keys(
        np.repeat(np.array(seeds, dtype=np.uint64), counts),
        np.repeat(np.array(forwards), counts),
        np.concatenate(uids),
    )
    each = zip(seeds, forwards, uids, strict=True)
    assert at_once.tolist() == np.concatenate([row_keys(*one) for one in each]).tolist()
