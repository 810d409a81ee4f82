"""Child process of `sandbox.run_program`: a script, started with `python -I`.

Reads a job as JSON from standard input, drops its own rights, runs the program, and writes the token of the
job after the end of the program.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TypedDict


class Job(TypedDict, total=False):
    """The program, its limits, and the token to print at its end."""

    token: str
    program: str
    folder: str
    cpu_s: int
    memory_bytes: int
    file_bytes: int


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


def limit(job: Job) -> None:
    """Set the kernel's limits, which cannot be raised again."""
    import resource

    def bound(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    bound(resource.RLIMIT_CPU, job["cpu_s"])
    bound(resource.RLIMIT_FSIZE, job["file_bytes"])
    bound(resource.RLIMIT_NOFILE, 32)
    bound(resource.RLIMIT_CORE, 0)
    if sys.platform != "darwin":  # where it is refused
        bound(resource.RLIMIT_AS, job["memory_bytes"])


def guard(folder: str) -> None:
    """Refuse network, processes, and files outside of `folder` and, for reading, of Python itself."""
    python = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
    readable = tuple(path + os.sep for path in python)
    inside = folder + os.sep

    def allowed(path: object, writes: bool) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        real = os.path.realpath(text)
        if (real + os.sep).startswith(inside) or real in DEVICES:
            return True
        return not writes and (real + os.sep).startswith(readable)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event.startswith(ON_FILES):
            writes = event not in ("open", "os.listdir", "os.scandir")
            if event == "open" and len(args) == 3:
                mode, flags = args[1], args[2]
                assert isinstance(flags, int), "the audit event of open has integer flags"
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                writes = writes or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
            paths = args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]
            if not all(allowed(path, writes) for path in paths):
                raise PermissionError(f"{event} outside of the folder is not allowed here")

    sys.addaudithook(hook)


def main() -> None:
    """Run the job on standard input."""
    job: Job = json.loads(sys.stdin.buffer.read())
    output = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    limit(job)
    guard(job["folder"])
    token = job.pop("token")
    try:
        exec(compile(job["program"], "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        os.write(output, f"{type(error).__name__}: {error}\n".encode(errors="replace")[:500])
        raise
    os.write(output, f"{token}\n".encode())


if __name__ == "__main__":
    main()
