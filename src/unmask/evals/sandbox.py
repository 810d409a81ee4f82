"""Sandbox for programs written by a model.

Enforced by the kernel: limits of processor time, memory, file sizes and open files, and, where `unshare` is
permitted, no network. Enforced by Python inside the process, which native code could circumvent: no network
elsewhere, no other processes, files only in an empty folder. See docs/explanation/running-code.md.
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
    """Limits of a program: wall and processor seconds, bytes of memory, bytes of each file written."""

    wall_s: float = 20.0
    cpu_s: int = 10
    memory_bytes: int = 2 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """Outcome of a program: `passed` if it ran to its end, else the reason in one line."""

    passed: bool
    reason: str = ""


def run_program(program: str, limits: SandboxLimits | None = None) -> Verdict:
    """Run Python source in a process of its own.

    An early exit does not pass: the process must print a secret token after the last line. Raises
    ConfigError on systems without process limits (Windows).
    """
    if sys.platform == "win32":
        raise ConfigError(
            "running answers needs process limits, which Windows lacks; use Linux or WSL"
        )
    limits = SandboxLimits() if limits is None else limits
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="unmask-code-") as folder:
        job = {
            "token": token,
            "program": program,
            "folder": os.path.realpath(folder),
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
        }
        process = subprocess.Popen(
            [*without_network(), sys.executable, "-I", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(json.dumps(job).encode(), timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"no end within {limits.wall_s:g} s")
        finally:
            _kill_group(process)
    lines = output.decode(errors="replace").splitlines()
    if lines[-1:] == [token]:
        return Verdict(True)
    if process.returncode < 0:
        return Verdict(False, f"ended by {signal.Signals(-process.returncode).name}")
    return Verdict(False, lines[-1][:200] if lines else f"exit with status {process.returncode}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@functools.cache
def without_network() -> tuple[str, ...]:
    """Return the prefix that runs a command without network; empty where that is not permitted."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    words = (unshare, "--map-root-user", "--net", "--")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()
