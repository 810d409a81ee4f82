"""`unmask serve`: a model behind HTTP."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unmask.cli import launcher
from unmask.cli.collection import paused_collection
from unmask.cli.key_value import WORD
from unmask.cli.messages import say
from unmask.cli.options import KEY_VARIABLE, flat
from unmask.cli.plugins import add_plugin, refuse_own_code
from unmask.cli.serve_options import ServeOptions
from unmask.engine.config import EngineConfig
from unmask.errors import ConfigError, DependencyError
from unmask.knobs import Source

if TYPE_CHECKING:
    from unmask.decisions.calibration import Calibration
    from unmask.engine.llm import LLM
    from unmask.method import MethodSpec
    from unmask.models.spec import ModelSpec
    from unmask.server.settings import (
        Access,
        LogFormat,
        ReplicaConfig,
        ServerConfig,
        ServerSettings,
    )

log = logging.getLogger("unmask.server")
WORDS = Parameter(
    name="MODEL | KEY=VALUE",
    help="Model (bundled name, folder or hub id); default knobs.",
)
FAILED_STATUS = 1
"""Exit status after a failure of the engine, by which a supervisor such as systemd restarts the server."""
RAYS_OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_SERVE_ENABLE_HA_PROXY": "0",  # Ray's own proxy, not the GPL binary beside it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # ports listen on loopback only
    "RAY_AUTH_MODE": "token",  # the port that Serve opens on all interfaces requires a token
}
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 30.0, 600.0
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(
    *words: Annotated[str, WORDS],
    options: Annotated[ServeOptions, flat()] = ServeOptions(),
) -> None:
    """Serve a model over HTTP: OpenAI's and SGLang's routes, infilling, a playground.

    Requests may choose decoder, cache and knobs; the values set here are their defaults. `unmask decoders
    NAME` lists the knobs of a decoder.
    """
    run(dataclasses.replace(options, words=words))


def run(options: ServeOptions) -> None:
    """Load the model and serve until a signal. Options are checked before the model is loaded.

    Raises SystemExit with `FAILED_STATUS` when the engine has failed.
    """
    with ExitStack() as start:
        start.enter_context(paused_collection())
        _run(options, start)


def _run(options: ServeOptions, start: ExitStack) -> None:
    """Check the options, load the model and serve; `start` is closed before requests come."""
    need_extra()
    from unmask.server.settings import check_names

    model, words = split(options)
    for reference in options.plugin:
        name = add_plugin(reference)
        in_requests = "adds a model family" if name is None else f"is {name!r} in requests"
        say(f"--plugin {reference} {in_requests}", "note")
    method = method_of(options, words)
    check_names(names_of(options, model), options.adapters.keywords()["adapters"] or ())
    counts = counts_of(options.replicas, options.load.tensor_parallel_size)
    is_sglang = options.method.dllm_algorithm is not None and counts is None
    access = access_of(options.server, is_sglang=is_sglang)
    notes = (*notes_of(options, access), *(note.message for note in method.notes))
    print_notes(notes, options.server.log_format)
    if counts is not None:
        refuse_own_code()
        from unmask.models import read_spec

        spec = read_spec(model, options.load.revision)
        settings = settings_of(options, spec, model, defaults_of(spec, options, method), access)
        start.close()
        serve_replicas(options, model, settings, counts)
        return
    launcher.take(options.load.tensor_parallel_size, model, options.load.keywords())
    _serve_one(options, model, method, access, start)


def _serve_one(
    options: ServeOptions, model: str, method: MethodSpec, access: Access, start: ExitStack
) -> None:
    """Load the model into this process and serve until a signal. Raises SystemExit."""
    from unmask.server.process import bind, server_of, url_of

    bound = bind(options.server.host, options.server.port)
    with bound:
        llm = load(options, model)
        defaults = defaults_of(llm.spec, options, method)
        settings = settings_of(options, llm.spec, model, defaults, access)
        from unmask.engine.engine import Engine
        from unmask.server.app import create_app
        from unmask.server.connections import ConnectionLimits, count_descriptors, fit_descriptors
        from unmask.server.logs import announce, set_up_log

        set_up_log(options.server.log_format, log_requests=options.server.log_requests)
        app = create_app(llm, Engine(llm, options.engine), settings)
        for line in facts(llm, model, settings, options, url_of(bound)):
            print(line, flush=True)
        limits, warning = fit_descriptors(ConnectionLimits(), count_descriptors())
        if warning is not None:
            log.warning("%s", warning)
        server = server_of(
            app,
            limits=limits,
            drain_timeout_s=options.server.shutdown_timeout,
            on_ready=lambda: announce("ready"),
        )
        start.close()
        server.run(sockets=[bound])
    if server.has_failed:
        raise SystemExit(FAILED_STATUS)
    if server.service.has_hung:  # Python would wait for the forward, or crash on it
        logging.shutdown()
        os._exit(0)


def names_of(options: ServeOptions, model: str) -> tuple[str, ...]:
    """Return the names of the model in the API."""
    own = Path(model).name if Path(model).exists() else model
    return options.server.served_model_name or (own,)


def print_notes(notes: Iterable[str], log_format: LogFormat) -> None:
    """Print notes about the options on standard error, in the format of the log."""
    from unmask.server.logs import line_of

    for note in notes:
        line = line_of(note) if log_format == "json" else f"unmask: note: {note}"
        print(line, file=sys.stderr, flush=True)


def need_extra() -> None:
    """Raise DependencyError when the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import sse_starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"unmask serve needs {error.name or error}: pip install 'unmask[serve]'"
        ) from None


