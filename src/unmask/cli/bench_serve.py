"""`unmask bench serve`: a running server under load, as SGLang's table or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unmask.bench.endpoint import KINDS, Endpoint, EndpointReply, kind_of, parse_headers
from unmask.bench.latency import blocks, first_at, gaps_of, parse_goals, standard
from unmask.bench.serve import LoadResult, Server, Traffic, measure
from unmask.bench.workload import Workload
from unmask.cli.messages import say
from unmask.cli.options import DATA, KEY_VARIABLE, LOAD, OUTPUT, PRINT_JSON, SERVER, flat
from unmask.errors import ConfigError, RemoteError, UnmaskError, unknown_name
from unmask.options import option
from unmask.view.serving import METRICS, ServingReport

SEVERAL = Parameter(consume_multiple=True)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """A running server."""

    base_url: Annotated[str | None, option(metavar="URL")] = None
    """URL of the server. Default: http://HOST:PORT."""

    host: Annotated[str, option(metavar="H")] = Server.host
    """Host of the server."""

    port: Annotated[int, option(metavar="P")] = Server.port
    """Port of the server."""

    api_key: Annotated[str | None, option(metavar="KEY", env=KEY_VARIABLE)] = None
    """API key of the server. Default: $UNMASK_API_KEY."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The requests."""

    dataset_name: Annotated[str, option(metavar="D")] = Workload.name
    """Prompts: random (token ids), sharegpt (a file), word_problem, sudoku or countdown."""

    dataset_path: Annotated[Path | None, option(metavar="FILE")] = None
    """JSON file of conversations in ShareGPT's format, for sharegpt."""

    num_prompts: Annotated[int, option("--num-prompt")] = Workload.num_prompts
    """Number of requests."""

    random_input_len: Annotated[int, option("--input-len")] = Workload.input_length
    """Maximum number of tokens of a random prompt."""

    random_output_len: Annotated[
        int | None, option("--sharegpt-output-len", "--output-len", metavar="N")
    ] = None
    """Maximum number of tokens of an answer. Default: 128 for random, else that of the data set."""

    random_range_ratio: Annotated[float, option(metavar="R")] = Workload.range_ratio
    """Minimum random length as a share of the maximum, as in SGLang; 1: all equal."""

    tokenize_prompt: bool = False
    """Send random prompts as token ids, not as text."""

    sharegpt_context_len: Annotated[int | None, option(metavar="N")] = None
    """Skip conversations with more tokens, answer included. Default: skip none."""

    apply_chat_template: bool = False
    """Format prompts with the tokenizer's chat template and send them as text."""

    tokenizer: Annotated[str | None, option(metavar="M")] = None
    """Tokenizer that counts tokens: bundled name, folder or hub id. Default: that of a server on this
    machine, else the model's."""

    seed: Annotated[int, option(metavar="S")] = 1
    """Seed of the prompts and of the arrival times."""


