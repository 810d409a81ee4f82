"""CadLLM: block length, steps, vocabulary and threshold adapted to the model's confidence.

Source: arXiv:2512.07173, Algorithm 1 and Eq. 2 to 5. The controller, with the differences of paper and
code, is in `base/cadllm_controller.py`. Positions of a block are committed when their confidence among the
V_t likeliest tokens reaches tau_t, and always the most confident one. Differs: V_t never exceeds the
vocabulary; the mask is never proposed (it makes the published loop hang); without the adaptive threshold
tau_base applies (the reference falls back to one token per forward, as `compat=True` does); the early exit
of the authors' code commits in the forward that decides it (there, one more forward of the same canvas,
which on Dream reads rows shifted by one); in a block-causal model, a block ends at the latest where the
model's block ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unmask import selection
from unmask.canvas import (
    NO_POSITIONS,
    Ask,
    Canvas,
    Edit,
    Floats,
    Ints,
    ModelFacts,
    Reading,
    Stat,
)
from unmask.decoders import Decoder, knob
from unmask.decoders.base.cadllm_controller import RING, Controller
from unmask.errors import ConfigError

EXIT_MARGIN, EXIT_CONFIDENCE, EXIT_PATIENCE, EXIT_AFTER = 0.3, 0.6, 2, 0.2


@dataclass(frozen=True, slots=True)
class Control:
    """History of a sequence, and its running block `[start, end)`."""

    facts: ModelFacts
    start: int
    end: int
    total: int
    num_steps: int
    done_before: int
    step: int = 0
    history: tuple[float, ...] = ()
    committed: tuple[int, ...] = ()
    threshold: float = 0.0
    vocab_size: int = 0
    patience: int = 0
    is_all_in: bool = False


@dataclass(frozen=True)
class CadLLM(Controller, Decoder[Control]):
    """Threshold decoding with the controller's parameters."""

    threshold: float | None = knob(
        None,
        "with adaptive_threshold=false: the fixed threshold, in [0, 1]; 0: the whole block at once, 1: "
        "mostly one token per forward; default: tau_base",
    )
    confidence: Literal["softmax", "entropy"] = knob(
        "softmax",
        "over the V_t likeliest tokens: probability of the proposal (softmax), or 1 / (1 + their entropy) "
        "(entropy)",
    )
    path: Literal["llada", "dream"] = knob(
        "llada",
        "dream: as in the authors' code for Dream, the first forward of a block commits only its first "
        "position and does not enter the history; llada: all forwards are alike",
    )
    early_exit: bool = knob(
        False,
        "commit the block's open positions after two forwards in a row, its first one not counted, in "
        "which the mean margin of all its positions exceeds 0.3 and the mean confidence of its open ones "
        "0.6, from a fifth of its steps on",
    )
    compat: bool = knob(
        False,
        "with adaptive_threshold=false and no threshold: one token per forward, like the published code",
    )

    def __post_init__(self) -> None:
        """Check the ranges, and that every knob has an effect."""
        self.check()
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be between 0 and 1")
        if self.threshold is not None and self.adaptive_threshold:
            raise ConfigError(
                f"threshold={self.threshold} has no effect with the adaptive threshold; set "
                f"adaptive_threshold=false too"
            )
        self.check_switches()

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the fixed threshold, where one applies."""
        return {} if self.adaptive_threshold or self.compat else {"threshold": self.tau_base}

    def start(self, canvas: Canvas, facts: ModelFacts) -> Control:
        """Return the state of the first block."""
        total = int((~canvas.fixed).sum())
        return self.enter(canvas, Control(facts, 0, canvas.prompt_length, total, 1, 0))

    def enter(self, canvas: Canvas, state: Control) -> Control:
        """Return the block after `state.end`, its length set by the history."""
        start = state.end
        length = self.length(state.history, len(canvas) - start)
        end = start + length
        if state.facts.block_size is not None:
            size = state.facts.block_size
            end = min(end, (start // size + 1) * size)
        return replace(
            state,
            start=start,
            end=end,
            num_steps=self.step_budget(state.history, length),
            done_before=state.total - canvas.num_open,
            step=0,
            patience=0,
            is_all_in=False,
        )

    def ask(self, canvas: Canvas, state: Control) -> tuple[Ask, Control]:
        """Ask for the block's open positions, with confidence over V_t tokens."""
        while not canvas.open[: state.end].any():
            state = self.enter(canvas, state)
        rows, window = canvas.open_positions(0, state.end), (state.start, state.end)
        needed = rows if state.is_all_in else NO_POSITIONS
        state = replace(
            state,
            threshold=self.tau_now(state),
            vocab_size=min(
                self.vocabulary(state.history, state.committed, self.progress(state)),
                state.facts.vocab_size,
            ),
        )
        stats: set[Stat] = {"top_v_entropy"} if self.confidence == "entropy" else set()
        if self.early_exit:
            stats.add("margin")
        window = (min(window[0], int(rows[0])), window[1])
        if self.early_exit:  # its test averages over the whole block
            rows = np.union1d(rows, np.arange(state.start, state.end))
        return Ask(rows, window, needed, stats=frozenset(stats), top_v=state.vocab_size), state

    def num_relevant(self, canvas: Canvas, state: Control, end: int) -> int:
        """Return the end of the running block, if the answer ends in it: no later block will run."""
        return state.end if end < state.end else len(canvas)

    def progress(self, state: Control) -> float:
        """Compute g_t of Eq. 4: the share before the block, plus the block's share by its steps."""
        share = (state.step / state.num_steps) * ((state.end - state.start) / state.total)
        return state.done_before / state.total + share

    def tau_now(self, state: Control) -> float:
        """Return tau_t of Eq. 5, or the fixed threshold."""
        if not self.adaptive_threshold:
            return self.tau_base if self.threshold is None else self.threshold
        if self.variant == "paper":
            return self.tau(self.progress(state))
        return self.tau(state.step / state.num_steps)

    def levels(self, state: Control, reading: Reading) -> tuple[Floats, Floats]:
        """Return rank and confidence of each position."""
        if self.confidence == "entropy":
            entropy = reading.stats["top_v_entropy"]
            return -entropy, 1.0 / (1.0 + entropy)
        return reading.log_odds, reading.confidence

    def step(self, canvas: Canvas, state: Control, reading: Reading) -> tuple[Edit, Control]:
        """Commit, and add the block's mean confidence to the history."""
        masked = reading.undecided(canvas, end=state.end)
        everything = np.arange(len(masked.positions))
        if state.is_all_in or not len(everything):
            return masked.commit(everything, {"all_in": 1.0}), state
        rank, level = self.levels(state, masked)
        inside = masked.positions >= state.start
        mean = float(level[inside].mean()) if inside.any() else None
        notes = {
            "block_length": float(state.end - state.start),
            "steps": float(state.num_steps),
            "vocab_size": float(reading.top_v or state.facts.vocab_size),
            "threshold": state.threshold,
        }
        if mean is not None:
            notes["mean_confidence"] = mean
        state = self.watch(state, reading, mean)
        if state.is_all_in and len(everything) == len(canvas.open_positions(0, state.end)):
            chosen, notes["all_in"] = everything, 1.0
        else:
            chosen = self.choose(state, masked, rank, level)
        edit = masked.commit(chosen, notes)
        if self.path == "dream" and state.step == 0:
            return edit, replace(state, step=1)
        history = state.history if mean is None else (*state.history, mean)
        tracked = () if "all_in" in notes else edit.tokens.tolist()  # the exit's are not
        committed = (*state.committed, *tracked)[-RING:]
        return edit, replace(state, step=state.step + 1, history=history, committed=committed)

    def choose(self, state: Control, masked: Reading, rank: Floats, level: Floats) -> Ints:
        """Select by the threshold rule or one of its exceptions."""
        if self.path == "dream" and state.step == 0:
            return np.zeros(1, dtype=np.int64)
        if self.variant == "paper" and state.step >= state.num_steps - 1:
            return np.arange(len(masked.positions))
        if self.compat and not self.adaptive_threshold and self.threshold is None:
            return selection.quota(rank, 1)
        return selection.threshold(rank, level, state.threshold)

    def watch(self, state: Control, reading: Reading, confidence: float | None) -> Control:
        """Test for the early exit; `confidence` is the mean of the block's open positions."""
        if not self.early_exit or state.step == 0 or confidence is None:
            return state
        block = (reading.positions >= state.start) & (reading.positions < state.end)
        margin = 1.0 - np.minimum(np.exp(reading.stats["margin"][block]), 1.0)
        clear = margin.mean() > EXIT_MARGIN and confidence > EXIT_CONFIDENCE
        patience = state.patience + 1 if clear else 0
        late = state.step > EXIT_AFTER * state.num_steps
        return replace(state, patience=patience, is_all_in=patience >= EXIT_PATIENCE and late)


DECODER = CadLLM
