"""Chat templates: which one of a tokenizer is used, in which form it reads contents, and its failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from unmask.errors import PromptError

Message = Mapping[str, object]
PREFERRED = ("default", "chat")
MAX_REASON = 300


class TemplateTokenizer(Protocol):
    """The part of a tokenizer that renders templates; several templates are a dict by name."""

    chat_template: str | dict[str, str] | None

    def apply_chat_template(
        self,
        conversation: list[dict[str, object]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> object:
        """Return the text of a conversation."""


def choose_template(tokenizer: TemplateTokenizer) -> str:
    """Return the template: the only one, or of several the one called `default`, else `chat`.

    Raises PromptError for several of which none has these names.
    """
    templates = tokenizer.chat_template
    assert templates is not None, "the caller checks that there is a template"
    if isinstance(templates, str):
        return templates
    for name in PREFERRED if len(templates) > 1 else templates:
        if name in templates:
            return templates[name]
    names = ", ".join(sorted(templates))
    raise PromptError(
        f"the tokenizer has the chat templates {names[:MAX_REASON]}, and none is called default or chat; "
        f"name one of them default in tokenizer_config.json"
    )


def check_messages(messages: Sequence[object]) -> list[dict[str, object]]:
    """Return the messages with contents as text. Raises PromptError.

    A content is text, or a list of text parts; of an assistant it may also be empty, None or missing, as in
    the history of a client whose answers were empty.
    """
    if not messages:
        raise PromptError("no messages; give at least one {'role': 'user', 'content': ...}")
    checked: list[dict[str, object]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"message {number} needs 'role' and 'content'")
        role = message["role"]
        content = text_of(message.get("content"))
        if content is None and role == "assistant" and message.get("content") is None:
            content = ""
        if content is None:
            raise PromptError(
                f"message {number}: the content of the {role}'s message must be text, or a list of parts "
                f"{{'type': 'text', 'text': ...}}"
            )
        if not content and role not in ("assistant", "system", "developer"):
            raise PromptError(f"message {number}: the {role}'s message is empty")
        checked.append({**message, "content": content})
    return checked


def text_of(content: object) -> str | None:
    """Return a content as one text; None for anything that is neither text nor parts of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return None
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(str(text) for text in texts)


def render(tokenizer: TemplateTokenizer, messages: Sequence[object]) -> str:
    """Return the text of a conversation up to the beginning of the answer. Raises PromptError.

    Contents are given as text. A template that leaves the last text out, or fails on it, gets them as lists
    of parts: so are those of models that read several kinds of content.
    """
    checked = check_messages(messages)
    template = choose_template(tokenizer)
    needle = str(checked[-1]["content"]).strip()
    failure: PromptError | None = None
    first = ""
    try:
        first = _render(tokenizer, template, checked)
        if needle in first:
            return first
    except PromptError as error:
        failure = error
    parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in checked
    ]
    try:
        second = _render(tokenizer, template, parts)
        if needle and needle in second and "'type'" not in second:  # not the list itself
            return second
    except PromptError:
        pass
    if failure is not None:
        raise failure
    return first


def _render(tokenizer: TemplateTokenizer, template: str, messages: list[dict[str, object]]) -> str:
    """Render once. Raises PromptError for whatever goes wrong in the template."""
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # noqa: BLE001 -- a template may raise anything
        reason = " ".join(f"{error}".split())[:MAX_REASON]
        raise PromptError(
            f"the model's chat template fails on these messages: {type(error).__name__}: {reason}"
        ) from None
    if not isinstance(text, str):
        raise PromptError("the model's chat template gives no text")
    return text
