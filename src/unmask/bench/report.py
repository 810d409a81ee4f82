"""Results of `bench decode`: measurements, metrics derived from them, and both as JSON."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.own_rows import name_of
from unmask.data.records import SUFFIXES

STANDARD_ERRORS = 2
"""Number of standard errors above which a mean difference counts as one."""
BASELINE = "vanilla"
"""Label of the first row: one token per forward."""


@dataclass(frozen=True)
class DecodeSetting:
    """Settings common to all decoders of a run: `limit` prompts, `repeat` timed passes over them.

    `task` may be a file of rows, with `prompt`, `target` and `metric` as in `RowTask`; `prompts` is one
    whose rows have no right answers.
    """

    task: str = "word_problem"
    cache: str = "none"
    limit: int = 50
    gen_length: int = 64
    block_length: int = 32
    repeat: int = 1
    max_batch_size: int = 1
    seed: int = 0
    prompt: str | None = None
    target: str | None = None
    metric: str | None = None
    prompts: str | None = None

    @property
    def task_name(self) -> str:
        """Name of the task in tables: that of a file without its folder and ending."""
        return name_of(Path(self.task)) if self.is_own else self.task

    @property
    def is_own(self) -> bool:
        """True for prompts from a file of the user's."""
        return self.prompts is not None or self.task.endswith(SUFFIXES)


@dataclass(frozen=True)
class Result:
    """Passes of a decoder over all prompts: counts of the first repeat, seconds of each.

    `num_tokens`: tokens of the answers, end tokens excluded. `num_wasted`: queries right of an end token.
    `is_repeatable`: all repeats have the same answers.
    """

    right: tuple[bool, ...]
    num_tokens: int
    num_forwards: int
    num_queries: int
    seconds: tuple[float, ...]
    is_repeatable: bool = True
    num_wasted: int = 0

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def accuracy_error(self) -> float:
        """Binomial standard error of the accuracy; 0 when all are right or none is."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))

    @property
    def forwards_per_answer(self) -> float:
        """Mean number of forwards per prompt."""
        return self.num_forwards / len(self.right)

    @property
    def queries_per_answer(self) -> float:
        """Mean number of positions computed per prompt."""
        return self.num_queries / len(self.right)

    @property
    def waste(self) -> float:
        """Share of the computed positions that lay right of an end token."""
        return self.num_wasted / self.num_queries

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens per forward; below 1 for vanilla, which also decides positions after the end."""
        return self.num_tokens / self.num_forwards

    @property
    def tokens_per_s(self) -> tuple[float, float, float]:
        """Answer tokens per second: median, minimum and maximum over the repeats."""
        rates = [self.num_tokens / seconds for seconds in self.seconds]
        return statistics.median(rates), min(rates), max(rates)


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of a result with the baseline.

    `difference`: of the accuracies; `error`: standard error of the mean of the paired differences.
    `is_different`: more than two standard errors; it and `error` are None for a single prompt.
    `speed_up`: ratio of the median tokens per second, None if all answers of the baseline are empty.
    """

    difference: float
    error: float | None
    is_different: bool | None
    num_better: int
    num_worse: int
    speed_up: float | None


def compare(result: Result, baseline: Result) -> Comparison:
    """Compare a result with the baseline's on the same prompts."""
    pairs = zip(result.right, baseline.right, strict=True)
    changes = [int(own) - int(other) for own, other in pairs]
    count, mean = len(changes), statistics.fmean(changes)
    error = math.sqrt(statistics.variance(changes) / count) if count > 1 else None
    own_rate, base_rate = result.tokens_per_s[0], baseline.tokens_per_s[0]
    return Comparison(
        difference=mean,
        error=error,
        is_different=None if error is None else abs(mean) > STANDARD_ERRORS * error,
        num_better=changes.count(1),
        num_worse=changes.count(-1),
        speed_up=own_rate / base_rate if base_rate else None,
    )


@dataclass(frozen=True)
class ReportRow:
    """A method with its result, or the problem why there is none.

    `label`: decoder and explicit `knobs` in the syntax of `--decoder`; `in_force`: all knobs.
    """

    label: str
    decoder: str
    knobs: Mapping[str, str]
    in_force: Mapping[str, object]
    result: Result | None
    problem: str | None = None


@dataclass(frozen=True)
class Report:
    """A run; the first row is the baseline's."""

    model: str
    dtype: str
    device: str
    setting: DecodeSetting
    rows: tuple[ReportRow, ...]
    machine: Mapping[str, object]
    date: str
    version: str

    @property
    def baseline(self) -> Result:
        """Result of the baseline."""
        result = self.rows[0].result
        assert self.rows[0].label == BASELINE, "the first row is the baseline's"
        assert result is not None, "a run without a baseline is refused"
        return result

    def as_json(self) -> dict[str, object]:
        """Return measurements and derived metrics."""
        return {
            "unmask": self.version,
            "date": self.date,
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "machine": self.machine,
            "setting": dataclasses.asdict(self.setting),
            "rows": [self._row_as_json(row) for row in self.rows],
        }

    def _row_as_json(self, row: ReportRow) -> dict[str, object]:
        record: dict[str, object] = {
            "label": row.label,
            "decoder": row.decoder,
            "knobs": row.knobs,
            "in_force": row.in_force,
            "problem": row.problem,
            "result": None,
            "derived": None,
        }
        if row.result is None:
            return record
        rate, slowest, fastest = row.result.tokens_per_s
        derived = {
            "accuracy": row.result.accuracy,
            "accuracy_error": row.result.accuracy_error,
            "forwards_per_answer": row.result.forwards_per_answer,
            "queries_per_answer": row.result.queries_per_answer,
            "waste": row.result.waste,
            "tokens_per_forward": row.result.tokens_per_forward,
            "tokens_per_s": rate,
            "tokens_per_s_min": slowest,
            "tokens_per_s_max": fastest,
            "against_baseline": dataclasses.asdict(compare(row.result, self.baseline)),
        }
        return record | {"result": dataclasses.asdict(row.result), "derived": derived}


def from_json(record: Mapping[str, Any]) -> Report:
    """Build a report from `Report.as_json`; derived metrics are computed again."""
    rows = []
    for item in record["rows"]:
        result = item["result"]
        if result is not None:
            lists = {"right": tuple(result["right"]), "seconds": tuple(result["seconds"])}
            result = Result(**(result | lists))
        row = ReportRow(
            label=item["label"],
            decoder=item["decoder"],
            knobs=item["knobs"],
            in_force=item["in_force"],
            result=result,
            problem=item["problem"],
        )
        rows.append(row)
    return Report(
        model=record["model"],
        dtype=record["dtype"],
        device=record["device"],
        setting=DecodeSetting(**record["setting"]),
        rows=tuple(rows),
        machine=record["machine"],
        date=record["date"],
        version=record["unmask"],
    )
