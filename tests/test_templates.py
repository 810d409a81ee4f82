"""Chat templates: which is used, in which form contents reach it, and how a failure is told."""

from __future__ import annotations

import pytest

from unmask.engine.templates import check_messages, render
from unmask.errors import PromptError
from unmask.models import BUNDLED

ASK = [{"role": "user", "content": "How many?"}]
STRING = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
PARTS = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %};{% endfor %}"
STRICT_PARTS = "{% for m in messages %}{{ m.content[0]['text'] }};{% endfor %}"


@pytest.fixture
def tokenizer():
    from unmask.engine.tokenizer import load_tokenizer

    return load_tokenizer(BUNDLED["demo"])


def rendered(tokenizer, template, messages=ASK):
    tokenizer.chat_template = template
    return render(tokenizer, messages)


def test_contents_come_as_the_template_reads_them(tokenizer):
    assert rendered(tokenizer, STRING) == "user: How many?;"
    assert rendered(tokenizer, PARTS) == "How many?;"
    assert rendered(tokenizer, STRICT_PARTS) == "How many?;"
    parts = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
    assert rendered(tokenizer, STRING, parts) == "user: How many?;"
    assert rendered(tokenizer, "{{ messages[0].content | upper }}") == "HOW MANY?"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // (messages|length - 1) }}",
        "{% for",
        "{{ missing.field }}",
        "{{ raise_exception('only pairs') }}",
        "{{ messages[7].content }}",
        "{{ none() }}",
        "{{ messages[0].content + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_fails_in_a_template_is_told_in_one_short_error(tokenizer, template):
    with pytest.raises(PromptError, match="chat template fails") as caught:
        rendered(tokenizer, template)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("templates", "used"),
    [
        ({"default": "d", "chat": "c", "tool_use": "t"}, "d"),
        ({"tool_use": "t", "chat": "c"}, "c"),
        ({"rag": "r"}, "r"),
    ],
)
def test_of_several_templates_one_is_chosen_by_name(tokenizer, templates, used):
    assert rendered(tokenizer, templates) == used


def test_several_templates_without_a_default_are_named(tokenizer):
    with pytest.raises(PromptError, match="rag, tool_use, and none is called default or chat"):
        rendered(tokenizer, {"tool_use": "t", "rag": "r"})


def test_an_assistant_may_have_said_nothing():
    for turn in ({"role": "assistant"}, {"role": "assistant", "content": None}):
        assert check_messages([*ASK, turn, *ASK])[1]["content"] == ""
    assert check_messages([{"role": "system", "content": ""}, *ASK])[0]["content"] == ""
    for content in (None, 5, "", [{"type": "image"}], {"text": "x"}):
        with pytest.raises(PromptError, match="message 0"):
            check_messages([{"role": "user", "content": content}])
