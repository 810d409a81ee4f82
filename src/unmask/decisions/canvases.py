"""Questions as canvases with a blank per answer, and what is to be read in the blanks.

Every row is a canvas: the prompt, then a line per question whose end is blank. All rows are read in one
forward each, so that the number of questions costs positions and no forwards.

Layouts. `listed`: the prompt lists the questions, each with its values behind labels (`A`, `B`, ...; for
more than 26 numbers), and the answer's lines hold a number and the blank for a label. `cloze`: the answer's
lines are the instructions, and the blank is for the value itself: "7 + 11 =" and 18.

Estimators, for values of several tokens. `slots`: one canvas with as many blanks as the value has tokens;
its probability is the product over the blanks, as if they were independent. `likelihood`: that of the
tokens from left to right, each given those before it, which takes a canvas per token. Values of different
lengths are read in different canvases, and the probability of a length is not estimated: the number of
blanks tells the model how long the value is. So values of one length are compared best, as labels are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from unmask.canvas import Canvas, new_canvas
from unmask.decisions.questions import DecisionQuestion, value_text
from unmask.engine.prompts import PromptEncoder
from unmask.errors import ConfigError, LengthError, cut_text, unknown_name

Layout = Literal["listed", "cloze"]
Estimator = Literal["slots", "likelihood"]
LAYOUTS = ("listed", "cloze")
ESTIMATORS = ("slots", "likelihood")
MAX_ORDERS = 16
MAX_TEXTS = 4096
"""Maximum number of different values to tokenize."""
MAX_CELLS = 1 << 22
"""Maximum number of log-probabilities that one row returns: positions times tokens."""
PREDICATE_WORDS = {True: "Yes", False: "No"}
ANSWER_ALL = "Answer each question with its label only, in a line of its own."


class TooManyReadsError(ConfigError):
    """A canvas of which more than `MAX_CELLS` numbers would be read."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """The most positions of a canvas (None: those of the model's context), and the most canvases."""

    max_length: int | None = None
    max_rows: int | None = None


NO_LIMITS = RowLimits()


@dataclass(frozen=True, slots=True)
class DecisionOptions:
    """The way in which questions are asked.

    `independent`: each question has canvases of its own, and none sees another; else those that fit into
    one canvas share it. `orders`: number of orders
    of the listed values whose probabilities are averaged. The other two: see the module.
    """

    independent: bool = False
    orders: int = 1
    layout: Layout = "listed"
    estimator: Estimator = "slots"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DecisionOptions:
        """Return options by name. Raises ConfigError for an unknown name."""
        for name in values.keys() - cls.__dataclass_fields__.keys():
            raise unknown_name("option", name, cls.__dataclass_fields__)
        return cls(**values)

    def __post_init__(self) -> None:
        """Raise ConfigError for values that are not allowed."""
        if not isinstance(self.independent, bool):
            raise ConfigError(f"independent={self.independent!r} must be True or False")
        is_whole = isinstance(self.orders, int) and not isinstance(self.orders, bool)
        if not is_whole or not 1 <= self.orders <= MAX_ORDERS:
            raise ConfigError(f"orders={self.orders!r} must be a whole number, 1 to {MAX_ORDERS}")
        for name, value, allowed in (
            ("layout", self.layout, LAYOUTS),
            ("estimator", self.estimator, ESTIMATORS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name}={value!r} must be {' or '.join(allowed)}")
        if self.orders > 1 and self.layout == "cloze":
            raise ConfigError(
                f"orders={self.orders} has no effect on layout=cloze, which lists no values; leave it out"
            )


class Read(NamedTuple):
    """A token to read: of value `value` of a question, at a position of the canvas."""

    value: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The part of a row that answers a question, its values in one order: `order` is its number."""

    question: int
    order: int
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class ReadingRow:
    """A canvas, what is read in it, and all tokens to read, ascending."""

    canvas: Canvas
    slots: tuple[Slot, ...]
    tokens: tuple[int, ...]


class Filling(NamedTuple):
    """A content of a blank: `size` positions of which the first are `given`; offsets of tokens to read."""

    size: int
    given: tuple[int, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    """The line of a question in one order: text before the blank, and the contents to read it with."""

    question: int
    order: int
    before: str
    fillings: tuple[Filling, ...]


@dataclass(frozen=True)
class CanvasMaker:
    """Canvases of one model for questions; `end_id` closes an answer, if the model has an end token."""

    prompts: PromptEncoder
    end_id: int | None
    options: DecisionOptions = DecisionOptions()
    limits: RowLimits = NO_LIMITS
    _ids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def rows(self, text: str, questions: Sequence[DecisionQuestion]) -> list[ReadingRow]:
        """Return the rows that answer the questions about a text.

        Joint questions that one canvas cannot hold are halved, until each half has canvases of its own.
        Raises LengthError for one question beyond the context, PromptError and ConfigError.
        """
        groups = [[at] for at in reversed(range(len(questions)))]
        if not self.options.independent:
            groups = [list(range(len(questions)))]
        found: list[ReadingRow] = []
        while groups:
            group, num_before = groups.pop(), len(found)
            try:
                for row in self._group(text, questions, group):
                    found.append(row)
                    self._check_number(len(found))
            except (LengthError, TooManyReadsError):
                if len(group) == 1:
                    raise
                del found[num_before:]
                middle = (len(group) + 1) // 2
                groups += [group[middle:], group[:middle]]
        return found

    def _check_number(self, count: int) -> None:
        """Raise ConfigError for more rows than the limit."""
        most = self.limits.max_rows
        if most is None or count <= most:
            return
        ways = ["fewer questions"]
        ways += ["fewer orders"] * (self.options.orders > 1)
        ways += ["estimator=slots"] * (self.options.estimator == "likelihood")
        ways += ["independent=false"] * self.options.independent
        raise ConfigError(
            f"the questions take more than {most} canvases, the most of one request; use "
            f"{' or '.join(ways)}"
        )

    def _group(
        self, text: str, questions: Sequence[DecisionQuestion], group: list[int]
    ) -> Iterator[ReadingRow]:
        """Yield the rows of questions that share canvases."""
        orders = {at: orders_of(questions[at], self.options.orders) for at in group}
        for number in range(max(len(found) for found in orders.values())):
            # a question with fewer orders is asked again, and not read
            shown = {at: orders[at][number % len(orders[at])] for at in group}
            prompt = self._prompt(text, questions, shown)
            lines = [
                self._line(questions[at], at, number, line, shown[at])
                for line, at in enumerate(group, start=1)
            ]
            for turn in range(max(len(line.fillings) for line in lines)):
                row = self._row(prompt, lines, turn)
                is_read = {at: number < len(orders[at]) for at in group}
                slots = tuple(slot for slot in row.slots if is_read[slot.question] and slot.reads)
                if slots:
                    yield _checked(ReadingRow(row.canvas, slots, row.tokens))

    def _prompt(
        self, text: str, questions: Sequence[DecisionQuestion], shown: Mapping[int, tuple[int, ...]]
    ) -> list[int]:
        """Return the prompt's token ids."""
        if self.options.layout == "listed":
            asked = [
                _listing(line, questions[at], order)
                for line, (at, order) in enumerate(shown.items(), start=1)
            ]
            text = "\n\n".join([*([text] if text else []), *asked, ANSWER_ALL])
        if not text:
            return self.prompts.begin or list(self._encode("\n"))
        if self.prompts.chat.template() is None:
            return self.prompts.encode(f"{text}\n", special=True)
        return self.prompts.chat_ids([{"role": "user", "content": text}])

    def _line(
        self, question: DecisionQuestion, at: int, number: int, line: int, order: tuple[int, ...]
    ) -> _Line:
        if self.options.layout == "cloze":
            before, texts = _cloze(question)
        else:  # the label of a value is that of its place in the list
            before, labels = self._spelled(line, labels_of(question))
            texts = [labels[order.index(value)] for value in range(len(order))]
        tokens = [self._encode(text) for text in texts]
        if len(set(tokens)) < len(tokens):
            twice = next(
                text for text, own in zip(texts, tokens, strict=True) if tokens.count(own) > 1
            )
            raise ConfigError(
                f"{cut_text(question.instructions)!r} has two values that are written {twice!r}; use "
                f"layout=listed, or other values"
            )
        make = _slots if self.options.estimator == "slots" else _chain
        return _Line(at, number, before, make(tokens))

    def _spelled(self, line: int, labels: tuple[str, ...]) -> tuple[str, list[str]]:
        """Return a line's text before its label, and the labels, with the space in the text or in them.

        That in which all are single tokens, else the one with the shorter longest label.
        """
        forms = [(f"{line}.", [f" {each}" for each in labels]), (f"{line}. ", list(labels))]
        return min(forms, key=lambda form: max(len(self._encode(text)) for text in form[1]))

    def _row(self, prompt: list[int], lines: Sequence[_Line], turn: int) -> ReadingRow:
        """Return the row in which every line has its content number `turn`, or its last one."""
        ids, blanks, slots = list(prompt), [False] * len(prompt), list[Slot]()
        for line in lines:
            own = line.fillings[min(turn, len(line.fillings) - 1)]
            before = self._encode(line.before)
            start = len(ids) + len(before)
            ids += [*before, *own.given, *[0] * (own.size - len(own.given)), *self._encode("\n")]
            blanks += [False] * (len(before) + len(own.given))
            blanks += [True] * (own.size - len(own.given))
            blanks += [False] * (len(ids) - len(blanks))
            reads = own.reads if turn < len(line.fillings) else ()
            moved = tuple(read._replace(position=start + read.position) for read in reads)
            slots.append(Slot(line.question, line.order, moved))
        if self.end_id is not None:
            ids, blanks = [*ids, self.end_id], [*blanks, False]
        most = min(self.prompts.spec.max_length, self.limits.max_length or len(ids))
        if len(ids) > most:
            raise LengthError(
                f"the input and one question with its values take {len(ids)} positions, but the context is "
                f"{most}; shorten the input or the question, or give it fewer or shorter values"
            )
        tokens = tuple(sorted({read.token for slot in slots for read in slot.reads}))
        canvas = new_canvas(ids, blanks, len(prompt), self.prompts.spec.mask_id, infilling=True)
        return ReadingRow(canvas, tuple(slots), tokens)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text. Raises ConfigError beyond `MAX_TEXTS`, or if there are none."""
        found = self._ids.get(text)
        if found is None:
            if len(self._ids) >= MAX_TEXTS:
                raise ConfigError(
                    f"the questions have more than {MAX_TEXTS} different texts; ask less at once"
                )
            found = self._ids[text] = tuple(self.prompts.bare_ids(text))
        if not found:
            raise ConfigError(f"the model's tokenizer has no token for {text!r}; use another text")
        return found


def orders_of(question: DecisionQuestion, count: int) -> list[tuple[int, ...]]:
    """Return up to `count` orders of a question's values: as given, reversed, then rotations of both.

    Those of a score are only the first two, in which neighbors stay neighbors.
    """
    given = tuple(range(len(question.values)))
    found = [given, given[::-1]]
    if question.kind != "score":
        for shift in range(1, len(given)):
            found += [each[shift:] + each[:shift] for each in (given, given[::-1])]
    return list(dict.fromkeys(found))[:count]


@lru_cache(maxsize=64)
def _letters(count: int) -> tuple[str, ...]:
    return tuple(ascii_uppercase[:count] if count <= 26 else map(str, range(1, count + 1)))


def labels_of(question: DecisionQuestion) -> tuple[str, ...]:
    """Return the label of each place of a list: letters, or numbers from 1 on for more than 26 values."""
    return _letters(len(question.values))


def _listing(line: int, question: DecisionQuestion, order: tuple[int, ...]) -> str:
    """Return a question with its values, behind their labels, as the prompt has it."""
    rows = [f"{line}. {question.instructions}"]
    for label, at in zip(labels_of(question), order, strict=True):
        value, description = question.values[at], question.descriptions[at]
        if question.kind == "predicate":
            assert isinstance(value, bool), "made by predicate"
            shown = PREDICATE_WORDS[value]
        else:
            shown = value_text(value)
        rows.append(f"{label}. {shown}: {description}" if description else f"{label}. {shown}")
    return "\n".join(rows)


def _cloze(question: DecisionQuestion) -> tuple[str, list[str]]:
    """Return the text before the blank, and the texts of the values; tokens begin with their space."""
    if any(question.descriptions):
        raise ConfigError(
            f"{cut_text(question.instructions)!r} describes its values, which layout=cloze does not show; "
            f"use layout=listed, or leave the descriptions out"
        )
    texts = [
        PREDICATE_WORDS[value]
        if question.kind == "predicate" and isinstance(value, bool)
        else value_text(value)
        for value in question.values
    ]
    before = question.instructions.removesuffix(" ")
    gap = " " if before != question.instructions else ""
    return before, [gap + text for text in texts]


def _slots(values: Sequence[tuple[int, ...]]) -> tuple[Filling, ...]:
    """Return a blank for each length of the values, all of whose positions are read."""
    reads: dict[int, list[Read]] = {}
    for value, tokens in enumerate(values):
        own = [Read(value, at, token) for at, token in enumerate(tokens)]
        reads.setdefault(len(tokens), []).extend(own)
    return tuple(Filling(size, (), tuple(reads[size])) for size in sorted(reads))


def _chain(values: Sequence[tuple[int, ...]]) -> tuple[Filling, ...]:
    """Return a blank for each beginning of the values, of which the next token is read."""
    reads: dict[tuple[int, tuple[int, ...]], list[Read]] = {}
    for value, tokens in enumerate(values):
        for at, token in enumerate(tokens):
            reads.setdefault((len(tokens), tokens[:at]), []).append(Read(value, at, token))
    return tuple(Filling(size, given, tuple(own)) for (size, given), own in sorted(reads.items()))


def _checked(row: ReadingRow) -> ReadingRow:
    """Return a row. Raises TooManyReadsError if it reads too much at once."""
    num_cells = row.canvas.num_open * len(row.tokens)
    if num_cells > MAX_CELLS:
        raise TooManyReadsError(
            f"one question reads {row.canvas.num_open} positions for {len(row.tokens)} tokens, more than "
            f"{MAX_CELLS} numbers; give it fewer or shorter values"
        )
    return row
