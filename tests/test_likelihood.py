"""The log-likelihood of an answer against its definition, spelled out on models of 64 tokens."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, MASK, VOCAB, tiny_llm

from unmask import LLM, ConfigError, PromptError
from unmask.engine.likelihood import Likelihood, stratified_counts

PROMPT, ANSWER = [3, 14, 15, 9, 26], [5, 35, 8]
LONG = ([7, 1, MASK, 2, 8, 30, 11, 19], [28, 18, MASK, 45, 9, 45, 23, 53, 6, 0, 28])


def log_probs(llm: LLM, prompt: list[int], answer: list[int], masked: set[int]) -> np.ndarray:
    """ln p of every answer token in one plain forward over the whole canvas, by the whole head."""
    shown = [MASK if i in masked else id_ for i, id_ in enumerate(answer)]
    with torch.inference_mode():
        logits = llm.model(torch.tensor([prompt + shown]))[0]
    if llm.spec.shift_logits:
        logits = torch.cat((logits[:1], logits[:-1]))
    found = logits[len(prompt) :].double().log_softmax(-1)
    return found[torch.arange(len(answer)), torch.tensor(answer)].numpy()


def guided_log_probs(
    llm: LLM, prompt: list[int], answer: list[int], masked: set[int], scale: float
) -> np.ndarray:
    shown = [MASK if i in masked else id_ for i, id_ in enumerate(answer)]
    with torch.inference_mode():
        both = llm.model(torch.tensor([prompt + shown, [MASK] * len(prompt) + shown]))
    first = len(prompt) - (1 if llm.spec.shift_logits else 0)
    seeing, blind = both[:, first : first + len(answer)].double()
    found = (blind + (1 + scale) * (seeing - blind)).log_softmax(-1)
    return found[torch.arange(len(answer)), torch.tensor(answer)].numpy()


def bound(llm: LLM, prompt: list[int], answer: list[int]) -> float:
    """The estimator's expectation: every subset of every size, sizes equally likely."""
    length = len(answer)
    means = []
    for count in range(1, length + 1):
        values = [
            length / count * log_probs(llm, prompt, answer, set(subset))[list(subset)].sum()
            for subset in itertools.combinations(range(length), count)
        ]
        means.append(np.mean(values))
    return float(np.mean(means))


def any_order(llm: LLM, prompt: list[int], answer: list[int]) -> float:
    """The same by another road: the mean over all orders of the chain rule in that order."""
    totals = []
    for order in itertools.permutations(range(len(answer))):
        left = [set(order[i:]) for i in range(len(order))]
        steps = zip(order, left, strict=True)
        totals.append(sum(log_probs(llm, prompt, answer, masked)[i] for i, masked in steps))
    return float(np.mean(totals))


def one(llm: LLM, prompt: Any, answer: Any, **options: Any) -> Likelihood:
    found = llm.loglikelihood(prompt, answer, **options)
    assert isinstance(found, Likelihood)
    return found


def many(llm: LLM, prompts: Any, answers: Any, **options: Any) -> list[Likelihood]:
    found = llm.loglikelihood(prompts, answers, **options)
    assert isinstance(found, list)
    return found


@pytest.fixture(params=FAMILIES)
def llm(request: pytest.FixtureRequest) -> LLM:
    return tiny_llm(request.param)


# the counts


@pytest.mark.parametrize(("length", "mc_num"), [(3, 2), (3, 7), (5, 1), (7, 128), (128, 10)])
def test_every_count_is_equally_likely_and_the_counts_are_spread_evenly(
    length: int, mc_num: int
) -> None:
    drawn = [stratified_counts(length, mc_num, phase) for phase in range(1, length + 1)]
    for place in range(mc_num):
        assert sorted(counts[place] for counts in drawn) == list(range(1, length + 1))
    for counts in drawn:
        often = Counter(counts.tolist())
        assert max(often.values()) - min(often.get(n, 0) for n in range(1, length + 1)) <= 1


@pytest.mark.parametrize(("length", "batch"), [(7, 16), (10, 128), (33, 16), (16, 16), (5, 3)])
def test_the_counts_are_llada_s_where_rounding_is_no_tie(length: int, batch: int) -> None:
    for k in range(1, length + 1):
        exact = [k + j * length / batch for j in range(batch)]
        theirs = [(round(x) - 1) % length + 1 for x in exact]
        ours = stratified_counts(length, batch, k).tolist()
        ties = [x % 1 == 0.5 for x in exact]
        assert all(a == b or tie for a, b, tie in zip(ours, theirs, ties, strict=True))


# against the definition


