"""Labelled questions: rows of a data file, and the fit of a calibration to them.

A row has an `input` (a text, which may be empty or left out), `questions` as in the body of
`POST /v1/decisions`, and `answers`: the right value of each: `true` or `false` of a predicate, the value of
a choice, the label of a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.canvas import Floats
from unmask.data.records import DataRow, read_rows
from unmask.decisions.answers import Decisions
from unmask.decisions.calibration import (
    Calibration,
    calibrated,
    calibration_error,
    fit_temperature,
    log_loss,
)
from unmask.decisions.questions import DecisionQuestion, Value, choice, predicate, score
from unmask.errors import ConfigError

FIELDS = {"predicate": None, "choice": "choices", "score": "levels"}
"""The list of values that a question of each kind has."""


@dataclass(frozen=True, slots=True)
class LabelledQuestions:
    """A text, questions about it, and the index of the right value of each."""

    content: str
    questions: tuple[DecisionQuestion, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """A fitted calibration, and measures of its rows before and after: errors, losses in nats, accuracy."""

    calibration: Calibration
    accuracy: float
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float


def read_labelled(path: Path) -> list[LabelledQuestions]:
    """Return the rows of a data file. Raises ConfigError, with the place of the row."""
    return [_labelled(row) for row in read_rows(path)]


def fit(
    rows: Sequence[LabelledQuestions],
    decide: Callable[[str, Sequence[DecisionQuestion]], Decisions],
    digest: str | None,
) -> CalibrationFit:
    """Return the calibration of the answers that `decide` gives to the rows, without calibration.

    `digest` is that of the model's weights. Raises ConfigError without rows.
    """
    pairs = list[tuple[Floats, int]]()
    for row in rows:
        found = decide(row.content, row.questions).answers
        pairs += [
            (np.array(answer.probabilities), right)
            for answer, right in zip(found, row.answers, strict=True)
        ]
    temperature = fit_temperature(pairs)
    after = [(calibrated(shares, temperature), right) for shares, right in pairs]
    return CalibrationFit(
        Calibration(temperature, digest, len(pairs)),
        accuracy=float(np.mean([int(shares.argmax()) == right for shares, right in pairs])),
        error_before=calibration_error(pairs),
        error_after=calibration_error(after),
        loss_before=log_loss(pairs),
        loss_after=log_loss(after),
    )


def _labelled(row: DataRow) -> LabelledQuestions:
    content = row.text("input", may_be_empty=True) if row.has("input") else ""
    (_, asked), (_, answers) = row.field("questions"), row.field("answers")
    if not isinstance(asked, list) or not isinstance(answers, list) or len(asked) != len(answers):
        raise row.error(": questions and answers must be lists of the same length")
    try:
        questions = [_question(each) for each in asked]
    except ConfigError as error:
        raise row.error(f": {error}") from None
    right = []
    for question, value in zip(questions, answers, strict=True):
        found = [at for at, own in enumerate(question.values) if _is_same(own, value)]
        if not found:
            raise row.error(
                f": answer {value!r} is none of {', '.join(map(repr, question.values))}"
            )
        right.append(found[0])
    return LabelledQuestions(content, tuple(questions), tuple(right))


def _is_same(own: Value, value: object) -> bool:
    return type(own) is type(value) and own == value


def _question(fields: object) -> DecisionQuestion:
    kind = fields.get("type") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or kind not in FIELDS:
        raise ConfigError(f"a question's type must be {', '.join(FIELDS)}, not {kind!r}")
    own = FIELDS[kind]
    unknown = fields.keys() - {"type", "instructions", "name", own}
    if unknown:
        raise ConfigError(f"a {kind} question has no {sorted(unknown)[0]!r}; leave it out")
    instructions = fields.get("instructions")
    if not isinstance(instructions, str):
        raise ConfigError(f"instructions={instructions!r} must be a text")
    if own is None:
        return predicate(instructions)
    key, given = ("value" if own == "choices" else "label"), fields.get(own)
    if not isinstance(given, list) or not all(isinstance(e, dict) and key in e for e in given):
        raise ConfigError(f"{own} must be a list of objects with {key!r}")
    pairs = [(each[key], each.get("description")) for each in given]
    return choice(instructions, pairs) if kind == "choice" else score(instructions, pairs)
