"""Bodies of `POST /v1/decisions` and `POST /v1/systemone`: questions, and answers as probabilities.

Source: the OpenAI API's Decisions, and TypeSafe's System One in the form that `transformers serve` has.
Differs: text and JSON only, no images; nothing is refused by the model; `label_mass` in every answer; the
confidence of a score is computed as that of a choice; and the fields of `DecisionFields`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from unmask.decisions.canvases import MAX_ORDERS, DecisionOptions, Estimator, Layout
from unmask.decisions.questions import MAX_OPTIONS, MAX_QUESTIONS
from unmask.server.base_models import StrictModel
from unmask.server.protocol import MAX_MESSAGES, list_limits
from unmask.server.reply_models import Count, ReplyModel
from unmask.server.response_models import Hint, InputDetails, ItemStatus, OutputDetails

MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_JSON_BYTES = 32, 10_000, 256 << 10
"""Limits of a JSON part: levels of containers, values, bytes of compact UTF-8."""
NO_IMAGES = "images are not supported: the model reads text; send input_text or input_json"
Name = Annotated[str, Field(max_length=256)]
Text = str | None


def check_json(value: object) -> object:
    """Return a JSON value within the limits. Raises ValueError."""
    num_values, level, depth = 0, [value], 0
    while level:
        num_values += len(level)
        depth += any(isinstance(item, dict | list) for item in level)
        if depth > MAX_JSON_DEPTH or num_values > MAX_JSON_VALUES:
            raise ValueError(
                f"JSON of more than {MAX_JSON_DEPTH} levels or {MAX_JSON_VALUES} values; send less"
            )
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    if len(json_text(value).encode("utf-8", "surrogatepass")) > MAX_JSON_BYTES:
        raise ValueError(f"JSON of more than {MAX_JSON_BYTES} bytes; send less")
    return value


def check_part(value: object) -> object:
    """Return a part; raise ValueError for an image, in plain words."""
    if isinstance(value, dict) and value.get("type") == "input_image":
        raise ValueError(NO_IMAGES)
    return value


def check_assets(value: object) -> object:
    """Return no assets; raise ValueError for an image."""
    if value not in (None, {}):
        raise ValueError("images are not supported: the model reads text; leave assets out")
    return {}


def json_text(value: object) -> str:
    """Return a JSON value as compact text in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def content_text(value: JsonValue) -> str:
    """Return a text as it is, and any other JSON value as compact text; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)


class CacheBreakpoint(StrictModel):
    """The end of a part that may be cached; no effect here."""

    mode: Literal["explicit"]


class CacheOptions(StrictModel):
    """Options of a prompt cache; no effect here."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


JsonData = Annotated[dict[str, JsonValue] | list[dict[str, JsonValue]], BeforeValidator(check_json)]
Content = Annotated[JsonValue, BeforeValidator(check_json)]
"""A text, or JSON that is shown as text."""


class DecisionPart(StrictModel):
    """A part of an input or of instructions: a text, a refusal of an earlier answer, or JSON."""

    type: Literal["input_text", "output_text", "refusal", "input_json"]
    text: Text = None
    refusal: Text = None
    data: JsonData | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None

    @model_validator(mode="after")
    def _check_content(self) -> DecisionPart:
        own = {"refusal": "refusal", "input_json": "data"}.get(self.type, "text")
        given = [name for name in ("text", "refusal", "data") if getattr(self, name) is not None]
        if given != [own]:
            raise ValueError(f"a part of type {self.type} has {own}, and no other content")
        return self

    def as_text(self) -> str:
        """Return the part as text."""
        return json_text(self.data) if self.data is not None else self.text or self.refusal or ""


Parts = Annotated[
    list[Annotated[DecisionPart, BeforeValidator(check_part)]], list_limits(max_length=1024)
]


def parts_text(content: str | list[DecisionPart]) -> str:
    """Return a content as text, a part a line."""
    return content if isinstance(content, str) else "\n".join(part.as_text() for part in content)


PART_TYPES = {
    "user": ("input_text", "input_json"),
    "developer": ("input_text",),
    "system": ("input_text",),
    "assistant": ("output_text", "refusal"),
}
ITEM_FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "message": (frozenset({"role", "content"}), frozenset({"phase"})),
    "function_call": (
        frozenset({"call_id", "name", "arguments"}),
        frozenset({"id", "namespace", "status"}),
    ),
    "function_call_output": (frozenset({"call_id", "output"}), frozenset({"id", "status"})),
    "custom_tool_call": (frozenset({"call_id", "name", "input"}), frozenset({"id", "status"})),
    "custom_tool_call_output": (frozenset({"call_id", "output"}), frozenset({"id", "status"})),
}
"""The fields that an item of each type has, and those that it may have."""


