"""Every how-to for contributors, followed as printed in a copy of the repository.

A code block is: a file, when the sentence before it ends with its path ("`src/unmask/x.py`:"); a change of
a file (`diff`: the context and the lines to add or remove); a script (`python`); or commands (`sh`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "how-to"
IN_COPY = "UNMASK_HOWTO_COPY"
if not HOWTO.exists() or os.environ.get(IN_COPY):
    pytest.skip("no docs, or already in a copy", allow_module_level=True)

LONG = ("make ", "unmask bench ")
"""Commands that only the slow tests run."""
KINDS = {"python": "script", "sh": "commands", "diff": "change"}


@dataclass(frozen=True)
class Block:
    """One fenced block: `kind` is file (of `path`), change (of `path`), script or commands."""

    kind: str
    text: str
    path: str = ""


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page to execute, in order."""
    text = (HOWTO / page).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, body = match[1], match[2]
        named = re.search(r"`([\w./-]+\.\w+)`:\s*\Z", text[: match.start()])
        if language == "diff":
            header, _, body = body.partition("\n")
            yield Block("change", body, header.removeprefix("--- "))
        elif named:
            yield Block("file", body, named[1])
        elif language in KINDS:
            yield Block(KINDS[language], body)


RUN_SCRIPTS = """
import contextlib, io, json, sys
outputs = []
for script in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(script, "page", "exec"), {"__name__": "__main__"})
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


class Copy:
    """A copy of the repository; its commands `unmask` and `make` run the copy's code."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "unmask"
        ignored = shutil.ignore_patterns("__pycache__", "fixtures", "*.safetensors", ".*", "site")
        for name in (
            "src",
            "tests",
            "docs",
            "scripts",
            "studies",
            "benchmarks",
            "examples",
            "deploy",
            ".github",
            ".ci",
        ):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith(".git"):
                shutil.copy(path, self.root)
        (self.root / "tests" / "fixtures").symlink_to(ROOT / "tests" / "fixtures")
        for path in [*ROOT.glob("src/**/*.safetensors"), *ROOT.glob("studies/**/*.safetensors")]:
            (self.root / path.relative_to(ROOT)).symlink_to(path)
        tools = self.root / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name, module in (("python", ""), ("unmask", "-m unmask.cli.main ")):
            script = f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n'
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        stamp = "touch .venv/.ready-$(pwd | cksum | cut -d ' ' -f 1)"
        subprocess.run(["sh", "-c", stamp], cwd=self.root, check=True)
        outer = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")  # of the `make` that runs the tests
        self.environment = {k: v for k, v in os.environ.items() if k not in outer} | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
            IN_COPY: "1",
        }

    def run(self, *command: str) -> str:
        """Run a command in the copy and return its output; its failure fails the test."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def pytest(self, *arguments: str) -> None:
        """Run tests of the copy."""
        self.run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)

    def follow(self, page: str, long: dict[str, None] | None = None) -> list[str]:
        """Do what a page prints; return its scripts, and add its long commands to `long`."""
        scripts = []
        for block in blocks(page):
            path = self.root / block.path
            if block.kind == "file":
                assert not path.exists(), f"{block.path} is there already"
                path.write_text(block.text, encoding="utf-8")
            elif block.kind == "change":
                self.change(path, block.text.splitlines())
            elif block.kind == "script":
                scripts.append(block.text)
            else:
                for command in block.text.replace("\\\n", " ").splitlines():
                    if not command.startswith(LONG):
                        self.run("sh", "-c", command)
                    elif long is not None:
                        long[command] = None
        return scripts

    def run_scripts(self, scripts: list[str]) -> list[str]:
        """Run scripts one after the other in one process; their outputs."""
        return json.loads(self.run(sys.executable, "-c", RUN_SCRIPTS, json.dumps(scripts)))

    @staticmethod
    def change(path: Path, lines: list[str]) -> None:
        """Apply a change: the lines without `+` are in the file, once, and become those without `-`."""
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{path}: {text.count(before)} places like\n{before}"
        path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


PAGES = (
    "add-a-decoder.md",
    "add-a-cache.md",
    "add-a-family.md",
    "add-a-statistic.md",
    "add-a-task.md",
    "add-an-http-field.md",
)
TESTS = {
    "test_house.py": "every_file_of_the_package",
    "test_docs.py": "reference",
    "test_config.py": "reference_of_the_configuration",
    "server/test_http_docs.py": "reference_of_the_routes",
    "test_extremes.py": "extreme_here or number_of_forwards and (leftmost or narrow)",
    "test_leftmost.py": "its_oracle",
    "test_properties.py": "leftmost and dual-dream",
    "test_caches.py": "periodic and threshold and llada",
    "server/test_request_id.py": "request_id",
}
"""Tests of the copy that the pages concern, and those of each that run here."""


@pytest.mark.slow
def test_the_pages_work_as_printed(copy):
    leftmost, periodic, family, statistic = copy.run_scripts(
        [script for page in PAGES for script in copy.follow(page)]
    )
    check_leftmost(leftmost)
    check_periodic(periodic)
    assert family == "orchid True\n11\n"
    assert statistic.startswith("narrow ")
    assert '"num_docs": 2' in (copy.root / "runs/eval/spelling/results.json").read_text()
    copy.run(sys.executable, "-m", "ruff", "check", "-q", ".")
    copy.run(sys.executable, "-m", "ruff", "format", "-q", "--check", ".")
    copy.pytest(*(f"tests/{name}" for name in TESTS), "-k", " or ".join(TESTS.values()))


def check_leftmost(output: str) -> None:
    """The decoder's script: its method, its forwards, and positions from left to right."""
    lines = output.splitlines()
    method, forwards = lines[0].rsplit(" ", 1)
    assert method == "leftmost(threshold=0.7)"
    assert len(lines) == 1 + int(forwards)
    positions = [int(p) for line in lines[1:] for p in re.findall(r"\((\d+), \d+\)", line)]
    assert positions == sorted(positions)


def check_periodic(output: str) -> None:
    """The cache's script: it computes more than dual and less than none."""
    none, ours, dual = (line.split() for line in output.splitlines())
    assert ours[:2] == ["periodic(interval=2)", "False"]
    assert int(dual[3]) < int(ours[3]) < int(none[3])


def test_every_page_is_followed():
    assert set(PAGES) == {path.name for path in HOWTO.glob("add-*.md")}


@pytest.mark.slow
def test_make_check_and_make_test_succeed_as_the_pages_print_them(copy):
    long: dict[str, None] = {}
    copy.run_scripts([script for page in PAGES for script in copy.follow(page, long)])
    assert {"make check", "make test"} <= long.keys()
    partial = [command for command in long if command.startswith("make test ")]
    for command in sorted(long.keys() - set(partial), key=lambda line: line.startswith("make ")):
        copy.run("sh", "-c", command)  # `make test` runs what the partial ones run