@dataclass(frozen=True, kw_only=True)
class TrafficOptions:
    """The arrival times of the requests, and their fields."""

    request_rate: Annotated[float, option(metavar="R")] = float("inf")
    """Mean number of requests per second; inf sends all at once."""

    burstiness: Annotated[float, option(metavar="B")] = 1.0
    """Arrivals: 1 is a Poisson process, below 1 more bursty, above 1 more regular."""

    max_concurrency: Annotated[int | None, option(metavar="N")] = None
    """Maximum number of concurrent requests. Default: unlimited."""

    warmup_requests: Annotated[int, option("--num-warmups")] = 1
    """Number of untimed requests before the benchmark."""

    disable_stream: bool = False
    """Do not stream answers; blocks are then not timed."""

    ignore_eos: Annotated[bool | None, Parameter(negative="--disable-ignore-eos")] = None
    """Generate all tokens, also after the end token. Default: with sglang backends only."""

    temperature: Annotated[float, option(metavar="T")] = 0.0
    """Sampling temperature; 0 is greedy."""

    extra_body: Annotated[str | None, option("--extra-request-body", metavar="JSON")] = None
    """Additional fields of every request, such as '{"decoder": "threshold"}'."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """The reported numbers, and their files."""

    goodput: Annotated[tuple[str, ...], SEVERAL, option(metavar="GOAL:MS ...")] = ()
    """Report requests per second within all of ttft:MS, tpot:MS, e2el:MS."""

    percentile_metrics: Annotated[str | None, option(metavar="LIST")] = None
    """Metrics to report --metric-percentiles of: ttft,tpot,itl,e2el. Default: all."""

    metric_percentiles: Annotated[str | None, option(metavar="LIST")] = None
    """Further percentiles, such as 50,90,99."""

    block_length: int = 32
    """Number of tokens per block in block metrics."""

    save_result: bool = False
    """Write all numbers and texts as a JSON file."""

    result_dir: Annotated[Path | None, option(metavar="FOLDER")] = None
    """Folder of --save-result. Default: the current one."""

    result_filename: Annotated[str | None, option(metavar="NAME")] = None
    """File name of --save-result. Default: backend and time."""

    output_file: Annotated[Path | None, option(metavar="FILE")] = None
    """Append the numbers to this file, as one JSON line."""

    output_details: bool = False
    """With --output-file: add each request's lengths, times and text."""

    tag: Annotated[str | None, option(metavar="TEXT")] = None
    """Text that is stored with the numbers."""

    disable_tqdm: bool = False
    """Show no progress bar."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print JSON instead of the table."""


@dataclass(frozen=True, kw_only=True)
class BenchServeOptions:
    """Options of `unmask bench serve`; SGLang's and vLLM's spellings both work."""

    backend: Annotated[str, option(metavar="B")] = "openai"
    """API: openai (/v1/completions), openai-chat, or sglang (/generate). Aliases: sglang-oai,
    sglang-oai-chat, vllm, vllm-chat."""

    endpoint: Annotated[str | None, option(metavar="PATH")] = None
    """Path of the route. Default: that of the backend."""

    model: Annotated[str | None, option("-m", metavar="M")] = None
    """Name of the model on the server. Default: the first that it lists."""

    served_model_name: Annotated[str | None, option(metavar="NAME")] = None
    """Name of the model on the server, if --model only names the tokenizer."""

    header: Annotated[tuple[str, ...], SEVERAL, option(metavar="NAME=VALUE ...")] = ()
    """Additional HTTP headers of every request."""

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
        """The file of `--save-result`, by default named after backend and time; None: no file."""
        if not self.results.save_result:
            return None
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        name = self.results.result_filename or f"{self.backend}-{stamp}.json"
        return (self.results.result_dir or Path()) / name


def serve_command(*, options: Annotated[BenchServeOptions, flat()] = BenchServeOptions()) -> None:
    """Load-test a running server; print SGLang's table, with rows for blocks, forwards and waste.

    The exit status is 1 if some requests fail.
    """
    serve(options)


def serve(options: BenchServeOptions) -> None:
    """Run the benchmark and print its report. Raises SystemExit(1) if some requests fail."""
    import numpy as np

    workload, traffic, server = options.workload, options.traffic, options.server
    workload.check()
    traffic.check()
    make_report = _checked(options)
    endpoint = _endpoint(server, options)
    tokenizer_model = options.model if options.served_model_name else None
    tokenizer = tokenizer_of(server, endpoint.model, options.data.tokenizer or tokenizer_model)
    rng = np.random.RandomState(options.data.seed)
    items = workload.items(tokenizer, rng)
    with progress(len(items), is_quiet=options.results.disable_tqdm) as watch:
        served = measure(endpoint, server.url, items, traffic, rng, server.headers, watch)
    failed = [reply.error for reply in served.replies if reply.error is not None]
    if len(failed) == len(items):
        raise RemoteError(f"all {len(items)} requests failed; the first: {failed[0]}")
    count, lengths = counter(tokenizer), [item.prompt_length for item in items]
    served = replace(served, replies=tuple(counted(reply, count) for reply in served.replies))
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
        say(some)
        raise SystemExit(1)


