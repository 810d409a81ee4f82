"""Random constraints against independent readers: grammars, regular expressions and JSON schemas."""

from __future__ import annotations

import itertools
import json
import random
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unmask
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node

RUNS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SIZE = 5
"""Length of the longest texts of grammars that are compared."""

# Grammars: a part is a text, or a tuple of its kind and what is in it.


def written(part):
    """The part in GBNF."""
    if isinstance(part, str):
        return f'"{part}"'
    kind, *inner = part
    if kind == "rule":
        return inner[0]
    if kind == "times":
        item, low, high = inner
        return f"({written(item)}){{{low},{'' if high is None else high}}}"
    return f"({(' ' if kind == 'order' else ' | ').join(map(written, inner[0]))})"


def joined(first, second):
    return {a + b for a in first for b in second if len(a) + len(b) <= SIZE}


def texts_of(part, rule):
    """All texts of up to `SIZE` letters of a part; `rule(name)` has those of a rule."""
    if isinstance(part, str):
        return {part}
    kind, *inner = part
    if kind == "rule":
        return rule(inner[0])
    if kind == "either":
        return set().union(*(texts_of(each, rule) for each in inner[0]))
    if kind == "order":
        found = {""}
        for each in inner[0]:
            found = joined(found, texts_of(each, rule))
        return found
    item, low, high = inner
    once, found, level = texts_of(item, rule), set(), {""}
    for count in range(SIZE + low + 1 if high is None else high + 1):
        found |= level if count >= low else set()
        level = joined(level, once)
    return found


def all_texts(rules):
    """The texts of `root`, by the least fixed point."""
    table = {name: set() for name in rules}
    while True:
        more = {name: texts_of(part, table.__getitem__) for name, part in rules.items()}
        if more == table:
            return table["root"]
        table = more


def shallow_texts(rules, depth):
    """The texts of `root` in whose derivation every rule stands up to `depth` times within itself."""

    def rule(chain):
        def texts(name):
            if chain.count(name) >= depth:
                return set()
            return texts_of(rules[name], rule((*chain, name)))

        return texts

    return rule(())("root")


NAMES = ["root", "x", "y"]
LETTERS = st.sampled_from(["a", "b", ",", ""])
USES = st.sampled_from(NAMES).map(lambda name: ("rule", name))


def orders(parts):
    return st.lists(parts, min_size=1, max_size=3).map(lambda each: ("order", tuple(each)))


def eithers(parts):
    return st.lists(parts, min_size=1, max_size=3).map(lambda each: ("either", tuple(each)))


def repeats(parts):
    bounds = st.sampled_from([(0, None), (1, None), (0, 1), (0, 2), (1, 2), (2, None)])
    return st.tuples(parts, bounds).map(lambda each: ("times", each[0], *each[1]))


PARTS = st.recursive(
    LETTERS | USES, lambda inner: orders(inner) | eithers(inner) | repeats(inner), max_leaves=6
)
FLAT = st.recursive(LETTERS, lambda inner: orders(inner) | eithers(inner), max_leaves=3)


@st.composite
def ending_parts(draw, is_tail):
    """A part with uses of rules at its end (its beginning) only."""
    kind = draw(st.sampled_from(["rule", "flat", "order", "either", "optional"]))
    if kind == "rule":
        return draw(USES)
    if kind == "flat":
        return draw(FLAT)
    if kind == "either":
        return ("either", tuple(draw(ending_parts(is_tail)) for _ in range(2)))
    if kind == "optional":
        return ("times", draw(ending_parts(is_tail)), 0, 1)
    parts = [draw(FLAT), draw(ending_parts(is_tail))]
    return ("order", tuple(parts if is_tail else parts[::-1]))


def accepted(rules, depth):
    """The texts of up to `SIZE` letters that the automaton accepts; None if the grammar is refused."""
    source = "\n".join(f"{name} ::= {written(part)}" for name, part in rules.items())
    try:
        automaton = compile_node(unmask.ebnf(source, depth).node())
    except GrammarError:
        return None
    strings = ("".join(s) for n in range(SIZE + 1) for s in itertools.product("ab,", repeat=n))
    return {text for text in strings if automaton.accepts(text.encode())}


@RUNS
@given(st.tuples(PARTS, PARTS, PARTS), st.integers(1, 2))
def test_a_grammar_has_all_shallow_texts_and_no_text_that_is_not_derived(parts, depth):
    rules = dict(zip(NAMES, parts, strict=True))
    found = accepted(rules, depth)
    if found is None:
        return
    assert found <= all_texts(rules)
    assert shallow_texts(rules, depth) <= found


@RUNS
@given(st.booleans(), st.data())
def test_a_grammar_with_rules_at_one_end_only_has_all_its_texts(is_tail, data):
    rules = {name: data.draw(ending_parts(is_tail), label=name) for name in NAMES}
    found = accepted(rules, 1)
    assert (found or set()) == all_texts(rules)


