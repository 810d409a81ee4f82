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
from typing import Annotated, Any

from cyclopts import Parameter

from unmask.bench.endpoint import KINDS, Endpoint, EndpointReply, kind_of, parse_headers
from unmask.bench.latency import blocks, first_at, gaps_of, parse_goals, standard
from unmask.bench.serve import LoadResult, Server, Traffic, measure
from unmask.bench.workload import Workload
from unmask.cli.options import DATA, KEY_VARIABLE, LOAD, OUTPUT, PRINT_JSON, SERVER, flat
from unmask.errors import ConfigError, RemoteError, UnmaskError, unknown_name
from unmask.options import option
from unmask.view.serving import METRICS, ServingReport

SEVERAL = Parameter(consume_multiple=True)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """A running server."""

    base_url: Annotated[str | None, option(metavar="URL")] = None
    """The server. Default: http://HOST:PORT."""

    host: Annotated[str, option(metavar="H")] = Server.host
    """The server's host."""

    port: Annotated[int, option(metavar="P")] = Server.port
    """The server's port."""

    api_key: Annotated[str | None, option(metavar="KEY", env=KEY_VARIABLE)] = None
    """The server's key. Default: $UNMASK_API_KEY."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The requests."""

    dataset_name: Annotated[str, option(metavar="D")] = Workload.name
    """random (of token ids), sharegpt (a file), word_problem, sudoku or countdown."""

    dataset_path: Annotated[Path | None, option(metavar="FILE")] = None
    """ShareGPT-like JSON, for sharegpt."""

    num_prompts: Annotated[int, option("--num-prompt")] = Workload.num_prompts
    """Number of requests."""

    random_input_len: Annotated[int, option("--input-len")] = Workload.input_length
    """Maximum number of tokens of a random prompt."""

    random_output_len: Annotated[
        int | None, option("--sharegpt-output-len", "--output-len", metavar="N")
    ] = None
    """Maximum number of tokens of an answer. Default: 128 if random, else as the set has it."""

    random_range_ratio: Annotated[float, option(metavar="R")] = Workload.range_ratio
    """Minimum random length as a share of the maximum (as in SGLang); 1: all alike."""

    tokenize_prompt: bool = False
    """Send random prompts as token ids, not as text."""

    sharegpt_context_len: Annotated[int | None, option(metavar="N")] = None
    """Leave out conversations with a longer prompt and answer."""

    apply_chat_template: bool = False
    """Send prompts in the tokenizer's chat template, as text."""

    tokenizer: Annotated[str | None, option(metavar="M")] = None
    """Bundled name, folder or hub id of the tokenizer that counts. Default: the model's name."""

    seed: Annotated[int, option(metavar="S")] = 1
    """Seed of the prompts and of the waits."""


@dataclass(frozen=True, kw_only=True)
class TrafficOptions:
    """The arrival of the requests, and their fields."""

    request_rate: Annotated[float, option(metavar="R")] = float("inf")
    """Requests per second; inf: all at once."""

    burstiness: Annotated[float, option(metavar="B")] = 1.0
    """1: Poisson; below: in bursts; above: even."""

    max_concurrency: Annotated[int | None, option(metavar="N")] = None
    """Maximum number of requests under way. Default: any."""

    warmup_requests: Annotated[int, option("--num-warmups")] = 1
    """Number of untimed requests before."""

    disable_stream: bool = False
    """Request answers in one piece. Blocks are not timed."""

    ignore_eos: Annotated[bool | None, Parameter(negative="--disable-ignore-eos")] = None
    """Request all tokens, past the answer's end. Default: with sglang backends only."""

    temperature: Annotated[float, option(metavar="T")] = 0.0
    """Sampling temperature; 0 is greedy."""

    extra_body: Annotated[str | None, option("--extra-request-body", metavar="JSON")] = None
    """Fields of every request: '{"decoder": "threshold"}'."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """The numbers, and the files that hold them."""

    goodput: Annotated[tuple[str, ...], SEVERAL, option(metavar="GOAL:MS ...")] = ()
    """Count requests within ttft:MS, tpot:MS, e2el:MS."""

    percentile_metrics: Annotated[str | None, option(metavar="LIST")] = None
    """Metrics with further percentiles: ttft,tpot,itl,e2el."""

    metric_percentiles: Annotated[str | None, option(metavar="LIST")] = None
    """Further percentiles, such as 50,90,99."""

    block_length: int = 32
    """Number of tokens that count as a block."""

    save_result: bool = False
    """Write all numbers and texts as a JSON file."""

    result_dir: Annotated[Path | None, option(metavar="FOLDER")] = None
    """Folder of --save-result."""

    result_filename: Annotated[str | None, option(metavar="NAME")] = None
    """File name of --save-result."""

    output_file: Annotated[Path | None, option(metavar="FILE")] = None
    """Append the numbers to this file, as a line."""

    output_details: bool = False
    """With --output-file: add each request's lengths, times and text."""

    tag: Annotated[str | None, option(metavar="TEXT")] = None
    """Text beside the numbers."""

    disable_tqdm: bool = False
    """Show no progress bar."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print JSON instead of the table."""


