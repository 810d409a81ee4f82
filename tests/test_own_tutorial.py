"""docs/tutorials/own-model-own-data.md, followed from start to end."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.evals.results import Results
from unmask.models import BUNDLED

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "own-model-own-data.md"
if not PAGE.exists():
    pytest.skip("the source distribution has no docs", allow_module_level=True)
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_page_runs_up_to_the_server(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLED["demo"], "my-model")  # the first command
    outputs = {}
    for block in BLOCKS[:-1]:
        for name, text in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", block, re.M | re.S):
            Path(name).write_text(text, encoding="utf-8")
        for command in re.findall(r"^unmask .*$", block.replace("\\\n", " "), re.M):
            words = shlex.split(command)[1:]
            assert main(words) == 0, command
            outputs[words[0], words[1]] = capsys.readouterr()
    assert "llada" in outputs["inspect", "my-model"].out.lower()
    first = Results.read(Path("runs/first"))
    assert first.right == (1, 1, 1, 0), "the model cannot know spiders"
    assert "119" in outputs["samples", "runs/first"].out
    assert {path.name for path in Path("runs/mine").iterdir() if path.is_file()} == {
        *(f"table.{ending}" for ending in ("csv", "tex", "json")),
        *(f"front_tokens_per_forward.{ending}" for ending in ("svg", "pdf", "png")),
        *(f"front_tokens_per_second.{ending}" for ending in ("svg", "pdf", "png")),
        "report.html",
    }
    rows = json.loads(Path("runs/mine/table.json").read_text())
    assert [row["cache"] for row in rows] == ["none", "prefix"] * 2
    assert "2502.09992" in outputs["cite", "--decoder"].out
    assert "reproduced: 4 documents, the same answers" in outputs["eval", "--reproduce"].err


@pytest.mark.slow
def test_the_whole_page_runs_in_a_shell(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("the page asks the server by curl")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(BLOCKS)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = json.loads((tmp_path / "reply.json").read_text())
    assert reply["choices"][0]["message"]["content"].strip().endswith("#### 2")