# Regular expressions

PIECES = [
    "a", "b", "1", "-", "|", "(", ")", "(?:", "(?P<n>", "(?P<m>", "[", "[^", "]", "^", "$", "*", "+", "?",
    "{2}", "{,2}", "{1,", "{", "}", "{}", ",", ".", "\\", "0", "7", r"\d", r"\w", r"\S", r"\b", r"\x61",
    r"\1", r"\101", r"\|", r"\^", r"\Z", "(?=", "é",
]  # fmt: skip


def python_reads(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sets that may change their meaning
        try:
            return re.compile(pattern, re.ASCII)
        except (re.error, OverflowError):
            return None


@settings(RUNS, max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.integers(0, 99))
def test_a_regular_expression_means_what_python_reads(pattern, seed):
    try:
        automaton = compile_node(unmask.regex(pattern).node())
    except GrammarError:
        return
    fits, rng = python_reads(pattern), random.Random(seed)
    assert fits is not None
    texts = ["".join(rng.choices("ab17-é|^\\{},0A\n\x01", k=rng.randint(0, 5))) for _ in range(30)]
    for text in [*texts, *(walk(automaton, rng) for _ in range(5))]:
        assert automaton.accepts(text.encode()) == bool(fits.fullmatch(text)), text


def walk(automaton, rng):
    """A random text of an automaton: some random steps, then the shortest way to an end."""
    distance = np.full(len(automaton.table), 1 << 30)
    distance[automaton.accepting] = 0
    while True:
        nearer = np.where(automaton.table > 0, distance[automaton.table], 1 << 30).min(1) + 1
        if (nearer >= distance).all():
            break
        distance = np.minimum(distance, nearer)
    state, data, wander = 1, bytearray(), rng.randint(0, 25)
    while True:
        if automaton.accepting[state] and (wander <= 0 or rng.random() < 0.1):
            return data.decode()
        after = automaton.table[state]
        kinds = np.flatnonzero(after)
        if not len(kinds):
            return data.decode()
        if wander <= 0:
            kinds = kinds[distance[after[kinds]] == distance[after[kinds]].min()]
        kind = rng.choice(kinds.tolist())
        data.append(rng.choice(np.flatnonzero(automaton.classes == kind).tolist()))
        state, wander = int(after[kind]), wander - 1


# JSON schemas

BOUND = st.sampled_from([-3, -1.5, -1, 0, 0.5, 1, 1.0, 1.5, 2, 3.25, 1e-7, 100])
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, 1.0, 2, 1.5, -1, "", "a", "ab", "é\n", [1], {"k": 1}]
)
KINDS = ["string", "integer", "number", "array", "object", "boolean", "null"]
KIND = st.sampled_from(KINDS) | st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)
SMALL = st.integers(0, 3)


def keywords(inner):
    """Every supported keyword with the values that it may have."""
    options = st.lists(inner, min_size=1, max_size=3)
    return {
        "type": KIND, "minLength": SMALL, "maxLength": SMALL,
        "pattern": st.sampled_from(["a", "^a+$", "b$", r"^\d{2}", "a|b", "[^a]"]),
        "minimum": BOUND, "maximum": BOUND, "exclusiveMinimum": BOUND, "exclusiveMaximum": BOUND,
        "items": inner, "prefixItems": options, "minItems": SMALL, "maxItems": SMALL,
        "unevaluatedItems": inner,
        "properties": st.dictionaries(st.sampled_from("kab"), inner, max_size=3),
        "required": st.lists(st.sampled_from("kab"), max_size=2),
        "additionalProperties": inner, "unevaluatedProperties": inner,
        "anyOf": options, "oneOf": options, "allOf": inner.map(lambda each: [each]),
        "const": SCALARS, "enum": st.lists(SCALARS, min_size=1, max_size=3),
        "$ref": st.sampled_from(["#", "#/$defs/d"]), "title": st.just("T"), "uniqueItems": st.just(False),
    }  # fmt: skip


TAGGED = st.tuples(KIND, SCALARS, st.sampled_from([["k"], []])).map(
    lambda each: {"type": each[0], "properties": {"k": {"const": each[1]}}, "required": each[2]}
)


