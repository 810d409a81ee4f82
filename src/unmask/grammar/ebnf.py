"""Grammars in EBNF, in the spelling of GBNF (llama.cpp, xgrammar), as syntax trees of bounded recursion.

    root ::= "yes" | "no" | list      # `root` is the whole answer
    list ::= "[" item ("," item)* "]"

Supported: rules `name ::= ...`, literals in double quotes, classes `[a-z]` and `[^"]`, `.` for any
character but a newline, groups, alternatives, `* + ? {m} {m,} {m,n}` and comments. A rule ends where the
next begins.

An automaton is finite, so a rule within itself is expanded to a depth: a text whose derivation has one
rule more than `depth` times inside itself is left out. Exact is recursion at the end or the beginning of a
rule's alternatives (`digits ::= [0-9] digits | [0-9]`), which is a repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unmask.errors import GrammarError, cut_text
from unmask.grammar.nodes import EMPTY, NOTHING, Chars, Concat, Either, Node, Repeat, Text, text
from unmask.grammar.regex import parse_regex

MAX_RULES = 1_000
MAX_NESTING = 50
"""Maximum depth of groups within groups."""
MAX_LEVELS = 150
"""Maximum number of levels of the expanded tree, groups and rules together."""
MAX_VISITS = 100_000
"""Maximum number of parts, those of a rule counted at every use."""
MAX_REPEATS = 10_000
MAX_GRAMMAR_DEPTH = 8
ROOT = "root"
TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]|\#[^\n]*(?:\n|\Z))+)
    |(?P<name>[A-Za-z_][\w-]*)(?P<defines>(?:[ \t\r\n]|\#[^\n]*\n)*::=)?
    |(?P<literal>"(?:[^"\\\n]|\\.)*")
    |(?P<set>\[\^?(?:[^\]\\\n]|\\.)*\])
    |(?P<times>\{[0-9]{1,9}(?:,[0-9]{0,9})?\}|[*+?])
    |(?P<mark>[|().])""",
    re.VERBOSE | re.ASCII,
)
LARK = re.compile(r"\s*(?:[?!]?[a-z_]\w*|%\w+)\s*(?::(?!:)|\S*import)")
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
OCTAL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:[1-9]|0[0-7]))")
PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "0": "\0"}
OWN_ESCAPES = frozenset("\"'\\/[]-^.(){}|*+?$ ")


@dataclass(frozen=True, slots=True)
class RuleName:
    """A use of a rule."""

    name: str


@dataclass(frozen=True, slots=True)
class InOrder:
    """Parts one after another."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """Alternatives."""

    options: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """A part, `low` to `high` (None: no limit) times."""

    item: Part
    low: int
    high: int | None


Part = RuleName | InOrder | OneOf | Times | Chars | Text


def ebnf_node(source: str, depth: int) -> Node:
    """Return the tree of a grammar's rule `root`. Raises GrammarError."""
    rules = _Rules(source).read()
    if ROOT not in rules:
        raise GrammarError(
            f"the grammar has no rule {ROOT}; add `{ROOT} ::= ...`, the whole answer"
        )
    for name, rule in rules.items():
        for used in _names(rule):
            if used not in rules:
                raise GrammarError(f"grammar rule {name[:60]}: {used[:60]} is no rule; define it")
    _check_ends(rules)
    return _Expansion(rules, depth).rule(ROOT, ())


