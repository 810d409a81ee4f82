"""Constraints as languages: regular expressions, JSON schemas, and their automata over bytes and tokens."""

from __future__ import annotations

import itertools
import json
import random
import re
import time

import numpy as np
import pytest

import unmask
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node
from unmask.grammar.reach import OPEN, Reach, TokenAutomaton
from unmask.grammar.token_automaton import TokenTrie, token_table

END = 11
PIECES = [b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ca", b" ", b"-", b"cc", None, None]
"""A vocabulary of 12: token 11 ends the text, token 10 is never allowed."""


def automaton_of(constraint, pieces=PIECES, ends=(END,)):
    table = token_table(compile_node(constraint.node()), TokenTrie.build(pieces))
    return TokenAutomaton(table.with_ends(ends))


def accepts(constraint, text):
    return compile_node(constraint.node()).accepts(text.encode())


@pytest.mark.parametrize(
    "pattern",
    [
        "a*b",
        "(ab|c)+d?",
        "[^a-f]{2,4}",
        r"\d{3}-\d+|x",
        "é|ü+",
        ".*",
        "(a|b){0,3}c",
        "(?:a|(?P<name>b))+?",
        r"[\w-]+\s?",
        r"\D*[]a]",
        "^ab?$",
        "a{2}|a{,2}b|c{,}",
        r"\u00e9|\x61\\",
        "",
        r"a|^b|\^a",
        "^^a",
        r"[\1\61]|\061|\141|\0",
        r"\08|\x31{0002,}",
        "a{}|{a}|b{ 1}|{",
    ],
)
def test_a_regular_expression_accepts_what_python_accepts(pattern):
    rng = random.Random(pattern)
    automaton, fits = compile_node(unmask.regex(pattern).node()), re.compile(pattern, re.ASCII)
    for length in range(7):
        for _ in range(150):
            text = "".join(rng.choice("abcdx1-é€𝄞\n\\{,") for _ in range(length))
            assert automaton.accepts(text.encode()) == bool(fits.fullmatch(text)), text


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("(?=a)b", "lookaround"),
        (r"(a)\1", "backreference"),
        (r"\bword", "boundary"),
        ("(a", "closing parenthesis"),
        ("a)", "closing parenthesis"),
        ("[a", "too early"),
        ("*a", "before it"),
        ("a**", "two quantifiers"),
        ("a*+", "possessive"),
        ("a{3,2}", "wrong order"),
        ("a{99999}", "repetitions"),
        ("a^b", "anchor"),
        ("(" * 99 + ")" * 99, "nested"),
        ("[b-a]", "wrong order"),
        (r"\|^a", "anchor"),
        (r"\12", "backreference"),
        (r"\400", "above"),
        (r"[\477]", "above"),
        (r"[\8]", "escape"),
        ("{2}", "before it"),
        ("a|{,3}", "before it"),
        ("^{1}a", "before it"),
        ("(?:{1,})", "before it"),
        ("a{1}{2}", "two quantifiers"),
        ("a{12345678901}", "repetitions"),
        ("(?P<n>a)(?P<n>b)", "two groups with the name n"),
        ("(?P<n", "identifier"),
        ("(?P<1>a)", "identifier"),
        ("(?<n>a)", "group"),
        ("[a-\\d]", "range"),
        ("[^\\x00-\\U0010ffff]", "no text"),
    ],
)
def test_an_expression_that_no_automaton_has_is_refused_in_words(pattern, word):
    with pytest.raises(GrammarError, match=word):
        compile_node(unmask.regex(pattern).node())


@pytest.mark.parametrize("options", [None, 5, "yes", b"yes", [], 1.5, [None], [""], [5], True])
def test_a_choice_that_is_no_list_of_texts_is_refused(options):
    with pytest.raises(GrammarError, match="choice"):
        unmask.choice(options)


BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 6},
        "pages": {"type": "integer", "minimum": 1, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 2},
        "price": {"type": "number", "minimum": 0, "exclusiveMaximum": 2.5},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["title", "pages"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('{"title":"A","pages":7}', True),
        ('{"title": "\\n\\u0041", "pages": 7}', False),
        ('{"title": "é𝄞\\n", "pages": 120, "tags": ["new","old"]}', True),
        ('{"title": "é", "pages": 121}', False),
        ('{"title": "é", "pages": 0}', False),
        ('{"pages": 1, "title": "é"}', False),
        ('{"title": "abcdefg", "pages": 1}', False),
        ('{"title": "a", "pages": 1, "tags": ["new","new","new"]}', False),
        ('{"title": "a", "pages": 1, "price": 2.499999}', True),
        ('{"title": "a", "pages": 1, "price": 0}', True),
        ('{"title": "a", "pages": 1, "price": 2.5}', False),
        ('{"title": "a", "pages": 1, "price": -1}', False),
        ('{"title": "a", "pages": 1, "next": {"title": "b", "pages": 2, "next": null}}', True),
        ('{"title": "a"}', False),
        ('{"title": "a", "pages": 1,}', False),
    ],
)
def test_a_schema_accepts_its_instances_in_the_declared_order(text, is_valid):
    assert accepts(unmask.json_schema(BOOK), text) == is_valid


def test_optional_properties_have_commas_only_between_those_that_are_there():
    names = ["a", "b", "c"]
    schema = {"properties": {name: {"const": 1} for name in names}, "required": ["b"]}
    for count in range(4):
        for chosen in itertools.combinations(names, count):
            text = json.dumps(dict.fromkeys(chosen, 1))
            assert accepts(unmask.json_schema(schema), text) == ("b" in chosen)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (-12, 105), (7, 1300), (-1300, -7), (99, 100), (None, -5), (95, None)]
)
def test_integers_within_bounds_are_accepted_and_no_others(low, high):
    bounds = {"minimum": low, "maximum": high}
    given = {key: value for key, value in bounds.items() if value is not None}
    automaton = compile_node(unmask.json_schema({"type": "integer", **given}).node())
    for number in range(-1400, 1400):
        inside = (low is None or number >= low) and (high is None or number <= high)
        assert automaton.accepts(str(number).encode()) == inside


def test_decimals_within_bounds_are_accepted_and_no_others():
    rng = random.Random(1)
    for low, high in ((0, 1), (-0.25, 0.5), (1.5, 12.125), (-3, -2.75), (0.1, 0.2)):
        schema = {"type": "number", "minimum": low, "maximum": high}
        automaton = compile_node(unmask.json_schema(schema).node())
        num_accepted = 0
        for _ in range(2000):
            value = round(rng.uniform(low - 1, high + 1), 6)
            is_accepted = automaton.accepts(f"{value:.6f}".encode())
            assert not is_accepted or low <= value <= high
            assert is_accepted or not low <= value <= high
            num_accepted += is_accepted
        assert num_accepted > 20


def test_free_objects_nest_up_to_the_depth():
    assert accepts(unmask.json_object(2), '{"a": {"b": [], "c": -1.5e3}, "d": "x\\"y"}') is False
    assert accepts(unmask.json_object(3), '{"a": {"b": [], "c": -1.5e3}, "d": "x\\"y"}')
    assert accepts(unmask.json_object(1), "{}")
    assert not accepts(unmask.json_object(1), "[]")
    with pytest.raises(GrammarError, match="1 to 5"):
        unmask.json_object(6)


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"not": {}}, "not"),
        ({"if": {}, "then": {}}, "if"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "pattern"),
        ({"type": "string", "format": "hostname"}, "format"),
        ({"type": "string", "frobnicate": 1}, "frobnicate"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "http://example.org/x"}, r"\$ref"),
        ({"$ref": "#/nowhere"}, r"\$ref"),
        ({"type": "strin"}, "strin"),
        ({"properties": {"a": {"type": "array", "contains": {}}}}, r"#/properties/a.*contains"),
    ],
)
def test_an_unsupported_keyword_is_refused_by_name(schema, keyword):
    with pytest.raises(GrammarError, match=keyword):
        unmask.json_schema(schema)


