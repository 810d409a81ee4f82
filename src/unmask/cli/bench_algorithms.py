"""`unmask bench algorithms`: three clients against a server with each algorithm, as a page of tables."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unmask.bench.environment import git_commit, machine, package_versions
from unmask.bench.serve import Server
from unmask.cli.bench_serve import (
    BenchServeOptions,
    DataOptions,
    ResultOptions,
    ServerOptions,
    serve,
)
from unmask.cli.bench_tasks import Exam, gsm8k, mmlu
from unmask.errors import ConfigError, RemoteError
from unmask.options import option
from unmask.version import __version__

SHOTS = 5
STOP_S = 60.0
"""Seconds that a server has to stop; one that does not is killed."""
MAX_ERROR_CHARS = 1_000
ROW = re.compile(r"^(?P<label>[^:=-][^:]*):\s+(?P<value>\S+)", re.MULTILINE)
CHOICES = 4
"""Choices of a question of MMLU."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """Options of `unmask bench algorithms`."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Model: bundled name, folder or hub id."""

    config: Annotated[tuple[str, ...], option(metavar="A=FILE")] = ()
    """YAML file of an algorithm's knobs; may be repeated."""

    data: Annotated[Path | None, option("--data-path", metavar="DIR", env="UNMASK_DATA")] = None
    """Folder with gsm8k/ and mmlu/. Default: $UNMASK_DATA; without it these two are left out."""

    num_questions: Annotated[int, option(least=1)] = 200
    """Number of questions of GSM8K, of MMLU, and of the word problems."""

    num_shots: Annotated[int, option(least=0)] = SHOTS
    """Number of solved examples in each prompt of GSM8K."""

    max_new_tokens: Annotated[int, option(least=1)] = 512
    """Maximum number of tokens of an answer to a question."""

    parallel: Annotated[int, option(least=1)] = 128
    """Maximum number of concurrent questions."""

    num_prompts: Annotated[int, option("--num-prompt", least=1)] = 10
    """Number of requests of the online benchmark."""

    random_input_len: Annotated[int, option(least=1)] = 205
    """Number of tokens of each of its prompts; 205 is the mean of SGLang's ten default requests."""

    random_output_len: Annotated[int, option(least=1)] = 291
    """Number of tokens of each of its answers; 291 is the mean of SGLang's ten default requests."""

    start_timeout: Annotated[float, option(above=0, metavar="S")] = 1800.0
    """Maximum time in seconds for a server to load the model."""

    output: Annotated[Path | None, option("-o", metavar="FILE")] = None
    """File of the page. Default: standard output."""


@dataclass(frozen=True)
class Client:
    """One of the clients: its title and its call with a server's URL, which prints its table."""

    title: str
    call: Callable[[str], None]
    num_questions: int | None = None


def algorithms_command(
    *algorithms: Annotated[str, Parameter(name="ALGORITHM")],
    options: Annotated[AlgorithmOptions, Parameter(name="*")] = AlgorithmOptions(),
) -> None:
    """Serve a model with each algorithm, run GSM8K, MMLU and a load test, and write their tables.

    The algorithms are SGLang's names, such as LowConfidence and CadLLM; the first is the baseline.
    """
    names = algorithms or ("LowConfidence", "CadLLM")
    configs = _configs(names, options.config)
    if options.output is not None:
        from unmask.durable import check_writable

        check_writable(options.output, "page")
    with tempfile.TemporaryDirectory(prefix="unmask-algorithms-") as folder:
        clients = clients_of(options, Path(folder))
        likelihood = None if options.data is None else likelihood_of(options, Path(folder))
        tables: dict[str, list[str]] = {}
        for name in names:
            command = command_of(name, options.model, configs.get(name))
            with serving(command, options.start_timeout) as url:
                tables[name] = [_printed(name, client, url) for client in clients]
    page = page_of(options, names, configs, clients, tables) + (likelihood or "")
    if options.output is None:
        print(page, end="")
        return
    try:
        options.output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(options.output)!r} cannot be written: {error.strerror}") from None