def print_routes(metrics: bool) -> None:
    """Print the reference page of the routes or of the metrics, which do not depend on the model."""
    need_extra()
    from unmask.docgen.http import markdown, metrics_markdown
    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM
    from unmask.server.app import create_app
    from unmask.server.settings import ServerSettings

    llm = LLM("demo", device="cpu", pack_weights=False)
    app = create_app(llm, Engine(llm, EngineConfig(max_num_seqs=1)), ServerSettings(("demo",)))
    page = metrics_markdown(app.state.service.metrics.registry) if metrics else markdown(app)
    print(page, end="")


def split(options: ServeOptions) -> tuple[str, dict[str, str]]:
    """Split the words into the model and the knobs. Raises ConfigError."""
    model, knobs = options.model, dict[str, str]()
    for word in options.words:
        match = WORD.fullmatch(word)
        if match is not None:
            knobs[match[1].replace("-", "_")] = match[2]
        elif model is None or model == word:
            model = word
        else:
            raise ConfigError(f"{word!r} and {model!r} are two models; name one")
    return model or "demo", knobs


def method_of(options: ServeOptions, words: Mapping[str, str]) -> MethodSpec:
    """Return the default method of requests. Raises ConfigError."""
    from unmask.method import MethodSpec

    flags = options.method
    names = {"decoder": flags.decoder, "cache": flags.cache}
    own = {key: name for key, name in names.items() if name is not None}
    sources = [Source(words), Source(own, spelling="--{flag}")]
    if flags.dllm_algorithm is None:
        if flags.dllm_algorithm_config is not None:
            raise ConfigError("--dllm-algorithm-config needs --dllm-algorithm")
        return MethodSpec.parse(*sources, is_trusted=True)
    if flags.decoder is not None:
        raise ConfigError(
            f"--decoder {flags.decoder} and --dllm-algorithm {flags.dllm_algorithm} both choose "
            f"the decoder; leave one of them out"
        )
    from unmask.server.sglang_algorithms import from_sglang

    config = from_sglang(flags.dllm_algorithm, read_config(flags.dllm_algorithm_config))
    return MethodSpec.parse(*sources, config)