class _Rules:
    """A cursor in the tokens of a grammar."""

    def __init__(self, source: str) -> None:
        self.source, self.tokens = source, list(_tokens(source))
        self.at, self.rule = 0, ""

    def error(self, problem: str) -> GrammarError:
        where = f"grammar rule {self.rule[:60]}" if self.rule else "grammar"
        return GrammarError(f'{where}: {problem}; a rule is `name ::= "text" | [a-z]+ | other`')

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def read(self) -> dict[str, Part]:
        rules: dict[str, Part] = {}
        while self.peek()[0] != "end":
            kind, name = self.peek()
            if kind != "defines":
                raise self.error(f"{cut_text(name)!r} stands where a rule should begin")
            self.at, self.rule = self.at + 1, name
            if name in rules:
                raise self.error("defined twice")
            if len(rules) >= MAX_RULES:
                raise self.error(f"more than {MAX_RULES} rules")
            rules[name] = self.options(0)
            if self.peek() == ("mark", ")"):
                raise self.error("a closing parenthesis without an opening one")
        return rules

    def options(self, nesting: int) -> Part:
        if nesting > MAX_NESTING:
            raise self.error(f"groups nested more than {MAX_NESTING} deep")
        found = [self.sequence(nesting)]
        while self.peek() == ("mark", "|"):
            self.at += 1
            found.append(self.sequence(nesting))
        return found[0] if len(found) == 1 else OneOf(tuple(found))

    def sequence(self, nesting: int) -> Part:
        parts: list[Part] = []
        while True:
            kind, value = self.peek()
            if kind in ("end", "defines") or value in ("|", ")") and kind == "mark":
                break
            self.at += 1
            parts.append(self.repeated(self.atom(kind, value, nesting)))
        return parts[0] if len(parts) == 1 else InOrder(tuple(parts))

    def atom(self, kind: str, value: str, nesting: int) -> Part:
        if kind == "name":
            return RuleName(value)
        if kind == "literal":
            return text(ESCAPE.sub(self.unescaped, value[1:-1]))
        if kind == "set":
            return self.characters(value)
        if (kind, value) == ("mark", "."):
            return self.characters("[^\\n]")
        if (kind, value) != ("mark", "("):
            raise self.error(f"the quantifier {value} without anything before it")
        inner = self.options(nesting + 1)
        if self.peek() != ("mark", ")"):
            raise self.error("a group without its closing parenthesis")
        self.at += 1
        return inner

    def unescaped(self, match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code:
            if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) <= 0xDFFF:
                raise self.error(f"{match[0]} is no character")
            return chr(int(code, 16))
        if match[4] in PLAIN_ESCAPES:
            return PLAIN_ESCAPES[match[4]]
        if match[4] not in OWN_ESCAPES:
            raise self.error(f"the escape {match[0]} is not known")
        return match[4]

    def characters(self, value: str) -> Chars:
        """Return a class; its syntax is that of regular expressions, except that `[` stands for itself."""
        if found := OCTAL_ESCAPE.search(value):
            raise self.error(f"the escape {found[1]} is not known; use \\xHH")
        try:
            node = parse_regex(value)
        except GrammarError as error:
            raise self.error(f"the class {cut_text(value)}: {error}") from None
        only = node.parts[0] if isinstance(node, Concat) else node
        assert isinstance(only, Chars), "one class"
        return only

    def repeated(self, part: Part) -> Part:
        kind, value = self.peek()
        if kind != "times":
            return part
        self.at += 1
        if self.peek()[0] == "times":
            raise self.error("two quantifiers in a row; group the first")
        return Times(part, *self.bounds(value))

    def bounds(self, value: str) -> tuple[int, int | None]:
        if value in "*+?":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[value]
        low, comma, high = value[1:-1].partition(",")
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if max(least, most or 0) > MAX_REPEATS:
            raise self.error(f"{value}: more than {MAX_REPEATS} repetitions")
        if most is not None and most < least:
            raise self.error(f"{value}: its bounds are in the wrong order")
        return least, most


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each token; of the beginning of a rule, its name."""
    at = 0
    while at < len(source):
        match = TOKEN.match(source, at)
        if match is None:
            if LARK.match(source):
                raise GrammarError(
                    f"the grammar is in Lark's form ({cut_text(source.strip(), 30)!r}); write it as "
                    f"GBNF: `{ROOT} ::= ...`"
                )
            line = source.count("\n", 0, at) + 1
            raise GrammarError(
                f"grammar line {line}: {source[at : at + 20]!r} is not understood; literals are in double "
                f"quotes, classes in brackets, rules are `name ::= ...`"
            )
        at = match.end()
        if match["name"]:
            yield ("defines" if match["defines"] else "name"), match["name"]
        elif not match["space"]:
            kind = str(match.lastgroup)
            yield kind, match[0]


def _names(part: Part) -> Iterator[str]:
    """Yield the rules that a part uses."""
    if isinstance(part, RuleName):
        yield part.name
    for inner in _inside(part):
        yield from _names(inner)


def _inside(part: Part) -> tuple[Part, ...]:
    if isinstance(part, InOrder):
        return part.parts
    if isinstance(part, OneOf):
        return part.options
    return (part.item,) if isinstance(part, Times) else ()


def _check_ends(rules: Mapping[str, Part]) -> None:
    """Raise GrammarError if `root` has no finite text; such a rule has no alternative without itself."""
    ending: set[str] = set()

    def ends(part: Part) -> bool:
        if isinstance(part, RuleName):
            return part.name in ending
        if isinstance(part, OneOf):
            return any(map(ends, part.options))
        if isinstance(part, Times):
            return part.low == 0 or ends(part.item)
        return all(map(ends, _inside(part)))

    users: dict[str, list[str]] = {}
    for name, part in rules.items():
        for used in set(_names(part)):
            users.setdefault(used, []).append(name)
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in ending and ends(rules[name]):
            ending.add(name)
            waiting += users.get(name, [])
    if ROOT not in ending:
        endless = ", ".join(sorted(rules.keys() - ending)[:5])
        raise GrammarError(
            f"the grammar's texts never end: {endless[:200]} only lead to themselves; give them an "
            f"alternative that does not"
        )


class _Expansion:
    """The trees of rules, each at most `depth` times within itself."""

    def __init__(self, rules: Mapping[str, Part], depth: int) -> None:
        self.rules, self.depth, self.num_visits, self.level = rules, depth, 0, 0

    def rule(self, name: str, chain: tuple[str, ...]) -> Node:
        """Return the tree of a rule inside the rules of `chain`; nothing beyond the depth."""
        if chain.count(name) >= self.depth:
            return NOTHING
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
        once = _joined([_repeated(before, 0, None), body, _repeated(after, 0, None)])
        is_single = between == NOTHING or once == NOTHING
        return once if is_single else Repeat(once, 1, None, separator=between)

    def part(self, part: Part, chain: tuple[str, ...]) -> Node:
        """Return the tree of a part inside the rules of `chain`."""
        self.num_visits += 1
        if self.num_visits > MAX_VISITS:
            raise GrammarError(
                f"the grammar has more than {MAX_VISITS} parts at depth {self.depth}, those of a rule "
                f"counted at every use; use a smaller depth, or fewer rules"
            )
        if self.level >= MAX_LEVELS:
            raise GrammarError(
                f"the grammar has more than {MAX_LEVELS} levels of rules and groups at depth {self.depth}, "
                f"in rule {chain[-1][:60]}; use a smaller depth, or fewer rules within rules"
            )
        self.level += 1
        node = self.node(part, chain)
        self.level -= 1
        return node

    def node(self, part: Part, chain: tuple[str, ...]) -> Node:
        """Return the tree of a part, by its kind."""
        if isinstance(part, RuleName):
            return self.rule(part.name, chain)
        if isinstance(part, InOrder):
            return _joined(self.sequence(part.parts, chain))
        if isinstance(part, OneOf):
            options = [self.part(each, chain) for each in part.options]
            return Either(tuple(each for each in options if each != NOTHING))
        if isinstance(part, Times):
            return _repeated(self.part(part.item, chain), part.low, part.high)
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
            separator = _joined([self.part(each, chain) for each in inner[:-size]])
            item = _joined(nodes[-size:])
            if item == NOTHING or separator == NOTHING:
                nodes.append(EMPTY)
            else:
                nodes[-size:] = [*[EMPTY] * (size - 1), Repeat(item, 1, None, separator)]
                is_own[-size:] = [False] * size
                nodes.append(EMPTY)
            is_own.append(False)
        return nodes


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
            and name in _names(last.item)
        ):
            more = last.item.parts if isinstance(last.item, InOrder) else (last.item,)
            found += [InOrder(option.parts[:-1]), InOrder((*option.parts[:-1], *more))]
        else:
            found.append(option)
    return found


def _joined(nodes: list[Node]) -> Node:
    """Return a concatenation; nothing if a part is nothing."""
    if any(node == NOTHING for node in nodes):
        return NOTHING
    parts = tuple(node for node in nodes if node != EMPTY)
    return Concat(parts) if len(parts) > 1 else parts[0] if parts else EMPTY


def _repeated(node: Node, low: int, high: int | None) -> Node:
    """Return a repetition; of nothing, only the empty text is one."""
    if node == NOTHING:
        return EMPTY if low == 0 else NOTHING
    return Repeat(node, low, high)
