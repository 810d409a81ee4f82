"""`unmask serve`: flags in vLLM's and SGLang's words, who may listen where, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.server.sglang_algorithms import from_sglang

DEPLOY = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"


@pytest.fixture
def refused(capsys):
    """The error line of a command that must fail before it loads anything."""

    def run(*arguments):
        assert main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    return run


BLOCKS = {"whole_blocks": True}


@pytest.mark.parametrize(
    ("algorithm", "config", "decoder", "knobs"),
    [
        ("LowConfidence", None, "threshold", {"threshold": 0.95, **BLOCKS, "comparator": "gt"}),
        (
            "LowConfidence",
            {"threshold": 0.8, "block_size": 16},
            "threshold",
            {"threshold": 0.8, "block_length": 16, **BLOCKS, "comparator": "gt"},
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
                **BLOCKS,
            },
        ),
        ("CadLLM", {"tau_base": 0.9}, "cadllm", {"tau_base": 0.9}),
        ("EBSampler", None, "eb_sampler", {}),
        ("prophet", None, "prophet", {}),
    ],
)
def test_sglangs_algorithms_are_our_decoders(algorithm, config, decoder, knobs):
    assert from_sglang(algorithm, config).values == {"decoder": decoder, **knobs}


@pytest.mark.parametrize(
    ("algorithm", "config", "said"),
    [
        ("LowConfidense", None, "did you mean 'LowConfidence'"),
        ("CadLM", None, "did you mean 'CadLLM'"),
        ("Gemma4Renoise", None, "no mask token"),
        ("LowConfidence", {"treshold": 0.8}, "did you mean 'threshold'"),
        ("LowConfidence", {"edit_threshold": 0.8}, "unknown key"),
        ("CadLLM", {"tau_bas": 0.9}, "did you mean 'tau_base'"),
        ("CadLLM", {"block_size": 32}, "say initial_block_length=32"),
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

    assert "to all clients that reach 0.0.0.0" in open_to("0.0.0.0")
    assert open_to("127.0.0.1") == open_to("::1") == "open"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dllm-algorithm-config", "x.yaml"], "needs --dllm-algorithm"),
        (["--dllm-algorithm", "CadLLM", "--decoder", "wino"], "both choose the decoder"),
        (["--dllm-algorithm", "CadLLM", "--dllm-algorithm-config", "/nowhere"], "cannot be read"),
        (["demo", "--model-path", "other"], "two models"),
        (["--public-metrics"], "no effect without an API key"),
        (["--public-page"], "no effect without an API key"),
        (["--allow-unauthenticated"], "no effect with --host 127.0.0.1"),
        (["--api-key", " "], "the API key is empty"),
        (["--decoder", "treshold"], "did you mean 'threshold'"),
        (["--decoder", "threshold", "treshold=1"], "did you mean 'threshold'"),
        (["--cache", "duel"], "did you mean 'dual'"),
        (["--port", "70000"], "port"),
        (["--max-num-seqs", "0"], "max-num-seqs"),
        (["--max-queue", "0"], "max-queue"),
        (["--max-wait", "0"], "max-wait"),
        (["--steps-per-round", "0"], "steps-per-round"),
        (["no-such-model", "--port", "0"], "no-such-model"),
        (["--max-model-len", "99999", "--port", "0"], "more than the model's 1024"),
    ],
)
def test_flags_that_are_wrong_or_without_effect_are_refused(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.fixture
def file(tmp_path):
    """Writes a config file, in a folder with a space."""

    def write(text):
        path = tmp_path / "a folder" / "serve.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "unknown option 'prot': did you mean 'port'"),
        ("max_que: 1", "did you mean 'max-queue'"),
        ("no-log-requests: true", "did you mean 'log-requests'"),
        ("words: [a]", "unknown option 'words'"),
        ("max-headers: 3", "unknown option 'max-headers'"),
        ("port: eight", "port: must be a whole number, 'eight' is not"),
        ("port: true", "port: must be a whole number, True is not"),
        ("port: 8000.0", "port: must be a whole number"),
        ("port:", "port: must be a whole number, None is not"),
        ("port: 70000", "serve.yaml: port: "),
        ("request-timeout: 0", "serve.yaml: request-timeout: "),
        ("request-timeout: true", "request-timeout: must be a number"),
        ("public-page: 1", "public-page: must be true or false"),
        ("decoder: off", "decoder: must be a text, False is not; put it in quotes"),
        ("host: [a]", "host: must be a text"),
        ("served-model-name: [a, 1]", "served-model-name: must be a text, 1 is not"),
        ("served-model-name: []", "served-model-name: is an empty list"),
        ("dllm-algorithm-config: 3", "dllm-algorithm-config: must be a text"),
        ("port: 1\nport: 2", "port: occurs twice"),
        ("tp-size: 1\ntensor_parallel_size: 2", "the same option as tp-size"),
        ("config: x", "config: belongs on the command line"),
        ("knobs: 4", "knobs: must map knobs to values"),
        ("knobs: {a b: 4}", "'a b' is not the name of a knob"),
        ("decoder: threshold\nknobs: {treshold: 1}", "did you mean 'threshold'"),
        ("decoder: treshold", "did you mean 'threshold'"),
        ("- a", "must hold lines"),
        ("a: : b", "cannot be read"),
        ("model: no-such-model\nport: 0", "no-such-model"),
        ("public-metrics: true", "no effect without an API key"),
    ],
)
def test_a_file_that_is_wrong_is_an_error_that_names_the_key(refused, file, text, said):
    assert said in refused("--config", file(text))


def test_the_value_of_a_key_in_a_file_is_never_shown(refused, file):
    error = refused("--config", file("api_key: 123456"))
    assert "api_key: must be a text" in error
    assert "123456" not in error


def test_a_file_that_is_missing_is_an_error(refused, tmp_path):
    assert "cannot be read" in refused("--config", str(tmp_path / "none.yaml"))


@pytest.fixture
def wanted(monkeypatch):
    """What `serve` is told by a command line."""
    from unmask.cli import serve as command

    found = []
    monkeypatch.setattr(command, "run", found.append)

    def run(*arguments):
        assert main(["serve", *arguments]) == 0
        return found[-1]

    return run


EVERYTHING = """
model_path: /a model
decoder: prophet
cache: dual
dllm_algorithm: CadLLM
dllm-algorithm-config: a config.yaml
dllm-fdfo: false
host: "::1"
port: 1
served-model-name: [a, b]
max_running_requests: 2
max-queue: 3
max-num-batched-tokens: 4
max_wait: 0.5
steps-per-round: 15
kv-cache-memory-bytes: 5
enable_prefix_caching: false
cuda_graphs: false
max-model-len: 6
dtype: bfloat16
device: cpu
quantization: int8
tp_size: 7
revision: v1
chat_template: rag
chat-template-kwargs: "{}"
replicas: 8
min-replicas: 9
max-replicas: 10
upscale_delay: 0
downscale-delay: 14
api-key: -a=key
allow-unauthenticated: true
allowed-host: one
public-metrics: true
public-page: true
request-timeout: 11
shutdown-timeout: 12.5
max-body-bytes: 13
log_requests: false
log-format: json
watchdog-timeout: 16
allowed-origins: ["https://a.example"]
calibration: a fit.json
otlp_traces_endpoint: "http://collector:4318/v1/traces"
lora: an adapter
lora-modules: [a=one, b=two]
max-loras: 17
max_lora_rank: 18
enable-lora: true
plugin: [p, q]
trust-remote-code: true
knobs: {threshold: 0.5, inner: vanilla, sizes: [1, 2], whole_blocks: true, cache.period: 3}
"""


def test_every_option_may_stand_in_a_file(wanted, file):
    from dataclasses import asdict

    def flat(values):
        for key, value in values.items():
            yield from flat(value) if isinstance(value, dict) else [(key, value)]

    path = file(EVERYTHING)
    internal = {"body_timeout_s", "send_timeout_s", "max_headers", "max_header_bytes"}
    options = dict(flat(asdict(wanted("--config", path))))
    assert {key: value for key, value in options.items() if key not in internal} == {
        "words": (
            "threshold=0.5",
            "inner=vanilla",
            "sizes=[1, 2]",
            "whole_blocks=true",
            "cache.period=3",
        ),
        "config": Path(path),
        "model": "/a model",
        "decoder": "prophet",
        "cache": "dual",
        "dllm_algorithm": "CadLLM",
        "dllm_algorithm_config": Path("a config.yaml"),
        "dllm_fdfo": False,
        "host": "::1",
        "port": 1,
        "served_model_name": ("a", "b"),
        "max_num_seqs": 2,
        "max_queue": 3,
        "max_num_batched_tokens": 4,
        "max_wait": 0.5,
        "steps_per_round": 15,
        "kv_cache_memory_bytes": 5,
        "enable_prefix_caching": False,
        "cuda_graphs": False,
        "max_model_len": 6,
        "dtype": "bfloat16",
        "device": "cpu",
        "quantization": "int8",
        "tensor_parallel_size": 7,
        "revision": "v1",
        "chat_template": "rag",
        "chat_template_kwargs": "{}",
        "replicas": 8,
        "min_replicas": 9,
        "max_replicas": 10,
        "upscale_delay": 0.0,
        "downscale_delay": 14.0,
        "weights_folder": None,
        "api_key": "-a=key",
        "allow_unauthenticated": True,
        "allowed_host": ("one",),
        "public_metrics": True,
        "public_page": True,
        "request_timeout": 11.0,
        "shutdown_timeout": 12.5,
        "max_body_bytes": 13,
        "log_requests": False,
        "log_format": "json",
        "watchdog_timeout": 16.0,
        "allowed_origins": ("https://a.example",),
        "calibration": Path("a fit.json"),
        "otlp_traces_endpoint": "http://collector:4318/v1/traces",
        "lora": "an adapter",
        "lora_modules": ("a=one", "b=two"),
        "max_loras": 17,
        "max_lora_rank": 18,
        "enable_lora": True,
        "plugin": ("p", "q"),
        "trust_remote_code": True,
    }


@pytest.mark.parametrize("value", ["xml", "JSON", "3"])
def test_a_log_format_that_does_not_exist_is_refused(wanted, file, value, capsys):
    from unmask.cli.main import main

    for words in (["--log-format", value], ["--config", file(f"log-format: '{value}'\n")]):
        assert main(["serve", *words]) == 2
        assert f"{value} must be text or json" in capsys.readouterr().err


def test_what_is_typed_wins_over_the_file(wanted, file):
    from unmask.cli.serve import split

    path = file(EVERYTHING)
    typed = ["threshold=0.9", "--port", "99", "--enable-prefix-caching", "-d", "wino"]
    typed += ["--served-model-name", "c", "--tp-size=1"]
    told = wanted("other", "--config", path, *typed)
    assert split(told)[0] == "other"
    assert split(told)[1]["threshold"] == "0.9"
    assert split(told)[1]["inner"] == "vanilla"
    assert (told.server.port, told.engine.enable_prefix_caching) == (99, True)
    assert (told.method.decoder, told.server.served_model_name) == ("wino", ("c",))
    assert (told.load.tensor_parallel_size, told.engine.max_queue) == (1, 3)
    assert split(wanted("-m", "third", "--config", path))[0] == "third"
    assert split(wanted("--config", path, "threshold=1"))[0] == "/a model"


def test_an_empty_file_changes_nothing(wanted, file):
    from dataclasses import replace

    told = wanted("--config", file("# nothing\n"))
    assert replace(told, config=None) == wanted()


@pytest.mark.skipif(not DEPLOY.exists(), reason="the source distribution has no docs")
def test_the_file_of_the_how_to_is_taken(wanted, file):
    (text,) = re.findall(r"```yaml\n(.*?)```", DEPLOY.read_text(encoding="utf-8"), re.DOTALL)
    told = wanted("--config", file(text))
    assert (told.method.decoder, told.words) == ("threshold", ("threshold=0.9",))
    assert told.server.shutdown_timeout == 60


def test_help_needs_no_file(capsys):
    assert main(["serve", "--config", "/nowhere", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


def test_every_start_has_a_page_token_of_its_own(wanted, monkeypatch):
    from unmask.cli.options import KEY_VARIABLE
    from unmask.cli.serve import access_of

    monkeypatch.delenv(KEY_VARIABLE, raising=False)

    tokens = {access_of(wanted("--api-key", "k").server).page_token for _ in range(2)}
    assert len(tokens) == 2
    assert all(len(token) > 30 for token in tokens)
    assert access_of(wanted().server).page_token is None


def test_a_cache_that_the_model_refuses_is_an_error_at_the_start(refused):
    asked = ("--cache", "block_causal", "--port", "0")
    assert "use vicinity, dual, or auto" in refused(*asked)
    assert "use vicinity, dual, or auto" in refused(*asked, "--replicas", "2")


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
def served(*arguments, program=("-m", "unmask.cli.main"), **environment):
    """A server process of its own, ready; yields it, its URL and the lines it wrote."""
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0", *arguments],
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


@pytest.mark.slow
def test_a_server_is_started_from_a_file(file):
    text = "model: demo\ndecoder: threshold\nknobs: {threshold: 0.8}\nmax_num_seqs: 4\n"
    path = file(text + "served-model-name: mine\n")
    with served("--config", path, "threshold=0.7") as (_, url, lines):
        shown = dict(line.split(maxsplit=1) for line in lines[:-1])
        assert shown["config"] == path
        assert shown["decoder"] == "threshold(threshold=0.7)"
        assert shown["batch"].startswith("4 sequences")
        reply = ask(f"{url}/v1/completions", {"prompt": "A dog", "max_tokens": 8})
        assert reply["model"] == "mine"
        assert reply["unmask"]["decoder"] == "threshold(threshold=0.7)"


# 21
def test_a_server_says_what_it_serves_and_ends_with_status_0_on_sigterm(tmp_path):
    config = tmp_path / "a config.yaml"
    config.write_text("threshold: 0.8\nvectorized_decoding: true\n", encoding="utf-8")
    flags = ["--model-path", "demo", "--dllm-algorithm", "LowConfidence", "--dllm-fdfo"]
    flags += ["--dllm-algorithm-config", str(config), "--served-model-name", "mine"]
    flags += ["--max-running-requests", "4", "--context-length", "200"]
    flags += ["--cache", "dkv", "cache.interval=5"]
    key = "secret-key-1"
    with served(*flags, UNMASK_API_KEY=key) as (process, url, lines):
        shown = dict(line.split(maxsplit=1) for line in lines[:-1])
        assert shown["model"] == "demo (llada, 6,163,712 parameters), served as mine"
        assert shown["dtype"] == "float32 on cpu"
        assert shown["decoder"] == "threshold(threshold=0.8, comparator=gt)"
        assert shown["cache"] == "dkv(interval=5) (approximate)"
        assert shown["canvas"] == "200 positions at most"
        assert shown["access"] == "API key"
        assert lines[-1] == "ready"
        assert url.startswith("http://127.0.0.1:"), "nobody else reaches it unless told so"
        body = {"prompt": "A dog", "max_tokens": 8, "user": "eve\nforged"}
        reply = ask(f"{url}/v1/completions", body, key)
        assert reply["model"] == "mine"
        assert reply["unmask"]["decoder"] == "threshold(threshold=0.8, comparator=gt)"
        assert reply["unmask"]["cache"] == "dkv(interval=5)"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, headers={"accept": "text/html"}))
        with caught.value as refusal:
            assert refusal.code == 401
            assert b"<form" in refusal.read(), "a browser is asked for the key"
        facts = ask(f"{url}/server_info", key=key)
        assert (facts["max_running_requests"], facts["context_length"]) == (4, 200)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    assert len(log.splitlines()) == 3, "a request, a line"
    assert " GET / 401 " in log
    assert "user=eve\\nforged" in log
    assert key not in log
    assert key not in "\n".join(lines)


def test_notes_about_the_default_method_are_in_the_format_of_the_log(capsys):
    from unmask.cli.serve import print_notes

    print_notes(["a note"], "text")
    assert capsys.readouterr().err == "unmask: note: a note\n"
    print_notes(["a note"], "json")
    assert json.loads(capsys.readouterr().err)["message"] == "a note"


@pytest.mark.slow
def test_the_json_log_of_a_server_is_one_object_a_line():
    with served("--log-format", "json") as (process, url, _):
        ask(f"{url}/v1/completions", {"prompt": "A dog", "max_tokens": 8})
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(f"{url}/v1/completions", {"prompt": "A dog", "max_tokens": "x"})
        caught.value.close()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    good, bad = (json.loads(line) for line in log.splitlines())
    keys = {"request_id", "method", "path", "status", "ms", "reason"}
    assert keys <= good.keys()
    assert keys <= bad.keys()
    assert (good["status"], good["reason"], good["path"]) == (200, None, "/v1/completions")
    assert (bad["status"], bad["reason"]) == (400, "invalid_value (max_tokens)")


BREAKS = """
import sys
from unmask.cli.main import main
from unmask.engine.model_runner import ModelRunner


def launch(runner, inputs, ahead=()):
    raise RuntimeError("secret reason: the device fell off")


ModelRunner.launch = launch
sys.exit(main())
"""


def status_of(url, body=None):
    try:
        ask(url, body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


# 23
@pytest.mark.slow
def test_a_server_whose_engine_has_failed_says_so_and_ends_with_status_1():
    with served("demo", program=("-c", BREAKS)) as (process, url, _):
        assert status_of(f"{url}/health") == 200
        body = {"prompt": "A dog", "max_tokens": 8}
        assert status_of(f"{url}/v1/completions", body) == 503
        assert status_of(f"{url}/health") == 503, "it is still there to say so"
        _, log = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "secret reason" in log
    assert "the engine has failed; the process ends" in log


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
