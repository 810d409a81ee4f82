"""Text of models, files and clients, made harmless for terminals, logs and reports.

Characters that drive a terminal, reorder a line or hide in it are replaced: controls (C0, C1),
bidirectional controls, separators of lines and paragraphs, invisible characters, lone surrogates, and the
two codes that XML has no place for.
"""

from __future__ import annotations

import json
import re

REPLACEMENT = "\ufffd"
_INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    r"\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e00ff"
)
_BAD = re.compile(
    rf"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_INVISIBLE}]"
    # joiners belong between letters of scripts that join and between emojis
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKUP = re.compile(r"[\\`*\[\]<>|]|&(?=#?\w+;)|(?<=:)//|(?<=www)\.|^[#+-](?=\s)")


def printable(text: str) -> str:
    """Return a text of one or more lines; line ends and tabs stay, bad characters become U+FFFD."""
    return _BAD.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """Return a text on one line, its white space joined."""
    return printable(" ".join(text.split()))


def escaped(text: str) -> str:
    """Return a text on one line, with what cannot be printed as Python escapes it."""
    line = _BAD.sub(lambda match: ascii(match[0])[1:-1], text)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def markdown_text(text: str) -> str:
    """Return a text on one line that Markdown, with HTML in it, shows as it is, in a table's cell too."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", one_line(text))


def script_json(value: object) -> str:
    """Return a value as JSON for a script element of HTML, which no text in it can end.

    Only "<" could end the element or open a comment; U+2028 and U+2029 are line ends of JavaScript. Lone
    surrogates, which UTF-8 cannot write, are escaped too.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, code in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(char, code)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
