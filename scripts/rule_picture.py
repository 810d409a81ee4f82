"""Draw docs/explanation/any-order-constraints.svg: the two-sided rule on the language `ab | ba`.

    python scripts/rule_picture.py [FILE]

The sets of states and the allowed tokens are those of `unmask.grammar`; only the layout is made here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unmask.grammar.byte_automaton import compile_node
from unmask.grammar.constraint import choice
from unmask.grammar.reach import OPEN, Reach, TokenAutomaton
from unmask.grammar.token_automaton import TokenTrie, token_table

FILE = Path(__file__).parents[1] / "docs/explanation/any-order-constraints.svg"
TOKENS = "ab"
PANELS = (
    ("1  Both positions are open", (OPEN, OPEN), None),
    ("2  Proposed: a (0.9) and a (0.8)", (0, OPEN), 0),
    ("3  The next forward", (0, 1), None),
)
"""Title, canvas, and a token proposed at the second position that is refused."""
NOTES = (
    "each token is allowed alone, not every pair",
    "the surer is committed, the other not",
    "only b was allowed: the answer is ab",
)
WIDTH, HEIGHT, PANEL, TOP = 960, 400, 310, 150
ROWS, STEP = 52, 105
STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;fill:#1c2733;font-size:13px;text-anchor:middle}"
    ".t{font-size:15px;font-weight:600;text-anchor:start}.n{fill:#47566b;text-anchor:start}"
    ".s{font-size:11px;fill:#6b7a8f}.e{stroke:#2b5797;stroke-width:2.5}"
    ".d{stroke:#b9c6d8;stroke-width:1.2;stroke-dasharray:4 4}.r{stroke:#c2410c;stroke-width:2.5}"
    ".x{fill:#c2410c;font-weight:600}.b{fill:#2b5797;font-weight:600}.g{fill:#8a97a8}"
)


def automaton() -> TokenAutomaton:
    """Return the automaton of `ab | ba` over two tokens."""
    trie = TokenTrie.build([token.encode() for token in TOKENS])
    return TokenAutomaton(token_table(compile_node(choice(["ab", "ba"]).node()), trie))


def members(states: bytes) -> set[int]:
    """Return the numbers of the states of a set."""
    return set(np.flatnonzero(np.frombuffer(states, dtype=np.bool_)).tolist())


def names(language: TokenAutomaton) -> dict[int, str]:
    """Return the name of each state: s start, x after a, y after b, z end."""
    kinds = [int(language.classes[token]) for token in range(len(TOKENS))]
    after = [members(language.after(language.start, kind)) for kind in kinds]
    return {
        number: name
        for name, found in zip(
            "sxyz", (members(language.start), *after, members(language.end)), strict=True
        )
        for number in found
    }


def edges(language: TokenAutomaton, named: dict[int, str]) -> Iterator[tuple[int, int, int]]:
    """Yield (state, token, next state) of the language."""
    for state in named:
        alone = bytes(1 if number == state else 0 for number in range(language.num_states))
        for token in range(len(TOKENS)):
            for found in members(language.after(alone, int(language.classes[token]))):
                yield state, token, found


def sets_of(
    language: TokenAutomaton, canvas: tuple[int, ...]
) -> tuple[list[set[int]], list[set[int]]]:
    """Return the states F before and B after each boundary of a canvas."""
    kinds = [OPEN if token == OPEN else int(language.classes[token]) for token in canvas]
    forward, backward = [language.start], [language.end]
    for kind in kinds:
        forward.append(language.after(forward[-1], kind))
    for kind in reversed(kinds):
        backward.append(language.before(backward[-1], kind))
    return [members(each) for each in forward], [members(each) for each in backward[::-1]]


def panel(index: int, language: TokenAutomaton) -> Iterator[str]:
    """Yield the parts of one panel."""
    title, canvas, refused = PANELS[index]
    named = names(language)
    left = 30 + index * PANEL
    columns = [left + 20 + at * STEP for at in range(len(canvas) + 1)]
    rows = {state: TOP + "sxyz".index(name) * ROWS for state, name in named.items()}
    forward, backward = sets_of(language, canvas)
    yield f'<text x="{left}" y="34" class="t">{title}</text>'
    yield f'<text x="{left}" y="54" class="n">{NOTES[index]}</text>'
    reach = Reach(language, canvas)
    for at, token in enumerate(canvas):
        middle = (columns[at] + columns[at + 1]) // 2
        fill, text = ("#eef3fb", "") if token == OPEN else ("#dbe7fb", TOKENS[token])
        box = f'x="{middle - 19}" y="72" width="38" height="30" rx="4"'
        yield f'<rect {box} fill="{fill}" stroke="#5b7db1"/>'
        yield f'<text x="{middle}" y="92">{text}</text>'
        found = [t for i, t in enumerate(TOKENS) if reach.allowed(at)[language.classes[i]]]
        words = "allowed: " + ", ".join(found) if token == OPEN else "decided"
        yield f'<text x="{middle}" y="118" class="s">{words}</text>'
    for at, token in enumerate(canvas):
        for state, via, target in edges(language, named):
            ends = columns[at] + 13, rows[state], columns[at + 1] - 13, rows[target]
            fits = token in (OPEN, via)
            is_alive = state in forward[at] and target in backward[at + 1] and fits
            if is_alive:
                yield _edge(ends, "e", TOKENS[via], "b")
            elif state in forward[at] or target in backward[at + 1]:
                yield _edge(ends, "d", TOKENS[via], "g")
    if refused is not None:
        (state,) = forward[1]
        x, y = columns[1] + 13, rows[state]
        yield f'<line x1="{x}" y1="{y}" x2="{x + 38}" y2="{y - 16}" class="r"/>'
        yield f'<text x="{x + 47}" y="{y - 15}" class="x">✗ {TOKENS[refused]}</text>'
    for at, x in enumerate(columns):
        for state, name in named.items():
            yield from _node(x, rows[state], name, state in forward[at], state in backward[at])


def _edge(ends: tuple[int, int, int, int], kind: str, text: str, label: str) -> str:
    x1, y1, x2, y2 = ends
    x, y = x1 + (x2 - x1) * 0.4, y1 + (y2 - y1) * 0.4 - 5
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'
        f'<text x="{x:.0f}" y="{y:.0f}" class="{label}">{text}</text>'
    )


def _node(x: int, y: int, name: str, is_forward: bool, is_backward: bool) -> Iterator[str]:
    """Yield a state: its left half is filled if it is in F, its right half if it is in B."""
    for is_in, sweep, color in ((is_forward, 0, "#8fb4e8"), (is_backward, 1, "#a5d6b0")):
        fill = color if is_in else "#ffffff"
        yield f'<path d="M{x} {y - 13} A13 13 0 0 {sweep} {x} {y + 13} z" fill="{fill}"/>'
    stroke = "#2b5797" if is_forward and is_backward else "#b9c6d8"
    yield f'<circle cx="{x}" cy="{y}" r="13" fill="none" stroke="{stroke}" stroke-width="1.8"/>'
    yield f'<text x="{x}" y="{y + 4}">{name}</text>'


def legend() -> Iterator[str]:
    """Yield the explanation of colors."""
    y = HEIGHT - 24
    parts = (
        ("#8fb4e8", 30, "F: reached from the start"),
        ("#a5d6b0", 230, "B: reaches an end"),
    )
    for color, x, text in parts:
        yield f'<rect x="{x}" y="{y - 11}" width="13" height="13" fill="{color}" stroke="#5b7db1"/>'
        yield f'<text x="{x + 20}" y="{y}" class="n">{text}</text>'
    yield f'<line x1="390" y1="{y - 5}" x2="420" y2="{y - 5}" class="e"/>'
    yield f'<text x="428" y="{y}" class="n">allowed token: from a state of F to a state of B</text>'
    yield f'<line x1="770" y1="{y - 5}" x2="800" y2="{y - 5}" class="d"/>'
    yield f'<text x="808" y="{y}" class="n">leads nowhere</text>'


def picture() -> str:
    """Return the picture as SVG."""
    language = automaton()
    parts = [part for index in range(len(PANELS)) for part in panel(index, language)]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="Allowed tokens by reachability from both sides">',
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *parts,
            *legend(),
            "</svg>\n",
        )
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    target.write_text(picture(), encoding="utf-8")
