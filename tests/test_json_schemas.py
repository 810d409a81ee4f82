"""Keywords of JSON schemas beside each other, and alternatives of which exactly one may hold."""

from __future__ import annotations

import re

import pytest

import unmask
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node
from unmask.grammar.schema_keywords import ANNOTATIONS, KEYWORDS, REFUSED


def accepts(schema, text):
    return compile_node(unmask.json_schema(schema).node()).accepts(text.encode())


TAGGED = [
    {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
    for kind in "ab"
]


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            {"type": "string", "anyOf": [{"type": "integer"}, {"minLength": 1}]},
            ['"a"'],
            ["5", '""'],
        ),
        ({"type": "string", "anyOf": [True]}, ['"a"'], ["5", "{}"]),
        ({"type": "string", "anyOf": [{}, False]}, ['""'], ["5"]),
        ({"type": "string", "anyOf": [{"description": "any"}]}, ['""'], ["5"]),
        ({"type": "integer", "anyOf": [{"type": "number", "maximum": 3}]}, ["3"], ["2.5", "4"]),
        ({"type": "number", "anyOf": [{"type": ["integer", "null"]}]}, ["3"], ["2.5", "null"]),
        ({"type": "string", "anyOf": [{"anyOf": [{"type": "null"}, True]}]}, ['"x"'], ["null"]),
        ({"type": "string", "anyOf": [{"const": 1}, {"enum": ["a", 2]}]}, ['"a"'], ["1", "2"]),
        (
            {"type": "string", "oneOf": [{"type": "integer"}, {"maxLength": 1}]},
            ['"a"'],
            ["5", '"ab"'],
        ),
        ({"type": "string", "allOf": [True]}, ['"a"'], ["5"]),
        ({"type": "string", "allOf": [{"minLength": 1}]}, ['"a"'], ['""', "5"]),
        (
            {"type": "string", "$ref": "#/$defs/x", "$defs": {"x": {"type": ["string", "null"]}}},
            ['"a"'],
            ["null"],
        ),
        ({"type": "object", "oneOf": TAGGED}, ['{"kind":"a"}'], ["null", '{"kind":"c"}']),
        ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
        ({"type": "integer", "const": 1.0}, ["1.0"], ["1"]),
    ],
)
def test_a_type_holds_beside_every_keyword_of_alternatives(schema, inside, outside):
    assert all(accepts(schema, text) for text in inside)
    assert not any(accepts(schema, text) for text in outside)


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf", "$ref", "enum", "const"])
@pytest.mark.parametrize(
    "other",
    [
        {"minLength": 1}, {"maximum": 1}, {"properties": {}}, {"required": ["a"]}, {"items": True},
        {"pattern": "a"}, {"multipleOf": 2}, {"not": {}}, {"unevaluatedProperties": False},
        {"nullable": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_keyword_that_alternatives_do_not_take_is_refused_beside_them(keyword, other):
    value = {"$ref": "#/$defs/x", "enum": ["a"], "const": "a"}.get(keyword, [{"type": "string"}])
    schema = {keyword: value, "$defs": {"x": {"type": "string"}}, **other}
    with pytest.raises(GrammarError, match=re.escape(f"{next(iter(other))!r} beside {keyword}")):
        unmask.json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "anyOf": [{"type": "integer"}]},
        {"type": "string", "anyOf": [{"const": 1}]},
        {"type": "integer", "anyOf": [{"const": 1.5}]},
    ],
)
def test_a_type_that_no_alternative_has_leaves_no_text(schema):
    with pytest.raises(GrammarError, match="no text"):
        compile_node(unmask.json_schema(schema).node())


