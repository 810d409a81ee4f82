"""Programs that a model wrote: which part is kept, and what they may do."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import ConfigError
from unmask.evals import sandbox
from unmask.evals.code import definitions, fenced, humaneval_program, longest_program, mbpp_program
from unmask.evals.sandbox import SandboxLimits, judge_answer, run_program
from unmask.evals.sandbox.wall import NO_WALL, WALLS, Wall, find_wall, visible_paths, works
from unmask.evals.tasks.judges import humaneval, mbpp
from unmask.evals.tasks.sources import MBPP_TEST

# ruff: noqa: E501 -- programs in one line
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


def test_an_invalid_escape_is_no_error_and_no_warning() -> None:
    program = "import re\n\ndef words(text):\n    return re.findall('\\w+', text)"
    assert definitions(program) == ["words"]
    doc = {
        "task_id": 0,
        "code": program,
        "test_setup_code": "",
        "test_list": ["assert words('a b') == ['a', 'b']"],
    }
    assert mbpp(doc, [program]) == {"pass_at_1": 1.0}
    assert run_program(f"{program}\nassert words('a') == ['a']").passed


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


SECRET = "unmask-was-here"
WORKING = [wall for wall in WALLS if works(wall)]
ASKS = "\nraise RuntimeError('SEEN:' + repr({0}))"


@pytest.fixture(params=[*WORKING, NO_WALL], ids=lambda wall: wall.name)
def wall(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wall:
    """Every wall of this machine in turn, and none."""
    chosen: Wall = request.param
    monkeypatch.setattr(sandbox, "choose_wall", lambda: chosen)
    return chosen


@pytest.fixture(params=WORKING, ids=lambda wall: wall.name)
def real_wall(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wall:
    """Every wall of this machine in turn."""
    chosen: Wall = request.param
    monkeypatch.setattr(sandbox, "choose_wall", lambda: chosen)
    return chosen


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("while True:\n    pass", "no end within 1 s"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        (
            "open('/tmp/unmask-was-here', 'w')",  # read-only: the way to a Python that lies below /tmp
            "PermissionError|FileNotFoundError|Read-only file system",
        ),
        ("open('/etc/passwd').read()", "PermissionError|FileNotFoundError"),
        ("import os\nos.remove('/usr/bin/env')", "PermissionError|OSError"),
        ("open('big', 'wb').write(bytes(10 << 20))", "OSError"),
        ("import os\nos.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import multiprocessing as m\nm.Process(target=print).start()", "PermissionError"),
        ("import socket\nsocket.socket()", "PermissionError"),
        ("import ctypes\nctypes.CDLL(None)", "ModuleNotFoundError"),
        ("import os\nos.mkfifo('f')", "PermissionError"),
        ("import os\nos.pidfd_open(1)", "PermissionError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "exit with status 0"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_program_that_does_not_reach_its_end_has_not_passed(
    wall: Wall, program: str, said: str
) -> None:
    verdict = run_program(program, SandboxLimits(wall_s=1))
    assert not verdict.passed
    assert re.search(said, verdict.reason), verdict.reason
    assert not Path("/tmp", SECRET).exists()


def test_a_program_may_write_in_its_own_folder_and_nothing_stays(wall: Wall) -> None:
    program = (
        "open('a', 'w').write('b')\nread = open('a').read()\nimport os\nnames = os.listdir('.')\n"
        "assert read == 'b'\nassert names == ['a']"
    )
    assert run_program(program).passed


def test_an_answer_sees_no_file_process_or_variable_of_the_machine(
    real_wall: Wall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hidden")
    monkeypatch.setenv("UNMASK_API_KEY", "hidden")
    program = (
        "import os\nseen = []\nfor path in (PATH, '/proc/self/environ', '/proc/1/environ'):\n"
        "    try:\n        seen.append(os.stat(path))\n    except OSError:\n        pass\n"
        "seen += [os.environ.get('UNMASK_API_KEY')]\nseen += [os.getpid() > 9]"
    ).replace("PATH", repr(str(tmp_path / "secret")))
    verdict = run_program(program + ASKS.format("seen"))
    assert verdict.reason == "RuntimeError: SEEN:[None, False]"


@pytest.mark.parametrize("folder", ["/home", "/tmp", "/root", "/var", "/proc"])
def test_of_the_machines_folders_only_the_way_to_python_is_seen(
    real_wall: Wall, folder: str
) -> None:
    paths = [Path(path) for path in visible_paths()[0]]
    way = {path.relative_to(folder).parts[0] for path in paths if path.is_relative_to(folder)}
    program = f"import os\nnames = os.listdir({folder!r}) if os.path.exists({folder!r}) else []"
    verdict = run_program(program + ASKS.format("sorted(names)"))
    assert verdict.reason == f"RuntimeError: SEEN:{sorted(way)}"


def test_all_that_an_answer_writes_together_is_bounded(real_wall: Wall) -> None:
    write = "for i in range(100):\n    open(f'f{i}', 'wb').write(bytes(1 << 20))"
    assert "No space left" in run_program(write).reason
    touch = "for i in range(1000):\n    open(f'f{i}', 'wb').close()"
    assert "No space left" in run_program(touch).reason


@pytest.mark.parametrize(
    "forgery",
    [
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})",
        "class Same(int):\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Same(1)",
        "class Same:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Same()",
        "set = len = sorted = isinstance = lambda *_: 0",
        'import os, sys\nfor k in range(32):\n    try:\n        os.write(k, b\'{"passed": true, "reason": ""}\\n\')\n'
        "    except OSError:\n        pass\nos._exit(0)",
        "import os\nfor k in range(32):\n    try:\n        os.write(k, b'{\"value\": 2}\\n' * 50)\n"
        "    except OSError:\n        pass",
        "import sys\nframe = sys._getframe()\nwhile frame.f_back:\n    frame = frame.f_back\n"
        "    frame.f_globals.clear()",
    ],
)
def test_an_answer_cannot_forge_its_verdict(wall: Wall, forgery: str) -> None:
    program = f"def f(x):\n    return 1\n{forgery}\n"
    tests = "assert len(set([f(0), 2])) == 2\nassert f(0) == 3"
    verdict = judge_answer(program, tests, entry_points=["f"], limits=SandboxLimits(wall_s=2))
    assert not verdict.passed


def test_an_answer_never_holds_the_expected_values(real_wall: Wall) -> None:
    look = "import gc\ndef f(x):\n    return any('8675309' in repr(o) for o in gc.get_objects() if type(o) is dict)"
    verdict = judge_answer(look, "found = f(1)\nassert found == 'not 8675309', found")
    assert verdict.reason == "AssertionError: False"


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-3", "2**5000", "1.5", "float('inf')", "'\\ud800 é'", "b'x'", "bytearray(b'x')", "1j",
        "[1, (2, {3: {4}}), frozenset()]", "range(3)", "__import__('decimal').Decimal('1.10')",
        "__import__('fractions').Fraction(1, 3)", "__import__('collections').Counter('aab')",
        "__import__('collections').deque([1])", "{}.keys()",
    ],
)  # fmt: skip
def test_values_come_back_as_they_were(value: str) -> None:
    tests = f"sent = {value}\nassert f(sent) == sent\nassert type(f(sent)) in (type(sent), dict)"
    assert judge_answer("def f(x):\n    return x", tests) == sandbox.Verdict(True)


def test_objects_of_an_answer_stay_there_and_can_be_used() -> None:
    program = (
        "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
        "def total(n):\n    return 0 if n is None else n.x + total(n.left)\n"
        "def add(n):\n    return lambda x: x + n\ndef count(n):\n    yield from range(n)\n"
        "def bad():\n    raise ValueError('no')"
    )
    tests = (
        "root = Node(1)\nroot.left = Node(2)\nassert total(root) == 3 and root.left.x == 2\n"
        "assert add(1)(2) == 3\nassert list(count(3)) == [0, 1, 2]\n"
        "try:\n    bad()\n    raise SystemExit\nexcept ValueError as error:\n    assert str(error) == 'no'"
    )
    assert judge_answer(program, tests) == sandbox.Verdict(True)


def test_a_flood_of_values_is_refused_within_bounded_memory() -> None:
    for value in ("[0] * (1 << 20)", "'x' * (8 << 20)", "'[' * 100"):
        assert not judge_answer(f"def f():\n    return {value}", "assert f() == 1").passed
    nested = "def f():\n    x = []\n    for _ in range(500):\n        x = [x]\n    return x"
    assert "nested" in judge_answer(nested, "assert f() == 1").reason
    itself = "def f():\n    x = []\n    x.append(x)\n    return x"
    assert "nested" in judge_answer(itself, "assert f() == 1").reason


def test_without_a_wall_nothing_is_run_unless_the_user_insists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "find_wall", lambda: None)
    monkeypatch.delenv("UNMASK_ALLOW_UNSAFE_CODE", raising=False)
    with pytest.raises(ConfigError, match="UNMASK_ALLOW_UNSAFE_CODE=1"):
        run_program("x = 1")
    monkeypatch.setenv("UNMASK_ALLOW_UNSAFE_CODE", "1")
    assert sandbox.sandbox_name() == "none"
    assert run_program("x = 1").passed


def test_this_machine_has_a_wall() -> None:
    if find_wall() is None:
        pytest.skip("neither bubblewrap nor unshare is allowed here")
    assert sandbox.sandbox_name() in ("bubblewrap", "unshare")


def test_no_process_outlives_its_verdict(real_wall: Wall) -> None:
    limits = SandboxLimits(wall_s=0.5, cpu_s=4321)  # found by this number in the command line
    run_program("while True:\n    pass", limits)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if b"4321" in line]
