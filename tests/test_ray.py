"""`unmask serve --replicas`: the counts, the joined metrics, and two replicas on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.cli.serve_app import serve
from unmask.errors import ConfigError
from unmask.server.joined import joined

PROMPT = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"
BODY = {"model": "demo", "prompt": PROMPT, "max_tokens": 48, "decoder": "vanilla"}
ENDED = re.compile(r'vllm:request_success_total\{finished_reason="(\w+)".*replica="(\w+)"\} (\S+)')


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"replicas": 2, "max_replicas": 3}, "--replicas 2 is a fixed number"),
        ({"min_replicas": 2}, "--min-replicas 2 needs --max-replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "--min-replicas 3 is more than --max-replicas 2"),
        ({"replicas": 2, "tensor_parallel_size": 2}, "a replica is one process"),
    ],
)
def test_counts_that_contradict_are_refused(flags: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        serve(**flags)


def test_metrics_of_replicas_are_joined_under_a_label() -> None:
    text = '# HELP a:b_total Some.\n# TYPE a:b_total counter\na:b_total{{route="/x"}} {}\n'
    told = joined([("one", text.format(2.0)), ("two", text.format(3.0))]).decode()
    assert told.count("# TYPE") == 1
    assert 'a:b_total{replica="one",route="/x"} 2.0' in told
    assert 'a:b_total{replica="two",route="/x"} 3.0' in told


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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("ray.serve", reason="needs the extra ray: pip install '.[ray]'")
    log = tmp_path_factory.mktemp("ray") / "log"
    command = ["serve", "demo", "--replicas", "2", "--port", "0", "--device", "cpu"]
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "unmask.cli.main", *command],
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
