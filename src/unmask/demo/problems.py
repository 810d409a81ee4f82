"""Grade-school word problems with solutions worked out one equation a line."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from unmask.demo import phrases as ph
from unmask.demo.example import Example
from unmask.demo.story import LIMITS, DeadEndError, Story, divisors

# Shares of one, two and three equations at each level.
LENGTHS: tuple[tuple[int, int, int], ...] = (
    (1, 0, 0),
    (40, 60, 0),
    (20, 50, 30),
    (35, 55, 10),
)


def _containers(story: Story, most: int = 100) -> None:
    a, b = story.factors(most)
    story.say(ph.CONTAINERS, a=a, b=b)
    story.work(("In {cs}", "At first"), a, "*", b)


def _kinds(story: Story) -> None:
    a = story.number(2, story.limits.operand)
    b = story.number(2, min(story.limits.operand, story.limits.total - a))
    story.say(ph.KINDS, a=a, b=b)
    story.work(("In all", "At first"), a, "+", b)


def _start(story: Story, divisible: bool = False) -> None:
    high = story.limits.total if divisible else story.limits.operand
    story.total = story.number(
        2 if divisible else 3, high, lambda n: not divisible or bool(divisors(n, story.limits))
    )
    story.say(ph.START, n=story.total)


def _gain(story: Story, divisible: bool = False) -> None:
    n = story.operand(+1, divisible)
    story.say(ph.GAIN + (ph.GAIN_PLANT if story.thing.kind == "plant" else ()), n=n)
    story.work(("Then", "Now"), story.total, "+", n)


def _loss(story: Story, divisible: bool = False) -> None:
    n = story.operand(-1, divisible)
    extra = {"food": ph.LOSS_FOOD, "fragile": ph.LOSS_FRAGILE}.get(story.thing.kind, ())
    story.say(ph.LOSS + extra, n=n)
    story.work(("Left", "Now"), story.total, "-", n)


def _scale(story: Story) -> None:
    double = story.rng.random() < 0.65
    story.say(ph.DOUBLE if double else ph.TRIPLE)
    story.work(("Twice" if double else "Three times", "Now"), story.total, "*", 2 if double else 3)


def _half(story: Story) -> None:
    story.say(ph.HALF)
    story.work(("Half", "Left"), story.total, "/", 2)


def _packs(story: Story) -> None:
    before = story.total
    a, b = story.factors(story.limits.operand)
    story.say(ph.PACKS, a=a, b=b)
    story.work(("In {ks}", "New"), a, "*", b)
    story.work(("Then", "Now"), before, "+", story.total)


def _share(story: Story) -> None:
    people = divisors(story.total, story.limits)
    if not people:
        raise DeadEndError
    k = story.rng.choice(people)
    story.say(ph.SHARE, k=k)
    story.work(("Each", "For each"), story.total, "/", k)


def _collection(story: Story, equations: int) -> None:
    """Write a story of one person who gets and loses things."""
    share = story.rng.random() < 0.2
    end = equations - share
    opening = story.rng.random()
    if end and opening < 0.45:
        _containers(story)
    elif end and opening < 0.57:
        _kinds(story)
    else:
        _start(story, divisible=share and not end)
    question: tuple[str, ...] = ph.ASK + ph.ASK_ALL
    while len(story.steps) < end:
        last = share and len(story.steps) == end - 1
        draw = story.rng.random()
        question = ph.ASK
        if draw < 0.18 and end - len(story.steps) >= 2:
            _packs(story)
        elif draw < 0.26 and not last:
            _scale(story)
        elif draw < 0.34 and not last:
            _half(story)
            question = ph.ASK + ph.ASK_LEFT
        elif draw < 0.67:
            _gain(story, divisible=last)
            question = ph.ASK + ph.ASK_ALL
        else:
            _loss(story, divisible=last)
            question = ph.ASK_LEFT + ph.ASK
    if share:
        _share(story)
        question = ph.ASK_SHARE
    story.say(question)


def _comparison(story: Story, equations: int) -> None:
    """Compare what two people have."""
    together = equations >= 2 and (equations == 2 or story.rng.random() < 0.7)
    before = equations - 1 - together
    most = story.limits.operand
    if before and story.rng.random() < 0.6:
        _containers(story, most)
    else:
        _start(story)
    while len(story.steps) < before:
        (_gain if story.rng.random() < 0.5 else _loss)(story)
    own = story.total
    labels = ("{F}", "{F} has")
    draw = story.rng.random()
    if draw < 0.35:
        n = story.operand(+1)
        story.say(ph.MORE, n=n)
        story.work(labels, own, "+", n)
    elif draw < 0.65:
        n = story.operand(-1)
        story.say(ph.FEWER, n=n)
        story.work(labels, own, "-", n)
    else:
        wording, operator, n = story.rng.choice(
            ((ph.TWICE, "*", 2), (ph.THRICE, "*", 3), (ph.HALF_AS, "/", 2))
        )
        story.say(wording)
        story.work(labels, own, operator, n)
    if together:
        if max(own, story.total) > most:
            raise DeadEndError
        story.work(("Together", "In all"), own, "+", story.total)
    story.say(ph.ASK_TOGETHER if together else ph.ASK_FRIEND)


def _price(story: Story, equations: int) -> None:
    """Pay for things in a shop."""
    a, b = story.factors(story.limits.operand)
    story.say(ph.PRICE, a=a, b=b)
    story.work(("Cost", "Price"), a, "*", b)
    if equations == 3 or (equations == 2 and story.rng.random() < 0.4):
        n = story.number(2, min(30, story.limits.operand - story.total))
        story.say(ph.ALSO, n=n)
        story.work(("In all", "Total"), story.total, "+", n)
    if len(story.steps) == equations:
        story.say(ph.ASK_COST)
        return
    paid = story.rng.choice([n for n in (20, 30, 40, 50, 60, 80, 100) if n > story.total])
    story.say(ph.PAY, n=paid)
    story.work(("Change", "Back"), paid, "-", story.total)
    story.say(ph.ASK_CHANGE)


def _money(story: Story, equations: int) -> None:
    """Spend and earn money."""
    story.total = story.number(5, min(100, story.limits.total))
    story.say(ph.MONEY, n=story.total)
    spent = False
    while len(story.steps) < equations:
        before = story.total
        spent = story.rng.random() < 0.6
        if equations - len(story.steps) >= 2 and story.rng.random() < 0.6:
            a, b = story.factors(min(story.limits.operand, before - 1 if spent else 60))
            story.say(ph.SPEND_EACH if spent else ph.EARN_EACH, a=a, b=b)
            story.work(("Cost", "Price") if spent else ("Pay", "New"), a, "*", b)
            story.work(
                ("Left", "Now") if spent else ("Then", "Now"),
                before,
                "-" if spent else "+",
                story.total,
            )
        else:
            n = story.operand(-1 if spent else +1)
            story.say(ph.SPEND if spent else ph.EARN, n=n)
            story.work(
                ("Left", "Now") if spent else ("Then", "Now"), before, "-" if spent else "+", n
            )
    story.say(ph.ASK_MONEY_LEFT if spent else ph.ASK_MONEY)


def _distance(story: Story, equations: int) -> None:
    """Cover a distance day by day."""
    a, b = story.factors()
    story.say(ph.DAYS, a=a, b=b)
    story.work(("In days", "At first"), a, "*", b)
    friend = equations == 3 or (equations == 2 and story.rng.random() < 0.3)
    if equations - friend > 1:
        n = story.operand(+1)
        story.say(ph.FURTHER, n=n)
        story.work(("Then", "In all"), story.total, "+", n)
    if friend:
        sign, wording = story.rng.choice(((+1, ph.FRIEND_KM_MORE), (-1, ph.FRIEND_KM_LESS)))
        n = story.operand(sign)
        story.say(wording, n=n)
        story.work(("{F}", "{F} goes"), story.total, "+" if sign > 0 else "-", n)
    story.say(ph.ASK_KM_FRIEND if friend else ph.ASK_KM)


def _bus(story: Story, equations: int) -> None:
    """Count the people on a bus, train, boat or tram."""
    story.total = story.number(4, story.limits.operand)
    story.say(ph.ABOARD, n=story.total)
    for _ in range(equations):
        draw = story.rng.random()
        if draw < 0.45:
            n = story.operand(+1)
            story.say(ph.GET_ON, n=n)
            story.work(("Then", "Now"), story.total, "+", n)
        elif draw < 0.9:
            n = story.operand(-1)
            story.say(ph.GET_OFF, n=n)
            story.work(("Left", "Now"), story.total, "-", n)
        else:
            story.say(ph.HALF_OFF)
            story.work(("Half", "Left"), story.total, "/", 2)
    story.say(ph.ASK_ABOARD)


def _pages(story: Story, equations: int) -> None:
    """Read a book."""
    pages = story.number(20, story.limits.total)
    story.say(ph.BOOK, n=pages)
    story.total = pages
    if equations > 1 and (equations == 3 or story.rng.random() < 0.7):
        a, b = story.factors(min(story.limits.operand, pages - 1))
        story.say(ph.READ_DAYS, a=a, b=b)
        story.work(("Read", "In days"), a, "*", b)
        story.work(("Left", "Still"), pages, "-", story.total)
    else:
        n = story.operand(-1)
        story.say(ph.READ, n=n)
        story.work(("Left", "Still"), pages, "-", n)
    while len(story.steps) < equations:
        n = story.operand(-1)
        story.say(ph.READ_MORE, n=n)
        story.work(("Left", "Still"), story.total, "-", n)
    story.say(ph.ASK_PAGES)


WORLDS: tuple[Callable[[Story, int], None], ...] = (
    _collection,
    _comparison,
    _price,
    _money,
    _distance,
    _bus,
    _pages,
)
WEIGHTS: tuple[int, ...] = (44, 14, 10, 10, 7, 7, 8)


def key_of(steps: Sequence[tuple[str, int, str, int, int]]) -> str:
    """Write the chain of equations, factors in ascending order, without the labels."""
    parts = []
    for _, left, operator, right, result in steps:
        if operator == "*":
            left, right = sorted((left, right))
        parts.append(f"{left}{operator}{right}={result}")
    return ";".join(parts)


def word_problem(rng: random.Random, level: int = 4, equations: int | None = None) -> Example:
    """Draw a word problem of the given curriculum level (or exact number of equations)."""
    if equations is None:
        equations = rng.choices((1, 2, 3), LENGTHS[level - 1])[0]
    world = rng.choices(WORLDS, WEIGHTS)[0]
    while True:
        story = Story(rng, LIMITS[level - 1])
        try:
            world(story, equations)
        except DeadEndError:
            continue
        lines = [f"{label}: {a}{op}{b}={c}" for label, a, op, b, c in story.steps]
        lines.append(f"#### {story.total}")
        return Example(
            "word_problem", " ".join(story.sentences), "\n".join(lines), key_of(story.steps)
        )


def check_word_problem(example: Example, output: str) -> bool:
    """Return whether the output's last line is the expected ``#### N``."""
    lines = output.strip().splitlines()
    return bool(lines) and lines[-1] == example.answer.splitlines()[-1]
