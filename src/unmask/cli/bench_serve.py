"""`unmask bench serve`: a running server under load, as SGLang's table or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import typer

from unmask.bench.endpoint import KINDS, Endpoint, EndpointReply, kind_of, parse_headers
from unmask.bench.latency import blocks, first_at, gaps_of, parse_goals, standard
from unmask.bench.serve import LoadResult, Server, Traffic, measure
from unmask.bench.workload import Workload
from unmask.errors import ConfigError, RemoteError, UnmaskError, unknown_name
from unmask.view.serving import METRICS, ServingReport


@dataclass(frozen=True)
class BenchServeOptions:
    """The flags of `unmask bench serve`, which `cli.server_flags` explains."""

    words: list[str] | None
    backend: str
    base_url: str | None
    host: str
    port: int
    endpoint: str | None
    api_key: str | None
    header: list[str] | None
    model: str | None
    served_model_name: str | None
    tokenizer: str | None
    dataset_name: str
    dataset_path: Path | None
    num_prompts: int
    input_length: int
    output_length: int | None
    range_ratio: float
    as_ids: bool
    chat_template: bool
    context_length: int | None
    request_rate: float
    burstiness: float
    max_concurrency: int | None
    warm_ups: int
    seed: int
    disable_stream: bool
    ignore_eos: bool | None
    temperature: float
    extra_body: str | None
    goodput: list[str] | None
    percentile_metrics: str | None
    metric_percentiles: str | None
    block_length: int
    save_result: bool
    result_dir: Path | None
    result_filename: str | None
    output_file: Path | None
    output_details: bool
    tag: str | None
    disable_tqdm: bool
    as_json: bool

    @property
    def goals(self) -> dict[str, float]:
        """What `--goodput` says, in ms, with the words behind it. Raises ConfigError."""
        return parse_goals([*(self.goodput or ()), *self._words(self.goodput, is_header=False)])

    @property
    def headers(self) -> dict[str, str]:
        """What `--header` says, with the words behind it. Raises ConfigError."""
        return parse_headers([*(self.header or ()), *self._words(self.header, is_header=True)])

    def _words(self, option: list[str] | None, *, is_header: bool) -> list[str]:
        """Words behind an option that takes several. Raises ConfigError when it was not given."""
        found = [word for word in self.words or () if ("=" in word) == is_header]
        if found and not option:
            raise ConfigError(
                f"unexpected word {found[0]!r}; all settings of bench serve are flags"
            )
        return found

    @property
    def server(self) -> Server:
        """Where to ask. Raises ConfigError."""
        name = self.served_model_name or self.model
        return Server(self.base_url, self.host, self.port, name, self.api_key, self.headers)

    @property
    def workload(self) -> Workload:
        """What to send."""
        return Workload(
            name=self.dataset_name,
            path=self.dataset_path,
            num_prompts=self.num_prompts,
            input_length=self.input_length,
            output_length=self.output_length,
            range_ratio=self.range_ratio,
            as_ids=self.as_ids,
            chat_template=self.chat_template,
            context_length=self.context_length,
        )

    @property
    def traffic(self) -> Traffic:
        """How to send it."""
        return Traffic(self.request_rate, self.burstiness, self.max_concurrency, self.warm_ups)

    @property
    def save(self) -> Path | None:
        """Where `--save-result` writes, in vLLM's way: folder and name, or a name with the time in it."""
        if not self.save_result:
            return None
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        name = self.result_filename or f"{self.backend}-{stamp}.json"
        return (self.result_dir or Path()) / name


def serve(wanted: BenchServeOptions) -> None:
    """Measure and show. Exit status 1 when some requests failed."""
    import numpy as np

    workload, traffic, server = wanted.workload, wanted.traffic, wanted.server
    workload.check()
    traffic.check()
    make_report = _checked(wanted)
    endpoint = _endpoint(server, wanted)
    named = wanted.model if wanted.served_model_name else None
    tokenizer = find_tokenizer(wanted.tokenizer or named or endpoint.model)
    rng = np.random.RandomState(wanted.seed)
    items = workload.items(tokenizer, rng)
    with progress(len(items), is_quiet=wanted.disable_tqdm) as watch:
        served = measure(endpoint, server.url, items, traffic, rng, server.headers, watch)
    failed = [reply.error for reply in served.replies if reply.error is not None]
    if len(failed) == len(items):
        raise RemoteError(f"all {len(items)} requests failed; the first: {failed[0]}")
    count, lengths = counter(tokenizer), [item.prompt_length for item in items]
    accepted = served.accept_length if wanted.backend.startswith("sglang") else None
    report = make_report(
        request_rate=traffic.request_rate,
        max_concurrency=traffic.max_concurrency,
        standard=standard(served.replies, lengths, served.duration_s, count, accepted),
        blocks=blocks(
            served.replies,
            served.duration_s,
            count,
            wanted.block_length,
            wanted.goals,
            served.counters,
        ),
        num_failed=len(failed),
        first_error=failed[0] if failed else None,
        setting=setting_of(endpoint, workload, traffic, wanted),
    )
    show(report, served, lengths, wanted)
    if failed:
        some = f"{len(failed)} of {len(items)} requests failed; the first: {failed[0]}"
        print(f"unmask: {some}", file=sys.stderr)
        raise typer.Exit(1)


