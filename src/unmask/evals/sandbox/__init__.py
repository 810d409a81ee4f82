"""Sandbox for programs written by a model.

Two processes, each behind a wall of the kernel (`wall`): one runs the answer, one runs the tests and
decides. They exchange values over two pipes; see docs/explanation/running-code.md.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unmask.errors import ConfigError
from unmask.evals.sandbox.wall import FOLDER, NO_WALL, SandboxLimits, Wall, find_wall
from unmask.plain_text import one_line

__all__ = ["SandboxLimits", "Verdict", "judge_answer", "run_program", "sandbox_name"]

INSIST = "UNMASK_ALLOW_UNSAFE_CODE"
MAX_VERDICT_BYTES = 4096
MAX_REASON = 200
END_S = 5.0


@dataclass(frozen=True)
class Verdict:
    """Outcome of an answer: `passed` if all of its tests did, else the reason in one line."""

    passed: bool
    reason: str = ""


def choose_wall() -> Wall:
    """Return the wall of this machine, or none if the user insists. Raises ConfigError otherwise."""
    if sys.platform == "win32":
        raise ConfigError(
            "running answers needs process limits, which Windows lacks; use Linux or WSL"
        )
    wall = find_wall()
    if wall is not None:
        return wall
    if os.environ.get(INSIST) == "1":
        return NO_WALL
    raise ConfigError(
        "programs of a model cannot be run safely here: neither bubblewrap nor unshare may create "
        "namespaces; install bubblewrap and allow user namespaces, use a virtual machine, or set "
        f"{INSIST}=1 to run them without a wall (docs/explanation/running-code.md)"
    )


def sandbox_name() -> str:
    """Return what stands between answers and this machine: `bubblewrap`, `unshare` or `none`.

    Raises ConfigError where answers may not be run.
    """
    return choose_wall().name


def run_program(program: str, limits: SandboxLimits | None = None) -> Verdict:
    """Run a program; the assertions at its end are its tests, which it cannot touch.

    A program without assertions passes when it ends without an exception, as its own process says.
    Raises ConfigError where answers may not be run.
    """
    try:
        with warnings.catch_warnings():  # such as of an invalid escape: the answer's own business
            warnings.simplefilter("ignore")
            body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Verdict(False, f"{type(error).__name__}: {error}"[:MAX_REASON])
    start = len(body)
    while start and isinstance(body[start - 1], ast.Assert):
        start -= 1
    lines = program.splitlines(keepends=True)
    first = body[start].lineno - 1 if start < len(body) else len(lines)
    if start and start < len(body) and body[start - 1].end_lineno == body[start].lineno:
        return Verdict(False, "the first assertion shares a line with the program")
    return judge_answer("".join(lines[:first]), "".join(lines[first:]), limits=limits)


def judge_answer(
    program: str,
    tests: str,
    *,
    given: str = "",
    entry_points: Sequence[str] = (),
    limits: SandboxLimits | None = None,
) -> Verdict:
    """Run tests on the functions of a program.

    The program's process never sees the tests: it gets arguments and returns values, which are copied
    (standard types) or stay there (other objects, by reference). `given` is code before the tests. The
    tests take `entry_points` from the program, and the names that nothing else defines; a builtin or a
    module of Python is always the real one. Raises ConfigError where answers may not be run.
    """
    limits = SandboxLimits() if limits is None else limits
    wall = choose_wall()
    job = {"program": program, "given": given, "tests": tests, "entry_points": list(entry_points)}
    with contextlib.ExitStack() as stack:
        folders = [
            stack.enter_context(tempfile.TemporaryDirectory(prefix="unmask-code-"))
            for _ in range(2)
        ]
        ends = [
            stack.enter_context(open(number, mode, buffering=0))
            for _ in range(2)
            for number, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        ]
        answer_in, tests_out, tests_in, answer_out = ends
        answer = stack.enter_context(
            _process(wall.command(folders[0], "answer", limits, []), answer_in, answer_out, ())
        )
        channel = (tests_in.fileno(), tests_out.fileno())
        command = wall.command(folders[1], "judge", limits, [str(number) for number in channel])
        tester = stack.enter_context(_process(command, subprocess.PIPE, subprocess.PIPE, channel))
        for end in ends:
            end.close()
        output = _exchange(tester, json.dumps(job).encode(), time.monotonic() + limits.wall_s)
        if output is None:
            return Verdict(False, f"no end within {limits.wall_s:g} s")
        return _verdict(output, answer, tester)


@contextlib.contextmanager
def _process(
    command: list[str], source: IO[bytes] | int, target: IO[bytes] | int, inherited: tuple[int, ...]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with an empty environment, and kill it with all of its group at the end."""
    process = subprocess.Popen(
        command,
        stdin=source,
        stdout=target,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"HOME": FOLDER, "TMPDIR": FOLDER, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        pass_fds=inherited,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group, and the namespace of its child; return when all of them are dead."""
    inits = []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        inits = [os.pidfd_open(int(number)) for number in children.read_text().split()]
    for init in inits:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(init, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for init in inits:  # readable once the first process of the namespace, the last to go, is dead
        select.select([init], [], [], END_S)
        os.close(init)


def _exchange(process: subprocess.Popen[bytes], job: bytes, deadline: float) -> bytes | None:
    """Write the job and return a bounded output; None at the deadline (monotonic seconds)."""
    assert process.stdin is not None, "a pipe"
    assert process.stdout is not None, "a pipe"
    output, rest = b"", memoryview(job)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[: 1 << 16]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, MAX_VERDICT_BYTES)
                output += part
                if not part or len(output) >= MAX_VERDICT_BYTES:
                    return output
    return None


def _verdict(
    output: bytes, answer: subprocess.Popen[bytes], tester: subprocess.Popen[bytes]
) -> Verdict:
    """Read the verdict of the tests' process."""
    try:
        said = json.loads(output)
    except ValueError:
        return Verdict(False, f"the tests' process: {_end(tester)}")
    if said["passed"] is True:
        return Verdict(True)
    reason = said["reason"] if said["reason"] else _end(answer)
    return Verdict(False, one_line(str(reason)[: 4 * MAX_REASON])[:MAX_REASON])


def _end(process: subprocess.Popen[bytes]) -> str:
    """Return how a process that closed its pipes ended."""
    try:
        status = process.wait(END_S)
    except subprocess.TimeoutExpired:
        return "closed its pipes"
    number = -status if status < 0 else status - 128  # a shell's way to report a signal
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name}"
    return f"exit with status {status}"
