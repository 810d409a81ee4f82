"""`unmask serve --replicas`: the counts, the merged metrics, and two replicas on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psutil

from unmask.cli.main import make_app
from unmask.cli.serve import RAYS_OWN
from unmask.engine.config import EngineConfig
from unmask.errors import ConfigError
from unmask.server.metrics import merge_metrics

PROMPT = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"
BODY = {"model": "demo", "prompt": PROMPT, "max_tokens": 48, "decoder": "vanilla"}
ENDED = re.compile(r'vllm:request_success_total\{finished_reason="(\w+)".*replica="(\w+)"\} (\S+)')


def serve(**flags: object) -> None:
    """Run `unmask serve` with flags, without the presentation of its errors."""
    make_app()(["serve", *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"replicas": 2, "max_replicas": 3}, "--replicas 2 is a fixed number"),
        ({"min_replicas": 2}, "--min-replicas 2 needs --max-replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "--min-replicas 3 is more than --max-replicas 2"),
        ({"replicas": 2, "tensor_parallel_size": 2}, "a replica is one process"),
        ({"replicas": 2, "upscale_delay": 1.0}, "--upscale-delay 1.0 has no effect"),
        ({"downscale_delay": 1.0}, "--downscale-delay 1.0 has no effect on a fixed number"),
        ({"max_replicas": 1, "upscale_delay": 0.0}, "--upscale-delay 0.0 has no effect"),
    ],
)
def test_counts_that_contradict_are_refused(flags: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        serve(**flags)


def test_every_option_of_the_engine_reaches_the_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra ray: pip install '.[ray]'")
    plans = []
    for name in (*RAYS_OWN, "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("unmask.server.replicas.run", lambda plan, *_: plans.append(plan))
    limits = {"min_replicas": 1, "max_replicas": 3, "upscale_delay": 0.0}
    sizes = {"max_num_seqs": 5, "max_queue": 6, "max_num_batched_tokens": 7}
    sizes["kv_cache_memory_bytes"] = 8
    rounds = {"max_wait": 0.5, "steps_per_round": 4}
    serve(port=0, enable_prefix_caching=False, shutdown_timeout=9.0, **limits, **sizes, **rounds)
    (plan,) = plans
    assert (plan.least, plan.most) == (1, 3)
    assert (plan.upscale_delay_s, plan.downscale_delay_s) == (0.0, 600.0)
    assert plan.engine == EngineConfig(
        max_num_seqs=5,
        max_queue=6,
        max_num_batched_tokens=7,
        kv_cache_memory_bytes=8,
        max_wait=0.5,
        steps_per_round=4,
        enable_prefix_caching=False,
    )
    assert plan.drain_timeout_s == 9.0


def test_metrics_of_replicas_are_merged_under_a_label() -> None:
    text = '# HELP a:b_total Some.\n# TYPE a:b_total counter\na:b_total{{route="/x"}} {}\n'
    merged = merge_metrics([("one", text.format(2.0)), ("two", text.format(3.0))]).decode()
    assert merged.count("# TYPE") == 1
    assert 'a:b_total{replica="one",route="/x"} 2.0' in merged
    assert 'a:b_total{replica="two",route="/x"} 3.0' in merged


@dataclass
class Server:
    process: subprocess.Popen
    url: str

    def post(self, body: dict) -> dict:
        import httpx2

        answer = httpx2.post(f"{self.url}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ended(self, how: str) -> dict[str, float]:
        """Requests that ended so, by replica."""
        import httpx2

        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        found = ENDED.findall(text)
        names = set(re.findall(r'replica="(\w+)"', text))
        counts = dict.fromkeys(names, 0.0)
        return counts | {name: float(count) for kind, name, count in found if kind == how}

    def replicas(self) -> set[str]:
        """The names of those that answer."""
        return set(self.ended("stop"))

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those that the command started whose name begins so."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith(name)]


@dataclass
class Load:
    """Threads that ask on and on; what was answered, and when."""

    server: Server
    body: dict
    answers: list[tuple[float, int, str]] = field(default_factory=list)

    @contextmanager
    def running(self, num_threads: int) -> Iterator[None]:
        import httpx2

        is_over = threading.Event()

        def ask() -> None:
            url = f"{self.server.url}/v1/completions"
            while not is_over.is_set():
                answer = httpx2.post(url, json=self.body, timeout=120)
                self.answers.append((time.monotonic(), answer.status_code, answer.text))

        with ThreadPoolExecutor(num_threads) as pool:
            asked = [pool.submit(ask) for _ in range(num_threads)]
            try:
                yield
            finally:
                is_over.set()
            for one in asked:
                one.result()

    def failed(self) -> list[tuple[float, int, str]]:
        return [answer for answer in self.answers if answer[1] != 200]


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.5)


BREAKABLE = """
import os, sys
from unmask.cli.main import main
from unmask.cli.serve import RAYS_OWN
os.environ.update(RAYS_OWN | {"RAY_AUTH_TOKEN": "a" * 64})  # Ray reads them when it is imported
from unmask.server import replicas

whole = replicas.build_app

def build_app(plan):
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    app = whole(plan)
    batch = app.state.service.engine._batch

    async def break_engine(request):
        def step():
            raise RuntimeError("the device fell off")
        batch.step = step
        return PlainTextResponse("the next forward fails")

    app.router.routes.insert(0, Route("/break", break_engine))
    return app

