"""Bodies of requests as strict models: no value is converted and no field is ignored.

Fields of other APIs that have no effect here are listed in `request_parsing`. Knobs of decoders may stand
at the top level, where the SDK's `extra_body` puts them, or in `decoder_args`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator
from pydantic.fields import FieldInfo

from unmask.engine.templates import TEXT_TYPES
from unmask.errors import ContradictionError
from unmask.server.base_models import StrictModel
from unmask.server.draft_fields import DraftFields
from unmask.server.tool_fields import ToolRequest

MAX_N = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_IDS = 1024
MAX_MESSAGES = 1024
MAX_TOKENS = 1 << 20
MAX_KNOBS = 64
MAX_GIVEN = 4096
MAX_TOP = 20
MAX_NAMED = 128
"""Upper limits of a request; the context length and the queue limit it further."""
MESSAGE_HINTS = frozenset(
    (
        "cache_control",
        "created",
        "created_at",
        "id",
        "metadata",
        "model",
        "provider_specific_fields",
        "status",
        "timestamp",
        "weight",
    )
)
"""Fields of a message in the histories of clients that say nothing to a model."""
OFF_BY_DEFAULT = ("partial", "prefix")
"""Other servers' names of `continue_final_message`, in the message itself."""
NOT_READ = "chat templates do not read it; write it as content"
OBJECT_KNOB = "constraints"
"""The knob that is an object."""


def list_limits(*, min_length: int | None = None, max_length: int | None = None) -> FieldInfo:
    """Return the length limits of a list whose validation stops at the first invalid item.

    Collecting and formatting the errors of a million items would block the server for a minute.
    """
    field: FieldInfo = Field(min_length=min_length, max_length=max_length, fail_fast=True)
    return field


def check_num_knobs(value: object) -> object:
    """Return `value`; raise ValueError for a dict of too many keys before its values are validated.

    An object is a value of `constraints` alone.
    """
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_KNOBS:
        raise ValueError(f"{len(value)} knobs; at most {MAX_KNOBS} are allowed")
    for key, item in value.items():
        if isinstance(item, dict) and key != OBJECT_KNOB:
            raise ValueError(
                f"{str(key)[:100]} is no object; a number, a text or a list is allowed"
            )
    return value


def check_num_given(value: object) -> object:
    """Return `value`; raise ValueError for a dict of too many given tokens."""
    if isinstance(value, dict) and len(value) > MAX_GIVEN:
        raise ValueError(f"{len(value)} offsets; at most {MAX_GIVEN} are allowed")
    return value


def none_for_false(value: object) -> object:
    """Return None for false, the value of clients that know a flag in place of a number."""
    return None if value is False else value


def none_for_empty(value: object) -> object:
    """Return None for an empty list; raise ValueError for any other value."""
    if value not in (None, []):
        raise ValueError(f"{EVERY_BLANK_FILLED}; leave it out")
    return None


def only_value(allowed: object, reason: str) -> BeforeValidator:
    """Return a validator that accepts one value and rejects any other with `reason`."""

    def check(value: object) -> object:
        if value is not allowed:
            raise ValueError(f"{reason}; leave it out")
        return value

    return BeforeValidator(check)


BLANKS_SET_LENGTH = "the blanks determine the number of tokens"
EVERY_BLANK_FILLED = "every blank is filled"
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Seed | Annotated[float, Field(allow_inf_nan=False)]
ShortText = Annotated[str, Field(max_length=200)]
KnobList = Annotated[list[Number | ShortText], list_limits(max_length=64)]
GivenTokens = Annotated[
    dict[Annotated[str, Field(max_length=20)], Seed | ShortText], BeforeValidator(check_num_given)
]
KnobValue = bool | Number | ShortText | KnobList | GivenTokens | None
KnobValues = Annotated[
    dict[Annotated[str, Field(max_length=100)], KnobValue], BeforeValidator(check_num_knobs)
]
StopIds = Annotated[
    list[Annotated[int, Field(ge=0, le=1 << 31)]], list_limits(max_length=MAX_STOP_IDS)
]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], list_limits(min_length=1)]


def without_nulls(fields: object) -> object:
    """Return the fields of an object without those that are null."""
    if not isinstance(fields, dict):
        return fields
    return {key: value for key, value in fields.items() if value is not None}


class StreamOptions(StrictModel):
    """Additional content of a stream."""

    include_usage: bool = Field(False, description="send the usage in an additional last chunk")
    include_obfuscation: bool | None = Field(
        None, description="accepted; nothing is added to hide the sizes of chunks"
    )
    continuous_usage_stats: bool = Field(
        False, description="send the usage so far in every chunk (vLLM)"
    )
    _drop_nulls = model_validator(mode="before")(without_nulls)

    @property
    def has_effect(self) -> bool:
        """True if anything is to be added to a stream."""
        return self.include_usage or self.continuous_usage_stats


