"""The playground in headless Chromium, on a server without a model whose canvases are scripted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from mock_page import HOSTILE, STATIC, WORDS, mock_page

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

WHOLE = "".join(WORDS)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        shown = playwright.chromium.launch(executable_path=str(CHROMIUM), args=sandbox)
        yield shown
        shown.close()


@pytest.fixture(scope="module")
def running():
    with mock_page() as page:
        yield page


@pytest.fixture
def page(running):
    running.set()
    return running


@pytest.fixture
def visit(browser):
    """Opens a page; at the end nothing may have gone wrong in the browser but what the test expects."""
    contexts, wrong = [], []

    def visit(page, expected=(), **settings):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(30_000)

        def hear(message) -> None:
            is_known = any(part in message.text for part in expected)
            if message.type in ("error", "warning") and not is_known:
                wrong.append(message.text)

        tab.on("console", hear)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: r.url.startswith(page.url) or wrong.append(f"asks {r.url}"))
        tab.goto(page.url)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def ready(tab):
    tab.wait_for_selector(".lane")
    return tab


def generate(tab, text: str, tokens: int = 14) -> None:
    tab.fill("#text", text)
    if tab.is_enabled("#max-tokens"):
        tab.fill("#max-tokens", str(tokens))
    tab.click("#run")
    finished(tab)


def finished(tab) -> None:
    tab.wait_for_selector("#run:enabled")


def canvas(tab, lane: int = 0) -> str:
    return tab.locator(".canvas").nth(lane).inner_text()


def classes(tab, lane: int = 0) -> list[str]:
    return tab.locator(".canvas").nth(lane).evaluate("e => [...e.children].map(s => s.className)")


def test_two_lanes_decode_the_same_prompt_with_their_own_decoders(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many pens?")
    first, second = sorted(page.log, key=lambda body: body["decoder"], reverse=True)
    for lane, forwards in ((0, 14), (1, 4)):
        assert tab.locator(".lane .facts").nth(lane).inner_text().startswith("12 tokens")
        assert f"{forwards} forwards" in tab.locator(".lane .facts").nth(lane).inner_text()
        assert tab.locator(".chart").nth(lane).locator("rect").count() == forwards
    assert tab.locator("#said").inner_text().startswith("Lane A: 12 tokens")
    assert (first["decoder"], second["decoder"]) == ("vanilla", "threshold")
    assert first["messages"] == [{"role": "user", "content": "How many pens?"}]
    assert first["max_tokens"] == 14
    assert (first["stream"], first["stream_mode"], first["cache"]) == (True, "canvas", "none")
    assert "decoder_args" not in first, "only knobs that were changed are sent"


def test_what_the_model_says_is_text_and_never_markup(visit, page):
    tab = ready(visit(page))
    generate(tab, "<b>bold?</b>")
    assert HOSTILE in canvas(tab).replace("\xa0", " ")
    generate(tab, "again")
    turns = tab.locator(".lane").nth(0).locator(".turns li")
    assert turns.nth(0).inner_text() == "<b>bold?</b>"
    assert HOSTILE in turns.nth(1).inner_text()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("main img, main b, main script").count() == 0


def test_the_policy_lets_no_script_or_style_of_a_page_run(visit, page):
    tab = ready(visit(page, expected=("Content Security Policy",)))
    tab.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
    }""")
    assert tab.evaluate("window.hacked") is None


def test_the_files_hold_nothing_inline_and_nothing_from_elsewhere():
    page = (STATIC / "index.html").read_text("utf-8")
    assert "style=" not in page
    assert "onclick" not in page
    for file in STATIC.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file.name
        assert "https://" not in text, file.name
        assert not any(word in text for word in ("innerHTML", "insertAdjacentHTML", "eval(")), (
            file.name
        )


