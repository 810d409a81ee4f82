"""`unmask serve`: a model behind HTTP."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unmask.cli import launcher, serve_replicas
from unmask.cli.key_value import WORD
from unmask.engine.config import EngineConfig
from unmask.errors import ConfigError, DependencyError
from unmask.knobs import Source

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.method import MethodSpec
    from unmask.models.spec import ModelSpec
    from unmask.server.settings import Access, ServerSettings

KEY_VARIABLE = "UNMASK_API_KEY"
FAILED_STATUS = 1
"""Of a server whose engine has failed; systemd and the like then start another."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class ServeOptions:
    """The flags, as given."""

    words: list[str] | None
    config: Path | None
    model: str | None
    decoder: str | None
    cache: str | None
    algorithm: str | None
    algorithm_config: Path | None
    host: str
    port: int
    served_names: list[str] | None
    max_num_seqs: int
    max_queue: int
    max_num_batched_tokens: int
    max_wait: float
    steps_per_round: int
    kv_bytes: int | None
    prefix_caching: bool
    max_model_len: int | None
    dtype: str | None
    device: str | None
    quantization: str | None
    tensor_parallel_size: int
    replicas: int | None
    min_replicas: int | None
    max_replicas: int | None
    upscale_delay: float | None
    downscale_delay: float | None
    api_key: str | None
    allow_unauthenticated: bool
    allowed_hosts: list[str] | None
    public_metrics: bool
    public_page: bool
    request_timeout: float
    shutdown_timeout: float
    max_body_bytes: int
    log_requests: bool
    trust_remote_code: bool


def run(wanted: ServeOptions) -> None:
    """Load, listen, serve until a signal. What can be wrong is found before the model is read.

    Raises typer.Exit with `FAILED_STATUS` when the engine has failed.
    """
    if wanted.trust_remote_code:
        raise ConfigError(
            "--trust-remote-code has no effect: a checkpoint's own code is never run; leave it out"
        )
    need_extra()
    model, words = split(wanted)
    method = method_of(wanted, words)
    for note in method.notes:
        print(f"unmask: note: {note.message}", file=sys.stderr)
    access = access_of(wanted)
    counts = serve_replicas.counts_of(wanted)
    from unmask.server.process import bind, server_of, url_of

    if counts is not None:
        from unmask.models import read_spec

        spec = read_spec(model)
        settings = settings_of(wanted, spec, model, defaults_of(spec, wanted, method), access)
        serve_replicas.run(
            wanted, model, loading_of(wanted), engine_config(wanted), settings, counts
        )
        return
    launcher.take(wanted.tensor_parallel_size, model, loading_of(wanted))
    bound = bind(wanted.host, wanted.port)
    with bound:
        llm = load(wanted, model)
        defaults = defaults_of(llm.spec, wanted, method)
        settings = settings_of(wanted, llm.spec, model, defaults, access)
        from unmask.engine.engine import Engine
        from unmask.server.app import create_app

        app = create_app(llm, Engine(llm, engine_config(wanted)), settings)
        set_up_log(wanted.log_requests)
        for line in facts(llm, model, settings, wanted, url_of(bound)):
            print(line, flush=True)
        server = server_of(
            app,
            drain_timeout_s=wanted.shutdown_timeout,
            on_ready=lambda: print("ready", flush=True),
        )
        server.run(sockets=[bound])
    if server.has_failed:
        raise typer.Exit(FAILED_STATUS)


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
    """Print the reference page, or that of the metrics; they are the same for every model."""
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


def split(wanted: ServeOptions) -> tuple[str, dict[str, str]]:
    """The model, and the knobs among the words. Raises ConfigError."""
    model, knobs = wanted.model, dict[str, str]()
    for word in wanted.words or ():
        match = WORD.fullmatch(word)
        if match is not None:
            knobs[match[1].replace("-", "_")] = match[2]
        elif model is None or model == word:
            model = word
        else:
            raise ConfigError(f"{word!r} and {model!r} are two models; give one of them")
    return model or "demo", knobs


def method_of(wanted: ServeOptions, words: Mapping[str, str]) -> MethodSpec:
    """Return the default method, in our words or in SGLang's. Raises ConfigError."""
    from unmask.method import MethodSpec

    names = {"decoder": wanted.decoder, "cache": wanted.cache}
    own = Source({key: name for key, name in names.items() if name is not None})
    if wanted.algorithm is None:
        if wanted.algorithm_config is not None:
            raise ConfigError("--dllm-algorithm-config needs --dllm-algorithm")
        return MethodSpec.parse(Source(words), own)
    if wanted.decoder is not None:
        raise ConfigError(
            f"--decoder {wanted.decoder} and --dllm-algorithm {wanted.algorithm} are two ways to say one "
            f"thing; give one of them"
        )
    from unmask.server.sglang_algorithms import from_sglang

    config = from_sglang(wanted.algorithm, read_config(wanted.algorithm_config))
    return MethodSpec.parse(Source(words), own, config)


def read_config(path: Path | None) -> Mapping[str, Any] | None:
    """A YAML file's mapping. Raises ConfigError."""
    if path is None:
        return None
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--dllm-algorithm-config {path} cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--dllm-algorithm-config {path} must hold key: value lines")
    return found


