"""Keys, hosts, headers, bodies, the page. Numbers: checks of the specification."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from served import CHAT

import unmask
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.errors import ConfigError
from unmask.server.app import create_app
from unmask.server.cors import allowed_origins
from unmask.server.settings import STATIC, Access, Limits, ServerSettings

KEY = "k3y-\u00e9-long-and-random"
CHAT_URL = "/v1/chat/completions"
ROUTES = [
    ("GET", "/"),
    ("GET", "/static/app.js"),
    ("GET", "/docs"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/demo"),
    ("GET", "/v1/schema"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/server_info"),
    ("GET", "/get_server_info"),
    ("GET", "/model_info"),
    ("GET", "/get_model_info"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/infill"),
    ("POST", "/generate"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/decisions"),
    ("POST", "/v1/systemone"),
    ("POST", "/v1/fim/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/update_weights"),
    ("POST", "/v1/picture"),
    ("GET", "/version"),
    ("GET", "/no/such/route"),
    ("GET", "//health"),
    ("GET", "/health/"),
    ("POST", "/healthy"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    (folder / "index.html").write_text("<title>unmask</title>", encoding="utf-8")
    (folder / "app.js").write_text("let page;", encoding="utf-8")
    (folder.parent / "secret.txt").write_text("secret", encoding="utf-8")
    return folder


@pytest.fixture
def made(demo_llm, page):
    """`made(access=..., limits=...)`: a client of an app; nothing is decoded, no engine runs."""

    def make(**settings):
        app = create_app(
            demo_llm,
            Engine(demo_llm, EngineConfig(max_num_seqs=1)),
            ServerSettings(("demo",), static=page, **settings),
        )
        return TestClient(app, raise_server_exceptions=False)

    return make


@pytest.fixture
def keyed(made):
    return made(access=Access(key_digest=Access.digest(KEY)))


def bearer(key):
    return {"authorization": f"Bearer {key}".encode()}


# 13
def test_every_route_but_health_asks_for_the_key(keyed):
    own = {route.path for route in keyed.app.routes}
    named = {path for _, path in ROUTES}
    missing = {
        path
        for path in own
        if path.partition("{")[0].rstrip("/") not in {name.rstrip("/") for name in named}
        and not path.startswith("/static")
    }
    assert missing - {"/health", "/ready", "/v1/models/{name:path}"} == set(), (
        "a new route belongs in ROUTES"
    )
    wrong = ["", "x", KEY[:-1], KEY + "x", KEY.upper(), "Bearer " + KEY]
    for method, path in ROUTES:
        for headers in ({}, *(bearer(key) for key in wrong)):
            response = keyed.request(method, path, headers=headers)
            assert response.status_code == 401, (path, headers)
            assert response.headers["www-authenticate"] == "Bearer"
            assert KEY not in response.text
    assert keyed.get("/health").status_code == 200
    assert keyed.get("/ready").status_code == 503, "open without a key; no engine runs here"


@pytest.mark.parametrize("scheme", ["Basic", "Token", "", "bearerx", "Bearer\t"])
def test_a_key_under_another_scheme_is_refused(keyed, scheme):
    headers = {"authorization": f"{scheme} {KEY}".strip().encode()}
    assert keyed.get("/v1/models", headers=headers).status_code in (400, 401)


def test_two_keys_are_no_key(keyed):
    headers = [("authorization", b"Bearer x"), ("authorization", f"Bearer {KEY}".encode())]
    assert keyed.get("/v1/models", headers=headers).status_code == 401


def test_the_key_lets_in(keyed):
    assert keyed.get("/v1/models", headers=bearer(KEY)).status_code == 200
    response = keyed.get("/v1/models", headers={"authorization": f"bearer {KEY}".encode()})
    assert response.status_code == 200, "the scheme's case does not matter"


def test_keys_are_compared_by_digests_in_constant_time(monkeypatch):
    import hmac

    compared = []

    def compare(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    access = Access(key_digest=Access.digest(KEY))
    for given in (None, b"", b"Bearer x", b"Basic " + KEY.encode(), b"Bearer " + KEY.encode()):
        access.admits(given)
    assert len(compared) == 5
    assert {len(side) for pair in compared for side in pair} == {32}


def test_the_key_is_never_logged(keyed, caplog):
    import logging

    caplog.set_level(logging.DEBUG)
    for headers in (bearer(KEY), bearer(KEY + "x")):
        keyed.get("/v1/models", headers=headers)
        keyed.post(CHAT_URL, json={"user": KEY[:3]}, headers=headers)
    assert KEY not in caplog.text


def test_metrics_and_page_can_be_public(made):
    digest = Access.digest(KEY)
    client = made(access=Access(digest, is_metrics_public=True))
    assert client.get("/metrics").status_code == 200
    assert client.get("/").status_code == 401
    client = made(access=Access(digest, is_page_public=True))
    assert client.get("/").status_code == 200
    assert client.get("/static/app.js").status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/v1/schema").status_code == 401
    assert client.get("/static/../v1/schema").status_code == 401


BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
TOKEN = "random-token"


@pytest.fixture
def closed(made):
    """A client of a server with a key and its page closed, as `unmask serve` starts it."""
    return made(access=Access(Access.digest(KEY), page_token=TOKEN))


def test_a_browser_without_the_key_gets_401_and_a_page_that_asks_for_it(closed):
    response = closed.get("/", headers=BROWSER)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-store"
    policies = response.headers.get_list("content-security-policy")
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; connect-src 'self'; script-src 'sha256-")
    assert "unsafe" not in policies[0]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in response.headers
    assert "<form" in response.text
    assert not re.search(r"https?:|unmask|demo|href=|src=", response.text.replace("unmask-key", ""))


def test_programs_and_other_routes_get_401_in_json(closed):
    asked = [("GET", "/", {"accept": "*/*"}), ("GET", "/", {}), ("POST", "/", BROWSER)]
    asked += [("GET", path, BROWSER) for path in ("/static/app.js", "/v1/models", "/metrics", "/x")]
    for method, path, headers in asked:
        response = closed.request(method, path, headers=headers)
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_the_key_opens_the_page_and_its_cookie_the_pages_files_only(closed):
    shown = closed.get("/", headers=bearer(KEY))
    assert shown.status_code == 200
    cookie = shown.headers["set-cookie"]
    assert cookie == f"unmask_page={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    closed.cookies.clear()
    sent = {"cookie": f"other=1; unmask_page={TOKEN}"}
    for path in ("/", "/docs", "/static/app.js"):
        response = closed.get(path, headers=sent | BROWSER)
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
    for method, path in ROUTES:
        if path not in (
            "/",
            "/docs",
            "/static/app.js",
            "//health",
        ):  # the client reads the last as a host
            assert closed.request(method, path, headers=sent).status_code == 401, path
    assert closed.get("/static/../v1/schema", headers=sent).status_code == 401
    assert "set-cookie" not in closed.get("/v1/models", headers=bearer(KEY)).headers


@pytest.mark.parametrize("value", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "random"])
def test_another_cookie_opens_nothing(closed, value):
    for name in ("unmask_page", "unmask_pag", "Unmask_Page"):
        given = value if name == "unmask_page" else TOKEN
        sent = {"cookie": f"{name}={given}"}
        assert closed.get("/static/app.js", headers=sent).status_code == 401


def test_cookies_are_compared_in_constant_time(closed, monkeypatch):
    import hmac

    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    closed.get("/static/app.js", headers={"cookie": "unmask_page=wrong"})
    assert TOKEN.encode() in compared


def test_a_cookie_behind_tls_is_for_tls_only(demo_llm, page):
    access = Access(Access.digest(KEY), page_token=TOKEN)
    app = create_app(
        demo_llm,
        Engine(demo_llm, EngineConfig(max_num_seqs=1)),
        ServerSettings(("demo",), static=page, access=access),
    )
    client = TestClient(app, base_url="https://testserver")
    assert client.get("/", headers=bearer(KEY)).headers["set-cookie"].endswith("; Secure")


def test_without_a_key_only_known_hosts_are_answered(made):
    """A page of the web that points its own name at this machine is refused."""
    client = made(access=Access(hosts=frozenset({"localhost", "127.0.0.1", "::1"})))
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.2"):
        response = client.get("/v1/models", headers={"host": host})
        assert response.status_code == 403, host


# 10
def test_a_body_over_the_limit_is_refused_with_a_declared_length(made):
    client = made(limits=Limits(max_body_bytes=1000))
    response = client.post(
        CHAT_URL, content=b" " * 1001, headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_over_the_limit_is_refused_without_one(made):
    client = made(limits=Limits(max_body_bytes=1000))
    pieces = (b" " * 100 for _ in range(1000))
    response = client.post(CHAT_URL, content=pieces, headers={"content-type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize("value", ["-1", "x", "1e9", "99999999999999999999999"])
def test_a_content_length_that_is_none_is_no_way_around(made, value):
    client = made(limits=Limits(max_body_bytes=1000))
    headers = {"content-type": "application/json", "content-length": value}
    assert client.post(CHAT_URL, content=b" " * 2000, headers=headers).status_code == 413


# 11
def test_large_or_many_headers_are_refused(made):
    client = made()
    assert client.get("/health", headers={"x-large": "x" * 20_000}).status_code == 431
    many = [(f"x-{i}", "1") for i in range(1000)]
    response = client.get("/health", headers=many)
    assert response.status_code == 431
    assert len(response.content) < 4096


# 38
@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..%2fsecret.txt",
        "/static//etc/passwd",
        "/static/....//secret.txt",
        "/static/%00",
        "/static/..\\secret.txt",
        "/static/",
        "/../secret.txt",
    ],
)
def test_paths_outside_the_page_are_not_found(made, path):
    response = made().get(path)
    assert response.status_code == 404, response.text
    assert "secret" not in response.text.replace("secret.txt", "")


def test_a_slash_too_many_is_no_redirect_to_the_host_that_the_client_named(made):
    client = made()
    for path in ("/health/", "/static", "/metrics/", "/v1/schema/"):
        response = client.get(path, headers={"host": "evil.example"}, follow_redirects=False)
        assert response.status_code == 404, path
        assert "evil" not in str(response.headers)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND"])
def test_a_method_that_a_route_does_not_have_is_refused_by_name(made, method):
    client = made()
    for path in {path for _, path in ROUTES if path.startswith("/v1") or path == "/metrics"}:
        response = client.request(method, path, headers={"x-mine": "SECRET"})
        assert response.status_code == 405, path
        assert response.headers["allow"] in ("GET", "POST")
        assert "SECRET" not in response.text


# 40
def test_the_page_may_load_nothing_from_elsewhere(made):
    client = made()
    for path in ("/", "/static/app.js", "/v1/models", "/nope"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


# 41
def test_other_origins_get_no_permission(made):
    client = made()
    origin = {"origin": "https://evil.example"}
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    for response in (
        client.get("/v1/models", headers=origin),
        client.post(CHAT_URL, json=CHAT | {"max_tokens": 0}, headers=origin),
        client.options(CHAT_URL, headers=origin | asked),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def preflight(client, origin, path=CHAT_URL, names="authorization, x-stainless-os"):
    headers = {"origin": origin, "access-control-request-method": "POST"}
    return client.options(path, headers=headers | {"access-control-request-headers": names})


def test_an_allowed_origin_gets_permission_and_no_other(made):
    access = Access(key_digest=Access.digest(KEY))
    client = made(access=access, origins=allowed_origins(["HTTPS://App.example:443"]))
    own = "https://app.example"
    asked = preflight(client, own)
    assert asked.status_code == 204, "a browser sends no key with it"
    assert asked.headers["access-control-allow-origin"] == own
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    for headers, status in ((bearer(KEY), 200), ({}, 401)):
        reply = client.get("/v1/models", headers={**headers, "origin": own})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == own
        assert reply.headers["vary"] == "Origin"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers
    for other in (
        own + ".evil",
        "http://app.example",
        own + ":8443",
        "null",
        "https://x.app.example",
    ):
        refused = preflight(client, other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        reply = client.get("/v1/models", headers={**bearer(KEY), "origin": other})
        assert reply.status_code == 200
        found = [name for name in (*reply.headers, *refused.headers) if name.startswith("access-")]
        assert not found, other
        assert reply.headers["vary"] == "Origin", "or a cache would give it to an allowed one"


def test_any_origin_gets_permission_without_credentials(made):
    client = made(origins=allowed_origins(["*"]))
    asked = preflight(client, "https://any.example", names="evil\t{}")
    assert asked.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-headers" not in asked.headers, "no list of header names"
    reply = client.get("/v1/models", headers={"origin": "null"})
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers
    assert "access-control-allow-origin" not in client.get("/v1/models").headers


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["app.example"], "give scheme, host and port alone"),
        (["https://app.example/"], "give scheme, host and port alone"),
        (["https://app.example/path"], "give scheme, host and port alone"),
        (["ftp://app.example"], "give scheme, host and port alone"),
        (["https://*.example"], "give scheme, host and port alone"),
        (["null"], "give scheme, host and port alone"),
        (["*", "https://app.example"], "leave https://app.example out"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(texts, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        allowed_origins(texts)


def test_origins_have_the_form_in_which_browsers_send_them():
    texts = ["http://localhost:3000", "http://[::1]:80", "https://A.example:443"]
    assert allowed_origins(texts) == {
        "http://localhost:3000",
        "http://[::1]",
        "https://a.example",
    }
    assert allowed_origins([]) == frozenset()


def test_the_page_about_the_api_needs_no_other_host(made):
    client = made()
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("docs.html", "docs.js", "docs.css"):
        content = (STATIC / name).read_text(encoding="utf-8")
        assert not re.findall(r"(?:https?:)?//[a-z]", content.replace("// ", "")), name
        assert "innerHTML" not in content, "the document's text is no markup"
    assert "<style" not in page.text, "which the policy forbids"
    assert client.get("/openapi.json").status_code == 200
    assert "/docs" not in client.get("/openapi.json").json()["paths"]


def test_the_page_about_the_api_is_open_with_a_public_page_and_the_document_is_not(made):
    access = Access(key_digest=Access.digest(KEY), is_page_public=True)
    client = made(access=access)
    assert client.get("/docs").status_code == 200
    assert client.get("/openapi.json").status_code == 401


# 42
def test_nothing_is_ever_unpickled():
    """No bytes from outside: two modules move a loaded tokenizer, by pickle, to processes they start.

    Ray does the same with its calls. Workers answer in JSON.
    """
    own = {"text_pool.py", "text_worker.py"}
    folder = Path(unmask.__file__).parent
    pickles = re.compile(
        r"^\s*(import|from) (pickle|dill|marshal|shelve|joblib|cloudpickle)\b"
        r"|torch\.load|yaml\.(unsafe_|full_)?load\(|allow_pickle|_object_list\(|(gather|scatter)_object"
        r"|pyobj|multiprocessing.*(Pipe|Queue|Manager|connection)",
        re.MULTILINE,
    )
    assert pickles.search("    import pickle")
    assert pickles.search("dist.broadcast_object_list(x)")
    found = [path for path in folder.rglob("*.py") if pickles.search(path.read_text("utf-8"))]
    assert {path.name for path in found} == own
    texts = [(folder / "engine" / name).read_text("utf-8") for name in sorted(own)]
    assert [text.count("pickle.loads(") for text in texts] == [0, 1], "the worker alone reads one"


def test_a_model_without_a_tokenizer_is_not_served(demo_llm):
    from unmask import LLM, ModelError

    bare = LLM(demo_llm.model, pack_weights=False)
    with pytest.raises(ModelError, match="no tokenizer"):
        create_app(bare, Engine(bare), ServerSettings(("demo",)))
