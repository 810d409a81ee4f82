"""Questions with a fixed set of answers, and their answers as probabilities.

Source: the kinds of question are those of the OpenAI API's Decisions (predicate, choice, score).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from unmask.errors import ConfigError, cut_text

Kind = Literal["predicate", "choice", "score"]
Value = str | bool
Options = Mapping[Value, str | None] | Iterable[Value | tuple[Value, str | None]]
"""Values, with their descriptions as a mapping or as pairs, or alone."""
MAX_QUESTIONS = 400
MAX_OPTIONS = 255


@dataclass(frozen=True, slots=True)
class DecisionQuestion:
    """A question and the values that its answer may have; made by `predicate`, `choice` and `score`.

    `descriptions` has one text or None per value. The values of a score are its levels in their order.
    """

    kind: Kind
    instructions: str
    values: tuple[Value, ...]
    descriptions: tuple[str | None, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """The answer to a question: a probability per value, which add up to 1.

    `label_mass`: probability, without calibration, that the model writes one of the values at all; small
    where it would rather write something else. For values of several lengths in tokens it is the largest
    over the lengths.
    """

    question: DecisionQuestion
    probabilities: tuple[float, ...]
    label_mass: float

    @property
    def index(self) -> int:
        """The index of the most probable value, the lowest of several."""
        return max(range(len(self.probabilities)), key=lambda at: self.probabilities[at])

    @property
    def value(self) -> Value:
        """The most probable value."""
        return self.question.values[self.index]

    @property
    def confidence(self) -> float:
        """(n * peak - 1) / (n - 1) for n values: 0 where all are equally probable, 1 for certainty."""
        count = len(self.probabilities)
        return min(1.0, max(0.0, (count * max(self.probabilities) - 1) / (count - 1)))

    @property
    def score(self) -> float:
        """The mean index of the value, from 0 on: of a score the mean level."""
        return sum(at * share for at, share in enumerate(self.probabilities))


def predicate(
    instructions: str,
    *,
    if_true: str | None = None,
    if_false: str | None = None,
    name: str | None = None,
) -> DecisionQuestion:
    """Return the question if a statement is true; the two descriptions say when it is, and when not.

    Raises ConfigError.
    """
    return _question("predicate", instructions, {True: if_true, False: if_false}, name)


def choice(instructions: str, options: Options, *, name: str | None = None) -> DecisionQuestion:
    """Return the question for one of 2 to 255 options: texts or bools, alone or with descriptions.

    Raises ConfigError.
    """
    return _question("choice", instructions, options, name)


def score(instructions: str, levels: Options, *, name: str | None = None) -> DecisionQuestion:
    """Return the question for one of 2 to 255 ordered levels, the lowest first; see `choice`.

    Raises ConfigError.
    """
    return _question("score", instructions, levels, name)


def _question(
    kind: Kind, instructions: str, options: Options, name: str | None
) -> DecisionQuestion:
    if not isinstance(instructions, str) or not instructions.strip():
        raise ConfigError(f"instructions={instructions!r} must be a text that is not empty")
    noun = "level" if kind == "score" else "option"
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise ConfigError(f"{noun}s={options!r} must be a list of texts, or map them to texts")
    given = options.items() if isinstance(options, Mapping) else options
    pairs = list[tuple[Value, str | None]]()
    for each in given:
        if isinstance(each, tuple) and len(each) != 2:
            raise ConfigError(
                f"{noun} {cut_text(repr(each))} has {len(each)} parts; use (value, description)"
            )
        pairs.append(each if isinstance(each, tuple) else (each, None))
    if not 2 <= len(pairs) <= MAX_OPTIONS:
        raise ConfigError(
            f"{cut_text(instructions)!r} has {len(pairs)} {noun}s; 2 to {MAX_OPTIONS} are allowed"
        )
    for value, description in pairs:
        is_value = isinstance(value, bool) if kind == "predicate" else isinstance(value, str | bool)
        if not is_value or (isinstance(value, str) and not value.strip()):
            raise ConfigError(f"{noun} {value!r} must be a text that is not empty")
        if not isinstance(description, str | None):
            raise ConfigError(f"the description of {noun} {value!r} must be a text, or left out")
    values = [value for value, _ in pairs]
    for at, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:at]):
            raise ConfigError(f"{noun} {value!r} occurs twice in {cut_text(instructions)!r}")
    return DecisionQuestion(
        kind, instructions, tuple(values), tuple(text for _, text in pairs), name
    )


def question_list(questions: object) -> tuple[DecisionQuestion, ...]:
    """Return 1 to 400 questions of an iterable. Raises ConfigError."""
    if isinstance(questions, str | bytes | Mapping) or not isinstance(questions, Iterable):
        raise ConfigError(
            f"questions={cut_text(repr(questions))} must be a list of questions made by "
            f"unmask.decisions.predicate, choice or score"
        )
    found = tuple(questions)
    if not 1 <= len(found) <= MAX_QUESTIONS:
        raise ConfigError(f"{len(found)} questions; 1 to {MAX_QUESTIONS} are allowed")
    for each in found:
        if not isinstance(each, DecisionQuestion):
            raise ConfigError(
                f"question {cut_text(repr(each))} must be made by unmask.decisions.predicate, choice or "
                f"score"
            )
    return found


def value_text(value: Value) -> str:
    """Return a value as it is written: a bool as in JSON."""
    return ("true" if value else "false") if isinstance(value, bool) else value
