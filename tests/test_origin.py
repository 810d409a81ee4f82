"""The origin of an answer is the same in traces, replies and results: knobs, digests, versions."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from fastapi.testclient import TestClient

import unmask
from unmask import LLM
from unmask.cli.main import main
from unmask.engine.engine import Engine
from unmask.engine.origin import LoadedParts, versions
from unmask.evals.results import Results
from unmask.evals.run import evaluate
from unmask.evals.settings import EvalSettings
from unmask.method import MethodSpec, Source
from unmask.models import BUNDLED
from unmask.models.digests import checkpoint_digests
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings

DEMO = BUNDLED["demo"]
METHOD = {"decoder": "threshold", "threshold": 0.7, "cache": "dkv", "cache.interval": 5}
KNOBS = MethodSpec.parse(Source(METHOD)).all_knobs()
FILES = checkpoint_digests(DEMO)


def is_demo(origin):
    assert {name: origin[name] for name in FILES} == FILES
    assert (origin["dtype"], origin["device"], origin["quantization"]) == ("float32", "cpu", None)
    assert (origin["adapter"], origin["chat_template"]) == (None, None)
    return True


def test_the_knobs_in_force_include_defaults_sampling_and_the_caches():
    assert KNOBS["threshold"] == 0.7
    assert (KNOBS["temperature"], KNOBS["cache.interval"]) == (0.0, 5)
    defaults = MethodSpec.parse(Source({"decoder": "threshold", "cache": "dkv"})).all_knobs()
    assert defaults.keys() == KNOBS.keys()


def test_a_trace_has_the_origin_of_its_answer(tmp_path):
    path = tmp_path / "t.jsonl"
    words = [f"{key}={value}" for key, value in METHOD.items()]
    flags = ["--trace", str(path), "--dtype", "float32", "--device", "cpu"]
    assert (
        main(["generate", "A dog", "--gen-length", "8", "--regex", "[a-z ]*", *flags, *words]) == 0
    )
    header = json.loads(path.read_text().splitlines()[0])
    assert is_demo(header["origin"])
    assert header["knobs"] == json.loads(json.dumps(KNOBS))
    assert header["versions"] == versions()
    assert header["constraint"] == {"kind": "regex", "source": "[a-z ]*"}
    assert header["stop_at_eos"] is True
    assert main(["generate", "A dog", "--gen-length=8", "--no-stop-at-eos", *flags]) == 0
    header = json.loads(path.read_text().splitlines()[0])
    assert (header["constraint"], header["stop_at_eos"]) == ({}, False)


@pytest.fixture(scope="module")
def client(demo_llm):
    with TestClient(create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",)))) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "A dog", "max_tokens": 8}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "A"}], "max_tokens": 8}),
        ("/v1/responses", {"input": "A dog", "max_output_tokens": 8}),
        ("/v1/infill", {"parts": ["A ", 2, "."]}),
        ("/v1/fim/completions", {"prompt": "A ", "suffix": ".", "max_tokens": 8}),
    ],
)
def test_a_reply_has_the_origin_of_its_answer(client, path, body):
    found = client.post(path, json={**body, **METHOD}).json()["unmask"]
    assert is_demo(found["model"])
    assert found["versions"] == versions()
    expected = json.loads(json.dumps(KNOBS))
    expected["block_length"] = found["knobs"]["block_length"]  # an infill is one block
    assert found["knobs"] == expected


def test_results_have_the_origin_of_their_answers(tmp_path, demo_llm):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is 2 + 3?", "answer": 5}))
    knobs = {key: value for key, value in METHOD.items() if key not in ("decoder", "cache")}
    own = {"task": str(rows), "metric": "last_number", "decoder": "threshold", "cache": "dkv"}
    own |= {"knobs": knobs, "gen_length": 8, "output": str(tmp_path / "run")}
    evaluate(EvalSettings.from_dict(own), llm=demo_llm)
    results = Results.read(tmp_path / "run")
    assert is_demo(results.resolved["checkpoint"])
    method = results.resolved["method"]
    assert method == {"decoder": "threshold", "cache": "dkv", **json.loads(json.dumps(KNOBS))}
    assert results.machine["versions"]["torch"] == versions()["torch"]


def test_the_origin_of_other_parts_is_theirs_or_not_known(tmp_path, tiny):
    one = LLM("demo", dtype="float32", device="cpu")
    assert is_demo(one.origin())
    assert LLM("demo", tokenizer=one.tokenizer).origin()["tokenizer"] is None
    assert LLM("demo", dtype="bfloat16").origin()["dtype"] == "bfloat16"
    network = tiny("llada").origin()
    assert [network[name] for name in FILES] == [None] * len(FILES)
    first = LLM("demo", chat_template="{{ messages[0].content }}").origin()["chat_template"]
    second = LLM("demo", chat_template="{{ messages[0].content }}!").origin()["chat_template"]
    third = LLM("demo", chat_template_kwargs={"enable_thinking": False}).origin()["chat_template"]
    assert len({None, first, second, third}) == 4


def test_an_adapter_has_a_digest_that_follows_its_files(tmp_path, tiny):
    model = tiny("llada").model
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    parts = LoadedParts(lora=tmp_path)
    first = parts.origin(model)["adapter"]
    assert first is not None
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    assert parts.origin(model)["adapter"] != first, "the scale is part of the adapter"


def test_exchanged_weights_have_the_digest_of_their_folder(tmp_path, demo_llm):
    shutil.copytree(DEMO, tmp_path / "new")
    path = tmp_path / "new" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2:] = b"\0\0"
    path.write_bytes(content)
    llm = LLM("demo", dtype="float32", device="cpu")
    weights = llm.read_weights(tmp_path / "new")
    assert is_demo(llm.origin()), "nothing is exchanged yet"
    llm.use_weights(weights)
    line = f"model.safetensors {hashlib.sha256(content).hexdigest()}\n"
    assert llm.origin()["weights"] == hashlib.sha256(line.encode()).hexdigest()
    assert llm.origin()["tokenizer"] == FILES["tokenizer"]
    llm.use_weights(dict(weights))
    assert llm.origin()["weights"] is None, "weights of no folder have no digest"
    assert unmask.__version__ == versions()["unmask"]
