"""Scores of a reading's positions and their modifiers. Decoders inherit the knobs.

Sources: LLaDA, arXiv:2502.09992 (confidence); Dream (margin, entropy); PC-Sampler, arXiv:2508.13021,
Eq. 3 to 6 (calibrated confidence, position weight); d2Cache, arXiv:2509.23094, Eq. 3 (certainty prior).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.canvas import Canvas, Floats, Ints, ModelFacts, Reading, Stat
from unmask.errors import ConfigError
from unmask.knobs import knob
from unmask.sampling.token_frequencies import load_background
from unmask.selection import certainty_density

ScoreName = Literal["confidence", "margin", "entropy", "pc", "random"]


@dataclass(frozen=True, slots=True)
class Scores:
    """One number a position: `rank` orders (larger is surer), `level` in [0, 1] meets thresholds.

    `doubt` is 1 - `level`, exact where `level` rounds to 1.
    """

    rank: Floats
    level: Floats
    doubt: Floats


@dataclass(frozen=True)
class Scoring:
    """The knobs of the score, and the score."""

    score: ScoreName = knob(
        "confidence",
        "what makes a position sure: confidence (p of the proposal), margin (p1 - p2), entropy (low), pc "
        "(confidence times surprisal: rare words first), random",
    )
    sigma: float | None = knob(
        None,
        "width in positions of the certainty prior around decided text, > 0: small is left to right, large "
        "hardly prefers a place, null is off; thresholds meet the score times the prior over its maximum",
    )
    frequencies: str | None = knob(
        None,
        "file of background counts for score=pc, made by `unmask frequencies`; default: estimated from "
        "what the model says of empty canvases",
    )
    clip_alpha: float = knob(
        10.0, "score=pc: upper bound of the calibrated confidence, > 0; small: order by place alone"
    )
    lambd: float = knob(
        0.0,
        "score=pc: weight exp(-lambd * offset in the block), >= 0; 0: none, large: left to right",
    )
    compat: bool = knob(
        False, "repeat the reference's token-changing quirks instead of the fixed rule"
    )

    def check_scores(self, facts: ModelFacts) -> None:
        """Raise ConfigError for knobs out of range or without effect, and for an unreadable file."""
        if self.sigma is not None and not self.sigma > 0:
            raise ConfigError(f"sigma={self.sigma} must be greater than 0 (or null for none)")
        if not self.clip_alpha > 0:
            raise ConfigError(f"clip_alpha={self.clip_alpha} must be greater than 0")
        if not self.lambd >= 0:
            raise ConfigError(f"lambd={self.lambd} must be at least 0")
        if self.effective_score == "pc":
            if self.frequencies is not None:
                load_background(self.frequencies, facts.vocab_size)
            return
        unused = {"lambd": 0.0, "clip_alpha": 10.0}
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect with score={self.effective_score}; "
                    f"use score=pc or leave it out"
                )

    @property
    def effective_score(self) -> str:
        """The score in force."""
        return self.score

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics that the method reads: those of its score."""
        return self.score_stats

    @property
    def score_stats(self) -> frozenset[Stat]:
        """Statistics that the score reads."""
        wanted: dict[str, frozenset[Stat]] = {
            "margin": frozenset({"margin"}),
            "entropy": frozenset({"entropy"}),
        }
        return wanted.get(self.effective_score, frozenset())

    def scores(self, canvas: Canvas, facts: ModelFacts, start: int, reading: Reading) -> Scores:
        """Score a reading's positions; offsets count from `start`."""
        name = self.effective_score
        if name == "random":
            found = Scores(reading.uniform, reading.confidence, reading.doubt)
        elif name == "sequential":
            found = Scores(-reading.positions.astype(np.float64), reading.confidence, reading.doubt)
        elif name == "margin":
            doubt = np.minimum(np.exp(reading.stats["margin"]), 1.0)
            found = Scores(-reading.stats["margin"], 1.0 - doubt, doubt)
        elif name == "entropy":
            entropy = reading.stats["entropy"]
            found = Scores(-entropy, np.exp(-entropy), -np.expm1(-entropy))
        elif name == "pc":
            found = self._calibrated(facts, start, reading)
        else:
            found = Scores(reading.log_odds, reading.confidence, reading.doubt)
        if self.sigma is not None:
            found = self._near_text(canvas, reading.positions, found)
        held = np.isneginf(reading.log_odds)  # a proposal without confidence comes last
        if name == "random" or not held.any():
            return found
        return Scores(
            np.where(held, -np.inf, found.rank),
            np.where(held, 0.0, found.level),
            np.where(held, 1.0, found.doubt),
        )

    def _calibrated(self, facts: ModelFacts, start: int, reading: Reading) -> Scores:
        """Compute the PC-Sampler score ln min(alpha, -p ln f) - lambd * offset; logs avoid underflow."""
        with np.errstate(divide="ignore"):
            calibrated = np.log(np.minimum(self.clip_alpha, self._informativeness(facts, reading)))
        rank = calibrated - self.lambd * (reading.positions - start)
        level = np.exp(rank) if self.compat else np.exp(rank) / self.clip_alpha
        return Scores(rank, level, 1.0 - level)

    def _informativeness(self, facts: ModelFacts, reading: Reading) -> Floats:
        """Return p of each proposal times its surprisal in the background."""
        if self.frequencies is not None:
            frequency = load_background(self.frequencies, facts.vocab_size)
        elif facts.background is not None:
            frequency = facts.background()
        else:
            raise ConfigError(
                "score=pc needs frequencies=FILE here; make one with `unmask frequencies`"
            )
        surprisal = np.maximum(-np.log(frequency[reading.tokens] + 1e-9), 0.0)
        weighed: Floats = reading.confidence * surprisal
        return weighed

    def _near_text(self, canvas: Canvas, positions: Ints, found: Scores) -> Scores:
        """Weigh by the density of decided positions around each position."""
        assert self.sigma is not None, "asked for"
        reach = len(canvas) - canvas.prompt_length
        density = certainty_density(~canvas.open, positions, self.sigma, reach)
        with np.errstate(divide="ignore"):
            log_density = np.log(density)
            if self.effective_score in ("pc", "random"):
                base = found.rank if self.effective_score == "pc" else np.log(found.rank)
            elif self.effective_score == "confidence":
                base = -np.logaddexp(0.0, -found.rank)  # ln p, which keeps its digits near p = 1
            else:
                base = np.log1p(-found.doubt)
        most = 1.0 if self.compat else max(float(density.max(initial=0.0)), 1e-300)
        level = found.level * density / most
        return Scores(base + log_density, level, 1.0 - level)
