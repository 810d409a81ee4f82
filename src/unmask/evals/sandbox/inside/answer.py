"""Process of an answer: enters the sandbox, runs the program, then calls its functions as it is asked to.

Arguments: the rights as JSON; the pipes are 0 and 1. It never sees an expected value, and a verdict depends
on nothing that it says but the values that its functions return.
"""

from __future__ import annotations

import json
import os
import sys

from . import kernel, wire

MAX_TEXT = 300


class Program:
    """The namespace of the program, and the objects that the tests hold by number."""

    def __init__(self) -> None:
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.kept: list[object] = []

    def keep(self, value: object) -> object:
        """Return the handle of an object."""
        self.kept.append(value)
        try:
            truth = bool(value)
        except Exception:  # noqa: BLE001 -- code of the answer
            truth = True
        return {"handle": len(self.kept) - 1, "truth": truth}

    def find(self, data: dict[str, object]) -> object:
        """Return the object of a handle."""
        index = data["handle"]
        assert isinstance(index, int), "the tests send handles that they were given"
        return self.kept[index]

    def reply(self, message: dict[str, object]) -> object:
        """Return the reply to a message; exceptions of the program are replies too."""
        try:
            return {"value": self._result(message)}
        except BaseException as error:  # noqa: BLE001 -- code of the answer
            return {"error": type(error).__name__, "text": text_of(error)}

    def _result(self, message: dict[str, object]) -> object:
        action = message["action"]
        if action == "run":
            exec(compile(str(message["program"]), "<answer>", "exec"), self.namespace)
            return None
        if action == "name":
            return wire.encode(self.namespace[str(message["name"])], self.keep)
        target = wire.decode(message["target"], self.find)
        if action == "get":
            return wire.encode(getattr(target, str(message["name"])), self.keep)
        values = wire.decode(message["values"], self.find)
        assert isinstance(values, list), "arguments travel as a list"
        if action == "set":
            setattr(target, str(message["name"]), values[0])
            return None
        named = wire.decode(message["named"], self.find)
        assert isinstance(named, dict), "keyword arguments travel as a dict"
        if not callable(target):
            raise TypeError(f"{type(target).__name__!r} object is not callable")
        return wire.encode(target(*values, **named), self.keep)


def text_of(error: BaseException) -> str:
    """Return the text of an exception, bounded; its own code may fail."""
    try:
        return str(error)[:MAX_TEXT]
    except BaseException:  # noqa: BLE001 -- code of the answer
        return ""


def main() -> None:
    """Serve the tests until they close the pipe."""
    channel = wire.Channel(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    kernel.enter(json.loads(sys.argv[1]))
    for module in ("ctypes", "_ctypes"):
        sys.modules[module] = None  # type: ignore[assignment]  # no answer needs native calls
    program = Program()
    while True:
        try:
            message = channel.receive()
        except wire.WireError:
            return
        reply = program.reply(message)
        try:
            channel.send(reply)
        except (wire.WireError, ValueError, RecursionError) as error:
            channel.send({"error": type(error).__name__, "text": text_of(error)})
