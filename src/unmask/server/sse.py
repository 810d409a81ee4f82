"""A call as server-sent events: text that only grows, or whole canvases."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from unmask.canvas import Canvas
from unmask.server.errors import ApiError
from unmask.server.generation import Answer, Generation
from unmask.server.responses import Reply, usage

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk_event(call: Generation, chunk: dict[str, Any], *, with_usage: bool) -> bytes:
    """A chunk as an event, with the usage so far if it is asked for in every one."""
    return event(chunk | ({"usage": usage(call.answers)} if with_usage else {}))


class Told:
    """What of an answer was sent."""

    def __init__(self) -> None:
        self.is_first, self.num_tokens = True, 0

    def advance(self, answer: Answer) -> None:
        """Everything that is certain now was sent."""
        self.is_first, self.num_tokens = False, answer.num_tokens


async def text_events(
    call: Generation, reply: Reply, *, with_usage: bool, usage_always: bool
) -> AsyncGenerator[bytes]:
    """Pieces of text; the last chunk of every answer has its finish reason. No piece is empty but it.

    `with_usage`: a chunk of its own at the end; `usage_always`: in every chunk.
    """
    sent = {answer.index: Told() for answer in call.answers}
    async for answer, _, text in call.updates():
        told = sent[answer.index]
        if answer.reason is not None:
            if reply.route == "chat" and told.is_first and not text:
                yield chunk_event(call, reply.opening(answer), with_usage=usage_always)
                told.is_first = False
            chunk = reply.last(answer, text, told.num_tokens, is_first=told.is_first)
        elif text:
            chunk = reply.piece(answer, text, is_first=told.is_first, told=told.num_tokens)
        else:
            continue
        told.advance(answer)
        yield chunk_event(call, chunk, with_usage=usage_always)
    if with_usage:
        yield event(reply.usage_chunk(call.answers))
    yield DONE


async def canvas_events(
    call: Generation, reply: Reply, *, with_usage: bool, usage_always: bool
) -> AsyncGenerator[bytes]:
    """A frame before the first forward and after every one, and the text at the end.

    Another frame stands before the text only if the canvas ended otherwise than its last frame shows.
    `with_usage` and `usage_always` as in `text_events`.
    """
    shown: dict[int, Canvas] = {}
    async for answer, update, _ in call.updates():
        chunks = []
        if answer.index not in shown:
            shown[answer.index] = update.before
            first = answer.first_frame(update, reply.pieces)
            chunks.append(reply.canvas(answer, first, is_first=True))
        if update.kind == "step" or answer.canvas is not shown[answer.index]:
            shown[answer.index] = answer.canvas
            frame = answer.frame(update, reply.pieces)
            chunks.append(reply.canvas(answer, frame, is_first=False))
        if answer.reason is not None:
            chunks.append(reply.last(answer, answer.text, 0, is_first=False))
        for chunk in chunks:
            yield chunk_event(call, chunk, with_usage=usage_always)
    if with_usage:
        yield event(reply.usage_chunk(call.answers))
    yield DONE


async def guarded(call: Generation, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events of a call that was submitted; an error becomes the last of them."""
    async with aclosing(events):
        try:
            async for item in events:
                yield item
        except ApiError as error:
            call.error = error
            yield event(error.body())
