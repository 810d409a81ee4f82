"""A call as server-sent events: text that only grows, or whole canvases."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from unmask.server.answer import Answer
from unmask.server.call import Call
from unmask.server.errors import ApiError
from unmask.server.replies import Reply, usage

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class Told:
    """What of an answer was sent."""

    def __init__(self) -> None:
        self.is_first, self.num_tokens = True, 0

    def advance(self, answer: Answer) -> None:
        """Everything that is certain now was sent."""
        self.is_first, self.num_tokens = False, answer.num_tokens


async def text_events(
    call: Call, reply: Reply, *, with_usage: bool, usage_always: bool
) -> AsyncGenerator[bytes]:
    """Pieces of text; the last chunk of every answer has its finish reason. No piece is empty but it.

    `with_usage`: a chunk of its own at the end; `usage_always`: in every chunk.
    """
    sent = {answer.index: Told() for answer in call.answers}
    async for answer, _, text in call.updates():
        told = sent[answer.index]
        if answer.reason is not None:
            chunk = reply.last(answer, text, told.num_tokens, is_first=told.is_first)
        elif text:
            chunk = reply.piece(answer, text, is_first=told.is_first, told=told.num_tokens)
        else:
            continue
        told.advance(answer)
        if usage_always:
            chunk["usage"] = usage(call.answers)
        yield event(chunk)
    if with_usage:
        yield event(reply.usage_chunk(call.answers))
    yield DONE


async def canvas_events(call: Call, reply: Reply, *, with_usage: bool) -> AsyncGenerator[bytes]:
    """A frame before the first forward and after every one, and the text at the end."""
    started: set[int] = set()
    async for answer, update, _ in call.updates():
        is_first = answer.index not in started
        if is_first:
            started.add(answer.index)
            yield event(
                reply.canvas(answer, answer.first_frame(update, reply.pieces), is_first=True)
            )
        if update.kind == "step":
            yield event(reply.canvas(answer, answer.frame(update, reply.pieces), is_first=False))
        if answer.reason is not None:
            yield event(reply.canvas(answer, answer.frame(None, reply.pieces), is_first=False))
            yield event(reply.last(answer, answer.text, 0, is_first=False))
    if with_usage:
        yield event(reply.usage_chunk(call.answers))
    yield DONE


async def guarded(call: Call, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events of a call that was submitted; an error becomes the last of them."""
    async with aclosing(events):
        try:
            async for item in events:
                yield item
        except ApiError as error:
            call.error = error
            yield event(error.body())
