"""Replicas: the same app in several processes, behind Ray Serve's proxy.

Every replica is a complete server: model, engine, queue. The proxy sends a request to the replica with the
fewest running requests; streams and disconnects pass through. A replica whose engine has failed answers its
requests and exits, before it attracts more of them by being idle; Ray starts another. A restart replaces
the replicas one after the other: each finishes its requests, and the next one stops when its successor is
up.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unmask.engine.config import EngineConfig
from unmask.errors import EngineError
from unmask.server.logs import set_up_log
from unmask.server.metrics import merge_metrics
from unmask.server.settings import LogFormat, ServerSettings

NAME = "unmask"
LIGHT_REQUESTS = 32
"""Requests per replica in addition to those that decode, such as health checks."""
HEALTH_PERIOD_S = 5.0
FAILED_GRACE_S = 0.5
"""Time that a replica whose engine has failed has for its last responses."""
METRICS_TIMEOUT_S = 5.0
QUIET = {"log_level": "WARNING", "enable_access_log": False}
PROXY_QUEUE = 64
"""Requests that the proxy queues while all replicas are full; more are answered with 429."""


@dataclass(frozen=True)
class ReplicaPlan:
    """The options of each replica, and the number of replicas.

    `loading`: keyword arguments of `LLM`; `engine`: sizes of each engine. A replica has `num_cpus` threads
    and `num_gpus` whole devices. Between `least` and `most` replicas run, with a target of
    `max_num_seqs` requests each: one is added after `upscale_delay_s` of a higher load, and one removed
    after `downscale_delay_s` of a lower load.
    """

    model: str
    loading: Mapping[str, Any]
    settings: ServerSettings
    engine: EngineConfig
    least: int
    most: int
    upscale_delay_s: float
    downscale_delay_s: float
    num_cpus: float
    num_gpus: int
    drain_timeout_s: float
    logs_requests: bool
    log_format: LogFormat


class LeastLoaded(FIFOMixin, RequestRouter):
    """A router that asks every replica for its load and chooses the least loaded."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return all replicas as one rank, of which Serve takes the least loaded with free capacity.

        Serve takes the first of equally loaded replicas, so their order is random.
        """
        if not candidate_replicas:
            return []
        return [random.sample(candidate_replicas, len(candidate_replicas))]


class Replica:
    """A replica: the app's routes, and the methods that Ray and other replicas call."""

    app: FastAPI

    def __init__(self, generation: int) -> None:
        self.generation = generation

    def check_health(self) -> None:
        """Raise EngineError if the engine has failed or stalled; Ray then starts another replica."""
        service = self.app.state.service
        if service.engine.failure is not None:
            raise EngineError(f"the engine has failed: {service.engine.failure}")
        stall = service.watchdog.stall()
        if stall is not None:
            raise EngineError(stall)

    def metrics_text(self) -> tuple[str, str]:
        """Return the name of the replica, and its metrics in Prometheus' text format."""
        text: bytes = self.app.state.service.metrics.text()
        return serve.get_replica_context().replica_id.unique_id, text.decode()


def deployment_of(plan: ReplicaPlan, generation: int) -> serve.Application:
    """Return the application that Serve runs; deploying another `generation` replaces all replicas."""

    def build() -> FastAPI:
        return build_app(plan)

    count: dict[str, Any] = {"num_replicas": plan.least}
    if plan.least < plan.most:
        scaling = {
            "min_replicas": plan.least,
            "max_replicas": plan.most,
            "initial_replicas": plan.least,
            "target_ongoing_requests": plan.engine.max_num_seqs,
            "upscale_delay_s": plan.upscale_delay_s,
            "downscale_delay_s": plan.downscale_delay_s,
        }
        count = {"autoscaling_config": scaling}
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus},
        max_ongoing_requests=(plan.engine.max_num_seqs + plan.engine.max_queue + LIGHT_REQUESTS),
        max_queued_requests=PROXY_QUEUE,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        request_router_config={"request_router_class": f"{__name__}:LeastLoaded"},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=plan.drain_timeout_s,
        max_constructor_retry_count=1,
        **count,
    )
    return deployment(serve.ingress(build)(Replica)).bind(generation)


def build_app(plan: ReplicaPlan) -> FastAPI:
    """Load the model in a replica, and return its app."""
    import torch

    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM
    from unmask.engine.threads import run_in_thread
    from unmask.server.app import create_app

    set_up_log(plan.log_format, log_requests=plan.logs_requests)
    torch.set_num_threads(max(1, int(plan.num_cpus)))
    llm = run_in_thread(lambda: LLM(plan.model, **plan.loading))
    engine = Engine(llm, plan.engine)
    engine.on_failure = exit_soon
    app = create_app(llm, engine, plan.settings)
    app.router.routes.insert(0, Route("/metrics", all_metrics))  # before the replica's own
    return app


def exit_soon() -> None:
    """Exit the process of this replica after `FAILED_GRACE_S`, whatever its threads do."""
    timer = threading.Timer(FAILED_GRACE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


async def all_metrics(request: Request) -> Response:
    """Return the metrics of all replicas, with a label `replica`."""
    handle = serve.get_deployment_handle(NAME, NAME)
    texts = await handle.broadcast("metrics_text").results_async(timeout_s=METRICS_TIMEOUT_S)
    return Response(merge_metrics(texts), media_type=CONTENT_TYPE_LATEST)


def run(plan: ReplicaPlan, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Start Ray on this machine, serve until SIGTERM or SIGINT, then drain and stop everything.

    SIGHUP restarts the replicas one after the other. Raises RuntimeError if no replica starts.
    """
    signals: list[int] = []
    wake = threading.Event()

    def handle_signal(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        wake.set()

    ray.init(
        address="local",
        namespace=NAME,
        include_dashboard=False,
        log_to_driver=True,
        logging_level=logging.WARNING,
    )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=QUIET,
        )
        generation = 0
        serve.run(deployment_of(plan, generation), name=NAME, logging_config=QUIET)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, handle_signal)
        on_ready()
        while True:
            wake.wait()
            wake.clear()
            if any(number != signal.SIGHUP for number in signals):
                break
            if signals:
                signals.clear()
                generation += 1
                serve.run(deployment_of(plan, generation), name=NAME, logging_config=QUIET)
        serve.delete(NAME)
    finally:
        shut_down: Callable[[], None] = serve.shutdown
        shut_down()
        ray.shutdown()


def cpus_for(most: int) -> float:
    """Return the number of cores for each of `most` replicas."""
    cores = os.cpu_count() or 1
    return float(cores // most) if cores >= most else round(cores / most, 2)