def read_config(path: Path | None) -> Mapping[str, Any] | None:
    """Read a YAML file's mapping. Raises ConfigError."""
    if path is None:
        return None
    import yaml

    from unmask.yaml_text import parse_yaml

    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--dllm-algorithm-config {path} cannot be read: {reason}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"--dllm-algorithm-config {path} must hold key: value lines")
    return content


def notes_of(options: ServeOptions, access: Access) -> list[str]:
    """Return notes on options that other servers' commands have and that do less here, or nothing."""
    notes = []
    if options.trust_remote_code:
        notes.append(
            "--trust-remote-code has no effect: a checkpoint's own code is never run, and its network is "
            "built by unmask"
        )
    if not options.method.dllm_fdfo:
        notes.append("--no-dllm-fdfo has no effect: both schedules of a batch decode alike")
    if "*" in options.server.allowed_origins and access.key_digest is None:
        notes.append(
            "--allowed-origins * without an API key: every web page that is open in a browser on this "
            "machine may use the server"
        )
    if access.is_local_only:
        notes.append(
            f"--host {options.server.host} without an API key: only requests from this machine are "
            f"answered; set {KEY_VARIABLE} or --api-key to admit others, or add --allow-unauthenticated"
        )
    return notes


def access_of(server: ServerConfig, *, is_sglang: bool = False) -> Access:
    """Return the access rules. Raises ConfigError for an unprotected public server.

    `is_sglang`: the command is SGLang's, whose servers are public without a key; ours then answers this
    machine only.
    """
    from unmask.server.hosts import allowed_host
    from unmask.server.settings import Access

    key = os.environ.get(KEY_VARIABLE) if server.api_key is None else server.api_key
    if key is not None and not key.strip():
        raise ConfigError(f"the API key is empty; leave out --api-key and unset {KEY_VARIABLE}")
    if key is not None:
        return Access(
            key_digest=Access.digest(key.strip()),
            is_metrics_public=server.public_metrics,
            is_page_public=server.public_page,
            page_token=secrets.token_urlsafe(),
        )
    for flag, is_set in (("metrics", server.public_metrics), ("page", server.public_page)):
        if is_set:
            raise ConfigError(f"--public-{flag} has no effect without an API key; leave it out")
    is_local = is_loopback(server.host)
    is_local_only = is_sglang and not is_local and not server.allow_unauthenticated
    if not is_local and not server.allow_unauthenticated and not is_local_only:
        raise ConfigError(
            f"--host {server.host} accepts other machines without an API key; set {KEY_VARIABLE} or "
            f"--api-key, use --host 127.0.0.1, or add --allow-unauthenticated"
        )
    if is_local and server.allow_unauthenticated:
        raise ConfigError(
            f"--allow-unauthenticated has no effect with --host {server.host}; leave it out"
        )
    is_narrow = is_local or is_local_only
    own = {*LOCAL_NAMES, allowed_host(server.host)} if is_narrow else set[str]()
    hosts = frozenset(own | {allowed_host(name) for name in server.allowed_host}) or None
    return Access(hosts=hosts, is_local_only=is_local_only)


