"""Two exactly checkable puzzles: 4x4 sudoku and countdown with three numbers."""

from __future__ import annotations

import functools
import itertools
import random
import re

from unmask.demo.example import Example

SUDOKU_HEADER = "Sudoku\n"
COUNTDOWN_HEADER = "Countdown "
# Fewest and most blank cells at each curriculum level.
BLANKS: tuple[tuple[int, int], ...] = ((4, 6), (4, 8), (4, 10), (4, 10))
# Largest number of a countdown at each curriculum level.
LARGEST: tuple[int, ...] = (20, 50, 99, 99)
# How often each pair of operators solves a puzzle of the public test set.
OPERATORS: dict[str, int] = {
    "--": 288,
    "+-": 226,
    "-+": 174,
    "-*": 62,
    "/+": 48,
    "/-": 40,
    "*-": 39,
    "++": 35,
    "-/": 23,
    "*/": 19,
    "+/": 17,
    "*+": 16,
    "/*": 8,
    "//": 4,
    "+*": 1,
}
EQUATION = re.compile(r"(0|[1-9][0-9]*)([-+*/])(0|[1-9][0-9]*)=(0|[1-9][0-9]*)")


@functools.cache
def grids() -> tuple[str, ...]:
    """Return the 288 complete 4x4 grids, each as 16 digits."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    grids = []
    for a, b in itertools.product(rows, rows):
        if set(a[:2]) & set(b[:2]):
            continue
        for c, d in itertools.product(rows, rows):
            if not set(c[:2]) & set(d[:2]) and all(
                len(set(column)) == 4 for column in zip(a, b, c, d, strict=True)
            ):
                grids.append(a + b + c + d)
    return tuple(grids)


@functools.cache
def _having() -> dict[tuple[int, str], int]:
    """Map a cell and its digit to the set of grids that have it, as bits of an integer."""
    sets: dict[tuple[int, str], int] = {}
    for number, grid in enumerate(grids()):
        for place in enumerate(grid):
            sets[place] = sets.get(place, 0) | 1 << number
    return sets


def solutions(puzzle: str) -> list[str]:
    """Return every grid that completes the 16 digits of a puzzle (0 is blank)."""
    having = _having()
    left = (1 << len(grids())) - 1
    for cell, digit in enumerate(puzzle):
        if digit != "0":
            left &= having.get((cell, digit), 0)
    return [grid for number, grid in enumerate(grids()) if left >> number & 1]


def _is_unique(cells: list[int], grid: str) -> bool:
    having = _having()
    left = -1
    for cell in cells:
        left &= having[cell, grid[cell]]
    return left & (left - 1) == 0


def _rows(digits: str) -> str:
    return "\n".join(digits[i : i + 4] for i in range(0, 16, 4))


def sudoku(rng: random.Random, level: int = 4, blanks: int | None = None) -> Example:
    """Draw a 4x4 sudoku with exactly one solution."""
    if blanks is None:
        blanks = rng.randint(*BLANKS[level - 1])
    if not 0 <= blanks <= 12:
        raise ValueError(f"a 4x4 sudoku with one solution has 0 to 12 blanks, not {blanks}")
    grid = rng.choice(grids())
    while True:
        cells = rng.sample(range(16), 16 - blanks)
        if _is_unique(cells, grid):
            break
    puzzle = _rows("".join(grid[i] if i in cells else "0" for i in range(16)))
    return Example("sudoku", SUDOKU_HEADER + puzzle, _rows(grid), puzzle)


def check_sudoku(example: Example, output: str) -> bool:
    """Return whether the output is exactly the puzzle's only solution."""
    return output.strip() == example.answer


def _combine(left: int, operator: str, right: int) -> tuple[str, int] | None:
    """Write one countdown equation, or return None where it is not allowed.

    As in the public test set, sums and products keep the given order, while differences
    and quotients put the larger number first.
    """
    if operator in "-/" and left < right:
        left, right = right, left
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif right == 0 or left % right:
        return None
    else:
        result = left // right
    return f"{left}{operator}{right}={result}", result


def countdown(rng: random.Random, level: int = 4) -> Example:
    """Draw three numbers and a target two operations away, and one way to get there."""
    operators = rng.choices(list(OPERATORS), list(OPERATORS.values()))[0]
    while True:
        numbers = [rng.randint(1, LARGEST[level - 1]) for _ in range(3)]
        i, j = sorted(rng.sample(range(3), 2))
        first = _combine(numbers[i], operators[0], numbers[j])
        if first is None or first[1] == 0:
            continue
        rest = numbers[3 - i - j]
        second = _combine(rest, operators[1], first[1])
        if second is None or not 10 <= second[1] <= 99:
            continue
        target = second[1]
        shown = ",".join(map(str, (*numbers, target)))
        return Example(
            "countdown",
            COUNTDOWN_HEADER + shown,
            f"{first[0]},{second[0]}",
            countdown_key(numbers, target),
        )


def countdown_key(numbers: list[int], target: int) -> str:
    """Identify a countdown whatever the order of its numbers."""
    return ",".join(map(str, sorted(numbers))) + f"={target}"


def check_countdown(example: Example, output: str) -> bool:
    """Return whether the output is any valid solution of the countdown."""
    *numbers, target = map(int, example.prompt.removeprefix(COUNTDOWN_HEADER).split(","))
    equations = output.strip().split(",")
    if len(equations) != len(numbers) - 1:
        return False
    result = 0
    for text in equations:
        match = EQUATION.fullmatch(text)
        if len(text) > 40 or match is None:
            return False
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        for used in (left, right):
            if used not in numbers:
                return False
            numbers.remove(used)
        value = {"+": left + right, "-": left - right, "*": left * right, "/": -1}[match[2]]
        if match[2] == "/":
            value = left // right if right and left % right == 0 else -1
        if value != result:
            return False
        numbers.append(result)
    return result == target
