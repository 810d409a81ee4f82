"""Construction of replies and stream chunks from the answers of a generation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from unmask.engine.outputs import Commit, Step
from unmask.engine.token_text import TokenTexts
from unmask.engine.trace_records import extra_fields, header_of, opening_fields
from unmask.server.canvas_frames import UNKNOWN_LOGPROB
from unmask.server.generation import Answer
from unmask.server.reply_models import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatFinish,
    ChatLogprobs,
    ChunkFields,
    DiffusionMeta,
    FimChoice,
    FimCompletion,
    IndexedCall,
    InfillChoice,
    InfillCompletion,
    PromptTokensDetails,
    ReplyHead,
    StepMap,
    StreamFrame,
    TextChoice,
    TextChunk,
    TextChunkChoice,
    TextCompletion,
    TextLogprobs,
    TokenLogprob,
    TraceCommit,
    TraceStep,
    Usage,
)
from unmask.server.tool_fields import ToolCall, ToolParser
from unmask.version import __version__

Route = Literal["chat", "completion", "fim", "infill"]
Chunk = ChatChunk | TextChunk
ID_PREFIX: dict[Route, str] = {
    "chat": "chatcmpl-",
    "completion": "cmpl-",
    "fim": "fim-",
    "infill": "infill-",
}


class TraceFields(TypedDict, total=False):
    """The trace and the step map of an answer, absent unless they were requested."""

    trace: list[TraceStep]
    trace_header: dict[str, JsonValue]
    step_map: StepMap


@dataclass(frozen=True)
class ReplyBuilder:
    """Builds the reply or the chunks of one request, which share an id and the model's name."""

    route: Route
    model: str
    texts: TokenTexts
    wants_logprobs: bool = False
    wants_trace: bool = False
    wants_trace_header: bool = False
    wants_step_map: bool = False
    wants_diffusion_meta: bool = False
    tools: ToolParser | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    suffix: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def id(self) -> str:
        """The id of the reply."""
        return ID_PREFIX[self.route] + self.suffix

    def _head(self) -> ReplyHead:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"unmask-{__version__}",
        }

    def reply(
        self, answers: Sequence[Answer]
    ) -> ChatCompletion | TextCompletion | FimCompletion | InfillCompletion:
        """Return the reply without a stream."""
        head, method = self._head(), answers[0].method()
        if self.route == "chat":
            return ChatCompletion(
                **head,
                object="chat.completion",
                choices=[self._chat_choice(answer) for answer in answers],
                usage=usage(answers),
                unmask=method,
            )
        if self.route == "infill":
            return InfillCompletion(
                **head,
                object="infill",
                choices=[self._infill_choice(answer) for answer in answers],
                usage=usage(answers),
                unmask=method,
            )
        if self.route == "fim":
            return FimCompletion(
                **head,
                object="text_completion",
                choices=[self._fim_choice(answer) for answer in answers],
                usage=usage(answers),
                unmask=method,
            )
        return TextCompletion(
            **head,
            object="text_completion",
            choices=[self._text_choice(answer) for answer in answers],
            usage=usage(answers),
            unmask=method,
        )

    def _chat_choice(self, answer: Answer) -> ChatChoice:
        assert answer.finish_reason is not None, "the answer is complete"
        message = AssistantMessage(role="assistant", content=answer.text, refusal=None)
        finish: ChatFinish = answer.finish_reason
        if self.tools is not None:
            content, calls = self.tools.parse(answer.text)
            if calls:
                finish = "tool_calls"
                message = AssistantMessage(
                    role="assistant", content=content, refusal=None, tool_calls=calls
                )
        return ChatChoice(
            index=answer.index,
            message=message,
            finish_reason=finish,
            logprobs=self._chat_logprobs(answer, 0),
            **self._trace(answer),
        )

    def _text_choice(self, answer: Answer) -> TextChoice:
        assert answer.finish_reason is not None, "the answer is complete"
        return TextChoice(
            index=answer.index,
            text=answer.text,
            finish_reason=answer.finish_reason,
            logprobs=self._text_logprobs(answer, 0),
            **self._trace(answer),
        )

    def _fim_choice(self, answer: Answer) -> FimChoice:
        assert answer.finish_reason is not None, "the answer is complete"
        return FimChoice(
            index=answer.index,
            text=answer.text,
            message=AssistantMessage(role="assistant", content=answer.text, refusal=None),
            finish_reason=answer.finish_reason,
            logprobs=self._text_logprobs(answer, 0),
            **self._trace(answer),
        )

    def _infill_choice(self, answer: Answer) -> InfillChoice:
        assert answer.finish_reason is not None, "the answer is complete"
        return InfillChoice(
            index=answer.index,
            text=answer.text,
            finish_reason=answer.finish_reason,
            logprobs=self._text_logprobs(answer, 0),
            blanks=answer.blanks(),
            **self._trace(answer),
        )

    def text_chunk(self, answer: Answer, text: str, num_sent: int, *, is_first: bool) -> Chunk:
        """Return a chunk of new text; log-probabilities of `num_sent` tokens were already streamed."""
        fields: ChunkFields = {"index": answer.index, "finish_reason": None}
        return self._chunk(answer, text, num_sent, fields, is_first=is_first)

    def canvas_chunk(self, answer: Answer, frame: StreamFrame, *, is_first: bool) -> Chunk:
        """Return a chunk with a whole canvas, whose text replaces that of all chunks before it."""
        fields: ChunkFields = {"index": answer.index, "finish_reason": None, "canvas": frame}
        chunk = self._chunk(answer, frame["text"], None, fields, is_first=is_first)
        if not self.wants_diffusion_meta:
            return chunk
        meta = DiffusionMeta(diffusion_progress=progress(frame), diffusion_content=True)
        return chunk.model_copy(update={"diffusion_meta": meta})

    def role_chunk(self, answer: Answer) -> Chunk:
        """Return the first chunk of a chat answer without text, which has the role alone."""
        fields: ChunkFields = {"index": answer.index, "finish_reason": None}
        return self._chunk(answer, "", None, fields, is_first=True)

    def last_chunk(self, answer: Answer, text: str, num_sent: int, *, is_first: bool) -> Chunk:
        """Return the chunk that completes an answer, with the rest of its text.

        Log-probabilities of `num_sent` tokens were already streamed.
        """
        fields: ChunkFields = {"index": answer.index, "finish_reason": answer.finish_reason}
        if self.wants_trace:
            fields["trace"] = self._trace_steps(answer)
        if self.wants_trace_header:
            fields["trace_header"] = self._trace_header(answer)
        if self.wants_step_map:
            fields["step_map"] = self._step_map(answer)
        # vLLM's client rejects an answer none of whose chunks has content
        content = text if text or not answer.text else None
        chunk = self._chunk(answer, content, num_sent, fields, is_first=is_first)
        if self.tools is not None and isinstance(chunk, ChatChunk):
            chunk = self._with_calls(chunk, *self.tools.parse(answer.text))
        update: dict[str, object] = {"unmask": answer.method()}
        if self.wants_diffusion_meta:
            meta = DiffusionMeta(diffusion_progress=1.0, diffusion_content=True)
            update["diffusion_meta"] = meta
        return chunk.model_copy(update=update)

    @staticmethod
    def _with_calls(chunk: ChatChunk, content: str | None, calls: list[ToolCall]) -> ChatChunk:
        """Return the last chunk of an answer with its calls, and with its text without them."""
        if not calls:
            return chunk
        (choice,) = chunk.choices
        indexed: list[IndexedCall] = [
            {"index": number, **call} for number, call in enumerate(calls)
        ]
        update: dict[str, object] = {"content": content, "tool_calls": indexed}
        ours = {"delta": choice.delta.model_copy(update=update), "finish_reason": "tool_calls"}
        return chunk.model_copy(update={"choices": [choice.model_copy(update=ours)]})

    def usage_chunk(self, answers: Sequence[Answer]) -> Chunk:
        """Return the chunk after the last answer, which has the usage and no choices."""
        if self.route == "chat":
            return ChatChunk(
                **self._head(), object="chat.completion.chunk", choices=[], usage=usage(answers)
            )
        return TextChunk(**self._head(), object=self._text_object, choices=[], usage=usage(answers))

    @property
    def _text_object(self) -> Literal["text_completion", "infill.chunk"]:
        return "infill.chunk" if self.route == "infill" else "text_completion"

    def _chunk(
        self,
        answer: Answer,
        text: str | None,
        num_sent: int | None,
        fields: ChunkFields,
        *,
        is_first: bool,
    ) -> Chunk:
        """Return a chunk of one choice; `num_sent` None leaves out the log-probabilities."""
        if self.route == "chat":
            chat_choice = ChatChunkChoice(
                delta=delta(text, is_first=is_first),
                logprobs=self._chat_logprobs(answer, num_sent),
                **fields,
            )
            return ChatChunk(**self._head(), object="chat.completion.chunk", choices=[chat_choice])
        choice = TextChunkChoice(
            text=text or "", logprobs=self._text_logprobs(answer, num_sent), **fields
        )
        if self.route == "fim":
            choice = choice.model_copy(update={"delta": delta(text, is_first=is_first)})
        if self.route == "infill" and fields["finish_reason"] is not None:
            choice = choice.model_copy(update={"blanks": answer.blanks()})
        return TextChunk(**self._head(), object=self._text_object, choices=[choice])

    def _chat_logprobs(self, answer: Answer, num_sent: int | None) -> ChatLogprobs | None:
        """Return the log-probabilities after the first `num_sent` tokens, or None if not requested."""
        if num_sent is None or not self.wants_logprobs:
            return None
        content: list[TokenLogprob] = []
        for item in answer.committed_tokens()[num_sent:]:
            content.append(
                {
                    "token": self.texts.text(item.token),
                    "logprob": known(item.logprob),
                    "bytes": list(self.texts.data(item.token)),
                    "top_logprobs": [
                        {
                            "token": self.texts.text(id_),
                            "logprob": share,
                            "bytes": list(self.texts.data(id_)),
                        }
                        for id_, share in item.likeliest
                    ],
                }
            )
        return ChatLogprobs(content=content, refusal=None)

    def _text_logprobs(self, answer: Answer, num_sent: int | None) -> TextLogprobs | None:
        """Return the log-probabilities after the first `num_sent` tokens, or None if not requested."""
        if num_sent is None or not self.wants_logprobs:
            return None
        tokens = answer.committed_tokens()
        texts = [self.texts.text(item.token) for item in tokens]
        top = [{self.texts.text(id_): p for id_, p in reversed(item.likeliest)} for item in tokens]
        top = top[num_sent:]
        offsets = list(accumulate(map(len, texts), initial=0))
        return TextLogprobs(
            tokens=texts[num_sent:],
            token_logprobs=[known(item.logprob) for item in tokens[num_sent:]],
            top_logprobs=top if any(top) else None,
            text_offset=offsets[num_sent:-1],
        )

    def _trace(self, answer: Answer) -> TraceFields:
        fields: TraceFields = {}
        if self.wants_trace:
            fields["trace"] = self._trace_steps(answer)
        if self.wants_trace_header:
            fields["trace_header"] = self._trace_header(answer)
        if self.wants_step_map:
            fields["step_map"] = self._step_map(answer)
        return fields

    def _step_map(self, answer: Answer) -> StepMap:
        tokens = answer.committed_tokens()
        return {
            "token_ids": [item.token for item in tokens],
            "forwards": [item.forward for item in tokens],
            "logprobs": [item.logprob for item in tokens],
            "weights_version": answer.weights_version,
        }

    def _trace_steps(self, answer: Answer) -> list[TraceStep]:
        trace = answer.output.trace if answer.output is not None else None
        return [self._trace_step(step) for step in trace or ()]

    def _trace_header(self, answer: Answer) -> dict[str, JsonValue]:
        """Return the first line of the trace file of a complete answer."""
        request, output = answer.plan.request, answer.output
        assert output is not None, "the answer is complete"
        assert output.opening is not None, "the engine keeps traces"
        canvas = request.canvas
        header = header_of(
            request.method, canvas, request.stop_ids, model=self.model, seed=request.seed
        )
        method = answer.method()
        header = replace(
            header,
            **opening_fields(output.opening.canvas, self.texts),
            stop_at_eos=request.stop_at_eos,
            origin=method.model,
            versions=method.versions,
        )
        first: dict[str, JsonValue] = {"format": header.format, "version": header.version}
        return first | asdict(header)

    def _trace_step(self, step: Step) -> TraceStep:
        def with_text(commits: Sequence[Commit]) -> list[TraceCommit]:
            return [(*commit, self.texts.text(commit.token)) for commit in commits]

        fields: TraceStep = {
            "committed": with_text(step.committed),
            "remasked": step.remasked,
            "inserted": step.inserted,
            "replaced": with_text(step.replaced),
            "deleted": step.deleted,
            "num_queries": step.num_queries,
            "appended": step.appended,
            "notes": dict(step.notes),
        }
        extra = extra_fields(step, self.texts)
        if "alternatives" in extra:
            fields["alternatives"] = extra["alternatives"]
        if self.wants_trace_header and "texts" in extra:
            fields["texts"] = extra["texts"]
        if self.wants_trace_header and "bytes" in extra:
            fields["bytes"] = extra["bytes"]
        return fields