def is_loopback(host: str) -> bool:
    """Return True for an address that is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_to(host: str, *, is_local_only: bool = False) -> str:
    """Describe the callers that a server without a key admits, for its start message."""
    if is_local_only:
        return "this machine only, without a key"
    return "open" if is_loopback(host) else f"OPEN, without a key, to all clients that reach {host}"


def describe_access(access: Access, host: str) -> str:
    """Return the line of the start message about access."""
    if access.key_digest is not None:
        return "API key"
    return open_to(host, is_local_only=access.is_local_only)


def load(options: ServeOptions, model: str) -> LLM:
    """Load the model."""
    from unmask.view.progress import LoadingView

    with LoadingView(model) as progress:
        from unmask.engine.llm import LLM
        from unmask.engine.origin import read_ahead
        from unmask.engine.threads import run_in_thread

        folder = Path(model).expanduser()
        with read_ahead(folder) if folder.is_dir() else nullcontext():
            return run_in_thread(
                lambda: LLM(
                    model,
                    progress=progress,
                    **options.load.keywords(),
                    **options.adapters.keywords(),
                )
            )


def defaults_of(spec: ModelSpec, options: ServeOptions, method: MethodSpec) -> MethodSpec:
    """Return the default method; block-causal models have their exact cache unless one is chosen.

    Raises ConfigError for an algorithm of SGLang's that does not suit the model.
    """
    flags = options.method
    if flags.dllm_algorithm is not None:
        from unmask.server.sglang_algorithms import for_model

        config = read_config(flags.dllm_algorithm_config)
        method = for_model(method, flags.dllm_algorithm, config, spec)
    if flags.cache is not None or spec.block_size is None:
        return method
    return method.with_values({"cache": "block_causal"})


def settings_of(
    options: ServeOptions, spec: ModelSpec, model: str, defaults: MethodSpec, access: Access
) -> ServerSettings:
    """Return the settings of the app. Raises ConfigError."""
    from unmask.server.capabilities import refusal
    from unmask.server.cors import allowed_origins
    from unmask.server.settings import ServerSettings
    from unmask.server.tracing import check_endpoint

    why = refusal(defaults.cache_name, spec)
    if why is not None:
        raise ConfigError(f"--cache {defaults.cache_name}: {why}")
    limits = options.server.limits
    if limits.max_model_len is not None and limits.max_model_len > spec.max_length:
        raise ConfigError(
            f"--max-model-len {limits.max_model_len} is more than the model's {spec.max_length}; "
            f"lower it or leave it out"
        )
    names = names_of(options, model)
    return ServerSettings(
        models=names,
        defaults=defaults,
        limits=limits,
        access=access,
        weights_folder=weights_folder(options, access),
        calibration=calibration_of(options, model),
        origins=allowed_origins(options.server.allowed_origins),
        otlp_endpoint=check_endpoint(options.server.otlp_traces_endpoint),
    )


def calibration_of(options: ServeOptions, model: str) -> Calibration | None:
    """Return the calibration of decisions. Raises ConfigError if it is not that of the model's weights."""
    from unmask.decisions.calibration import calibration_for
    from unmask.models import resolve_model

    if options.server.calibration is None:
        return None
    folder = None if options.load.lora else resolve_model(model, options.load.revision)
    return calibration_for(options.server.calibration, folder, model)


def weights_folder(options: ServeOptions, access: Access) -> Path | None:
    """Return the folder of POST /update_weights. Raises ConfigError where updates cannot work."""
    folder = options.server.weights_folder
    if folder is None:
        return None
    if access.key_digest is None:
        raise ConfigError(
            f"--weights-folder {folder} needs an API key, as who may exchange the weights decides all "
            f"answers; set {KEY_VARIABLE} or --api-key"
        )
    if not folder.expanduser().is_dir():
        raise ConfigError(f"--weights-folder {folder} is no folder; create it first")
    if any(each is not None for each in dataclasses.astuple(options.replicas)[:3]):
        raise ConfigError("--weights-folder is not for several replicas; leave one out")
    return folder


def facts(
    llm: LLM, model: str, settings: ServerSettings, options: ServeOptions, url: str
) -> list[str]:
    """Return the start message, line by line."""
    defaults, limits = settings.defaults.bind(llm.spec.block_size), settings.limits
    count = sum(value.numel() for value in llm.model.parameters())
    size = llm.model.ranks.size
    parameters = f"{count:,} parameters" + (f" in rank 0 of {size}" if size > 1 else "")
    names = ", ".join(settings.models)
    named = "" if names == model else f", served as {names}"
    shown = {
        "model": f"{model} ({llm.spec.family}, {parameters}){named}",
        "dtype": f"{str(llm.model.dtype).removeprefix('torch.')} on {llm.model.device}",
        "decoder": defaults.label,
        "cache": f"{defaults.describe_cache()} ({'exact' if defaults.cache.exact else 'approximate'})",
        "canvas": f"{limits.max_model_len or llm.spec.max_length:,} positions at most",
        "batch": f"{options.engine.max_num_seqs} sequences a forward, queue of {options.engine.max_queue}",
        "access": describe_access(settings.access, options.server.host),
        **({"config": str(options.config)} if options.config else {}),
        "url": url,
    }
    return [f"{key:<8} {value}" for key, value in shown.items()]


