"""Trees of the rules of a grammar: recursion at the ends of rules as graphs, other recursion to a depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from unmask.errors import GrammarError
from unmask.grammar.ebnf_parts import (
    InOrder,
    OneOf,
    Part,
    RuleName,
    Times,
    end_names,
    names_in,
    recursive_groups,
)
from unmask.grammar.nodes import EMPTY, NOTHING, Concat, Either, Graph, Node, Repeat

MAX_LEVELS = 150
"""Maximum number of levels of the expanded tree, groups and rules together."""
MAX_VISITS = 100_000
"""Maximum number of parts, those of a rule counted at every use."""


class Expansion:
    """The trees of rules, each at most `depth` times within itself."""

    def __init__(self, rules: Mapping[str, Part], depth: int) -> None:
        self.rules, self.depth, self.num_visits, self.level = rules, depth, 0, 0
        self.tails = recursive_groups(rules, is_tail=True)
        self.heads = recursive_groups(rules, is_tail=False)
        self.more: dict[tuple[frozenset[str], bool], bool] = {}

    def rule(self, name: str, chain: tuple[str, ...]) -> Node:
        """Return the tree of a rule inside the rules of `chain`; nothing beyond the depth."""
        if chain.count(name) >= self.depth:
            return NOTHING
        tails, heads = self.tails.get(name), self.heads.get(name)
        if tails and not (heads and self.has_more(heads, is_tail=False)):
            return self.walks(name, tails, chain, is_tail=True)
        if heads and not (tails and self.has_more(tails, is_tail=True)):
            return self.walks(name, heads, chain, is_tail=False)
        if not tails:
            return self.part(self.rules[name], (*chain, name))
        begins_itself = name in end_names(self.rules[name], is_tail=False, is_beside=True)
        if begins_itself:
            return self.both_ends(name, chain)
        return self.walks(name, tails, chain, is_tail=True)

    def has_more(self, group: frozenset[str], *, is_tail: bool) -> bool:
        """Return whether a rule of a group has more beside one of the group at that end."""
        if (group, is_tail) not in self.more:
            self.more[group, is_tail] = any(
                not group.isdisjoint(end_names(self.rules[name], is_tail=is_tail, is_beside=True))
                for name in group
            )
        return self.more[group, is_tail]

    def walks(
        self, name: str, group: frozenset[str], chain: tuple[str, ...], *, is_tail: bool
    ) -> Node:
        """Return the tree of a rule that leads to itself through the ends (the beginnings) of `group`.

        Such a use of a rule is a step to its state, so it is not counted as a rule within itself.
        """
        walk = _Walk(self, name, group, chain, is_tail)
        start, at = walk.state(name), 0
        while at < len(walk.names):
            rule = walk.names[at]
            walk.add(self.rules[rule], walk.state(rule), rule)
            at += 1
        return walk.graph(start)

    def both_ends(self, name: str, chain: tuple[str, ...]) -> Node:
        """Return the tree of a rule whose alternatives begin with it, and end with it."""
        inner = (*chain, name)
        starts, befores, afters, betweens = (list[Part]() for _ in range(4))
        for option in _options(self.rules[name], name):
            parts = option.parts if isinstance(option, InOrder) else (option,)
            if parts == (RuleName(name),):
                continue  # `a ::= a` adds nothing
            if len(parts) > 1 and parts[0] == parts[-1] == RuleName(name):
                betweens.append(InOrder(parts[1:-1]))
            elif parts and parts[0] == RuleName(name):
                afters.append(InOrder(parts[1:]))
            elif parts and parts[-1] == RuleName(name):
                befores.append(InOrder(parts[:-1]))
            else:
                starts.append(option)
        before, body, after, between = (
            self.part(OneOf(tuple(each)), inner) for each in (befores, starts, afters, betweens)
        )
        once = joined([repeated(before, 0, None), body, repeated(after, 0, None)])
        is_single = between == NOTHING or once == NOTHING
        return once if is_single else Repeat(once, 1, None, separator=between)

    @contextmanager
    def counted(self, rule: str) -> Iterator[None]:
        """Count a part and a level of the tree. Raises GrammarError beyond the limits."""
        self.num_visits += 1
        if self.num_visits > MAX_VISITS:
            raise GrammarError(
                f"the grammar has more than {MAX_VISITS} parts at depth {self.depth}, those of a rule "
                f"counted at every use; use a smaller depth, or fewer rules"
            )
        if self.level >= MAX_LEVELS:
            raise GrammarError(
                f"the grammar has more than {MAX_LEVELS} levels of rules and groups at depth {self.depth}, "
                f"in rule {rule[:60]}; use a smaller depth, or fewer rules within rules"
            )
        self.level += 1
        yield
        self.level -= 1

    def part(self, part: Part, chain: tuple[str, ...]) -> Node:
        """Return the tree of a part inside the rules of `chain`."""
        with self.counted(chain[-1]):
            return self.node(part, chain)

    def node(self, part: Part, chain: tuple[str, ...]) -> Node:
        """Return the tree of a part, by its kind."""
        if isinstance(part, RuleName):
            return self.rule(part.name, chain)
        if isinstance(part, InOrder):
            return joined(self.sequence(part.parts, chain))
        if isinstance(part, OneOf):
            options = [self.part(each, chain) for each in part.options]
            return Either(tuple(each for each in options if each != NOTHING))
        if isinstance(part, Times):
            return repeated(self.part(part.item, chain), part.low, part.high)
        return part

    def sequence(self, parts: tuple[Part, ...], chain: tuple[str, ...]) -> list[Node]:
        """Return the trees of parts in order; `a ("," a)*` is one of repeated items, which has `a` once."""
        nodes: list[Node] = []
        is_own = list[bool]()
        """A flag per node: it is the tree of its part, and not moved into a repetition."""
        for at, part in enumerate(parts):
            again = (
                part.item
                if isinstance(part, Times) and (part.low, part.high) == (0, None)
                else None
            )
            inner = again.parts if isinstance(again, InOrder) else ()
            size = next(
                (
                    n
                    for n in range(min(at, len(inner) - 1), 0, -1)
                    if inner[-n:] == parts[at - n : at] and all(is_own[at - n :])
                ),
                0,
            )
            if not size:
                nodes.append(self.part(part, chain))
                is_own.append(True)
                continue
            separator = joined([self.part(each, chain) for each in inner[:-size]])
            item = joined(nodes[-size:])
            if item == NOTHING or separator == NOTHING:
                nodes.append(EMPTY)
            else:
                nodes[-size:] = [*[EMPTY] * (size - 1), Repeat(item, 1, None, separator)]
                is_own[-size:] = [False] * size
                nodes.append(EMPTY)
            is_own.append(False)
        return nodes


class _Walk:
    """A graph of the texts of a rule whose alternatives end with (begin with) rules of a group.

    State 0 is the end; each rule of the group has the state from which a text of it leads there. For
    beginnings everything is read backwards, and the graph is turned around when it is complete.
    """

    def __init__(
        self,
        expansion: Expansion,
        name: str,
        group: frozenset[str],
        chain: tuple[str, ...],
        is_tail: bool,
    ) -> None:
        self.expansion, self.name, self.group = expansion, name, group
        self.chain, self.is_tail = chain, is_tail
        self.edges, self.num_states = list[tuple[int, Node, int]](), 1
        self.names = list[str]()
        self.states = dict[str, int]()

    def new(self) -> int:
        self.num_states += 1
        return self.num_states - 1

    def state(self, name: str) -> int:
        """Return the state of a rule."""
        if name not in self.states:
            self.states[name] = self.new()
            self.names.append(name)
        return self.states[name]

    def edge(self, start: int, node: Node, end: int) -> None:
        if node != NOTHING:
            self.edges.append((start, node, end))

    def inner(self, rule: str) -> tuple[str, ...]:
        """Return the rules around a part of a rule that is no step of this graph."""
        return (*self.chain, self.name, *((rule,) if rule != self.name else ()))

    def add(self, part: Part, start: int, rule: str) -> None:
        """Add the texts of a part of a rule, from a state to the end."""
        with self.expansion.counted(rule):
            if self.group.isdisjoint(end_names(part, is_tail=self.is_tail)):
                self.edge(start, self.expansion.part(part, self.inner(rule)), 0)
            elif isinstance(part, RuleName):
                if self.chain.count(part.name) < self.expansion.depth:
                    self.edge(start, EMPTY, self.state(part.name))
            elif isinstance(part, OneOf):
                for option in part.options:
                    self.add(option, start, rule)
            elif isinstance(part, Times):
                self.times(part, start, rule)
            else:
                assert isinstance(part, InOrder), "the only other part with parts"
                self.in_order(part.parts, start, rule)

    def in_order(self, parts: tuple[Part, ...], start: int, rule: str) -> None:
        last, others = (parts[-1], parts[:-1]) if self.is_tail else (parts[0], parts[1:])
        if others:
            middle = self.new()
            node = joined(self.expansion.sequence(others, self.inner(rule)))
            self.edge(start, node, middle)
            start = middle
        self.add(last, start, rule)

    def times(self, part: Times, start: int, rule: str) -> None:
        """Add a repetition: all but its last item have the group's rules within themselves."""
        if part.low == 0:
            self.edge(start, EMPTY, 0)
        if part.high != 1:
            middle = self.new()
            node = self.expansion.part(part.item, self.inner(rule))
            high = None if part.high is None else part.high - 1
            self.edge(start, repeated(node, max(0, part.low - 1), high), middle)
            start = middle
        self.add(part.item, start, rule)

    def graph(self, start: int) -> Node:
        """Return the graph from a state to the end; nothing if none of its texts ends."""
        after: dict[int, list[int]] = {}
        for first, _, second in self.edges:
            after.setdefault(first, []).append(second)
        reached, waiting = {start}, [start]
        while waiting:
            fresh = set(after.get(waiting.pop(), ())) - reached
            reached |= fresh
            waiting += fresh
        if 0 not in reached:
            return NOTHING
        if self.is_tail:
            return Graph(tuple(self.edges), start, 0)
        return Graph(tuple((second, node, first) for first, node, second in self.edges), 0, start)


