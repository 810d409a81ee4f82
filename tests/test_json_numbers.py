"""Numbers of JSON schemas: bounds, with and without decimals."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

import unmask
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node


def automaton(schema):
    return compile_node(unmask.json_schema(schema).node())


BOUNDS = [
    {"minimum": 1.5, "maximum": 3},
    {"minimum": -3.5, "maximum": -1.5},
    {"maximum": -1.5},
    {"exclusiveMinimum": 0.5, "maximum": 2.5},
    {"exclusiveMinimum": -0.5, "exclusiveMaximum": 0.5},
    {"exclusiveMinimum": 1, "exclusiveMaximum": 4},
    {"exclusiveMinimum": -2.0, "exclusiveMaximum": 2.0},
    {"minimum": 1e-7, "maximum": 2},
    {"minimum": -1e-7, "maximum": 1e-7},
    {"minimum": 1, "exclusiveMinimum": 1.5},
    {"maximum": 2, "exclusiveMaximum": 2},
    {"minimum": 9.999999999999998, "maximum": 11.000000000000002},
    {"exclusiveMinimum": -10.5},
]


def digits_up_to(size):
    return [
        "".join(each)
        for n in range(1, size + 1)
        for each in itertools.product("0123456789", repeat=n)
    ]


def is_within(number, bounds):
    value = Fraction(number)
    tests = {
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "exclusiveMaximum": lambda bound: value < bound,
    }
    return all(tests[name](Fraction(str(bound))) for name, bound in bounds.items())


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_integers_are_within_bounds_that_may_have_decimals(bounds):
    found = automaton({"type": "integer", **bounds})
    for number in range(-130, 130):
        assert found.accepts(str(number).encode()) == is_within(number, bounds), number


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 1.5, "maximum": 1.7},
        {"minimum": -1.7, "maximum": -1.5},
        {"exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"exclusiveMinimum": 0, "maximum": 1e-7},
        {"minimum": 3, "maximum": 2},
        {"minimum": 10**18},
        {"maximum": -1e300},
        {"minimum": 10**4000},
    ],
    ids=lambda bounds: str(bounds)[:40],
)
def test_bounds_without_an_integer_between_them_are_refused_with_their_place(bounds):
    with pytest.raises(GrammarError, match="#/properties/n.*(no integer|digits)"):
        unmask.json_schema({"properties": {"n": {"type": "integer", **bounds}}})


@pytest.mark.parametrize("bound", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_bound_that_is_no_finite_number_is_refused(bound):
    with pytest.raises(GrammarError, match="no JSON"):
        unmask.json_schema(f'{{"type": "integer", "maximum": {bound}}}')


def test_huge_bounds_allow_what_is_between_them():
    found = automaton({"type": "integer", "minimum": -(10**300), "maximum": 1e300})
    assert found.accepts(b"-999999999999999999")
    assert found.accepts(b"999999999999999999")
    edge = automaton({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3})
    texts = [str(2**53 + k) for k in range(6)]
    assert [edge.accepts(text.encode()) for text in texts] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


DECIMALS = [
    "",
    *("." + each for each in digits_up_to(2)),
    ".000001",
    ".999999",
    ".500001",
    ".499999",
]
TEXTS = [sign + str(n) + part for sign in ("", "-") for n in range(13) for part in DECIMALS]


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 0.5},
        {"maximum": 10.5},
        {"exclusiveMaximum": -0.25},
        {"minimum": -0.25, "maximum": 0.5},
        {"exclusiveMinimum": 0.5, "exclusiveMaximum": 1.5},
        {"minimum": 1.05, "maximum": 11.3},
        {"exclusiveMinimum": -10, "maximum": -1},
        {"minimum": 3, "maximum": 3},
        {"minimum": 0.999999, "maximum": 1.000001},
        {"exclusiveMinimum": 1.0, "exclusiveMaximum": 1.02},
    ],
    ids=str,
)
def test_bounded_numbers_have_all_their_shorter_and_longer_decimals(bounds):
    found = automaton({"type": "number", **bounds})
    for text in TEXTS:
        is_minus_zero = text[0] == "-" and Fraction(text) == 0
        assert found.accepts(text.encode()) == (is_within(text, bounds) and not is_minus_zero), text


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"minimum": 0.5}, ["0.5", "0.50", "0.75", "7"], ["0.4", "0.499999", "5e-1", "0.5000000", "-1"]),
        ({"maximum": 100.5}, ["100.5", "100", "100.500000", "-1.5"], ["100.51", "101", "1e2"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-7}, ["0.0000001", "0.00000001"], ["0", "0.0", "0.0000002"]),
        ({"minimum": 0.30000000000000004, "maximum": 0.4}, ["0.30000000000000004", "0.4"], ["0.3"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-20}, ["0.00000000000000000001"], ["0.0"]),
        ({"minimum": 1e-300}, ["0.00000000000000000001", "1"], ["0", "0.0"]),
        ({"maximum": 1e300}, ["999999999999999", "-1.5"], ["9999999999999999"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_decimals_of_bounded_numbers(bounds, inside, outside):
    found = automaton({"type": "number", **bounds})
    assert all(found.accepts(text.encode()) for text in inside)
    assert not any(found.accepts(text.encode()) for text in outside)


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 1, "exclusiveMaximum": 1},
        {"exclusiveMinimum": 0, "maximum": 1e-21},
        {"minimum": 2.5, "maximum": 1.5},
        {"minimum": 1e300},
    ],
    ids=str,
)
def test_bounds_without_a_number_between_them_are_refused(bounds):
    with pytest.raises(GrammarError, match="#: .*no number"):
        unmask.json_schema({"type": "number", **bounds})
