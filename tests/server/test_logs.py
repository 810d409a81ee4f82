"""The log never stops the server, tells how much was dropped, and comes as text or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from served import wait_for

from unmask.server.logs import (
    FIELDS,
    MAX_MESSAGE_CHARS,
    JsonFormatter,
    QueuedHandler,
    TextFormatter,
    announce,
    descriptor_of,
)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@contextmanager
def handling(descriptor, formatter=None, **options):
    handler = QueuedHandler(descriptor, **options)
    handler.setFormatter(formatter or logging.Formatter("%(message)s"))
    try:
        yield handler
    finally:
        handler.close()


def record(message, *args, level=logging.INFO, exc_info=None, fields=None):
    found = logging.LogRecord("unmask.server", level, __file__, 1, message, args, exc_info)
    if fields is not None:
        setattr(found, FIELDS, fields)
    return found


def drain(end):
    os.set_blocking(end, False)
    found = b""
    try:
        while piece := os.read(end, 65536):
            found += piece
    except BlockingIOError:
        pass
    os.set_blocking(end, True)
    return found


def test_lines_come_in_order(pipe):
    with handling(pipe[1]) as handler:
        for number in range(50):
            handler.handle(record("line %d", number))
        handler.flush()
        assert drain(pipe[0]).splitlines() == [b"line %d" % number for number in range(50)]
        assert handler.num_dropped == 0


def test_a_full_pipe_costs_lines_and_no_time_and_the_number_is_told(pipe):
    with handling(pipe[1], max_lines=20) as handler:
        began = time.monotonic()
        for _ in range(2000):
            handler.handle(record("x" * 200))
        assert time.monotonic() - began < 5
        assert handler.num_dropped > 1000
        found = b""

        def is_told():
            nonlocal found
            found += drain(pipe[0])
            return b" log lines were dropped" in found

        assert wait_for(is_told)
        assert wait_for(lambda: not handler._lines)
        handler.handle(record("the last"))
        handler.flush()
        found += drain(pipe[0])
        reports = [line for line in found.splitlines() if b"were dropped" in line]
        assert sum(int(line.split()[0]) for line in reports) == handler.num_dropped
        assert found.splitlines()[-1] == b"the last"
        assert found.count(b"x" * 200) == 2000 - handler.num_dropped


def test_the_end_does_not_wait_for_a_reader_that_is_not_there(pipe):
    handler = QueuedHandler(pipe[1], max_lines=5)
    for _ in range(2000):
        handler.handle(record("x" * 200))
    began = time.monotonic()
    handler.flush()
    handler.close()
    assert time.monotonic() - began < 5
    drain(pipe[0])
    handler._thread.join(5)
    assert not handler._thread.is_alive()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_costs_lines_only():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with handling(descriptor) as handler:
        handler.handle(record("a"))
        handler.handle(record("b"))
        handler.flush()
        assert handler.num_dropped == 2
    os.close(descriptor)


def test_a_pipe_without_a_reader_costs_lines_only():
    reader, writer = os.pipe()
    os.close(reader)
    with handling(writer) as handler:
        handler.handle(record("a"))
        handler.flush()
        assert handler.num_dropped == 1
    os.close(writer)


def test_a_descriptor_that_does_not_block_is_waited_for(pipe):
    os.set_blocking(pipe[1], False)
    with handling(pipe[1]) as handler:
        handler.handle(record("y" * 200_000))
        found = b""
        while not found.endswith(b"\n"):
            found += os.read(pipe[0], 65536)
        assert len(found) == 200_001


def test_a_record_that_cannot_be_formatted_is_counted(pipe, capsys):
    with handling(pipe[1]) as handler:
        handler.handle(record("%d", "no number"))
        assert handler.num_dropped == 1
    assert capsys.readouterr().err == ""


def raised():
    try:
        raise RuntimeError("a\x1b[31m\nb" + "c" * 50_000)
    except RuntimeError:
        return sys.exc_info()


def test_a_text_line_holds_no_control_characters_and_has_a_bound():
    text = TextFormatter().format(record("a\nb\x1b[0m\u202e%s", "z" * 99_999))
    assert text.isprintable()
    assert "INFO a\\nb\\x1b[0m\\u202e" in text
    assert len(text) < MAX_MESSAGE_CHARS + 100
    trace = TextFormatter().format(record("failed", exc_info=raised()))
    assert len(trace) < 20_000
    assert all(line.isprintable() for line in trace.splitlines())


def test_a_json_line_is_one_object():
    fields = {"request_id": "r1", "status": 200}
    line = JsonFormatter().format(record("a\nb %s", "c\u2028d", fields=fields))
    assert "\n" not in line
    assert line.isascii()
    content = json.loads(line)
    assert content["message"] == "a\\nb c\\u2028d"
    assert (content["level"], content["logger"]) == ("INFO", "unmask.server")
    assert (content["request_id"], content["status"]) == ("r1", 200)
    assert content["time"].endswith("Z")
    failed = JsonFormatter().format(record("failed", exc_info=raised()))
    assert "\n" not in failed
    assert len(failed) < 30_000
    assert "cccc" in json.loads(failed)["exception"]


def test_streams_without_a_descriptor_have_a_default(capsys):
    import io

    assert descriptor_of(None, 2) == 2
    assert descriptor_of(io.StringIO(), 1) == 1


def test_an_announcement_does_not_wait(pipe, monkeypatch):
    os.set_blocking(pipe[1], False)
    with suppress(BlockingIOError):
        while os.write(pipe[1], b"x" * 4096):
            pass
    os.set_blocking(pipe[1], True)

    class Stream:
        def fileno(self):
            return pipe[1]

    monkeypatch.setattr(sys, "stdout", Stream())
    before = threading.active_count()
    announce("ready")
    found = b""
    while not found.endswith(b"ready\n"):
        found = (found + os.read(pipe[0], 65536))[-10:]
    assert wait_for(lambda: threading.active_count() <= before)
