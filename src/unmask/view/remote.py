"""A canvas that a server sends (`stream_mode="canvas"`), as the same styled text as one of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from unmask.engine.token_text import printable
from unmask.view.terminal import (
    END,
    MIDDLE_BELOW,
    OLD_STYLE,
    OPEN,
    OPEN_STYLE,
    REOPENED,
    REOPENED_STYLE,
    RETURN,
    TAIL_STYLE,
    new_style,
)


def frame_text(frame: Mapping[str, Any]) -> Text:
    """A frame's positions as styled text; a run of end tokens is one mark with their number."""
    shown = Text(no_wrap=False, overflow="fold")
    run, run_style = 0, ""
    for position in [*frame["slots"], {}]:
        text, style = _cell(position) if position else ("x", "")
        is_end = bool(position.get("end")) and not position["open"]
        if run and (not is_end or style != run_style):
            shown.append(END + (f"×{run}" if run > 1 else ""), run_style)
            run = 0
        if is_end:
            run, run_style = run + 1, style
        elif position:
            shown.append(text, style)
    return shown


def _cell(position: Mapping[str, Any]) -> tuple[str, str]:
    if position["open"]:
        taken = position.get("taken_back")
        return (REOPENED, REOPENED_STYLE) if taken else (OPEN, OPEN_STYLE)
    text = printable(position["text"])
    if position.get("fixed"):
        return text, ""
    if position["new"]:
        sure = position["confidence"]
        style = new_style(MIDDLE_BELOW if sure is None else sure)
        return text.replace("\n", RETURN + "\n"), style
    return text, TAIL_STYLE if position.get("end") else OLD_STYLE


def frame_status(frame: Mapping[str, Any]) -> str:
    """Forwards and decided positions so far."""
    size = len(frame["slots"])
    return f"forward {frame['forward']} · {size - frame['num_open']} of {size} positions"
