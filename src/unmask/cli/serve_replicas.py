"""`unmask serve --replicas N`: what Ray Serve is told."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from unmask.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from unmask.cli.serve import ServeOptions
    from unmask.engine.config import EngineConfig
    from unmask.server.settings import ServerSettings

RAYS_OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_SERVE_ENABLE_HA_PROXY": "0",  # Ray's own proxy, not the GPL binary beside it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # this machine only: its ports listen on loopback
    "RAY_AUTH_MODE": "token",  # the one port that Serve opens everywhere wants a token
}
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 30.0, 600.0


def counts_of(wanted: ServeOptions) -> tuple[int, int] | None:
    """The fewest and the most replicas, None without any. Raises ConfigError."""
    given = {
        "--replicas": wanted.replicas,
        "--min-replicas": wanted.min_replicas,
        "--max-replicas": wanted.max_replicas,
    }
    is_fixed = wanted.max_replicas in (None, wanted.min_replicas or 1)
    delays = {"--upscale-delay": wanted.upscale_delay, "--downscale-delay": wanted.downscale_delay}
    for flag, delay in delays.items():
        if delay is not None and is_fixed:
            raise ConfigError(
                f"{flag} {delay} has no effect on a fixed number of replicas; leave it out, or give "
                f"--max-replicas"
            )
    if all(value is None for value in given.values()):
        return None
    if wanted.tensor_parallel_size > 1:
        name = next(name for name, value in given.items() if value is not None)
        raise ConfigError(
            f"{name} and --tensor-parallel-size {wanted.tensor_parallel_size}: a replica is one process; "
            f"give one of them"
        )
    if wanted.replicas is not None:
        other = next((name for name in list(given)[1:] if given[name] is not None), None)
        if other is not None:
            raise ConfigError(
                f"--replicas {wanted.replicas} is a fixed number and {other} {given[other]} a limit; "
                f"give --replicas, or --min-replicas and --max-replicas"
            )
        return wanted.replicas, wanted.replicas
    least, most = wanted.min_replicas or 1, wanted.max_replicas
    if most is None:
        raise ConfigError(f"--min-replicas {least} needs --max-replicas")
    if least > most:
        raise ConfigError(f"--min-replicas {least} is more than --max-replicas {most}")
    return least, most


def run(
    wanted: ServeOptions,
    model: str,
    loading: dict[str, Any],
    engine: EngineConfig,
    settings: ServerSettings,
    counts: tuple[int, int],
) -> None:
    """Serve until a signal. Raises ConfigError and DependencyError."""
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}  # in no file, and another one at every start
    os.environ.update(RAYS_OWN | token)  # before ray is imported, which reads them then
    try:
        import ray  # noqa: F401
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"--replicas needs Ray Serve ({error.name}): pip install 'unmask[serve,ray]'"
        ) from None
    from unmask.cli.serve import open_to
    from unmask.models import torch_device
    from unmask.server import replicas as replicas

    port = free_port(wanted.host, wanted.port)
    plan = replicas.ReplicaPlan(
        model=model,
        loading=loading,
        settings=settings,
        engine=engine,
        least=counts[0],
        most=counts[1],
        upscale_delay_s=UPSCALE_DELAY_S if wanted.upscale_delay is None else wanted.upscale_delay,
        downscale_delay_s=(
            DOWNSCALE_DELAY_S if wanted.downscale_delay is None else wanted.downscale_delay
        ),
        num_cpus=replicas.cpus_for(counts[1]),
        num_gpus=int(torch_device(wanted.device).type == "cuda"),
        drain_timeout_s=wanted.shutdown_timeout,
        logs_requests=wanted.log_requests,
    )
    said = str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"
    host = f"[{wanted.host}]" if ":" in wanted.host else wanted.host

    def ready() -> None:
        print("ready", flush=True)

    for key, value in {
        "model": model,
        "replicas": said,
        "access": "API key" if settings.access.key_digest else open_to(wanted.host),
        **({"config": str(wanted.config)} if wanted.config else {}),
        "url": f"http://{host}:{port}",
    }.items():
        print(f"{key:<8} {value}", flush=True)
    replicas.run(plan, wanted.host, port, ready)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigError when it is taken."""
    from unmask.server.process import bind

    bound: socket.socket = bind(host, port)
    with bound:
        return int(bound.getsockname()[1])
