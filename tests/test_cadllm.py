"""CadLLM's controller as numbers, and what of it a decode shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoders.base.cadllm_controller import Controller, repetition

PRESETS = {
    "llada": Controller(),
    "humaneval": Controller(
        initial_block_length=48, min_block=12, max_block=96, initial_steps=16, max_steps=32
    ),
    "dream": Controller(
        initial_block_length=16, min_block=8, max_block=48, initial_steps=24, max_steps=70
    ),
    "mbpp": Controller(initial_steps=128),
}
PAPER = Controller(variant="paper")
confidences = st.lists(st.floats(0, 1), max_size=8)


@pytest.mark.parametrize(
    ("preset", "history", "block", "steps"),
    [
        ("llada", [], 24, 24),
        ("llada", [0.3], 22, 64),
        ("llada", [0.5], 34, 80),
        ("llada", [0.6], 40, 83),
        ("llada", [0.75], 49, 81),
        ("llada", [0.9], 57, 71),
        ("llada", [0.98], 62, 64),
        ("humaneval", [], 48, 16),
        ("humaneval", [0.3], 37, 20),
        ("humaneval", [0.6], 62, 28),
        ("humaneval", [0.9], 87, 30),
        ("dream", [], 16, 24),
        ("dream", [0.3], 20, 70),
        ("dream", [0.6], 32, 84),
        ("dream", [0.9], 43, 75),
        ("mbpp", [], 24, 128),
        ("mbpp", [0.3], 22, 117),
        ("mbpp", [0.9], 57, 304),
    ],
)
def test_block_and_steps_are_those_of_the_published_code(preset, history, block, steps):
    controller = PRESETS[preset]
    assert controller.length(history, 10_000) == block
    assert controller.step_budget(history, block) == steps


@pytest.mark.parametrize(("history", "block"), [([0.9, 0.9], 57), ([0.9, 0.5], 45)])
def test_the_mean_is_float32_of_the_last_two(history, block):
    """In exact arithmetic these would be 58 and 46."""
    assert PRESETS["llada"].length([0.1, *history], 10_000) == block


@pytest.mark.parametrize(
    ("history", "early", "middle", "late"),
    [
        ([], 800, 70, 90),
        ([0.2], 1000, 105, 135),
        ([0.5], 960, 84, 108),
        ([0.7], 800, 70, 90),
        ([0.9], 640, 56, 72),
        ([0.9, 0.9, 0.7], 832, 72, 93),
    ],
)
def test_the_vocabulary_follows_phase_confidence_and_trend(history, early, middle, late):
    sizes = [PRESETS["llada"].vocabulary(history, [], g) for g in (0.1, 0.5, 0.9)]
    assert sizes == [early, middle, late]


def test_the_vocabulary_grows_when_ids_repeat():
    controller = PRESETS["llada"]
    assert controller.vocabulary([0.7], [5] * 8, 0.5) == 210
    pattern = [1, 2, 3, 4, 1, 2, 3, 4]
    assert controller.vocabulary([0.7], pattern, 0.5) == 70, "the published code's dead branch"
    assert PAPER.vocabulary([0.7], pattern, 0.5) == 140
    for variant in ("code", "paper"):
        fixed = Controller(variant=variant, adaptive_repetition=False)
        assert fixed.vocabulary([0.7], [5] * 8, 0.5) == fixed.vocabulary([0.7], [], 0.5) == 70


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([7] * 7, 0.0),
        ([7] * 8, 1.0),
        ([1, 2, 3, 4, 9, 9, 9, 9], 1.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.5),
        ([0, 0, 1, 2, 3, 1, 2, 3], 0.375),
        ([5, 6, 7, 8, 1, 2, 1, 2], 0.25),
        ([1, 2, 3, 4, 5, 6, 7, 8], 0.0),
    ],
)
def test_repetition(ids, share):
    assert repetition(ids) == share


@pytest.mark.parametrize(
    ("step", "tau"), [(0, 0.85), (1, 0.83125), (12, 0.625), (24, 0.4), (40, 0.4)]
)
def test_the_threshold_relaxes_to_its_floor(step, tau):
    assert PRESETS["llada"].tau(step / 24) == pytest.approx(tau)


@pytest.mark.parametrize(("confidence", "steps"), [(0.3, 70), (0.6, 50), (0.9, 30), (0.98, 25)])
def test_the_papers_steps_fall_with_confidence(confidence, steps):
    assert PAPER.step_budget([confidence], 40) == steps


def test_the_paper_averages_the_last_five():
    assert PAPER.recent([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(0.3)
    assert PRESETS["llada"].recent([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(0.45)


@given(confidences, st.integers(1, 300), st.lists(st.integers(0, 3), max_size=12), st.floats(0, 1))
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_every_quantity_stays_in_its_range(variant, history, remaining, committed, progress):
    controller = Controller(variant=variant)
    block = controller.length(history, remaining)
    assert 1 <= block <= min(64, remaining)
    assert 1 <= controller.step_budget(history, block) <= 90 * 64
    assert 35 <= controller.vocabulary(history, committed, progress) <= 1000
    assert 0.4 <= controller.tau(progress) <= 0.85


@pytest.mark.parametrize(
    ("switch", "fixed"),
    [
        ("adaptive_blocks", lambda c: c.length([0.9], 99) == 24),
        ("adaptive_steps", lambda c: c.step_budget([0.1], 64) == 24),
        ("adaptive_vocab_size", lambda c: c.vocabulary([0.1], [1] * 9, 0.1) == 100),
        ("adaptive_threshold", lambda c: c.tau(0.9) == 0.85),
    ],
)
def test_each_policy_has_a_switch(switch, fixed):
    assert fixed(Controller(**{switch: False}))
    assert not fixed(Controller())


def test_a_decode_notes_every_quantity(tiny):
    out = tiny().generate(
        [[1, 2, 3]], "cadllm", gen_length=32, stop_at_eos=False, return_trace=True
    )[0]
    for step in out.trace:
        assert {"block_length", "steps", "vocab_size", "threshold"} <= set(step.notes)
    assert out.trace[0].notes["block_length"] == 24
    assert out.trace[0].notes["threshold"] == 0.85


def test_without_the_adaptive_threshold_the_base_holds_and_compat_falls_back_to_single_tokens(tiny):
    llm = tiny(sure=6.0)
    call = {"gen_length": 24, "stop_at_eos": False, "adaptive_threshold": False, "tau_base": 0.5}
    ours = llm.generate([[1, 2]], "cadllm", **call)[0]
    published = llm.generate([[1, 2]], "cadllm", compat=True, **call)[0]
    assert published.num_forwards == 24
    assert ours.num_forwards < 24


def test_the_paper_bounds_a_blocks_forwards_by_its_steps(tiny):
    call = {"gen_length": 16, "stop_at_eos": False, "return_trace": True, "initial_steps": 3}
    flat = {"max_steps": 3, "tau_base": 1.0, "tau_min": 1.0}
    out = tiny().generate([[1, 2]], "cadllm", variant="paper", **call, **flat)[0]
    assert out.num_forwards == 3, "one block of 16 positions"


def test_the_early_exit_ends_a_clear_block(tiny):
    llm = tiny(sure=40.0)
    call = {
        "gen_length": 32,
        "stop_at_eos": False,
        "tau_base": 1.0,
        "tau_min": 1.0,
        "path": "dream",
    }
    patient = llm.generate([[1, 2]], "cadllm", initial_steps=2, **call)[0]
    hasty = llm.generate([[1, 2]], "cadllm", initial_steps=2, early_exit=True, **call)[0]
    assert hasty.num_forwards < patient.num_forwards