def _checked(wanted: BenchServeOptions) -> Callable[..., ServingReport]:
    """What makes the report, once nothing in the wishes is wrong. Raises ConfigError."""
    if not wanted.save_result and (wanted.result_dir or wanted.result_filename):
        raise ConfigError("--result-dir and --result-filename have no effect without --save-result")
    if wanted.output_details and wanted.output_file is None:
        raise ConfigError("--output-details has no effect without --output-file")
    _ = wanted.goals
    if wanted.block_length < 1:
        raise ConfigError(f"block_length={wanted.block_length} must be at least 1")
    for path in (wanted.save, wanted.output_file):
        if path is not None:
            from unmask.view.trace import check_writable

            check_writable(path, "result file")
    return partial(
        ServingReport,
        backend=wanted.backend,
        extra_percentiles=percentiles(wanted.percentile_metrics, wanted.metric_percentiles),
    )


def _endpoint(server: Server, wanted: BenchServeOptions) -> Endpoint:
    """Where the requests go; the model's name is asked for last. Raises ConfigError and RemoteError."""
    kind, extra = kind_of(wanted.backend), extra_body(wanted.extra_body)
    if "stream" in extra:
        raise ConfigError("extra_body: stream is a flag here; use --disable-stream")
    if wanted.chat_template and kind == "openai-chat":
        raise ConfigError(
            f"apply_chat_template: with {wanted.backend} the server does that; leave it out"
        )
    # SGLang's backends go on past the end unless told otherwise, vLLM's do not
    usual = wanted.backend.startswith("sglang")
    return Endpoint(
        kind=kind,
        url=server.url + (wanted.endpoint or KINDS[kind]),
        model=server.model_id(),
        ignore_eos=usual if wanted.ignore_eos is None else wanted.ignore_eos,
        temperature=wanted.temperature,
        extra=extra,
        stream=not wanted.disable_stream,
    )


def show(
    report: ServingReport, served: LoadResult, lengths: Sequence[int], wanted: BenchServeOptions
) -> None:
    """Print, and write the files that were asked for."""
    found = report.as_json()
    print(json.dumps(found) if wanted.as_json else report.table(), flush=True)
    if wanted.save is not None:
        details = {
            "output_lens": [reply.num_tokens for reply in served.replies],
            "errors": [reply.error for reply in served.replies],
            "generated_texts": [reply.text for reply in served.replies],
        }
        _write(wanted.save, json.dumps(found | details, ensure_ascii=False), "w")
    if wanted.output_file is not None:
        more = details_of(served, lengths) if wanted.output_details else {}
        _write(wanted.output_file, json.dumps(found | more), "a")


def details_of(served: LoadResult, lengths: Sequence[int]) -> dict[str, list[Any]]:
    """Each request's own numbers, under the names of SGLang's client; times in seconds."""
    replies = served.replies
    return {
        "input_lens": list(lengths),
        "output_lens": [0 if reply.error else reply.num_tokens for reply in replies],
        "ttfts": [first_at(reply) for reply in replies],
        "itls": [gaps_of(reply, None) for reply in replies],
        "generated_texts": [reply.text for reply in replies],
        "errors": [reply.error or "" for reply in replies],
    }


def setting_of(
    endpoint: Endpoint, workload: Workload, traffic: Traffic, wanted: BenchServeOptions
) -> dict[str, Any]:
    """What was asked for, under the other clients' names where they have one."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tag": wanted.tag,
        "url": endpoint.url,
        "model_id": endpoint.model,
        "dataset_name": workload.name,
        "num_prompts": workload.num_prompts,
        "random_input_len": workload.input_length,
        "random_output_len": workload.output_length,
        "random_range_ratio": workload.range_ratio,
        "burstiness": traffic.burstiness,
        "seed": wanted.seed,
        "ignore_eos": endpoint.ignore_eos,
        "temperature": endpoint.temperature,
        "extra_body": dict(endpoint.extra),
    }


def percentiles(metrics: str | None, percents: str | None) -> dict[str, list[float]]:
    """`ttft,tpot` and `90,99` as the percentiles to add. Raises ConfigError."""
    names = METRICS if metrics is None else [word.strip() for word in metrics.split(",")]
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    found = []
    usual = "99" if metrics else ""
    for word in (usual if percents is None else percents).split(","):
        if not word.strip():
            continue
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 100:
            raise ConfigError(f"metric_percentiles={word!r} must be numbers from 0 to 100")
        found.append(value)
    return dict.fromkeys(names, found)


def extra_body(text: str | None) -> dict[str, Any]:
    """Fields to add to every request. Raises ConfigError."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"extra_body={text!r} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"extra_body={text!r} must be a JSON object")
    return found


def find_tokenizer(name: str) -> Any:
    """The tokenizer of a bundled model, a folder or a hub id. Raises ModelError or ConfigError."""
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.models import resolve_model

    try:
        found = load_tokenizer(resolve_model(name, weights=False))
    except UnmaskError as error:
        raise ConfigError(
            f"no tokenizer for {name!r} ({error}); give one with --tokenizer"
        ) from None
    if found is None:
        raise ConfigError(f"{name!r} has no tokenizer; give one with --tokenizer")
    return found


def counter(tokenizer: Any) -> Callable[[str], int]:
    """Counts the tokens of a text."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def progress(total: int, *, is_quiet: bool = False) -> Iterator[Callable[[EndpointReply], None]]:
    """A bar on standard error while requests come back; nothing where that is no terminal or `is_quiet`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda reply: None
        return
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("requests", total=total)
        yield lambda reply: bar.advance(task)


def _write(path: Path, line: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError(
            f"result file {str(path)!r} cannot be written: {error.strerror}"
        ) from None
