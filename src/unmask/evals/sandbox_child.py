"""The inside of `sandbox.run_program`: a script of its own, started with `python -I`.

Reads JSON from standard input, takes its own rights away, runs the program, and writes the word it was
told when the program came to its end.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.killpg",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.",
    "resource.",
    "signal.pthread_kill",
    "sqlite3.",
    "urllib.",
    "webbrowser.",
)
ON_FILES = (
    "open",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.",
    "tempfile.",
)
DEVICES = ("/dev/null", "/dev/urandom")


def limit(told: dict[str, Any]) -> None:
    """Let the kernel hold the limits; they cannot be raised again."""
    import resource

    def bound(kind: int, most: int) -> None:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))

    bound(resource.RLIMIT_CPU, told["cpu_s"])
    bound(resource.RLIMIT_FSIZE, told["file_bytes"])
    bound(resource.RLIMIT_NOFILE, 32)
    bound(resource.RLIMIT_CORE, 0)
    if sys.platform != "darwin":  # where it is refused
        bound(resource.RLIMIT_AS, told["memory_bytes"])


def guard(folder: str) -> None:
    """Refuse network, processes, and files outside of Python's own and `folder`."""
    own = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
    readable = tuple(path + os.sep for path in own)
    inside = folder + os.sep

    def allowed(path: object, writes: bool) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        real = os.path.realpath(text)
        if (real + os.sep).startswith(inside) or real in DEVICES:
            return True
        return not writes and (real + os.sep).startswith(readable)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event.startswith(ON_FILES):
            writes = event not in ("open", "os.listdir", "os.scandir")
            if event == "open" and len(args) == 3:
                mode, flags = args[1], args[2]
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                writes = writes or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
            paths = args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]
            if not all(allowed(path, writes) for path in paths):
                raise PermissionError(f"{event} outside of the folder is not allowed here")

    sys.addaudithook(hook)


def main() -> None:
    """Run what standard input says."""
    told = json.loads(sys.stdin.buffer.read())
    voice = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    limit(told)
    guard(told["folder"])
    word = told.pop("word")
    try:
        exec(compile(told["program"], "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        os.write(voice, f"{type(error).__name__}: {error}\n".encode(errors="replace")[:500])
        raise
    os.write(voice, f"{word}\n".encode())


if __name__ == "__main__":
    main()
