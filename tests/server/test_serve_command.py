"""`unmask serve`: flags in vLLM's and SGLang's words, who may listen where, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.server.algorithms import from_sglang


@pytest.fixture
def refused(capsys):
    """The error line of a command that must fail before it loads anything."""

    def run(*arguments):
        assert main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("algorithm", "config", "decoder", "knobs"),
    [
        ("LowConfidence", None, "threshold", {"threshold": 0.95}),
        ("LowConfidence", {"threshold": 0.8}, "threshold", {"threshold": 0.8}),
        (
            "LowConfidence",
            {"block_size": 16},
            "threshold",
            {"threshold": 0.95, "block_length": 16},
        ),
        (
            "JointThreshold",
            {"edit_threshold": 0.5},
            "joint_threshold",
            {
                "threshold": 0.5,
                "edit_threshold": 0.5,
                "max_post_edit_steps": 16,
                "penalty_lambda": 0.0,
            },
        ),
        ("CadLLM", {"tau_base": 0.9}, "cadllm", {"tau_base": 0.9}),
        ("EBSampler", None, "eb_sampler", {}),
        ("prophet", None, "prophet", {}),
    ],
)
def test_sglangs_algorithms_are_our_decoders(algorithm, config, decoder, knobs):
    assert from_sglang(algorithm, config) == (decoder, knobs)


@pytest.mark.parametrize(
    ("algorithm", "config", "said"),
    [
        ("LowConfidense", None, "did you mean 'LowConfidence'"),
        ("CadLM", None, "did you mean 'CadLLM'"),
        ("Gemma4Renoise", None, "no mask token"),
        ("LowConfidence", {"treshold": 0.8}, "did you mean 'threshold'"),
        ("LowConfidence", {"edit_threshold": 0.8}, "unknown key"),
        ("CadLLM", {"tau_bas": 0.9}, "did you mean 'tau_base'"),
        ("CadLLM", {"block_size": 32}, "unknown key"),
    ],
)
def test_unknown_algorithms_and_keys_are_refused(algorithm, config, said):
    with pytest.raises(ConfigError, match=said):
        from_sglang(algorithm, config)


# 39
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_need_a_key_or_a_flag(refused, monkeypatch, host):
    monkeypatch.delenv("UNMASK_API_KEY", raising=False)
    assert "without an API key" in refused("--host", host)


def test_who_lets_everybody_in_is_told_so():
    from unmask.cli.serve import open_to

    assert "to all who reach 0.0.0.0" in open_to("0.0.0.0")
    assert open_to("127.0.0.1") == open_to("::1") == "open"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trust-remote-code"], "never run"),
        (["--dllm-algorithm-config", "x.yaml"], "needs --dllm-algorithm"),
        (["--dllm-algorithm", "CadLLM", "--decoder", "wino"], "two ways"),
        (["--dllm-algorithm", "CadLLM", "--dllm-algorithm-config", "/nowhere"], "cannot be read"),
        (["demo", "--model-path", "other"], "two models"),
        (["--public-metrics"], "no effect without an API key"),
        (["--public-page"], "no effect without an API key"),
        (["--allow-unauthenticated"], "no effect on --host 127.0.0.1"),
        (["--api-key", " "], "the API key is empty"),
        (["--decoder", "treshold"], "did you mean 'threshold'"),
        (["--decoder", "threshold", "treshold=1"], "did you mean 'threshold'"),
        (["--cache", "duel"], "did you mean 'dual'"),
        (["--port", "70000"], "port"),
        (["--max-num-seqs", "0"], "max-num-seqs"),
        (["no-such-model", "--port", "0"], "no-such-model"),
        (["--max-model-len", "99999", "--port", "0"], "more than the model's 1024"),
    ],
)
def test_flags_that_are_wrong_or_without_effect_are_refused(refused, arguments, said):
    assert said in refused(*arguments)


# 36
def test_a_model_that_brings_its_own_code_is_refused_and_nothing_of_it_runs(refused, tmp_path):
    ran = tmp_path / "ran"
    for name in ("configuration_other.py", "modeling_other.py", "tokenization_other.py"):
        (tmp_path / name).write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    auto_map = {"AutoConfig": "configuration_other.C", "AutoModel": "modeling_other.M"}
    config = {"architectures": ["OtherModel"], "model_type": "other", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    auto_map = {"AutoTokenizer": ["tokenization_other.T", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    assert "never run" in refused(str(tmp_path), "--port", "0")
    assert not ran.exists()


def test_a_port_that_is_taken_is_an_error_of_one_line(refused):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = refused("--port", str(taken.getsockname()[1]))
    assert "cannot be bound" in error
    assert error.count("\n") == 1


@contextmanager
def served(*arguments, **environment):
    """A server process of its own, ready; yields it, its URL and the lines it wrote."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask.cli.main", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line == "ready\n":
                break
        else:
            raise AssertionError(process.stderr.read())
        url = next(line.split()[1] for line in lines if line.startswith("url"))
        yield process, url, lines
    finally:
        process.kill()
        process.communicate()


def ask(url, body=None, key=None):
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
        return json.load(reply)


# 21
def test_a_server_says_what_it_serves_and_ends_with_status_0_on_sigterm(tmp_path):
    config = tmp_path / "a config.yaml"
    config.write_text("threshold: 0.8\n", encoding="utf-8")
    flags = ["--model-path", "demo", "--dllm-algorithm", "LowConfidence"]
    flags += ["--dllm-algorithm-config", str(config), "--served-model-name", "mine"]
    flags += ["--max-running-requests", "4", "--context-length", "200"]
    flags += ["--cache", "dkv", "cache.interval=5"]
    key = "secret-key-1"
    with served(*flags, UNMASK_API_KEY=key) as (process, url, lines):
        shown = dict(line.split(maxsplit=1) for line in lines[:-1])
        assert shown["model"] == "demo (llada, 6,163,712 parameters), served as mine"
        assert shown["dtype"] == "float32 on cpu"
        assert shown["decoder"] == "threshold (threshold=0.8)"
        assert shown["cache"] == "dkv(interval=5) (approximate)"
        assert shown["canvas"] == "200 slots at most"
        assert shown["access"] == "API key"
        assert lines[-1] == "ready"
        assert url.startswith("http://127.0.0.1:"), "nobody else reaches it unless told so"
        body = {"prompt": "A dog", "max_tokens": 8, "user": "eve\nforged"}
        reply = ask(f"{url}/v1/completions", body, key)
        assert reply["model"] == "mine"
        assert reply["unmask"]["decoder"] == "threshold(threshold=0.8)"
        assert reply["unmask"]["cache"] == "dkv(interval=5)"
        facts = ask(f"{url}/server_info", key=key)
        assert (facts["max_running_requests"], facts["context_length"]) == (4, 200)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    assert len(log.splitlines()) == 1, "a request, a line"
    assert "user=eve\\nforged" in log
    assert key not in log
    assert key not in "\n".join(lines)


@pytest.mark.slow
def test_a_second_sigterm_ends_a_long_answer(tmp_path):
    import threading

    with served("demo", "--decoder", "vanilla", "--shutdown-timeout", "600") as (process, url, _):
        errors = []

        def long():
            body = {"prompt": "A dog", "max_tokens": 900, "n": 2, "ignore_eos": True}
            try:
                ask(f"{url}/v1/completions", body)
            except urllib.error.HTTPError as error:
                errors.append(error.code)
                error.close()

        thread = threading.Thread(target=long)
        thread.start()
        while not ask(f"{url}/server_info")["internal_states"][0]["num_running_reqs"]:
            pass
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        thread.join(30)
        assert errors == [503]
