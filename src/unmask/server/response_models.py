"""Bodies of `POST /v1/responses`: the request, the response object and the events of its stream.

Source: the OpenAI API's Responses, of which text in and text out. Differs: the stream ends with the
response's last event, without `[DONE]`, as there; forwards and computed positions in `usage`, the decoding
method in `unmask`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator
from typing_extensions import NotRequired, TypedDict

from unmask.server.base_models import StrictModel
from unmask.server.protocol import (
    MAX_MESSAGES,
    DecodingRequest,
    TokenCount,
    list_limits,
    only_value,
)
from unmask.server.reply_models import Count, MethodFields, ReplyModel

MAX_METADATA = 16
OTHER_NAME = "the name in this route is max_output_tokens"
NOT_STORED = "responses are not stored here: send the earlier messages as items of input"
ONE_ANSWER = "a response has one answer"
ONLY_TEXT_EVENTS = "the events of a response carry text"
NO_TRACE = "a response has no room for a trace"
Annotations = Annotated[list[JsonValue], list_limits(max_length=1024)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]
Hint = Annotated[str, Field(max_length=512)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputPart(StrictModel):
    """A part of an input item; only text is supported.

    The rest of a part that a server or the SDK (`parsed`) made is accepted, and changes nothing.
    """

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotations | None = None
    logprobs: Annotated[list[JsonValue], list_limits()] | None = None
    parsed: JsonValue = None


class InputItem(StrictModel):
    """A message: one turn, or an item of an earlier response's `output`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], list_limits(max_length=256)]
    id: Hint | None = None
    status: ItemStatus | None = None
    phase: Hint | None = None


class TextFormat(StrictModel):
    """The format of the text: plain, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError('schema belongs to type="json_schema", which needs it')
        return self

    def as_response_format(self) -> dict[str, JsonValue]:
        """Return the format in the form of a chat request."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.schema_}}


class TextOptions(StrictModel):
    """Options of the text."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(DecodingRequest):
    """`POST /v1/responses`."""

    input: str | Annotated[list[InputItem], list_limits(min_length=1, max_length=MAX_MESSAGES)] = (
        Field(
            description="a text, or messages whose content is a text or input_text and output_text parts; "
            "the output of earlier responses may be among them"
        )
    )
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: TokenCount | None = Field(
        None,
        description="number of positions to generate; default: 128, or the rest of the context",
    )
    max_tokens: Annotated[None, only_value(None, OTHER_NAME)] = Field(None, description=OTHER_NAME)
    text: TextOptions | None = Field(
        None,
        description='{"format": {"type": T}}: T is text (the default), json_object, or json_schema with '
        "`schema`",
    )
    previous_response_id: Annotated[None, only_value(None, NOT_STORED)] = Field(
        None, description=NOT_STORED
    )
    metadata: Metadata | None = Field(None, description="returned with the response; no other use")
    store: bool | None = Field(None, description="no effect: responses are never stored")
    safety_identifier: Hint | None = Field(None, description="no effect")
    prompt_cache_key: Hint | None = Field(None, description="no effect")
    prompt_cache_retention: Hint | None = Field(None, description="no effect")
    max_tool_calls: Count | None = Field(None, description="no effect: no tools are called")

    @property
    def length(self) -> int | None:
        """The number of positions to generate, or None for the default."""
        return self.max_output_tokens

    @property
    def length_name(self) -> str:
        """The field that sets `length`, for error messages."""
        return "max_output_tokens"

    def messages(self) -> list[JsonValue]:
        """Return the conversation as the messages of a chat request."""
        turns: list[JsonValue] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*turns, {"role": "user", "content": self.input}]
        for item in self.input:
            content: JsonValue = item.content if isinstance(item.content, str) else ""
            if not isinstance(item.content, str):
                content = [{"type": "text", "text": part.text} for part in item.content]
            turns.append({"role": item.role, "content": content})
        return turns


class OutputText(ReplyModel):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[JsonValue], Field(max_length=0)]
    logprobs: Annotated[list[JsonValue], Field(max_length=0)]


class OutputMessage(ReplyModel):
    """The generated turn."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class InputDetails(ReplyModel):
    """Tokens of the input that came from the prefix cache; none is written on request."""

    cached_tokens: Count
    cache_write_tokens: Literal[0]


class OutputDetails(ReplyModel):
    """Tokens of the output that are not in its text: none."""

    reasoning_tokens: Literal[0]


class ResponseUsage(ReplyModel):
    """Tokens, forwards and computed positions of a response."""

    input_tokens: Count
    input_tokens_details: InputDetails
    output_tokens: Count
    output_tokens_details: OutputDetails
    total_tokens: Count
    num_forwards: Count
    tokens_per_forward: float
    num_queries: Count
    num_wasted: Count
    num_draft_forwards: Count
    num_draft_queries: Count


class IncompleteDetails(ReplyModel):
    """The reason of an incomplete response."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(ReplyModel):
    """The error of a response whose stream had begun."""

    code: Literal["server_error"]
    message: str


class FormatFields(TypedDict):
    """The format of the text; the other fields belong to a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str]
    description: NotRequired[str]
    schema: NotRequired[dict[str, JsonValue]]
    strict: NotRequired[bool]


class TextFields(TypedDict):
    """Options of the text."""

    format: FormatFields


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class Response(ReplyModel):
    """The reply of `POST /v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: Count
    status: ResponseStatus
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: Count | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float | None
    top_p: float | None
    tool_choice: Literal["auto"]
    tools: Annotated[list[JsonValue], Field(max_length=0)]
    text: TextFields
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    metadata: dict[str, str]
    usage: ResponseUsage | None
    unmask: MethodFields | None = None


EventType = Literal[
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
]


class EventFields(TypedDict):
    """Fields of an event beside its type and number."""

    response: NotRequired[Response]
    item: NotRequired[OutputMessage]
    part: NotRequired[OutputText]
    item_id: NotRequired[str]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[JsonValue]]
    code: NotRequired[str | None]
    message: NotRequired[str]
    param: NotRequired[str | None]


class ResponseEvent(ReplyModel):
    """A server-sent event of `POST /v1/responses`; its other fields depend on the type."""

    type: EventType
    sequence_number: Count
    response: Response | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    item_id: str | None = None
    output_index: Count | None = None
    content_index: Count | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[JsonValue] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
