"""Decisions: questions with a fixed set of answers, all read in one forward, as probabilities.

`unmask.decisions.predicate`, `choice` and `score` make questions for `LLM.decide`.
"""

from __future__ import annotations

from unmask.decisions.answers import Decisions
from unmask.decisions.calibration import Calibration
from unmask.decisions.questions import DecisionQuestion, QuestionAnswer, choice, predicate, score

__all__ = [
    "Calibration",
    "Decisions",
    "DecisionQuestion",
    "QuestionAnswer",
    "choice",
    "predicate",
    "score",
]