def _configs(names: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """Parse `ALGORITHM=FILE` words. Raises ConfigError, also for an algorithm that is there twice."""
    from unmask.server.sglang_algorithms import from_sglang

    if len(set(names)) < len(names):
        raise ConfigError(f"an algorithm is listed twice among {', '.join(names)}; name each once")
    for name in names:
        from_sglang(name, None)
    configs = dict(word.partition("=")[::2] for word in words)
    for name, path in configs.items():
        if name not in names or not path:
            raise ConfigError(
                f"--config {name}={path} must be ALGORITHM=FILE with one of {', '.join(names)}"
            )
        if not Path(path).is_file():
            raise ConfigError(f"--config {name}={path}: there is no such file")
    return configs


def command_of(name: str, model: str, config: str | None) -> list[str]:
    """Return the words of the server's command, in the spelling of SGLang's launch command."""
    words = ["serve", "--trust-remote-code", "--model-path", model, "--dllm-algorithm", name]
    words += [] if config is None else ["--dllm-algorithm-config", config]
    return [*words, "--host", "127.0.0.1", "--port", "0", "--no-log-requests"]


@contextlib.contextmanager
def serving(words: Sequence[str], timeout_s: float) -> Iterator[str]:
    """Run a server as a process and yield its URL. Raises RemoteError if it does not get ready in time."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "unmask.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None, "a pipe"
            url = ""
            for line in process.stdout:
                if line.startswith("url "):
                    url = line.split()[1]
                if line == "ready\n":
                    break
            else:
                log.seek(0)
                reason = (
                    log.read()[-MAX_ERROR_CHARS:].strip() or f"not ready within {timeout_s:g} s"
                )
                raise RemoteError(f"unmask {shlex.join(words)} does not start: {reason}")
            timer.cancel()
            yield url
        finally:
            timer.cancel()
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def clients_of(options: AlgorithmOptions, folder: Path) -> list[Client]:
    """Return the clients; `folder` gets the bundled word problems in the form of GSM8K."""
    exam = Exam("openai", options.max_new_tokens, options.parallel, 0.0, None, False)
    chat, count, shots = (
        dataclasses.replace(exam, backend="openai-chat"),
        options.num_questions,
        options.num_shots,
    )
    problems = _word_problems(folder, count + shots)

    def few_shot(data: Path, num_shots: int) -> Callable[[str], None]:
        return lambda url: gsm8k(Server(url), exam, data, count, num_shots, None)

    def exam_of_mmlu(url: str) -> None:
        assert options.data is not None, "with data only"
        mmlu(Server(url), chat, options.data, count, 0)

    clients = [
        Client(f"Bundled word problems, {shots} shots", few_shot(problems, shots), count),
        Client("Bundled word problems, no shots", few_shot(problems, 0), count),
    ]
    if options.data is not None:
        if shots:
            clients.append(Client(f"GSM8K, {shots} shots", few_shot(options.data, shots), count))
        clients.append(Client("GSM8K, no shots", few_shot(options.data, 0), count))
        clients.append(Client("MMLU, by chat", exam_of_mmlu, count))
    return [*clients, Client("Online benchmark", lambda url: serve(load_of(options, url)))]


def likelihood_of(options: AlgorithmOptions, folder: Path) -> str:
    """Return the section about MMLU by likelihood, which `unmask eval` measures. Raises RemoteError.

    A likelihood is of the model alone: it is the same number for every algorithm.
    """
    words = ["eval", "dataset.name=mmlu", f"dataset.path={options.data}", f"model={options.model}"]
    words += ["dataset.n_shot=0", f"limit={options.num_questions}"]
    print("MMLU, by likelihood", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "unmask.cli.main", *words, f"output={folder / 'mmlu'}", "--json"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines = ["", "## MMLU, by likelihood", "", "The same for every algorithm: no token is decoded."]
    lines += ["", "```shell", shlex.join(["unmask", *words]), "```", ""]
    if done.returncode:
        lines += ["```", f"no result: {done.stderr.strip()[-MAX_ERROR_CHARS:]}", "```"]
    else:
        found = json.loads(done.stdout)["metrics"]
        lines.append(
            f"Accuracy: {found['accuracy']:.3f} ± {found['accuracy_stderr']:.3f}, the first "
            f"{found['num_docs']:.0f} questions, no shots."
        )
    return "\n".join(lines) + "\n"


def load_of(options: AlgorithmOptions, url: str) -> BenchServeOptions:
    """Return the options of the online benchmark."""
    return BenchServeOptions(
        backend="sglang",
        place=ServerOptions(base_url=url),
        data=DataOptions(
            num_prompts=options.num_prompts,
            random_input_len=options.random_input_len,
            random_output_len=options.random_output_len,
            random_range_ratio=1.0,
        ),
        results=ResultOptions(disable_tqdm=True),
    )


def _word_problems(folder: Path, count: int) -> Path:
    """Write held-out word problems in the form of GSM8K's test file and return its path."""
    from unmask.demo.tasks import held_out_set

    path = folder / "word_problems.jsonl"
    rows = [
        json.dumps({"question": each.prompt, "answer": each.answer})
        for each in held_out_set("word_problem", count)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def _printed(name: str, client: Client, url: str) -> str:
    """Return what a client prints, or the error that says why there is nothing."""
    print(f"{name}: {client.title}", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            client.call(url)
        except RemoteError as error:  # such as prompts that the context does not hold
            return f"no result: {error}\n"
        except SystemExit:
            output.write("(some requests failed)\n")
    return output.getvalue()


def page_of(
    options: AlgorithmOptions,
    names: Sequence[str],
    configs: dict[str, str],
    clients: Sequence[Client],
    tables: dict[str, list[str]],
) -> str:
    """Return the page: a comparison, every client's table for each algorithm, and their origin."""
    lines = [f"# {' and '.join(names)} on {options.model}", "", *origin(options, names), ""]
    lines += ["## Side by side", "", f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for number, client in enumerate(clients):
        rows = [_rows_of(tables[name][number]) for name in names]
        for label in dict.fromkeys(label for row in rows for label in row):
            cells = [_cell(label, row.get(label, "n/a"), client) for row in rows]
            lines.append(f"| {client.title}: {label} | {' | '.join(cells)} |")
    for position, name in enumerate(names):
        lines += ["", f"## {'Baseline' if not position else f'Baseline + {name}'}", ""]
        command = ["unmask", *command_of(name, options.model, configs.get(name))]
        lines += ["```shell", shlex.join(command), "```"]
        for client, table in zip(clients, tables[name], strict=True):
            lines += ["", f"{client.title}:", "", "```", table.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def origin(options: AlgorithmOptions, names: Sequence[str]) -> list[str]:
    """Return the command, machine, versions and the reading of the numbers."""
    facts, versions = machine("cpu"), package_versions()
    words = ["unmask", "bench", "algorithms", *names]
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if value == item.default:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += ["--" + item.name.replace("_", "-"), str(one)]
    return [
        "```shell",
        shlex.join(words),
        "```",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}; {facts['processor']}, {facts['num_cpus']} cores, "
        f"load {facts['load_average']} at the end; unmask {__version__} at {git_commit()}, Python "
        f"{facts['python']}, torch {versions['torch']}, transformers {versions['transformers']}.",
        "",
        f"± is the standard error of {options.num_questions} questions. MMLU has {CHOICES} choices: chance "
        f"is {1 / CHOICES:.3f}, and an answer without a letter is wrong. With shots, the first questions "
        f"are asked with their own answers in the prompt, as in SGLang. A load above the number of cores "
        f"makes times and rates unreliable; accuracies and forwards do not depend on it.",
    ]


def _rows_of(table: str) -> dict[str, str]:
    """Return the values of a client's table by label; of an error, that there are none."""
    return {"Result": "none"} if table.startswith("no result") else dict(ROW.findall(table))


def _cell(label: str, value: str, client: Client) -> str:
    """Return a value, that of an accuracy with its standard error."""
    if label not in ("Accuracy", "Score") or client.num_questions is None:
        return value
    share = float(value)
    error = math.sqrt(share * (1 - share) / client.num_questions)
    return f"{value} ± {error:.3f}"
