"""Server-sent events of a generation: text that only grows, or whole canvases."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from unmask.canvas import Canvas
from unmask.server.errors import ApiError
from unmask.server.generation import Answer, Generation
from unmask.server.reply_models import ChatChunk, ReplyModel, TextChunk, encode
from unmask.server.responses import ReplyBuilder, usage

DONE = b"data: [DONE]\n\n"


def event(body: ReplyModel) -> bytes:
    """Return one event."""
    return b"data: " + encode(body) + b"\n\n"


def chunk_event(generation: Generation, chunk: ChatChunk | TextChunk, *, with_usage: bool) -> bytes:
    """Return a chunk as an event, with the usage so far if `with_usage`."""
    if with_usage:
        chunk = chunk.model_copy(update={"usage": usage(generation.answers)})
    return event(chunk)


class SentState:
    """Progress of a stream: `is_first` until a chunk was sent, `num_tokens` sent with log-probabilities."""

    def __init__(self) -> None:
        self.is_first, self.num_tokens = True, 0

    def advance(self, answer: Answer) -> None:
        """Record that everything final so far was sent."""
        self.is_first, self.num_tokens = False, answer.num_tokens


async def text_events(
    generation: Generation, reply: ReplyBuilder, *, with_usage: bool, usage_always: bool
) -> AsyncGenerator[bytes]:
    """Yield chunks of text; only the last chunk of an answer, with its finish reason, may have none.

    `with_usage`: an additional last chunk has the usage; `usage_always`: every chunk has it.
    """
    states = {answer.index: SentState() for answer in generation.answers}
    async for answer, _, text in generation.updates():
        sent = states[answer.index]
        if reply.tools is not None:  # a call is sent when it is complete
            text = answer.text if answer.finish_reason is not None else ""
        if answer.finish_reason is not None:
            if reply.route == "chat" and sent.is_first and not text:
                yield chunk_event(generation, reply.role_chunk(answer), with_usage=usage_always)
                sent.is_first = False
            chunk = reply.last_chunk(answer, text, sent.num_tokens, is_first=sent.is_first)
        elif text:
            chunk = reply.text_chunk(answer, text, sent.num_tokens, is_first=sent.is_first)
        else:
            continue
        sent.advance(answer)
        yield chunk_event(generation, chunk, with_usage=usage_always)
    if with_usage:
        yield event(reply.usage_chunk(generation.answers))
    yield DONE


async def canvas_events(
    generation: Generation, reply: ReplyBuilder, *, with_usage: bool, usage_always: bool
) -> AsyncGenerator[bytes]:
    """Yield a frame before the first forward and after every forward, then the text.

    Another frame precedes the text only if the canvas has changed after its last forward. `with_usage` and
    `usage_always` as in `text_events`.
    """
    last_canvas: dict[int, Canvas] = {}
    async for answer, update, _ in generation.updates():
        chunks = []
        if answer.index not in last_canvas:
            last_canvas[answer.index] = update.before
            first = answer.first_frame(update, reply.texts)
            chunks.append(reply.canvas_chunk(answer, first, is_first=True))
        if update.kind == "step" or answer.canvas is not last_canvas[answer.index]:
            last_canvas[answer.index] = answer.canvas
            frame = answer.frame(update, reply.texts)
            chunks.append(reply.canvas_chunk(answer, frame, is_first=False))
        if answer.finish_reason is not None:
            chunks.append(reply.last_chunk(answer, answer.text, 0, is_first=False))
        for chunk in chunks:
            yield chunk_event(generation, chunk, with_usage=usage_always)
    if with_usage:
        yield event(reply.usage_chunk(generation.answers))
    yield DONE


async def error_as_event(
    generation: Generation, events: AsyncGenerator[bytes]
) -> AsyncGenerator[bytes]:
    """Yield the events; an ApiError becomes the last one."""
    async with aclosing(events):
        try:
            async for item in events:
                yield item
        except ApiError as error:
            generation.error = error
            yield event(error.body())
