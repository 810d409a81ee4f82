"""Accessibility of the playground, measured with axe-core, and errors and help where they belong."""

from __future__ import annotations

from importlib.resources import files

import pytest
from test_page import (
    KEY,
    browser,
    finished,
    generate,
    open_with,
    page,
    pytestmark,
    ready,
    running,
    visit,
)
from test_page_export import PHONE

__all__ = ["browser", "page", "pytestmark", "running", "visit"]

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDE = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def axe() -> str:
    """The program that measures a page."""
    package = pytest.importorskip(
        "axe_playwright_python", reason="axe-core comes with axe-playwright-python"
    )
    return (files(package) / "axe.min.js").read_text("utf-8")


def violations(tab, axe: str) -> list[str]:
    """Return a line for every element that breaks a rule."""
    tab.evaluate(f"{axe}; undefined")
    found = tab.evaluate(
        "tags => axe.run({runOnly: {type: 'tag', values: tags}}).then(r => r.violations)", WCAG
    )
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def open_all(tab) -> None:
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_axe_finds_nothing_on_the_page_before_while_and_after_a_decode(
    visit, page, axe, scheme, size
):
    page.set(step_s=0.1)
    tab = visit(page, color_scheme=scheme)
    tab.set_viewport_size(size)
    ready(tab)
    tab.locator(".decoder").nth(1).select_option("wino")
    assert violations(tab, axe) == []
    tab.fill("#text", "How many?")
    tab.click("#run")
    tab.wait_for_selector(".canvas .position.new")
    assert violations(tab, axe) == []
    finished(tab)
    open_all(tab)
    tab.select_option("#colors", "order")
    assert violations(tab, axe) == []


def test_axe_finds_nothing_on_errors_and_dialogs(visit, page, axe):
    page.set(refuses="no")
    tab = ready(visit(page, expected=("400",)))
    open_all(tab)
    tab.locator("[data-knob=threshold]").last.fill("7")
    generate(tab, "How many?")
    assert tab.locator(".problem:visible").count() == 2
    assert violations(tab, axe) == []
    tab.click("#docs")
    tab.wait_for_selector("#reference[open]")
    assert violations(tab, axe) == []


def test_axe_finds_what_is_wrong(visit, page, axe):
    tab = ready(visit(page))
    tab.evaluate("seed => seed.labels[0].replaceWith(seed)", tab.query_selector("#seed"))
    tab.evaluate("document.querySelector('#model').style.color = 'silver'")
    rules = {line.split(":")[0] for line in violations(tab, axe)}
    assert {"label", "color-contrast"} <= rules


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_that_asks_for_the_key(visit, page, axe, scheme):
    page.set(key=KEY, is_public=False)
    tab = visit(page, expected=("401",), color_scheme=scheme)
    assert violations(tab, axe) == []
    open_with(tab, "wrong")
    tab.wait_for_selector("[role=alert]:not(:empty)")
    assert violations(tab, axe) == []


def opened(visit, page, decoder: str, **settings):
    page.set(**settings)
    tab = ready(visit(page, expected=("400",)))
    tab.uncheck("#compare")
    lane = tab.locator(".lane").first
    lane.locator(".decoder").select_option(decoder)
    lane.locator(".knobs > summary").click()
    return tab, lane


def test_common_knobs_come_first_and_rare_ones_wait_behind_a_summary(visit, page):
    tab, lane = opened(visit, page, "wino")
    names = (
        lane.locator("fieldset")
        .first.locator("[data-knob]")
        .evaluate_all("all => all.map(e => e.dataset.knob)")
    )
    assert names == ["wide", "draft_a", "draft_b", "draft_c", "draft_d"]
    assert lane.locator("[data-knob=wide]").is_visible()
    assert lane.locator("[data-knob=draft_a]").is_hidden()
    summary = lane.locator(".rest summary")
    assert summary.inner_text() == "4 more: draft_a, draft_b, draft_c…"
    summary.click()
    lane.locator("[data-knob=draft_d]").fill("2")
    generate(tab, "How many?")
    assert page.log[0]["decoder_args"] == {"draft_d": 2}


def test_the_range_stands_at_the_field_and_a_value_outside_is_told_there(visit, page):
    tab, lane = opened(visit, page, "threshold")
    field = lane.locator("[data-knob=threshold]")
    row = lane.locator(".knob", has=tab.locator("[data-knob=threshold]"))
    assert row.locator(".range").inner_text() == "in [0, 1]"
    assert row.locator(".wrong").is_hidden()
    field.fill("1.5")
    field.blur()
    assert row.locator(".wrong").inner_text() == "1.5 must be in [0, 1]"
    assert field.get_attribute("aria-invalid") == "true"
    generate(tab, "How many?")
    assert page.log == [], "it was not sent"
    assert lane.locator(".problem").inner_text() == "threshold: 1.5 must be in [0, 1]"
    field.fill("1")
    assert row.locator(".wrong").is_hidden()
    assert field.get_attribute("aria-invalid") is None
    generate(tab, "How many?")
    assert page.log[0]["decoder_args"] == {"threshold": 1}


def test_a_limit_that_is_not_allowed_itself_is_refused(visit, page):
    tab, lane = opened(visit, page, "wino")
    lane.locator(".rest summary").click()
    lane.locator("[data-knob=draft_a]").fill("0")
    generate(tab, "How many?")
    assert page.log == []
    assert "draft_a: 0 must be > 0" in lane.locator(".problem").inner_text()


def test_a_refusal_of_the_server_stands_at_the_knob_that_it_names(visit, page):
    tab, lane = opened(
        visit, page, "threshold", refuses="sizes too large", param="decoder_args.sizes"
    )
    lane.locator("[data-knob=sizes]").fill("3, 4")
    generate(tab, "How many?")
    row = lane.locator(".knob", has=tab.locator("[data-knob=sizes]"))
    assert row.locator(".wrong").inner_text() == "400: sizes too large"
    assert lane.locator(".wrong:visible").count() == 1
    lane.locator("[data-knob=sizes]").fill("3")
    assert lane.locator(".wrong:visible").count() == 0


def test_the_reference_has_every_method_knob_and_route_and_can_be_searched(visit, page):
    tab = ready(visit(page))
    tab.click("#docs")
    tab.wait_for_selector("#reference[open]")
    text = tab.inner_text("#reference-text")
    for part in ("decoder prophet", "cache none", "threshold float in [0, 1]", "POST /v1/infill"):
        assert part in text
    assert "block_causal" in text
    assert "not for this model" in text
    tab.keyboard.type("forwards between")
    assert tab.locator("#found").inner_text() == "1 section with this text"
    assert "cache dual" in tab.inner_text("#reference-text")
    assert "prophet" not in tab.inner_text("#reference-text")
    tab.keyboard.press("Escape")
    assert tab.locator("#reference").is_hidden()