replicas.build_app = build_app
sys.exit(main(sys.argv[1:]))
"""
"""`unmask`, whose replicas have a route that breaks their engine."""


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[Server]:
    """A server that has come up; it must end well."""
    pytest.importorskip("ray.serve", reason="needs the extra ray: pip install '.[ray]'")
    log, script = folder / "log", folder / "breakable.py"
    script.write_text(BREAKABLE, encoding="utf-8")
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, script, "serve", "demo", "--port", "0", "--device", "cpu", *flags],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(log, process, "ready\n", 240)
        url = re.search(r"^url +(\S+)$", log.read_text(), re.MULTILINE)
        assert url is not None
        yield Server(process, url[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("ray"), "--replicas", "2") as found:
        yield found


def wait_for(log: Path, process: subprocess.Popen, text: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
def test_two_replicas_answer_alike_and_share_the_load(server: Server) -> None:
    before = server.ended("stop")
    assert len(before) == 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.post, [BODY] * 20))
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    after = server.ended("stop")
    shares = sorted(after[name] - before[name] for name in after)
    assert sum(shares) == 20
    assert shares[0] >= 6


@pytest.mark.slow
def test_a_stream_passes_through_and_a_hang_up_aborts_its_request(server: Server) -> None:
    import httpx2

    whole = server.post(BODY)["choices"][0]["text"]
    url, body = f"{server.url}/v1/completions", BODY | {"stream": True}
    with httpx2.stream("POST", url, json=body, timeout=120) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert "".join(texts) == whole
    before = sum(server.ended("abort").values())
    long = body | {"decoder": "ar", "max_tokens": 200, "stream_mode": "canvas"}
    with httpx2.stream("POST", url, json=long, timeout=120) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 60
    while sum(server.ended("abort").values()) == before:
        assert time.monotonic() < until, "the engine goes on decoding"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_restart_replaces_every_replica_and_fails_no_request(server: Server) -> None:
    old = set(server.ended("stop"))
    server.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 240
    while not (new := set(server.ended("stop"))).isdisjoint(old) or len(new) < 2:
        assert server.post(BODY | {"max_tokens": 16})["choices"]
        assert time.monotonic() < until, (old, new)


@pytest.mark.slow
def test_rays_ports_listen_on_loopback_and_serves_own_want_a_token(server: Server) -> None:
    grpc = pytest.importorskip("grpc")
    everywhere, num_local = [], 0
    for process in server.processes():
        for socket in process.net_connections("tcp"):
            if socket.status == "LISTEN" and socket.laddr.ip.removeprefix("::ffff:") == "127.0.0.1":
                num_local += 1
            elif socket.status == "LISTEN":
                everywhere.append((process.name(), socket.laddr.port))
    assert num_local >= 8
    assert [name.partition(":unmask")[0] for name, _ in everywhere] == ["ray::ServeReplica"] * 2
    for _, port in everywhere:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.slow
def test_a_killed_replica_is_replaced_and_the_other_answers(server: Server) -> None:
    old = server.replicas()
    load = Load(server, BODY | {"max_tokens": 16})
    with load.running(2):
        until(lambda: len(load.answers) > 4, 60, "nothing is answered")
        killed_s = time.monotonic()
        server.processes("ray::ServeReplica")[0].kill()
        until(lambda: len(server.replicas() - old) == 1, 120, "nobody came for the killed one")
        until(lambda: len(server.replicas()) == 2, 60, "there are not two again")
        num_before = len(load.answers)
        until(lambda: len(load.answers) > num_before + 4, 60, "nothing is answered any more")
    assert len(load.failed()) <= 2, "only those that it had"
    assert all(second < killed_s + 5 for second, _, _ in load.failed())
    assert len([second for second, _, _ in load.answers if second > killed_s]) > 4


@pytest.mark.slow
def test_a_replica_whose_engine_died_is_replaced_and_the_other_answers(server: Server) -> None:
    import httpx2

    old = server.replicas()
    load = Load(server, BODY | {"max_tokens": 16})
    with load.running(2):
        until(lambda: len(load.answers) > 4, 60, "nothing is answered")
        broken_s = time.monotonic()
        assert httpx2.get(f"{server.url}/break", timeout=60).status_code == 200
        until(lambda: len(server.replicas() - old) == 1, 120, "nobody came for the broken one")
        until(lambda: len(server.replicas()) == 2, 60, "there are not two again")
        num_before = len(load.answers)
        until(lambda: len(load.answers) > num_before + 4, 60, "nothing is answered any more")
    failed = load.failed()
    assert any("engine_dead" in text for _, _, text in failed), "who waits for it is told so"
    assert all(status in (500, 503) for _, status, _ in failed)
    assert failed[-1][0] - failed[0][0] < 3, "it left at once"
    assert failed[0][0] > broken_s


@pytest.mark.slow
def test_replicas_come_with_the_load_and_go_when_there_is_none(tmp_path: Path) -> None:
    limits = ["--min-replicas", "1", "--max-replicas", "2", "--max-num-seqs", "1"]
    delays = ["--upscale-delay", "1", "--downscale-delay", "1"]
    with started(tmp_path, *limits, *delays) as server:
        (first,) = server.replicas()
        load = Load(server, BODY)
        with load.running(6):
            until(lambda: len(server.replicas()) == 2, 120, "no second replica under load")
            (second,) = server.replicas() - {first}
            until(lambda: server.ended("stop")[second] > 0, 60, "the second one gets nothing")
        until(lambda: len(server.replicas()) == 1, 180, "two replicas with nothing to do")
        assert server.post(BODY)["choices"]
        assert not load.failed()
