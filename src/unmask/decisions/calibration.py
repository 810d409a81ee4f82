"""A calibration temperature of decisions, fitted on labelled questions and stored with the weights' digest.

Probabilities p become p ** (1 / T), normalized (temperature scaling). T above 1 makes them less certain;
the most probable value stays the same. Source: arXiv:1706.04599, section 4.2. Differs: p is the mean over
the orders of a question, and T is one for all kinds of questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unmask.canvas import Floats
from unmask.durable import write_text
from unmask.errors import ConfigError
from unmask.json_text import parse_json
from unmask.models.digests import weights_digest
from unmask.regular_files import read_bounded

MIN_TEMPERATURE, MAX_TEMPERATURE = 1 / 64, 64.0
NUM_BINS = 10
MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature, the digest of the weights that it was fitted for, and the number of questions."""

    temperature: float
    weights: str | None = None
    num_questions: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for a temperature that is no number in [1/64, 64]."""
        check_temperature(self.temperature)

    def save(self, path: str | Path) -> None:
        """Write the calibration as JSON."""
        write_text(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Return the calibration in a file. Raises ConfigError for a file that is none."""
        try:
            value = parse_json(read_bounded(Path(path), MAX_FILE_BYTES))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"calibration {path}: {error}; make one with `unmask tune decisions`"
            ) from None
        names = set(cls.__dataclass_fields__)
        if not isinstance(value, dict) or set(value) != names:
            raise ConfigError(
                f"calibration {path} must be an object of {', '.join(sorted(names))}, as "
                f"`unmask tune decisions` writes it"
            )
        weights, count = value["weights"], value["num_questions"]
        if not isinstance(weights, str | None) or not isinstance(count, int):
            raise ConfigError(
                f"calibration {path}: weights must be a digest, num_questions a number"
            )
        return cls(check_temperature(value["temperature"]), weights, count)

    def check_weights(self, digest: str | None, name: str) -> None:
        """Raise ConfigError if the calibration was fitted for other weights than those of this digest."""
        if self.weights is not None and self.weights != digest:
            raise ConfigError(
                f"the calibration was fitted for weights {self.weights[:12]}, but model {name!r} has "
                f"{(digest or 'none')[:12]}; fit one with `unmask tune decisions`"
            )


CalibrationLike = Calibration | str | Path | None
"""A calibration, its file, or None for none."""


def calibration_for(
    value: CalibrationLike, weights_folder: Path | None, name: str
) -> Calibration | None:
    """Return the calibration of a model with the weights of a folder, which are read to compare them.

    Raises ConfigError for a file that is no calibration, and for one of other weights.
    """
    if value is None:
        return None
    if not isinstance(value, Calibration | str | Path):
        raise ConfigError(
            f"calibration={value!r} must be a file of `unmask tune decisions`, or a Calibration"
        )
    found = value if isinstance(value, Calibration) else Calibration.load(value)
    if found.weights is not None:
        found.check_weights(weights_digest(weights_folder), name)
    return found


def check_temperature(value: object) -> float:
    """Return a temperature as a float. Raises ConfigError unless it is a number in [1/64, 64]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and MIN_TEMPERATURE <= float(str(value)) <= MAX_TEMPERATURE):
        raise ConfigError(
            f"calibration temperature {value!r} must be a number, {MIN_TEMPERATURE:g} to "
            f"{MAX_TEMPERATURE:g}"
        )
    return float(str(value))


def calibrated(probabilities: Floats, temperature: float) -> Floats:
    """Return probabilities `(n,)` at a temperature; 1 leaves them as they are."""
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities) / temperature
    shares = np.exp(scores - scores.max())
    normalized: Floats = shares / shares.sum()
    return normalized


def fit_temperature(rows: Sequence[tuple[Floats, int]]) -> float:
    """Return the temperature of least log loss for `(probabilities, index of the right value)` pairs.

    The loss is convex in 1 / T, so its minimum is found by bisection of the derivative; where it lies
    beyond [1/64, 64], the nearer end is returned. Raises ConfigError without rows.
    """
    if not rows:
        raise ConfigError("no labelled question; give at least one (some hundreds make a good fit)")
    most = max(len(shares) for shares, _ in rows)
    logs, is_value = np.zeros((len(rows), most)), np.zeros((len(rows), most), dtype=np.bool_)
    for at, (shares, _) in enumerate(rows):
        logs[at, : len(shares)] = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        is_value[at, : len(shares)] = True
    logs -= np.where(is_value, logs, -np.inf).max(axis=1, keepdims=True)
    of_right = logs[np.arange(len(rows)), [right for _, right in rows]].sum()

    def slope(inverse: float) -> float:
        """Return the derivative of the loss by 1 / T."""
        shares = np.where(is_value, np.exp(inverse * logs), 0)
        return float((shares * logs).sum(axis=1) @ (1 / shares.sum(axis=1)) - of_right)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / low


def log_loss(rows: Sequence[tuple[Floats, int]]) -> float:
    """Return the mean of -ln p of the right value, in nats."""
    tiny = np.finfo(np.float64).tiny
    return float(np.mean([-math.log(max(shares[right], tiny)) for shares, right in rows]))


def calibration_error(rows: Sequence[tuple[Floats, int]]) -> float:
    """Return the expected calibration error of the most probable values, in `NUM_BINS` bins of equal width.

    That is the mean over all questions of |share of right values - mean probability| of the question's bin.
    """
    peaks = np.array([shares.max() for shares, _ in rows])
    is_right = np.array([int(shares.argmax()) == right for shares, right in rows], dtype=np.float64)
    bins = np.minimum((peaks * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = np.bincount(bins, weights=is_right - peaks, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(rows))