def test_keywords_that_cannot_be_violated_are_accepted():
    schema = {"type": "integer", "minLength": 3, "title": "T", "x-own": 1, "uniqueItems": True}
    assert accepts(unmask.json_schema(schema), "12")
    one_of = {"oneOf": [{"type": "string"}, {"type": "boolean"}]}
    assert accepts(unmask.json_schema(one_of), "true")
    tagged = {
        "oneOf": [
            {"properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in ("a", "b")
        ]
    }
    assert accepts(unmask.json_schema(tagged), '{"kind":"b"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 90_000},
        {"type": "array", "minItems": 3000, "items": {"type": "object"}},
        {"$ref": "#"},
        {"anyOf": [{"properties": {c: {"$ref": "#"} for c in "abcdefghij"}}, {"type": "null"}]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    ],
    ids=["long", "wide", "endless", "branching", "infinite"],
)
def test_a_hostile_schema_is_refused_within_seconds(schema):
    start = time.process_time()
    with pytest.raises(GrammarError):
        compile_node(unmask.json_schema(schema).node())
    assert time.process_time() - start < 5


def test_patterns_are_searched_in_the_unescaped_string():
    schema = {"type": "string", "pattern": '^[a-c"\\\\]+-'}
    constraint = unmask.json_schema(schema)
    for value in ("ab-", 'a"\\-tail', "x-", "ab"):
        assert accepts(constraint, json.dumps(value)) == bool(re.search(schema["pattern"], value))


def token_strings(texts, length):
    """All ways to write one of the texts with tokens, filled with end tokens up to `length`."""

    def write(text):
        if not text:
            yield ()
        for id_, piece in enumerate(PIECES):
            if piece and text.startswith(piece.decode()):
                yield from ((id_, *rest) for rest in write(text[len(piece) :]))

    found = {ids for text in texts for ids in write(text) if len(ids) <= length}
    return {ids + (END,) * (length - len(ids)) for ids in found}


def test_allowed_tokens_equal_brute_force():
    """Vocabulary 12, length 6: every position of canvases with random decided tokens."""
    rng, num_checked = random.Random(0), 0
    for _ in range(12):
        texts = ["".join(rng.choice("abc -") for _ in range(rng.randint(1, 8))) for _ in range(9)]
        strings = token_strings(texts, 6)
        if not strings:
            continue
        automaton = automaton_of(unmask.choice(texts))
        for _ in range(25):
            source = rng.choice(sorted(strings))
            tokens = [id_ if rng.random() < 0.4 else OPEN for id_ in source]
            reach = Reach(automaton, tokens)
            assert reach.is_possible
            for i in range(6):
                others = [t if j != i else OPEN for j, t in enumerate(tokens)]
                fits = {
                    ids[i]
                    for ids in strings
                    if all(t in (OPEN, ids[j]) for j, t in enumerate(others))
                }
                allowed = reach.allowed(i)[automaton.classes]
                assert set(np.flatnonzero(allowed).tolist()) == fits
                num_checked += 1
    assert num_checked > 1000


def test_deciding_one_position_renews_what_the_others_allow():
    rng = random.Random(3)
    automaton = automaton_of(unmask.regex("(ab|ca)*-(a|bc)+"))
    for _ in range(200):
        tokens = [OPEN] * 6
        reach = Reach(automaton, tokens)
        for position in rng.sample(range(6), 6):
            token = rng.randrange(12)
            if reach.put(position, token):
                tokens[position] = token
            fresh = Reach(automaton, tokens)
            assert fresh.is_possible
            assert all((fresh.allowed(i) == reach.allowed(i)).all() for i in range(6))


def test_an_end_token_is_followed_by_end_tokens_only():
    automaton = automaton_of(unmask.regex("a+"))
    allowed = Reach(automaton, [0, END, OPEN]).allowed(2)[automaton.classes]
    assert np.flatnonzero(allowed).tolist() == [END]


def test_the_first_token_may_lose_its_space():
    later = [b" a", b" b", None]
    first = [b"a", b"b", None]
    node = compile_node(unmask.regex("a( a| b)*").node())
    table = token_table(node, TokenTrie.build(later))
    table = table.with_first(token_table(node, TokenTrie.build(first))).with_ends([2])
    automaton = TokenAutomaton(table)
    assert Reach(automaton, [0, 1, 0, 2]).is_possible
    assert not Reach(automaton, [1, 0, OPEN, OPEN]).is_possible
    loops = compile_node(unmask.regex("( a)*").node())  # the start is entered again
    table = token_table(loops, TokenTrie.build(later))
    table = table.with_first(token_table(loops, TokenTrie.build(first))).with_ends([2])
    assert not Reach(TokenAutomaton(table), [0, 0, 2]).is_possible
    assert Reach(TokenAutomaton(table), [2, 2, 2]).is_possible


def test_a_schema_of_20_fields_compiles_for_a_large_vocabulary_in_seconds():
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 _-.,:{}[]\"'\n"
    pieces = [bytes([i]) for i in range(256)]
    pieces += ["".join(rng.choices(letters, k=rng.randint(2, 9))).encode() for _ in range(30_000)]
    kinds = [{"type": "string"}, {"type": "number"}, {"enum": ["red", "blue"]}, {"type": "boolean"}]
    fields = {f"field_{i}": kinds[i % 4] for i in range(20)}
    constraint = unmask.json_schema({"properties": fields, "required": list(fields)})
    start = time.process_time()
    automaton = automaton_of(constraint, [*pieces, None], [len(pieces)])
    assert time.process_time() - start < 4
    assert automaton.num_classes < 2000
    assert Reach(automaton, [OPEN] * 300).is_possible


def random_pieces(count):
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:{}[]\"'\n"
    pieces = ["".join(rng.choices(letters, k=rng.randint(2, 9))).encode() for _ in range(count)]
    return [*(bytes([code]) for code in range(256)), *pieces]


LONG_FIELDS = {f"field_{i}": {"type": "string", "maxLength": 50} for i in range(20)}
WORDS = [
    "".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=4 + i % 7))
    for i in range(1000)
]


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        (
            unmask.json_schema({"type": "string", "maxLength": 1000}),
            '"' + "é" * 1000 + '"',
            '"' + "é" * 1001 + '"',
        ),
        (
            unmask.json_schema({"properties": LONG_FIELDS, "required": list(LONG_FIELDS)}),
            json.dumps(dict.fromkeys(LONG_FIELDS, "x" * 50)),
            json.dumps(dict.fromkeys(LONG_FIELDS, "x" * 51)),
        ),
        (unmask.json_schema({"enum": WORDS}), f'"{WORDS[999]}"', f'"{WORDS[999]}a"'),
        (unmask.choice(WORDS), WORDS[500], WORDS[500][:-1]),
    ],
    ids=["one long text", "20 texts", "an enum of 1000", "a choice of 1000"],
)
def test_constraints_of_ordinary_size_compile_for_a_large_vocabulary(constraint, inside, outside):
    pieces = random_pieces(20_000)
    start = time.process_time()
    automaton = compile_node(constraint.node())
    table = token_table(automaton, TokenTrie.build([*pieces, None])).with_ends([len(pieces)])
    assert time.process_time() - start < 4
    assert table.table.size < 4_000_000
    assert automaton.accepts(inside.encode())
    assert not automaton.accepts(outside.encode())


