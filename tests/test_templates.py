"""Chat templates: which is used, in which form contents reach it, and how a failure is told."""

from __future__ import annotations

import json
import shutil
from copy import copy

import pytest

from unmask.engine.templates import ChatFormat, check_messages
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import ConfigError, ModelError, PromptError
from unmask.models import BUNDLED

ASK = [{"role": "user", "content": "How many?"}]
AS_PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}],
    }
]
TURNS = [
    {"role": "system", "content": "Be brief."},
    *ASK,
    {"role": "assistant", "content": "12"},
    *ASK,
]
STRING = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
PARTS = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %};{% endfor %}"
STRICT_PARTS = "{% for m in messages %}{{ m.content[0]['text'] + m.content[-1].text }};{% endfor %}"
MIXED = (
    "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}{{ c.text }}{% endfor %}"
    "{% else %}{{ m.content + '' }}{% endif %};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %};{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PARTS
)
TOOLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
    "{% endfor %}{% endfor %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
FAILING = [
    "{{ 1 // (messages|length - 1) }}",
    "{{ missing.field }}",
    "{{ messages[7].content }}",
    "{{ none() }}",
    "{{ messages[0].role + 1 }}",
    "{% include 'other' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ 9 ** 9 ** 9 if false else {}['a'].b }}",
]


@pytest.fixture(scope="module")
def original():
    return load_tokenizer(BUNDLED["demo"])


@pytest.fixture
def tokenizer(original):
    return copy(original)


def rendered(tokenizer, template, messages=ASK, **options):
    tokenizer.chat_template = template
    return ChatFormat(tokenizer).render(messages, **options)


@pytest.mark.parametrize("messages", [ASK, AS_PARTS])
def test_contents_come_as_the_template_reads_them(tokenizer, messages):
    assert rendered(tokenizer, STRING, messages) == "user: How many?;"
    assert rendered(tokenizer, PARTS, messages) == "How many?;"
    assert rendered(tokenizer, EITHER, messages) == "How many?;"
    assert rendered(tokenizer, NO_SYSTEM, messages) == "How many?;"
    assert rendered(tokenizer, "{{ messages[0].content | upper }}", messages) == "HOW MANY?"
    assert rendered(tokenizer, "{{ messages[0].content | tojson }}", messages) == '"How many?"'


def test_each_role_has_a_form_of_its_own(tokenizer):
    assert rendered(tokenizer, MIXED, TURNS) == "Be brief.;How many?;12;How many?;"
    assert rendered(tokenizer, STRICT_PARTS, AS_PARTS) == "How many?;"


def test_the_form_does_not_depend_on_the_conversation(tokenizer):
    empty = [*ASK, {"role": "assistant", "content": ""}]
    assert rendered(tokenizer, PARTS, empty) == "How many?;;"
    assert rendered(tokenizer, STRING, empty) == "user: How many?;assistant: ;"
    assert rendered(tokenizer, PARTS, [{"role": "user", "content": "'type'"}]) == "'type';"


@pytest.mark.parametrize("template", FAILING)
def test_whatever_fails_in_a_template_is_told_in_one_short_error(tokenizer, template):
    with pytest.raises(PromptError, match="chat template fails on these messages: [A-Z]") as caught:
        rendered(tokenizer, template)
    assert len(str(caught.value)) < 500
    assert "chat template fails" in (ChatFormat(tokenizer).problem() or "")


def test_syntax_errors_and_refusals_are_told_as_such(tokenizer):
    with pytest.raises(PromptError, match=r"no valid Jinja: line 2: unexpected"):
        rendered(tokenizer, "x\n{% for")
    with pytest.raises(PromptError, match="no valid Jinja: line 1: No filter"):
        rendered(tokenizer, "{{ 1 | nofilter }}")
    with pytest.raises(PromptError, match="refuses these messages: only pairs"):
        rendered(tokenizer, "{{ raise_exception('only pairs') }}")


class NoTextTokenizer:
    """A tokenizer of the caller's, whose template gives a number."""

    chat_template = STRING

    def apply_chat_template(self, *args: object, **options: object) -> int:
        return 5


def test_a_renderer_of_the_callers_must_give_text():
    with pytest.raises(PromptError, match="gives a int, no text"):
        ChatFormat(NoTextTokenizer()).render(ASK)


def test_a_problem_is_found_before_the_first_request(tokenizer, original):
    assert ChatFormat(original).problem() is None
    for template, problem in (
        ("x", "leaves out the user's messages"),
        (None, "no chat template"),
        ("", "no chat template"),
        ({"rag": "r", "tool_use": "t"}, "rag, tool_use"),
        ("{{ raise_exception('never') }}", "never"),
    ):
        tokenizer.chat_template = template
        assert problem in (ChatFormat(tokenizer).problem() or "")


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
    for name, text in templates.items():
        assert rendered(tokenizer, templates, chat_template=name) == text
        assert ChatFormat(tokenizer, name).render(ASK) == text


def test_several_templates_without_a_default_are_named(tokenizer):
    with pytest.raises(PromptError, match="rag, tool_use, and none is called default or chat"):
        rendered(tokenizer, {"tool_use": "t", "rag": "r"})


