"""Help pages, read on a terminal of 80 columns."""

from __future__ import annotations

import re

import pytest
import typer

from unmask.cli.main import app, main


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The help of a command."""

    def show(*words: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        assert main([*words, "--help"]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize(
    "words", ["serve", "chat", "generate", "eval", "bench serve", "bench mmlu"]
)
def test_every_flag_is_written_in_full(page, words):
    found = typer.main.get_command(app)
    for word in words.split():
        found = found.commands[word]
    text = page(*words.split())
    flags = [param for param in found.params if param.param_type_name == "option"]
    wanted = {name for flag in flags if not flag.hidden for name in flag.opts}
    assert len(wanted) > 10
    assert wanted <= set(re.findall(r"--?[a-z][a-z0-9-]*", text))
    assert "…" not in text


@pytest.mark.parametrize("words", ["", "bench", "config"])
def test_a_list_of_commands_says_in_full_what_each_does(page, words):
    listed = page(*words.split()).split("Commands:\n")[1]
    assert listed.rstrip().endswith(".")
    assert "..." not in listed


def test_the_knobs_stand_below_the_flags(page):
    text = page("serve")
    assert text.startswith("Usage: unmask serve")
    assert text.index("--max-body-bytes") < text.index("Decoders, and their knobs")
    recipes = page("train")
    assert recipes.startswith("Usage: unmask train")
    assert "recipes: demo" in recipes
