"""Connections: small packets, limits, room for status requests, descriptors, uploads that break off."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import resource
import socket
import time
from contextlib import ExitStack
from statistics import median

import pytest
from served import CHAT, drip, read_all, serving, wait_for

from unmask.server import connections, process
from unmask.server.connections import (
    Acceptor,
    ConnectionLimits,
    ConnectionStage,
    ConnectionTable,
    address_of,
    fit_descriptors,
)

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)
SMALL = ConnectionLimits(most=8, reserve=2)


@pytest.fixture(scope="module")
def crowded(demo_llm):
    with serving(demo_llm, limits=SMALL, max_num_seqs=1, max_queue=20) as found:
        yield found


def health(live):
    return live.send(HEALTH).partition(b"\r\n")[0]


def hold(stack, live, count, sent=b""):
    """Open connections that send this much and no more; the server has seen all of it."""
    found = []
    for _ in range(count):
        client = stack.enter_context(live.connect())
        client.sendall(sent)
        found.append(client)
    return found


# TCP_NODELAY


def test_every_accepted_connection_sends_small_packets_at_once(live, monkeypatch):
    options = []
    plain = connections.tune_socket

    def tune(accepted):
        plain(accepted)
        for level, name in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        ):
            options.append(accepted.getsockopt(level, name))

    monkeypatch.setattr(connections, "tune_socket", tune)
    assert b"200" in health(live)
    assert options == [1, 1, 60_000]


def test_a_kept_connection_is_as_fast_as_a_new_one(live):
    def ask(client):
        began = time.perf_counter()
        client.request("GET", "/health")
        client.getresponse().read()
        return time.perf_counter() - began

    kept = http.client.HTTPConnection(live.host, live.port)
    kept_s, new_s = [], []
    for _ in range(15):
        kept_s.append(ask(kept))
        new = http.client.HTTPConnection(live.host, live.port)
        new_s.append(ask(new))
        new.close()
    kept.close()
    assert median(kept_s[2:]) < median(new_s) + 0.02, "Nagle's algorithm costs 40 ms"


# limits


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /hea", HEALTH[:-2], POST, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["silent", "half a line", "half a head", "half a body", "kept"],
)
def test_clients_that_say_nothing_cannot_take_the_status_away(crowded, sent):
    with ExitStack() as stack:
        hold(stack, crowded, 40, sent)
        for _ in range(3):
            assert b"200" in health(crowded)
        assert len(crowded.server.connections) <= SMALL.most + SMALL.reserve


def test_busy_clients_keep_their_connections_and_the_status_its_own(crowded):
    content = json.dumps({**CHAT, "max_tokens": 8}).encode()
    body = POST.partition(b"Content-Length")[0].replace(b"completions", b"chat/completions")
    body += b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    crowded.gate.close()
    with ExitStack() as stack:
        busy = hold(stack, crowded, 6, body)
        assert wait_for(lambda: crowded.engine.stats.running + crowded.engine.stats.queued == 6)
        assert b"200" in health(crowded), "the reserve answers"
        refused = crowded.send(body)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b'"code":"too_many_connections"' in refused
        assert b"retry-after: 1" in refused.lower()
        hold(stack, crowded, 20)
        assert b"200" in health(crowded)
        crowded.gate.open()
        for client in busy:
            assert read_all(client).startswith(b"HTTP/1.1 200")
    assert crowded.idle()
    assert crowded.send(body).startswith(b"HTTP/1.1 200"), "as before"


class Fake:
    """A connection that notes what the table does to it."""

    def __init__(self):
        self.is_evicted, self.is_status_only = False, False

    def evict(self):
        self.is_evicted = True

    def serve_status_only(self):
        self.is_status_only = True


def added(table, *addresses, stage=ConnectionStage.SILENT):
    found = [Fake() for _ in addresses]
    for one, address in zip(found, addresses, strict=True):
        table.add(one, address)
        table.move(one, stage)
    return found


def evicted(fakes):
    return [fake.is_evicted for fake in fakes]


def test_the_client_with_most_silent_connections_loses_its_oldest():
    table = ConnectionTable(ConnectionLimits(most=8, reserve=2))
    quiet = added(table, "b")
    many = added(table, *"aaaaaa")
    added(table, "c", "d")
    assert evicted(quiet) == [False]
    assert evicted(many) == [True, False, False, False, False, False]
    assert len(table) == 8


def test_silent_connections_go_before_receiving_ones_and_busy_ones_never():
    table = ConnectionTable(ConnectionLimits(most=3, reserve=2))
    (busy,) = added(table, "a", stage=ConnectionStage.BUSY)
    (receiving,) = added(table, "b", stage=ConnectionStage.RECEIVING)
    (silent,) = added(table, "c")
    added(table, "d", stage=ConnectionStage.BUSY)
    assert (busy.is_evicted, receiving.is_evicted, silent.is_evicted) == (False, False, True)
    added(table, "e", stage=ConnectionStage.BUSY)
    assert (busy.is_evicted, receiving.is_evicted) == (False, True)
    (last,) = added(table, "f", stage=ConnectionStage.BUSY)
    assert last.is_status_only
    assert not busy.is_evicted


def test_one_address_cannot_have_all_connections():
    table = ConnectionTable(ConnectionLimits(most=8, reserve=2))
    own = added(table, *["a"] * 7, stage=ConnectionStage.BUSY)
    assert [one.is_status_only for one in own] == [False] * 6 + [True]
    (other,) = added(table, "b")
    assert not other.is_status_only


def test_the_reserve_has_an_end():
    table = ConnectionTable(ConnectionLimits(most=2, reserve=1))
    added(table, "a", "b", stage=ConnectionStage.BUSY)
    assert not table.is_full
    added(table, "c", stage=ConnectionStage.BUSY)
    assert table.is_full
    assert not table.evict()


def test_a_table_forgets_what_has_left():
    table = ConnectionTable(ConnectionLimits())
    fakes = added(table, "a", "b", "a")
    for fake in fakes * 2:
        table.move(fake, ConnectionStage.BUSY)
        table.remove(fake)
    assert len(table) == 0
    assert not table._addresses
    assert not any(table._by_stage.values())


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("1.2.3.4", 5), "1.2.3.4"),
        (("::ffff:1.2.3.4", 5, 0, 0), "1.2.3.4"),
        (("2001:db8:0:7::1", 5, 0, 0), "2001:db8:0:7::/64"),
        (("2001:db8:0:7:ffff::2", 5, 0, 0), "2001:db8:0:7::/64"),
        (("fe80::1%eth0", 5, 0, 0), "fe80::/64"),
        (None, ""),
        ("", ""),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(peer, address):
    assert address_of(peer) == address


# timeouts


def test_the_rest_of_a_body_after_its_reply_is_not_read_for_ever(demo_llm, monkeypatch):
    monkeypatch.setattr(process, "HEAD_TIMEOUT_S", 0.3)
    head = b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    with serving(demo_llm) as live, live.connect() as client:
        client.sendall(head)
        assert drip(client, b"a" * 10).startswith(b"HTTP/1.1 405")


def test_a_websocket_upgrade_is_a_plain_request(crowded):
    head = HEALTH.replace(b"close", b"Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13")
    with crowded.connect() as client:
        client.sendall(head)
        assert read_all(client, until=b'{"status":"ok"}').startswith(b"HTTP/1.1 200")
    assert wait_for(lambda: len(crowded.server.connections) == 0)


# descriptors


class Starved:
    """A listening socket for which the system has no descriptors, until it has."""

    def __init__(self, bound, code):
        self.bound, self.code, self.num_asked = bound, code, 0

    def __getattr__(self, name):
        return getattr(self.bound, name)

    def accept(self):
        self.num_asked += 1
        if self.code is not None:
            raise OSError(self.code, "Too many open files")
        return self.bound.accept()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_lack_of_descriptors_is_one_line_and_ends(demo_llm, monkeypatch, caplog, code):
    caplog.set_level(logging.DEBUG)
    found = []

    def starve(self, bound, *rest):
        found.append(Starved(bound, code))
        plain(self, found[0], *rest)

    plain = Acceptor.__init__
    monkeypatch.setattr(Acceptor, "__init__", starve)
    with serving(demo_llm) as live, live.connect() as client:
        client.sendall(HEALTH)
        assert wait_for(lambda: found[0].num_asked >= 3)
        assert found[0].num_asked < 100, "it does not try without a pause"
        found[0].code = None
        assert read_all(client).startswith(b"HTTP/1.1 200")
    lines = [one for one in caplog.records if "cannot be" in one.msg or "%s: %d open" in one.msg]
    assert len(lines) == 1
    assert "no connection can be accepted (Too many open files)" in lines[0].getMessage()
    assert not any(one.exc_info for one in caplog.records)


@pytest.fixture
def rlimit(monkeypatch):
    """A limit of open files as (soft, hard), which only this test sees."""

    def give(soft, hard):
        state = [(soft, hard)]
        monkeypatch.setattr(resource, "getrlimit", lambda _: state[-1])
        monkeypatch.setattr(resource, "setrlimit", lambda _, pair: state.append(pair))
        return state

    return give


def test_the_soft_limit_is_raised_where_the_hard_one_is_enough(rlimit):
    for hard in (4096, resource.RLIM_INFINITY):
        state = rlimit(256, hard)
        limits, warning = fit_descriptors(ConnectionLimits(1000, 32), num_open=30)
        assert warning is None
        assert (limits.most, limits.reserve) == (1000, 32)
        assert state[-1] == (1126, hard), "what is needed and no more"


def test_a_sufficient_limit_is_left_alone(rlimit):
    for pair in ((2048, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        state = rlimit(*pair)
        assert fit_descriptors(ConnectionLimits(), num_open=30) == (ConnectionLimits(), None)
        assert state == [pair]


@pytest.mark.parametrize(("soft", "hard"), [(64, 64), (64, 512), (10, 10), (256, 1100)])
def test_a_limit_that_is_too_low_is_told_and_fewer_connections_are_taken(rlimit, soft, hard):
    state = rlimit(soft, hard)
    limits, warning = fit_descriptors(ConnectionLimits(1000, 32), num_open=20)
    assert state[-1][0] == hard
    assert f"open files is {hard}" in warning
    assert "LimitNOFILE=1116" in warning
    assert 1 <= limits.most < 1000
    if hard >= 64:
        assert 20 + limits.most + limits.reserve < hard


# uploads


@pytest.mark.parametrize(
    "url", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate", "/tokenize"]
)
@pytest.mark.parametrize("is_reset", [False, True])
def test_an_upload_that_breaks_off_is_one_debug_line(live, caplog, url, is_reset):
    caplog.set_level(logging.DEBUG)
    with live.connect() as client:
        client.sendall(POST.replace(b"/v1/completions", url.encode()))
        time.sleep(0.05)
        if is_reset:
            linger = b"\1\0\0\0\0\0\0\0"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert wait_for(lambda: "upload_broke_off" in caplog.text)
    lines = [one for one in caplog.records if one.name.startswith(("unmask", "uvicorn"))]
    assert [(one.levelname, one.exc_info) for one in lines] == [("DEBUG", None)]
    metrics = live.send(HEALTH.replace(b"/health", b"/metrics")).decode()
    assert f'unmask:http_requests_total{{route="{url}",status="499"}}' in metrics
    assert 'status="500"' not in metrics
