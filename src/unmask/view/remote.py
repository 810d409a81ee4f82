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
    """A frame's slots as styled text; a run of end tokens is one mark with their number."""
    shown = Text(no_wrap=False, overflow="fold")
    run, run_style = 0, ""
    for slot in [*frame["slots"], {}]:
        text, style = _cell(slot) if slot else ("x", "")
        is_end = bool(slot.get("end")) and not slot["open"]
        if run and (not is_end or style != run_style):
            shown.append(END + (f"×{run}" if run > 1 else ""), run_style)
            run = 0
        if is_end:
            run, run_style = run + 1, style
        elif slot:
            shown.append(text, style)
    return shown


def _cell(slot: Mapping[str, Any]) -> tuple[str, str]:
    if slot["open"]:
        taken = slot.get("taken_back")
        return (REOPENED, REOPENED_STYLE) if taken else (OPEN, OPEN_STYLE)
    text = printable(slot["text"])
    if slot.get("fixed"):
        return text, ""
    if slot["new"]:
        sure = slot["confidence"]
        style = new_style(MIDDLE_BELOW if sure is None else sure)
        return text.replace("\n", RETURN + "\n"), style
    return text, TAIL_STYLE if slot.get("end") else OLD_STYLE


def frame_status(frame: Mapping[str, Any]) -> str:
    """Forwards and decided slots so far."""
    size = len(frame["slots"])
    return f"forward {frame['forward']} · {size - frame['num_open']} of {size} slots"
