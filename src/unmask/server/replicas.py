"""Replicas: the same app in several processes, behind Ray Serve's proxy.

Every replica is a whole server of its own: model, engine, queue. The proxy sends a request to the replica
with the fewest under way; streams and hang-ups pass through. A replica whose engine has failed answers
those that it has and ends, before it draws more requests by being idle; Ray starts another. A restart
takes them in turn: each finishes what it has, and the next goes when its successor is up.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
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
from unmask.server.settings import ServerSettings

NAME = "unmask"
LIGHT_REQUESTS = 32
"""How many requests that decode nothing a replica answers beside those that do."""
HEALTH_PERIOD_S = 5.0
FAILED_GRACE_S = 0.5
"""How long a replica whose engine has failed has to send its last answers."""
METRICS_TIMEOUT_S = 5.0
QUIET = {"log_level": "WARNING", "enable_access_log": False}
PROXY_QUEUE = 64
"""Requests that the proxy holds when every replica has all that it takes; more are answered 429."""


@dataclass(frozen=True)
class ReplicaPlan:
    """What each replica serves and how many there are.

    `loading`: keywords of `LLM` beside the model; `engine`: sizes of each engine; a replica gets `num_cpus`
    threads and `num_gpus` whole devices. From `least` to `most` of them run, as many as keep each busy with
    the engine's `max_num_seqs` requests: one is added after `upscale_delay_s` with more of them than that,
    and taken away after `downscale_delay_s` with fewer.
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


class LeastLoaded(FIFOMixin, RequestRouter):
    """Asks every replica how many requests it has, and takes the one with the fewest."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All of them, in one rank: Serve takes the least loaded of a rank that has room.

        Of equally loaded ones it takes the first, so their order is drawn.
        """
        if not candidate_replicas:
            return []
        return [random.sample(candidate_replicas, len(candidate_replicas))]


class Replica:
    """What Ray asks of a replica, beside the app's routes."""

    app: FastAPI

    def __init__(self, generation: int) -> None:
        self.generation = generation

    def check_health(self) -> None:
        """Raise EngineError when the engine is dead; Ray then starts another replica."""
        failure = self.app.state.service.engine.failure
        if failure is not None:
            raise EngineError(f"the engine has failed: {failure}")

    def metrics_text(self) -> tuple[str, str]:
        """The replica's name, and its metrics in Prometheus' format."""
        text = self.app.state.service.metrics.text()
        name = serve.get_replica_context().replica_id.unique_id
        return name, text if isinstance(text, str) else text.decode()


def deployment_of(plan: ReplicaPlan, generation: int) -> Any:
    """The application that Serve runs. Another `generation` of the same plan replaces its replicas."""

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
    made = serve.deployment(
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
    return made(serve.ingress(build)(Replica)).bind(generation)


def build_app(plan: ReplicaPlan) -> FastAPI:
    """In a replica: the model, its engine and the app of both."""
    import torch

    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM
    from unmask.engine.threads import run_in_thread
    from unmask.server.app import create_app

    logger = logging.getLogger("unmask")
    logger.addHandler(logging.StreamHandler())  # Ray adds who says it
    logger.setLevel(logging.INFO if plan.logs_requests else logging.WARNING)
    logger.propagate = False
    torch.set_num_threads(max(1, int(plan.num_cpus)))
    llm = run_in_thread(lambda: LLM(plan.model, **plan.loading))
    engine = Engine(llm, plan.engine)
    engine.on_failure = leave
    app = create_app(llm, engine, plan.settings)
    app.router.routes.insert(0, Route("/metrics", all_metrics))  # before the replica's own
    return app


def leave() -> None:
    """End this replica's process soon, whatever its threads do."""
    timer = threading.Timer(FAILED_GRACE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


async def all_metrics(request: Request) -> Response:
    """The metrics of every replica, each with a label that says whose."""
    handle = serve.get_deployment_handle(NAME, NAME)
    told = await handle.broadcast("metrics_text").results_async(timeout_s=METRICS_TIMEOUT_S)
    return Response(joined(told), media_type=CONTENT_TYPE_LATEST)


def run(plan: ReplicaPlan, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Start Ray on this machine, serve until SIGTERM or SIGINT, then drain and stop all of it.

    SIGHUP restarts the replicas one after the other. Raises RuntimeError when no replica comes up.
    """
    wishes: list[int] = []
    wake = threading.Event()

    def wish(number: int, frame: FrameType | None) -> None:
        wishes.append(number)
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
            signal.signal(number, wish)
        on_ready()
        while True:
            wake.wait()
            wake.clear()
            if any(number != signal.SIGHUP for number in wishes):
                break
            if wishes:
                wishes.clear()
                generation += 1
                serve.run(deployment_of(plan, generation), name=NAME, logging_config=QUIET)
        serve.delete(NAME)
    finally:
        shut_down: Callable[[], None] = serve.shutdown
        shut_down()
        ray.shutdown()


def cpus_for(most: int) -> float:
    """What each of `most` replicas may have of this machine's cores."""
    cores = os.cpu_count() or 1
    return float(cores // most) if cores >= most else round(cores / most, 2)


def joined(told: Sequence[tuple[str, str]]) -> bytes:
    """`(replica, its metrics in Prometheus' text format)` as one text; label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Joined(told))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, told: Sequence[tuple[str, str]]) -> None:
        self.told = told

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.told:
            for family in text_string_to_metric_families(text):
                kept = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    kept.add_sample(sample.name, labels, sample.value)
        yield from families.values()