def test_texts_share_their_ends():
    """1,000 texts of 9 characters have a state for each place in them, and not one for each beginning."""
    automaton = compile_node(unmask.choice([f"item_{i:04d}" for i in range(1000)]).node())
    assert len(automaton.table) == 11
    assert automaton.accepts(b"item_0999")
    assert not automaton.accepts(b"item_1000")


def test_merged_states_accept_what_they_did():
    rng = random.Random(5)
    for _ in range(100):
        texts = {"".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 12))}
        pattern = f"({'|'.join(sorted(texts))})(b|ab)*|a*"
        automaton, fits = compile_node(unmask.regex(pattern).node()), re.compile(pattern)
        for length in range(8):
            for letters in itertools.product("ab", repeat=length):
                text = "".join(letters)
                assert automaton.accepts(text.encode()) == bool(fits.fullmatch(text)), pattern
        finite = compile_node(unmask.choice(sorted(texts)).node())
        ends = [
            frozenset(text[len(start) :] for text in texts if text.startswith(start))
            for text in texts
            for start in (text[:n] for n in range(len(text) + 1))
        ]
        assert len(finite.table) == 1 + len(set(ends))


@pytest.mark.parametrize(
    "constraint",
    [
        unmask.choice(["".join(random.Random(i).choices("abcdef", k=16)) for i in range(3000)]),
        unmask.json_schema(
            {"enum": ["".join(random.Random(i).choices("abcdef", k=16)) for i in range(3000)]}
        ),
        unmask.regex("[ab]*a[ab]{16}"),
    ],
    ids=["choice", "enum", "regex"],
)
def test_too_many_states_are_refused_in_words_that_suit_texts(constraint):
    with pytest.raises(GrammarError, match="fewer or shorter texts") as error:
        compile_node(constraint.node())
    assert "maxLength" not in str(error.value)
