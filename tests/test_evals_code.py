"""Programs that a model wrote: which part is kept, and what they may do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.evals.code import fenced, humaneval_program, longest_program, mbpp_program
from unmask.evals.sandbox import SandboxLimits, run_program, without_network
from unmask.evals.tasks.judges import humaneval, mbpp
from unmask.evals.tasks.sources import MBPP_TEST

FIXTURES = Path(__file__).parent / "fixtures" / "evals"
SHARED = Path(__file__).parents[2] / "shared" / "data"
PROMPT = 'import math\n\ndef help_me(x):\n    return x\n\ndef double(x):\n    """Twice x."""\n'


def rows(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def ceilings(folder: Path) -> tuple[list[str], list[int]]:
    """Problems whose reference solutions do not pass."""
    completed = [
        doc["task_id"]
        for doc in rows(folder / "humaneval" / "HumanEval.jsonl.gz")
        if humaneval(doc, [doc["canonical_solution"]]) != {"pass_at_1": 1.0}
    ]
    written = [
        doc["task_id"]
        for doc in rows(folder / "mbpp" / "mbpp.jsonl")
        if doc["task_id"] in MBPP_TEST and mbpp(doc, [doc["code"]]) != {"pass_at_1": 1.0}
    ]
    return completed, written


def test_reference_solutions_pass() -> None:
    assert ceilings(FIXTURES) == ([], [])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public data beside the checkout")
def test_all_reference_solutions_pass() -> None:
    assert ceilings(SHARED) == ([], [])


def test_a_wrong_solution_fails() -> None:
    doc = next(rows(FIXTURES / "humaneval" / "HumanEval.jsonl.gz"))
    assert humaneval(doc, ["    return 7\n"]) == {"pass_at_1": 0.0}
    doc = list(rows(FIXTURES / "mbpp" / "mbpp.jsonl"))[-1]
    assert mbpp(doc, ["def square_perimeter(a):\n    return a"]) == {"pass_at_1": 0.0}


def test_a_completion_ends_where_it_stops_being_python() -> None:
    program = humaneval_program(PROMPT, "    return 2 * x\n\nThis doubles x!\n", "double")
    assert program == "import math\n\ndef help_me(x):\n    return x\n\ndef double(x):\n" + (
        '    """Twice x."""\n    return 2 * x'
    )


def test_a_fenced_answer_replaces_the_prompts_function() -> None:
    text = (
        "Sure:\n```python\ndef double(x):\n    return x + x\n\ndef unused():\n    pass\n```\nDone."
    )
    program = humaneval_program(PROMPT, text, "double")
    assert "return x + x" in program
    assert "unused" not in program
    assert "import math" in program


def test_a_fence_may_be_open_at_the_end() -> None:
    assert fenced("```py\nx = 1\n") == "x = 1\n"
    assert fenced("no fence") is None
    assert mbpp_program("Sure\n```python\nx = 1\n```\n") == "x = 1"
    assert "return 2 * x" in humaneval_program(PROMPT, "    return 2 * x\n```\nDone.", "double")
    assert mbpp_program("def f():\n    return 1\n```\nThat is it.") == "def f():\n    return 1"


def test_at_most_a_hundred_lines_are_kept() -> None:
    assert longest_program("x = 1\n" * 150).count("\n") == 99
    assert longest_program("(((") == ""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("while True:\n    pass", "no end within 2 s"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        ("open('/tmp/unmask-was-here', 'w')", "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("import os\nos.remove('/tmp')", "PermissionError"),
        ("open('big', 'wb').write(bytes(10 << 20))", "OSError|SIGXFSZ"),
        ("import os\nos.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("import ctypes\nctypes.CDLL(None)", "PermissionError|Error"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "exit with status 0"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_program_that_does_not_reach_its_end_has_not_passed(program: str, said: str) -> None:
    import re

    verdict = run_program(program, SandboxLimits(wall_s=2))
    assert not verdict.passed
    assert re.search(said, verdict.reason), verdict.reason


def test_a_program_may_write_in_its_own_folder_and_nothing_stays() -> None:
    program = (
        "open('a', 'w').write('b')\nassert open('a').read() == 'b'\n"
        "import os\nassert os.listdir('.') == ['a']"
    )
    assert run_program(program).passed


def test_the_kernel_takes_the_network_where_it_may() -> None:
    if not without_network():
        pytest.skip("unshare is not allowed here; sockets are refused in Python alone")
    import subprocess

    done = subprocess.run(
        [*without_network(), "cat", "/proc/net/dev"], capture_output=True, text=True, check=True
    )
    names = [line.split(":")[0].strip() for line in done.stdout.splitlines() if ":" in line]
    assert names == ["lo"]
