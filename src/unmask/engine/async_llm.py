"""`AsyncLLM`: many requests from coroutines, decoded together by one engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unmask.canvas import Reading
from unmask.decisions.answers import Decisions
from unmask.decisions.asking import DecisionRequests
from unmask.decisions.calibration import CalibrationLike, calibration_for
from unmask.decisions.canvases import DecisionOptions
from unmask.decisions.questions import DecisionQuestion
from unmask.engine.call_options import RequestOptions
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine, RequestUpdate
from unmask.engine.llm import LLM
from unmask.engine.outputs import Output
from unmask.engine.prompts import Prompt
from unmask.engine.request import Request
from unmask.engine.request_builder import CacheLike, DecoderLike
from unmask.engine.text_stream import StopCriteria, TextStream
from unmask.engine.threads import call_in_thread
from unmask.errors import ConfigError, EngineError
from unmask.method import DEFAULT_CACHE, DEFAULT_DECODER


class AsyncLLM:
    """An `LLM` for asyncio: concurrent calls share forwards (continuous batching).

        async with unmask.AsyncLLM("demo") as llm:
            outputs = await asyncio.gather(*(llm.generate(prompt) for prompt in prompts))

    `model` is a loaded `LLM`, or what `LLM` takes, with its options. `config` sets the engine's sizes. Use
    it as an asynchronous context manager, which starts and stops the engine; it is started once. A call
    that is cancelled leaves the batch. Raises ConfigError for options with a loaded model.
    """

    def __init__(
        self,
        model: str | Path | LLM = "demo",
        *,
        config: EngineConfig | None = None,
        **options: Any,
    ) -> None:
        if isinstance(model, LLM) and options:
            raise ConfigError(f"{', '.join(options)}: no effect on a loaded LLM; leave them out")
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        self._engine = Engine(self.llm, config or EngineConfig())

    async def __aenter__(self) -> AsyncLLM:
        self._engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await call_in_thread(self._engine.stop)

    async def generate(
        self,
        prompt: Prompt,
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Output:
        """Decode one prompt; `options` are those of `LLM.request`. The output has its trace.

        Raises PromptError, ConfigError, CapacityError (the queue is full), TimeoutError after
        `timeout_s` seconds, and EngineError if the engine was stopped.
        """
        request = await call_in_thread(self.llm.request, prompt, decoder, cache, **options)
        async for update in self._updates(request, timeout_s):
            if update.output is not None:
                return update.output
        raise EngineError("the engine ended the request without an output")

    async def stream(
        self,
        prompt: Prompt,
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[str]:
        """Yield pieces of text as soon as they can no longer change; otherwise as `generate`."""
        request = await call_in_thread(self.llm.request, prompt, decoder, cache, **options)
        start = request.canvas.prompt_length
        text = TextStream(self.llm.decode, StopCriteria(request.stop_ids), start)
        async for update in self._updates(request, timeout_s):
            is_last = update.kind == "done"
            if delta := text.feed(update.canvas, update.num_settled, is_last=is_last):
                yield delta

    async def decide(
        self,
        content: str,
        questions: Sequence[DecisionQuestion],
        *,
        calibration: CalibrationLike = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Decisions:
        """Return the answers to questions about a text; options and answers are those of `LLM.decide`.

        No more of its canvases are in the engine at once than run together. Raises as `generate`.
        """
        llm = self.llm
        own = await call_in_thread(calibration_for, calibration, llm.weights_folder, llm.name)
        asked = await call_in_thread(
            DecisionRequests.about, llm.requests, content, questions, DecisionOptions.of(options)
        )
        room = asyncio.Semaphore(self._engine.config.window)
        until_s = None if timeout_s is None else time.monotonic() + timeout_s

        async def read(request: Request) -> Reading:
            async with room:
                if until_s is None:
                    return await self._reading(request, None)
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"no answer within timeout_s={timeout_s:g} seconds")
                return await self._reading(request, left_s)

        calls = [asyncio.ensure_future(read(each)) for each in asked.requests]
        try:
            return asked.decisions(await asyncio.gather(*calls), own)
        finally:
            for call in calls:  # the others of one that failed
                call.cancel()

    async def _reading(self, request: Request, timeout_s: float | None) -> Reading:
        reading: Reading | None = None
        async for update in self._updates(request, timeout_s):
            reading = update.reading or reading
        if reading is None:
            raise EngineError("the engine ended the request without a reading")
        return reading

    async def _updates(
        self, request: Request, timeout_s: float | None
    ) -> AsyncIterator[RequestUpdate]:
        """Yield the updates of a request to its end; abort it if nobody listens any more."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[RequestUpdate] = asyncio.Queue()

        def listen(update: RequestUpdate) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, update)

        handle = self._engine.submit(request, listen, deadline_s=timeout_s)
        is_ended = False
        try:
            while not is_ended:
                update = await queue.get()
                is_ended = update.kind != "step"
                if update.error is not None:
                    raise update.error
                if update.kind == "timeout":
                    raise TimeoutError(f"no answer within timeout_s={timeout_s:g} seconds")
                if update.kind == "aborted":
                    raise EngineError("the engine was stopped before the answer was complete")
                yield update
        finally:
            if not is_ended:
                self._engine.abort(handle)
