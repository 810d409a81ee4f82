"""Few-shot GSM8K and MMLU against a running server.

Source: SGLang's `few_shot_gsm8k` (prompt, stops, extraction and the four metrics) and `simple_eval_mmlu`
(one chat turn per question, the letter after "Answer:"; the wording of the turn differs). As in SGLang, the
shots of GSM8K are the first questions of the file, which are asked too; `shots_from` reads them from
another file.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.bench.endpoint import Endpoint, EndpointQuery, EndpointReply, make_client
from unmask.bench.latency import Count
from unmask.data import releases
from unmask.data.records import find_files, read_rows
from unmask.errors import ConfigError, RemoteError

GSM8K_STOPS = ("Question", "Assistant:", "<|separator|>")
MMLU_TURN = """{question}

{choices}

Which of the four is right? You may reason first. Close with a line that reads 'Answer: X', X being one of
A, B, C and D."""


@dataclass(frozen=True)
class TaskQuestion:
    """A prompt and its reference answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class TaskResult:
    """Scores of a task as shares of all questions; `invalid`: share of replies without an answer.

    `num_too_long`: questions that the server's context does not hold, which are invalid but not failed.
    `answers`: the extracted answer of each reply. `num_tokens`: None if the server does not report them and
    there is no tokenizer to count them.
    """

    accuracy: float
    invalid: float
    latency_s: float
    num_tokens: int | None
    num_failed: int
    num_too_long: int
    first_error: str | None
    replies: tuple[EndpointReply, ...]
    answers: tuple[str | None, ...]

    @property
    def output_rate(self) -> float | None:
        """Generated tokens per second; None if they are not known."""
        return None if self.num_tokens is None else self.num_tokens / self.latency_s


def gsm8k(
    path: Path, num_questions: int, num_shots: int, shots_from: Path | None
) -> list[TaskQuestion]:
    """Return the first questions of a JSON-lines file, each after the shots. Raises ConfigError."""
    records = _records(path)
    examples = records if shots_from is None else _records(shots_from)
    if len(records) < num_questions or len(examples) < num_shots:
        raise ConfigError(
            f"{path} has {len(records)} questions; num_questions={num_questions} and "
            f"num_shots={num_shots} need more; lower them"
        )
    shots = "".join(_gsm8k_text(each) + f" {each['answer']}\n\n" for each in examples[:num_shots])
    return [
        TaskQuestion(shots + _gsm8k_text(each), last_number(each["answer"]) or "")
        for each in records[:num_questions]
    ]


def _gsm8k_text(record: dict[str, str]) -> str:
    return f"Question: {record['question']}\nAnswer:"


def _records(path: Path) -> list[dict[str, str]]:
    """Read questions and answers of a file, or of the test split in a folder or its folder gsm8k."""
    files = [path]
    if path.is_dir():
        candidates = [find_files(folder, "test") for folder in (path / "gsm8k", path)]
        files = next((found for found in candidates if found), [])
        if not files:
            raise ConfigError(
                f"{path} has no gsm8k/test.jsonl; give GSM8K's test file or its folder"
            )
    return [releases.gsm8k_document(row) for file in files for row in read_rows(file)]


def last_number(text: str) -> str | None:
    """Return the last run of digits, without commas and leading zeros; None if there is none."""
    runs = re.findall(r"\d+", text.replace(",", ""))
    return str(int(runs[-1])) if runs else None


def mmlu(folder: Path, num_questions: int, seed: int) -> list[TaskQuestion]:
    """Draw test questions of all subjects from a folder. Raises ConfigError."""
    rows = releases.mmlu(folder / "mmlu", "test") or releases.mmlu(folder, "test")
    if not rows:
        rows = [row for file in sorted(folder.glob("*.csv")) for row in releases.mmlu_subject(file)]
    if not rows:
        raise ConfigError(f"{folder} has no MMLU test files; give the folder of its *_test.csv")
    if num_questions > len(rows):
        raise ConfigError(f"{folder} has {len(rows)} questions, num_questions={num_questions}")
    return [_mmlu_question(row) for row in random.Random(seed).sample(rows, num_questions)]


def _mmlu_question(row: releases.MmluQuestion) -> TaskQuestion:
    pairs = zip(releases.LETTERS, row.choices, strict=True)
    choices = "\n".join(f"{letter}) {choice}" for letter, choice in pairs)
    return TaskQuestion(MMLU_TURN.format(question=row.question, choices=choices), row.letter)


def answer_letter(text: str) -> str | None:
    """Return the letter after the first "Answer:"; None if there is none."""
    match = re.search(r"answer\s*:\s*([A-D])", text, re.IGNORECASE)
    return match[1].upper() if match else None


def run_task(
    endpoint: Endpoint,
    questions: Sequence[TaskQuestion],
    extract: Callable[[str], str | None],
    *,
    num_tokens: int,
    parallel: int,
    headers: Mapping[str, str] | None = None,
    watch: Callable[[EndpointReply], None] = lambda reply: None,
    find_count: Callable[[], Count | None] = lambda: None,
) -> TaskResult:
    """Send all questions, `parallel` at a time, and grade the replies.

    `extract` returns the answer in a text. `find_count` returns a function that counts the tokens of a
    text, if there is one; it is asked only if the server does not report them. A request that failed, or
    that the server's context does not hold, counts as an invalid answer. Raises RemoteError when there is
    no other.
    """
    if parallel < 1 or num_tokens < 1:
        raise ConfigError(f"parallel={parallel} and max_new_tokens={num_tokens} must be at least 1")

    async def go() -> list[EndpointReply]:
        limit = asyncio.Semaphore(parallel)
        async with make_client(headers) as client:

            async def send(question: TaskQuestion) -> EndpointReply:
                async with limit:
                    reply = await endpoint.send(client, EndpointQuery(question.prompt, num_tokens))
                watch(reply)
                return reply

            return await asyncio.gather(*map(send, questions))

    began = time.perf_counter()
    replies = asyncio.run(go())
    latency = time.perf_counter() - began
    refused = [reply for reply in replies if reply.error is not None]
    if len(refused) == len(replies):
        raise RemoteError(f"all {len(replies)} requests failed; the first: {refused[0].error}")
    errors = [reply.error for reply in refused if not reply.is_too_long]
    answers = tuple(None if reply.error else extract(reply.text) for reply in replies)
    right = [answer == question.answer for answer, question in zip(answers, questions, strict=True)]
    return TaskResult(
        accuracy=sum(right) / len(right),
        invalid=answers.count(None) / len(answers),
        latency_s=latency,
        num_tokens=_num_tokens([reply for reply in replies if reply.error is None], find_count),
        num_failed=len(errors),
        num_too_long=len(refused) - len(errors),
        first_error=errors[0] if errors else None,
        replies=tuple(replies),
        answers=answers,
    )


def _num_tokens(
    replies: Sequence[EndpointReply], find_count: Callable[[], Count | None]
) -> int | None:
    """Return the number of tokens in all replies, as reported or counted; None if it is not known."""
    if all(reply.is_counted for reply in replies):
        return sum(reply.num_tokens for reply in replies)
    count = find_count()
    if count is None:
        return None
    return sum(r.num_tokens if r.is_counted else count(r.text) for r in replies)
