"""Answers of a run with prompt, target and score, as `unmask samples` and reports show them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import ConfigError
from unmask.evals.generation import EvalAnswer
from unmask.evals.results import Results
from unmask.evals.run_folder import SCORES, read_all
from unmask.evals.traces import AnswerTrace


@dataclass(frozen=True)
class EvalSample:
    """A document's answer. `score` is None where it is not judged; `prompt` has no worked examples."""

    doc: int
    prompt: str
    target: str
    text: str
    score: float | None
    num_forwards: int
    num_tokens: int
    is_too_long: bool = False
    trace: AnswerTrace | None = None

    @property
    def is_wrong(self) -> bool:
        """True for a judged answer that is not wholly right."""
        return self.score is not None and self.score < 1

    @property
    def verdict(self) -> str:
        """The score in words."""
        if self.is_too_long:
            return "wrong (too long for the context)"
        if self.score is None:
            return "not judged"
        names = {0.0: "wrong", 1.0: "right"}
        return names.get(self.score, f"score {self.score:.2f}")


def read_samples(folder: Path) -> list[EvalSample]:
    """Read the answers of a finished run, by document. Raises ConfigError."""
    results = Results.read(folder)
    scores = dict(zip(results.docs, results.right, strict=True)) if results.is_judged else {}
    facts = _facts(folder / SCORES)
    answers: dict[int, list[EvalAnswer]] = {}
    for stored in read_all(folder).values():
        answers.setdefault(stored.answer.doc, []).append(stored.answer)
    missing = [doc for doc in results.docs if doc not in answers]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} has no answer to document {missing[0]}; run the evaluation again"
        )
    return [_sample(doc, answers[doc], facts.get(doc, {}), scores.get(doc)) for doc in results.docs]


def _sample(
    doc: int, parts: list[EvalAnswer], facts: dict[str, object], score: float | None
) -> EvalSample:
    parts = sorted(parts, key=lambda answer: answer.part)
    if parts[0].log_prob is None:
        text = parts[0].text
    else:
        text = "log-likelihoods: " + ", ".join(f"{answer.log_prob:.2f}" for answer in parts)
    return EvalSample(
        doc=doc,
        prompt=str(facts.get("prompt", "")),
        target=str(facts.get("target", "")),
        text=text,
        score=score,
        num_forwards=sum(answer.num_forwards for answer in parts),
        num_tokens=sum(answer.counted.response for answer in parts),
        is_too_long=any(answer.is_too_long for answer in parts),
        trace=parts[0].trace,
    )


def _facts(path: Path) -> dict[int, dict[str, object]]:
    """Return the lines of scores.jsonl by document; empty where nothing was judged."""
    if not path.exists():
        return {}
    found: dict[int, dict[str, object]] = {}
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            found.setdefault(record["doc"], record)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(
                f"{str(path)!r} line {number} is no score of ours; run the evaluation again"
            ) from None
    return found


@dataclass(frozen=True)
class SamplePair:
    """Answers of two runs to one document."""

    first: EvalSample
    second: EvalSample

    @property
    def is_different(self) -> bool:
        """True if the texts or the scores differ."""
        return (self.first.text, self.first.score) != (self.second.text, self.second.score)

    @property
    def gain(self) -> float:
        """Score of the second less that of the first; 0 where one is not judged."""
        if self.first.score is None or self.second.score is None:
            return 0.0
        return self.second.score - self.first.score


def read_pairs(first: Path, second: Path) -> list[SamplePair]:
    """Return the pairs of the documents that two runs share. Raises ConfigError for different tasks."""
    runs = Results.read(first), Results.read(second)
    names = [f"{run.task} ({run.resolved.get('documents', 'unknown')})" for run in runs]
    if runs[0].task != runs[1].task:
        raise ConfigError(
            f"{str(first)!r} and {str(second)!r} answer different tasks, {names[0]} and {names[1]}; give "
            f"runs of one task"
        )
    others = {sample.doc: sample for sample in read_samples(second)}
    pairs = [
        SamplePair(sample, others[sample.doc])
        for sample in read_samples(first)
        if sample.doc in others
    ]
    if not pairs:
        raise ConfigError(f"{str(first)!r} and {str(second)!r} have no documents in common")
    for pair in pairs:
        if pair.first.prompt != pair.second.prompt:
            raise ConfigError(
                f"document {pair.first.doc} has other prompts in {str(first)!r} and {str(second)!r}; give "
                f"runs on the same data"
            )
    return pairs
