"""Process of the tests: runs them against the functions of an answer and prints the verdict.

Arguments: the rights as JSON, and the numbers of the pipes from and to the answer's process. The job is
read from 0; the verdict, one line of JSON, goes to 1. The answer can only return values: they are decoded
to standard types or handles, so their comparison runs no code of the answer.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import symtable
import sys
from typing import TypedDict

from . import kernel, wire

MAX_JOB_BYTES = 8 << 20


class Job(TypedDict):
    """A program; code before its tests; its tests; the names that the tests take from the program alone."""

    program: str
    given: str
    tests: str
    entry_points: list[str]


class AnswerError(Exception):
    """An exception of the answer that is not a builtin one."""


class Link:
    """Calls to the answer's process."""

    def __init__(self, channel: wire.Channel) -> None:
        self.channel = channel

    def ask(self, action: str, **fields: object) -> object:
        """Send a request and return its value. Raises the exception that the answer raised."""
        self.channel.send({"action": action, **fields})
        reply = self.channel.receive()
        if "error" in reply:
            name, text = str(reply["error"])[:100], str(reply.get("text", ""))
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                try:
                    raise kind(text)
                except TypeError:  # such as UnicodeDecodeError, which needs more arguments
                    pass
            raise AnswerError(f"{name}: {text}")
        value = reply.get("value")
        return wire.decode(value, lambda data: Handle(self, data))


class Handle:
    """An object that stays in the answer's process: it can be called, and its attributes used."""

    def __init__(self, link: Link, data: dict[str, object]) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_data", {"handle": data["handle"]})
        object.__setattr__(self, "_truth", bool(data.get("truth", True)))

    def __bool__(self) -> bool:
        return bool(object.__getattribute__(self, "_truth"))

    def __call__(self, *values: object, **named: object) -> object:
        """Call the object in its process."""
        sent, names = encode(list(values)), encode(named)
        link: Link = object.__getattribute__(self, "_link")
        return link.ask("call", target=encode(self), values=sent, named=names)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        link: Link = object.__getattribute__(self, "_link")
        return link.ask("get", target=encode(self), name=name)

    def __setattr__(self, name: str, value: object) -> None:
        link: Link = object.__getattribute__(self, "_link")
        link.ask("set", target=encode(self), name=name, values=encode([value]))


def encode(value: object) -> object:
    """Return the JSON form of an argument. Raises WireError for an object of the tests' own."""

    def keep(item: object) -> object:
        if isinstance(item, Handle):
            return object.__getattribute__(item, "_data")
        raise wire.WireError(
            f"an argument of type {type(item).__name__} cannot be sent to the answer"
        )

    return wire.encode(value, keep)


def free_names(source: str) -> set[str]:
    """Return the global names that a program reads without binding them."""
    top = symtable.symtable(source, "<tests>", "exec")
    bound, read, tables = set(), set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                name = symbol.get_name()
                if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                    bound.add(name)
                if symbol.is_referenced():
                    read.add(name)
    return read - bound - set(dir(builtins))


def judge(job: Job, link: Link) -> None:
    """Run the tests. Raises what they raise, and what the answer raises."""
    link.ask("run", program=job["program"])
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(job["given"], "<given>", "exec"), namespace)
    for name in sorted(free_names(job["tests"]) - set(namespace) - set(job["entry_points"])):
        is_module = name in sys.stdlib_module_names
        namespace[name] = (
            importlib.import_module(name) if is_module else link.ask("name", name=name)
        )
    for name in job["entry_points"]:
        namespace[name] = link.ask("name", name=name)
    exec(compile(job["tests"], "<tests>", "exec"), namespace)


def main() -> None:
    """Judge the job on standard input."""
    source, verdict = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    kernel.enter(json.loads(sys.argv[1]))
    link = Link(wire.Channel(int(sys.argv[2]), int(sys.argv[3])))
    text = b""
    while part := os.read(source, 1 << 16):
        text += part
        if len(text) > MAX_JOB_BYTES:
            return
    try:
        judge(json.loads(text), link)
    except wire.EndError:
        result = {"passed": False, "reason": ""}  # the parent knows how the process ended
    except wire.WireError as error:
        result = {"passed": False, "reason": f"the answer: {error}"}
    except BaseException as error:  # noqa: BLE001 -- whatever the tests raise is the verdict
        result = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:500]}
    else:
        result = {"passed": True, "reason": ""}
    os.write(verdict, json.dumps(result).encode() + b"\n")
