"""Answers to questions from the log-probabilities at their blanks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unmask.canvas import Floats, Reading
from unmask.decisions.calibration import Calibration, calibrated
from unmask.decisions.canvases import CanvasMaker, ReadingRow
from unmask.decisions.questions import DecisionQuestion, QuestionAnswer, question_list
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Decisions:
    """The answers to questions in their order, and the work: canvases read, and their given tokens."""

    answers: tuple[QuestionAnswer, ...]
    num_rows: int
    num_input_tokens: int


def rows_for(
    maker: CanvasMaker, text: str, questions: Sequence[DecisionQuestion]
) -> list[ReadingRow]:
    """Return the canvases to read for 1 to 400 questions about a text. Raises as `CanvasMaker.rows`."""
    if not isinstance(text, str):
        raise ConfigError(f"input={text!r} must be a text")
    return maker.rows(text, question_list(questions))


def decisions_of(
    questions: Sequence[DecisionQuestion],
    rows: Sequence[ReadingRow],
    readings: Sequence[Reading],
    calibration: Calibration | None = None,
) -> Decisions:
    """Return the answers that follow from a reading of every row."""
    scores: dict[tuple[int, int], Floats] = {}
    lengths: dict[tuple[int, int], Floats] = {}
    for row, reading in zip(rows, readings, strict=True):
        _add(row, reading, questions, scores, lengths)
    temperature = 1.0 if calibration is None else calibration.temperature
    answers = []
    for at, question in enumerate(questions):
        orders = sorted(key for key in scores if key[0] == at)
        shares = np.mean([_shares(scores[key]) for key in orders], axis=0)
        mass = float(np.mean([_label_mass(scores[key], lengths[key]) for key in orders]))
        found = calibrated(shares, temperature)
        answers.append(QuestionAnswer(question, tuple(map(float, found)), mass))
    num_tokens = sum(int(row.canvas.fixed.sum()) for row in rows)
    return Decisions(tuple(answers), len(rows), num_tokens)


def _add(
    row: ReadingRow,
    reading: Reading,
    questions: Sequence[DecisionQuestion],
    scores: dict[tuple[int, int], Floats],
    lengths: dict[tuple[int, int], Floats],
) -> None:
    """Add a row's log-probabilities to the scores of the values, by question and order."""
    column = {token: at for at, token in enumerate(row.tokens)}
    for slot in row.slots:
        key, size = (slot.question, slot.order), len(questions[slot.question].values)
        own = scores.setdefault(key, np.zeros(size))
        count = lengths.setdefault(key, np.zeros(size))
        at = np.searchsorted(reading.positions, [read.position for read in slot.reads])
        columns = [column[read.token] for read in slot.reads]
        values = [read.value for read in slot.reads]
        np.add.at(own, values, reading.top_log_probs[at, columns])
        np.add.at(count, values, 1)


def _shares(log_probs: Floats) -> Floats:
    """Return the probabilities of values among themselves; equal ones if the model excludes all."""
    peak = log_probs.max()
    if not np.isfinite(peak):
        return np.full(len(log_probs), 1 / len(log_probs))
    shares = np.exp(log_probs - peak)
    normalized: Floats = shares / shares.sum()
    return normalized


def _label_mass(log_probs: Floats, lengths: Floats) -> float:
    """Return the total probability of the values of one length, the largest of them."""
    masses = [np.exp(log_probs[lengths == size]).sum() for size in np.unique(lengths)]
    return min(1.0, float(max(masses)))
