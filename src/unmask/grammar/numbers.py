"""JSON numbers within bounds, as syntax trees over their decimal digits."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from unmask.grammar.nodes import EMPTY, NOTHING, Chars, Node, Repeat, concat, either, optional

DIGIT = Chars(((48, 57),))
NON_ZERO = Chars(((49, 57),))
NUM_DECIMALS = 6
UNIT = 10**NUM_DECIMALS
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
    """Return numbers in `[low, high]` with up to 6 decimals; exclusive bounds with `above`, `below`.

    Numbers whose integer part is that of a bound have exactly 6 decimals, or none.
    """
    if low is None and high is None:
        return NUMBER
    first, last = -MAX_BOUNDED * UNIT, MAX_BOUNDED * UNIT
    if low is not None:
        scaled = int((low * UNIT).to_integral_value(ROUND_CEILING))
        first = max(first, scaled + (above and scaled == low * UNIT))
    if high is not None:
        scaled = int((high * UNIT).to_integral_value(ROUND_FLOOR))
        last = min(last, scaled - (below and scaled == high * UNIT))
    options: list[Node] = []
    if first < 0 and first <= last:
        options.append(concat("-", _units(max(1, -last), -first)))
    if last >= 0 and first <= last:
        options.append(_units(max(0, first), last))
    return either(options)


def _units(first: int, last: int) -> Node:
    """Return the numbers from `first` to `last` millionths, both at least 0."""
    (low, low_part), (high, high_part) = divmod(first, UNIT), divmod(last, UNIT)
    options: list[Node] = []
    if low == high and (low_part, high_part) != (0, UNIT - 1):
        options.append(_with_decimals(low, low_part, high_part))
        return either(options)
    if low_part > 0:
        options.append(_with_decimals(low, low_part, UNIT - 1))
        low += 1
    if high_part < UNIT - 1:
        options.append(_with_decimals(high, 0, high_part))
        high -= 1
    if low <= high:
        fraction = optional(concat(".", Repeat(DIGIT, 1, NUM_DECIMALS)))
        options.append(concat(_naturals(low, high), fraction))
    return either(options)


def _with_decimals(integer: int, first: int, last: int) -> Node:
    """Return `integer` with decimals from `first` to `last` millionths, or none if `first` is 0."""
    span = _digits(f"{first:0{NUM_DECIMALS}d}", f"{last:0{NUM_DECIMALS}d}")
    exact = concat(str(integer), ".", span)
    return either((exact, str(integer))) if first == 0 else exact


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