@dataclass(frozen=True, kw_only=True)
class BenchServeOptions:
    """Options of `unmask bench serve`; SGLang's and vLLM's spellings both work."""

    backend: Annotated[str, option(metavar="B")] = "openai"
    """openai (/v1/completions), openai-chat, or sglang (/generate). Also: sglang-oai, sglang-oai-chat,
    vllm, vllm-chat."""

    endpoint: Annotated[str | None, option(metavar="PATH")] = None
    """Path of the route. Default: the backend's."""

    model: Annotated[str | None, option("-m", metavar="M")] = None
    """Name of the model there. Default: the server's first."""

    served_model_name: Annotated[str | None, option(metavar="NAME")] = None
    """Name of the model there, where --model is another one with the tokenizer that counts."""

    header: Annotated[tuple[str, ...], SEVERAL, option(metavar="NAME=VALUE ...")] = ()
    """HTTP headers of every request."""

    place: Annotated[ServerOptions, flat(SERVER)] = ServerOptions()
    data: Annotated[DataOptions, flat(DATA)] = DataOptions()
    load: Annotated[TrafficOptions, flat(LOAD)] = TrafficOptions()
    results: Annotated[ResultOptions, flat(OUTPUT)] = ResultOptions()

    @property
    def goals(self) -> dict[str, float]:
        """The goals of `--goodput` in ms. Raises ConfigError."""
        return parse_goals(self.results.goodput)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of `--header`. Raises ConfigError."""
        return parse_headers(self.header)

    @property
    def server(self) -> Server:
        """The endpoint. Raises ConfigError."""
        name = self.served_model_name or self.model
        return Server(
            self.place.base_url,
            self.place.host,
            self.place.port,
            name,
            self.place.api_key,
            self.headers,
        )

    @property
    def workload(self) -> Workload:
        """The contents of the requests."""
        return Workload(
            name=self.data.dataset_name,
            path=self.data.dataset_path,
            num_prompts=self.data.num_prompts,
            input_length=self.data.random_input_len,
            output_length=self.data.random_output_len,
            range_ratio=self.data.random_range_ratio,
            as_ids=self.data.tokenize_prompt,
            chat_template=self.data.apply_chat_template,
            context_length=self.data.sharegpt_context_len,
        )

    @property
    def traffic(self) -> Traffic:
        """The rate and the concurrency of the requests."""
        return Traffic(
            self.load.request_rate,
            self.load.burstiness,
            self.load.max_concurrency,
            self.load.warmup_requests,
        )

    @property
    def save(self) -> Path | None:
        """The result file, as in vLLM: folder and name, or a name with the time; None: none."""
        if not self.results.save_result:
            return None
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        name = self.results.result_filename or f"{self.backend}-{stamp}.json"
        return (self.results.result_dir or Path()) / name


def serve_command(*, options: Annotated[BenchServeOptions, flat()] = BenchServeOptions()) -> None:
    """Put a running server under load: SGLang's table, with blocks, forwards and waste besides.

    Exit status 1 when some requests failed.
    """
    serve(options)


def serve(options: BenchServeOptions) -> None:
    """Measure and show. Exit status 1 when some requests failed."""
    import numpy as np

    workload, traffic, server = options.workload, options.traffic, options.server
    workload.check()
    traffic.check()
    make_report = _checked(options)
    endpoint = _endpoint(server, options)
    named = options.model if options.served_model_name else None
    tokenizer = find_tokenizer(options.data.tokenizer or named or endpoint.model)
    rng = np.random.RandomState(options.data.seed)
    items = workload.items(tokenizer, rng)
    with progress(len(items), is_quiet=options.results.disable_tqdm) as watch:
        served = measure(endpoint, server.url, items, traffic, rng, server.headers, watch)
    failed = [reply.error for reply in served.replies if reply.error is not None]
    if len(failed) == len(items):
        raise RemoteError(f"all {len(items)} requests failed; the first: {failed[0]}")
    count, lengths = counter(tokenizer), [item.prompt_length for item in items]
    accepted = served.accept_length if options.backend.startswith("sglang") else None
    report = make_report(
        request_rate=traffic.request_rate,
        max_concurrency=traffic.max_concurrency,
        standard=standard(served.replies, lengths, served.duration_s, count, accepted),
        blocks=blocks(
            served.replies,
            served.duration_s,
            count,
            options.results.block_length,
            options.goals,
            served.counters,
        ),
        num_failed=len(failed),
        first_error=failed[0] if failed else None,
        setting=setting_of(endpoint, workload, traffic, options),
    )
    show(report, served, lengths, options)
    if failed:
        some = f"{len(failed)} of {len(items)} requests failed; the first: {failed[0]}"
        print(f"unmask: {some}", file=sys.stderr)
        raise SystemExit(1)


def _checked(options: BenchServeOptions) -> Callable[..., ServingReport]:
    """Check the options and return the function that makes the report. Raises ConfigError."""
    if not options.results.save_result and (
        options.results.result_dir or options.results.result_filename
    ):
        raise ConfigError("--result-dir and --result-filename have no effect without --save-result")
    if options.results.output_details and options.results.output_file is None:
        raise ConfigError("--output-details has no effect without --output-file")
    _ = options.goals
    if options.results.block_length < 1:
        raise ConfigError(f"block_length={options.results.block_length} must be at least 1")
    for path in (options.save, options.results.output_file):
        if path is not None:
            from unmask.view.trace import check_writable

            check_writable(path, "result file")
    return partial(
        ServingReport,
        backend=options.backend,
        extra_percentiles=percentiles(
            options.results.percentile_metrics, options.results.metric_percentiles
        ),
    )


def _endpoint(server: Server, options: BenchServeOptions) -> Endpoint:
    """Return the endpoint; ask the server for its model's name last. Raises ConfigError, RemoteError."""
    kind, extra = kind_of(options.backend), extra_body(options.load.extra_body)
    if "stream" in extra:
        raise ConfigError("extra_body: stream is a flag here; use --disable-stream")
    if options.data.apply_chat_template and kind == "openai-chat":
        raise ConfigError(
            f"apply_chat_template: with {options.backend} the server does that; leave it out"
        )
    # SGLang's backends go on past the end unless told otherwise, vLLM's do not
    usual = options.backend.startswith("sglang")
    return Endpoint(
        kind=kind,
        url=server.url + (options.endpoint or KINDS[kind]),
        model=server.model_id(),
        ignore_eos=usual if options.load.ignore_eos is None else options.load.ignore_eos,
        temperature=options.load.temperature,
        extra=extra,
        stream=not options.load.disable_stream,
    )


