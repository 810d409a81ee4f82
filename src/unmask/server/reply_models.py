"""Bodies of replies and stream events as models, from which the OpenAPI document is made.

Source: the OpenAI API's chat and text completions. Differs: forwards and computed positions in `usage`, the
decoding method in `unmask`, and `/v1/infill`.
"""

from __future__ import annotations

import json
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SkipValidation
from starlette.responses import JSONResponse
from typing_extensions import NotRequired, TypedDict

from unmask.engine.origin import ModelOrigin
from unmask.engine.outputs import FinishReason
from unmask.server.tool_fields import ToolCall


class ReplyModel(BaseModel):
    """A body that the server sends. Fields that are left unset are absent from the JSON.

    Construction validates, in a few microseconds. Lists with an entry per token or position hold TypedDicts
    and are neither validated nor copied: they would double the time of a canvas stream.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def set_fields(self) -> dict[str, object]:
        """Return the fields that are set, in their order; nested models stay models."""
        is_set = self.model_fields_set.__contains__
        return {key: value for key, value in self.__dict__.items() if is_set(key)}


class ReplyResponse(JSONResponse):
    """A JSON response whose content is a `ReplyModel` or a list of them."""

    def render(self, content: object) -> bytes:
        """Return the body."""
        return encode(content, separators=(",", ":"))


def encode(value: object, *, separators: tuple[str, str] | None = None) -> bytes:
    """Return the JSON of a `ReplyModel` or a list of them.

    `json` rather than pydantic's serializer: it writes floats as Python does (`1e-05`), and does not copy
    the lists of TypedDicts first.
    """
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        separators=separators,
        default=ReplyModel.set_fields,
    )
    return text.encode()


Count = Annotated[int, Field(ge=0)]
Choice = TypeVar("Choice", bound=ReplyModel)


class PromptTokensDetails(ReplyModel):
    """Tokens of prompts that came from the prefix cache."""

    cached_tokens: Count


class Usage(ReplyModel):
    """Tokens, forwards and computed positions of all choices of a reply, drafts included."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    num_forwards: Count
    tokens_per_forward: float
    num_queries: Count
    num_wasted: Count
    num_draft_forwards: Count
    num_draft_queries: Count


class MethodFields(ReplyModel):
    """The decoding method of a reply and its model, sufficient to repeat it.

    `knobs`: every setting in force, defaults included. `versions`: of packages.
    """

    decoder: str
    cache: str
    cache_exact: bool
    seed: int
    knobs: SkipValidation[dict[str, object]]
    model: SkipValidation[ModelOrigin]
    versions: SkipValidation[dict[str, str]]


class TopLogprob(TypedDict):
    """One of the likeliest tokens at a position, or one that the request names."""

    token: str
    logprob: float
    bytes: list[Count]


class TokenLogprob(TypedDict):
    """A token and its log-probability; `bytes` are UTF-8, perhaps a part of a character."""

    token: str
    logprob: float
    bytes: list[Count]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(ReplyModel):
    """Log-probabilities in the format of chat completions; -9999 where none is known."""

    content: SkipValidation[list[TokenLogprob]]
    refusal: None


class TextLogprobs(ReplyModel):
    """Log-probabilities in the format of text completions; -9999 where none is known."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[Count]


TraceCommit = tuple[int, int, float, str]
"""Position, token id, confidence and text."""


TraceAlternative = tuple[int, float, str]
"""Token id, probability and text."""


class TraceStep(TypedDict):
    """The edits of one forward, as in `unmask.engine.outputs.Step`.

    `alternatives`, with `trace_alternatives`: the likeliest tokens of committed and replaced positions.
    `texts` of appended tokens and `bytes` of parts of characters: with `trace_header`.
    """

    committed: list[TraceCommit]
    remasked: tuple[int, ...]
    inserted: tuple[tuple[int, int], ...]
    replaced: list[TraceCommit]
    deleted: tuple[int, ...]
    num_queries: int
    appended: tuple[int, ...]
    notes: dict[str, float]
    alternatives: NotRequired[dict[str, list[TraceAlternative]]]
    texts: NotRequired[dict[str, str]]
    bytes: NotRequired[dict[str, str]]


Trace = SkipValidation[list[TraceStep]]


class StepMap(TypedDict):
    """The tokens of an answer with the forward, from 1, that decided each and its log-probability then.

    null: decided by no forward; without a log-probability. `weights_version`: the number of updates of the
    weights before the answer.
    """

    token_ids: list[int]
    forwards: list[int | None]
    logprobs: list[float | None]
    weights_version: int


ChatFinish = FinishReason | Literal["tool_calls"]


class IndexedCall(ToolCall):
    """A call in a stream, with its index among the calls of the answer."""

    index: int


class AssistantMessage(ReplyModel):
    """The generated turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: SkipValidation[list[ToolCall]] = Field(default_factory=list)


class ChatChoice(ReplyModel):
    """A choice of a chat completion."""

    index: Count
    message: AssistantMessage
    finish_reason: ChatFinish
    logprobs: ChatLogprobs | None
    trace: Trace = Field(default_factory=list)
    trace_header: SkipValidation[dict[str, JsonValue]] | None = None
    step_map: SkipValidation[StepMap] | None = None