def test_the_slider_replays_every_forward(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many?")
    step = tab.locator(".step").nth(1)
    step.focus()
    step.press("Home")
    assert set(classes(tab, 1)) == {"position open"}
    assert "forward 0 of 4, 0 of 14" in tab.locator(".where").nth(1).inner_text()
    step.press("ArrowRight")
    levels = ["position new high", "position new low", "position new middle", "position new high"]
    assert classes(tab, 1) == levels + ["position open"] * 10
    assert "↵" in canvas(tab, 1), "a new line end shows"
    step.press("ArrowRight")
    assert classes(tab, 1)[:4] == ["position old"] * 4
    assert (
        tab.locator(".chart").nth(1).locator("rect.current title").text_content() == "forward 2: 4"
    )
    step.press("End")
    assert classes(tab, 1)[-1] == "position new high end"
    tab.locator(".chart").nth(1).locator("rect").nth(0).click()
    assert classes(tab, 1)[0] == "position new high"


def test_replay_plays_to_the_end(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many?", 4)
    play = tab.locator(".play").nth(0)
    play.click()
    sync_api.expect(play).to_have_text("Pause")
    sync_api.expect(play).to_have_text("Replay")
    assert tab.locator(".where").nth(0).inner_text() == "forward 4 of 4, 4 of 4 positions"


def test_new_tokens_are_underlined_so_that_color_is_not_the_only_cue(visit, page):
    tab = ready(visit(page))
    generate(tab, "How many?", 12)
    style = "e => getComputedStyle(e).textDecorationLine"
    assert tab.locator(".canvas .position.new").first.evaluate(style) == "underline"
    assert tab.locator(".canvas .position.old").first.evaluate(style) == "none"


def contrast(tab, selector: str) -> float:
    """WCAG's contrast of an element's text, its own or the first opaque background behind it."""
    return tab.locator(selector).first.evaluate("""e => {
        const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const paint = (color) => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
            .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        let back = e;
        while (paint(getComputedStyle(back).backgroundColor)[3] < 255) back = back.parentElement;
        const a = light(paint(getComputedStyle(e).color));
        const b = light(paint(getComputedStyle(back).backgroundColor));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable_by_day_and_by_night(visit, page, scheme):
    selectors = ["#hint", ".about", ".position.old", "#run", ".explains", ".legend", ".where"]
    selectors += [f".legend .position.new.{level}" for level in ("low", "middle", "high")]
    tab = ready(visit(page, color_scheme=scheme))
    generate(tab, "How many?")
    found = {selector: contrast(tab, selector) for selector in selectors}
    assert all(value >= 4.5 for value in found.values()), found


def test_blanks_make_it_an_infill(visit, page):
    tab = ready(visit(page))
    tab.check("#mode-prompt", force=True)
    tab.fill("#text", "The {2} sat {{on}} the {3}.")
    assert tab.locator("#hint").inner_text().startswith("Infill: 2 blanks, 5 tokens.")
    assert tab.is_disabled("#max-tokens")
    generate(tab, "The {2} sat {{on}} the {3}.")
    assert page.log[-1]["parts"] == ["The ", 2, " sat {on} the ", 3, "."]
    assert "max_tokens" not in page.log[-1]
    assert canvas(tab) == "The xx sat {on} the xxx."
    assert classes(tab).count("position fixed") == 3
    assert tab.locator(".canvas .position.special").first.is_hidden(), (
        "the token that opens the text"
    )
    generate(tab, "The {x} and {3}")
    assert "for a brace" in tab.locator(".problem").nth(0).inner_text()


def test_a_prompt_without_blanks_goes_as_it_is(visit, page):
    tab = ready(visit(page))
    tab.check("#mode-prompt", force=True)
    generate(tab, 'a {"b": {}}')
    assert page.log[-1]["prompt"] == 'a {"b": {}}'
    assert "messages" not in page.log[-1]


def test_only_changed_knobs_are_sent_and_their_types_are_kept(visit, page):
    tab = ready(visit(page))
    tab.uncheck("#compare")
    lane = tab.locator(".lane").nth(0)
    lane.locator(".decoder").select_option("threshold")
    lane.locator(".cache").select_option("dual")
    lane.locator(".knobs > summary").click()
    threshold = lane.locator("[data-knob=threshold]")
    assert threshold.get_attribute("placeholder") == "0.9"
    tip = lane.locator(f"#{threshold.get_attribute('aria-describedby').split()[0]}")
    assert tip.inner_text() == "1: one at a time; 0: all at once (default: 0.9)"
    threshold.fill("0.5")
    lane.locator("[data-knob=sizes]").fill("3, 4")
    lane.locator("[data-knob=period]").fill("2")
    lane.locator("[data-knob=compat]").select_option("true")
    lane.locator("[data-knob=vocabulary]").select_option("static")
    assert lane.locator(".changed").inner_text() == "· 5 changed"
    generate(tab, "How many?")
    (body,) = page.log
    changed = {"threshold": 0.5, "sizes": [3, 4], "compat": True, "vocabulary": "static"}
    assert body["decoder_args"] == changed
    assert body["cache_args"] == {"period": 2}
    lane.locator("[data-knob=sizes]").fill("a")
    generate(tab, "How many?")
    assert "sizes" in lane.locator(".problem").inner_text()
    assert len(page.log) == 1


def test_a_cache_that_the_model_refuses_is_not_offered(visit, page):
    tab = ready(visit(page))
    offered = tab.locator(".lane .cache").first.locator("option").all_inner_texts()
    assert offered == ["dual", "none"]


def test_a_decoder_that_wraps_another_shows_its_knobs_too(visit, page):
    tab = ready(visit(page))
    lane = tab.locator(".lane").nth(0)
    lane.locator(".decoder").select_option("prophet")
    lane.locator(".knobs > summary").click()
    lane.locator("[data-knob=inner]").select_option("threshold")
    lane.locator("[data-knob=threshold]").fill("0.7")
    generate(tab, "How many?")
    body = next(body for body in page.log if body["decoder"] == "prophet")
    assert body["decoder_args"] == {"inner": "threshold", "threshold": 0.7}


def test_a_token_that_is_taken_back_shows(visit, page):
    tab = ready(visit(page))
    tab.locator(".decoder").nth(0).select_option("wino")
    generate(tab, "How many?")
    step = tab.locator(".step").nth(0)
    step.focus()
    step.press("Home")
    for _ in range(3):
        step.press("ArrowRight")
    assert classes(tab)[0] == "position open again"


def test_a_conversation_goes_on_and_can_be_begun_anew(visit, page):
    tab = ready(visit(page))
    tab.uncheck("#compare")
    generate(tab, "One?", 12)
    generate(tab, "Two?", 12)
    assert page.log[-1]["messages"] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": WHOLE},
        {"role": "user", "content": "Two?"},
    ]
    tab.click("#reset")
    generate(tab, "Three?", 12)
    assert page.log[-1]["messages"] == [{"role": "user", "content": "Three?"}]


def test_stop_ends_a_decode_and_keeps_what_was_seen(visit, page):
    page.set(step_s=0.3)
    tab = ready(visit(page))
    tab.fill("#text", "How many?")
    tab.click("#run")
    tab.wait_for_selector(".canvas .position.new")
    assert tab.is_disabled("#run")
    tab.keyboard.press("Escape")
    finished(tab)
    assert "stopped" in tab.locator(".lane .facts").nth(0).inner_text()
    assert "position open" in classes(tab)
    assert tab.locator(".problem").nth(0).is_hidden()


def test_everything_can_be_done_with_the_keyboard_alone(visit, page):
    tab = ready(visit(page))
    seen = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
        if seen[-1] == "text":
            break
    assert seen[-1] == "text", seen
    tab.keyboard.type("How many?")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector(".lane .facts:not(:empty)")
    finished(tab)
    assert len(page.log) == 2
    order = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["max-tokens", "seed", "compare", "run", "decoder", "cache", "canvas", "step"]
    assert [name for name in dict.fromkeys(order) if name in wanted] == wanted


def test_every_control_has_a_name(visit, page):
    tab = ready(visit(page))
    for summary in tab.locator("summary").all():
        summary.click()
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    nameless = tab.evaluate("""() => [...document.querySelectorAll("input,select,textarea,button")]
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
        .map((e) => e.outerHTML)""")
    assert nameless == []


def test_what_the_server_refuses_is_shown_in_its_lane(visit, page):
    page.set(refuses="max_tokens=14: <b>too many</b>")
    tab = ready(visit(page, expected=("400",)))
    generate(tab, "How many?")
    problem = tab.locator(".problem").nth(0)
    assert tab.locator(".where").nth(0).inner_text() == "no forward yet"
    assert tab.locator(".step").nth(0).is_disabled()
    assert problem.inner_text() == "400: max_tokens=14: <b>too many</b>"
    assert problem.get_attribute("role") == "alert"
    generate(tab, "  ")
    assert "The text is empty" in problem.inner_text()


def test_a_server_with_a_key_asks_for_it(visit, page):
    page.set(key="secret")
    tab = visit(page, expected=("401",))
    tab.wait_for_selector("#trouble:visible")
    assert "requires an API key" in tab.locator("#trouble").inner_text()
    tab.keyboard.type("secret")
    tab.keyboard.press("Enter")
    ready(tab)
    assert tab.locator("#trouble").is_hidden()


KEY = "k\u00e9y-\u20ac-long"


def open_with(tab, key: str) -> None:
    tab.fill("#key", key)
    tab.keyboard.press("Enter")


def test_a_page_behind_a_key_is_opened_by_typing_it_once(visit, page):
    page.set(key=KEY, is_public=False)
    tab = visit(page, expected=("401",))
    assert tab.evaluate("document.activeElement.id") == "key", "one can type at once"
    open_with(tab, "wrong")
    sync_api.expect(tab.locator("[role=alert]")).to_have_text("This key is not accepted.")
    assert tab.context.cookies() == []
    open_with(tab, KEY)
    generate(ready(tab), "How many pens?")
    assert tab.locator(".lane .facts").nth(0).inner_text().startswith("12 tokens")
    assert tab.url.rstrip("/") == page.url, "the key is not in the address"
    assert tab.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage)]") == [
        "{}",
        '{"unmask-theme":"auto"}',
    ]
    (cookie,) = tab.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert cookie["expires"] == -1
    assert KEY not in cookie["value"]
    assert tab.evaluate("document.cookie") == ""
    assert tab.evaluate("fetch('v1/schema').then(r => r.status)") == 401, "it opens files only"


def test_a_page_that_was_opened_asks_for_the_key_itself_when_it_is_loaded_again(visit, page):
    page.set(key=KEY, is_public=False)
    tab = visit(page, expected=("401",))
    open_with(tab, KEY)
    ready(tab)
    tab.reload()
    tab.wait_for_selector("#trouble:visible")
    assert tab.input_value("#key") == ""
    open_with(tab, KEY)
    ready(tab)


def test_a_browser_that_keeps_no_cookie_is_told_so(visit, page):
    page.set(key=KEY, is_public=False, sets_cookies=False)
    tab = visit(page, expected=("401",))
    open_with(tab, KEY)
    sync_api.expect(tab.locator("[role=alert]")).to_contain_text("keeps no cookie")
    assert tab.evaluate("sessionStorage.length") == 0


def test_the_key_page_runs_its_own_script_only_and_tells_nothing(visit, page):
    page.set(key=KEY, is_public=False)
    tab = visit(page, expected=("401", "Content Security Policy"))
    assert "unmask" not in tab.inner_text("body")
    assert "demo" not in tab.content()
    tab.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
    }""")
    assert tab.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_key_page_is_readable_by_day_and_by_night(visit, page, scheme):
    page.set(key=KEY, is_public=False)
    tab = visit(page, expected=("401",), color_scheme=scheme)
    open_with(tab, "wrong")
    sync_api.expect(tab.locator("[role=alert]")).to_have_text("This key is not accepted.")
    found = {name: contrast(tab, name) for name in ("label", "button", "small", "[role=alert]")}
    assert all(value >= 4.5 for value in found.values()), found


def test_copy_as_curl_is_the_request_that_is_sent(visit, page):
    tab = ready(visit(page, permissions=["clipboard-read", "clipboard-write"]))
    tab.uncheck("#compare")
    generate(tab, "It's <here>?", 4)
    tab.locator(".copy-text").nth(0).click()
    assert tab.evaluate("navigator.clipboard.readText()") == "".join(WORDS[:4])
    tab.click("#reset")
    tab.fill("#text", "It's <here>?")
    tab.locator(".copy-curl").nth(0).click()
    command = tab.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl -N '{page.url}/v1/chat/completions'")
    body = command.split("-d '", 1)[1].removesuffix("'").replace("'\\''", "'")
    assert json.loads(body) == page.log[0]


def test_the_page_fits_a_narrow_screen(visit, page):
    tab = visit(page)
    tab.set_viewport_size({"width": 360, "height": 800})
    ready(tab)
    generate(tab, "How many?")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [tab.locator(".lane").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["x"] == boxes[1]["x"], "the lanes are below each other"


def test_the_theme_is_kept(visit, page):
    tab = ready(visit(page, color_scheme="light"))
    paper = "getComputedStyle(document.body).backgroundColor"
    bright = tab.evaluate(paper)
    tab.click("#theme")
    tab.click("#theme")
    dark = tab.evaluate(paper)
    assert dark != bright
    tab.reload()
    assert tab.evaluate(paper) == dark


def test_the_help_of_a_knob_shows_in_one_place_and_moves_nothing(visit, page):
    tab = ready(visit(page))
    tab.locator(".decoder").nth(0).select_option("threshold")
    tab.locator(".knobs > summary").nth(0).click()
    explains = tab.locator(".explains").nth(0)
    before = tab.locator(".canvas").nth(0).bounding_box()
    tab.locator(".lane").nth(0).locator("[data-knob=threshold]").hover()
    said = "threshold: 1: one at a time; 0: all at once (default: 0.9)"
    assert explains.inner_text() == said
    tab.locator(".lane").nth(0).locator("[data-knob=sizes]").focus()
    assert explains.inner_text() == "sizes: a list (default: 1, 2)"
    assert tab.locator(".canvas").nth(0).bounding_box() == before


def test_another_cache_keeps_the_decoders_knobs_and_another_decoder_the_shared_ones(visit, page):
    tab = ready(visit(page))
    lane = tab.locator(".lane").nth(1)
    lane.locator(".knobs > summary").click()
    lane.locator("[data-knob=threshold]").fill("0.5")
    lane.locator("[data-knob=temperature]").fill("0.3")
    lane.locator(".cache").select_option("dual")
    assert lane.locator("[data-knob=threshold]").input_value() == "0.5"
    lane.locator("[data-knob=period]").fill("2")
    lane.locator(".decoder").select_option("vanilla")
    assert lane.locator("[data-knob=temperature]").input_value() == "0.3"
    assert lane.locator("[data-knob=period]").input_value() == "2"
    assert lane.locator(".changed").inner_text() == "· 2 changed"


def test_both_charts_have_one_scale_and_named_axes(visit, page):
    tab = ready(visit(page))
    scale = ".chart svg >> nth=1"
    assert tab.get_attribute(scale, "viewBox") == "0 -4 24 4", "an empty chart has its axes too"
    tab.fill("#text", "How many?")
    tab.fill("#max-tokens", "40")
    tab.click("#run")
    finished(tab)
    views = {tab.get_attribute(f".chart svg >> nth={i}", "viewBox") for i in (0, 1)}
    assert views == {"0 -4 40 4"}
    words = [tab.locator(f".plot .{part}").nth(1).inner_text() for part in ("top", "axis", "last")]
    assert words == ["4", "forward", "40"]
    tab.uncheck("#compare")
    tab.fill("#text", "How many?")
    tab.fill("#max-tokens", "4")
    tab.click("#run")
    finished(tab)
    assert tab.get_attribute(".chart svg >> nth=0", "viewBox") == "0 -4 24 4"


def test_the_lanes_stand_side_by_side_part_by_part(visit, page):
    page.set(refuses="no")
    tab = ready(visit(page, expected=("400",)))
    tab.locator(".decoder").nth(0).select_option("threshold")
    generate(tab, "How many?")
    tab.locator(".knobs > summary").nth(0).click()
    sync_api.expect(tab.locator(".knobs[open]")).to_have_count(2)
    for part in (".canvas", ".replay", ".chart", ".foot"):
        tops = [tab.locator(part).nth(i).bounding_box()["y"] for i in (0, 1)]
        assert tops[0] == tops[1], part


def test_a_chat_shows_its_question_and_asks_it_again_without_the_answer(visit, page):
    tab = ready(visit(page))
    tab.uncheck("#compare")
    assert tab.locator("#again").is_hidden()
    generate(tab, "One?", 12)
    assert tab.input_value("#text") == ""
    assert tab.evaluate("document.activeElement.id") == "text"
    turns = tab.locator(".lane").nth(0).locator(".turns li")
    assert turns.all_inner_texts() == ["One?"]
    tab.click("#again")
    finished(tab)
    assert [body["messages"] for body in page.log] == [[{"role": "user", "content": "One?"}]] * 2
    tab.check("#mode-prompt", force=True)
    assert turns.first.is_hidden(), "plain text has no conversation"


def test_a_full_queue_and_a_lost_server_are_told_in_words(visit, page):
    page.set(refuses="256 requests wait; try again in 3 s", status=429)
    tab = ready(visit(page, expected=("429", "ERR_FAILED")))
    tab.uncheck("#compare")
    generate(tab, "How many?")
    problem = tab.locator(".problem").nth(0)
    assert problem.inner_text() == "429: 256 requests wait; try again in 3 s"
    assert tab.input_value("#text") == "How many?", "what got no answer is still there"
    page.set(breaks_off=True)
    generate(tab, "How many?")
    assert problem.inner_text() == "The answer broke off: the server closed the connection."
    tab.route("**/v1/**", lambda route: route.abort())
    generate(tab, "How many?")
    assert problem.inner_text() == "The server does not answer. Is it still running?"


def test_the_copied_command_runs_in_bash_whatever_the_text_is(visit, page):
    text = "It's \"so\" $HOME `ls` \\ !x\n\tünï 🙂 </b> %s '' @x"
    tab = ready(visit(page, permissions=["clipboard-read", "clipboard-write"]))
    tab.check("#mode-prompt", force=True)
    tab.fill("#text", text)
    tab.locator(".copy-curl").nth(0).click()
    sync_api.expect(tab.locator(".copy-curl").nth(0)).to_have_text("Copied")
    command = tab.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("data: [DONE]")
    assert page.log[-1]["prompt"] == text


def test_stopping_from_the_keyboard_leaves_the_focus_in_the_page(visit, page):
    page.set(step_s=0.3)
    tab = ready(visit(page))
    tab.fill("#text", "How many?")
    tab.focus("#run")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#stop:enabled")
    tab.focus("#stop")
    tab.keyboard.press("Space")
    finished(tab)
    assert tab.evaluate("document.activeElement.id") == "run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_stand_out_from_their_card(visit, page, scheme):
    tab = ready(visit(page, color_scheme=scheme))
    tab.locator(".knobs > summary").nth(0).click()
    tab.evaluate("""() => document.querySelectorAll("textarea, input, select, #run")
        .forEach((e) => { e.style.color = getComputedStyle(e).borderTopColor; })""")
    found = {name: contrast(tab, name) for name in ("#text", "#seed", ".decoder", ".knob input")}
    assert all(value >= 3 for value in found.values()), found


def test_a_model_without_a_chat_template_takes_prompts_only_and_says_why(visit, page):
    page.set(has_template=False)
    tab = ready(visit(page))
    assert tab.is_disabled("#mode-chat")
    assert "no chat template" in tab.locator("#model").inner_text()
    generate(tab, "The cat")
    assert page.log[-1]["prompt"] == "The cat"


def test_the_page_works_where_the_browser_keeps_nothing(visit, page):
    tab = visit(page)
    tab.add_init_script("""Object.defineProperty(window, "localStorage", {
        get() { throw new DOMException("denied", "SecurityError"); }})""")
    tab.reload()
    ready(tab)
    tab.click("#theme")
    assert tab.locator("#theme").inner_text() == "Theme: light"
