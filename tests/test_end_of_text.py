"""Positions right of an end token: left out by default where the answer cannot change, and only there."""

from __future__ import annotations

import queue

import numpy as np
import pytest
import torch
from test_properties import METHODS, PROMPTS, confidences_of, generate, revises
from tiny import (
    EOS,
    FAMILIES,
    TURN_END,
    VOCAB,
    StubTokenizer,
    TableModel,
    tiny_llm,
    tiny_spec,
    trace_of,
    want,
)

from unmask import LLM, caches, decoders
from unmask.decoders import Decoder, Wrapper
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.sequence import SequenceState
from unmask.errors import DecoderError

BLOCK = 4
CACHES = [
    name if name in ("none", "block_causal") else pytest.param(name, marks=pytest.mark.slow)
    for name in caches.names()
    if name != "auto"
]
every_method = pytest.mark.parametrize(("name", "knobs"), METHODS)
every_family = pytest.mark.parametrize("family", FAMILIES)
_MODELS: dict = {}


def says_what_matters(name):
    """Whether a decoder says which readings matter to an answer."""
    own = decoders.decoder_class(name).num_relevant
    return own not in (Decoder.num_relevant, Wrapper.num_relevant)


def early(family, block_size=BLOCK, seed=0):
    """A model with short answers, by either end token."""
    key = family, block_size, seed
    if key not in _MODELS:
        llm = tiny_llm(family, seed, block_size=block_size)
        _MODELS[key] = want(llm, EOS, TURN_END, by=2.0)
    return _MODELS[key]


def both(monkeypatch, ask, *args, **options):
    """The results of a call: by default, and with everything computed that a request does not drop."""
    ours = ask(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceState, "num_useful", lambda self, block_size: self.limit)
        return ours, ask(*args, **options)


def order_of(out):
    """The positions of an answer in the order of their commits."""
    return [position for committed in trace_of(out) for position, _ in committed]


def assert_same_answer(ours, whole):
    assert trace_of(ours) == trace_of(whole)
    for field in ("remasked", "replaced", "inserted", "deleted", "appended"):
        assert [getattr(a, field) for a in ours.trace] == [getattr(b, field) for b in whole.trace]
    assert (ours.canvas_ids, ours.finish_reason) == (whole.canvas_ids, whole.finish_reason)
    assert confidences_of(ours) == pytest.approx(confidences_of(whole), abs=1e-5)
    left_out = whole.num_queries - ours.num_queries
    assert left_out == whole.num_wasted - ours.num_wasted >= 0, "only what is right of the end"


@every_family
@pytest.mark.parametrize("cache", CACHES)
@every_method
def test_an_answer_is_the_same_with_and_without_what_is_left_out(
    name, knobs, cache, family, monkeypatch
):
    options = {"gen_length": 16, "seed": 1, "stop_at_eos": True}
    if family == "dream":
        options |= {"temperature": 0.8, "cfg_scale": 1.0}
    ours, whole = both(
        monkeypatch, generate, early(family), PROMPTS[:4], name, cache, knobs, **options
    )
    for one, other in zip(ours, whole, strict=True):
        assert_same_answer(one, other)
    is_slow = not revises(name) and "steps" not in knobs  # several forwards a block
    leaves_gaps = any(order_of(out) != sorted(order_of(out)) for out in whole)
    if (
        cache == "none"
        and family == "llada"
        and says_what_matters(name)
        and is_slow
        and leaves_gaps
    ):
        # greedy answers end inside a block; where sampled ones of Dream end is chance
        assert sum(o.num_queries for o in ours) < sum(o.num_queries for o in whole)


@every_family
@every_method
def test_full_attention_leaves_nothing_out_by_default(name, knobs, family, monkeypatch):
    """There every position reads every other: only a request may give that up."""
    llm = early(family, block_size=None)
    options = {"gen_length": 16, "stop_at_eos": True}
    ours, whole = both(monkeypatch, generate, llm, PROMPTS[:3], name, "none", knobs, **options)
    assert [(o.num_queries, trace_of(o)) for o in ours] == [
        (o.num_queries, trace_of(o)) for o in whole
    ]


@every_family
def test_in_full_attention_what_lies_right_of_an_end_changes_what_is_left_of_it(family):
    """The reason why it is not left out there."""
    llm = early(family, block_size=None)
    ids = torch.tensor([[3, 4, 5, llm.spec.mask_id, EOS, *[llm.spec.mask_id] * 4]])
    whole, cut = llm.model(ids)[0, 3], llm.model(ids[:, :5])[0, 3]
    assert (whole - cut).abs().max() > 1e-2
    blocks = early(family)
    ids = torch.tensor([[3, EOS, 5, blocks.spec.mask_id, *[blocks.spec.mask_id] * 4]])
    whole, cut = blocks.model(ids)[0, 3], blocks.model(ids[:, :4])[0, 3]
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("cache", ["none", "block_causal"])
@every_method
def test_up_to_its_end_an_answer_is_that_of_a_decode_that_never_stops(name, knobs, cache, family):
    if decoders.finds_length(name):
        pytest.skip("positions of a later insertion have no place in the run that stopped")
    ours, whole = (
        generate(early(family), PROMPTS[:4], name, cache, knobs, gen_length=16, stop_at_eos=stops)
        for stops in (True, False)
    )
    for one, other in zip(ours, whole, strict=True):
        assert one.token_ids == other.token_ids
        assert trace_of(one) == trace_of(other)[: one.num_forwards]