def test_enough_samples_give_the_mean_over_all_masks_and_all_orders(llm: LLM) -> None:
    exact = bound(llm, PROMPT, ANSWER)
    assert exact == pytest.approx(any_order(llm, PROMPT, ANSWER), abs=1e-5)
    found = one(llm, PROMPT, ANSWER, mc_num=6000)
    assert found.num_forwards == 7, "the 7 different masks of 3 tokens, each once"
    assert found.standard_error is not None
    assert found.standard_error < 0.1
    assert abs(found.log_prob - exact) < 4 * found.standard_error


def test_the_estimate_is_unbiased_and_its_standard_error_honest(llm: LLM) -> None:
    # Four samples for three tokens: ties in the counts' rounding and one count that comes up twice.
    exact = bound(llm, PROMPT, ANSWER)
    found = [one(llm, PROMPT, ANSWER, mc_num=4, seed=seed) for seed in range(120)]
    values = np.array([item.log_prob for item in found])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - exact) < 4 * error
    stated = np.sqrt(np.mean([item.standard_error**2 for item in found]))
    assert 0.7 < stated / values.std(ddof=1) < 2


def test_one_sample_is_unbiased_but_knows_no_error(llm: LLM) -> None:
    found = [one(llm, PROMPT, ANSWER, mc_num=1, seed=seed) for seed in range(120)]
    values = np.array([item.log_prob for item in found])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - bound(llm, PROMPT, ANSWER)) < 4 * error
    assert {(item.num_forwards, item.standard_error) for item in found} == {(1, None)}


@pytest.mark.parametrize("mc_num", [1, 128])
@pytest.mark.parametrize("method", ["monte_carlo", "chain_rule"])
def test_one_token_takes_one_forward_and_is_exact(llm: LLM, mc_num: int, method: Any) -> None:
    options = {"mc_num": mc_num} if method == "monte_carlo" else {}
    found = one(llm, PROMPT, [8], method=method, **options)
    assert found.log_prob == pytest.approx(log_probs(llm, PROMPT, [8], {0})[0], abs=1e-5)
    assert (found.num_tokens, found.num_forwards, found.standard_error) == (1, 1, 0.0)


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_chain_rule_is_a_loop_over_the_tokens(family: str, block_size: int | None) -> None:
    llm = tiny_llm(family, block_size=block_size)
    for prompt, answer in ((PROMPT, ANSWER), LONG):
        masks = [set(range(i, len(answer))) for i in range(len(answer))]
        steps = [log_probs(llm, prompt, answer, masked)[i] for i, masked in enumerate(masks)]
        found = one(llm, prompt, answer, method="chain_rule", batch_size=3)
        assert found.log_prob == pytest.approx(sum(steps), abs=1e-4)
        assert (found.num_tokens, found.num_forwards) == (len(answer), len(answer))
        assert found.standard_error == 0.0


def test_a_probability_distribution_over_all_answers_sums_to_one(llm: LLM) -> None:
    answers = [[first, second] for first in range(VOCAB) for second in (0, 5)]
    found = many(llm, [PROMPT] * len(answers), answers, method="chain_rule", batch_size=64)
    single = many(llm, [PROMPT] * VOCAB, [[first] for first in range(VOCAB)], batch_size=64)
    assert sum(math.exp(item.log_prob) for item in single) == pytest.approx(1, abs=1e-5)
    assert sum(math.exp(item.log_prob) for item in found) < 1


def test_guidance_mixes_in_the_model_that_does_not_see_the_prompt(llm: LLM) -> None:
    for prompt, answer in ((PROMPT, ANSWER), LONG):
        masks = [set(range(i, len(answer))) for i in range(len(answer))]
        steps = [
            guided_log_probs(llm, prompt, answer, masked, 1.5)[i] for i, masked in enumerate(masks)
        ]
        found = one(llm, prompt, answer, method="chain_rule", cfg_scale=1.5, batch_size=4)
        assert found.log_prob == pytest.approx(sum(steps), abs=1e-4)
        assert found.num_forwards == len(answer)
        plain = one(llm, prompt, answer, method="chain_rule")
        assert abs(found.log_prob - plain.log_prob) > 0.1


def test_block_causal_models_do_not_see_later_blocks() -> None:
    llm = tiny_llm(block_size=4)
    exact = bound(llm, PROMPT, ANSWER)
    found = one(llm, PROMPT, ANSWER, mc_num=3000)
    assert abs(found.log_prob - exact) < 4 * (found.standard_error or 0)
    assert exact != pytest.approx(bound(tiny_llm(), PROMPT, ANSWER), abs=1e-3)


