"""Many mixtures of requests in one engine: each is decoded, step by step, as if it were alone.

The few that run in the fast suite are in `test_engine`; here are infills, requests that fail or are ended
by their listener, arrivals at any step of the others, and pages that run out, some hundreds of times.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_engine import Listener, alone, assert_idle, assert_same, bytes_for, model
from test_properties import METHODS, finds_length
from tiny import EOS, KNOWN, want

from unmask import caches, decoders
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError

pytestmark = pytest.mark.slow
FILLS_BLANKS = [m for m in METHODS if m[0] not in ("ar", "block_diffusion", "daedal")]
NUM_MIXTURES = 200
BREAKS = 1e39
"""A guidance that overflows float32: the request fails, and nobody else may notice."""


@dataclass
class Case:
    """A request, when it comes (after so many forwards of an earlier one), and how it is to end."""

    request: Any
    after: tuple[int, int] | None
    ends: tuple[str, int] | None
    fails: bool
    steps: list[Any] = field(default_factory=list)
    listener: Listener | None = None


def fits(engine, request):
    try:
        engine._batch.runner.check_fit(SequenceState.begin(request))
    except ConfigError:
        return False
    return True


def draw_request(chance, llm, begin, engine, drops):
    names = [name for name in caches.names() if name not in ("auto", "block_causal")]
    names += ["block_causal"] * 3 * len(names) if llm.spec.block_size else []
    what = [chance.randrange(KNOWN) for _ in range(chance.randint(1, 9))]
    what = begin + what if chance.random() < 0.5 else what
    is_infill = chance.random() < 0.25
    name, knobs = chance.choice(FILLS_BLANKS if is_infill else METHODS)
    shape: dict = {}
    if "block_length" in decoders.knob_names(name, knobs) and not is_infill:
        shape["block_length"] = chance.choice([4, 4, 2])
    if is_infill:
        parts: list[str | int] = [" ".join(map(str, what)), chance.randint(2, 6)]
        if chance.random() < 0.5:
            parts += ["9 8 7", chance.randint(1, 4), str(EOS)]
        what = llm.infill_canvas(parts)
    elif finds_length(name):
        shape |= {"initial_gen_length": 4, "max_gen_length": chance.choice([8, 16])}
    else:
        shape["gen_length"] = chance.choice([4, 8] if "steps" in knobs else [4, 8, 24, 40])
    fails = chance.random() < 0.07
    options = {
        "seed": chance.randrange(6),
        "stop_at_eos": chance.random() < 0.5,
        "temperature": chance.choice([0.0, 0.8, 1.5]),
        "cfg_scale": BREAKS if fails else chance.choice([0.0, 0.0, 0.0, 1.0]),
    }
    if drops and not is_infill and name != "ar":
        options |= {"stop_at_eos": True, "drop_after_eos": True}
    request = llm.request(what, name, chance.choice(names), **options, **shape, **knobs)
    if not fits(engine, request):
        request = llm.request(what, name, "none", **options, **shape, **knobs)
    return request, fails


def draw_cases(chance, llm, engine, drops):
    shared = chance.choice([0, 20, 36])  # a page holds 16 positions
    begin = [chance.randrange(KNOWN) for _ in range(shared)]
    cases: list[Case] = []
    for number in range(chance.randint(2, 9)):
        request, fails = draw_request(chance, llm, begin, engine, drops)
        after = None
        if number and chance.random() < 0.5:
            after = (chance.randrange(number), chance.randint(1, 6))
        kind = chance.choice([None, None, None, None, "aborted", "finished"])
        cases.append(Case(request, after, kind and (kind, chance.randint(0, 8)), fails))
    return cases


def draw_engine(chance, llm):
    return Engine(
        llm,
        EngineConfig(
            max_num_seqs=chance.choice([2, 3, 5, 16]),
            max_num_batched_tokens=chance.choice([1, 24, 8192]),
            kv_cache_memory_bytes=bytes_for(llm, chance.choice([6, 7, 8, 12, 1000])),
            max_wait=chance.choice([0.001, 60.0]),
            steps_per_round=chance.choice([1, 1, 3]),
            enable_prefix_caching=chance.random() < 0.5,
        ),
    )


class Arrivals:
    """Submits cases at the steps where they are due."""

    def __init__(self, engine, cases) -> None:
        self.engine, self.cases = engine, cases
        for case in cases:
            case.listener = Listener()

    def submit(self, number: int) -> None:
        case = self.cases[number]

        def listen(update) -> None:
            if update.kind == "step":
                case.steps.append(update)
                if case.ends is not None and update.num_forwards == case.ends[1]:
                    self.end(case, update.handle)
            self.due(number, update)
            case.listener(update)

        handle = self.engine.submit(case.request, listen)
        if case.ends is not None and case.ends[1] == 0:
            self.end(case, handle)

    def end(self, case, handle) -> None:
        if case.ends[0] == "aborted":
            self.engine.abort(handle)
        else:
            handle.finish()

    def due(self, number: int, update) -> None:
        """Who waits for this request to be so far; all of them at its end."""
        for other, case in enumerate(self.cases):
            if case.after is None or case.after[0] != number:
                continue
            is_over = update.kind != "step"
            if is_over or update.num_forwards >= case.after[1]:
                case.after = None
                self.submit(other)


def decided(edit):
    return list(zip(edit.commit.tolist(), edit.tokens.tolist(), strict=True))


def check(case, llm, round_):
    """What was told of a request, whatever became of it, is how it begins when it is alone."""
    last = case.listener.last
    if case.fails:
        assert last.num_forwards == 0
        assert last.kind == "error" or case.ends is not None
        return
    wanted = alone(llm, case.request)
    steps = wanted.trace[: len(case.steps)]
    assert [decided(u.edit) for u in case.steps] == [[c[:2] for c in s.committed] for s in steps]
    assert [u.edit.remask.tolist() for u in case.steps] == [list(s.remasked) for s in steps]
    for update in case.steps:
        settled = update.canvas.tokens[: update.num_settled].tolist()
        assert settled == wanted.canvas_ids[: len(settled)], "told as settled, and changed"
    if case.ends is not None and case.ends[1] > 0 and last.num_forwards < len(wanted.trace):
        assert last.num_forwards < case.ends[1] + round_, "gone at the next look at the queue"
    if last.kind == "aborted":
        assert case.ends[0] == "aborted"
        return
    assert last.kind == "done", last.error
    if last.num_forwards == len(wanted.trace):
        assert_same(last.output, wanted)
    else:
        assert case.ends[0] == "finished"
        assert last.output.finish_reason == "stop"


def run(kind, number, seen, drops=False):
    """One mixture; counts in `seen` what happened in it. `drops`: what lies right of an end token."""
    llm, chance = model(kind), random.Random(f"{kind} {number}")
    llm = want(llm, EOS, by=2.0) if drops else llm
    engine = draw_engine(chance, llm)
    cases = draw_cases(chance, llm, engine, drops)
    arrivals, now = Arrivals(engine, cases), [i for i, c in enumerate(cases) if c.after is None]
    with engine:
        for first in now:
            arrivals.submit(first)
        for case in cases:
            seen[case.listener.last.kind] += 1
        assert_idle(engine)
        stats = engine.stats
    assert engine.failure is None
    assert stats.listener_errors == 0
    seen += Counter(preempted=stats.num_preempted, found=stats.prefix_found)
    for case in cases:
        check(case, llm, engine.config.steps_per_round)
        seen["guided"] += case.request.sampling_params.cfg_scale == 1
        seen["infills"] += case.request.canvas.infilling


@pytest.mark.parametrize("kind", ["plain", "plain-dream", "blocks", "blocks-dream"])
def test_whoever_comes_goes_or_fails_the_others_decode_as_if_alone(kind):
    seen: Counter = Counter()
    for number in range(NUM_MIXTURES):
        print(f"run({kind!r}, {number}, Counter())")  # pytest shows the last one of a failure
        run(kind, number, seen)
    wanted = {"done", "aborted", "error", "guided", "infills"}
    wanted |= {"preempted", "found"} if kind.startswith("blocks") else set()
    assert all(seen[name] > 0 for name in wanted), seen


@pytest.mark.parametrize("kind", ["plain", "blocks"])
def test_so_they_do_when_they_drop_what_lies_right_of_an_end(kind):
    seen: Counter = Counter()
    for number in range(NUM_MIXTURES // 5):
        print(f"run({kind!r}, {number}, Counter(), drops=True)")
        run(kind, number, seen, drops=True)
    assert seen["done"] > NUM_MIXTURES // 5
