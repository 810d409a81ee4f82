"""What leaves the playground, and how it fits a phone: heat maps, downloads, programs, links, targets."""

from __future__ import annotations

import ast
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from mock_page import HOSTILE, WORDS
from test_page import browser, canvas, finished, generate, page, pytestmark, ready, running, visit

__all__ = ["browser", "page", "pytestmark", "running", "visit"]

PHONE = {"width": 375, "height": 667}


def styles(tab) -> list[str]:
    return tab.locator(".canvas").first.evaluate(
        "e => [...e.children].map(s => s.style.background)"
    )


def test_the_colors_can_tell_confidence_or_order(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many?")
    assert set(styles(tab)) == {""}
    tab.select_option("#colors", "order")
    first, *_, last = styles(tab)
    assert first.startswith(("hsl", "rgb"))
    assert first != last
    tab.select_option("#colors", "confidence")
    assert styles(tab)[0] != styles(tab)[1], "their confidences differ"
    position = tab.locator(".canvas").first.locator("span").first
    position.hover()
    assert "forward 1" in position.get_attribute("title")
    tab.select_option("#colors", "new")
    assert set(styles(tab)) == {""}


def test_the_facts_have_tokens_per_second(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many?")
    assert "tokens/s" in tab.locator(".lane .facts").first.inner_text()


def test_a_download_plays_the_decode_without_the_server(visit, page, browser, tmp_path):
    tab = ready(visit(page))
    assert tab.locator(".save").first.is_disabled()
    generate(tab, "How many?")
    with tab.expect_download() as waiting:
        tab.locator(".save").nth(1).click()
    path = tmp_path / "decode.html"
    waiting.value.save_as(path)
    assert "http://" not in path.read_text("utf-8")
    context = browser.new_context(offline=True)
    wrong = []
    player = context.new_page()
    player.on("pageerror", lambda error: wrong.append(str(error)))
    player.goto(path.as_uri())
    assert "forward 4 of 4" in player.inner_text("#status")
    assert player.inner_text("#canvas").startswith("".join(WORDS)[:5])
    player.locator("#step").press("Home")
    assert set(player.eval_on_selector_all("#canvas span", "s => s.map(e => e.className)")) == {
        "open"
    }
    player.click("#play")
    player.wait_for_selector("#play:text-is('Play')")
    assert "forward 4 of 4" in player.inner_text("#status")
    player.hover("#canvas span")
    assert "forward 1, probability" in player.inner_text("#detail")
    context.close()
    assert not wrong


def test_a_hostile_text_stays_text_in_the_download(visit, page, browser, tmp_path):
    tab = ready(visit(page))
    generate(tab, "</script><script>document.title = 'owned'</script>")
    with tab.expect_download() as waiting:
        tab.locator(".save").nth(1).click()
    path = tmp_path / "decode.html"
    waiting.value.save_as(path)
    context = browser.new_context()
    player = context.new_page()
    player.goto(path.as_uri())
    assert player.title() != "owned"
    assert "</script>" in player.inner_text("#prompt")
    assert HOSTILE in player.inner_text("#canvas")
    assert not player.evaluate("window.hacked === 1")
    context.close()


def downloaded(tab, tmp_path, format: str):
    """Return the path of lane B's decode as a file."""
    tab.locator(".format").nth(1).select_option(format)
    with tab.expect_download() as waiting:
        tab.locator(".save").nth(1).click()
    assert waiting.value.suggested_filename == f"decode.{format}"
    waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
    return tmp_path / waiting.value.suggested_filename


def test_a_decode_is_downloaded_as_svg_gif_and_trace(visit, page, tmp_path):
    image = pytest.importorskip("PIL.Image")
    tab = ready(visit(page))
    generate(tab, "How many?")
    root = ElementTree.parse(downloaded(tab, tmp_path, "svg")).getroot()
    texts = "".join(root.itertext())
    assert "forward 4 of 4" in texts
    assert HOSTILE in texts
    with image.open(downloaded(tab, tmp_path, "gif")) as picture:
        assert picture.n_frames == 5
    lines = downloaded(tab, tmp_path, "jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"seed": 3},
        *({"step": number, "committed": []} for number in range(4)),
    ]
    assert page.log[0]["return_trace"] is page.log[0]["trace_header"] is True


def test_a_picture_that_is_refused_and_a_trace_that_never_came_are_told(visit, page):
    page.set(step_s=0.3, refuses_pictures="too large")
    tab = ready(visit(page, expected=("400",)))
    tab.uncheck("#compare")
    tab.fill("#text", "How many?")
    tab.click("#run")
    tab.wait_for_selector(".canvas .position.new")
    tab.keyboard.press("Escape")
    finished(tab)
    for format, problem in (("svg", "400: too large"), ("jsonl", "run it to its end")):
        tab.locator(".format").first.select_option(format)
        tab.locator(".save").first.click()
        tab.wait_for_selector(f".problem:has-text('{problem}')")
    assert tab.locator(".save").first.is_enabled()


def test_alternatives_show_on_hover_and_are_asked_for_by_number(visit, page, tmp_path):
    tab = ready(visit(page))
    tab.fill("#alternatives", "2")
    generate(tab, "How many?")
    assert {body["trace_alternatives"] for body in page.log} == {2}
    position = tab.locator(".canvas").nth(1).locator("span").first
    position.hover()
    assert position.get_attribute("title").endswith('forward 1, likeliest "<b>" 0.25, "x" 0.13')
    page_text = downloaded(tab, tmp_path, "html").read_text("utf-8")
    assert r'["\u003cb>",0.25]' in page_text
    tab.click("#reset")
    tab.fill("#alternatives", "0")
    generate(tab, "How many?")
    assert "trace_alternatives" not in page.log[-1]
    tab.fill("#text", "x")
    tab.fill("#alternatives", "21")
    tab.click("#run")
    assert len(page.log) == 4, "a form with a wrong number is not sent"


def test_copy_as_python_is_the_request_that_is_sent(visit, page):
    tab = ready(visit(page, permissions=["clipboard-read", "clipboard-write"]))
    tab.uncheck("#compare")
    tab.fill("#text", 'It\'s "here"?\n')
    tab.fill("#seed", "3")
    tab.locator(".copy-python").first.click()
    tree = ast.parse(tab.evaluate("navigator.clipboard.readText()"))
    _, call = (node.value for node in tree.body if isinstance(node, ast.Assign))
    assert call.func.attr == "chat"
    assert ast.literal_eval(call.args[0])[-1]["content"] == 'It\'s "here"?\n'
    options = {item.arg: ast.literal_eval(item.value) for item in call.keywords}
    assert (options["seed"], options["gen_length"]) == (3, 64)
    assert {"decoder", "cache"} <= options.keys()


def test_an_infill_is_copied_as_an_infill(visit, page):
    tab = ready(visit(page, permissions=["clipboard-read", "clipboard-write"]))
    tab.check("#mode-prompt")
    tab.fill("#text", "The {3} sat.")
    tab.locator(".copy-python").first.click()
    text = tab.evaluate("navigator.clipboard.readText()")
    assert (
        'llm.infill(\n    ["The", 3, " sat."]' in text
        or 'llm.infill(\n    ["The ", 3, " sat."]' in text
    )
    ast.parse(text)


def test_a_link_brings_the_form_back_without_the_key(visit, page):
    tab = ready(visit(page, permissions=["clipboard-read", "clipboard-write"]))
    tab.evaluate("document.getElementById('key').value = 'secret'")
    tab.fill("#text", "What is it? {2}")
    tab.check("#mode-prompt")
    tab.fill("#seed", "9")
    tab.locator(".decoder").nth(1).select_option(index=2)
    chosen = tab.locator(".decoder").nth(1).input_value()
    tab.click("#link")
    link = tab.evaluate("navigator.clipboard.readText()")
    assert "secret" not in link
    other = tab.context.new_page()
    other.goto(link)
    ready(other)
    assert other.input_value("#text") == "What is it? {2}"
    assert other.input_value("#seed") == "9"
    assert other.is_checked("#mode-prompt")
    assert other.locator(".decoder").nth(1).input_value() == chosen


def test_a_link_that_somebody_broke_leaves_the_form_as_it_is(visit, page):
    tab = ready(visit(page))
    before = tab.input_value("#max-tokens")
    for form in (
        "{",
        "3",
        "null",
        json.dumps({"lanes": [{"decoder": "no such"}], "mode": "x", "text": 3}),
    ):
        tab.goto("about:blank")
        tab.goto(f"{page.url}/#form={form}")
        ready(tab)
        assert tab.input_value("#max-tokens") == before
        assert tab.locator("#trouble").is_hidden()


def test_on_a_phone_the_canvas_comes_into_view_and_targets_have_44_pixels(visit, page):
    tab = visit(page, reduced_motion="reduce")
    tab.set_viewport_size(PHONE)
    ready(tab)
    assert not tab.locator(".canvas").first.evaluate(
        "e => e.getBoundingClientRect().bottom <= innerHeight"
    )
    generate(tab, "How many?")
    small = tab.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, input, .modes label")]
        .filter((e) => e.checkVisibility() && e.type !== "radio" && e.type !== "checkbox")
        .filter((e) => e.getBoundingClientRect().height < 44).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_on_a_phone_what_opens_has_its_triangle(visit, page):
    tab = visit(page)
    tab.set_viewport_size(PHONE)
    ready(tab)
    shown = "all => all.map(e => getComputedStyle(e).display)"
    assert set(tab.eval_on_selector_all("summary", shown)) == {"list-item"}


def test_a_phone_shows_the_canvas_while_it_fills(visit, page):
    tab = visit(page, reduced_motion="reduce")
    tab.set_viewport_size(PHONE)
    ready(tab)
    note = "function () { window.seen.push(this.className); }"
    tab.evaluate(f"() => {{ window.seen = []; Element.prototype.scrollIntoView = {note}; }}")
    generate(tab, "How many?")
    assert tab.evaluate("window.seen") == ["canvas"]
    finished(tab)
    assert canvas(tab)


def test_the_player_is_sent_as_text():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from unmask.server.app import add_page

    app = FastAPI()
    add_page(app, Path(__file__).parents[1] / "src/unmask/server/static")
    reply = TestClient(app).get("/static/player.html")
    assert reply.headers["content-type"].startswith("text/plain")
    assert "/*FILM_DATA*/null" in reply.text
