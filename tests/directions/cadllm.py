"""CadLLM's controller, by its equations and by what its decoder does."""

from __future__ import annotations

import pytest
from tiny import trace_of

from unmask.decoders import make_decoder

from .registry import direction
from .stubs import (
    LENGTH,
    decode,
    notes,
    order,
    random_llm,
    ranking,
    slowly,
    table,
    table_llm,
)

SURE, DOUBT = [1.0] * 5, [0.0] * 5


def controller(**knobs: object):
    return make_decoder("cadllm", knobs)


@direction("variant", "cadllm", ends="code, paper")
def each_equation_has_two_forms(name: str) -> None:
    code, paper = controller(), controller(variant="paper")
    history = [0.0, 0.0, 0.0, 1.0, 1.0]
    assert code.length(history, 999) == 64
    assert paper.length(history, 999) == 4 + int(60 * 0.4)
    assert code.step_budget(DOUBT, 48) == 180
    assert paper.step_budget(DOUBT, 48) == 90


@direction("initial_block_length", "cadllm", ends="1, large")
def the_first_block(name: str) -> None:
    assert notes(decode(random_llm(), name, initial_block_length=1), "block_length")[0] == 1
    assert notes(decode(random_llm(), name, initial_block_length=999), "block_length")[0] == LENGTH


@direction("min_block", "cadllm", ends="small, at max_block")
@direction("max_block", "cadllm", ends="at min_block, large")
@direction("adaptive_blocks", "cadllm", ends="true, false")
def a_block_grows_with_confidence(name: str) -> None:
    assert controller(min_block=1).length(DOUBT, 999) == 1
    assert controller(max_block=500).length(SURE, 999) == 500
    fixed = controller(min_block=30, max_block=30)
    assert [fixed.length(history, 999) for history in (DOUBT, SURE)] == [30, 30]
    assert controller().length(DOUBT, 999) < controller().length(SURE, 999)
    constant = controller(adaptive_blocks=False)
    assert constant.length(DOUBT, 999) == constant.length(SURE, 999) == 24


@direction("initial_steps", "cadllm", ends="1, large")
@direction("max_steps", "cadllm", ends="1, large")
@direction("adaptive_steps", "cadllm", ends="true, false")
def the_threshold_falls_over_these_forwards(name: str) -> None:
    def thresholds(**knobs: object) -> list[float]:
        knobs = {"initial_block_length": LENGTH, "tau_base": 1.0, "tau_min": 0.0} | knobs
        return notes(decode(table_llm(table(1)), name, **knobs), "threshold")

    assert thresholds(initial_steps=1)[:2] == [1.0, 0.0]
    assert min(thresholds(initial_steps=10_000)) > 0.99
    assert controller().step_budget(DOUBT, 24) == 90 > controller().step_budget(SURE, 24) == 24
    assert controller(max_steps=1).step_budget(DOUBT, 24) == 24
    assert controller(max_steps=999).step_budget(DOUBT, 24) == 999
    assert controller(adaptive_steps=False).step_budget(DOUBT, 24) == 24


@direction("initial_vocab_size", "cadllm", ends="small, large")
@direction("min_vocab_size", "cadllm", ends="1, at max_vocab_size")
@direction("max_vocab_size", "cadllm", ends="at min_vocab_size, large")
@direction("adaptive_vocab_size", "cadllm", ends="true, false")
def the_vocabulary_is_wide_in_doubt(name: str) -> None:
    def sizes(**knobs: object) -> list[int]:
        found = controller(**knobs)
        return [found.vocabulary(h, [], g) for h in (DOUBT, SURE) for g in (0.1, 0.5, 0.9)]

    doubt, sure = sizes()[:3], sizes()[3:]
    assert all(a > b for a, b in zip(doubt, sure, strict=True))
    assert sizes(initial_vocab_size=1)[4:] == [35, 35]
    assert sizes(initial_vocab_size=10_000)[1:3] == [1000, 1000]
    assert min(sizes(min_vocab_size=1, initial_vocab_size=1)) == 1
    assert set(sizes(min_vocab_size=77, max_vocab_size=77)) == {77}
    assert set(sizes(min_vocab_size=1000)) == {1000}
    assert sizes(max_vocab_size=10**6)[0] == 10**6
    assert set(sizes(adaptive_vocab_size=False)) == {100}


