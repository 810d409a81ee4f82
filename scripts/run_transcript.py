"""Run the commands of a page and compare, or rewrite, what it shows of their output.

    python scripts/run_transcript.py PAGE            fails where the output differs
    python scripts/run_transcript.py PAGE --write    writes the output into the page

A `sh` block is run; in a `console` block a line that begins with `$ ` is run (with its continuation lines)
and the lines behind it are its standard output. All are run by one shell, in order, in a folder of their
own that holds the repository's `eval.py`. Numbers and hashes are compared as `#` and spaces as one:
times differ on every machine. Standard library only.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "@@@ end of command"
NUMBER = re.compile(r"(?<=-)[0-9a-f]{16}\b|\d+(\.\d+)?")


@dataclass
class Command:
    """One command as it is written, and the lines of output that the page shows; None: it shows none."""

    text: str
    shown: list[str] | None = None


@dataclass
class Block:
    """The commands of one fenced block, and where its text lies in the page."""

    start: int
    end: int
    is_console: bool
    commands: list[Command] = field(default_factory=list)


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page's text in order."""
    found = []
    for match in BLOCK.finditer(page):
        block = Block(match.start(2), match.end(2), match[1] == "console")
        if block.is_console:
            block.commands = _console(match[2].splitlines())
        else:
            block.commands = [Command(match[2].rstrip("\n"))]
        found.append(block)
    return found


def _console(lines: Sequence[str]) -> list[Command]:
    commands: list[Command] = []
    for line in lines:
        last = commands[-1] if commands else None
        if line.startswith("$ "):
            commands.append(Command(line[2:], []))
        elif last is None or last.shown is None:
            raise ValueError(f"a console block begins with {line!r}; begin it with '$ '")
        elif not last.shown and last.text.endswith("\\"):
            last.text += "\n" + line
        else:
            last.shown.append(line)
    return commands


def run(
    commands: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float
) -> list[list[str]]:
    """Run commands in one shell and return the lines that each of them wrote to standard output.

    A command that fails has its exit status as the last line.
    Raises CalledProcessError, with what standard error got, if the shell ended early.
    """
    script = "\n".join(f"{command}\necho '{MARK}' $?" for command in commands)
    errors = folder / "standard-error.txt"
    process = subprocess.Popen(
        ["bash", "-c", f"exec 2>{errors.name}\n{script}"],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    timer = _Timer(process.pid, timeout_s)
    outputs: list[list[str]] = [[]]
    try:
        assert process.stdout is not None, "a pipe"
        for line in process.stdout:
            if line.startswith(MARK):
                status = int(line.removeprefix(MARK))
                outputs[-1] += [f"(exit status {status})"] if status else []
                if len(outputs) == len(commands):
                    break  # a server in the background may hold the pipe open
                outputs.append([])
            else:
                outputs[-1].append(line.rstrip())
        else:
            done = "\n".join(outputs[-1])
            raise subprocess.CalledProcessError(
                process.wait(), commands[len(outputs) - 1], done, errors.read_text()[-4000:]
            )
    finally:
        timer.stop()
        process.communicate()
    return outputs


class _Timer:
    """Kills a process group after some time, and when it is stopped."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def _kill(self) -> None:
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def stop(self) -> None:
        self._timer.cancel()
        self._kill()


def plain(lines: Sequence[str]) -> list[str]:
    """Return lines as they are compared: without numbers, rules and empty lines, with single spaces."""
    texts = (" ".join(re.sub(r"[-─═=]{2,}", " ", NUMBER.sub("#", line)).split()) for line in lines)
    return [text for text in texts if text.strip("| -")]


def differences(name: str, blocks: Sequence[Block], outputs: Sequence[Sequence[str]]) -> list[str]:
    """Return a difference for each command whose output is not the one shown."""
    commands = [command for block in blocks for command in block.commands]
    found = []
    for command, lines in zip(commands, outputs, strict=True):
        if command.shown is not None and plain(command.shown) != plain(lines):
            diff = difflib.unified_diff(
                plain(command.shown),
                plain(lines),
                f"{name}: {command.text[:60]}",
                "output",
                lineterm="",
            )
            found.append("\n".join(diff))
    return found


def written(page: str, blocks: Sequence[Block], outputs: Sequence[Sequence[str]]) -> str:
    """Return the page with the output of the commands in its console blocks."""
    parts, last, number = [], 0, 0
    for block in blocks:
        lines = []
        for command in block.commands:
            if block.is_console:
                lines += ["$ " + command.text, *(line for line in outputs[number] if line.strip())]
            number += 1
        if block.is_console:
            parts += [page[last : block.start], "\n".join(lines) + "\n"]
            last = block.end
    return "".join([*parts, page[last:]])


def environment_of(folder: Path) -> dict[str, str]:
    """Return the environment: the interpreter's scripts first, no network, plain tables of one width."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("UNMASK", "RANK"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def transcript(page: Path, timeout_s: float = 1800.0) -> tuple[list[Block], list[list[str]]]:
    """Run a page; return its blocks and the output of their commands."""
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    texts = [command.text for block in blocks for command in block.commands]
    with tempfile.TemporaryDirectory(prefix="unmask-transcript-") as name:
        folder = Path(name)
        (folder / "eval.py").symlink_to(REPOSITORY / "eval.py")
        outputs = run(texts, folder, environment_of(folder), timeout_s)
        hidden = [[line.replace(name, "/tmp/example") for line in lines] for lines in outputs]
    return blocks, hidden


def main() -> int:
    """Run the pages that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="write the output into the page")
    options = parser.parse_args()
    blocks, outputs = transcript(options.page)
    if options.write:
        text = written(options.page.read_text(encoding="utf-8"), blocks, outputs)
        options.page.write_text(text, encoding="utf-8")
        return 0
    found = differences(options.page.name, blocks, outputs)
    print("\n".join(found) or "every output is the one shown")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