@pytest.mark.parametrize("kind", [None, []])
def test_a_type_without_a_name_is_refused(kind):
    with pytest.raises(GrammarError, match="type"):
        unmask.json_schema({"type": kind})


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "object", "unevaluatedProperties": False}, ["{}"], ['{"a":1}']),
        ({"unevaluatedProperties": {"type": "null"}}, ['{"a":null}'], ['{"a":1}']),
        (
            {"properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
            ['{"a":null}', "{}"],
            ['{"b":1}'],
        ),
        (
            {"additionalProperties": {"type": "null"}, "unevaluatedProperties": False},
            ['{"a":null}'],
            ['{"a":1}'],
        ),
        ({"type": "array", "unevaluatedItems": False}, ["[]"], ["[1]"]),
        ({"type": "array", "unevaluatedItems": {"type": "null"}}, ["[null]"], ["[1]"]),
        ({"items": {"type": "null"}, "unevaluatedItems": False}, ["[null]"], ["[1]"]),
        ({"prefixItems": [{"type": "null"}], "unevaluatedItems": False}, ["[null]"], ["[null,1]"]),
    ],
)
def test_what_is_not_evaluated_is_bound_as_by_the_additional_keywords(schema, inside, outside):
    assert all(accepts(schema, text) for text in inside)
    assert not any(accepts(schema, text) for text in outside)


def test_a_required_name_that_unevaluated_properties_forbid_is_refused():
    with pytest.raises(
        GrammarError, match="'b' is not declared, and unevaluatedProperties is false"
    ):
        unmask.json_schema({"required": ["b"], "unevaluatedProperties": False})


def tagged(types, tags, required=True):
    return {
        "oneOf": [
            {
                "type": types,
                "properties": {"k": {"enum": tag}},
                "required": ["k"] if required else [],
            }
            for tag in tags
        ]
    }


@pytest.mark.parametrize(
    "schema",
    [
        tagged(["object", "null"], [["a"], ["b"]]),
        tagged("object", [["a"], ["b"]], required=False),
        tagged("object", [[1], [1.0]]),
        tagged("object", [["a", "b"], ["b", "c"]]),
        {"oneOf": [{"const": 1}, {"const": 1.0}]},
        {"oneOf": [{"enum": [1, 2]}, {"enum": [2.0]}]},
        {"oneOf": [{"const": {"a": [1]}}, {"const": {"a": [1.0]}}]},
        {"oneOf": [{"const": {"a": 1, "b": 2}}, {"const": {"b": 2, "a": 1}}]},
        {"oneOf": [{"const": 0}, {"const": -0.0}]},
        {"oneOf": [{"type": "integer"}, {"const": 2.0}]},
        {"oneOf": [{"type": "number"}, {"enum": ["a", 2]}]},
        {"oneOf": [{"minLength": 1}, {"type": "string"}]},
        {"oneOf": [True, {"type": "null"}]},
        {"type": "string", "oneOf": [{"maximum": 3}, {"additionalProperties": False}]},
        {"oneOf": [{"anyOf": [{"type": "string"}]}, {"type": "string"}]},
    ],
    ids=lambda schema: str(schema)[:60],
)
def test_alternatives_that_share_a_value_are_no_one_of(schema):
    with pytest.raises(GrammarError, match="oneOf"):
        unmask.json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "inside"),
    [
        (tagged("object", [["a"], ["b"]]), '{"k":"a"}'),
        (tagged("object", [[1], [True]]), '{"k":true}'),
        (tagged("object", [[0, 1], [False]]), '{"k":false}'),
        ({"oneOf": [{"const": 1}, {"const": True}]}, "true"),
        ({"oneOf": [{"const": [1]}, {"const": [True]}]}, "[true]"),
        ({"oneOf": [{"type": "integer"}, {"const": 1.5}]}, "1.5"),
        ({"oneOf": [{"type": "object", "oneOf": TAGGED}, {"type": "null"}]}, "null"),
        (
            {"type": "object", "oneOf": tagged(["object", "null"], [["a"], ["b"]])["oneOf"]},
            '{"k":"b"}',
        ),
        ({"oneOf": [False, {"type": "null"}]}, "null"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_alternatives_without_a_common_value_are_a_one_of(schema, inside):
    assert accepts(schema, inside)


def test_an_enum_has_equal_numbers_once():
    assert accepts({"enum": [1, 1.0, True]}, "1")
    assert accepts({"enum": [1, 1.0, True]}, "true")
    assert not accepts({"enum": [1, 1.0, True]}, "1.0")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"^\S$", ["é"], ["\u00a0", "\u2003", "\ufeff"]),
        (r"^[^\s]$", ["é"], ["\u00a0", "\u2003"]),
        (r"^\s$", ["\u00a0", " "], ["x"]),
        (r"^.$", ["x"], ["\u2028", "\u2029"]),
        (r"^(?<year>[0-9]{2})$", ["26"], ["2"]),
        (r"\|", ["a|b"], ["ab"]),
    ],
)
def test_patterns_are_read_as_ecma_262_has_them(pattern, inside, outside):
    automaton = compile_node(unmask.json_schema({"type": "string", "pattern": pattern}).node())
    assert all(automaton.accepts(f'"{text}"'.encode()) for text in inside)
    assert not any(automaton.accepts(f'"{text}"'.encode()) for text in outside)


