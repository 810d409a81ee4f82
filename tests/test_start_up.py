"""The benchmark of start-up: its table and exit status, from times that are given."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "start_up.py"


@pytest.fixture(scope="module")
def start_up():
    spec = importlib.util.spec_from_file_location("start_up_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(("factor", "are_met"), [(0.99, True), (1.01, False)])
@pytest.mark.parametrize("command", ["unmask --help", "unmask generate", "unmask serve"])
def test_a_missed_goal_of_any_command_is_reported(start_up, command, factor, are_met):
    slow = start_up.GOALS[command] * factor * 2.0
    found = {name: [start_up.Times(0.1, 9.0)] for name in start_up.PROGRAMS}
    found[start_up.TORCH] = [start_up.Times(second, 3.0) for second in (1.9, 2.0, 7.0)]
    found[command] = [start_up.Times(second, 3.0) for second in (0.0, slow, 99.0)]
    lines, is_good = start_up.report(found)
    assert is_good is are_met
    line = next(line for line in lines if line.startswith(command))
    assert f"{slow / 2.0:.2f}" in line
    assert f"{start_up.GOALS[command]:g}" in line


def test_a_program_is_timed_and_a_failure_is_no_time(start_up):
    times = start_up.run_to_end([sys.executable, "-c", "sum(range(10**6))"])
    assert times.processor_s > 0
    assert times.elapsed_s > 0
    with pytest.raises(start_up.subprocess.CalledProcessError):
        start_up.run_to_end([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_is_timed_until_it_answers_and_then_ended(start_up):
    code = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"url      http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""
    times = start_up.run_until_healthy([sys.executable, "-c", code])
    assert times.processor_s > 0
    with pytest.raises(RuntimeError, match="no port"):
        start_up.run_until_healthy([sys.executable, "-c", "raise SystemExit('no port')"])
