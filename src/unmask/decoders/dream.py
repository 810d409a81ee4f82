"""Dream's sampler: the whole canvas at once, on a schedule of shares.

Source: Dream 7B, arXiv:2508.15487, `diffusion_generate`. Times fall from 1 to `eps`; at each of `steps` a
share 1 - s/t of the open positions is committed: each by its own coin (`alg=origin`), or the surest by
probability (`maskgit_plus`), margin (`topk_margin`) or entropy (`entropy`), or drawn by them (`alg_temp`).
Scores are of the distribution that is sampled from (temperature, top_p, top_k). Differs: a step that would
commit nothing makes no forward (with steps = gen_length the published first one does); quotas are of the
sequence, not of the batch's mean, and never reach beyond its masks.
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
    """The next step, and the quota of each (schedule=even)."""

    facts: ModelFacts
    step: int
    steps: int
    quotas: tuple[int, ...] = ()


@functools.lru_cache(maxsize=64)
def shares(steps: int, eps: float) -> Floats:
    """Return 1 - s/t of every step, in float32 as published: `t` is `linspace(1, eps, steps + 1)`."""
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
    """Dream's four algorithms."""

    reads_sampling: ClassVar[bool] = True

    steps: int | None = knob(None, "steps of the schedule, at least 1; default: gen_length")
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = knob(
        "entropy", "who is committed: by coin, or the surest by probability, margin, entropy"
    )
    alg_temp: float | None = knob(
        None, "draw positions by softmax(score / alg_temp), > 0: near 0 the surest, large at random"
    )
    eps: float = knob(1e-3, "time of the last step, in (0, 1)")
    schedule: Literal["dream", "even"] = knob(
        "dream", "the published shares, or as even as possible (LLaDA's)"
    )

    def __post_init__(self) -> None:
        """Check the ranges and what has no effect."""
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1")
        if not 0 < self.eps < 1:
            raise ConfigError(f"eps={self.eps} must be between 0 and 1")
        if self.alg_temp is not None and not self.alg_temp > 0:
            raise ConfigError(f"alg_temp={self.alg_temp} must be greater than 0 (or null for none)")
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
        if self.schedule == "even" and self.eps != 1e-3:
            raise ConfigError(f"eps={self.eps} has no effect with schedule=even")
        if self.alg == "origin":
            chosen, step = self.toss(masked.uniform, state)
        else:
            k, step = self.next_quota(canvas.num_open, state)
            chosen = self.rank_or_draw(canvas, state, masked, k)
        return masked.commit(chosen), replace(state, step=step)

    def toss(self, coins: Floats, state: DreamState) -> tuple[Ints, int]:
        """Return positions whose coin falls below the share, and the step after.

        When none does, the next step sees the same canvas: no forward is needed for it, and a coin that
        did not fall below p is uniform on [p, 1), so it serves again.
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
        """Return the count of the next step that commits any position, and the step after."""
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
