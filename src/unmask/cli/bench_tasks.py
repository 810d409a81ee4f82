"""Commands `unmask bench gsm8k` and `unmask bench mmlu`: accuracy of a server, in SGLang's format."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from unmask.bench import tasks
from unmask.bench.endpoint import KINDS, Endpoint, kind_of
from unmask.bench.serve import Server
from unmask.cli.bench_serve import ServerOptions, counter, extra_body, progress, tokenizer_of
from unmask.cli.messages import say
from unmask.cli.options import PRINT_JSON, SERVER, flat
from unmask.errors import ConfigError
from unmask.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Options of `unmask bench gsm8k` and `unmask bench mmlu`."""

    data: Annotated[Path, option("--data-path", metavar="PATH", env="UNMASK_DATA")]
    """The task's data file, its folder, or the parent of that folder. Default: $UNMASK_DATA."""

    num_questions: Annotated[int, option("--num-examples")] = 200
    """Number of questions."""

    max_new_tokens: Annotated[int, option("--max-tokens")] = 512
    """Maximum number of tokens of an answer."""

    parallel: Annotated[int, option("--num-threads")] = 128
    """Maximum number of concurrent requests."""

    place: Annotated[ServerOptions, flat(SERVER)] = ServerOptions()

    model: Annotated[str | None, option("--served-model-name", "-m", metavar="M")] = None
    """Name of the model on the server. Default: the first that it lists."""

    tokenizer: Annotated[str | None, option(metavar="M")] = None
    """Tokenizer that counts tokens if the server does not. Default: that of a server on this machine."""

    temperature: Annotated[float, option(metavar="T")] = 0.0
    """Sampling temperature; 0 is greedy."""

    extra_body: Annotated[str | None, option("--extra-request-body", metavar="JSON")] = None
    """Additional fields of every request, such as '{"decoder": "threshold"}'."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print one JSON object instead of lines of text."""

    def server(self) -> Server:
        """Return the server. Raises ConfigError."""
        at = self.place
        return Server(at.base_url, at.host, at.port, self.model, at.api_key)


BACKEND = option(metavar="B")


def gsm8k_command(
    *,
    options: Annotated[TaskOptions, flat()],
    backend: Annotated[str, BACKEND] = "openai",
    num_shots: Annotated[int, option(least=0)] = 5,
    shots_from: Annotated[Path | None, option(metavar="FILE")] = None,
) -> None:
    """Evaluate a running server on few-shot GSM8K, as SGLang's few_shot_gsm8k does.

    Args:
        backend: API: openai (/v1/completions), openai-chat, or sglang (/generate).
        num_shots: Number of solved examples in each prompt.
        shots_from: File of the examples, such as train.jsonl. Default: the test file, as in SGLang, so that
            the first questions are asked with their own answers in the prompt.
    """
    exam = _exam(options, backend)
    gsm8k(options.server(), exam, options.data, options.num_questions, num_shots, shots_from)


def mmlu_command(
    *,
    options: Annotated[TaskOptions, flat()],
    backend: Annotated[str, BACKEND] = "openai-chat",
    seed: Annotated[int, option(metavar="S")] = 0,
) -> None:
    """Evaluate a running server on a sample of MMLU, zero-shot, one chat turn per question.

    Args:
        backend: API: openai (/v1/completions), openai-chat, or sglang (/generate).
        seed: Seed of the sample.
    """
    mmlu(options.server(), _exam(options, backend), options.data, options.num_questions, seed)


def _exam(options: TaskOptions, backend: str) -> Exam:
    return Exam(
        backend,
        options.max_new_tokens,
        options.parallel,
        options.temperature,
        options.extra_body,
        options.as_json,
        options.tokenizer,
    )


@dataclasses.dataclass(frozen=True)
class Exam:
    """Options of the requests, common to all tasks."""

    backend: str
    num_tokens: int
    parallel: int
    temperature: float
    extra_body: str | None
    as_json: bool
    tokenizer: str | None = None


