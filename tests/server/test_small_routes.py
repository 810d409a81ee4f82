"""`/tokenize`, `/detokenize`, `/v1/fim/completions`, `/ready` and `/version`."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings
from unmask.version import __version__

TURNS = [{"role": "user", "content": "What is 3*4?"}]
FIM = {"prompt": "The cat ", "suffix": " on the mat.", "max_tokens": 3, "seed": 0}


def test_token_ids_are_those_that_the_decoding_routes_count(client):
    for body, url in (({"prompt": "A dog"}, "/v1/completions"), ({"messages": TURNS}, None)):
        found = client.post("/tokenize", json={**body, "return_token_strs": True}).json()
        counted = client.post(url or "/v1/chat/completions", json={**body, "max_tokens": 1}).json()
        assert found["count"] == len(found["tokens"]) == counted["usage"]["prompt_tokens"]
        assert len(found["token_strs"]) == found["count"]
        assert found["max_model_len"] == client.get("/v1/models").json()["data"][0]["max_model_len"]


def test_the_text_of_token_ids_is_the_text_they_came_from(client):
    text = "Tom has 2 pens.\n"
    body = {"model": "demo", "prompt": text, "add_special_tokens": False}
    ids = client.post("/tokenize", json=body).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert client.post("/tokenize", json={**body, "prompt": ""}).json()["tokens"] == []


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": TURNS}, 400),
        ("/tokenize", {"prompt": "a", "model": "no"}, 404),
        ("/detokenize", {"tokens": [1 << 30]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/detokenize", {"tokens": [1], "threshold": 0.5}, 400),
    ],
)
def test_invalid_bodies_are_refused(client, url, body, status):
    assert client.post(url, json=body).status_code == status


def test_a_middle_is_the_infill_of_the_completions_route(client):
    plain = client.post("/v1/completions", json=FIM).json()
    found = client.post("/v1/fim/completions", json={**FIM, "random_seed": 0}).json()
    choice = found["choices"][0]
    assert choice["text"] == choice["message"]["content"] == plain["choices"][0]["text"]
    assert found["usage"] == plain["usage"]
    events = client.post("/v1/fim/completions", json={**FIM, "stream": True}).text
    assert '"delta": {' in events
    assert events.endswith("data: [DONE]\n\n")
    clash = client.post("/v1/fim/completions", json={**FIM, "random_seed": 1})
    assert clash.status_code == 400


@pytest.mark.parametrize("prompt", ["", "\n"])
@pytest.mark.parametrize("url", ["/v1/fim/completions", "/v1/completions"])
def test_a_middle_may_begin_the_document(client, url, prompt):
    reply = client.post(url, json={**FIM, "prompt": prompt})
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] <= 3


def test_an_empty_fim_is_refused(client):
    reply = client.post("/v1/fim/completions", json={"prompt": "", "suffix": ""})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "prompt"


def test_the_version_and_the_readiness_are_told(client, demo_llm):
    assert client.get("/version").json() == {"version": __version__}
    assert client.get("/ready").json() == {"status": "ok"}
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",)))
    asleep = TestClient(app)  # outside of `with`, its engine has not started
    assert asleep.get("/ready").json() == {"status": "loading"}
    assert asleep.head("/ready").status_code == 503
    app.state.service.is_draining = True
    reply = asleep.get("/ready")
    assert (reply.status_code, reply.json()) == (503, {"status": "draining"})