@st.composite
def one_kind(draw, inner):
    """A schema with a type and keywords of it, which is refused less often than one with any."""
    kind = draw(st.sampled_from(["string", "number", "integer", "array", "object"]))
    own = {
        "string": ["minLength", "maxLength", "pattern"],
        "array": ["items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"],
        "object": ["properties", "required", "additionalProperties", "unevaluatedProperties"],
    }.get(kind, ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
    chosen = draw(st.lists(st.sampled_from(own), max_size=3, unique=True))
    return {"type": kind, **{name: draw(keywords(inner)[name]) for name in chosen}}


def schemas(inner):
    mixed = st.fixed_dictionaries({}, optional=keywords(inner))
    few = st.lists(st.sampled_from(sorted(keywords(inner))), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: keywords(inner)[name] for name in names})
    )
    compound = st.tuples(
        st.sampled_from(["anyOf", "oneOf"]), st.lists(inner | TAGGED, min_size=2, max_size=3), KIND
    ).map(lambda each: {each[0]: each[1], "type": each[2]})
    return one_kind(inner) | few | compound | mixed


SCHEMAS = schemas(
    st.recursive(st.booleans() | TAGGED | st.builds(dict, type=KIND), schemas, max_leaves=4)
)


def is_type(value, kind):
    if kind in ("integer", "number"):
        is_number = isinstance(value, int | Fraction) and not isinstance(value, bool)
        return is_number and (kind == "number" or Fraction(value).denominator == 1)
    names = {"string": str, "array": list, "object": dict, "boolean": bool, "null": type(None)}
    return isinstance(value, names[kind])


def is_equal(first, second):
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(is_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(is_equal(first[k], second[k]) for k in first)
    return first == second


def is_valid(value, schema, document):
    """JSON Schema 2020-12, for the keywords above; nothing is refused."""
    if isinstance(schema, bool):
        return schema
    check = lambda inner, each=value: is_valid(each, inner, document)  # noqa: E731
    tests = {
        "type": lambda v: any(is_type(value, kind) for kind in ([v] if isinstance(v, str) else v)),
        "const": lambda v: is_equal(value, v),
        "enum": lambda v: any(is_equal(value, each) for each in v),
        "anyOf": lambda v: any(map(check, v)),
        "allOf": lambda v: all(map(check, v)),
        "oneOf": lambda v: sum(map(check, v)) == 1,
        "$ref": lambda v: check(document if v == "#" else document["$defs"]["d"]),
    }
    if isinstance(value, str):
        tests |= {
            "minLength": lambda v: len(value) >= v,
            "maxLength": lambda v: len(value) <= v,
            "pattern": lambda v: re.search(v, value, re.ASCII),
        }
    if is_type(value, "number"):
        tests |= {
            "minimum": lambda v: value >= Fraction(str(v)),
            "maximum": lambda v: value <= Fraction(str(v)),
            "exclusiveMinimum": lambda v: value > Fraction(str(v)),
            "exclusiveMaximum": lambda v: value < Fraction(str(v)),
        }
    if isinstance(value, list):
        rest = value[len(schema.get("prefixItems", ())) :]
        tests |= {
            "minItems": lambda v: len(value) >= v,
            "maxItems": lambda v: len(value) <= v,
            "prefixItems": lambda v: all(check(s, each) for s, each in zip(v, value, strict=False)),
            "items": lambda v: all(check(v, each) for each in rest),
            "unevaluatedItems": lambda v: "items" in schema or all(check(v, each) for each in rest),
        }
    if isinstance(value, dict):
        named = schema.get("properties", {})
        others = [each for name, each in value.items() if name not in named]
        tests |= {
            "required": lambda v: all(name in value for name in v),
            "properties": lambda v: all(check(v[name], value[name]) for name in v if name in value),
            "additionalProperties": lambda v: all(check(v, each) for each in others),
            "unevaluatedProperties": lambda v: (
                "additionalProperties" in schema or all(check(v, each) for each in others)
            ),
        }
    return all(test(schema[keyword]) for keyword, test in tests.items() if keyword in schema)


NUM_CHECKED = {"texts": 0}


@settings(RUNS, max_examples=200)
@given(SCHEMAS, SCHEMAS, st.integers(0, 9))
def check_schema(schema, definition, seed):
    document = {**schema, "$defs": {"d": definition}} if isinstance(schema, dict) else schema
    try:
        automaton = compile_node(unmask.json_schema(document).node())
    except GrammarError:
        return
    rng = random.Random(seed)
    for _ in range(8):
        text = walk(automaton, rng)
        value = json.loads(text, parse_float=Fraction)
        assert is_valid(value, document, document), text
        NUM_CHECKED["texts"] += 1


def test_every_text_of_a_schema_is_valid_by_it():
    check_schema()
    assert NUM_CHECKED["texts"] > 300


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1, {"type": "integer"}, True),
        (Fraction(1), {"type": "integer"}, True),
        (True, {"enum": [1]}, False),
        (1, {"oneOf": [{"const": 1}, {"const": 1.0}]}, False),
        ({"a": 1}, {"unevaluatedProperties": False}, False),
        ("5", {"type": "string", "anyOf": [{"type": "integer"}]}, False),
    ],
)
def test_the_reader_of_these_tests_knows_json_schema(value, schema, expected):
    assert is_valid(value, schema, schema) == expected
