"""The pages about the server are what the code says and do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unmask.docgen.http import markdown, metrics_markdown

DOCS = Path(__file__).parents[2] / "docs"
needs_docs = pytest.mark.skipif(not DOCS.exists(), reason="the source distribution has no docs")


@needs_docs
def test_the_reference_of_the_routes_is_what_the_server_says(client):
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    assert page == markdown(client.app), "run: unmask routes > docs/reference/http.md"


@needs_docs
def test_the_reference_of_the_metrics_is_what_the_server_counts(client):
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    made = metrics_markdown(client.app.state.service.metrics.registry)
    assert page == made, "run: unmask routes --metrics > docs/reference/metrics.md"


def test_the_openapi_document_names_every_body_and_is_complete(client):
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert refs <= set(document["components"]["schemas"])
    assert {"ChatRequest", "CompletionRequest", "InfillRequest", "GenerateRequest"} <= refs
    bodies = [m["post"] for m in document["paths"].values() if "post" in m]
    assert all("requestBody" in body and "429" in body["responses"] for body in bodies)


@needs_docs
def test_the_tutorials_code_runs_as_printed(live, capsys):
    pytest.importorskip("openai")
    text = (DOCS / "tutorials" / "serve.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    code = code.replace("http://127.0.0.1:8000", live.url)
    names = {}
    exec(compile(code, "serve.md", "exec"), names)
    names["client"].close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == " bed"
    assert re.fullmatch(r"\d+ tokens in \d+ forwards", lines[-2])
    assert "12" in lines[-3]


@needs_docs
def test_the_tutorials_requests_are_answered(client):
    text = (DOCS / "tutorials" / "serve.md").read_text(encoding="utf-8")
    found = re.findall(r"curl -s http://127.0.0.1:8000(\S+) .*?-d '(.*?)'", text, re.DOTALL)
    assert len(found) == 2
    for path, body in found:
        response = client.post(path, json=json.loads(body))
        assert response.status_code == 200, response.text
    assert f'"blanks": {json.dumps(response.json()["choices"][0]["blanks"])}' in text


@needs_docs
def test_the_tutorials_table_of_forwards_is_what_the_server_counts(client):
    text = (DOCS / "tutorials" / "serve.md").read_text(encoding="utf-8")
    body = json.loads(re.search(r"chat/completions .*?-d '(.*?)'", text, re.DOTALL)[1])
    rows = re.findall(r"^\| `(.*?)` \| .* \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for added, forwards in rows:
        wanted = {**body, "decoder": "threshold", **json.loads(f"{{{added}}}")}
        usage = client.post("/v1/chat/completions", json=wanted).json()["usage"]
        assert usage["num_forwards"] == int(forwards), added


@needs_docs
def test_the_references_example_is_answered_as_printed(client):
    text = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    body = re.search(r"chat/completions .*?-d '(.*?)'\n```", text, re.DOTALL)
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)[1]
    printed = json.loads(re.sub(r", \.\.\.(?=[,}])", "", example))
    reply = client.post("/v1/chat/completions", json=json.loads(body[1])).json()
    for name in ("id", "created", "system_fingerprint"):
        assert type(reply.pop(name)) is type(printed.pop(name))
    assert_shows(printed.pop("unmask"), reply.pop("unmask"))
    assert reply == printed


def assert_shows(printed, value):
    """What is printed is the value, but for keys that are left out and texts that are cut at "..."."""
    if isinstance(printed, dict):
        for key in printed:
            if key != "versions":
                assert_shows(printed[key], value[key])
    elif isinstance(printed, str) and printed.endswith("..."):
        assert value.startswith(printed.removesuffix("..."))
    else:
        assert value == printed


def test_a_method_that_a_route_does_not_have_is_told_with_those_that_it_has(client):
    reply = client.get("/v1/chat/completions")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    told = "/v1/chat/completions does not take GET; it takes POST"
    assert reply.json()["error"]["message"] == told


def test_the_health_is_told_without_a_body_too(client):
    reply = client.head("/health")
    assert (reply.status_code, reply.content) == (200, b"")
    reply = client.put("/health")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET, HEAD"
    assert reply.json()["error"]["message"] == "/health does not take PUT; it takes GET, HEAD"
    reply = client.put("/static/app.js")
    assert reply.headers["allow"] == "GET, HEAD"
    assert reply.json()["error"]["message"].endswith("it takes GET, HEAD")
