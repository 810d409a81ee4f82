"""Walls of the sandbox: command lines that start a process in namespaces of its own.

`bubblewrap` where it is installed and allowed, else `unshare` of util-linux. Both give new user, mount,
process, network, IPC and UTS namespaces, in which the process sees Python's installation, read-only, and
one small empty folder. Where the kernel allows neither, there is no wall.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
FOLDER = "/answer"  # the only writable place behind a wall
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/urandom")
TMPFS_BYTES, TMPFS_FILES = 16 << 20, 256
PROBE_S = 20.0


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of an answer: wall and processor seconds, bytes of memory, bytes of each file written."""

    wall_s: float = 20.0
    cpu_s: int = 10
    memory_bytes: int = 2 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Wall:
    """A way to start a module of `inside`: its name, and the function that gives the command line.

    The function takes an empty folder of the machine, the module's name, the limits and further arguments.
    """

    name: str
    command: Callable[[str, str, SandboxLimits, list[str]], list[str]]


@functools.cache
def visible_paths() -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Return the paths that Python needs, without those below another, and the links among the system's."""
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    candidates = {os.path.realpath(path) for path in python} | set(python) | {str(INSIDE)}
    candidates |= {path for path in SYSTEM if os.path.exists(path) and path not in links}
    paths: list[str] = []
    for path in sorted(candidates):
        if path != "/" and not any(path == one or path.startswith(one + "/") for one in paths):
            paths.append(path)
    return (*paths, *(path for path in DEVICES if os.path.exists(path))), links


def rights(limits: SandboxLimits, **fields: object) -> str:
    """Return the argument that a script takes its rights from (`Rights` in inside/kernel.py)."""
    paths, links = visible_paths()
    base: dict[str, object] = {
        "root": "",
        "visible": paths,
        "links": links,
        "folder": FOLDER,
        "tmpfs_bytes": TMPFS_BYTES,
        "tmpfs_files": TMPFS_FILES,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
    }
    return json.dumps(base | fields)


def python_command(script: str, argument: str, more: list[str]) -> list[str]:
    """Return the command that runs the main function of a module of `inside`."""
    folder = str(INSIDE.parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); from inside.{script} import main; main()"
    return [sys.executable, "-I", "-B", "-c", code, argument, *more]


def _tool(name: str) -> str:
    """Return the path of a program; its name where it is missing."""
    return shutil.which(name) or name


def by_bubblewrap(folder: str, script: str, limits: SandboxLimits, more: list[str]) -> list[str]:
    """Return a command behind bubblewrap."""
    paths, links = visible_paths()
    words = [
        _tool("bwrap"),
        "--unshare-user",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
    ]
    words += ["--uid", "0", "--gid", "0", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]
    for path in paths:
        words += ["--dev-bind" if path in DEVICES else "--ro-bind", path, path]
    for link, target in links.items():
        words += ["--symlink", target, link]
    words += ["--dir", FOLDER, "--remount-ro", "/", "--"]
    return [*words, *python_command(script, rights(limits), more)]


def by_unshare(folder: str, script: str, limits: SandboxLimits, more: list[str]) -> list[str]:
    """Return a command behind `unshare`; the script changes its root itself, with `folder` as the place."""
    words = [
        _tool("unshare"),
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--net",
        "--ipc",
        "--uts",
    ]
    words += ["--fork", "--kill-child", "--"]
    return [*words, *python_command(script, rights(limits, root=folder), more)]


def by_nothing(folder: str, script: str, limits: SandboxLimits, more: list[str]) -> list[str]:
    """Return a command without namespaces: limits, and Landlock and seccomp where the kernel has them."""
    argument = rights(limits, folder=os.path.realpath(folder), tmpfs_bytes=0)
    return python_command(script, argument, more)


WALLS = (Wall("bubblewrap", by_bubblewrap), Wall("unshare", by_unshare))
NO_WALL = Wall("none", by_nothing)


@functools.cache
def find_wall() -> Wall | None:
    """Return the first wall that works on this machine, by trying it; None if there is none."""
    return next((wall for wall in WALLS if works(wall)), None)


def works(wall: Wall) -> bool:
    """Check that a process starts behind a wall, in an empty folder, and does not see the machine."""
    limits = SandboxLimits()
    with tempfile.TemporaryDirectory(prefix="unmask-code-") as folder:
        secret = Path(folder) / "secret"
        secret.touch()
        command = wall.command(folder, "probe", limits, [str(secret)])
        if shutil.which(command[0]) is None:
            return False
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=PROBE_S,
                env={},
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0 and done.stdout.strip() == b"inside"