def _options(part: Part, name: str) -> list[Part]:
    """Return a rule's alternatives; an optional end with the rule itself is two of them."""
    found: list[Part] = []
    for option in part.options if isinstance(part, OneOf) else (part,):
        last = option.parts[-1] if isinstance(option, InOrder) and option.parts else None
        if (
            isinstance(option, InOrder)
            and isinstance(last, Times)
            and (last.low, last.high) == (0, 1)
            and not isinstance(last.item, OneOf)
            and name in names_in(last.item)
        ):
            more = last.item.parts if isinstance(last.item, InOrder) else (last.item,)
            found += [InOrder(option.parts[:-1]), InOrder((*option.parts[:-1], *more))]
        else:
            found.append(option)
    return found


def joined(nodes: list[Node]) -> Node:
    """Return a concatenation; nothing if a part is nothing."""
    if any(node == NOTHING for node in nodes):
        return NOTHING
    parts = tuple(node for node in nodes if node != EMPTY)
    return Concat(parts) if len(parts) > 1 else parts[0] if parts else EMPTY


def repeated(node: Node, low: int, high: int | None) -> Node:
    """Return a repetition; of nothing, only the empty text is one."""
    if node == NOTHING:
        return EMPTY if low == 0 else NOTHING
    return Repeat(node, low, high)