# batches


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("cfg_scale", [0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_does_not_depend_on_its_neighbors(
    family: str, cfg_scale: float, block_size: int | None
) -> None:
    llm = tiny_llm(family, block_size=block_size)
    examples = [(PROMPT, ANSWER), LONG, ([4], [1]), ([9, 9], [2, 60, 2, 2])]
    prompts, answers = zip(*examples, strict=True)
    options: dict[str, Any] = {"mc_num": 11, "cfg_scale": cfg_scale, "seed": 5}
    together = many(llm, prompts, answers, batch_size=5, **options)
    for (prompt, answer), found in zip(examples, together, strict=True):
        for batch_size in (1, 64):
            alone = one(llm, prompt, answer, batch_size=batch_size, **options)
            assert alone.log_prob == pytest.approx(found.log_prob, abs=1e-5)
            assert alone.num_tokens == found.num_tokens == len(answer)
            assert alone.num_forwards == found.num_forwards


def test_a_seed_repeats_itself_and_another_draws_other_masks(llm: LLM) -> None:
    drawn = {one(llm, *LONG, mc_num=2, seed=seed).log_prob for seed in (1, 1, 2, -1, 2**70)}
    assert len(drawn) == 4


def test_the_head_runs_on_asked_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, rows = tiny_llm(), []
    plain = llm.model.head

    def head(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return plain(hidden)

    monkeypatch.setattr(llm.model, "head", head)
    one(llm, *LONG, method="chain_rule", batch_size=4)
    assert rows == [4, 4, 3]
    rows.clear()
    one(llm, PROMPT, ANSWER, mc_num=1000)
    assert sum(rows) == 12, "masks of 3 tokens over all 7 subsets"


def test_the_head_runs_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm()
    whole = one(llm, *LONG, mc_num=8, cfg_scale=1)
    monkeypatch.setattr("unmask.engine.likelihood.HEAD_CHUNK", 5 * VOCAB)
    assert one(llm, *LONG, mc_num=8, cfg_scale=1).log_prob == pytest.approx(whole.log_prob)


# what is asked


def test_text_is_tokenized(llm: LLM) -> None:
    ids = one(llm, PROMPT, ANSWER)
    assert one(llm, "3 14 15 9 26", "5 35 8") == ids
    assert one(llm, "3 14 15 9 26", ANSWER, raw=True) == ids
    assert many(llm, ["3 14 15 9 26"], ["5 35 8"]) == [ids]
    assert many(llm, [], []) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "options", "message"),
    [
        ([1], [], {}, r"answer \[\] is empty; give at least one token"),
        ([1], "", {}, "answer '' is empty"),
        ([[1]], [[]], {}, r"answer \[\] is empty"),
        ("", [1], {}, "prompt is empty"),
        ([1] * 120, [1] * 9, {}, r"120 tokens \+ answer of 9 = 129.* 128; shorten them by 1"),
        ([1], [64], {}, r"token id 64 is outside 0\.\.63"),
        ([64], [1], {}, r"token id 64 is outside 0\.\.63"),
        ([1], [1.5], {}, "give one of each"),
        ([[1]], [[1.5]], {}, "1.5 is not a whole number"),
        ([1], b"1", {}, "answer b'1' must be a string or a list"),
        ([1], 7, {}, "answers of type int"),
        ([[1]], [7.0], {}, "answer 7.0 must be"),
    ],
)
def test_a_wrong_text_is_refused(
    prompt: Any, answer: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((PromptError, ConfigError), match=message):
        tiny_llm().loglikelihood(prompt, answer, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mc_num": 0}, "mc_num=0 must be at least 1"),
        ({"mc_num": 2.5}, "mc_num=2.5 must be a whole number"),
        ({"mc_num": 5, "method": "chain_rule"}, "mc_num=5 has no effect"),
        ({"method": "chain"}, "unknown method 'chain': did you mean 'chain_rule'"),
        ({"cfg_scale": -1}, "cfg_scale=-1 must be a number, not negative"),
        ({"cfg_scale": math.nan}, "cfg_scale=nan"),
        ({"cfg_scale": "1"}, "cfg_scale='1'"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"raw": 1}, "raw=1 must be True or False"),
        ({"raw": True}, "raw=True is for text"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_llm().loglikelihood([1], [2], **options)


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        (["1", "2"], ["3"], "2 prompts and 1 answers; give one answer for each prompt"),
        ("1", ["3", "4"], "one prompt and a list of 2 answers"),
        (["1", "2"], "3", "a list of 2 prompts and one answer"),
    ],
)
def test_lists_have_the_same_length(prompts: Any, answers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_llm().loglikelihood(prompts, answers)
