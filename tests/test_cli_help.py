"""Help pages, read on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess

import pytest

from unmask.cli.bench import SERVER_COMMANDS
from unmask.cli.main import COMMANDS, main, make_app
from unmask.decoders.registry import decoder_class


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The help of a command."""

    def show(*words: str, help: str = "--help") -> str:
        monkeypatch.setenv("COLUMNS", "80")
        assert main([*words, help]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize(
    "words", ["serve", "chat", "generate", "eval", "bench serve", "bench mmlu"]
)
def test_every_flag_is_written_in_full(page, words):
    found = make_app()
    for word in words.split():
        found = found[word]
    text = page(*words.split())
    flags = [item for item in found.assemble_argument_collection() if item.show]
    names = {name for flag in flags for name in set(flag.names) - set(flag.negatives)}
    wanted = {name for name in names if name.startswith("-")}
    assert len(wanted) > 10
    assert wanted <= set(re.findall(r"--?[a-z][a-z0-9-]*", text))
    assert "…" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_help(name):
    assert make_app()[name].help.splitlines()[0] == COMMANDS[name][1]


@pytest.mark.parametrize("name", SERVER_COMMANDS)
def test_the_summary_of_a_bench_command_is_the_first_line_of_its_docstring(name):
    command = make_app()["bench"][name].default_command
    assert command.__doc__.splitlines()[0] == SERVER_COMMANDS[name][1]


@pytest.mark.parametrize("words", ["", "bench", "config"])
def test_a_list_of_commands_says_in_full_what_each_does(page, words):
    listed = page(*words.split()).split("Commands:\n")[1]
    assert listed.rstrip().endswith(".")
    assert "..." not in listed


def test_the_knobs_stand_below_the_flags(page):
    text = page("serve", help="--help=all")
    assert text.startswith("Usage: unmask serve")
    assert text.index("--max-body-bytes") < text.index("Decoders, and their knobs")
    recipes = page("train", help="--help=all")
    assert recipes.startswith("Usage: unmask train")
    assert "recipes: demo" in recipes


@pytest.mark.parametrize("words", ["serve", "generate", "infill", "chat", "eval"])
def test_the_short_help_fits_in_ninety_lines(page, words):
    assert len(page(*words.split()).splitlines()) <= 90


@pytest.mark.parametrize("name", ["threshold", "vanilla", "prophet"])
def test_a_decoder_is_explained_on_a_terminal(capsys, name):
    assert main(["decoders", name]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{name}: ")
    for field in dataclasses.fields(decoder_class(name)):
        assert f"    {field.name}=" in page
    assert len(page.splitlines()) < 90


def test_a_cache_is_explained_on_a_terminal(capsys):
    assert main(["caches", "dkv"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("dkv: ")
    assert "    interval=" in page


def test_unknown_methods_name_the_nearest(capsys):
    assert main(["decoders", "treshold"]) == 2
    assert "did you mean 'threshold'" in capsys.readouterr().err
    assert main(["caches", "duel"]) == 2
    assert "did you mean 'dual'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["generate", "x", "--threshold", "0.8"],
            "threshold is a knob of a method; write it as a word: threshold=0.8",
        ),
        (["generate", "x", "--block-length=8"], "write it as a word: block_length=8"),
        (["serve", "--max-num-seq", "3"], "did you mean --max-num-seqs?"),
        (["serve", "--max-num-seqs", "x"], "--max-num-seqs x must be a whole number"),
        (["serve", "--max-num-seqs", "0"], "--max-num-seqs 0 must be at least 1"),
        (["serve", "--port"], "--port needs a value"),
        (["servee"], "unknown command 'servee': did you mean serve?"),
        (["bench", "decodee"], "unknown command 'decodee': did you mean decode?"),
        (["generate", "x" * 9000, "y"], "unexpected word 'y'"),
        (["generate", "x", "y" * 9000], "unexpected word"),
    ],
)
def test_a_wrong_command_line_is_one_short_line(capsys, words, said):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unmask: error: ")
    assert said in line
    assert len(line) < 2100


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_commands_and_flags(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("generate", "serve", "max-num-seqs", "gen-length"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completion"),
    [("unmask serv", "serve"), ("unmask serve --max-num-s", "--max-num-seqs")],
)
def test_bash_completes_a_command_and_a_flag(capsys, words, completion):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    typed = words.split()
    check = f"""
COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; COMP_LINE="{words}"; COMP_POINT={len(words)}
name=$(complete -p unmask | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$name; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script + check], capture_output=True, text=True, check=False
    )
    assert completion in done.stdout.split(), done.stderr