class DecisionItem(StrictModel):
    """An item of the input: a message, a call of a tool, or what a call returned."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ] = "message"
    role: Literal["user", "developer", "system", "assistant"] | None = None
    content: str | Parts | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: Name | None = None
    name: Name | None = None
    namespace: Name | None = None
    arguments: Text = None
    input: Text = None
    output: str | Parts | None = None
    id: Hint | None = None
    status: ItemStatus | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> DecisionItem:
        needed, more = ITEM_FIELDS[self.type]
        given = {
            name
            for name in type(self).model_fields
            if name != "type" and getattr(self, name) is not None
        }
        for name in sorted(needed - given):
            raise ValueError(f"an item of type {self.type} needs {name}")
        for name in sorted(given - needed - more):
            raise ValueError(f"an item of type {self.type} has no {name}; leave it out")
        allowed = PART_TYPES["user"] if self.role is None else PART_TYPES[self.role]
        parts = self.content if self.role is not None else self.output
        for part in parts if isinstance(parts, list) else ():
            if part.type not in allowed:
                raise ValueError(f"{part.type} is no part here; use {' or '.join(allowed)}")
        return self


class ChoiceFields(StrictModel):
    """An option of a choice."""

    value: str | bool
    description: Text = None


class LevelFields(StrictModel):
    """A level of a score."""

    label: str
    description: Text = None


class QuestionFields(StrictModel):
    """A question: a predicate (is a statement true), a choice of options, or a score on levels."""

    type: Literal["predicate", "choice", "score"]
    instructions: str | Parts
    name: Name | None = None
    choices: (
        Annotated[list[ChoiceFields], list_limits(min_length=2, max_length=MAX_OPTIONS)] | None
    ) = None
    levels: (
        Annotated[list[LevelFields], list_limits(min_length=2, max_length=MAX_OPTIONS)] | None
    ) = None

    @model_validator(mode="after")
    def _check_fields(self) -> QuestionFields:
        own = {"choice": "choices", "score": "levels"}.get(self.type)
        for name in ("choices", "levels"):
            if (getattr(self, name) is not None) != (name == own):
                verb = "needs" if name == own else "has no"
                raise ValueError(f"a question of type {self.type} {verb} {name}")
        return self


class DecisionFields(StrictModel):
    """Fields of both routes; all but `model` are this server's own."""

    model: str | None = Field(None, max_length=256, description="a served name")
    independent: bool | None = Field(
        None,
        description="true: every question is read in canvases of its own and sees no other; false (the "
        "default): questions share a canvas, as many as the context holds",
    )
    orders: Annotated[int, Field(ge=1, le=MAX_ORDERS)] | None = Field(
        None,
        description="average over so many orders of the listed options; 1 (the default): as given. More "
        "take as many canvases, and depend less on the order",
    )
    layout: Layout | None = Field(
        None,
        description="listed (the default): options are listed with labels, and a label is read; cloze: the "
        "option itself is read behind the instructions",
    )
    estimator: Estimator | None = Field(
        None,
        description="of options of several tokens: slots (the default) multiplies independent positions; "
        "likelihood takes one canvas per token",
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="maximum duration in seconds, at most the server's"
    )
    user: Hint | None = Field(None, description="name of the end user, for the log")

    @property
    def options(self) -> DecisionOptions:
        """The way in which the questions are asked."""
        return DecisionOptions(
            independent=bool(self.independent),
            orders=self.orders or 1,
            layout=self.layout or "listed",
            estimator=self.estimator or "slots",
        )


class DecisionRequest(DecisionFields):
    """`POST /v1/decisions`."""

    input: (
        str | Annotated[list[DecisionItem], list_limits(min_length=1, max_length=MAX_MESSAGES)]
    ) = Field(
        description="a text, or messages, tool calls and their outputs, shown as a transcript"
    )
    questions: Annotated[
        list[QuestionFields], list_limits(min_length=1, max_length=MAX_QUESTIONS)
    ] = Field(description="1 to 400 questions, answered in their order")
    prompt_cache_key: Hint | None = Field(None, description="no effect")
    prompt_cache_options: CacheOptions | None = Field(None, description="no effect")
    safety_identifier: Hint | None = Field(None, description="no effect")

    @model_validator(mode="after")
    def _check_calls(self) -> DecisionRequest:
        calls: set[tuple[str, str]] = set()
        for item in self.input if isinstance(self.input, list) else ():
            kind = item.type.removesuffix("_output")
            if kind == item.type:
                calls.add((kind, item.call_id or ""))
            elif (kind, item.call_id or "") not in calls:
                raise ValueError(
                    f"input: the {item.type} of call_id {(item.call_id or '')[:60]!r} has no {kind} "
                    f"before it"
                )
        return self

    def text(self) -> str:
        """Return the input as text: that of a single message of the user, else a transcript."""
        if isinstance(self.input, str):
            return self.input
        if len(self.input) == 1 and self.input[0].role == "user":
            return parts_text(self.input[0].content or "")
        names = {item.call_id: item.name for item in self.input if item.name is not None}
        return "\n".join(_shown(item, names) for item in self.input)


