"""The report of `unmask compare` and the player of `unmask replay` in a browser, with hostile texts."""

from __future__ import annotations

import numpy as np
import pytest
from test_page import browser, pytestmark
from test_page_access import axe, violations

from unmask.canvas import Edit, new_canvas
from unmask.pictures.film import film_of
from unmask.pictures.page import html_of
from unmask.pictures.svg import svg_of
from unmask.plain_text import printable, script_json
from unmask.view.comparison import MARK, PAGE

__all__ = ["axe", "browser", "pytestmark"]

HEBREW = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
HOSTILE = {
    "markup": "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n\x00\ufffe\uffff",
    "direction": f"\u202e{HEBREW}\u2066",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \ud83d " * 30,
    "long": "x" * 100_000,
}


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page offline; nothing may go wrong in it, and nothing may be asked for."""
    contexts, wrong = [], []

    def opened(text: str):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(offline=True)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: r.url == path.as_uri() or wrong.append(f"asks {r.url}"))
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def report() -> str:
    def answer(text: str, *, is_wrong: bool):
        facts = {"verdict": "wrong" if is_wrong else "right", "mark": "x", "is_wrong": is_wrong}
        return {"text": printable(text), "num_forwards": 1, "num_tokens": 1, "film": None} | facts

    docs = [
        {"doc": number, "prompt": printable(text), "target": printable(text)}
        | {"answers": [answer(text, is_wrong=True), answer("b", is_wrong=False)]}
        for number, text in enumerate(HOSTILE.values())
    ]
    data = {"title": "<b>t</b>", "about": "a", "table": [["run"], ["<i>"]], "pictures": []}
    data |= {"runs": ["a", "b"], "num_docs": len(docs), "docs": docs}
    return PAGE.read_text("utf-8").replace(MARK, script_json(data))


def test_the_report_shows_hostile_texts_as_texts_and_keeps_the_keyboards_place(opened, axe):
    tab = opened(report())
    assert tab.title() == "<b>t</b>"
    buttons = tab.locator("#list button")
    assert buttons.count() == len(HOSTILE)
    for number, text in enumerate(HOSTILE.values()):
        buttons.nth(number).focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#detail pre").first.text_content() == printable(text)
        assert buttons.nth(number).evaluate("e => e === document.activeElement")
    assert tab.evaluate("window.hacked") is None
    buttons.nth(2).click()
    direction = "e => getComputedStyle(e).direction"
    assert tab.locator("#detail pre").first.evaluate(direction) == "rtl"
    assert violations(tab, axe) == []


class Texts:
    """The hostile texts as tokens 1, 2, ...; 0 is the mask."""

    special: frozenset[int] = frozenset()
    words = ("", *HOSTILE.values())

    def text(self, *ids: int) -> str:
        return "".join(self.words[id_] for id_ in ids)

    def of_positions(self, canvas, start: int) -> list[str]:
        open_ = canvas.open.tolist()[start:]
        tokens = canvas.tokens.tolist()[start:]
        return ["" if o else self.words[t] for o, t in zip(open_, tokens, strict=True)]


def film():
    count = len(HOSTILE)
    canvas = new_canvas([1] + [0] * count, [False] + [True] * count, 1, 0)
    everything = np.arange(1, count + 1)
    edit = Edit(everything, everything, np.full(count, 0.5))
    others = [{at: [(at, 0.5), (1, 0.25)] for at in range(1, count + 1)}]
    return film_of(canvas, [(edit, count)], Texts(), title=HOSTILE["markup"], alternatives=others)


def test_the_player_shows_hostile_texts_and_their_alternatives_as_texts(opened, axe):
    html = html_of(film())
    tab = opened(html)
    assert tab.evaluate("window.hacked") is None
    tab.locator("#canvas span").first.hover()
    assert "likeliest" in tab.inner_text("#detail")
    assert "</script>" in tab.inner_text("#detail")
    assert violations(tab, axe) == []


def test_the_svg_of_hostile_texts_is_xml_without_elements_of_theirs(opened):
    from xml.etree import ElementTree

    text = svg_of(film())
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert {item.tag.split("}")[1] for item in root.iter()} <= {
        *("svg", "rect", "g", "animate", "text", "title"),
    }
    assert opened(f"<!doctype html><body>{text}").evaluate("window.hacked") is None
