"""Text of models, files and clients neither drives a terminal nor changes the form of a report."""

from __future__ import annotations

import io
import json
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from unmask.cli import inspect
from unmask.cli.main import main
from unmask.cli.messages import MAX_WARNINGS, say, warnings_as_lines
from unmask.evals.results import Results, markdown, side_by_side
from unmask.plain_text import REPLACEMENT, escaped, markdown_text, one_line, printable
from unmask.server.errors import sanitize
from unmask.view.progress import EvaluationView, LoadingView

CONTROLS = [chr(n) for n in (*range(32), *range(0x7F, 0xA0)) if chr(n) not in "\n\t"]
BIDI = [chr(n) for n in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
HIDDEN = list("\u00ad\u034f\u180e\u200b\u2028\u2029\u2060\u2064\u206f\ufeff\ufff9\u3164\U000e0041")
LONE = ["\ud800", "\udbff", "\udc80", "\udfff"]
BAD = CONTROLS + BIDI + HIDDEN + LONE
KEPT = [
    "a\tb\nc",
    "Gr\u00f6\u00dfe",
    "\u65e5\u672c",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u2764\ufe0f",
]
KEPT += ["\U0001f469\u200d\U0001f680", "e\u0301", "\u00a0", "\u05d0\u05d1", "\ufffd"]


@pytest.mark.parametrize("char", BAD, ids=ascii)
def test_a_bad_character_is_never_shown(char):
    for text in (char, f"a{char}b", char * 3, f"\u65e5{char}\u672c"):
        assert char not in printable(text)
        assert printable(text).count(REPLACEMENT) == text.count(char)
        assert char not in one_line(text)
        assert char not in markdown_text(text)
        assert char not in escaped(text)
        assert char not in sanitize(text, 100)


@pytest.mark.parametrize("text", KEPT, ids=ascii)
def test_what_people_write_is_kept(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "text", ["pay\u200dpal", "\u200ca", "a\u200c", "\u200d", "a \u200d\u65e5"], ids=ascii
)
def test_joiners_that_join_nothing_are_replaced(text):
    assert not set("\u200c\u200d") & set(printable(text))


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_made_harmless(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert printable(shown) == shown
    shown.encode()
    for char in shown:
        kind = unicodedata.category(char)
        assert kind not in ("Cs", "Zl", "Zp")
        assert kind != "Cc" or char in "\n\t"
    for line in (one_line(text), markdown_text(text), escaped(text)):
        assert not set("\n\r\t") & set(line)


def test_an_escape_shows_what_stood_there():
    assert escaped("a\x1b[2J\u202e\n\ud800") == "a\\x1b[2J\\u202e\\n\\ud800"


def rendered(text):
    """Return a text as HTML by an independent Markdown parser, tables and autolinks on."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render(text)


@pytest.mark.parametrize(
    "text",
    ["a|b", "`code`", "<script>alert(1)</script>", "<b>", "[x](http://evil)", "![x](y)", "**bold**"]
    + [
        "&lt;",
        "&#60;",
        "# head",
        "- item",
        "\\|",
        "<http://evil>",
        "a\n\n# head",
        "eb_sampler",
        "C:\\x",
    ],
)
def test_markdown_shows_a_text_as_it_is(text):
    from html import escape

    assert (
        rendered(markdown_text(text)) == f"<p>{escape(' '.join(text.split()), quote=False)}</p>\n"
    )
    table = rendered(f"|h|k|\n|---|---|\n|{markdown_text(text)}|end|\n")
    assert table.count("<td>") == 2
    assert "<td>end</td>" in table
    assert "<script" not in table
    assert "<a" not in table


def test_a_bare_address_is_no_link():
    assert "http://" not in markdown_text("see http://evil.example")
    assert rendered(markdown_text("http://evil.example")) == "<p>http://evil.example</p>\n"


EVIL = "evil\x1b[2J|`<img src=x>\u202e[a](http://b)\n# x"


def results():
    metrics = {"accuracy": 0.5, "num_docs": 2.0, "num_forwards": 1.0, "decode_s": 1.0}
    return Results(
        task=EVIL,
        model=EVIL,
        method=EVIL,
        cache=EVIL,
        metrics=metrics | {"peak_memory_bytes": 0.0},
        docs=(0, 1),
        right=(1.0, 0.0),
        settings={"batch_size": 1, "seed": 0},
        resolved={"num_fewshot": 0, "num_processes": 1, "dtype": EVIL},
        machine={"accelerator": EVIL, "num_threads": 1, "load_average": 1, "torch": EVIL},
        scores={f"exact_match,{EVIL}": 0.5},
        date="today",
        version=EVIL,
    )


def test_a_report_of_damaged_runs_keeps_its_form():
    page = side_by_side([EVIL, EVIL], [results(), results()])
    lines = page.rstrip("\n").split("\n")
    assert len(lines) == 4
    html = rendered(page)
    assert html.count("<tr>") == 3
    for sign in ("<img", "<a ", "<h1", "<code"):
        assert sign not in html
    assert not set("\x1b\u202e") & set(page)


def test_the_results_of_a_run_keep_their_form():
    page = markdown(results())
    assert len(page.rstrip("\n").split("\n")) == 9
    assert not set("\x1b\u202e") & set(page)


def test_inspect_shows_names_of_files_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr(
        inspect, "facts", lambda model: {"mask": "[mask]\x1b[2J\u202e\nx", "eos": None}
    )
    inspect.show("x", False)
    assert capsys.readouterr().out == "mask\t[mask]\ufffd[2J\ufffd x\neos\tnone\n"
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(inspect, "Console", lambda **options: terminal)
    inspect.show("x", False)
    assert "[mask]" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    inspect.show("x", True)
    assert json.loads(capsys.readouterr().out)["mask"].startswith("[mask]\x1b")


def test_progress_shows_labels_as_they_are():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    label = "[red]x[/nope]\x1b]0;title\x07\u202e\ny"
    with LoadingView(label, console, after_s=0) as view:
        view(1, 2)
    with EvaluationView(label, console) as view:
        view(1, 2)
    assert "[red]x[/nope]" in screen.getvalue()
    assert "\x1b]0;" not in screen.getvalue()
    assert "\u202e" not in screen.getvalue()


def test_an_error_is_one_clean_line(capsys):
    assert main(["inspect", "no\x1b[2J\u202e\u200b\nsuch"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("unmask: error: ")
    assert not set("\x1b\u202e\u200b") & set(error)


def test_warnings_are_lines_once_and_bounded(capsys):
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with warnings_as_lines():
            for _ in range(3):
                warnings.warn("mask_token_id=7\x1b[2J is\nodd", UserWarning, stacklevel=1)
            assert capsys.readouterr().err == "unmask: warning: mask_token_id=7\ufffd[2J is odd\n"
            for number in range(2 * MAX_WARNINGS):
                warnings.warn(f"number {number}", UserWarning, stacklevel=1)
            assert len(capsys.readouterr().err.splitlines()) == MAX_WARNINGS - 1
        assert warnings.showwarning is before


def test_a_message_has_its_kind(capsys):
    say("a\nb", "note")
    say("c")
    assert capsys.readouterr().err == "unmask: note: a b\nunmask: c\n"
