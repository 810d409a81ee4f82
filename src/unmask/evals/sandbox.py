"""Runs a program that a model wrote, in a process that can do little.

Held by the kernel: processor time, memory, file sizes, open files, and, where `unshare` may be used,
no network. Held by Python inside that process, which native code could get around: no network elsewhere,
no other processes, files only in an empty folder. docs/explanation/running-code.md says it in full.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import ConfigError

CHILD = Path(__file__).parent / "sandbox_child.py"
PROBE_S = 10.0


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use: wall and processor seconds, bytes of memory, bytes of a file it writes."""

    wall_s: float = 20.0
    cpu_s: int = 10
    memory_bytes: int = 2 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """`passed`: the program ran to its end. `reason`: otherwise what ended it, in a line."""

    passed: bool
    reason: str = ""


def run_program(program: str, limits: SandboxLimits | None = None) -> Verdict:
    """Run Python source in a process of its own and say whether it ran to its end.

    An early exit is not an end: the process has to say a word that it was told, after the last line.
    Raises ConfigError on systems without process limits (Windows).
    """
    if sys.platform == "win32":
        raise ConfigError(
            "running answers needs process limits, which Windows lacks; use Linux or WSL"
        )
    limits = SandboxLimits() if limits is None else limits
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="unmask-code-") as folder:
        told = {
            "word": word,
            "program": program,
            "folder": os.path.realpath(folder),
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
        }
        process = subprocess.Popen(
            [*network_less(), sys.executable, "-I", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(json.dumps(told).encode(), timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"no end within {limits.wall_s:g} s")
        finally:
            _kill_group(process)
    lines = said.decode(errors="replace").splitlines()
    if lines[-1:] == [word]:
        return Verdict(True)
    if process.returncode < 0:
        return Verdict(False, f"ended by {signal.Signals(-process.returncode).name}")
    return Verdict(False, lines[-1][:200] if lines else f"exit with status {process.returncode}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@functools.cache
def network_less() -> tuple[str, ...]:
    """The command in front of another that takes its network away; empty where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    words = (unshare, "--map-root-user", "--net", "--")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()
