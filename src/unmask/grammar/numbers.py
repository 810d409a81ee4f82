"""JSON numbers within bounds, as syntax trees over their decimal digits."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from unmask.grammar.nodes import EMPTY, NOTHING, Chars, Node, Repeat, concat, either, optional

DIGIT = Chars(((48, 57),))
NON_ZERO = Chars(((49, 57),))
MIN_DECIMALS, MAX_DECIMALS = 6, 20
"""Least and greatest limit of the decimals of a bounded number."""
MAX_INTEGER = 10**18 - 1
"""Integers have at most 18 digits, those of bounded numbers 15."""
MAX_BOUNDED = 10**15 - 1

_MAGNITUDE = either((concat("0"), concat(NON_ZERO, Repeat(DIGIT, 0, 17))))
_EXPONENT = concat(Chars(((69, 69), (101, 101))), optional(either("+-")), Repeat(DIGIT, 1, 2))
INTEGER = concat(optional(concat("-")), _MAGNITUDE)
NUMBER = concat(INTEGER, optional(concat(".", Repeat(DIGIT, 1, 15))), optional(_EXPONENT))


def integers(low: int | None, high: int | None) -> Node:
    """Return the integers in `[low, high]`; None: no bound."""
    if low is None and high is None:
        return INTEGER
    least = -MAX_INTEGER if low is None else max(low, -MAX_INTEGER)
    most = MAX_INTEGER if high is None else min(high, MAX_INTEGER)
    options: list[Node] = []
    if least < 0 and least <= most:
        options.append(concat("-", _naturals(max(1, -most), -least)))
    if most >= 0 and least <= most:
        options.append(_naturals(max(0, least), most))
    return either(options)


def decimals(
    low: Decimal | None, high: Decimal | None, *, above: bool = False, below: bool = False
) -> Node:
    """Return numbers in `[low, high]` without exponents; exclusive bounds with `above`, `below`.

    They have up to 6 decimals, or one more than the bound with most (at most 20), and zeros may end them.
    Without bounds, all numbers.
    """
    if low is None and high is None:
        return NUMBER
    places = max(MIN_DECIMALS, *(1 + _num_decimals(bound) for bound in (low, high)))
    unit = 10 ** min(places, MAX_DECIMALS)
    first, last = -MAX_BOUNDED * unit, MAX_BOUNDED * unit
    if low is not None:
        scaled = Fraction(low) * unit
        first = max(first, floor(scaled) + 1 if above else ceil(scaled))
    if high is not None:
        scaled = Fraction(high) * unit
        last = min(last, ceil(scaled) - 1 if below else floor(scaled))
    options: list[Node] = []
    if first < 0 and first <= last:
        options.append(concat("-", _fixed(max(1, -last), -first, unit)))
    if last >= 0 and first <= last:
        options.append(_fixed(max(0, first), last, unit))
    return either(options)


def _num_decimals(bound: Decimal | None) -> int:
    """Return the number of decimals of a bound without zeros at their end."""
    if not bound:
        return 0
    exponent = bound.normalize().as_tuple().exponent
    assert isinstance(exponent, int), "bounds are finite"
    return max(0, -exponent)


def _fixed(first: int, last: int, unit: int) -> Node:
    """Return the numbers from `first` to `last` units, both at least 0; 1 is `unit` of them."""
    size = len(str(unit)) - 1
    (low, low_part), (high, high_part) = divmod(first, unit), divmod(last, unit)
    if low == high:
        return concat(str(low), _fraction(low_part, high_part, size))
    options: list[Node] = []
    if low_part > 0:
        options.append(concat(str(low), _fraction(low_part, unit - 1, size)))
        low += 1
    if high_part < unit - 1:
        options.append(concat(str(high), _fraction(0, high_part, size)))
        high -= 1
    if low <= high:
        options.append(concat(_naturals(low, high), _fraction(0, unit - 1, size)))
    return either(options)


def _fraction(first: int, last: int, size: int) -> Node:
    """Return a point and decimals, or nothing for 0, from `first` to `last` units of `size` decimals."""
    some = concat(".", _decimals(f"{first:0{size}d}", f"{last:0{size}d}"))
    return optional(some) if first == 0 else some


def _decimals(low: str, high: str) -> Node:
    """Return 1 to n decimals that, with zeros after them, lie between two texts of n digits."""
    size = len(low) - 1
    if not low.strip("0") and not high.strip("9"):
        return Repeat(DIGIT, 1, size + 1)
    first, last = int(low[0]), int(high[0])
    if first == last:
        return concat(low[0], _more_decimals(low[1:], high[1:]))
    options: list[Node] = []
    if low[1:].strip("0"):
        options.append(concat(low[0], _more_decimals(low[1:], "9" * size)))
        first += 1
    if high[1:].strip("9"):
        options.append(concat(high[0], _more_decimals("0" * size, high[1:])))
        last -= 1
    if first <= last:
        options.append(concat(Chars(((48 + first, 48 + last),)), Repeat(DIGIT, 0, size)))
    return either(options)


def _more_decimals(low: str, high: str) -> Node:
    """Return 0 to n decimals between two texts of n digits."""
    if not low:
        return EMPTY
    some = _decimals(low, high)
    return some if low.strip("0") else optional(some)


def _naturals(low: int, high: int) -> Node:
    """Return the natural numbers in `[low, high]`."""
    options: list[Node] = []
    for size in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = min(high, 10**size - 1)
        options.append(_digits(str(least), str(most)))
    return either(options) if options else NOTHING


def _digits(low: str, high: str) -> Node:
    """Return the texts of digits between two of equal length."""
    size = len(low)
    if not size:
        return EMPTY
    if low == "0" * size and high == "9" * size:
        return Repeat(DIGIT, size, size)
    if low[0] == high[0]:
        return concat(low[0], _digits(low[1:], high[1:]))
    first, last = int(low[0]), int(high[0])
    options: list[Node] = []
    if low[1:] != "0" * (size - 1):
        options.append(concat(low[0], _digits(low[1:], "9" * (size - 1))))
        first += 1
    if high[1:] != "9" * (size - 1):
        options.append(concat(high[0], _digits("0" * (size - 1), high[1:])))
        last -= 1
    if first <= last:
        middle = Chars(((48 + first, 48 + last),))
        options.append(concat(middle, Repeat(DIGIT, size - 1, size - 1)))
    return either(options)