class TextChoice(ReplyModel):
    """A choice of a text completion."""

    index: Count
    text: str
    finish_reason: FinishReason
    logprobs: TextLogprobs | None
    trace: Trace = Field(default_factory=list)
    trace_header: SkipValidation[dict[str, JsonValue]] | None = None
    step_map: SkipValidation[StepMap] | None = None


class InfillChoice(TextChoice):
    """A choice of an infill: the whole text, and the texts of its blanks."""

    blanks: list[str]


class FimChoice(TextChoice):
    """A choice of a filled-in middle: `text` for Mercury's clients, `message` for Mistral's."""

    message: AssistantMessage


class ReplyHead(TypedDict):
    """Fields that all replies and chunks of one request share."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Completion(ReplyModel, Generic[Choice]):
    """A reply without a stream."""

    id: str
    object: str
    created: Count
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    unmask: MethodFields


class ChatCompletion(Completion[ChatChoice]):
    """The reply of `POST /v1/chat/completions`."""

    object: Literal["chat.completion"]


class TextCompletion(Completion[TextChoice]):
    """The reply of `POST /v1/completions`."""

    object: Literal["text_completion"]


class InfillCompletion(Completion[InfillChoice]):
    """The reply of `POST /v1/infill`."""

    object: Literal["infill"]


class FimCompletion(Completion[FimChoice]):
    """The reply of `POST /v1/fim/completions`."""

    object: Literal["text_completion"]


class CanvasPosition(TypedDict):
    """A position of a canvas frame; see `unmask.server.canvas_frames`."""

    token: int | None
    text: str
    confidence: float | None
    open: bool
    new: bool
    end: NotRequired[bool]
    fixed: NotRequired[bool]
    special: NotRequired[bool]
    taken_back: NotRequired[bool]
    alternatives: NotRequired[list[tuple[str, float]]]


class StreamFrame(TypedDict):
    """A canvas after a forward; see `unmask.server.canvas_frames`."""

    forward: int
    num_settled: int
    num_open: int
    text: str
    slots: list[CanvasPosition]


class ChatDelta(ReplyModel):
    """New text of a streamed chat completion; the role is in the first chunk of a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: SkipValidation[list[IndexedCall]] = Field(default_factory=list)


class ChunkFields(TypedDict):
    """Fields of a choice in every chunk; `trace` and `canvas` are absent unless they were requested."""

    index: int
    finish_reason: FinishReason | None
    trace: NotRequired[list[TraceStep]]
    trace_header: NotRequired[dict[str, JsonValue]]
    step_map: NotRequired[StepMap]
    canvas: NotRequired[StreamFrame]


class ChatChunkChoice(ReplyModel):
    """A choice in a chunk of a chat completion."""

    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish | None
    trace: Trace = Field(default_factory=list)
    trace_header: SkipValidation[dict[str, JsonValue]] | None = None
    step_map: SkipValidation[StepMap] | None = None
    canvas: SkipValidation[StreamFrame] | None = None


class TextChunkChoice(ReplyModel):
    """A choice in a chunk of a text completion or an infill; `delta` for Mistral's clients."""

    index: Count
    text: str
    delta: ChatDelta | None = None
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    blanks: list[str] = Field(default_factory=list)
    trace: Trace = Field(default_factory=list)
    trace_header: SkipValidation[dict[str, JsonValue]] | None = None
    step_map: SkipValidation[StepMap] | None = None
    canvas: SkipValidation[StreamFrame] | None = None


class DiffusionMeta(ReplyModel):
    """Mercury's fields of a chunk, whose content replaces that of the chunks before it.

    `diffusion_progress`: share of the answer that is decided, 1 only in the last chunks.
    """

    diffusion_progress: float
    diffusion_content: Literal[True]


class Chunk(ReplyModel, Generic[Choice]):
    """A server-sent event."""

    id: str
    object: str
    created: Count
    model: str
    system_fingerprint: str
    choices: list[Choice]
    unmask: MethodFields | None = None
    usage: Usage | None = None
    diffusion_meta: DiffusionMeta | None = None


class ChatChunk(Chunk[ChatChunkChoice]):
    """A server-sent event of `POST /v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]


class TextChunk(Chunk[TextChunkChoice]):
    """A server-sent event of `POST /v1/completions`, `/v1/fim/completions` and `/v1/infill`."""

    object: Literal["text_completion", "infill.chunk"]


class ErrorFields(ReplyModel):
    """An error: a message, its type, the field it refers to, and a code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(ReplyModel):
    """The body of every error, and the last event of a stream that fails."""

    error: ErrorFields


class ModelCard(ReplyModel):
    """A name under which the model is served, or one of its adapters, whose `parent` is the model."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    max_model_len: Count
    parent: str | None = None


class ModelList(ReplyModel):
    """The reply of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


ServerState = Literal["ok", "loading", "draining", "stalled", "failed"]


class Health(ReplyModel):
    """The reply of `GET /health` and `GET /ready`."""

    status: ServerState
    reason: str = Field(
        default="", description="of `stalled`: the part that hangs, and for how long"
    )


class Version(ReplyModel):
    """The reply of `GET /version`."""

    version: str
