"""Scores of the positions in a reading, and their modifiers, as knobs that decoders inherit.

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
NO_STATS: frozenset[Stat] = frozenset()
STATS_OF_SCORE: dict[str, frozenset[Stat]] = {
    "margin": frozenset({"margin"}),
    "entropy": frozenset({"entropy"}),
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores, one per position: `rank` orders them, `level` in [0, 1] is compared with thresholds.

    A larger rank is more confident. `doubt` is 1 - `level`, accurate where `level` rounds to 1.
    """

    rank: Floats
    level: Floats
    doubt: Floats


@dataclass(frozen=True)
class Scoring:
    """The score of a position, with its knobs."""

    score: ScoreName = knob(
        "confidence",
        "score that orders the positions: confidence (probability p of the proposal), margin (p1 - p2), "
        "entropy (lowest first), pc (confidence times surprisal: rare tokens first), random",
    )
    sigma: float | None = knob(
        None,
        "width in positions of the Gaussian prior that favors positions near decided text, > 0; small: "
        "left to right, far beyond gen_length: no effect; default: no prior; thresholds then apply to the "
        "score times the prior divided by its maximum",
    )
    frequencies: str | None = knob(
        None,
        "file of background counts for score=pc, written by `unmask frequencies`; default: estimated from "
        "the model's predictions on empty canvases",
    )
    clip_alpha: float = knob(
        10.0,
        "score=pc: upper bound of the calibrated confidence, > 0; small: order by position alone, large: "
        "no bound",
    )
    lambd: float = knob(
        0.0,
        "score=pc: weight positions by exp(-lambd * offset in the block), >= 0; 0: all alike, large: left "
        "to right",
    )
    compat: bool = knob(
        False,
        "reproduce quirks of the reference code that change tokens, instead of the corrected rule",
    )

    def check_scores(self, facts: ModelFacts) -> None:
        """Raise ConfigError for knobs out of range or without effect, and for an unreadable file."""
        if self.sigma is not None and not self.sigma > 0:
            raise ConfigError(f"sigma={self.sigma} must be greater than 0 (or null for no prior)")
        if not self.clip_alpha > 0:
            raise ConfigError(f"clip_alpha={self.clip_alpha} must be greater than 0")
        if not self.lambd >= 0:
            raise ConfigError(f"lambd={self.lambd} must be at least 0")
        if self.effective_score == "pc":
            if self.frequencies is not None:
                load_background(self.frequencies, facts.vocab_size)
            return
        defaults = {"lambd": 0.0, "clip_alpha": 10.0}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect with score={self.effective_score}; "
                    f"use score=pc or leave it out"
                )

    @property
    def effective_score(self) -> str:
        """Name of the score that ranks positions."""
        return self.score

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics that the method reads; by default, those of its score."""
        return self.score_stats

    @property
    def score_stats(self) -> frozenset[Stat]:
        """Statistics that the score reads."""
        return STATS_OF_SCORE.get(self.effective_score, NO_STATS)

    def scores(self, canvas: Canvas, facts: ModelFacts, start: int, reading: Reading) -> Scores:
        """Return the scores of a reading's positions; offsets in the block count from `start`."""
        name = self.effective_score
        if name == "random":
            scores = Scores(reading.uniform, reading.confidence, reading.doubt)
        elif name == "sequential":
            left_first = -reading.positions.astype(np.float64)
            scores = Scores(left_first, reading.confidence, reading.doubt)
        elif name == "margin":
            doubt = np.minimum(np.exp(reading.stats["margin"]), 1.0)
            scores = Scores(-reading.stats["margin"], 1.0 - doubt, doubt)
        elif name == "entropy":
            entropy = reading.stats["entropy"]
            scores = Scores(-entropy, np.exp(-entropy), -np.expm1(-entropy))
        elif name == "pc":
            scores = self._calibrated(facts, start, reading)
        else:
            scores = Scores(reading.log_odds, reading.confidence, reading.doubt)
        if self.sigma is not None:
            scores = self._near_text(canvas, reading.positions, scores)
        suppressed = reading.log_odds == -np.inf  # rank proposals without confidence last
        if name == "random" or not np.count_nonzero(suppressed):
            return scores
        return Scores(
            np.where(suppressed, -np.inf, scores.rank),
            np.where(suppressed, 0.0, scores.level),
            np.where(suppressed, 1.0, scores.doubt),
        )

    def _calibrated(self, facts: ModelFacts, start: int, reading: Reading) -> Scores:
        """Compute PC-Sampler's score as ln min(alpha, -p ln f) - lambd * offset, which avoids underflow."""
        with np.errstate(divide="ignore"):
            calibrated = np.log(np.minimum(self.clip_alpha, self._informativeness(facts, reading)))
        rank = calibrated - self.lambd * (reading.positions - start)
        level = np.exp(rank) if self.compat else np.exp(rank) / self.clip_alpha
        return Scores(rank, level, 1.0 - level)

    def _informativeness(self, facts: ModelFacts, reading: Reading) -> Floats:
        """Return the probability of each proposal times its surprisal -ln f in the background."""
        if self.frequencies is not None:
            frequency = load_background(self.frequencies, facts.vocab_size)
        elif facts.background is not None:
            frequency = facts.background()
        else:
            raise ConfigError(
                "score=pc needs frequencies=FILE here; make one with `unmask frequencies`"
            )
        surprisal = np.maximum(-np.log(frequency[reading.tokens] + 1e-9), 0.0)
        informativeness: Floats = reading.confidence * surprisal
        return informativeness

    def _near_text(self, canvas: Canvas, positions: Ints, scores: Scores) -> Scores:
        """Weight the scores by the density of decided positions around each position."""
        assert self.sigma is not None, "checked by the caller"
        prompt = canvas.prompt_length
        density = certainty_density(~canvas.open[prompt:], self.sigma)[positions - prompt]
        with np.errstate(divide="ignore"):
            log_density = np.log(density)
            if self.effective_score in ("pc", "random"):
                base = scores.rank if self.effective_score == "pc" else np.log(scores.rank)
            elif self.effective_score == "confidence":
                base = -np.logaddexp(0.0, -scores.rank)  # ln p, accurate near p = 1
            else:
                base = np.log1p(-scores.doubt)
        scale = 1.0 if self.compat else max(float(density.max(initial=0.0)), 1e-300)
        level = scores.level * density / scale
        return Scores(base + log_density, level, 1.0 - level)
