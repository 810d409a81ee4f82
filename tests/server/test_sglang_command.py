"""SGLang's launch command, as its documents print it: it starts, and notes what has no effect."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import pytest

from unmask.cli.main import main
from unmask.models import BUNDLED
from unmask.server.auth import AccessMiddleware, is_this_machine
from unmask.server.settings import Access, ServerSettings

LAUNCH = """
python3 -m sglang.launch_server --trust-remote-code
  --model-path inclusionAI/LLaDA2.0-mini
  --dllm-algorithm LowConfidence
  --dllm-algorithm-config ./config.yaml
  --host 0.0.0.0
  --port 30000
"""
"""Document 000; the port alone is chosen by the test."""


def launch_words() -> list[str]:
    words = shlex.split(LAUNCH)[3:]
    return [*words[: words.index("--port")], "--port", "0"]


@pytest.fixture
def place(tmp_path):
    """A working directory with the model's folder and the file of the command."""
    (tmp_path / "inclusionAI").mkdir()
    (tmp_path / "inclusionAI" / "LLaDA2.0-mini").symlink_to(BUNDLED["demo"])
    (tmp_path / "config.yaml").write_text("threshold: 0.95\n")
    return tmp_path


def test_the_launch_command_starts_and_notes_what_has_no_effect(place):
    environment = {key: value for key, value in os.environ.items() if key != "UNMASK_API_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask.cli.main", "serve", *launch_words()],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = list(iter(process.stdout.readline, "ready\n"))
        assert lines, process.stderr.read()
        shown = dict(line.split(maxsplit=1) for line in lines)
        assert shown["access"] == "this machine only, without a key\n"
        assert shown["decoder"].startswith("threshold(threshold=0.95")
        port = shown["url"].strip().rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as reply:
            assert json.load(reply)["data"][0]["id"] == "LLaDA2.0-mini"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    notes = [line for line in log.splitlines() if line.startswith("unmask: note: ")]
    assert "--trust-remote-code has no effect" in notes[0]
    assert "only requests from this machine are answered" in notes[1]
    assert len(notes) == 2


def test_the_notes_come_before_the_model_is_looked_for(capsys):
    words = ["--trust-remote-code", "--no-dllm-fdfo", "--model-path", "/nowhere/at/all"]
    assert main(["serve", *words, "--port", "0"]) == 2
    first, second, error = capsys.readouterr().err.splitlines()
    assert first.startswith("unmask: note: --trust-remote-code has no effect")
    assert second.startswith("unmask: note: --no-dllm-fdfo has no effect")
    assert "/nowhere/at/all" in error


@pytest.mark.parametrize("more", [[], ["--replicas", "2"]])
def test_without_sglangs_algorithm_or_with_replicas_a_public_host_needs_a_key(
    capsys, monkeypatch, more
):
    monkeypatch.delenv("UNMASK_API_KEY", raising=False)
    words = ["--dllm-algorithm", "CadLLM", *more] if more else ["--trust-remote-code"]
    assert main(["serve", *words, "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "without an API key" in capsys.readouterr().err


def test_a_key_or_the_flag_opens_it_to_all(monkeypatch):
    from unmask.cli.serve import access_of, describe_access

    monkeypatch.delenv("UNMASK_API_KEY", raising=False)

    def access(**fields):
        common = {"host": "0.0.0.0", "api_key": None, "allowed_host": (), "public_page": False}
        common |= {"public_metrics": False, "allow_unauthenticated": False}
        return access_of(SimpleNamespace(**common | fields), is_sglang=True)

    assert access().is_local_only
    assert access().hosts == {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
    assert not access(allow_unauthenticated=True).is_local_only
    assert access(allow_unauthenticated=True).hosts is None
    assert not access(api_key="k").is_local_only
    assert not access(host="127.0.0.1").is_local_only
    assert describe_access(access(api_key="k"), "0.0.0.0") == "API key"
    assert "OPEN" in describe_access(access(allow_unauthenticated=True), "0.0.0.0")


@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        ("127.0.0.1", b"0.0.0.0:30000", None),
        ("127.8.9.1", b"localhost", None),
        ("::1", b"[::1]:30000", None),
        ("::ffff:127.0.0.1", b"127.0.0.1", None),
        ("192.168.1.5", b"127.0.0.1", 403),
        ("::ffff:10.0.0.1", b"localhost", 403),
        ("", b"localhost", 403),
        ("127.0.0.1", b"evil.example", 403),
    ],
)
def test_only_this_machine_is_answered(peer, host, status):
    access = Access(
        hosts=frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"}), is_local_only=True
    )
    settings = ServerSettings(models=("demo",), access=access)
    middleware = AccessMiddleware(None, settings, lambda route, status: None)
    scope = {"type": "http", "path": "/health", "headers": [(b"host", host)]}
    scope["client"] = (peer, 1) if peer else None
    error = middleware.refusal(scope)
    assert (error and error.status) == status


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("::1", True), ("8.8.8.8", False), ("testclient", False), ("", False)],
)
def test_loopback_addresses_are_this_machine(address, local):
    assert is_this_machine(address) is local
