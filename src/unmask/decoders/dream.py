"""Dream's sampler: no blocks; each step commits a scheduled share of the open positions.

Source: Dream 7B, arXiv:2508.15487, `diffusion_generate`. Time falls from 1 to `eps`; a step from t to s
commits a share 1 - s/t of the open positions: each at random with this probability (`alg=origin`), or the
most confident by probability (`maskgit_plus`), margin (`topk_margin`) or entropy (`entropy`), or a random
draw by these scores (`alg_temp`). Scores are computed from the sampling distribution, after temperature,
top_p and top_k. Differs: a step that would commit nothing is skipped without a forward (with steps =
gen_length the published first step is one); quotas are computed for the sequence, not for the mean of the
batch, and never exceed its open positions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from unmask.canvas import Ask, Canvas, Edit, Floats, Ints, ModelFacts, Reading
from unmask.decoders import Decoder, Scoring, knob
from unmask.errors import ConfigError
from unmask.selection import quota, quota_schedule


@dataclass(frozen=True, slots=True)
class DreamState:
    """The next step of `steps`, and the quota of each (schedule=even only)."""

    facts: ModelFacts
    step: int
    steps: int
    quotas: tuple[int, ...] = ()


@functools.lru_cache(maxsize=64)
def shares(steps: int, eps: float) -> Floats:
    """Return 1 - s/t of every step, in float32 as published; times are `linspace(1, eps, steps + 1)`."""
    width = np.float32((np.float32(eps) - np.float32(1)) / np.float32(steps))
    index = np.arange(steps + 1, dtype=np.float32)
    early = np.float32(1) + width * index
    late = np.float32(eps) - width * (np.float32(steps) - index)
    t = np.where(np.arange(steps + 1) < (steps + 1) // 2, early, late).astype(np.float32)
    share: Floats = np.float32(1) - t[1:] / t[:-1]
    share[-1] = 1
    return share


@dataclass(frozen=True)
class Dream(Scoring, Decoder[DreamState]):
    """The four algorithms of Dream's sampler."""

    reads_sampling: ClassVar[bool] = True

    steps: int | None = knob(
        None, "steps of the schedule, at least 1; 1: all tokens at once; default: gen_length"
    )
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = knob(
        "entropy",
        "positions to commit: each at random (origin), or the most confident by probability "
        "(maskgit_plus), margin (topk_margin) or entropy (entropy)",
    )
    alg_temp: float | None = knob(
        None,
        "draw positions from softmax(score / alg_temp), > 0; near 0: the most confident, large: any; "
        "default: no draw, the most confident",
    )
    eps: float = knob(
        1e-3,
        "end of the time schedule, in (0, 1); near 0: even shares, near 1: nearly everything in the last "
        "step",
    )
    schedule: Literal["dream", "even"] = knob(
        "dream", "dream: the published shares; even: equal counts per step, as in LLaDA"
    )

    def __post_init__(self) -> None:
        """Check the ranges, and that every knob has an effect."""
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1")
        if not 0 < self.eps < 1:
            raise ConfigError(f"eps={self.eps} must be between 0 and 1")
        if self.alg_temp is not None and not self.alg_temp > 0:
            raise ConfigError(
                f"alg_temp={self.alg_temp} must be greater than 0 (or null for no draw)"
            )
        if self.schedule == "even" and self.eps != 1e-3:
            raise ConfigError(f"eps={self.eps} has no effect with schedule=even")
        if self.alg == "origin":
            for name, default in (("alg_temp", None), ("schedule", "dream"), ("sigma", None)):
                if getattr(self, name) != default:
                    raise ConfigError(f"{name}={getattr(self, name)} has no effect with alg=origin")
        if self.score != "confidence":
            raise ConfigError(f"score={self.score}: decoder dream takes its score from alg")

    @property
    def effective_score(self) -> str:
        """The score that the algorithm ranks by."""
        names = {"topk_margin": "margin", "entropy": "entropy", "origin": "random"}
        return names.get(self.alg, "confidence")

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the number of steps."""
        return {"steps": gen_length}

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the number of steps in the schedule."""
        return self.steps or len(canvas) - canvas.prompt_length

    def start(self, canvas: Canvas, facts: ModelFacts) -> DreamState:
        """Return the state before the first step."""
        self.check_scores(facts)
        steps = self.planned_steps(canvas, facts)
        quotas = quota_schedule(canvas.num_open, steps) if self.schedule == "even" else ()
        return DreamState(facts, 0, steps, quotas)

    def ask(self, canvas: Canvas, state: DreamState) -> tuple[Ask, DreamState]:
        """Ask for every open position."""
        window = (canvas.prompt_length, len(canvas))
        ask = Ask(canvas.open_positions(), window, stats=self.score_stats, from_sampling=True)
        return ask, state

    def step(self, canvas: Canvas, state: DreamState, reading: Reading) -> tuple[Edit, DreamState]:
        """Run the next step that commits a position."""
        masked = reading.undecided(canvas)
        if self.alg == "origin":
            chosen, step = self.toss(masked.uniform, state)
        else:
            k, step = self.next_quota(canvas.num_open, state)
            chosen = self.rank_or_draw(canvas, state, masked, k)
        return masked.commit(chosen), replace(state, step=step)

    def toss(self, coins: Floats, state: DreamState) -> tuple[Ints, int]:
        """Return the indices of positions whose random number is below the share, and the next step.

        If there are none, the following step has the same canvas and needs no forward; numbers that are not
        below p are uniform on [p, 1), so they are rescaled and used again.
        """
        share = shares(state.steps, self.eps).astype(np.float64)
        step = state.step
        while True:
            p = float(share[step]) if step < state.steps - 1 else 1.0
            step += 1
            chosen = np.flatnonzero(coins < p)
            if len(chosen) or p >= 1.0:
                return (chosen if len(chosen) else np.arange(len(coins))), step
            coins = (coins - p) / (1 - p)

    def next_quota(self, num_open: int, state: DreamState) -> tuple[int, int]:
        """Return the quota of the next step that commits any position, and the step after it."""
        if self.schedule == "even":
            quotas = np.array(state.quotas[state.step : -1], dtype=np.int64)
        else:
            share = shares(state.steps, self.eps)[state.step : -1]
            quotas = (np.float32(num_open) * share).astype(np.int64)
        some = np.flatnonzero(quotas)
        if not len(some):
            return num_open, state.steps
        return int(quotas[some[0]]), state.step + int(some[0]) + 1

    def rank_or_draw(self, canvas: Canvas, state: DreamState, masked: Reading, k: int) -> Ints:
        """Select the best k, or draw k without replacement (Gumbel top-k)."""
        scores = self.scores(canvas, state.facts, canvas.prompt_length, masked)
        if self.alg_temp is None:
            return quota(scores.rank, k)
        raw = scores.rank if self.alg == "entropy" else scores.level
        noise = -np.log(-np.log(np.clip(masked.uniform, 1e-300, 1 - 1e-16)))
        return quota(raw / self.alg_temp + noise, k)


DECODER = Dream
