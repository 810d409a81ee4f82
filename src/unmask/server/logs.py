"""The server's log: lines of text or JSON objects, written by a thread that may wait for their reader.

A reader that stops reading, or a full disk, costs log lines and nothing else: lines beyond `MAX_LINES` are
dropped, and their number is logged as soon as the log is read again.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from typing import IO

from unmask.engine.threads import ErrorCapture
from unmask.server.errors import sanitize
from unmask.server.settings import LogFormat

MAX_LINES = 1000
"""Lines that wait to be written."""
MAX_MESSAGE_CHARS = 4000
MAX_TRACEBACK_CHARS = 12_000
"""The end of a longer traceback is kept."""
FLUSH_S = 1.0
"""Maximum time at the end of the process to write what waits."""
RETRY_MS = 1000
FIELDS = "fields"
"""Attribute of a log record with the keys that a JSON line has beside the message."""


class QueuedHandler(logging.Handler):
    """A handler whose `emit` never waits; a daemon thread writes the lines to a file descriptor.

    `num_dropped`: lines that were not written, since the start.
    """

    def __init__(self, descriptor: int, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self.descriptor, self.max_lines = descriptor, max_lines
        self.num_dropped = 0
        self._num_unreported = 0
        self._lines: deque[str] = deque()
        self._is_closed, self._is_writing = False, False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="unmask-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line, or drop it when too many wait."""
        line = ""
        with ErrorCapture() as capture:
            line = self.format(record)
        is_bad = capture.error is not None  # its arguments do not fit its text
        with self._change:
            if is_bad or self._is_closed or len(self._lines) >= self.max_lines:
                self._drop(1)
                return
            self._lines.append(line)
            self._change.notify_all()

    def flush(self) -> None:
        """Wait until the queued lines are written, at most `FLUSH_S` seconds."""
        with self._change:
            self._change.wait_for(lambda: not self._lines and not self._is_writing, FLUSH_S)

    def close(self) -> None:
        """Stop the thread when it has written what waits, or after `FLUSH_S` seconds."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._thread.join(FLUSH_S)
        super().close()

    def _drop(self, count: int) -> None:
        self.num_dropped += count
        self._num_unreported += count

    def _run(self) -> None:
        while True:
            with self._change:
                self._is_writing = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    return
                line, num_dropped = self._lines.popleft(), self._num_unreported
                self._num_unreported, self._is_writing = 0, True
            if num_dropped and not self._write(self._drop_report(num_dropped)):
                with self._change:
                    self._num_unreported += num_dropped
            if not self._write(line):
                with self._change:
                    self._drop(1)

    def _drop_report(self, count: int) -> str:
        message = (
            f"{count} log lines were dropped, since the log was not read or could not be written"
        )
        record = logging.LogRecord("unmask.server", logging.WARNING, "", 0, message, None, None)
        setattr(record, FIELDS, {"num_dropped": count})
        return self.format(record)

    def _write(self, line: str) -> bool:
        """Write a line; return False if it could not be written."""
        data = memoryview((line + "\n").encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:  # a descriptor that another process has made non-blocking
                waiter = select.poll()
                waiter.register(self.descriptor, select.POLLOUT)
                waiter.poll(RETRY_MS)
            except OSError:
                return False
        return True


class TextFormatter(logging.Formatter):
    """Lines of text: time, level, message; the lines of a traceback follow."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the first line, without control characters."""
        record.message = sanitize(record.message, MAX_MESSAGE_CHARS)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """Return a traceback, each line without control characters."""
        return "\n".join(sanitize(line, MAX_MESSAGE_CHARS) for line in cut_traceback(self, ei))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the record's fields, any exception."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, in ASCII."""
        content: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": sanitize(record.getMessage(), MAX_MESSAGE_CHARS),
            **record.__dict__.get(FIELDS, {}),
        }
        if record.exc_info:
            content["exception"] = "\n".join(cut_traceback(self, record.exc_info))
        return json.dumps(content, default=str)


def cut_traceback(formatter: logging.Formatter, exception: object) -> list[str]:
    """Return the lines of a traceback, or of its last `MAX_TRACEBACK_CHARS` characters."""
    text = logging.Formatter.formatException(formatter, exception)  # type: ignore[arg-type]
    if len(text) > MAX_TRACEBACK_CHARS:
        text = "..." + text[-MAX_TRACEBACK_CHARS:]
    return text.splitlines()


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


def set_up_log(log_format: LogFormat, *, log_requests: bool) -> QueuedHandler:
    """Log all warnings of this process on standard error, and requests if `log_requests`."""
    handler = QueuedHandler(descriptor_of(sys.stderr, 2))
    handler.setFormatter(FORMATTERS[log_format]())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings are refusals, logged here
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("unmask").setLevel(logging.INFO if log_requests else logging.WARNING)
    return handler


def line_of(message: str) -> str:
    """Return a message as the JSON line of a warning."""
    record = logging.LogRecord("unmask.server", logging.WARNING, "", 0, message, None, None)
    return JsonFormatter().format(record)


def descriptor_of(stream: IO[str] | None, default: int) -> int:
    """Return the file descriptor of a stream, or a default for one without."""
    try:
        return default if stream is None else stream.fileno()
    except (OSError, ValueError):
        return default


def announce(line: str) -> None:
    """Print a line on standard output from a thread, so that a full pipe does not stop the caller."""
    data = f"{line}\n".encode()
    descriptor = descriptor_of(sys.stdout, 1)
    threading.Thread(target=_write_quietly, args=(descriptor, data), daemon=True).start()


def _write_quietly(descriptor: int, data: bytes) -> None:
    try:
        os.write(descriptor, data)
    except OSError:
        return  # nobody reads it