def show(
    report: ServingReport, served: LoadResult, lengths: Sequence[int], options: BenchServeOptions
) -> None:
    """Print, and write the files that were asked for."""
    found = report.as_json()
    print(json.dumps(found) if options.results.as_json else report.table(), flush=True)
    if options.save is not None:
        details = {
            "output_lens": [reply.num_tokens for reply in served.replies],
            "errors": [reply.error for reply in served.replies],
            "generated_texts": [reply.text for reply in served.replies],
        }
        _write(options.save, json.dumps(found | details, ensure_ascii=False), "w")
    if options.results.output_file is not None:
        more = details_of(served, lengths) if options.results.output_details else {}
        _write(options.results.output_file, json.dumps(found | more), "a")


def details_of(served: LoadResult, lengths: Sequence[int]) -> dict[str, list[Any]]:
    """Return the numbers of each request, under the names of SGLang's client; times in seconds."""
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
    endpoint: Endpoint, workload: Workload, traffic: Traffic, options: BenchServeOptions
) -> dict[str, Any]:
    """Return the options, under the other clients' names where they exist."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tag": options.results.tag,
        "url": endpoint.url,
        "model_id": endpoint.model,
        "dataset_name": workload.name,
        "num_prompts": workload.num_prompts,
        "random_input_len": workload.input_length,
        "random_output_len": workload.output_length,
        "random_range_ratio": workload.range_ratio,
        "burstiness": traffic.burstiness,
        "seed": options.data.seed,
        "ignore_eos": endpoint.ignore_eos,
        "temperature": endpoint.temperature,
        "extra_body": dict(endpoint.extra),
    }


def percentiles(metrics: str | None, percents: str | None) -> dict[str, list[float]]:
    """Parse `ttft,tpot` and `90,99` into the percentiles to add. Raises ConfigError."""
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
    """Parse the fields to add to every request. Raises ConfigError."""
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
    """Load the tokenizer of a bundled model, a folder or a hub id. Raises ModelError or ConfigError."""
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
    """Return a function that counts the tokens of a text."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def progress(total: int, *, is_quiet: bool = False) -> Iterator[Callable[[EndpointReply], None]]:
    """Show a bar on standard error while requests run; nothing off a terminal or with `is_quiet`."""
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
