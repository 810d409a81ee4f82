"""Knobs at the ends of their ranges do what their descriptions say, by the number of forwards."""

from __future__ import annotations

import pytest
import torch
from tiny import EOS, FAMILIES, KNOWN, MASK, VOCAB, tiny_llm, trace_of

from unmask import ModelError, decoders
from unmask.engine.drafter import draft_by
from unmask.method import MethodSpec, Source

PROMPT = [7, 8, 9]
every_family = pytest.mark.parametrize("family", FAMILIES)


def run(llm, decoder, **knobs):
    knobs = {"gen_length": 16, "block_length": 8} | knobs
    for name in ("gen_length", "block_length"):
        if knobs[name] is None:
            del knobs[name]
    return llm.generate([PROMPT], decoder, stop_at_eos=False, return_trace=True, **knobs)[0]


@every_family
@pytest.mark.parametrize(
    ("decoder", "knobs", "forwards"),
    [
        ("vanilla", {"steps": 2}, 2),
        ("vanilla", {}, 16),
        ("threshold", {"threshold": 0.0}, 2),
        ("factor", {"factor": 0.0}, 16),
        ("factor", {"factor": 1e9}, 2),
        ("eb_sampler", {"gamma": 0.0}, 16),
        ("eb_sampler", {"gamma": float("inf")}, 2),
        ("hierarchy", {"threshold": 0.0, "low_threshold": 0.0}, 2),
        ("credit", {"threshold": 0.0}, 2),
        ("klass", {"kl_threshold": 1e-300}, 16),
        ("klass", {"threshold": 0.0, "kl_threshold": 1e9, "kl_history_length": 1}, 3),
        ("joint_threshold", {"threshold": 1.0, "max_post_edit_steps": 0}, 16),
        ("joint_threshold", {"threshold": 0.0, "edit_threshold": 1.0}, 4),
        ("wino", {"wide_in_thres": 1.0}, 16),
        ("prophet", {"gap_thresholds": (0.0, 0.0, 0.0)}, 1),
        ("prophet", {"gap_thresholds": (1e9, 1e9, 1e9)}, 16),
        ("speculative", {"inner": "vanilla", "accept_threshold": 1.0}, 16),
        ("block_diffusion", {}, 16),
        ("block_diffusion", {"steps": 2}, 2),
        ("pc_sampler", {"steps": 4}, 4),
        ("ar", {"block_length": None}, 16),
        ("dream", {"block_length": None, "steps": 1}, 1),
        ("dream", {"block_length": None, "schedule": "even", "steps": 16}, 16),
        (
            "daedal",
            {"gen_length": None, "initial_gen_length": 16, "max_gen_length": 16, "threshold": 0.0},
            2,
        ),
    ],
)
def test_the_number_of_forwards(decoder, knobs, forwards, family):
    assert run(tiny_llm(family, 1), decoder, **knobs).num_forwards == forwards


def test_every_decoder_has_an_extreme_here_or_its_own_file():
    rows = next(mark for mark in test_the_number_of_forwards.pytestmark if "knobs" in mark.args[0])
    tested = {decoder for decoder, *_ in rows.args[1]}
    assert tested | {"cadllm"} == set(decoders.names())


@every_family
def test_a_position_weight_that_is_large_decodes_from_left_to_right(family):
    out = run(tiny_llm(family, 2), "pc_sampler", lambd=1e4)
    order = [position for step in trace_of(out) for position, _ in step]
    assert order == sorted(order)


@every_family
def test_a_narrow_prior_decodes_from_left_to_right_and_a_wide_one_does_not(family):
    orders = []
    for sigma in (0.3, 1e6):
        out = run(tiny_llm(family, 2), "vanilla", sigma=sigma, block_length=16)
        orders.append([position for step in trace_of(out) for position, _ in step])
    assert orders[0] == sorted(orders[0])
    assert orders[1] != sorted(orders[1])


@every_family
def test_wino_that_never_narrows_out_takes_nothing_back(family):
    out = run(tiny_llm(family, 1), "wino", wide_in_thres=0.1, narrow_out_thres=0.0)
    assert not any(step.remasked for step in out.trace)


