"""Chat templates: which one of a tokenizer is used, the form in which it reads contents, and its failures.

Templates are Jinja programs of the checkpoint. They read a content as a text or as a list of parts, and no
file says which: `ChatFormat.forms` finds out by rendering conversations of known words.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from unmask.engine.fast_tokenizer import OTHER_OPTIONS
from unmask.engine.text_calls import MAX_REASON
from unmask.engine.text_pool import CALL_LIMITS, TextPool, time_limit
from unmask.errors import ConfigError, PromptError, TextLimitError, cut_text

Conversation = Sequence[object]
"""Messages: mappings with "role" and "content", as clients of OpenAI's API send them."""
Messages = Sequence[Mapping[str, object]]
Form = Literal["text", "parts"]
Forms = Mapping[str, Form]
TEXT_TYPES = ("text", "input_text", "output_text")
"""Types of a part of text, in the words of OpenAI's two APIs."""
PREFERRED = ("default", "chat")
FORMAT_OPTIONS = (
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "tools",
)
"""Options of `ChatFormat.render`."""
MAX_TEMPLATE_BYTES = 1 << 20
MAX_VARIABLES, MAX_VARIABLES_CHARS = 32, 1 << 14
RESERVED = frozenset(
    ("self", "messages", "raise_exception", "strftime_now", "add_generation_prompt")
)
TEXT: Forms = {"system": "text", "user": "text", "assistant": "text"}
CANDIDATES: tuple[Forms, ...] = (
    TEXT,
    {"system": "parts", "user": "parts", "assistant": "parts"},
    {"system": "text", "user": "parts", "assistant": "parts"},
    {"system": "text", "user": "parts", "assistant": "text"},
)
PROBES = (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",))
"""Roles of the conversations that are rendered to find the form: some templates refuse a system message."""
SLOW_S, MAX_SLOW = 2.0, 2
"""Seconds of a slow rendering of them (milliseconds are usual), and how many of these end the search."""


@dataclass(frozen=True)
class TemplateReading:
    """The form in which a template reads each role's contents, and why it does not work, if so.

    `is_stopped`: it exceeded its time or memory, and is not tried again.
    """

    forms: Forms
    problem: str | None
    is_stopped: bool = False


class ChatFormat:
    """The conversations of a model as texts.

    `tokenizer` is a `FastTokenizer`, one of transformers, or None. `choice`: name, file or text of the
    template to use (None: see `template`); `variables`: defaults of those that calls pass to the template;
    `pool`: renders (None: one of its own). Raises ConfigError for an unknown choice and invalid variables.
    """

    def __init__(
        self,
        tokenizer: Any | None,
        choice: str | Path | None = None,
        variables: Mapping[str, object] | None = None,
        pool: TextPool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._pool = TextPool(tokenizer) if pool is None else pool
        self._chosen = None if choice is None else self._find(choice)
        self._variables = self._checked(variables)
        self._probe = lru_cache(maxsize=8)(self._probe_once)

    def template(self) -> str | None:
        """Return the text of the template, None without one.

        It is the chosen one; else the tokenizer's only one, or of several the one called `default`, else
        `chat`. Raises PromptError for several of which none has these names.
        """
        if self._chosen is not None:
            return self._chosen
        templates = self._templates()
        names = PREFERRED if len(templates) > 1 else tuple(templates)
        for name in names:
            if name in templates:
                return templates[name]
        if not templates:
            return None
        raise PromptError(
            f"the tokenizer has the chat templates {_listing(templates)}, and none is called default or "
            f"chat; choose one with chat_template= (--chat-template NAME)"
        )

    def _templates(self) -> dict[str, str]:
        """Return the tokenizer's templates by name; a single one is called `default`."""
        found = getattr(self.tokenizer, "chat_template", None)
        if not found:
            return {}
        return {"default": found} if isinstance(found, str) else dict(found)

    def _find(self, choice: str | Path) -> str:
        """Return the text of a template by its name, as it is, or of a file. Raises ConfigError."""
        if self.tokenizer is None:
            raise ConfigError("chat_template has no effect without a tokenizer; leave it out")
        templates = self._templates()
        if isinstance(choice, str):
            if choice in templates:
                return templates[choice]
            if "{" in choice:
                return choice
        try:
            path = Path(choice).expanduser()
            if not path.is_file():
                raise OSError("no such file")
            if path.stat().st_size > MAX_TEMPLATE_BYTES:
                raise OSError(f"larger than {MAX_TEMPLATE_BYTES} bytes")
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        names = f"named {_listing(templates)}" if templates else "none"
        raise ConfigError(
            f"chat_template={cut_text(str(choice))!r} is no template of the tokenizer (it has {names}), no "
            f"text of a template, and no file ({reason[:MAX_REASON]}); give one of these"
        )

    def _checked(self, variables: Mapping[str, object] | None) -> dict[str, object]:
        """Return the variables of a call as a dict. Raises ConfigError."""
        if variables is None:
            return {}
        if not isinstance(variables, Mapping):
            raise _refused("must map names to values")
        if len(variables) > MAX_VARIABLES:
            raise _refused(f"has {len(variables)} names; at most {MAX_VARIABLES} are allowed")
        reserved = RESERVED | getattr(self.tokenizer, "special_tokens_map", {}).keys()
        if self.tokenizer is not None:
            reserved |= inspect.signature(self.tokenizer.apply_chat_template).parameters.keys()
            reserved |= OTHER_OPTIONS
        for name in variables:
            if not isinstance(name, str) or not name.isidentifier():
                raise _refused(f"has the name {cut_text(str(name))!r}, which is no identifier")
            if name in reserved or name.startswith("_"):
                raise _refused(
                    f"cannot set {cut_text(name)!r}, which the renderer sets itself; leave it out"
                )
        try:
            size = len(json.dumps(dict(variables)))
        except (TypeError, ValueError, RecursionError):
            raise _refused("must hold JSON values") from None
        if size > MAX_VARIABLES_CHARS:
            raise _refused(f"has {size} characters; at most {MAX_VARIABLES_CHARS} are allowed")
        return dict(variables)

    def render(
        self,
        conversation: Conversation,
        *,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """Return the text of a conversation up to the beginning of the answer.

        `chat_template`: another template for this call; `chat_template_kwargs`: variables that the template
        reads, such as `enable_thinking`. With `continue_final_message` the text ends inside the last
        message, which the answer continues; without `add_generation_prompt` (default: unless a message is
        continued) it ends after the last message. Raises
        PromptError and ConfigError. `tools` are shown where the template reads them.
        """
        messages = check_messages(conversation)
        template = self.template() if chat_template is None else self._find(chat_template)
        if template is None:
            raise PromptError(
                "the model has no chat template; use raw text (generate, /v1/completions), or choose a "
                "template with chat_template= (--chat-template FILE)"
            )
        variables = {**self._variables, **self._checked(chat_template_kwargs)}
        variables["add_generation_prompt"] = (
            not continue_final_message if add_generation_prompt is None else add_generation_prompt
        )
        if continue_final_message:
            if add_generation_prompt:
                raise ConfigError(
                    "add_generation_prompt and continue_final_message: an answer begins a message or "
                    "continues the last one; give one of them"
                )
            if messages[-1]["role"] != "assistant":
                raise PromptError(
                    "continue_final_message: the last message must be the assistant's"
                )
        variables["continue_final_message"] = continue_final_message
        if tools:
            variables["tools"] = [dict(tool) for tool in tools]
        reading = self._probe(template)
        if reading.is_stopped:
            raise TextLimitError(
                f"{reading.problem} (found when it was first used; not tried again)"
            )
        forms = reading.forms
        knows_developer = "developer" in template
        given = [_as_read(message, forms, knows_developer) for message in messages]
        text = self._rendered(template, given, variables)
        for field, rest in _without_tools(given):
            if rest and self._try(template, rest, variables) == text:
                raise PromptError(
                    f"the model's chat template leaves out {field}, which this model cannot read; leave "
                    f"these messages out, or write them as text"
                )
        return text

    def problem(self) -> str | None:
        """Return why no conversation, or none of a single user's message, can be rendered; else None."""
        try:
            template = self.template()
        except PromptError as error:
            return str(error)
        return (
            "the model has no chat template" if template is None else self._probe(template).problem
        )

    def _probe_once(self, template: str) -> TemplateReading:
        """Find the form by rendering marks; a template that exceeds a limit is stopped for good."""
        try:
            with time_limit(CALL_LIMITS.time_s):
                return self._probe_forms(template)
        except TextLimitError as error:
            return TemplateReading(TEXT, str(error), is_stopped=True)

    def _probe_forms(self, template: str) -> TemplateReading:
        """Find the form by rendering marks: the first candidate that shows most of them."""
        forms, best, num_slow = TEXT, set[str](), 0
        for roles in PROBES:
            for candidate in CANDIDATES:
                began = time.monotonic()
                shown = self._shown(template, roles, candidate)
                taken = time.monotonic() - began
                num_slow += taken > SLOW_S  # the first may wait for a worker to start
                if num_slow == MAX_SLOW:
                    raise TextLimitError(
                        f"the model's chat template takes {taken:.1f} s for {len(roles)} words; at most "
                        f"{SLOW_S:g} s are allowed"
                    )
                if "user" in shown and len(shown) > len(best):
                    forms, best = candidate, shown
            if best:
                break
        try:
            self._rendered(template, _marked(("user",), forms), {})
        except TextLimitError:
            raise
        except PromptError as error:
            return TemplateReading(forms, str(error))
        return TemplateReading(
            forms, None if best else "the model's chat template leaves out the user's messages"
        )

    def _shown(self, template: str, roles: Sequence[str], forms: Forms) -> set[str]:
        """Return the roles whose contents the template shows, none if it fails."""
        text = (self._try(template, _marked(roles, forms), {}) or "").casefold()
        # A list that is printed as it is, is not read as parts.
        return {
            role for role in roles if _mark(role) in text and f"'text': '{_mark(role)}" not in text
        }

    def _try(
        self, template: str, messages: list[dict[str, object]], variables: Mapping[str, object]
    ) -> str | None:
        try:
            return self._rendered(template, messages, variables)
        except TextLimitError:
            raise
        except PromptError:
            return None

    def _rendered(
        self, template: str, messages: list[dict[str, object]], variables: Mapping[str, object]
    ) -> str:
        """Render once. Raises PromptError for whatever goes wrong in the template."""
        assert self.tokenizer is not None, "there is no template without a tokenizer"
        return self._pool.render(template, messages, {**self._variables, **variables})


def check_messages(conversation: object) -> list[dict[str, object]]:
    """Return the messages with contents as lists of texts. Raises PromptError.

    A content is text, or a list of text parts; of an assistant it may also be empty, None or missing, as in
    the history of a client whose answers were empty.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise PromptError(
            f"messages of type {type(conversation).__name__}: give a list of "
            f"{{'role': 'user', 'content': ...}}"
        )
    if not conversation:
        raise PromptError("no messages; give at least one {'role': 'user', 'content': ...}")
    checked: list[dict[str, object]] = []
    for number, message in enumerate(conversation):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"message {number} needs a 'role' and a 'content'")
        role, content = message["role"], message.get("content")
        is_free = role == "assistant"
        texts = [] if content is None and is_free else texts_of(content)
        if texts is None:
            raise PromptError(
                f"message {number}: the content of the {cut_text(role)}'s message must be text, or a list "
                f"of parts {{'type': 'text', 'text': ...}}"
            )
        if not any(texts) and not is_free and role not in ("system", "developer", "tool"):
            raise PromptError(
                f"message {number}: the {cut_text(role)}'s message is empty; give some text"
            )
        checked.append({**message, "content": texts})
    return checked


def texts_of(content: object) -> list[str] | None:
    """Return the texts of a content; None for anything that is neither text nor parts of text."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)):
        return None
    texts = [
        part.get("text")
        for part in content
        if isinstance(part, Mapping) and part.get("type", "text") in TEXT_TYPES
    ]
    if len(texts) < len(content):
        return None
    found = [text for text in texts if isinstance(text, str)]
    return found if len(found) == len(texts) else None


def _as_read(message: dict[str, object], forms: Forms, knows_developer: bool) -> dict[str, object]:
    """Return a message as a template reads it; `developer` is the newer name of `system`."""
    role, texts = str(message["role"]), message["content"]
    assert isinstance(texts, list), "check_messages returns lists of texts"
    if role == "developer":
        role = "developer" if knows_developer else "system"
    kind = "system" if role == "developer" else role
    is_parts = forms.get(kind, forms["user"]) == "parts"
    parts = [{"type": "text", "text": text} for text in texts or [""]]
    read = {**message, "role": role, "content": parts if is_parts else "".join(texts)}
    calls = message.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        read["tool_calls"] = [_with_arguments(call) for call in calls] or None
    return read


def _with_arguments(call: object) -> object:
    """Return a tool call whose arguments are an object: OpenAI's API sends JSON, templates read objects."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return (
        {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call
    )


def _without_tools(
    messages: list[dict[str, object]],
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield what messages hold of tools, and the conversation without it."""
    if any(message.get("tool_calls") for message in messages):
        yield "tool_calls", [{**message, "tool_calls": None} for message in messages]
    if any(message["role"] == "tool" for message in messages):
        yield "the tool's messages", [m for m in messages if m["role"] != "tool"]


def _mark(role: str) -> str:
    return f"contentof{role}"


def _marked(roles: Sequence[str], forms: Forms) -> list[dict[str, object]]:
    """Return a conversation of marks."""
    messages = [{"role": role, "content": [_mark(role)]} for role in roles]
    return [_as_read(dict(message), forms, knows_developer=False) for message in messages]


def _refused(problem: str) -> ConfigError:
    error = ConfigError(f"chat_template_kwargs {problem}")
    error.key = "chat_template_kwargs"
    return error


def _listing(names: Mapping[str, str]) -> str:
    return cut_text(", ".join(sorted(names)), MAX_REASON)