def _shown(item: DecisionItem, names: Mapping[str | None, str]) -> str:
    """Return an item as a line or more of a transcript."""
    if item.role is not None:
        return f"{item.role}: {parts_text(item.content or '')}"
    if item.output is not None:
        return f"{names[item.call_id]} returned: {parts_text(item.output)}"
    name = item.name if item.namespace is None else f"{item.namespace}.{item.name}"
    given = item.arguments if item.input is None else item.input
    return f"assistant called {name}: {given}"


class SystemOneQuestion(StrictModel):
    """A question of System One; a `noul` asks if something is true."""

    type: Literal["noul", "choice", "score"]
    instructions: Content = None
    criteria: Content = None

    @model_validator(mode="after")
    def _check_criteria(self) -> SystemOneQuestion:
        criteria: Any = self.criteria
        if self.type == "noul":
            is_form = criteria is None or (
                isinstance(criteria, dict) and criteria.keys() <= {"true", "false"}
            )
            form = "criteria of true and false, or none"
        elif self.type == "choice":
            is_form = isinstance(criteria, dict) and 2 <= len(criteria) <= MAX_OPTIONS
            form = f"criteria of 2 to {MAX_OPTIONS} options: an object of their descriptions"
        else:
            is_form = isinstance(criteria, list) and 2 <= len(criteria) <= MAX_OPTIONS
            form = f"criteria of 2 to {MAX_OPTIONS} levels: a list"
        if not is_form:
            raise ValueError(f"a {self.type} question has {form}")
        return self


class SystemOneRequest(DecisionFields):
    """`POST /v1/systemone`."""

    state: Content = Field(
        description="what the questions are about: a text, or JSON shown as text"
    )
    questions: Annotated[
        dict[Name, SystemOneQuestion], Field(min_length=1, max_length=MAX_QUESTIONS)
    ] = Field(description="1 to 400 questions by name")
    assets: Annotated[dict[str, JsonValue], BeforeValidator(check_assets)] = Field(
        {}, description="no images are read: empty"
    )


Share = Annotated[float, Field(ge=0, le=1)]


class PredicateAnswer(ReplyModel):
    """The probability that a statement is true."""

    type: Literal["predicate"]
    name: str | None
    probability: Share
    label_mass: Share


class ValueShare(ReplyModel):
    """The probability of an option."""

    value: str | bool
    probability: Share


class ChoiceAnswer(ReplyModel):
    """The most probable option, and the probabilities of all in their order."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: Share
    probabilities: list[ValueShare]
    label_mass: Share


class LevelShare(ReplyModel):
    """The probability of a level; `value` is its index."""

    label: str
    value: Count
    probability: Share


class ScoreAnswer(ReplyModel):
    """The mean index of the level, from 0 on, and the probabilities of all in their order."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: Share
    probabilities: list[LevelShare]
    label_mass: Share


class DecisionUsage(ReplyModel):
    """Given tokens of all canvases that were read; nothing is generated. `num_rows`: of the canvases."""

    input_tokens: Count
    input_tokens_details: InputDetails
    output_tokens: Literal[0]
    output_tokens_details: OutputDetails
    total_tokens: Count
    num_rows: Count


class DecisionMethod(ReplyModel):
    """The way in which the questions were asked; `temperature`: of the calibration, 1 without one."""

    independent: bool
    orders: Count
    layout: Layout
    estimator: Estimator
    temperature: float


class DecisionReply(ReplyModel):
    """The reply of `POST /v1/decisions`."""

    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    model: str
    usage: DecisionUsage
    unmask: DecisionMethod


class NoulAnswer(ReplyModel):
    """The probability that something is true."""

    type: Literal["noul"]
    noul: Share
    label_mass: Share


class OptionAnswer(ReplyModel):
    """The most probable option, and the probabilities of all."""

    type: Literal["choice"]
    choice: str
    confidence: Share
    probabilities: dict[str, Share]
    label_mass: Share


class LegendAnswer(ReplyModel):
    """The mean level, the levels by index, and their probabilities."""

    type: Literal["score"]
    score: float
    legend: dict[str, JsonValue]
    confidence: Share
    probabilities: dict[str, Share]
    label_mass: Share


class SystemOneReply(ReplyModel):
    """The reply of `POST /v1/systemone`."""

    model: str
    answers: dict[str, NoulAnswer | OptionAnswer | LegendAnswer]
    usage: DecisionUsage
    unmask: DecisionMethod
