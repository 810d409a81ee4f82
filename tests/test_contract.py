"""The contract of decoders and caches: every rule is checked, with and without `python -O`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from test_properties import run
from tiny import tiny_llm

from unmask import caches, decoders
from unmask.caches.base import CachePlan, Layers, answered_rows
from unmask.canvas import Ask, Bias, Credit, Edit, Reading
from unmask.engine.request import Request
from unmask.errors import CacheError, ConfigError, ContractError, DecoderError
from unmask.method import MethodSpec
from unmask.sampling.params import SamplingParams

PROMPT, LENGTH = 3, 8
MASK = tiny_llm().spec.mask_id
VOCAB = tiny_llm().spec.vocab_size


def ints(*values):
    return np.array(values, dtype=np.int64)


def commits(*values, tokens=None, confidence=None):
    size = len(values)
    return {
        "commit": ints(*values),
        "tokens": np.full(size, 5) if tokens is None else tokens,
        "confidence": np.full(size, 0.5) if confidence is None else confidence,
    }


@dataclass(frozen=True)
class Spoiled(decoders.Decoder):
    """Commits the first open position, until its own ask or edit is due at `at`."""

    ask_: object = None
    edit: object = None
    settled: object = None
    at: int = 1
    pair: bool = True

    def start(self, canvas, facts):
        return 0

    def ask(self, canvas, state):
        if state == self.at and self.ask_ is not None:
            return (self.ask_, state) if self.pair else self.ask_
        return Ask(canvas.open_positions(), (canvas.prompt_length, len(canvas))), state

    def step(self, canvas, state, reading: Reading):
        edit = reading.undecided(canvas).commit(np.zeros(1, dtype=np.int64))
        if state == self.at and self.edit is not None:
            edit = self.edit
            if not self.pair:
                return edit
        return edit, state + 1

    def num_settled(self, canvas, state):
        return len(canvas) if self.settled is None else self.settled


@dataclass(frozen=True)
class SpoiledCache(caches.CachePolicy):
    """Computes everything, until its own plan is due."""

    broken: object = None

    def start(self, canvas, facts):
        return 0

    def plan(self, canvas, ask, rows, state):
        due = state == 1 and self.broken is not None
        return (self.broken if due else CachePlan(np.arange(len(canvas)))), state + 1

    def observe(self, before, after, observation, state):
        return state


class ExactCache(SpoiledCache):
    exact = True


class StorelessCache(SpoiledCache):
    stores = False


class PageableCache(SpoiledCache):
    pageable = True


class LayeredCache(SpoiledCache):
    layered = True


def decode(decoder=None, cache=None):
    llm = tiny_llm()
    request = Request(
        canvas=llm.prompt_canvas([7, 8, 9], LENGTH),
        method=MethodSpec(
            decoder or Spoiled(), cache or caches.make_cache("none"), SamplingParams()
        ),
        seed=0,
        stop_ids=llm.stop_ids,
        stop_at_eos=False,
        facts=llm.facts,
    )
    return run(llm, [request], 1)[0]


def test_a_decoder_that_keeps_the_rules_decodes():
    sequence = decode()
    assert sequence.num_forwards == LENGTH
    assert sequence.num_forced == 0


# position 3 is decided by forward 0, the canvas has 11 positions
EDITS = {
    "no edit": (3, "returned int"),
    "a list for positions": (Edit(commit=[4]), "Edit.commit is a list"),
    "a mask for positions": (
        Edit(remask=np.zeros(11, dtype=bool)),
        "Edit.remask is an array of bool",
    ),
    "floats for positions": (Edit(delete=np.array([4.0])), "Edit.delete is an array of float64"),
    "two dimensions": (Edit(replace=ints(3)[None]), "2 dimensions"),
    "committed twice": (Edit(**commits(4, 4)), "must ascend"),
    "unsorted": (Edit(**commits(5, 4)), "must ascend"),
    "beyond the end": (Edit(**commits(11)), "position 11; the canvas has 11"),
    "negative": (Edit(**commits(-1)), "position -1"),
    "decided": (Edit(**commits(3)), "position 3, which is decided"),
    "given and committed": (Edit(**commits(0)), "position 0, which is decided"),
    "too few tokens": (Edit(**commits(4, 5, tokens=ints(5))), "1 tokens for 2 positions"),
    "too many tokens": (Edit(replace=ints(), replace_tokens=ints(1)), "1 tokens for 0 positions"),
    "float tokens": (
        Edit(**commits(4, tokens=np.array([5.0]))),
        "Edit.tokens is an array of float",
    ),
    "the mask": (Edit(**commits(4, tokens=ints(MASK))), "mask id"),
    "no token": (Edit(**commits(4, tokens=ints(VOCAB))), f"id {VOCAB}"),
    "a negative token": (Edit(**commits(4, tokens=ints(-5))), "id -5"),
    "the mask replaces": (Edit(replace=ints(3), replace_tokens=ints(MASK)), "mask id"),
    "the mask is appended": (Edit(append=ints(MASK)), "mask id"),
    "no confidence": (Edit(commit=ints(4), tokens=ints(5)), "0 numbers for 1 commits"),
    "whole confidences": (
        Edit(**commits(4, confidence=ints(1))),
        "Edit.confidence is an array of int64",
    ),
    "confidence not a number": (Edit(**commits(4, confidence=np.array([np.nan]))), "has nan"),
    "infinite confidence": (Edit(**commits(4, confidence=np.array([np.inf]))), "has inf"),
    "confidence above one": (Edit(**commits(4, confidence=np.array([1.5]))), "has 1.5"),
    "given and replaced": (
        Edit(replace=ints(0), replace_tokens=ints(5)),
        "position 0, which is fixed",
    ),
    "given and masked": (Edit(remask=ints(1)), "Edit.remask has position 1, which is fixed"),
    "given and deleted": (Edit(delete=ints(2)), "Edit.delete has position 2, which is fixed"),
    "open and replaced": (
        Edit(replace=ints(4), replace_tokens=ints(5)),
        "position 4, which is undecided",
    ),
    "open and masked": (Edit(remask=ints(4)), "position 4, which is undecided"),
    "inserted into the prompt": (Edit(insert=((2, 1),)), "prompt's end 3"),
    "inserted beyond the end": (Edit(insert=((12, 1),)), "canvas's end 11"),
    "inserted twice": (Edit(insert=((5, 1), (5, 2))), "two insertions"),
    "nothing inserted": (Edit(insert=((5, 0),)), "at least one position"),
    "no pairs inserted": (Edit(insert=(5,)), "pairs"),
    "a list of insertions": (Edit(insert=[(5, 1)]), "pairs"),
    "grown beyond the maximum": (Edit(insert=((5, 1),)), "grew to 12 positions"),
    "appended beyond the maximum": (Edit(append=ints(5)), "grew to 12 positions"),
    "words as notes": (Edit(**commits(4), notes={"a": "b"}), "Edit.notes"),
}
ROWS, WINDOW = ints(4, 5), (3, 11)
ASKS = {
    "no ask": (None, (), "returned tuple"),
    "a list": ([4], WINDOW, "Ask.rows is a list"),
    "nothing": (ints(), WINDOW, "Ask.rows is empty"),
    "beyond the end": (ints(4, 11), WINDOW, "position 11; the canvas has 11"),
    "negative": (ints(-1, 4), WINDOW, "position -1"),
    "unsorted": (ints(5, 4), WINDOW, "must ascend"),
    "twice": (ints(4, 4), WINDOW, "must ascend"),
    "a window beyond the end": (ROWS, (3, 12), "Ask.window=(3, 12)"),
    "a window backwards": (ROWS, (5, 4), "Ask.window=(5, 4)"),
}
MORE_ASKS = {
    "needed but not asked": ({"needed": ints(6)}, "Ask.needed=[6]"),
    "optional beyond the end": ({"optional": ints(11)}, "Ask.optional has position 11"),
    "shadows beyond the end": ({"shadows": ints(11)}, "Ask.shadows has position 11"),
    "no tokens count": ({"top_v": 0}, "Ask.top_v=0"),
    "a bias without values": ({"bias": Bias(ints(4), ints(5), np.zeros(0))}, "Ask.bias"),
    "a bias of no token": ({"bias": Bias(ints(4), ints(VOCAB), np.zeros(1))}, "Ask.bias"),
    "an infinite bias": ({"bias": Bias(ints(4), ints(5), np.array([-np.inf]))}, "Ask.bias"),
    "a credit elsewhere": ({"credit": Credit(ints(11), ints(5), np.ones(1), 1, 1)}, "Ask.credit"),
}


@pytest.mark.parametrize(("edit", "rule"), EDITS.values(), ids=EDITS)
def test_an_edit_that_breaks_a_rule_ends_its_request(edit, rule):
    with pytest.raises(DecoderError) as caught:
        decode(Spoiled(edit=edit))
    assert rule in caught.value.rule
    assert (caught.value.name, caught.value.forward) == (Spoiled().name, 1)
    assert f"decoder {Spoiled().name!r} broke the contract at forward 1" in str(caught.value)


@pytest.mark.parametrize(("rows", "window", "rule"), ASKS.values(), ids=ASKS)
def test_an_ask_that_breaks_a_rule_ends_its_request(rows, window, rule):
    with pytest.raises(DecoderError) as caught:
        decode(Spoiled(ask_=() if rows is None else Ask(rows, window)))
    assert rule in caught.value.rule
    assert caught.value.forward == 1


@pytest.mark.parametrize(("more", "rule"), MORE_ASKS.values(), ids=MORE_ASKS)
def test_the_other_fields_of_an_ask_have_rules_too(more, rule):
    with pytest.raises(DecoderError) as caught:
        decode(Spoiled(ask_=Ask(ROWS, WINDOW, **more)))
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("spoiled", "rule"),
    [
        (Spoiled(ask_=(), pair=False), "ask returned tuple; it returns an Ask and the state"),
        (Spoiled(edit=3, pair=False), "step returned int; it returns an Edit and the state"),
    ],
)
def test_a_method_returns_the_state_too(spoiled, rule):
    with pytest.raises(DecoderError) as caught:
        decode(spoiled)
    assert caught.value.rule == rule


@pytest.mark.parametrize("count", [-5, 10, None, 11.0, "x"])
def test_the_most_positions_are_a_number_that_holds_the_canvas(monkeypatch, count):
    monkeypatch.setattr(Spoiled, "max_positions", lambda *_: count)
    with pytest.raises(DecoderError, match=f"max_positions returned {count}; use 11 or more"):
        decode()


@pytest.mark.parametrize("count", [-1, None, 3.5, "x"])
def test_the_most_forwards_are_a_number(monkeypatch, count):
    monkeypatch.setattr(Spoiled, "max_forwards", lambda *_: count)
    with pytest.raises(DecoderError, match=f"max_forwards returned {count}; use 0 or more"):
        decode()


def test_the_first_canvas_is_a_canvas(monkeypatch):
    monkeypatch.setattr(Spoiled, "first_canvas", lambda *_: None)
    with pytest.raises(DecoderError, match="first_canvas returned NoneType"):
        decode()


@pytest.mark.parametrize("count", [-1, 12, "all", 2.5])
def test_settled_positions_are_positions_of_the_canvas(count):
    with pytest.raises(DecoderError, match=f"num_settled returned {count}"):
        decode(Spoiled(settled=count))


def test_an_unknown_statistic_is_refused_where_it_is_asked_for():
    with pytest.raises(ConfigError, match=r"unknown statistic 'entropi'.*entropy"):
        Ask(ROWS, WINDOW, stats=frozenset({"entropi"}))


ALL = np.arange(PROMPT + LENGTH)
LAYERS = Layers(PROMPT, True, True, 0)
PLANS = {
    "no plan": (SpoiledCache, 3, "returned int"),
    "a list": (SpoiledCache, CachePlan([4]), "CachePlan.queries is a list"),
    "unsorted": (SpoiledCache, CachePlan(ints(5, 4)), "must ascend"),
    "beyond the end": (SpoiledCache, CachePlan(ints(4, 11)), "position 11"),
    "none of the rows": (SpoiledCache, CachePlan(ints(0)), "none of the rows"),
    "nothing": (SpoiledCache, CachePlan(ints()), "none of the rows"),
    "exact but not all": (ExactCache, CachePlan(ints(4)), "5 is missing"),
    "nothing stored": (StorelessCache, CachePlan(ALL[1:]), "must compute all 11"),
    "final beyond the end": (SpoiledCache, CachePlan(ALL, num_final=12), "num_final=12"),
    "stored after final": (SpoiledCache, CachePlan(ALL, num_stored=2, num_final=1), "num_stored=2"),
    "queries beyond what is seen": (SpoiledCache, CachePlan(ALL, end=5), "at or beyond end=5"),
    "pages without an end": (PageableCache, CachePlan(ALL), "CachePlan.end is None"),
    "a gap in the pages": (
        PageableCache,
        CachePlan(ALL[2:], end=11),
        "from num_stored=0 to end=11",
    ),
    "layers unasked": (SpoiledCache, CachePlan(ALL, layers=LAYERS), "layered is False"),
    "no layers": (LayeredCache, CachePlan(ALL), "layered is True"),
    "layers of a part": (LayeredCache, CachePlan(ALL[1:], layers=LAYERS), "all 11 positions"),
    "layers of another prompt": (
        LayeredCache,
        CachePlan(ALL, layers=replace(LAYERS, prompt_length=2)),
        "prompt of 3",
    ),
    "layers beyond the end": (
        LayeredCache,
        CachePlan(ALL, layers=replace(LAYERS, forced=ints(11))),
        "forced has position 11",
    ),
}


@pytest.mark.parametrize(("policy", "plan", "rule"), PLANS.values(), ids=PLANS)
def test_a_plan_that_breaks_a_rule_ends_its_request(policy, plan, rule):
    from unmask.caches.base import plan_fault

    canvas = tiny_llm().prompt_canvas([7, 8, 9], LENGTH)
    ask = Ask(canvas.open_positions()[1:], WINDOW)
    fault = plan_fault(policy(), canvas, ask, ask.rows, plan)
    assert fault is not None
    assert rule in fault
    if policy is SpoiledCache:
        with pytest.raises(CacheError) as caught:
            decode(cache=policy(broken=plan))
        assert rule in caught.value.rule
        assert (caught.value.name, caught.value.forward) == (SpoiledCache().name, 1)


def test_rows_that_must_be_read_must_be_computed():
    for needed, rows in ((ints(5), ints(4, 5)), (ints(), ints(4, 10))):
        ask = Ask(rows, (3, 9), needed=needed)
        with pytest.raises(CacheError, match=f"row {rows[1]} is missing"):
            decode(Spoiled(ask_=ask), SpoiledCache(broken=CachePlan(ints(4))))


def test_the_rules_hold_without_assertions():
    code = """
import sys
assert False, "assertions are off"
import numpy as np
from unmask.canvas import Edit, new_canvas
from unmask.edit_rules import apply
from unmask.errors import DecoderError
canvas = new_canvas([7, 0], [False, True], 1, 99)
try:
    apply(canvas, Edit(commit=np.zeros(1, dtype=np.int64), tokens=np.ones(1, dtype=np.int64),
                       confidence=np.ones(1)), 4)
except DecoderError as error:
    sys.exit(0 if error.forward == 4 and "decided" in error.rule else str(error))
sys.exit("nothing was raised")
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_contract_errors_have_one_base():
    assert issubclass(DecoderError, ContractError)
    assert issubclass(CacheError, ContractError)
    assert "the cache broke the contract: x" in str(CacheError("x"))


@pytest.mark.parametrize("queries", [(), (0,), (2, 3, 4), (0, 2, 5), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("rows", [(), (2,), (2, 4), (0, 5), (1, 3, 4)])
def test_the_rows_that_a_plan_answers_are_those_among_its_queries(queries, rows):
    found = answered_rows(6, ints(*queries), ints(*rows))
    assert found.tolist() == [row in queries for row in rows]