def test_a_template_is_chosen_by_name_text_or_file(tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("file: {{ messages[0].content }}")
    assert ChatFormat(tokenizer, file).render(ASK) == "file: How many?"
    assert ChatFormat(tokenizer, str(file)).render(ASK) == "file: How many?"
    assert ChatFormat(tokenizer, "{{ messages[0].content }}!").render(ASK) == "How many?!"
    file.write_bytes(b"\xff")
    tokenizer.chat_template = {"rag": "r", "chat": "c"}
    for choice in ("defualt", file, tmp_path, "x" * 5000, "\0"):
        with pytest.raises(ConfigError, match="chat, rag") as caught:
            ChatFormat(tokenizer, choice)
        assert len(str(caught.value)) < 1000


def test_variables_reach_the_template_and_those_of_a_call_come_first(tokenizer):
    template = "{{ messages[0].content }}{{ ' think' if enable_thinking }}"
    tokenizer.chat_template = template
    assert (
        ChatFormat(tokenizer, variables={"enable_thinking": True}).render(ASK) == "How many? think"
    )
    own = ChatFormat(tokenizer, variables={"enable_thinking": True})
    assert own.render(ASK, chat_template_kwargs={"enable_thinking": False}) == "How many?"
    assert (
        rendered(tokenizer, template, chat_template_kwargs={"unread": [1, {"a": None}]})
        == "How many?"
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": []},
        {"tokenize": True},
        {"chat_template": "x"},
        {"bos_token": "x"},
        {"self": 1},
        {"_x": 1},
        {"a b": 1},
        {1: 2},
        {"x": object()},
        {"x": "y" * 20_000},
        {f"x{i}": 1 for i in range(40)},
        [1],
    ],
)
def test_variables_of_the_renderer_and_too_large_ones_are_refused(tokenizer, variables):
    with pytest.raises(ConfigError, match="chat_template_kwargs") as caught:
        rendered(tokenizer, STRING, chat_template_kwargs=variables)
    assert len(str(caught.value)) < 500


def test_an_assistant_may_have_said_nothing():
    for turn in ({}, {"content": None}, {"content": ""}, {"content": []}):
        assert not any(check_messages([*ASK, {"role": "assistant", **turn}, *ASK])[1]["content"])
    assert check_messages([{"role": "system", "content": ""}, *ASK])[0]["content"] == [""]
    for content in (None, 5, "", [], [{"type": "image"}], {"text": "x"}, ["x"], [{"type": "text"}]):
        with pytest.raises(PromptError, match="message 0: the"):
            check_messages([{"role": "user", "content": content}])
    for messages in ("hi", {"role": "user"}, [], [5], [{"content": "x"}], None):
        with pytest.raises(PromptError):
            check_messages(messages)


def test_names_and_other_fields_reach_the_template(tokenizer):
    named = [{"role": "user", "name": "Ann", "content": "Hi"}]
    assert (
        rendered(tokenizer, "{{ messages[0].name }}: {{ messages[0].content }}", named) == "Ann: Hi"
    )


def test_developer_is_system_unless_the_template_knows_it(tokenizer):
    turns = [{"role": "developer", "content": "Be brief."}, *ASK]
    assert rendered(tokenizer, STRING, turns).startswith("system: Be brief.")
    assert rendered(tokenizer, STRING + "{# developer #}", turns).startswith("developer: Be")


def test_tool_calls_are_read_or_refused_never_dropped(tokenizer):
    turns = [*ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert rendered(tokenizer, TOOLS, turns) == 'How many?{"name": "add", "arguments": {"a": 1}}'
    with pytest.raises(PromptError, match="leaves out tool_calls"):
        rendered(tokenizer, STRING, turns)
    for nothing in ([], None):
        turns[1]["tool_calls"] = nothing
        assert rendered(tokenizer, STRING, turns) == "user: How many?;assistant: ;"
    result = [*ASK, {"role": "tool", "tool_call_id": "c1", "content": "3"}]
    assert rendered(tokenizer, STRING, result) == "user: How many?;tool: 3;"
    with pytest.raises(PromptError, match="leaves out the tool's messages"):
        rendered(tokenizer, "{{ messages[0].content }}", result)


def test_the_last_message_is_continued_on_request(tokenizer):
    template = STRING + "{% if add_generation_prompt %}assistant: {% endif %}"
    turns = [*ASK, {"role": "assistant", "content": "I think"}]
    assert rendered(tokenizer, template, turns) == "user: How many?;assistant: I think;assistant: "
    assert rendered(tokenizer, template, turns, add_generation_prompt=False).endswith("I think;")
    assert rendered(tokenizer, template, turns, continue_final_message=True).endswith(": I think")
    with pytest.raises(PromptError, match="last message must be the assistant's"):
        rendered(tokenizer, template, ASK, continue_final_message=True)
    with pytest.raises(ConfigError, match="give one of them"):
        rendered(
            tokenizer, template, turns, continue_final_message=True, add_generation_prompt=True
        )


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["demo"] / name, tmp_path / name)
    return tmp_path


def configure(folder, template):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(
        json.dumps(config if template is None else {**config, "chat_template": template})
    )


def test_templates_are_read_from_every_file_that_may_hold_them(folder):
    configure(folder, None)
    assert load_tokenizer(folder).chat_template is None
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert load_tokenizer(folder).chat_template == "from json"
    configure(folder, [{"name": "rag", "template": "r"}, {"name": "chat", "template": "c"}])
    assert ChatFormat(load_tokenizer(folder)).template() == "c"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(folder).chat_template == "from jinja"
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("from folder")
    assert load_tokenizer(folder).chat_template == {"default": "from jinja", "rag": "from folder"}


@pytest.mark.parametrize(
    "template", [7, [7], [{"name": "x"}], [{"name": [], "template": "x"}], {"a": 1}]
)
def test_templates_that_are_no_text_are_refused_at_load(folder, template):
    configure(folder, template)
    with pytest.raises(ModelError, match="chat_template|tokenizer cannot be read"):
        load_tokenizer(folder)
