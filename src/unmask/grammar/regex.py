"""Regular expressions in Python's syntax, and patterns of JSON schemas, as syntax trees.

Supported: literals, `.`, classes, `\\d \\w \\s` and their complements (ASCII, except that complements
contain all other characters), escapes, groups (capturing, `(?:...)` and `(?P<name>...)`), alternatives and
`* + ? {m,n}`; lazy quantifiers mean the same, as a match is always of the whole text. `^` and `\\A` at the
beginning and `$` and `\\Z` at the end are accepted. All that Python's `re` refuses is refused.

Patterns of JSON schemas are expressions of ECMA-262: `\\s` has the white space of Unicode, `.` no line
separators, a named group is `(?<name>...)`, and what the two languages read differently is refused.
"""

from __future__ import annotations

import re

from unmask.errors import GrammarError, cut_text
from unmask.grammar.nodes import (
    EMPTY,
    MAX_CODE_POINT,
    SURROGATES,
    Chars,
    Concat,
    Either,
    Node,
    Ranges,
    Repeat,
    complement,
    union,
)

MAX_NESTING = 50
"""Maximum depth of groups within groups."""
MAX_REPEATS = 10_000

ANY: Ranges = complement(((10, 10),))
DIGITS: Ranges = ((48, 57),)
WORD: Ranges = union(((48, 57), (65, 90), (95, 95), (97, 122)))
SPACE: Ranges = union(((9, 13), (32, 32)))
CLASSES = {
    "d": DIGITS,
    "w": WORD,
    "s": SPACE,
    "D": complement(DIGITS),
    "W": complement(WORD),
    "S": complement(SPACE),
}
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
OCTAL = "01234567"
BOUNDS = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")
ECMA_ANY: Ranges = complement(((10, 10), (13, 13), (0x2028, 0x2029)))
ECMA_SPACE: Ranges = union(
    (
        *SPACE, (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
        (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
    )
)  # fmt: skip
ECMA_CLASSES = {**CLASSES, "s": ECMA_SPACE, "S": complement(ECMA_SPACE)}


def parse_regex(pattern: str, *, is_search: bool = False) -> Node:
    """Return the tree of a regular expression. Raises GrammarError.

    With `is_search` it is a pattern of a JSON schema: in ECMA-262's syntax, and the match may stand
    anywhere in the text: without `^` (`$`), anything may come before (after) it.
    """
    parser = _Parser(pattern, is_ecma=is_search)
    node = parser.alternatives(0)
    if parser.at < len(pattern):
        raise parser.error("a closing parenthesis without an opening one")
    if not is_search:
        return node
    anything = Repeat(Chars(((0, MAX_CODE_POINT),)))
    if parser.num_alternatives > 1 and (parser.is_begun or parser.is_ended):
        raise parser.error("an anchor beside alternatives; put the alternatives in a group")
    before = () if parser.is_begun else (anything,)
    after = () if parser.is_ended else (anything,)
    return Concat((*before, node, *after))


class _Parser:
    """A cursor in the pattern; `is_begun` and `is_ended` tell of anchors at its ends."""

    def __init__(self, pattern: str, *, is_ecma: bool) -> None:
        self.pattern, self.at, self.num_alternatives = pattern, 0, 1
        self.is_begun = self.is_ended = False
        self.is_ecma, self.names = is_ecma, set[str]()

    def error(self, problem: str) -> GrammarError:
        return GrammarError(
            f"regex {cut_text(self.pattern)!r}: {problem}, at character {self.at}; supported are literals, "
            f"classes, groups, alternatives and the quantifiers * + ? {{m,n}}"
        )

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        if not char:
            raise self.error("the expression ends too early")
        self.at += 1
        return char

    def accept(self, text: str) -> bool:
        if not self.pattern.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def alternatives(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise self.error(f"groups nested more than {MAX_NESTING} deep")
        options = [self.sequence(depth)]
        while self.accept("|"):
            options.append(self.sequence(depth))
        if depth == 0:
            self.num_alternatives = len(options)
        return options[0] if len(options) == 1 else Either(tuple(options))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while (char := self.peek()) and char not in "|)":
            if self._anchor(depth, is_first=not parts):
                continue
            parts.append(self._quantified(self._atom(depth)))
        return Concat(tuple(parts)) if parts else EMPTY

    def _anchor(self, depth: int, *, is_first: bool) -> bool:
        """Skip an anchor where it has no effect; one elsewhere is refused."""
        if self.accept("^") or not self.is_ecma and self.accept("\\A"):
            if not is_first or depth > 0:
                raise self.error("an anchor ^ inside the expression")
            self.is_begun = True
            return True
        if self.accept("$") or not self.is_ecma and self.accept("\\Z"):
            if self.peek() not in ("", "|") or depth > 0:
                raise self.error("an anchor $ inside the expression")
            self.is_ended = True
            return True
        return False

    def _atom(self, depth: int) -> Node:
        start = self.at
        if self._quantifier() is not None:
            quantifier = cut_text(self.pattern[start : self.at])
            raise self.error(f"the quantifier {quantifier} without anything before it")
        char = self.take()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return Chars(self._class())
        if char == ".":
            return Chars(ECMA_ANY if self.is_ecma else ANY)
        if char == "\\":
            return Chars(self._escape())
        return Chars(((ord(char), ord(char)),))

    def _group(self, depth: int) -> Node:
        if self.accept("?"):
            if self.accept("<" if self.is_ecma else "P<"):
                name = self.pattern[self.at : max(self.at, self.pattern.find(">", self.at))]
                if not name.isidentifier():
                    raise self.error("a group name that is not an identifier")
                if name in self.names:
                    raise self.error(f"two groups with the name {cut_text(name)}")
                self.names.add(name)
                self.at += len(name) + 1
            elif not self.accept(":"):
                raise self.error(f"the group (?{self.peek()}...), such as lookaround or flags")
        node = self.alternatives(depth + 1)
        if not self.accept(")"):
            raise self.error("a group without its closing parenthesis")
        return node

    def _quantified(self, node: Node) -> Node:
        bounds = self._quantifier()
        if bounds is None:
            return node
        if self.peek() == "+":
            raise self.error("a possessive quantifier")
        self.accept("?")  # lazy
        if self._quantifier() is not None:
            raise self.error("two quantifiers in a row; group the first")
        low, high = bounds
        if max(low, high or 0) > MAX_REPEATS:
            raise self.error(f"more than {MAX_REPEATS} repetitions")
        if high is not None and high < low:
            raise self.error(
                f"the quantifier {{{low},{high}}}, whose bounds are in the wrong order"
            )
        return Repeat(node, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        if self.accept("*"):
            return 0, None
        if self.accept("+"):
            return 1, None
        if self.accept("?"):
            return 0, 1
        found = BOUNDS.match(self.pattern, self.at)
        if found is None or not found[1] and found[2] is None:
            return None  # a brace as itself, as in Python
        low, high = found[1], found[2]
        if self.is_ecma and not low:
            raise self.error(
                "a quantifier without its first number, which JSON schemas do not have"
            )
        if any(len(part.lstrip("0")) > 9 for part in (low, high or "")):
            raise self.error(f"more than {MAX_REPEATS} repetitions")
        self.at = found.end()
        least = int(low or 0)
        return least, least if high is None else int(high) if high else None

    def _escape(self, *, is_member: bool = False) -> Ranges:
        """Return the characters of an escape, after its backslash."""
        char = self.take()
        if char in CLASSES:
            return (ECMA_CLASSES if self.is_ecma else CLASSES)[char]
        if self.is_ecma and char in "aU":
            raise self.error(f"the escape \\{char}, which JSON schemas do not have")
        if char in CONTROLS:
            code = CONTROLS[char]
        elif char in HEX_LENGTHS:
            code = self._hex(HEX_LENGTHS[char])
        elif char in OCTAL:
            code = self._octal(char, is_member)
        elif char.isascii() and char.isalnum():
            raise self.error(f"the escape \\{char}, such as a boundary or a backreference")
        else:
            code = ord(char)
        if not is_member and SURROGATES[0] <= code <= SURROGATES[1]:
            raise self.error(
                "an escape of half a character (a surrogate); write the character itself"
            )
        return ((code, code),)

    def _octal(self, first: str, is_member: bool) -> int:
        """Return the code of an octal escape: up to 3 digits after \\0 or in a class, elsewhere 3."""
        digits = first
        while len(digits) < 3 and self.peek() and self.peek() in OCTAL:
            digits += self.take()
        if self.is_ecma and (digits != "0" or self.peek().isdigit()):
            raise self.error(f"the escape \\{digits}, which JSON schemas do not have")
        if len(digits) < 3 and not is_member and first != "0":
            raise self.error(f"the escape \\{digits}, such as a boundary or a backreference")
        if int(digits, 8) > 0o377:
            raise self.error(f"the octal escape \\{digits} above \\377")
        return int(digits, 8)

    def _hex(self, length: int) -> int:
        digits = self.pattern[self.at : self.at + length]
        try:
            code = int(digits, 16) if len(digits) == length and digits.isalnum() else -1
        except ValueError:
            code = -1
        if not 0 <= code <= MAX_CODE_POINT:
            raise self.error(f"an escape without {length} hexadecimal digits of a character")
        self.at += length
        return code

    def _class(self) -> Ranges:
        """Return the code points of a class, after its opening bracket."""
        is_negated = self.accept("^")
        if self.is_ecma and self.peek() == "]":
            raise self.error("a class that begins with ], which JSON schemas read as an empty one")
        ranges: list[tuple[int, int]] = []
        is_first = True
        while is_first or self.peek() != "]":
            is_first = False
            low = self._member()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self._member()
                if (
                    len(low) > 1
                    or len(high) > 1
                    or low[0][0] != low[0][1]
                    or high[0][0] != high[0][1]
                ):
                    raise self.error("a range whose end is a class")
                if high[0][0] < low[0][0]:
                    raise self.error("a range in the wrong order")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges.extend(low)
        self.at += 1
        found = union(ranges)
        return complement(found) if is_negated else found

    def _member(self) -> Ranges:
        char = self.take()
        if char == "\\":
            if self.peek() == "b":
                self.at += 1
                return ((8, 8),)
            return self._escape(is_member=True)
        return ((ord(char), ord(char)),)