def _checked(options: BenchServeOptions) -> Callable[..., ServingReport]:
    """Check the options and return a function that builds the report. Raises ConfigError."""
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
            from unmask.durable import check_writable

            check_writable(path, "result file")
    return partial(
        ServingReport,
        backend=options.backend,
        extra_percentiles=percentiles(
            options.results.percentile_metrics, options.results.metric_percentiles
        ),
    )


def _endpoint(server: Server, options: BenchServeOptions) -> Endpoint:
    """Return the endpoint, requesting the model's name last. Raises ConfigError, RemoteError."""
    kind, extra = kind_of(options.backend), extra_body(options.load.extra_body)
    if "stream" in extra:
        raise ConfigError("extra_body: the field stream is set by a flag; use --disable-stream")
    if options.data.apply_chat_template and kind == "openai-chat":
        raise ConfigError(
            f"apply_chat_template: with {options.backend} the server does that; leave it out"
        )
    # As in their own clients: SGLang's backends ignore the end token by default.
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
    """Print the report and write the requested files."""
    content = report.as_json()
    print(json.dumps(content) if options.results.as_json else report.table(), flush=True)
    if options.save is not None:
        details = {
            "output_lens": [reply.num_tokens for reply in served.replies],
            "errors": [reply.error for reply in served.replies],
            "generated_texts": [reply.text for reply in served.replies],
        }
        _write(options.save, json.dumps(content | details, ensure_ascii=False), "w")
    if options.results.output_file is not None:
        more = details_of(served, lengths) if options.results.output_details else {}
        _write(options.results.output_file, json.dumps(content | more), "a")


def details_of(served: LoadResult, lengths: Sequence[int]) -> dict[str, list[Any]]:
    """Return the numbers of each request, under the names of SGLang's client; times in seconds."""
    replies = served.replies
    return {
        "input_lens": list(lengths),
        "output_lens": [0 if reply.error else reply.num_tokens for reply in replies],
        "ttfts": [_first_or_none(reply) for reply in replies],
        "itls": [gaps_of(reply, None) for reply in replies],
        "generated_texts": [reply.text for reply in replies],
        "errors": [reply.error or "" for reply in replies],
    }


def _first_or_none(reply: EndpointReply) -> float | None:
    """Return the seconds to the first text; 0 for a failed request, as in SGLang's client."""
    if reply.error is not None:
        return 0.0
    return first_at(reply) if reply.arrivals else None


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
    values = []
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
        values.append(value)
    return dict.fromkeys(names, values)


def extra_body(text: str | None) -> dict[str, Any]:
    """Parse the fields to add to every request. Raises ConfigError."""
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"extra_body={text!r} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"extra_body={text!r} must be a JSON object")
    return fields


def find_tokenizer(name: str) -> Any:
    """Load the tokenizer of a bundled model, a folder or a hub id. Raises ModelError or ConfigError."""
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.models import resolve_model

    try:
        tokenizer = load_tokenizer(resolve_model(name, weights=False))
    except UnmaskError as error:
        raise ConfigError(
            f"no tokenizer for {name!r} ({error}); give one with --tokenizer"
        ) from None
    if tokenizer is None:
        raise ConfigError(f"{name!r} has no tokenizer; give one with --tokenizer")
    return tokenizer


def tokenizer_of(server: Server, model: str, name: str | None) -> Any:
    """Return the tokenizer of that name, else the server's if it is on this machine, else the model's.

    Raises ConfigError if there is none.
    """
    if name is not None:
        return find_tokenizer(name)
    for local in server.tokenizers(model):
        try:
            return find_tokenizer(local)
        except ConfigError:
            continue  # a folder without a tokenizer; the model's name is tried last
    return find_tokenizer(model)


def counted(reply: EndpointReply, count: Callable[[str], int]) -> EndpointReply:
    """Return a reply with the number of its tokens, counted if the server has not reported it."""
    if reply.is_counted or reply.error is not None:
        return reply
    return replace(reply, num_tokens=count(reply.text), is_counted=True)


def counter(tokenizer: Any) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def progress(total: int, *, is_quiet: bool = False) -> Iterator[Callable[[EndpointReply], None]]:
    """Show a progress bar on standard error, if that is a terminal and not `is_quiet`."""
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
