"""`unmask chat`, piped and at a terminal, with a model here and one behind a URL."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import time

import pytest
from mock_page import WORDS, mock_page
from mock_server import mock_server
from rich.console import Console

from unmask.cli.main import main
from unmask.view.terminal import END, OPEN, REOPENED, frame_text

QUESTION = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"


@pytest.fixture
def say(monkeypatch, capsys):
    """`say(lines, words...)`: exit status, what was printed, and what was said beside it."""

    def say(lines, *words):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        status = main(["chat", *map(str, words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return say


@pytest.fixture(scope="module")
def page():
    with mock_page() as page:
        yield page


def test_a_line_of_a_pipe_is_a_turn(say):
    words = ("--gen-length", "48", "--decoder", "threshold")
    status, out, err = say([QUESTION, "", "/reset", QUESTION], *words)
    assert (status, err) == (0, "")
    assert out == 2 * "Then: 7+5=12\n#### 12\n"


def test_commands_change_what_decodes_and_keep_the_conversation(say, page):
    page.set()
    lines = ["One?", "/decoder threshold", "/set threshold=0.5", "/set cache.period=2"]
    lines += ["/cache dual", "/set gen_length=12", "/set seed=3", "Two?", "/unset threshold"]
    lines += ["/set cache.period=4", "/reset", "Three?", "/quit", "never said"]
    status, out, _ = say(lines, "--base-url", page.url)
    assert status == 0
    assert out.count("answer is") == 3
    one, two, three = page.log
    assert one["messages"] == [{"role": "user", "content": "One?"}]
    assert not {"decoder", "cache", "seed", "max_tokens"} & set(one), "the server's own"
    assert [message["content"] for message in two["messages"]] == ["One?", "".join(WORDS), "Two?"]
    assert (two["decoder"], two["decoder_args"]) == ("threshold", {"threshold": 0.5})
    assert (two["cache"], two["max_tokens"], two["seed"]) == ("dual", 12, 3)
    assert "cache_args" not in two, "another cache begins at its defaults"
    assert "decoder_args" not in three
    assert three["cache_args"] == {"period": 4}
    assert len(three["messages"]) == 1


def test_a_system_message_outlives_the_reset(say, page):
    page.set()
    say(["One?", "/reset", "Two?"], "--base-url", page.url + "/v1", "--system", "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert [body["messages"][0] for body in page.log] == [system, system]
    assert len(page.log[1]["messages"]) == 2


def test_a_server_of_another_make_gives_text(say):
    with mock_server(answer="Well.") as mock:
        words = ("--base-url", mock.url, "--max-tokens", 8)
        assert say(["One?"], *words) == (0, "Well.\n", "")
        assert "stream_mode" not in mock.log[0]
        status, _, err = say(["/decoder klass"], *words)
        assert status == 2
        assert "is not an unmask server" in err


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        (["/decoder treshold"], (), "did you mean 'threshold'"),
        (["/sett x=1"], (), "did you mean '/set'"),
        (["/set threshold"], (), "KNOB=VALUE"),
        (["/decoder"], (), "/decoder needs an argument"),
        (["/reset now"], (), "/reset takes no argument"),
        (["/unset threshold"], (), "unknown changed knob"),
        (["/set gen_length=x"], (), "whole number"),
        (["hello"], ("gen_length=0",), "gen_length"),
        (["hello"], ("a prompt",), "typed at the prompt"),
        (["hello"], ("demo",), "chosen with --model"),
        (["\udcff hello"], (), "not UTF-8"),
        (["hello"], ("raw=true",), "not for this command"),
        (["hello"], ("--api-key", "x"), "no effect without --base-url"),
        (["/decoder threshold", "/set tresh=1"], (), "tresh"),
        (["/set wide_in_thres=0.5"], (), "wide_in_thres"),
    ],
)
def test_what_cannot_be_ends_a_pipe_with_one_line(say, lines, words, said):
    status, out, err = say(lines, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_what_the_server_refuses_is_told(say, page):
    page.set(refuses="no more today")
    status, _, err = say(["One?"], "--base-url", page.url)
    assert status == 2
    assert "status 400: no more today" in err
    page.set(key="k")
    assert "give the server's key, --api-key" in say(["One?"], "--base-url", page.url)[2]
    page.set()
    assert say(["One?"], "--base-url", page.url, "--device", "cpu")[0] == 2
    assert "cannot be reached" in say(["One?"], "--base-url", "http://127.0.0.1:9")[2]


def position(text, **more):
    return {"text": text, "confidence": 0.9, "open": False, "new": False, **more}


def test_a_servers_canvas_is_drawn_as_ours_are():
    positions = [
        position("a", fixed=True),
        position("", open=True),
        position("", open=True, taken_back=True),
    ]
    positions += [
        position("b\n", new=True),
        position("c", new=True, confidence=0.1),
        position("\x1b[2J"),
    ]
    positions += [position("<end>", end=True)] * 3
    shown = frame_text({"slots": positions})
    assert shown.plain == f"a{OPEN}{REOPENED}b↵\nc\ufffd[2J{END}×3"
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles["b↵\n"] == "bold underline #66CC66"
    assert styles["c"] == "bold underline #FF6666"
    assert styles[f"{END}×3"] == "dim"
    Console(file=io.StringIO()).print(shown)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_the_canvas_is_live_and_a_mistake_ends_nothing(page):
    import pty

    page.set()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "unmask.cli.main", "chat", "--base-url", page.url]
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "70", "LINES": "20"}
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    shown = ""

    def until(mark: str) -> None:
        nonlocal shown
        start, end = len(shown), time.monotonic() + 30
        while mark not in shown[start:] and time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 1 << 16).decode("utf-8", "replace")
        assert mark in shown[start:], shown

    try:
        until("> ")
        os.write(master, b"/decoder klas\n")
        until("unknown decoder 'klas'")
        os.write(master, b"How many?\n")
        until("tokens per forward")
        os.write(master, b"/quit\n")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "forward 0 · 0 of 16 positions" in plain
    assert OPEN * 16 in plain
    assert "answer is" in plain
