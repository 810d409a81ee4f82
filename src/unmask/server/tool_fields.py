"""Fields by which clients offer tools, and the calls in an answer.

A call that the request requires is guaranteed: the answer is bound to the tools' schemas. With "auto" the
model decides, and its answer is searched for calls in the forms of Hermes and Qwen
(`<tool_call>{...}</tool_call>`), and of Llama 3 (a JSON object with `name` and `parameters`, or plain JSON
with `arguments`). A stream sends a call when the answer is complete, and its text then too.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator
from typing_extensions import TypedDict

from unmask.server.base_models import StrictModel
from unmask.server.tool_schemas import call_schema

MAX_TOOLS = 128
TOOL_NAME = r"^[a-zA-Z0-9_.-]+$"
END_TAG = "</tool_call>"
OPENING, CLOSING = re.compile(r"<tool_call>\s*"), re.compile(rf"\s*{END_TAG}")


class FunctionFields(StrictModel):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=TOOL_NAME)]
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(StrictModel):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: FunctionFields


class FunctionName(StrictModel):
    """The name of a function."""

    name: Annotated[str, Field(max_length=64)]


class NamedTool(StrictModel):
    """A tool by its name."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(StrictModel):
    """A part of the tools, of which the model may or has to call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class ToolChoice(StrictModel):
    """A choice as an object: of a function, of some, or "none" and "auto" in another spelling."""

    type: Literal["function", "allowed_tools", "none", "auto", "required"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None

    @property
    def names(self) -> frozenset[str] | None:
        """The names of the functions that it leaves; None: all."""
        if self.allowed_tools is not None:
            return frozenset(tool.function.name for tool in self.allowed_tools.tools)
        return None if self.function is None else frozenset((self.function.name,))

    @property
    def kind(self) -> str:
        """The choice among these: "required" for a named function, or the mode of allowed tools."""
        if self.allowed_tools is not None:
            return self.allowed_tools.mode
        return "required" if self.type == "function" else self.type


class FunctionCall(TypedDict):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call in an answer."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ToolRequest(StrictModel):
    """The fields of a request that offers tools."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="functions that the model may call; their schemas hold for required calls"
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = Field(
        None,
        description="none, auto (default), required, a function by name, or allowed_tools with a mode; a "
        "required or named call is guaranteed",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: at most one call; a required call is always one"
    )

    @field_validator("tool_choice", mode="after")
    @classmethod
    def _check_choice(
        cls, choice: ToolChoice | str | None, info: ValidationInfo
    ) -> ToolChoice | str | None:
        if "tools" not in info.data:  # they are refused themselves
            return choice
        tools: list[Tool] = info.data["tools"] or []
        kind = choice.type if isinstance(choice, ToolChoice) else choice
        if kind == "required" and not tools:
            raise ValueError('"required" needs tools; without them, use "none" or "auto"')
        if not isinstance(choice, ToolChoice):
            return choice
        for key, value in {
            "function": choice.function,
            "allowed_tools": choice.allowed_tools,
        }.items():
            if (kind == key) != (value is not None):
                raise ValueError(f'{key} belongs to type="{key}", which needs it')
        if (choice.names or frozenset()) - {tool.function.name for tool in tools}:
            raise ValueError("names a function that is not among tools")
        return choice

    @property
    def forced_tools(self) -> list[Tool]:
        """The tools of which one must be called; none if the model decides."""
        choice = self.tool_choice
        kind = choice.kind if isinstance(choice, ToolChoice) else choice
        return self.offered_tools if kind == "required" else []

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        choice, tools = self.tool_choice, self.tools or []
        if not isinstance(choice, ToolChoice):
            return [] if choice == "none" else [*tools]
        if choice.kind == "none":
            return []
        return [t for t in tools if choice.names is None or t.function.name in choice.names]

    @property
    def tool_schema(self) -> dict[str, JsonValue] | None:
        """The schema of a call that is required, None without one. Raises GrammarError."""
        forced = [(tool.function.name, tool.function.parameters) for tool in self.forced_tools]
        return call_schema(forced) if forced else None


@dataclass(frozen=True, slots=True)
class ToolParser:
    """The parser of one request's answers: the `names` of its tools; one call at most if not parallel."""

    names: frozenset[str]
    is_parallel: bool = True

    def parse(self, text: str) -> tuple[str | None, list[ToolCall]]:
        """Return the text of an answer without its calls (None: no text), and the calls.

        An answer that is JSON as a whole is read as such: tags in it are a part of its texts.
        """
        found, rest = self._plain(text), ""
        if not found:
            found, rest = self._tagged(text)
        calls = [call for call in found if call is not None]
        if not calls or len(calls) < len(found):
            return text, []
        return rest or None, calls if self.is_parallel else calls[:1]

    def _plain(self, text: str) -> list[ToolCall | None]:
        """Return the calls of an answer that is JSON as a whole."""
        try:
            value: object = json.loads(text)
        except (ValueError, RecursionError):
            return []
        values = value if isinstance(value, list) else [value]
        return [self._of_value(each) for each in values]

    def _tagged(self, text: str) -> tuple[list[ToolCall | None], str]:
        """Return the calls between tags, None for one that is none, and the text outside of them.

        A value ends where its JSON does, so that a text in it may hold the tags.
        """
        found: list[ToolCall | None] = []
        rest, at = "", 0
        while (opening := OPENING.search(text, at)) and END_TAG in text[opening.end() :]:
            try:
                value, end = json.JSONDecoder().raw_decode(text, opening.end())
            except (ValueError, RecursionError):
                return [*found, None], text
            closing = CLOSING.match(text, end)
            if closing is None:
                return [*found, None], text
            found.append(self._of_value(value))
            rest, at = rest + text[at : opening.start()], closing.end()
        return found, (rest + text[at:]).strip()

    def _of_value(self, value: object) -> ToolCall | None:
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(name, str) or name not in self.names:
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if not isinstance(arguments, Mapping):
            return None
        function: FunctionCall = {
            "name": name,
            "arguments": json.dumps(arguments, ensure_ascii=False),
        }
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
