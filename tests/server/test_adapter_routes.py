"""Adapters behind HTTP: chosen as `model`, listed, batched, refused in plain words."""

from __future__ import annotations

import threading

import pytest
from served import CHAT, gated_client, wait_for
from test_adapters import TARGETS, write_adapter

from unmask import LLM
from unmask.cli.main import main
from unmask.cli.serve_options import LoraOptions
from unmask.engine.engine import Engine
from unmask.errors import ConfigError
from unmask.models import BUNDLED
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings

SHORT = {**CHAT, "max_tokens": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, base = tmp_path_factory.mktemp("lora"), BUNDLED["demo"]
    return {
        name: str(write_adapter(base, root / name, 4, targets, seed, 0.6))
        for seed, (name, targets) in enumerate(
            {"sql": TARGETS["all"], "poems": ("o", "down")}.items()
        )
    }


@pytest.fixture(scope="module")
def client(folders):
    llm = LLM("demo", dtype="float32", device="cpu", adapters=folders)
    with gated_client(llm, ServerSettings(models=("demo",))) as found:
        yield found


@pytest.fixture(scope="module")
def expected(folders, demo_llm):
    """The answer of the plain model and of each merged one."""
    models = {"demo": demo_llm} | {
        name: LLM("demo", dtype="float32", device="cpu", lora=folder)
        for name, folder in folders.items()
    }
    texts = {
        name: llm.chat(SHORT["messages"], "threshold", gen_length=12).text
        for name, llm in models.items()
    }
    assert len({*texts.values()}) == 3
    return texts


def ask(client, name, results=None):
    reply = client.post("/v1/chat/completions", json={**SHORT, "model": name})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    if results is not None:
        results[name] = body
    return body


def test_requests_of_several_adapters_in_one_forward_answer_as_the_merged_models(client, expected):
    results: dict = {}
    client.gate.close()
    threads = [threading.Thread(target=ask, args=(client, name, results)) for name in expected]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: client.engine.stats.queued + client.engine.stats.running == 3)
    client.gate.open()
    for thread in threads:
        thread.join(60)
    texts = {name: body["choices"][0]["message"]["content"] for name, body in results.items()}
    assert texts == expected
    assert {name: body["model"] for name, body in results.items()} == {
        name: name for name in expected
    }


def test_the_list_of_models_has_the_adapters(client, folders):
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert list(cards) == ["demo", "sql", "poems"]
    assert "parent" not in cards["demo"]
    assert cards["sql"]["parent"] == "demo"
    assert cards["sql"]["root"] == folders["sql"]
    assert client.get("/v1/models/poems").json() == cards["poems"]


def test_other_routes_choose_by_name_too(client, expected):
    completion = {"prompt": "One and one is", "max_tokens": 8, "decoder": "threshold", "seed": 1}
    texts = [
        client.post("/v1/completions", json={**completion, "model": name}).json()["choices"][0][
            "text"
        ]
        for name in expected
    ]
    assert len(set(texts)) > 1
    response = client.post(
        "/v1/responses", json={"input": "Hi", "model": "sql", "max_output_tokens": 8}
    )
    assert response.json()["model"] == "sql"
    native = {
        "text": completion["prompt"],
        "sampling_params": {"max_new_tokens": 8, "decoder": "threshold"},
    }
    found = [
        client.post("/generate", json={**native, **more}).json()["text"]
        for more in ({}, {"lora_path": "sql"}, {"lora_path": "poems"})
    ]
    assert found == texts


def test_unknown_adapters_are_refused(client):
    reply = client.post("/v1/chat/completions", json={**SHORT, "model": "sqll"})
    assert reply.status_code == 404
    assert "served: demo, sql, poems" in reply.json()["error"]["message"]
    reply = client.post("/generate", json={"text": "x", "lora_path": "none"})
    assert reply.status_code == 400
    assert "it has: sql, poems" in reply.json()["error"]["message"]


def test_an_adapter_may_not_have_the_name_of_the_model(folders, client):
    llm = client.app.state.service.llm
    with pytest.raises(ConfigError, match="'sql' is the name of the model and of an adapter"):
        create_app(llm, Engine(llm), ServerSettings(models=("sql",)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-modules", "sql"], "--lora-modules 'sql' must be NAME=FOLDER"),
        (["--lora-modules", "a=x", "a=y"], "has 'a' twice"),
        (["--lora-modules", "demo=x"], "'demo' is the name of the model and of an adapter"),
        (["--lora-modules", "a=/nowhere/at/all"], "'/nowhere/at/all' is no folder"),
        (["--no-enable-lora", "--lora-modules", "a=x"], "contradicts --lora-modules"),
        (["--max-loras", "1", "--lora-modules", "a=.", "b=."], "are more than max_loras=1"),
        (["--max-lora-rank", "0"], "must be at least 1"),
    ],
)
def test_flags_are_checked_before_the_model_is_loaded(words, message, capsys):
    assert main(["serve", "demo", "--port", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_flags_become_keywords_of_the_model():
    options = LoraOptions(
        lora_modules=("a=x", "b=y=z"), max_loras=2, max_lora_rank=8, enable_lora=True
    )
    assert options.keywords() == {
        "adapters": {"a": "x", "b": "y=z"}, "max_loras": 2, "max_lora_rank": 8
    }  # fmt: skip
    assert LoraOptions().keywords()["adapters"] is None
