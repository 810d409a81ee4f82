"""Our clients and the page against `unmask serve demo` itself, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading

import pytest

from unmask.cli.main import main

pytestmark = pytest.mark.slow
QUESTION = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"
ANSWER = "Then: 7+5=12\n#### 12"


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "unmask.cli.main", "serve", "demo", "--port", "0"]
    with subprocess.Popen(
        [*command, "--decoder", "threshold"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stdout is not None
        found = None
        for line in server.stdout:
            found = found or re.search(r"http://\S+", line)
            if line.strip() == "ready":
                break
        assert found is not None, "the server told no address"
        # what it logs must go somewhere, or the pipe fills and the server waits
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield found[0]
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "openai", "openai-chat"])
def test_bench_serve_measures_the_server(url, backend, capsys):
    words = ["--dataset-name", "word_problem", "--num-prompts", "4", "--backend", backend, "--json"]
    assert main(["bench", "serve", "--base-url", url, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["completed"], found["failed"]) == (4, 0)
    assert found["total_output_tokens"] > 0
    assert found["diffusion_tokens_per_forward"] > 1
    assert 0 <= found["diffusion_eos_waste"] < 1
    assert found["p50_first_block_ms"] <= found["p99_e2e_latency_ms"]
    if backend.startswith("sglang"):
        assert found["accept_length"] > 0


def test_an_exam_is_taken(url, tmp_path, capsys):
    record = {"question": QUESTION, "answer": "It is 12.\n#### 12"}
    (tmp_path / "test.jsonl").write_text(json.dumps(record))
    words = ["--data", str(tmp_path), "--num-questions", "1", "--num-shots", "0", "--json"]
    assert main(["bench", "gsm8k", "--base-url", url, "--max-new-tokens", "48", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 0
    assert found["answers"][0]


def test_chat_answers(url, monkeypatch, capsys):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    assert main(["chat", "--base-url", url, "--max-tokens", "48"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"


def test_the_page_decodes_in_two_lanes_and_fills_in(url):
    from test_page import CHROMIUM, canvas, finished, generate, ready

    sync_api = pytest.importorskip("playwright.sync_api", reason="the page needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        tab = browser.new_page()
        tab.set_default_timeout(60_000)
        wrong: list[str] = []
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(url)
        ready(tab)
        generate(tab, QUESTION, 48)
        for meta in (0, 1):
            assert canvas(tab, meta).startswith(ANSWER)
            assert "ended" in tab.locator(".lane .facts").nth(meta).inner_text()
        tab.click("text=Infill")
        tab.locator(".cache").nth(1).select_option("dual")
        tab.click("#run")
        finished(tab)
        assert " sat on the mat." in canvas(tab, 1)
        assert "approximate" in tab.locator(".lane .facts").nth(1).inner_text()
        browser.close()
    assert not wrong
