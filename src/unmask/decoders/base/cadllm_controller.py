"""CadLLM's controller: block length, steps, vocabulary and threshold from past confidences.

Source: arXiv:2512.07173, Eq. 2 to 5, and the authors' code. Pure functions of a history; the decoder is
`cadllm`. Where paper and code differ, `variant` selects one of them:

| | code | paper |
|---|---|---|
| mean confidence of Eq. 2 and 3 | last 2 forwards, float32 | last 5 |
| steps (Eq. 3) | times B_t / initial block length | as printed |
| progress in Eq. 5 | restarts with every block | of the whole answer, as in Eq. 4 |
| vocabulary (Eq. 4) | times 1.3 if confidence falls; widened if repetition > 0.5 | no trend; >= 0.5 |
| steps bound the forwards of a block | no | yes |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.errors import ConfigError
from unmask.knobs import knob

RING = 50
"""Number of last committed ids in which repetition is detected."""
MIN_TRACKED = 8
FIXED_VOCABULARY = 100


@dataclass(frozen=True)
class Controller:
    """The four adaptive rules, each with a switch."""

    variant: Literal["code", "paper"] = knob(
        "code",
        "where they differ, follow the authors' code (code) or the paper's equations (paper)",
    )
    initial_block_length: int = knob(
        24,
        "positions of the first block (of every block with adaptive_blocks=false), at least 1; 1: one "
        "position, large: the whole answer",
        tune=(8, 64),
    )
    min_block: int = knob(
        4,
        "B_min: positions of a block at confidence 0, at least 1; small: short blocks where the model "
        "doubts, at max_block: constant",
        tune=(1, 8),
    )
    max_block: int = knob(
        64,
        "B_max: positions of a block at confidence 1, at least B_min; at min_block: constant, large: long "
        "blocks where the model is confident",
        tune=(16, 64),
    )
    initial_steps: int = knob(
        24,
        "S_base: forwards over which a block's threshold falls, at confidence 1 and in the first block, at "
        "least 1; 1: it falls at once, large: it stays near tau_base",
        tune=(4, 48),
    )
    max_steps: int = knob(
        90,
        "S_max: the same at confidence 0, at least 1; 1: S_base for every block (as all values up "
        "to it), large: the "
        "threshold stays high where the model doubts",
        tune=(48, 128),
    )
    initial_vocab_size: int = knob(
        100,
        "V_init: number of likeliest tokens that count in the confidence after the first fifth of the "
        "answer, at least 1; small: V_min, large: V_max",
        tune=(20, 400),
    )
    min_vocab_size: int = knob(
        35,
        "V_min: minimum number of these tokens, at least 1; 1: none, at max_vocab_size: a constant number",
        tune=(5, 100),
    )
    max_vocab_size: int = knob(
        1000,
        "V_max: maximum number of these tokens, and 5/4 of the first ones, at least V_min; at "
        "min_vocab_size: a constant number, large: all tokens at first",
        tune=(200, 2000),
    )
    tau_base: float = knob(
        0.85,
        "threshold at the start of a block (variant=paper: of the answer), in [0, 1]; 0: the whole block "
        "at once, 1: slowest",
        tune=(0.6, 0.98),
    )
    tau_min: float = knob(
        0.4,
        "threshold at the end of a block (variant=paper: of the answer), in [0, tau_base]; 0: everything "
        "in the end, at tau_base: constant",
        tune=(0.2, 0.6),
    )
    adaptive_blocks: bool = knob(
        True, "adapt the block length (Eq. 2); false: always initial_block_length"
    )
    adaptive_steps: bool = knob(
        True, "adapt the steps of a block (Eq. 3); false: always initial_steps"
    )
    adaptive_vocab_size: bool = knob(
        True, "adapt the number of tokens (Eq. 4); false: always the 100 likeliest"
    )
    adaptive_repetition: bool = knob(
        True,
        "widen the number of tokens while committed ids repeat (f_rep of Eq. 4), against loops; false: "
        "f_rep = 1",
    )
    adaptive_threshold: bool = knob(
        True, "lower the threshold with progress (Eq. 5); false: always threshold, or else tau_base"
    )

    def check(self) -> None:
        """Raise ConfigError for values out of range."""
        for low, high in (
            ("min_block", "max_block"),
            ("min_vocab_size", "max_vocab_size"),
        ):
            if not 1 <= getattr(self, low) <= getattr(self, high):
                raise ConfigError(
                    f"{low}={getattr(self, low)}, {high}={getattr(self, high)}: use 1 <= {low} <= {high}"
                )
        for name in ("initial_block_length", "initial_steps", "max_steps", "initial_vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.tau_min <= self.tau_base <= 1:
            raise ConfigError(
                f"tau_min={self.tau_min}, tau_base={self.tau_base}: use 0 <= tau_min <= tau_base <= 1"
            )

    def check_switches(self) -> None:
        """Raise ConfigError for a limit whose policy is switched off."""
        limits = {
            "adaptive_blocks": ("min_block", "max_block"),
            "adaptive_steps": ("max_steps",),
            "adaptive_vocab_size": (
                "initial_vocab_size",
                "min_vocab_size",
                "max_vocab_size",
                "adaptive_repetition",
            ),
            "adaptive_threshold": ("tau_min",),
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for switch, names in limits.items():
            for name in names:
                value = getattr(self, name)
                if not getattr(self, switch) and value != defaults[name]:
                    raise ConfigError(f"{name}={value} has no effect with {switch}=false")

    def recent(self, history: Sequence[float]) -> float:
        """Return the mean confidence that determines block lengths and steps."""
        if self.variant == "paper":
            return float(np.mean(history[-5:]))
        return float(np.mean(np.array(history[-2:], dtype=np.float32), dtype=np.float32))

    def length(self, history: Sequence[float], remaining: int) -> int:
        """Compute Eq. 2: from B_min to B_max in proportion to the confidence, at most `remaining`."""
        if not history or not self.adaptive_blocks:
            return max(1, min(self.initial_block_length, remaining))
        grown = self.min_block + int((self.max_block - self.min_block) * self.recent(history))
        return max(1, min(max(self.min_block, min(grown, self.max_block)), remaining))

    def step_budget(self, history: Sequence[float], block_length: int) -> int:
        """Compute Eq. 3: from S_max down to S_base as the confidence rises."""
        if not history or not self.adaptive_steps:
            return self.initial_steps
        doubt = 1 - min(max(self.recent(history), 0.0), 1.0)
        steps = self.initial_steps + int((self.max_steps - self.initial_steps) * doubt)
        steps = max(self.initial_steps, min(steps, self.max_steps))
        if self.variant == "paper":
            return steps
        return max(1, int(steps * block_length / self.initial_block_length))

    def tau(self, progress: float) -> float:
        """Compute Eq. 5: from tau_base at progress 0 to tau_min at 1."""
        if not self.adaptive_threshold:
            return self.tau_base
        return max(self.tau_min, self.tau_base * (1 - progress) + self.tau_min * progress)

    def vocabulary(
        self, history: Sequence[float], committed: Sequence[int], progress: float
    ) -> int:
        """Compute Eq. 4: wide at first, at low confidence or when ids repeat; else narrow."""
        if not self.adaptive_vocab_size:
            return FIXED_VOCABULARY
        size = 0.9 * self.initial_vocab_size
        if progress < 0.2:
            size = 0.8 * self.max_vocab_size
        elif progress < 0.7:
            size = 0.7 * self.initial_vocab_size
        if history:
            mean = float(np.mean(history[-5:]))
            size *= 1.5 if mean < 0.3 else 1.2 if mean < 0.6 else 0.8 if mean > 0.8 else 1.0
            falling = len(history) >= 3 and history[-1] - history[-3] < -0.1
            if falling and self.variant == "code":
                size *= 1.3
        repeated = repetition(committed) if self.adaptive_repetition else 0.0
        if repeated > 0.5 or (repeated == 0.5 and self.variant == "paper"):
            size *= 1 + 2 * repeated
        return int(min(max(size, self.min_vocab_size), self.max_vocab_size))


def repetition(committed: Sequence[int]) -> float:
    """Measure the repetition of the last committed ids, in [0, 1].

    1 if the last four ids are equal; else n / 8 for the largest n of 2 to 4 such that the last n ids equal
    the n before them; 0 if there is none or fewer than eight ids are committed.
    """
    if len(committed) < MIN_TRACKED:
        return 0.0
    if len(set(committed[-4:])) == 1:
        return 1.0
    for n in (4, 3, 2):
        if list(committed[-n:]) == list(committed[-2 * n : -n]):
            return n / 8
    return 0.0
