"""Giving up what lies right of an end token: what is computed, what is kept, who may not ask for it."""

from __future__ import annotations

import queue

import numpy as np
import pytest
import torch
from test_properties import CASES
from tiny import (
    EOS,
    TURN_END,
    VOCAB,
    StubTokenizer,
    TableModel,
    tiny_llm,
    tiny_spec,
    trace_of,
    want,
)

from unmask import LLM
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import decode
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError

PROMPT, LENGTH = [7, 8], 8
MINE, OTHERS = [10, 11, 12], [[3], [40, 41, 2, 2, 13, 57], [7, 8]]
some_cases = pytest.mark.parametrize(("name", "knobs", "cache", "family"), CASES[::7])
_MODELS: dict = {}


def early(family="llada"):
    """A model that says the end of text here and there, and soon."""
    if family not in _MODELS:
        _MODELS[family] = want(tiny_llm(family, 3), EOS, by=2.5)
    return _MODELS[family]


def told(end_at, sure=9.0):
    """A model that is sure of an end token at position `end_at` and of other tokens elsewhere, less so."""
    table = torch.zeros(LENGTH + 3, VOCAB)
    for position in range(LENGTH + 3):
        table[position, EOS if position == end_at else 20 + position] = sure - position / 10
    table[end_at, EOS] = 2 * sure
    return LLM(TableModel(tiny_spec(), table), tokenizer=StubTokenizer())


def finish(llm, requests):
    """The finished sequences, decoded together."""
    sequences = [SequenceState.begin(request, i) for i, request in enumerate(requests)]
    positions = max(request.max_positions for request in requests)
    runner = ModelRunner(
        llm.model, llm.vocabulary, 2 * len(requests), positions, store=True, features=True
    )
    list(decode(sequences, runner))
    return sequences


def length_of(name):
    return {} if name == "daedal" else {"gen_length": LENGTH}


def test_positions_right_of_the_end_are_padding_and_are_never_computed_again():
    llm = told(end_at=6)
    out = llm.generate(
        [PROMPT], gen_length=LENGTH, block_length=LENGTH, drop_after_eos=True, return_trace=True
    )[0]
    computed = [positions.tolist() for _, positions, _ in llm.model.seen]
    assert computed[0] == list(range(10)), "the end was not known before the first forward"
    assert all(positions == list(range(7)) for positions in computed[1:])
    assert out.canvas_ids == [*PROMPT, 22, 23, 24, 25, EOS, EOS, EOS, EOS]
    assert trace_of(out) == [[(6, EOS)], [(2, 22)], [(3, 23)], [(4, 24)], [(5, 25)]]
    assert [step.notes.get("dropped") for step in out.trace] == [3, 0, 0, 0, 0]
    assert (out.finish_reason, out.num_wasted, out.num_queries) == ("stop", 3, 10 + 4 * 7)


def test_without_it_the_surest_positions_right_of_the_end_come_first():
    out = told(end_at=6).generate(
        [PROMPT], gen_length=LENGTH, block_length=LENGTH, steps=4, return_trace=True
    )[0]
    assert (out.num_forwards, out.num_wasted) == (3, 3 * 3)


def test_an_end_further_left_drops_more():
    llm = told(end_at=8)
    llm.model.table[4, EOS], llm.model.table[4, 24] = 12.0, 0.0
    out = llm.generate([PROMPT], gen_length=LENGTH, block_length=LENGTH, drop_after_eos=True)[0]
    widths = [len(positions) for _, positions, _ in llm.model.seen]
    assert widths == [10, 9, 5, 5], "the end at 8, then the one at 4, then positions 2 and 3"
    assert out.token_ids == [22, 23]


@some_cases
def test_a_rows_answer_does_not_depend_on_its_neighbors(name, knobs, cache, family):
    llm = early(family)
    asked = knobs | length_of(name) | {"drop_after_eos": True}
    mine = llm.request(MINE, name, cache, **asked)
    alone = llm.output(finish(llm, [mine])[0], True)
    others = [llm.request(other, name, cache, **asked) for other in OTHERS]
    together = llm.output(finish(llm, [*others, mine])[-1], True)
    assert together.canvas_ids == alone.canvas_ids
    assert trace_of(together) == trace_of(alone)


@some_cases
def test_no_end_token_no_difference(name, knobs, cache, family):
    llm = want(tiny_llm(family, 3), EOS, TURN_END, by=-60.0)
    asked = knobs | length_of(name)
    plain = llm.generate([PROMPT], name, cache, return_trace=True, **asked)[0]
    dropping = llm.generate([PROMPT], name, cache, return_trace=True, drop_after_eos=True, **asked)[
        0
    ]
    assert (dropping.canvas_ids, dropping.num_queries) == (plain.canvas_ids, plain.num_queries)
    assert trace_of(dropping) == trace_of(plain)


def test_what_a_decoder_may_take_back_is_no_end_yet():
    llm = early()
    asked = {"gen_length": LENGTH, "block_length": LENGTH}
    plain, dropping = (
        llm.generate([MINE], "wino", drop_after_eos=drop, return_trace=True, **asked)[0]
        for drop in (False, True)
    )
    assert EOS in plain.canvas_ids[len(PROMPT) :], "the example has an end"
    assert trace_of(dropping) == trace_of(plain), "one block: it may change up to its end"


def test_alone_and_in_a_moving_batch_of_an_engine():
    llm, listeners = early(), []
    asked = [
        llm.request(prompt, name, cache, gen_length=LENGTH, drop_after_eos=drop)
        for prompt in (MINE, *OTHERS)
        for name, cache, drop in (
            ("vanilla", "none", True),
            ("threshold", "dual", True),
            ("dream", "dkv", True),
            ("vanilla", "d2cache", False),
        )
    ]
    alone = [llm.output(finish(llm, [request])[0], True) for request in asked]
    with Engine(llm, EngineConfig(max_num_seqs=3)) as engine:
        for request in asked:
            done: queue.Queue = queue.Queue()
            engine.submit(request, lambda u, done=done: done.put(u) if u.kind != "step" else None)
            listeners.append(done)
        outputs = [done.get(timeout=60).output for done in listeners]
    assert [trace_of(out) for out in outputs] == [trace_of(out) for out in alone]
    assert [out.canvas_ids for out in outputs] == [out.canvas_ids for out in alone]


def test_it_saves_queries_and_leaves_nothing_open():
    llm = early()
    plain, dropping = (
        llm.generate([MINE, *OTHERS], "dream", gen_length=32, drop_after_eos=drop)
        for drop in (False, True)
    )
    assert sum(o.num_queries for o in dropping) < 0.85 * sum(o.num_queries for o in plain)
    assert sum(o.num_wasted for o in dropping) < 0.8 * sum(o.num_wasted for o in plain)
    for out in dropping:
        ends = np.flatnonzero(np.isin(out.canvas_ids, [EOS, TURN_END]))
        assert out.finish_reason == ("stop" if len(ends) else "length")


@pytest.mark.parametrize("call", ["generate", "infill", "request"])
def test_it_is_refused_where_no_end_token_ends_the_answer(call):
    llm = early()
    calls = {
        "generate": lambda: llm.generate([PROMPT], stop_at_eos=False, drop_after_eos=True),
        "infill": lambda: llm.infill(["1 2", 3, "4"], drop_after_eos=True),
        "request": lambda: llm.request(llm.infill_canvas(["1", 2]), drop_after_eos=True),
    }
    with pytest.raises(ConfigError, match="drop_after_eos=true has no effect"):
        calls[call]()