def known(logprob: float | None) -> float:
    """Return a log-probability, or OpenAI's number for one that is not known: clients read no null."""
    return UNKNOWN_LOGPROB if logprob is None else logprob


def delta(text: str | None, *, is_first: bool) -> ChatDelta:
    """Return the delta of a chat chunk: the role in the first one, the text unless it is None."""
    if text is None:
        return ChatDelta(role="assistant") if is_first else ChatDelta()
    return ChatDelta(role="assistant", content=text) if is_first else ChatDelta(content=text)


def usage(answers: Sequence[Answer]) -> Usage:
    """Return the usage of all answers; a prompt counts once, however many answers it has.

    Cached tokens are those of its first answer, since the others may find what that one computed.
    """
    prompts = {answer.plan.prompt: answer.plan.num_prompt for answer in answers}
    cached = {answer.plan.prompt: answer.num_cached for answer in reversed(answers)}
    num_prompt = sum(prompts.values())
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_forwards = sum(answer.num_forwards for answer in answers)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_tokens,
        total_tokens=num_prompt + num_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached.values())),
        num_forwards=num_forwards,
        tokens_per_forward=round(num_tokens / num_forwards, 4) if num_forwards else 0.0,
        num_queries=sum(answer.num_queries for answer in answers),
        num_wasted=sum(answer.num_wasted for answer in answers),
        num_draft_forwards=sum(answer.num_draft_forwards for answer in answers),
        num_draft_queries=sum(answer.num_draft_queries for answer in answers),
    )


def progress(frame: StreamFrame) -> float:
    """Return the share of decided positions; below 1 while any of them may still change."""
    total = len(frame["slots"])
    if frame["num_settled"] >= total:
        return 1.0
    return (total - max(1, frame["num_open"])) / total