def access_of(wanted: ServeOptions) -> Access:
    """Who may call. Raises ConfigError for a server that others reach without a key."""
    from unmask.server.settings import Access

    key = wanted.api_key if wanted.api_key is not None else os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise ConfigError(f"the API key is empty; leave out --api-key and unset {KEY_VARIABLE}")
    if key is not None:
        return Access(
            key_digest=Access.digest(key.strip()),
            is_metrics_public=wanted.public_metrics,
            is_page_public=wanted.public_page,
            page_token=secrets.token_urlsafe(),
        )
    for flag, given in (("metrics", wanted.public_metrics), ("page", wanted.public_page)):
        if given:
            raise ConfigError(f"--public-{flag} has no effect without an API key; leave it out")
    is_local = is_loopback(wanted.host)
    if not is_local and not wanted.allow_unauthenticated:
        raise ConfigError(
            f"--host {wanted.host} lets other machines in without an API key; set {KEY_VARIABLE} or "
            f"--api-key, use --host 127.0.0.1, or say --allow-unauthenticated"
        )
    if is_local and wanted.allow_unauthenticated:
        raise ConfigError(f"--allow-unauthenticated has no effect on --host {wanted.host}")
    own = {*LOCAL_NAMES, wanted.host.lower()} if is_local else set[str]()
    hosts = frozenset(own | {name.lower() for name in (wanted.allowed_hosts or ())})
    return Access(hosts=hosts or None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_to(host: str) -> str:
    """Who may call a server without a key, as it says when it starts."""
    return "open" if is_loopback(host) else f"OPEN, without a key, to all who reach {host}"


def load(wanted: ServeOptions, model: str) -> LLM:
    """The model."""
    from unmask.view.progress import LoadingView

    with LoadingView(model) as progress:
        from unmask.engine.llm import LLM
        from unmask.engine.threads import run_in_thread

        return run_in_thread(lambda: LLM(model, progress=progress, **loading_of(wanted)))


def engine_config(wanted: ServeOptions) -> EngineConfig:
    """Return the sizes of the engine, here or in every replica."""
    return EngineConfig(
        max_num_seqs=wanted.max_num_seqs,
        max_queue=wanted.max_queue,
        max_num_batched_tokens=wanted.max_num_batched_tokens,
        max_wait=wanted.max_wait,
        steps_per_round=wanted.steps_per_round,
        kv_cache_memory_bytes=wanted.kv_bytes,
        enable_prefix_caching=wanted.prefix_caching,
    )


def loading_of(wanted: ServeOptions) -> dict[str, Any]:
    """What `LLM` is told beside the model's name."""
    return {
        "dtype": wanted.dtype,
        "device": wanted.device,
        "quantization": wanted.quantization,
        "tensor_parallel_size": wanted.tensor_parallel_size,
    }


def defaults_of(spec: ModelSpec, wanted: ServeOptions, method: MethodSpec) -> MethodSpec:
    """Return the method of requests that choose none; its cache is exact unless one was chosen."""
    if wanted.cache is not None or spec.block_size is None:
        return method
    return method.with_values({"cache": "block_causal"})


def settings_of(
    wanted: ServeOptions, spec: ModelSpec, model: str, defaults: MethodSpec, access: Access
) -> ServerSettings:
    """Everything that the app is told. Raises ConfigError."""
    from unmask.server.capabilities import refusal
    from unmask.server.settings import Limits, ServerSettings

    why = refusal(defaults.cache_name, spec)
    if why is not None:
        raise ConfigError(f"--cache {defaults.cache_name}: {why}")
    if wanted.max_model_len is not None and wanted.max_model_len > spec.max_length:
        raise ConfigError(
            f"--max-model-len {wanted.max_model_len} is more than the model's {spec.max_length}"
        )
    own = Path(model).name if Path(model).exists() else model
    names = tuple(wanted.served_names or [own])
    limits = Limits(
        max_body_bytes=wanted.max_body_bytes,
        timeout_s=wanted.request_timeout,
        max_model_len=wanted.max_model_len,
    )
    return ServerSettings(models=names, defaults=defaults, limits=limits, access=access)


def set_up_log(log_requests: bool) -> None:
    """Log lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (
        ("unmask", logging.INFO if log_requests else logging.WARNING),
        ("uvicorn", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def facts(
    llm: LLM, model: str, settings: ServerSettings, wanted: ServeOptions, url: str
) -> list[str]:
    """What is served, line by line."""
    defaults, limits = settings.defaults.bind(llm.spec.block_size), settings.limits
    count = sum(value.numel() for value in llm.model.parameters())
    size = llm.model.ranks.size
    held = f"{count:,} parameters" + (f" in rank 0 of {size}" if size > 1 else "")
    names = ", ".join(settings.models)
    named = "" if names == model else f", served as {names}"
    shown = {
        "model": f"{model} ({llm.spec.family}, {held}){named}",
        "dtype": f"{str(llm.model.dtype).removeprefix('torch.')} on {llm.model.device}",
        "decoder": defaults.label,
        "cache": f"{defaults.describe_cache()} ({'exact' if defaults.cache.exact else 'approximate'})",
        "canvas": f"{limits.max_model_len or llm.spec.max_length:,} positions at most",
        "batch": f"{wanted.max_num_seqs} sequences a forward, {wanted.max_queue} may wait",
        "access": "API key" if settings.access.key_digest else open_to(wanted.host),
        **({"config": str(wanted.config)} if wanted.config else {}),
        "url": url,
    }
    return [f"{key:<8} {value}" for key, value in shown.items()]
