"""The how-to of drafts: its examples, on the bundled model, give what the page says."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from unmask.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "drafts.md"
if not PAGE.exists():
    pytest.skip("the source distribution has no docs", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands():
    """Return the commands of the page as words, each with the output that the page shows."""
    (block,) = blocks("console")
    parts = re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]
    return [(shlex.split(head)[1:], shown) for head, _, shown in (p.partition("\n") for p in parts)]


@pytest.mark.parametrize(("words", "shown"), commands())
def test_a_command_prints_what_the_page_shows(words, shown, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out == shown


def test_the_python_examples_give_what_stands_behind_them(demo_llm, monkeypatch):
    monkeypatch.setattr("unmask.LLM", lambda _: demo_llm)
    (block,) = blocks("python")
    lines, names, num_checked = block.splitlines(), {}, 0
    for statement in ast.parse(block).body:
        source = ast.get_source_segment(block, statement)
        _, _, comment = lines[statement.end_lineno - 1].partition("  # ")
        if not comment:
            exec(source, names)
            continue
        assert eval(source, names) == ast.literal_eval(comment)
        num_checked += 1
    assert num_checked == 5


def test_the_request_is_answered_as_the_page_says(client):
    body = json.loads(re.search(r"-d '(.*?)'\n", blocks("sh")[0], re.DOTALL)[1])
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert f"`{json.dumps(choice['message']['content'])[1:-1]}`" in TEXT


def test_the_warning_of_too_little_room_is_true(demo_llm):
    question, pinned = "Tom has 3 pens. He buys 2 more pens. How many pens?", ["Then: 3+2="]
    (found,) = demo_llm.generate(question, "wino", draft="Then: 3+2=6", pinned=pinned)
    assert found.text == "Then: 3+2=9"
