"""Grammars in EBNF, in the spelling of GBNF (llama.cpp, xgrammar), as syntax trees of bounded recursion.

    root ::= "yes" | "no" | list      # `root` is the whole answer
    list ::= "[" item ("," item)* "]"

Supported: rules `name ::= ...`, literals in double quotes, classes `[a-z]` and `[^"]`, `.` for any
character but a newline, groups, alternatives, `* + ? {m} {m,} {m,n}` and comments. A rule ends where the
next begins.

An automaton is finite, so a rule within itself is expanded to a depth: a text whose derivation has one
rule more than `depth` times inside itself is left out. Recursion at the end of rules' alternatives is a
repetition and has no depth, directly (`digits ::= [0-9] digits | [0-9]`) and through other rules (`list ::=
item rest`, `rest ::= "," list | ""`); so is recursion at their beginning, and direct recursion at both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unmask.errors import GrammarError, cut_text
from unmask.grammar.ebnf_expansion import Expansion
from unmask.grammar.ebnf_parts import InOrder, OneOf, Part, RuleName, Times, names_in, parts_in
from unmask.grammar.nodes import EMPTY, Chars, Concat, Node, text
from unmask.grammar.regex import parse_regex

MAX_RULES = 1_000
MAX_NESTING = 50
"""Maximum depth of groups within groups."""
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


def ebnf_node(source: str, depth: int) -> Node:
    """Return the tree of a grammar's rule `root`. Raises GrammarError."""
    rules = _Rules(source).read()
    if ROOT not in rules:
        raise GrammarError(
            f"the grammar has no rule {ROOT}; add `{ROOT} ::= ...`, the whole answer"
        )
    for name, rule in rules.items():
        for used in names_in(rule):
            if used not in rules:
                raise GrammarError(f"grammar rule {name[:60]}: {used[:60]} is no rule; define it")
    _check_ends(rules)
    return Expansion(rules, depth).rule(ROOT, ())


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
            part = self.repeated(self.atom(kind, value, nesting))
            parts += part.parts if isinstance(part, InOrder) else [] if part == EMPTY else [part]
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
        return all(map(ends, parts_in(part)))

    users: dict[str, list[str]] = {}
    for name, part in rules.items():
        for used in set(names_in(part)):
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
