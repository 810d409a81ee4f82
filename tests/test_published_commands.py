"""The page of published commands: each command as it was published, and the output that the page shows."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest
from test_config import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorials" / "published-commands.md"
if not PAGE.exists():
    pytest.skip("the source distribution has no docs", allow_module_level=True)
LAUNCH = (
    "--trust-remote-code --model-path inclusionAI/LLaDA2.0-mini --dllm-algorithm LowConfidence "
    "--dllm-algorithm-config ./config.yaml --host 0.0.0.0 --port 30000"
)


@pytest.fixture
def transcript(monkeypatch):
    place = ROOT / "scripts" / "run_transcript.py"
    spec = importlib.util.spec_from_file_location("run_transcript", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_transcript", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_published_command_word_for_word(transcript):
    blocks = transcript.blocks_of(PAGE.read_text(encoding="utf-8"))
    texts = [command.text for block in blocks for command in block.commands]
    written = [shlex.split(text.replace("\\\n", " ")) for text in texts]
    for command in COMMANDS:
        assert shlex.split(command) in written
    serving = next(words for words in written if "serve" in words and "--dllm-algorithm" in words)
    first = serving.index("serve") + 1
    assert serving[first : first + len(shlex.split(LAUNCH))] == shlex.split(LAUNCH)


def test_a_page_is_run_in_one_shell_and_compared_without_its_numbers(transcript, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nx=5\n```\n\n```console\n$ echo \\\n    a $x\na   7\n$ false\n(exit status 1)\n```\n"
    )
    blocks, outputs = transcript.transcript(page, 60)
    assert outputs == [[], ["a 5"], ["(exit status 1)"]]
    assert transcript.differences("page", blocks, outputs) == []
    assert "a 5\n$ false" in transcript.written(page.read_text(), blocks, outputs)
    blocks[1].commands[0].shown = ["b 7"]
    assert "+a #" in transcript.differences("page", blocks, outputs)[0]
    page.write_text("```sh\nexit 3\n```\n")
    with pytest.raises(Exception, match="exit status 3"):
        transcript.transcript(page, 60)


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print(transcript):
    blocks, outputs = transcript.transcript(PAGE, 2400)
    assert transcript.differences(PAGE.name, blocks, outputs) == []
