"""Knobs of the cache policies, by the positions that each forward computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tiny import MASK

from unmask.caches import make_cache
from unmask.caches.base import Observation
from unmask.canvas import Ask, ModelFacts, Reading, new_canvas
from unmask.edit_rules import apply

from .registry import direction
from .stubs import LENGTH, PROMPT, decode, random_llm

WHOLE = len(PROMPT) + LENGTH
BLOCK = 4


def queries(cache: str, **knobs: object) -> list[int]:
    """The number of positions that each forward computes."""
    knobs = {"block_length": BLOCK} | knobs
    out = decode(random_llm(), "vanilla", cache, **knobs)
    return [step.num_queries for step in out.trace]


def in_block(counted: list[int]) -> list[list[int]]:
    return [counted[at : at + BLOCK] for at in range(0, LENGTH, BLOCK)]


@direction("prefix_look", "vicinity", ends="0, large")
@direction("after_look", "vicinity", ends="0, large")
@direction("warmup_steps", "vicinity", ends="0, large")
@direction("cache_update_freq", "vicinity", ends="1, large, null")
def a_window_around_the_block(name: str) -> None:
    bare = {"prefix_look": 0, "after_look": 0}

    def counted(**knobs: object) -> list[int]:
        text = ", ".join(f"{key}={value}" for key, value in (bare | knobs).items())
        return queries(f"vicinity({text})")

    once = [WHOLE, *[BLOCK] * (BLOCK - 1)]
    assert in_block(counted()) == [once] * 4
    assert set(counted(prefix_look=1000, after_look=1000)) == {WHOLE}
    assert sum(counted()) < sum(counted(prefix_look=2)) < sum(counted(prefix_look=1000))
    assert sum(counted()) < sum(counted(after_look=2)) < sum(counted(after_look=1000))
    assert set(counted(warmup_steps=1000)) == {WHOLE}
    assert counted(warmup_steps=0) == counted(cache_update_freq="null") == counted()
    assert set(counted(cache_update_freq=1)) == {WHOLE}
    assert counted(cache_update_freq=1000) == counted()


@direction("use_dual", "prefix", "dual", ends="true, false")
def one_policy_stands_for_the_other(name: str) -> None:
    def of(value: str) -> str:
        return decode(random_llm(), "vanilla", f"{name}(use_dual={value})").cache

    assert (of("true"), of("false")) == ("dual", "prefix")


@direction("inner", "dkv", ends="null")
@direction("delay", "dkv", ends="1, large")
@direction("interval", "dkv", ends="1, large, null")
def committed_positions_stay_for_a_while(name: str) -> None:
    every = queries("dkv(interval=1)")
    assert set(every) == {WHOLE}
    assert queries("dkv") == queries("dkv(interval=4)")
    knobs = {"block_length": LENGTH}
    once = queries("dkv(interval=1000)", **knobs)
    warm = 2  # the first forward and, with unshifted logits, `delay` more
    assert once[:warm] == [WHOLE] * warm
    assert once[warm:] == [LENGTH - at + 1 for at in range(warm, LENGTH)], "open ones and the last"
    long = queries("dkv(inner=dual, delay=1000)", **knobs)
    short = queries("dkv(inner=dual, delay=1)")
    assert long == [WHOLE] + [LENGTH] * (LENGTH - 1)
    assert sum(short) < sum(queries("dkv(inner=dual, delay=1000)"))
    assert [part[0] for part in in_block(short)] == [WHOLE] * 4, "never with inner, but for its own"
    assert max(part[1] for part in in_block(short)) < WHOLE


@direction("kp", "dllm", ends="1, large")
@direction("kr", "dllm", ends="1, large")
@direction("rou", "dllm", ends="0, 1")
def parts_that_layers_compute(name: str) -> None:
    def layers(**knobs: object) -> list[tuple[bool, bool, int]]:
        policy = make_cache(name, knobs)
        canvas = new_canvas(PROMPT + [MASK] * LENGTH, [False] * 3 + [True] * LENGTH, 3, MASK)
        facts = ModelFacts(64, None, None, None)
        state, found = policy.start(canvas, facts), []
        rows = canvas.open_positions()
        for _ in range(6):
            plan, state = policy.plan(canvas, Ask(rows, (3, WHOLE)), rows, state)
            found.append((plan.layers.prompt, plan.layers.response, plan.layers.num_moved))
        return found

    assert all(prompt for prompt, _, _ in layers(kp=1))
    assert [prompt for prompt, _, _ in layers(kp=1000)] == [True] + [False] * 5
    assert all(response for _, response, _ in layers(kr=1))
    assert [response for _, response, _ in layers(kr=1000)] == [True] + [False] * 5
    assert layers(rou=0)[1][2] == 0
    assert layers(rou=1)[1][2] == LENGTH


def chosen(
    confidence: np.ndarray, importance: np.ndarray, decided: int = 1, **knobs: object
) -> set:
    """The positions that d2Cache computes after its first forward read these confidences."""
    policy = make_cache("d2cache", {"inflate_w": 0, "rollout_p": 0} | knobs)
    canvas = new_canvas(PROMPT + [MASK] * LENGTH, [False] * 3 + [True] * LENGTH, 3, MASK)
    reading = reading_of(canvas.open_positions(), confidence)
    state = policy.start(canvas, ModelFacts(64, None, None, None))
    after = apply(canvas, reading.commit(np.arange(decided)), 0)
    seen = Observation(reading, importance)
    state = policy.observe(canvas, after, seen, state)
    rows = after.open_positions()
    plan, _ = policy.plan(after, Ask(rows, (3, WHOLE)), rows, replace(state, stale=rows[:0]))
    return set(plan.queries.tolist())


def reading_of(positions: np.ndarray, confidence: np.ndarray) -> Reading:
    odds = np.log(confidence) - np.log1p(-confidence)
    return Reading(positions, np.full(len(positions), 5), odds, np.zeros(len(positions)))


RISING = np.linspace(0.2, 0.8, LENGTH)
FLAT = np.ones(WHOLE)


@direction("current_k", "d2cache", ends="1, gen_length")
@direction("rollout_p", "d2cache", ends="0, 1")
@direction("sigma", "d2cache", ends="small, far beyond gen_length")
@direction("inflate_w", "d2cache", ends="0, large")
def positions_worth_computing(name: str) -> None:
    important = FLAT.copy()
    important[1] = 1.5
    one = {"current_k": 1, "sigma": 0.5}
    assert chosen(RISING, important, **one) == {4, 1}, "the next to text, and the most attended"
    assert chosen(RISING, important, current_k=1, sigma=1e6) == {WHOLE - 1, 1}
    assert chosen(RISING, important, current_k=LENGTH) >= set(range(4, WHOLE))
    assert chosen(RISING, important, **one, rollout_p=1) == set(range(WHOLE))
    assert len(chosen(RISING, important, **one, rollout_p=0.4)) < WHOLE
    far = {"current_k": 1, "sigma": 1e6}
    assert chosen(RISING, important, **far, inflate_w=1000) == set(range(1, WHOLE))
    assert chosen(RISING, important, **far, inflate_w=0) == {1, WHOLE - 1}


@direction("compat", "d2cache", ends="true, false")
def the_reading_that_counts(name: str) -> None:
    def confidences(compat: bool) -> np.ndarray:
        policy = make_cache(name, {"compat": compat})
        canvas = new_canvas(PROMPT + [MASK] * LENGTH, [False] * 3 + [True] * LENGTH, 3, MASK)
        state = policy.start(canvas, ModelFacts(64, None, None, None))
        for confidence in (RISING, RISING[::-1]):
            seen = Observation(reading_of(canvas.open_positions(), confidence), FLAT)
            state = policy.observe(canvas, canvas, seen, state)
        return state.confidence[3:]

    assert np.allclose(confidences(False), RISING[::-1])
    assert np.allclose(confidences(True), RISING)