class DecodingRequest(DraftFields):
    """Fields of every route that decodes."""

    model: str | None = Field(
        None, max_length=256, description="a served name; default: the first one"
    )
    max_tokens: TokenCount | None = Field(
        None,
        description="number of positions to generate; default: 128, or the rest of the context",
    )
    decoder: str | None = Field(
        None,
        max_length=500,
        description="decoding method, e.g. threshold; default: the server's",
    )
    decoder_args: KnobValues | None = Field(
        None, description="knobs of the decoder; they may also stand at the top level"
    )
    preset: str | None = Field(
        None, max_length=100, description="the published sampler of a model family, or fast"
    )
    cache: str | None = Field(
        None, max_length=500, description="cache policy; default: the server's"
    )
    cache_args: KnobValues | None = Field(None, description="knobs of the cache")
    steps: TokenCount | None = Field(
        None, description="number of forwards, for decoders with a fixed schedule"
    )
    block_length: TokenCount | None = Field(
        None, description="positions per block, for decoders with blocks"
    )
    temperature: float | None = Field(
        None, ge=0, description="sampling temperature, 0 (default: greedy) or at least 1e-6"
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="nucleus size; 0 keeps the likeliest token, 1 all of them"
    )
    top_k: int | None = Field(None, ge=-1, description="tokens to sample from; -1 or 0 keep all")
    seed: Seed | None = Field(
        None,
        description="seed of choice 0; choice i, over all prompts, uses seed + i; default: random, "
        "reported in the reply",
    )
    stop: Stop | Annotated[list[Stop], list_limits(max_length=MAX_STOPS)] | None = Field(
        None,
        description="strings that end the text; they are not part of it; refused beside structured output, "
        "which they could cut",
    )
    n: int | None = Field(None, ge=1, le=MAX_N, description="number of choices per prompt")
    stop_token_ids: StopIds | None = Field(
        None,
        description="ids of tokens that end the text besides the model's own end tokens, or alone with "
        "ignore_eos; they are not part of it",
    )
    ignore_eos: bool = Field(
        False, description="generate every position; an end token does not end the text"
    )
    stream: bool | None = Field(None, description="send the reply as server-sent events")
    stream_options: StreamOptions | None = Field(
        None,
        description="include_usage: send the usage in an additional last chunk; "
        "continuous_usage_stats: send the usage so far in every chunk",
    )
    stream_mode: Literal["text", "canvas"] = Field(
        "text", description="stream text that only grows, or the whole canvas after every forward"
    )
    return_trace: bool = Field(False, description="return the edits of every forward")
    trace_alternatives: Annotated[int, Field(ge=0, le=MAX_TOP)] = Field(
        0,
        description="with return_trace or a canvas stream: return so many likeliest tokens of each commit "
        "and their probabilities",
    )
    trace_header: bool = Field(
        False,
        description="with return_trace: return also the first line of a trace file and, with each step, "
        "what `unmask replay` needs; line k + 2 of the file is step k with `step` k",
    )
    return_step_map: bool = Field(
        False,
        description="return for each token of the answer the forward that decided it and its "
        "log-probability then",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="seconds before the request is aborted; default and maximum: the server's",
    )
    user: str | None = Field(None, max_length=256, description="written to the log; no other use")
    logprob_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], list_limits(max_length=MAX_NAMED)]
        | None
    ) = Field(
        None,
        description="ids of tokens whose log-probabilities are returned with each token; needs logprobs",
    )
    response_format: dict[str, JsonValue] | None = Field(
        None,
        description="OpenAI's form of structured output: type text, json_object, or json_schema with "
        "json_schema.schema",
    )
    structured_outputs: dict[str, JsonValue] | None = Field(
        None,
        description="vLLM's form: json (a schema), regex, choice, grammar (GBNF) or json_object",
    )
    guided_json: dict[str, JsonValue] | str | None = Field(
        None, description="the answer is JSON of this schema (vLLM's older form)"
    )
    guided_regex: str | None = Field(
        None, description="the answer matches this regular expression (vLLM's older form)"
    )
    guided_choice: list[JsonValue] | None = Field(
        None, description="the answer is one of these texts (vLLM's older form)"
    )
    guided_grammar: str | None = Field(
        None, description="the answer is a text of this grammar, in GBNF (vLLM's older form)"
    )
    regex: str | None = Field(
        None, description="the answer matches this regular expression (SGLang's form)"
    )
    ebnf: str | None = Field(
        None, description="the answer is a text of this grammar, in GBNF (SGLang's form)"
    )
    json_schema: dict[str, JsonValue] | str | None = Field(
        None, description="the answer is JSON of this schema (SGLang's form, there as text)"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def choices(self) -> int:
        """The number of choices per prompt."""
        return self.n or 1

    @property
    def length(self) -> int | None:
        """The number of positions to generate, or None for the default."""
        return self.max_tokens

    @property
    def length_name(self) -> str:
        """The field that set `length`, for error messages."""
        return "max_tokens"

    @property
    def format_name(self) -> str:
        """The field that set `response_format`, for error messages."""
        return "response_format"

    @property
    def wants_logprobs(self) -> bool:
        """True if the reply is to contain log-probabilities."""
        return False

    @property
    def tool_schema(self) -> dict[str, JsonValue] | None:
        """The schema of a call that is required, None without one."""
        return None

    @property
    def num_top(self) -> int:
        """The number of likeliest tokens to return with each token."""
        return 0

    @property
    def named(self) -> tuple[int, ...]:
        """The ids of the tokens whose log-probabilities are to be returned with each token."""
        return tuple(dict.fromkeys(self.logprob_token_ids or ())) if self.wants_logprobs else ()

    @property
    def wants_canvas(self) -> bool:
        """True if the stream is to contain whole canvases."""
        return self.stream_mode == "canvas"

    @model_validator(mode="after")
    def _check_stream(self) -> DecodingRequest:
        options = self.stream_options
        if options is not None and options.has_effect and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.stream_mode == "canvas" and not self.stream:
            raise ValueError('stream_mode="canvas" needs stream=true')
        if self.stream_mode == "canvas" and self.stops:
            raise ValueError('stop has no effect on stream_mode="canvas"; leave one of them out')
        if self.logprob_token_ids and not self.wants_logprobs:
            raise ValueError("logprob_token_ids needs logprobs")
        if self.trace_header and not self.return_trace:
            raise ValueError("trace_header needs return_trace=true")
        if self.trace_alternatives and not (self.return_trace or self.wants_canvas):
            raise ValueError('trace_alternatives needs return_trace=true or stream_mode="canvas"')
        return self


def text_type(value: object) -> object:
    """Return "text" for any name of a part of text; raise ValueError for another kind of part."""
    if value not in TEXT_TYPES:
        raise ValueError("is no part of text, and the model reads text alone; leave this part out")
    return "text"


class ContentPart(StrictModel):
    """A part of a message; only text is supported. `cache_control`: a hint to other hosts."""

    type: Annotated[Literal["text"], BeforeValidator(text_type)] = "text"
    text: str
    cache_control: JsonValue = None
    annotations: Annotated[list[JsonValue], list_limits(max_length=0)] | None = None
    logprobs: Annotated[list[JsonValue], list_limits(max_length=0)] | None = None


class Message(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], list_limits(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: Annotated[None, only_value(None, NOT_READ)] = None
    audio: None = None
    function_call: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[dict[str, JsonValue]], list_limits(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    annotations: Annotated[list[JsonValue], list_limits(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, fields: object) -> object:
        """Return the fields without those that change nothing.

        They are hints, and fields of other servers that are null, empty or off.
        """
        if not isinstance(fields, dict):
            return fields
        return {
            key: value
            for key, value in fields.items()
            if not (
                value is None
                or key in MESSAGE_HINTS
                or (key in OFF_BY_DEFAULT and value is False)
                or (key == "refusal" and value == "")
                or (key not in cls.model_fields and value in ([], {}))
            )
        }

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has no content; give a text")
        return self

    def as_mapping(self) -> dict[str, object]:
        """Return the message as chat templates read it, without what is null."""
        fields = self.model_dump(exclude_none=True)
        return {key: value for key, value in fields.items() if key not in ("audio", "annotations")}


class TemplateFields(StrictModel):
    """Fields of every route that puts a conversation into the chat template."""

    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="values that the chat template reads, such as enable_thinking"
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="begin a message for the answer; default: unless the last message is continued",
    )
    continue_final_message: bool | None = Field(
        None, description="continue the last message, the assistant's, instead of answering it"
    )

    @property
    def template_options(self) -> dict[str, object]:
        """The fields as options of `LLM.chat_ids`."""
        return {
            "chat_template_kwargs": self.chat_template_kwargs,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": bool(self.continue_final_message),
        }


class ChatRequest(TemplateFields, ToolRequest, DecodingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], list_limits(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="the conversation; role is system (or developer), user, assistant or tool, content "
        "a string or a list of text parts; an assistant's may be empty, null or missing"
    )
    max_completion_tokens: TokenCount | None = Field(
        None, description="the newer name of max_tokens"
    )
    logprobs: bool | None = Field(
        None, description="return the log-probability of each token when it was committed"
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = Field(
        None, description="number of likeliest tokens to return with each token; needs logprobs"
    )
    add_special_tokens: bool | None = Field(
        None,
        description="the tokenizer's begin token before a conversation whose template has none; default: "
        "false",
    )
    diffusing: bool | None = Field(
        None,
        description='Mercury\'s name of stream_mode="canvas", with `diffusion_meta`; no effect without '
        "stream",
    )

    @property
    def template_options(self) -> dict[str, object]:
        """The fields as options of `LLM.chat_ids`."""
        tools = [tool.model_dump(exclude_none=True) for tool in self.offered_tools]
        return {**super().template_options, "tools": tools or None}

    @property
    def length(self) -> int | None:
        """The number of positions to generate, or None for the default."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def length_name(self) -> str:
        """The field that set `length`, for error messages."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def wants_logprobs(self) -> bool:
        """True if the reply is to contain log-probabilities."""
        return bool(self.logprobs)

    @property
    def num_top(self) -> int:
        """The number of likeliest tokens to return with each token."""
        return self.top_logprobs or 0

    @property
    def wants_canvas(self) -> bool:
        """True if the stream is to contain whole canvases."""
        return self.stream_mode == "canvas" or bool(self.diffusing)

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            texts = f"max_tokens={both[0]}", f"max_completion_tokens={both[1]}"
            raise ContradictionError("max_tokens", *texts)
        if self.offered_tools and (self.wants_canvas or self.stops):
            raise ValueError("tools exclude stop, diffusing and canvas streams; leave these out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.diffusing and self.stream and self.stops:
            raise ValueError("stop has no effect with diffusing; leave one of them out")
        return self


class CompletionRequest(DecodingRequest):
    """`POST /v1/completions`: continue texts or, with `suffix`, fill in the middle."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], list_limits(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], list_limits(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="a text, texts, token ids, or lists of token ids; no template is applied")
    suffix: str | None = Field(
        None, description="text after the generated one: max_tokens positions between are filled"
    )
    add_special_tokens: bool | None = Field(
        None,
        description="the tokenizer's begin token before a text that has none; default: true",
    )
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_TOP)] | None, BeforeValidator(none_for_false)
    ] = Field(
        None,
        description="return the log-probability of each token when it was committed, and those of so many "
        "likeliest tokens",
    )

    @property
    def wants_logprobs(self) -> bool:
        """True if the reply is to contain log-probabilities."""
        return self.logprobs is not None

    @property
    def num_top(self) -> int:
        """The number of likeliest tokens to return with each token."""
        return self.logprobs or 0


class FimRequest(CompletionRequest):
    """`POST /v1/fim/completions`: fill in the middle of a text, as Mistral's and Mercury's clients ask."""

    prompt: str = Field(description="text before the generated one; may be empty with a suffix")
    random_seed: Seed | None = Field(None, description="Mistral's name of seed")

    @model_validator(mode="before")
    @classmethod
    def _read_random_seed(cls, fields: object) -> object:
        """Return the fields with `seed` set by its other name; both must agree."""
        if not isinstance(fields, dict) or fields.get("random_seed") is None:
            return fields
        given = fields.get("random_seed")
        if fields.get("seed") not in (None, given):
            raise ValueError("seed and random_seed differ; leave one of them out")
        return {**fields, "seed": given}


class InfillRequest(DecodingRequest):
    """`POST /v1/infill`: fill any number of blanks in a text."""

    parts: Annotated[list[str | TokenCount], list_limits(min_length=1, max_length=1024)] = Field(
        description='texts, and blanks as numbers of tokens: ["The ", 3, " sat on the mat."]'
    )
    max_tokens: Annotated[None, only_value(None, BLANKS_SET_LENGTH)] = Field(
        None, description=BLANKS_SET_LENGTH
    )
    ignore_eos: Annotated[Literal[False], only_value(False, EVERY_BLANK_FILLED)] = Field(
        False, description=EVERY_BLANK_FILLED
    )
    stop: Annotated[None, only_value(None, EVERY_BLANK_FILLED)] = Field(
        None, description=EVERY_BLANK_FILLED
    )
    stop_token_ids: Annotated[None, BeforeValidator(none_for_empty)] = Field(
        None, description=EVERY_BLANK_FILLED
    )

    @property
    def length_name(self) -> str:
        """The field that sets the number of positions, for error messages."""
        return "parts"