# Replicas


def counts_of(config: ReplicaConfig, tensor_parallel_size: int) -> tuple[int, int] | None:
    """Return the minimum and maximum number of replicas, None without replicas. Raises ConfigError."""
    flags = {
        "--replicas": config.replicas,
        "--min-replicas": config.min_replicas,
        "--max-replicas": config.max_replicas,
    }
    counts = {flag: value for flag, value in flags.items() if value is not None}
    least, most = config.min_replicas or 1, config.max_replicas
    delays = {"--upscale-delay": config.upscale_delay, "--downscale-delay": config.downscale_delay}
    for flag, delay in delays.items():
        if delay is not None and most in (None, least):
            raise ConfigError(
                f"{flag} {delay} has no effect on a fixed number of replicas; leave it out, or add "
                f"--max-replicas"
            )
    if not counts:
        return None
    if tensor_parallel_size > 1:
        raise ConfigError(
            f"{next(iter(counts))} and --tensor-parallel-size {tensor_parallel_size}: a replica is one "
            f"process; give one of them"
        )
    if config.replicas is not None:
        if len(counts) > 1:
            other = list(counts)[1]
            raise ConfigError(
                f"--replicas {config.replicas} is a fixed number and {other} {counts[other]} a limit; "
                f"use --replicas, or --min-replicas and --max-replicas"
            )
        return config.replicas, config.replicas
    if most is None:
        raise ConfigError(f"--min-replicas {least} needs --max-replicas")
    if least > most:
        raise ConfigError(f"--min-replicas {least} is more than --max-replicas {most}")
    return least, most


def serve_replicas(
    options: ServeOptions, model: str, settings: ServerSettings, counts: tuple[int, int]
) -> None:
    """Serve until a signal. Raises ConfigError and DependencyError."""
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}  # drawn at every start and never stored
    os.environ.update(RAYS_OWN | token)  # before the import of ray, which reads them
    try:
        import ray  # noqa: F401
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"--replicas needs Ray Serve ({error.name}): pip install 'unmask[serve,ray]'"
        ) from None
    from unmask.models import torch_device
    from unmask.server import replicas as replicas

    server, delays = options.server, options.replicas
    port = free_port(server.host, server.port)
    plan = replicas.ReplicaPlan(
        model=model,
        loading={**options.load.keywords(), **options.adapters.keywords()},
        settings=settings,
        engine=options.engine,
        least=counts[0],
        most=counts[1],
        upscale_delay_s=UPSCALE_DELAY_S if delays.upscale_delay is None else delays.upscale_delay,
        downscale_delay_s=(
            DOWNSCALE_DELAY_S if delays.downscale_delay is None else delays.downscale_delay
        ),
        num_cpus=replicas.cpus_for(counts[1]),
        num_gpus=int(torch_device(options.load.device).type == "cuda"),
        drain_timeout_s=server.shutdown_timeout,
        logs_requests=server.log_requests,
        log_format=server.log_format,
    )
    host = f"[{server.host}]" if ":" in server.host else server.host
    for key, value in {
        "model": model,
        "replicas": str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}",
        "access": describe_access(settings.access, server.host),
        **({"config": str(options.config)} if options.config else {}),
        "url": f"http://{host}:{port}",
    }.items():
        print(f"{key:<8} {value}", flush=True)
    replicas.run(plan, server.host, port, lambda: print("ready", flush=True))


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. Raises ConfigError when it is in use."""
    from unmask.server.process import bind

    bound: socket.socket = bind(host, port)
    with bound:
        return int(bound.getsockname()[1])