def certain(end_at, length=16):
    """A block-causal model that fills each block from the right, with an end token at `end_at`."""
    table = torch.zeros(length + 3, VOCAB)
    for position in range(length + 3):
        table[position, EOS if position == end_at else 20 + position] = 2.0 + position / 10
    return LLM(TableModel(tiny_spec(block_size=BLOCK), table), tokenizer=StubTokenizer())


def test_the_positions_computed_by_hand():
    llm = certain(end_at=7)
    out = llm.generate([[7, 8]], gen_length=14)[0]
    widths = [len(positions) for _, positions, _ in llm.model.seen]
    assert widths == [16, 16, 16, 8, 8, 8], (
        "two tokens, then the end at 7 and its block to the left"
    )
    assert (out.num_queries, out.num_wasted) == (sum(widths), 3 * 8)
    assert out.token_ids == [22, 23, 24, 25, 26]


def test_klass_does_not_read_the_block_after_the_last():
    llm = certain(end_at=7)
    out = llm.generate([[7, 8]], "klass", "block_causal", gen_length=14)[0]
    widths = [len(positions) for _, positions, _ in llm.model.seen]
    assert widths[:2] == [8, 8], "the prompt's block, and the next one, whose histories start early"
    assert widths[-2:] == [4, 4], "no history of a block that will not run"
    assert out.token_ids == [22, 23, 24, 25, 26]


@pytest.mark.parametrize(
    "knobs", [{"vocabulary": "adaptive"}, {"vocabulary": "static", "vocab_size": 9}]
)
def test_a_vocabulary_shared_by_all_readings_keeps_them(knobs, monkeypatch):
    for seed in range(3):
        llm = early("llada", seed=seed)
        options = {"kl_threshold": 1.0, "threshold": 0.2, "gen_length": 16, "return_trace": True}
        options |= knobs
        ours, whole = both(monkeypatch, llm.generate, PROMPTS, "klass", "block_causal", **options)
        for one, other in zip(ours, whole, strict=True):
            assert_same_answer(one, other)


def test_a_given_end_token_is_an_end_too(monkeypatch):
    llm = early("llada")
    for offset in (6, 9):
        given = {"constraints": {offset: EOS}, "gen_length": 16, "return_trace": True}
        for name in ("vanilla", "threshold", "klass", "cadllm", "dream"):
            for cache in ("none", "block_causal", "prefix"):
                ours, whole = both(monkeypatch, llm.generate, PROMPTS[:2], name, cache, **given)
                for one, other in zip(ours, whole, strict=True):
                    assert_same_answer(one, other)
                    assert len(one.token_ids) <= offset


def test_an_engine_with_pages_gives_the_same_answers_in_any_batch(monkeypatch):
    llm = early("llada")
    asked = [
        llm.request(prompt, name, cache, gen_length=24)
        for prompt in PROMPTS[:4]
        for name, cache in (
            ("klass", "block_causal"),
            ("threshold", "none"),
            ("vanilla", "prefix"),
            ("wino", "block_causal"),
        )
    ]

    def outputs():
        with Engine(llm, EngineConfig(max_num_seqs=5)) as engine:
            listeners = []
            for request in asked:
                done: queue.Queue = queue.Queue()
                engine.submit(
                    request, lambda u, done=done: done.put(u) if u.kind != "step" else None
                )
                listeners.append(done)
            return [done.get(timeout=60).output for done in listeners]

    ours, whole = both(monkeypatch, outputs)
    for one, other in zip(ours, whole, strict=True):
        assert trace_of(one) == trace_of(other)
        assert one.canvas_ids == other.canvas_ids
    assert sum(o.num_queries for o in ours) < sum(o.num_queries for o in whole)


@pytest.mark.parametrize("count", [-1, 3, 100, None, 7.5])
def test_a_decoder_that_says_nonsense_is_named(count, monkeypatch):
    llm = certain(end_at=7)
    monkeypatch.setattr(
        decoders.decoder_class("vanilla"), "num_relevant", lambda self, canvas, state, end: count
    )
    with pytest.raises(DecoderError, match=f"num_relevant returned {count}; use 8 to 16"):
        llm.generate([[7, 8]], gen_length=14)


@pytest.mark.parametrize("block_size", [None, BLOCK])
def test_the_fast_preset_drops_what_the_default_computes(block_size):
    llm = early("llada", block_size=block_size)
    fast, same, plain = (
        llm.generate(PROMPTS, gen_length=16, return_trace=True, **options)
        for options in (
            {"preset": "fast"},
            {"decoder": "threshold", "drop_after_eos": True},
            {"decoder": "threshold"},
        )
    )
    assert fast == same
    if block_size is None:
        assert sum(o.num_wasted for o in fast) < sum(o.num_wasted for o in plain)


def test_the_fast_preset_gives_way_where_nothing_ends_an_answer():
    llm = early("llada")
    plain, fast = (
        llm.generate(PROMPTS, gen_length=16, stop_at_eos=False, **options)
        for options in ({"decoder": "threshold"}, {"preset": "fast"})
    )
    assert fast == plain
    filled, fast_filled = (
        llm.infill(["1 2", 3, "4"], **options)
        for options in ({"decoder": "threshold"}, {"preset": "fast"})
    )
    assert np.array_equal(filled.canvas_ids, fast_filled.canvas_ids)
