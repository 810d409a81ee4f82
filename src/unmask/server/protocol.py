"""The bodies of OpenAI's and unmask's routes, strict: no value is converted, no field is ignored.

Fields of OpenAI that mean nothing here are in `fields`; knobs of decoders may stand at the top level, as
the SDK's `extra_body` puts them there, or in `decoder_args`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_N = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 1024
MAX_TOKENS = 1 << 20
MAX_KNOBS = 64
"""Caps on what a body may ask for; the context and the queue bound it further."""


def several(*, min_length: int | None = None, max_length: int | None = None) -> Any:
    """What a list is marked with: its limits, and that its first fault ends the check.

    To find and tell the faults of a million items would hold up the server for a minute.
    """
    return Field(min_length=min_length, max_length=max_length, fail_fast=True)


def few(value: Any) -> Any:
    """A mapping as it is. Raises ValueError before its values are looked at if it has too many keys."""
    if isinstance(value, dict) and len(value) > MAX_KNOBS:
        raise ValueError(f"{len(value)} knobs; at most {MAX_KNOBS} are taken")
    return value


def no_other(only: Any, why: str) -> BeforeValidator:
    """What a field is marked with that takes one value: any other is refused with the reason."""

    def check(value: Any) -> Any:
        if value is not only:
            raise ValueError(f"{why}; leave it out")
        return value

    return BeforeValidator(check)


SAID_BY_BLANKS, ALL_FILLED = "the blanks say how many tokens", "every blank is filled"
Whole = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Seed | Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=200)]
Value = bool | Number | Text | Annotated[list[Number | Text], several(max_length=64)] | None
Arguments = Annotated[dict[Annotated[str, Field(max_length=100)], Value], BeforeValidator(few)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], several(min_length=1)]


class Strict(BaseModel):
    """A model that converts nothing, knows no further fields, and takes no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool = Field(False, description="a last chunk with the usage")
    continuous_usage_stats: bool = Field(
        False, description="the usage so far in every chunk (vLLM)"
    )


class Decoding(Strict):
    """What every decoding route takes."""

    model: str | None = Field(None, max_length=256, description="a served name; default: the first")
    max_tokens: Whole | None = Field(
        None, description="positions to generate; default: 128, or what the context has left"
    )
    decoder: str | None = Field(
        None, max_length=500, description="decoding method, e.g. threshold; default: the server's"
    )
    decoder_args: Arguments | None = Field(
        None, description="the decoder's knobs; they may also stand at the top level"
    )
    preset: str | None = Field(None, max_length=100, description="a model family's own sampler")
    cache: str | None = Field(
        None, max_length=500, description="cache policy; default: the server's"
    )
    cache_args: Arguments | None = Field(None, description="the cache's knobs")
    steps: Whole | None = Field(None, description="forwards, where the decoder has a schedule")
    block_length: Whole | None = Field(
        None, description="positions a block, where there are blocks"
    )
    temperature: float | None = Field(
        None, ge=0, description="0 (default): the likeliest token; else at least 1e-6"
    )
    top_p: float | None = Field(None, ge=0, le=1, description="1: all; needs a temperature")
    top_k: int | None = Field(None, ge=-1, description="-1 or 0: all; needs a temperature")
    seed: Seed | None = Field(
        None,
        description="of all randomness; default: drawn, and told in the reply. Choice i has seed + i",
    )
    stop: Stop | Annotated[list[Stop], several(max_length=MAX_STOPS)] | None = Field(
        None, description="texts that end the answer, and are cut off"
    )
    n: int | None = Field(None, ge=1, le=MAX_N, description="answers to each prompt")
    ignore_eos: bool = Field(False, description="fill the whole canvas; an end token ends nothing")
    stream: bool | None = Field(None, description="send the answer in pieces (server-sent events)")
    stream_options: StreamOptions | None = Field(
        None,
        description="include_usage: a last chunk with the usage; continuous_usage_stats: the usage "
        "so far in every chunk",
    )
    stream_mode: Literal["text", "canvas"] = Field(
        "text", description="text that only grows; or the whole canvas after every forward"
    )
    return_trace: bool = Field(False, description="what every forward changed")
    timeout_s: float | None = Field(
        None, gt=0, description="give up after that many seconds; default and most: the server's"
    )
    user: str | None = Field(None, max_length=256, description="written to the log, no more")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.stream)

    @property
    def length(self) -> int | None:
        """Positions to generate, if said."""
        return self.max_tokens

    @property
    def length_name(self) -> str:
        """What the client calls `length`."""
        return "max_tokens"

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of the tokens are told."""
        return False

    @model_validator(mode="after")
    def _check_stream(self) -> Decoding:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.stream_mode == "canvas" and not self.stream:
            raise ValueError('stream_mode="canvas" needs stream=true')
        if self.stream_mode == "canvas" and self.stops:
            raise ValueError('stop has no effect on stream_mode="canvas"; leave one of them out')
        return self


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], several(max_length=256)]
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], several(max_length=0)] | None = None
    annotations: Annotated[list[Any], several(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ContentPart(Strict):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatRequest(Decoding):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], several(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="the turns so far: role is system (or developer), user or assistant, content "
        "a text or a list of text parts"
    )
    max_completion_tokens: Whole | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool | None = Field(
        None, description="log-probabilities of the tokens, when committed"
    )
    top_logprobs: Literal[0] | None = Field(
        None, description="0: a forward tells the chosen token's probability, no others"
    )
    diffusing: bool | None = Field(None, description='Mercury\'s name of stream_mode="canvas"')

    @property
    def length(self) -> int | None:
        """Positions to generate, if said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def length_name(self) -> str:
        """What the client calls `length`."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of the tokens are told."""
        return bool(self.logprobs)

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError(
                f"max_tokens={both[0]} and max_completion_tokens={both[1]} contradict; give one"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.diffusing and not self.stream:
            raise ValueError("diffusing needs stream=true")
        if self.diffusing and self.stops:
            raise ValueError("stop has no effect with diffusing; leave one of them out")
        return self


class CompletionRequest(Decoding):
    """`POST /v1/completions`: texts go on, or, with `suffix`, the middle is filled in."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], several(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], several(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="a text, texts, token ids, or lists of them; taken as they are")
    suffix: str | None = Field(
        None, description="the text after the answer: max_tokens positions between are filled"
    )
    logprobs: Literal[0] | None = Field(
        None, description="0: log-probabilities of the tokens, when committed; others are not known"
    )

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of the tokens are told."""
        return self.logprobs is not None


class InfillRequest(Decoding):
    """`POST /v1/infill`: a text with any number of blanks."""

    parts: Annotated[list[str | Whole], several(min_length=1, max_length=1024)] = Field(
        description='texts and numbers of blank tokens: ["The ", 3, " sat on the mat."]'
    )
    max_tokens: Annotated[None, no_other(None, SAID_BY_BLANKS)] = Field(
        None, description=SAID_BY_BLANKS
    )
    ignore_eos: Annotated[Literal[False], no_other(False, ALL_FILLED)] = Field(
        False, description=ALL_FILLED
    )
    stop: Annotated[None, no_other(None, ALL_FILLED)] = Field(None, description=ALL_FILLED)


Message.model_rebuild()