@pytest.mark.parametrize(
    "pattern",
    [
        "[]a]", "[^]a]", "a{,2}", "{2}", r"\a", r"\U00000061", r"\01", r"\1", r"\012", "(?P<n>a)",
        r"\Aa", r"a\Z", "(?<n>a)(?<n>b)",
    ],
)  # fmt: skip
def test_a_pattern_that_ecma_262_reads_otherwise_is_refused(pattern):
    with pytest.raises(GrammarError, match="regex"):
        unmask.json_schema({"type": "string", "pattern": pattern})


HALF = "\ud800"


@pytest.mark.parametrize(
    ("make", "argument", "place"),
    [
        (unmask.choice, ["a", HALF], "choice has '.ud800'"),
        (unmask.regex, f"ab{HALF}", "regular expression, at character 2"),
        (unmask.regex, r"ab\ud800", "regex"),
        (unmask.regex, f"[{HALF}]", "at character 1"),
        (unmask.ebnf, f'root ::= "{HALF}"', "grammar, at character 10"),
        (unmask.json_schema, {"const": HALF}, "#/const: '.ud800'"),
        (unmask.json_schema, {"enum": ["a", [HALF]]}, "#/enum/1/0: "),
        (unmask.json_schema, {"enum": [{HALF: 1}]}, "#/enum/0: the name '.ud800'"),
        (unmask.json_schema, {"properties": {HALF: True}}, "#/properties: the name"),
        (
            unmask.json_schema,
            {"properties": {"a": {"required": [HALF]}}},
            "#/properties/a/required/0",
        ),
        (unmask.json_schema, {"type": "string", "pattern": HALF}, "#/pattern"),
        (unmask.json_schema, {"type": "string", "pattern": r"\udc00"}, "regex"),
        (unmask.json_schema, {HALF: 1}, "#: the name"),
        (unmask.json_schema, {"description": HALF}, "#/description"),
        (unmask.json_schema, r'{"const": "\ud800"}', "#/const"),
        (unmask.json_schema, r'{"properties": {"x\udfff": true}}', "#/properties: the name"),
        (unmask.json_schema, f'{{"const": "{HALF}"}}', "schema, at character 11"),
    ],
    ids=lambda value: value.__name__ if callable(value) else ascii(value),
)
def test_half_a_character_is_refused_with_its_place(make, argument, place):
    with pytest.raises(GrammarError, match=f"{place}.*half a character") as error:
        make(argument)
    str(error.value).encode()


def test_both_halves_of_a_character_are_one():
    assert accepts(r'{"const": "\ud83d\ude00"}', '"\U0001f600"')


ODD = [
    None, True, False, 0, -1, 1.5, 1e300, "", "x", "\u00b2", [], [None], [[1]], [True], ["a", 1],
    {}, {"a": None}, {"a": [1]}, "#/x/\u00b2", "#/$defs/" + "9" * 5000, [{"type": "x"}], {"$ref": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "keyword",
    sorted(
        {
            "type",
            "$ref",
            "allOf",
            "anyOf",
            "oneOf",
            "const",
            "enum",
            "not",
            "additionalItems",
            "$id",
            *ANNOTATIONS,
        }.union(*KEYWORDS.values(), *REFUSED.values())
    ),
)
def test_an_odd_value_of_a_keyword_raises_nothing_but_a_grammar_error(keyword):
    for value in ODD:
        for kind in ({}, {"type": "object"}, {"type": ["array", "string"]}, {"type": "number"}):
            try:
                unmask.json_schema({**kind, keyword: value})
            except GrammarError as error:
                str(error).encode()
