"""Requests to an engine that answer questions, one per canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmask.canvas import Reading
from unmask.decisions.answers import Decisions, decisions_of, rows_for
from unmask.decisions.calibration import Calibration
from unmask.decisions.canvases import NO_LIMITS, CanvasMaker, DecisionOptions, ReadingRow, RowLimits
from unmask.decisions.questions import DecisionQuestion, question_list
from unmask.decisions.reading import reading_method
from unmask.engine.request import Request
from unmask.engine.request_builder import RequestBuilder


@dataclass(frozen=True, slots=True)
class DecisionRequests:
    """Questions, the canvases that answer them, and a request of one forward for each canvas."""

    questions: tuple[DecisionQuestion, ...]
    rows: tuple[ReadingRow, ...]
    requests: tuple[Request, ...]

    @classmethod
    def about(
        cls,
        builder: RequestBuilder,
        content: str,
        questions: Sequence[DecisionQuestion],
        options: DecisionOptions,
        limits: RowLimits = NO_LIMITS,
    ) -> DecisionRequests:
        """Return the requests for questions about a text. Raises PromptError and ConfigError."""
        questions = question_list(questions)
        facts = builder.facts
        ends = [id_ for id_ in (facts.turn_end_id, facts.eos_id) if id_ is not None]
        maker = CanvasMaker(builder.prompts, ends[0] if ends else None, options, limits)
        rows = rows_for(maker, content, questions)
        template = builder.template(reading_method(), stop_at_eos=False)
        requests = [replace(template(row.canvas), named=row.tokens) for row in rows]
        return cls(questions, tuple(rows), tuple(requests))

    def decisions(self, readings: Sequence[Reading], calibration: Calibration | None) -> Decisions:
        """Return the answers, given the reading of each request."""
        return decisions_of(self.questions, self.rows, readings, calibration)