@direction("adaptive_repetition", "cadllm", ends="true, false")
def repetition_widens_the_vocabulary(name: str) -> None:
    loop, varied = [5] * 20, list(range(20))
    on, off = controller(), controller(adaptive_repetition=False)
    assert on.vocabulary(SURE, loop, 0.5) == 3 * on.vocabulary(SURE, varied, 0.5)
    assert off.vocabulary(SURE, loop, 0.5) == off.vocabulary(SURE, varied, 0.5)
    assert off.vocabulary(SURE, varied, 0.5) == on.vocabulary(SURE, varied, 0.5)


@direction("tau_base", "cadllm", ends="0, 1")
@direction("tau_min", "cadllm", ends="0, at tau_base")
@direction("adaptive_threshold", "cadllm", ends="true, false")
def the_threshold_falls(name: str) -> None:
    def forwards(**knobs: object) -> int:
        knobs = {"initial_block_length": LENGTH, "initial_steps": 4} | knobs
        return decode(table_llm(table(1)), name, **knobs).num_forwards

    assert forwards(tau_base=0.0, tau_min=0.0) == 1
    assert forwards(tau_base=1.0, tau_min=1.0) == LENGTH
    falling = [forwards(tau_base=1.0, tau_min=low) for low in (0.0, 0.4, 1.0)]
    assert falling == sorted(falling)
    assert falling[0] < LENGTH
    assert controller(tau_min=0.0).tau(1.0) == 0.0
    flat = controller(tau_base=0.7, tau_min=0.7)
    assert [flat.tau(g) for g in (0.0, 0.5, 1.0)] == pytest.approx([0.7] * 3)
    off = controller(adaptive_threshold=False)
    assert [off.tau(g) for g in (0.0, 1.0)] == [0.85, 0.85]


@direction("threshold", "cadllm", ends="0, 1, default")
@direction("compat", "cadllm", ends="true, false")
def a_fixed_threshold(name: str) -> None:
    llm = table_llm(table(4, scale=4.0))
    knobs = {"adaptive_threshold": False, "initial_block_length": LENGTH}
    assert decode(llm, name, **knobs, threshold=0.0).num_forwards == 1
    assert decode(llm, name, **knobs, threshold=1.0).num_forwards == LENGTH
    default, given = (decode(llm, name, **knobs, **more) for more in ({}, {"threshold": 0.85}))
    assert trace_of(default) == trace_of(given)
    assert default.num_forwards < LENGTH
    assert decode(llm, name, **knobs, compat=True).num_forwards == LENGTH


@direction("confidence", "cadllm", ends="softmax, entropy")
def the_kind_of_confidence(name: str) -> None:
    rows = table(1)
    knobs = {"initial_block_length": LENGTH, "tau_base": 1.0, "tau_min": 1.0}
    knobs |= {"min_vocab_size": 64}
    found = [
        order(decode(table_llm(rows), name, **knobs, confidence=c)) for c in ("softmax", "entropy")
    ]
    assert found[0] == ranking(rows, "confidence")
    assert found[1] == ranking(rows, "entropy")


@direction("path", "cadllm", ends="dream, llada")
def the_first_forward_of_a_block(name: str) -> None:
    knobs = {"initial_block_length": LENGTH, "tau_base": 0.0, "tau_min": 0.0}
    assert decode(random_llm(), name, **knobs, path="llada").num_forwards == 1
    alone = decode(random_llm(), name, **knobs, path="dream")
    assert [len(step) for step in trace_of(alone)] == [1, LENGTH - 1]


@direction("early_exit", "cadllm", ends="true, false")
def a_sure_block_ends_early(name: str) -> None:
    rows = table(4, scale=6.0)
    knobs = {"initial_block_length": LENGTH, "tau_base": 1.0, "tau_min": 1.0, "initial_steps": 5}
    plain, early = (decode(table_llm(rows), name, **knobs, early_exit=e) for e in (False, True))
    assert plain.num_forwards == LENGTH
    assert early.num_forwards < LENGTH
    assert "all_in" in early.trace[-1].notes


assert slowly(table_llm(table(1)), "cadllm").num_forwards == LENGTH