@every_family
def test_daedal_that_always_expects_more_grows_to_its_maximum(family):
    knobs = {"initial_gen_length": 8, "max_gen_length": 40, "initial_eot_expand_thres": 1.0}
    out = run(tiny_llm(family, 1), "daedal", gen_length=None, **knobs)
    assert len(out.canvas_ids) == len(PROMPT) + 40
    never = {"initial_eot_expand_thres": 0.0, "decode_eot_expand_thres": 0.0}
    out = run(tiny_llm(family, 1), "daedal", gen_length=None, **(knobs | never))
    assert len(out.canvas_ids) == len(PROMPT) + 8


@every_family
@pytest.mark.parametrize("name", decoders.names())
def test_logits_that_are_no_numbers_end_with_a_clear_error(name, family):
    llm = tiny_llm(family, 1)
    with torch.no_grad():
        llm.model.lm_head.weight.fill_(torch.nan)
    knobs = {"gen_length": None, "initial_gen_length": 8} if name == "daedal" else {}
    if "block_length" not in decoders.knob_names(name):
        knobs = knobs | {"block_length": None}
    with pytest.raises(ModelError, match="not finite"):
        run(llm, name, **knobs)


# speculation


@every_family
@pytest.mark.parametrize("inner", ["vanilla", "threshold", "factor", "block_diffusion", "wino"])
def test_a_speculating_forward_commits_all_that_the_decoder_inside_would(inner, family):
    """On every canvas of the decode, at the same state."""
    accepted = 0
    for seed in range(4):
        llm = tiny_llm(family, seed, sure=4.0)
        drafts = tiny_llm(family, seed, sure=4.0)
        llm.requests.drafters["same"] = draft_by(drafts)
        knobs = {"inner": inner, "accept_threshold": 0.2, "drafter": "same"}
        out = run(llm, "speculative", **knobs)
        plain = run(llm, inner)
        assert len(out.trace) <= plain.num_forwards
        accepted += sum(step.notes["num_accepted"] for step in out.trace)
        for step in out.trace:
            assert len(step.committed) >= step.notes["num_accepted"]
    assert accepted


def test_lookup_drafts_the_continuation_of_the_last_repetition():
    from unmask.canvas import new_canvas
    from unmask.decoders.speculative import lookup

    tokens = [1, 2, 3, 4, 5, 1, 2, 0, 0, 0, 0]
    canvas = new_canvas(tokens, [False] * 7 + [True] * 4, 7, MASK)
    rows = canvas.open_positions()
    assert lookup(canvas, rows, 2).tolist() == [-1] * 7 + [3, 4, 5, 1]
    assert lookup(canvas, rows, 3).tolist() == [-1] * 11


# pruned vocabularies


@every_family
@pytest.mark.parametrize("decoder", ["threshold", "cadllm", "wino"])
def test_a_union_of_everything_prunes_nothing(decoder, family):
    llm = tiny_llm(family, 3)
    knobs = {} if decoder != "cadllm" else {"block_length": None}
    pruned = run(llm, decoder, vocabulary="union", vocab_size=VOCAB, **knobs)
    plain = run(llm, decoder, vocabulary="none", **knobs)
    assert trace_of(pruned) == trace_of(plain)


@every_family
def test_a_union_gives_the_head_fewer_columns_and_bounds_what_it_misses(family, monkeypatch):
    """The bound holds: the whole head gives the left-out tokens no more than was said."""
    llm = tiny_llm(family, 3, sure=6.0)
    sizes, shares = [], []
    plain = type(llm.model).head

    def head(self, hidden, ids=None):
        if ids is not None:
            sizes.append(len(ids))
            whole = plain(self, hidden).softmax(-1)
            shares.append(1 - whole[:, ids].sum(-1))
        return plain(self, hidden, ids)

    monkeypatch.setattr(type(llm.model), "head", head)
    bounds = []

    def watch(self, *arguments):
        found = original(self, *arguments)
        bounds.append(found)
        return found

    from unmask.engine.sampler_state import Candidates

    original = Candidates.missed
    monkeypatch.setattr(Candidates, "missed", watch)
    out = run(llm, "vanilla", vocabulary="union", vocab_size=2)
    assert out.num_forwards == 16
    assert max(sizes) < VOCAB
    assert len(bounds) == len(shares) == 14, "two blocks, whose first forwards have the whole head"
    for bound, share in zip(bounds, shares, strict=True):
        assert bool((share <= bound + 1e-5).all())


