"""Rendering of a chat template as transformers does it, with Jinja alone.

A template is a program of the checkpoint, and is run in Jinja's sandbox. Names, filters and blocks are
those that transformers gives to templates; `tests/test_fast_tokenizer.py` compares the texts of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
"""Mark after the content that is continued; a template that strips contents removes its space."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's reasoning, the usual one first."""


class GenerationBlock(Extension):
    """The block `{% generation %}` around an assistant's words; it renders as its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block as a call, so that it has a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("content_of")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def content_of(self, caller: Macro) -> str:
        """Return the content of the block."""
        return caller()


class ChatNamespace(Namespace):
    """A namespace of a template, without names that begin with an underscore."""

    def __init__(*arguments: Any, **values: Any) -> None:
        self, given = arguments[0], dict(*arguments[1:], **values)
        for name in given:
            check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    """Raise SecurityError for the name of an attribute that a template must not set."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"Chat templates cannot store underscore-prefixed attributes on a namespace, but got {name!r}. "
            f"Please rename the attribute."
        )


class ChatDict:
    """The name `dict` of templates: it makes mappings, and gives no access to the class."""

    def __call__(self, *arguments: Any, **values: Any) -> dict[Any, Any]:
        """Return a new mapping."""
        return dict(*arguments, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """Return a new mapping of keys to one value."""
        return dict.fromkeys(*arguments)


def to_json(
    x: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON: the filter `tojson`, without the escapes for HTML that Jinja's own has."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: str) -> None:
    """Raise TemplateError: the name `raise_exception` of templates."""
    raise TemplateError(message)


def now(format: str) -> str:
    """Return the local time: the name `strftime_now` of templates."""
    return datetime.now().strftime(format)


@lru_cache(maxsize=64)
def compiled(template: str) -> Template:
    """Compile a template. Raises TemplateSyntaxError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": now,
        "dict": ChatDict(),
        "namespace": ChatNamespace,
    }
    return environment.from_string(template)


def is_plain(value: object) -> bool:
    """Return True for JSON types alone, which templates may see as they are."""
    if type(value) in (dict, list, tuple):
        assert isinstance(value, (dict, list, tuple)), "one of these types"
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return all(is_plain(part) for part in parts)
    return value is None or type(value) in (str, int, float, bool)


def copied(value: Any) -> Any:
    """Return a copy of plain data, so that a change of it is seen by nobody else."""
    if isinstance(value, dict):
        return {copied(key): copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, object]],
    variables: Mapping[str, object],
    is_continued: bool,
) -> str:
    """Return the text of messages, up to the end of the last one's content if it `is_continued`.

    Messages and variables are plain data. Raises the errors of Jinja and of the template, and ValueError if
    the last message cannot be continued.
    """
    if is_continued and variables.get("add_generation_prompt"):
        raise ValueError("a message is continued, or a new one begins: not both")
    program = compiled(template)
    chat = [_with_reasoning(message) for message in messages]
    content = _mark_end(chat[-1], template) if is_continued else ""
    text = program.render({**copied(dict(variables)), "messages": chat})
    return _up_to_mark(text, content) if is_continued else text


def _with_reasoning(message: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of a message without empty keys, with its reasoning under the names templates read."""
    own = {key: copied(value) for key, value in message.items() if value is not None}
    found = next((own[key] for key in REASONING if key in own), None)
    if found is None:
        return own
    return {"thinking": found, **own, "reasoning_content": found}


def _mark_end(message: dict[str, Any], template: str) -> str:
    """Put the mark after the content of a message, and return the content. Raises ValueError."""
    content = message.get("content")
    if content is None or "content" not in template:
        raise ValueError("the last message has no content that the template shows, to be continued")
    if isinstance(content, str):
        message["content"] = content + CONTINUED
        return content
    for part in reversed(content):
        if "text" in part:
            text = str(part["text"])
            part["text"] = text + CONTINUED
            return text
    raise ValueError("the last message has no text to be continued")


def _up_to_mark(text: str, content: str) -> str:
    """Return a text up to the mark. Raises ValueError if the template left it or the content out."""
    mark = CONTINUED.strip()
    if content.strip() not in text or mark not in text:
        raise ValueError(
            "the template changes or leaves out the last message, which cannot be continued; see its text: "
            f"{text[:200]!r}"
        )
    place = text.rindex(mark)
    before = text[:place]
    return before if text.startswith(CONTINUED, place) else before.rstrip()
