"""Host names are compared exactly, in a header and in an option."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from unmask.cli.serve import access_of
from unmask.engine.engine import Engine
from unmask.errors import ConfigError
from unmask.server.app import create_app
from unmask.server.hosts import allowed_host, host_of
from unmask.server.settings import Access, ServerConfig, ServerSettings

GOOD = {
    "localhost": "localhost",
    "LocalHost:8000": "localhost",
    "localhost:0": "localhost",
    "127.0.0.1:65535": "127.0.0.1",
    "[::1]": "::1",
    "[::1]:8000": "::1",
    "[0:0:0:0:0:0:0:1]:80": "::1",
    "my-box.example.org": "my-box.example.org",
    "under_score": "under_score",
}
BAD = [
    *("", " ", ".", "localhost.", "localhost.:80", ".localhost", "local..host", " localhost"),
    *("localhost ", "localhost\t", "localhost:", "localhost:x", "localhost:80x", "localhost:-1"),
    *("localhost:65536", "localhost:999999", "localhost:80:80", "localhost:80@evil.com"),
    *("localhost@evil.com", "user:pw@localhost", "localhost/", "localhost/x", "localhost?x"),
    *("localhost#x", "localhost\\x", "http://localhost", "localhost,evil.com", "localhost evil"),
    *("::1", "::1:80", "[::1", "::1]", "[::1]x", "[::1].evil.com", "[::1]evil.com", "[[::1]]"),
    *("[::1]:", "[::1]:x", "[::1]80", "[localhost]", "[127.0.0.1]", "[::1%25lo]", "[]", "[:]"),
    *("localhost\0", "localhost\n", "l\u00f6calhost", "\u2126", "localhost:\u0661", "%6cocalhost"),
    "a" * 300,
]
OTHERS = [
    *("evil.com", "localhost.evil.com", "evil-localhost", "xlocalhost", "localhostx", "ocalhos"),
    *("127.0.0.1.evil.com", "127.0.0.10", "127.0.0.2", "127.1", "0x7f000001", "2130706433"),
    *("[::2]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"),
]


@pytest.mark.parametrize(("text", "host"), GOOD.items())
def test_a_host_has_one_form(text, host):
    assert host_of(text) == host


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_exactly_a_host_is_none(text):
    assert host_of(text) is None


@pytest.fixture(scope="module")
def keyless(demo_llm):
    access = access_of(ServerConfig(allowed_host=("Box.example.org",)))
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",), access=access))
    with TestClient(app) as found:
        yield found


@pytest.mark.parametrize("host", [*GOOD, "box.EXAMPLE.org", "box.example.org:8080"])
def test_allowed_hosts_are_answered_with_any_port(keyless, host):
    named = host_of(host) in {"localhost", "127.0.0.1", "::1", "box.example.org"}
    status = keyless.get("/v1/models", headers={"Host": host}).status_code
    assert status == (200 if named else 403)


@pytest.mark.parametrize("host", [*OTHERS, *(one for one in BAD if one.isascii())])
def test_other_hosts_are_refused(keyless, host):
    for path in ("/v1/models", "/health", "/"):
        assert keyless.get(path, headers={"Host": host}).status_code == 403


def test_two_hosts_are_refused(keyless):
    headers = [("Host", "localhost"), ("Host", "localhost")]
    assert keyless.get("/v1/models", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("text", "host"),
    [("::1", "::1"), ("[::1]", "::1"), ("2001:DB8::0:1", "2001:db8::1"), ("BOX", "box")],
)
def test_an_allowed_host_is_a_name_or_an_address(text, host):
    assert allowed_host(text) == host


@pytest.mark.parametrize(
    "text", ["", "box:80", "[::1]:80", "http://box", "box.", "*", "*.box", "box/", "a" * 500]
)
def test_an_allowed_host_that_no_header_can_name_is_refused(text):
    with pytest.raises(ConfigError, match="--allowed-host .* is not a host name; give") as caught:
        access_of(ServerConfig(host="0.0.0.0", allow_unauthenticated=True, allowed_host=(text,)))
    assert len(str(caught.value)) < 300


def test_a_loopback_address_is_allowed_in_its_shortest_form():
    assert "::1" in (access_of(ServerConfig(host="0:0:0:0:0:0:0:1")).hosts or ())
    assert Access().hosts is None