def gsm8k(
    server: Server, exam: Exam, data: Path, num_questions: int, num_shots: int, shots: Path | None
) -> None:
    """Evaluate GSM8K; print accuracy, invalid answers, latency and throughput."""
    _check_counts(num_questions, num_shots)
    questions = tasks.gsm8k(data, num_questions, num_shots, shots)
    stops = list(tasks.GSM8K_STOPS)
    graded = _take(server, exam, questions, tasks.last_number, stops)
    lines = [
        f"Accuracy: {graded.accuracy:.3f}",
        f"Invalid: {graded.invalid:.3f}",
        f"Latency: {graded.latency_s:.3f} s",
        _throughput(graded),
    ]
    _show(graded, lines, exam, {"task": "gsm8k", "num_shots": num_shots})


def mmlu(server: Server, exam: Exam, data: Path, num_questions: int, seed: int) -> None:
    """Evaluate MMLU; print latency, score, invalid answers and throughput."""
    _check_counts(num_questions, 0)
    questions = tasks.mmlu(data, num_questions, seed)
    graded = _take(server, exam, questions, tasks.answer_letter, [])
    lines = [
        f"Total latency: {graded.latency_s:.3f} s",
        f"Score: {graded.accuracy:.3f}",
        f"Invalid: {graded.invalid:.3f}",
        _throughput(graded),
    ]
    _show(graded, lines, exam, {"task": "mmlu", "seed": seed})


def _throughput(graded: tasks.TaskResult) -> str:
    rate = graded.output_rate
    return "Output throughput: " + ("n/a" if rate is None else f"{rate:.3f} token/s")


def _check_counts(num_questions: int, num_shots: int) -> None:
    if num_questions < 1 or num_shots < 0:
        raise ConfigError(
            f"num_questions={num_questions} must be at least 1, num_shots={num_shots} at least 0"
        )


def _take(
    server: Server,
    exam: Exam,
    questions: Sequence[tasks.TaskQuestion],
    read: Callable[[str], str | None],
    stops: list[str],
) -> tasks.TaskResult:
    kind, extra = kind_of(exam.backend), extra_body(exam.extra_body)
    if stops and kind == "sglang":
        sampling = {"stop": stops} | extra.get("sampling_params", {})
        extra = {**extra, "sampling_params": sampling}
    elif stops:
        extra = {"stop": stops, **extra}
    url = server.url + KINDS[kind]
    endpoint = Endpoint(kind, url, server.model_id(), temperature=exam.temperature, extra=extra)

    def find_count() -> Callable[[str], int] | None:
        try:
            return counter(tokenizer_of(server, endpoint.model, exam.tokenizer))
        except ConfigError as error:
            if exam.tokenizer is not None:
                raise
            print(f"unmask: note: tokens are not counted: {error}", file=sys.stderr)
            return None

    with progress(len(questions)) as watch:
        return tasks.run_task(
            endpoint,
            questions,
            read,
            num_tokens=exam.num_tokens,
            parallel=exam.parallel,
            headers=server.headers,
            watch=watch,
            find_count=find_count,
        )


def _show(graded: tasks.TaskResult, lines: list[str], exam: Exam, facts: dict[str, Any]) -> None:
    report = {
        **facts,
        "num_questions": len(graded.replies),
        "accuracy": graded.accuracy,
        "invalid": graded.invalid,
        "latency": graded.latency_s,
        "output_throughput": graded.output_rate,
        "failed": graded.num_failed,
        "first_error": graded.first_error,
        "num_too_long": graded.num_too_long,
        "answers": [reply.text for reply in graded.replies],
        "found": list(graded.answers),
    }
    print(json.dumps(report, ensure_ascii=False) if exam.as_json else "\n".join(lines), flush=True)
    if graded.num_too_long:
        some = (
            f"{graded.num_too_long} of {len(graded.replies)} questions are too long for the server"
        )
        say(f"{some}: wrong", "note")
    if graded.num_failed:
        some = f"{graded.num_failed} of {len(graded.replies)} requests failed"
        say(f"{some}; the first: {graded.first_error}")
        raise SystemExit(1)