@every_family
def test_a_union_that_could_miss_too_much_is_chosen_anew(family):
    llm = tiny_llm(family, 3)
    strict = run(llm, "vanilla", vocabulary="union", vocab_size=2, max_missed=0.0)
    plain = run(llm, "vanilla")
    assert strict.num_forwards == plain.num_forwards
    loose = run(llm, "vanilla", vocabulary="union", vocab_size=2)
    assert trace_of(loose) != trace_of(plain)


@every_family
def test_only_frequent_tokens_are_proposed(family, tmp_path):
    from unmask.sampling.token_frequencies import save_background

    file = tmp_path / "counts.json"
    save_background(file, {5: 90, 6: 50, 11: 40, 12: 1})
    out = run(
        tiny_llm(family, 3),
        "threshold",
        vocabulary="frequency",
        vocab_size=3,
        frequencies=str(file),
    )
    assert set(out.canvas_ids[3:]) <= {5, 6, 11, EOS, 58}
    assert KNOWN - 1 not in out.canvas_ids[3:]


@every_family
def test_the_adaptive_vocabulary_of_cadllm_serves_every_decoder(family):
    llm = tiny_llm(family, 3)
    out = run(llm, "threshold", vocabulary="adaptive")
    assert all(35 <= step.notes["vocab_size"] <= VOCAB for step in out.trace)
    assert out.trace[0].notes["vocab_size"] == VOCAB, "wide at first"
    ours = run(llm, "cadllm", block_length=None, vocabulary="adaptive")
    assert trace_of(ours) == trace_of(run(llm, "cadllm", block_length=None))


# lengths that nobody wrote


@pytest.mark.parametrize(
    ("decoder", "knobs", "num_forwards"),
    [
        ("vanilla", {"block_length": 5}, 12),
        ("vanilla", {"block_length": 5, "steps": 6}, 6),
        ("vanilla", {"steps": 7}, 7),
        ("vanilla", {"steps": 1}, 1),
        ("klass", {"block_length": 7}, None),
        ("block_diffusion", {"block_length": 40}, 12),
        ("block_diffusion", {"block_length": 5, "steps": 6}, 6),
        ("block_diffusion", {"steps": 7}, 7),
        ("block_diffusion", {"steps": 1}, 1),
    ],
)
def test_a_default_length_never_makes_a_written_knob_an_error(
    tiny, monkeypatch, decoder, knobs, num_forwards
):
    monkeypatch.setattr("unmask.method.GEN_LENGTH", 12)
    out = tiny().generate([3, 4, 5], decoder, stop_at_eos=False, **knobs)[0]
    assert len(out.token_ids) <= 12
    assert MASK not in out.token_ids
    assert num_forwards in (None, out.num_forwards)


@pytest.mark.parametrize("decoder", decoders.names())
@pytest.mark.parametrize("default", [{"block_length": 5}, {"steps": 2}, {"block_steps": 3}])
def test_a_default_never_makes_a_written_length_an_error(tiny, decoder, default):
    if not default.keys() <= decoders.knob_names(decoder) or decoders.finds_length(decoder):
        return
    own = MethodSpec.parse(Source({"decoder": decoder, **default}))
    source = own.source(is_default=True, is_adaptable=True)
    written = {"steps": 4} if "block_steps" in default else {}
    written = written if written.keys() <= decoders.knob_names(decoder) else {}
    for length in (1, 3, 7):
        method = MethodSpec.parse(Source(written if length == 7 else {}), source)
        out = tiny().generate(
            [3, 4, 5], method, gen_length=length, stop_at_eos=False, return_trace=True
        )[0]
        assert MASK not in out.token_ids
        assert len(out.trace) == out.num_forwards
