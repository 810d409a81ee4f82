"""Metrics of answers to rows of one's own: what makes an answer right.

A metric is a name of `METRICS`, or `python:FILE[:FUNCTION]`, a function `score(answer, row)` of a file of
the user's, which runs with all rights of this process: it is the user's own code, not the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from unmask.errors import ConfigError, DependencyError, PluginError, cut_text, unknown_name
from unmask.own_code import load_function

PYTHON, FUNCTION = "python:", "score"
CHOICE = "choice"
"""The metric of answers by likelihood: the likeliest of the row's choices is the answer."""
_NUMBER = re.compile(r"(?<![\d.])-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,4})?(?!\d)")
_LETTER = re.compile(r"\b[A-Z]\b")

Score = Callable[[str, str, Mapping[str, object]], float]
"""Function of an answer, the row's target and the row's fields: 1 right, 0 wrong, or between."""


@dataclass(frozen=True)
class Metric:
    """A metric. `needs_target`: rows must have an expected answer; `form`: what that has to be.

    `is_target`: returns True for a target that an answer can meet.
    """

    about: str
    score: Score
    form: str = "text"
    is_target: Callable[[str], bool] = lambda target: True
    needs_target: bool = True


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text; None without one. Signs of currency and commas are passed over."""
    found = _NUMBER.findall(text.replace("\u2212", "-"))
    return Decimal(found[-1].replace("$", "").replace(",", "")) if found else None


def first_letter(text: str) -> str | None:
    """Return the first capital letter that is a word of its own; None without one."""
    match = _LETTER.search(text)
    return None if match is None else match[0]


def _last_number(answer: str, target: str, row: Mapping[str, object]) -> float:
    return float(last_number(answer) == last_number(target))


def _exact(answer: str, target: str, row: Mapping[str, object]) -> float:
    return float(answer.strip() == target.strip())


def _contains(answer: str, target: str, row: Mapping[str, object]) -> float:
    words = re.escape(target.strip().casefold())
    return float(re.search(rf"(?<!\w){words}(?!\w)", answer.casefold()) is not None)


def _letter(answer: str, target: str, row: Mapping[str, object]) -> float:
    return float(first_letter(answer) == target.strip())


def _math(answer: str, target: str, row: Mapping[str, object]) -> float:
    try:
        from math_verify import parse, verify
    except ImportError:
        raise DependencyError(
            "metric=math needs math-verify, which is not installed; pip install 'unmask[eval]'"
        ) from None
    return float(verify(parse(f"${target}$"), parse(answer)))


def _likelihood(answer: str, target: str, row: Mapping[str, object]) -> float:
    raise ConfigError(
        f"metric={CHOICE} compares likelihoods, which no decoder changes; give letter, exact or contains"
    )


METRICS: dict[str, Metric] = {
    "last_number": Metric(
        "the last number of the answer equals the last of the target",
        _last_number,
        "text with a number",
        lambda target: last_number(target) is not None,
    ),
    "exact": Metric("the answer equals the target, white space at its ends aside", _exact),
    "contains": Metric(
        "the target is in the answer, as whole words; upper and lower case are equal", _contains
    ),
    "letter": Metric(
        "the first capital letter that stands alone is the target",
        _letter,
        "a capital letter",
        lambda target: re.fullmatch("[A-Z]", target.strip()) is not None,
    ),
    "math": Metric("math-verify finds the answer equal to the target", _math),
    CHOICE: Metric(
        "the likeliest of the row's choices is the target (its text, number or letter)",
        _likelihood,
    ),
}


def metric_of(name: str) -> Metric:
    """Return a metric by name; a function of a file is loaded. Raises ConfigError and PluginError."""
    if name.startswith(PYTHON):
        return _own(name)
    if name not in METRICS:
        raise unknown_name("metric", name, [*METRICS, f"{PYTHON}FILE"])
    return METRICS[name]


def _own(name: str) -> Metric:
    """Return the metric of `python:FILE[:FUNCTION]`. Raises ConfigError and PluginError."""
    place, function = name.removeprefix(PYTHON), FUNCTION
    if not place.endswith(".py"):
        place, _, function = place.rpartition(":")
    if not place.endswith(".py") or not function:
        raise ConfigError(
            f"metric={cut_text(name)!r} names no Python file; give {PYTHON}FILE.py with a function "
            f"{FUNCTION}(answer, row), or {PYTHON}FILE.py:FUNCTION"
        )
    own = load_function(f"{place}:{function}")

    def score(answer: str, target: str, row: Mapping[str, object]) -> float:
        try:
            value = own(answer, dict(row))
        except Exception as error:
            raise PluginError(
                f"{place}: {function} raised {type(error).__name__} ({cut_text(str(error))}) on the "
                f"answer {cut_text(answer)!r}; mend it"
            ) from error
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise PluginError(
                f"{place}: {function} returned {cut_text(repr(value))} for the answer "
                f"{cut_text(answer)!r}; return True, False or a number from 0 to 1"
            )
        return float(value)

    return Metric(f"{function} of {Path(place).name}", score, needs_target=False)
