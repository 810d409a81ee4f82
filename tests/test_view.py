"""The picture of a canvas and the trace file, without a terminal and without a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from unmask.canvas import Canvas, Edit, new_canvas
from unmask.durable import check_writable
from unmask.edit_rules import apply
from unmask.engine.outputs import Commit, Step
from unmask.engine.scheduler import Event
from unmask.engine.token_text import TokenTexts
from unmask.errors import ConfigError
from unmask.plain_text import printable
from unmask.view.terminal import (
    END,
    OPEN,
    REOPENED,
    Changes,
    LiveView,
    canvas_text,
    window,
    wrap,
)
from unmask.view.trace import Header, TraceWriter, read_trace

MASK, EOS = 99, 90
WORDS = {1: "The", 2: " cat", 3: " sat", 4: "\n", 5: " mat", EOS: "<eos>"}
SPLIT = {10: b"\xc3", 11: b"\xa9"}


class FakeTokenizer:
    all_special_ids = (EOS,)

    def decode(self, ids: list[int]) -> str:
        return b"".join(SPLIT.get(i) or WORDS[i].encode() for i in ids).decode("utf-8", "replace")


class FakeSequence:
    def __init__(self, canvas: Canvas) -> None:
        self.canvas, self.trace, self.num_forwards = canvas, [], 1


PIECES = TokenTexts(FakeTokenizer())
ENDS = frozenset({EOS})


def answer(*tokens: int | None, prompt: tuple[int, ...] = (1,)) -> Canvas:
    """A canvas with a prompt and an answer; None is undecided."""
    size = len(prompt) + len(tokens)
    canvas = new_canvas(
        [*prompt, *[0] * len(tokens)],
        [i >= len(prompt) for i in range(size)],
        len(prompt),
        MASK,
    )
    positions = [i for i, token in enumerate(tokens, len(prompt)) if token is not None]
    edit = Edit(
        commit=np.array(positions, dtype=np.int64),
        tokens=np.array([token for token in tokens if token is not None], dtype=np.int64),
        confidence=np.ones(len(positions)),
    )
    return apply(canvas, edit, 0)


def styles(text: Text) -> dict[str, str]:
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def picture(canvas: Canvas, fresh: dict[int, float] | None = None, **more: Any) -> Text:
    return canvas_text(canvas, Changes(fresh or {}, **more), PIECES, ENDS)


def test_only_so_many_texts_of_tokens_are_remembered(monkeypatch):
    asked = []

    class Counting(FakeTokenizer):
        def decode(self, ids):
            asked.append(tuple(ids))
            return super().decode(ids)

    monkeypatch.setattr("unmask.engine.token_text.MAX_TEXTS", 2)
    pieces = TokenTexts(Counting())
    told = [pieces.text(*ids) for ids in [(1,), (10, 11), (1,), (2,), (1,), (10, 11)]]
    assert told == ["The", "\u00e9", "The", " cat", "The", "\u00e9"]
    assert asked == [(1,), (10, 11), (2,), (10, 11)], "the one that was not used for longest goes"


def test_the_answer_is_shown_and_the_prompt_is_not() -> None:
    assert picture(answer(2, None, 3)).plain == f" cat{OPEN} sat"


def test_an_infill_shows_the_given_text_without_color() -> None:
    canvas = new_canvas([1, 0, 3], [False, True, False], 1, MASK)
    shown = picture(canvas)
    assert shown.plain == f"The{OPEN} sat"
    assert set(styles(shown).values()) == {"#444444"}


@pytest.mark.parametrize(
    ("confidence", "color"),
    [(0.0, "#FF6666"), (0.29, "#FF6666"), (0.3, "#FFAA33"), (0.69, "#FFAA33"), (0.7, "#66CC66")],
)
def test_a_new_token_is_bold_underlined_and_colored_by_confidence(
    confidence: float, color: str
) -> None:
    assert styles(picture(answer(2, 3), {1: confidence}))[" cat"] == f"bold underline {color}"


def test_an_older_token_is_plain_blue() -> None:
    assert styles(picture(answer(2, 3), {1: 1.0}))[" sat"] == "#6699CC"


def test_a_taken_back_position_has_its_own_mark() -> None:
    assert picture(answer(2, None), reopened=frozenset({2})).plain == f" cat{REOPENED}"


def test_a_run_of_end_tokens_is_one_dim_mark_with_their_number() -> None:
    shown = picture(answer(2, EOS, EOS, EOS))
    assert shown.plain == f" cat{END}×3"
    assert styles(shown)[f"{END}×3"] == "dim"


def test_a_line_end_in_the_answer_is_a_line_end_in_the_picture() -> None:
    assert picture(answer(2, 4, 3)).plain == " cat\n sat"
    assert picture(answer(2, 4, 3), {2: 1.0}).plain == " cat↵\n sat"


def test_a_character_made_of_two_tokens_is_whole_once_both_are_there() -> None:
    assert picture(answer(10, 11)).plain == "é"
    assert picture(answer(10, None)).plain == f"\ufffd{OPEN}"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\n\tc") == "a\ufffd[2Jb\ufffd\n\tc"


def test_without_a_tokenizer_numbers_are_shown() -> None:
    assert canvas_text(answer(2, None), Changes(), TokenTexts(None)).plain == f"<2>{OPEN}"


def test_lines_break_at_spaces_and_between_undecided_cells() -> None:
    text = Text("The cat sat" + OPEN * 12 + "\nend")
    lines = [line.plain for line in wrap(text, 10)]
    assert lines == ["The cat ", "sat" + OPEN * 7, OPEN * 5, "end"]


def test_a_word_longer_than_the_line_is_cut() -> None:
    assert [line.plain for line in wrap(Text("abcdefgh"), 3)] == ["abc", "def", "gh"]


def test_wide_characters_count_as_two_cells() -> None:
    assert [line.plain for line in wrap(Text("日本語"), 4)] == ["日本", "語"]


def test_a_tall_canvas_is_cut_to_the_lines_around_the_new_token() -> None:
    lines = [Text(str(i)) for i in range(20)]
    lines[15].stylize("bold underline #66CC66")
    first, shown = window(lines, 5)
    assert first <= 15 < first + 5
    assert len(shown) == 5


def test_changes_follow_positions_through_an_insertion() -> None:
    before = answer(2, None, None)
    edit = Edit(
        commit=np.array([3]),
        tokens=np.array([3]),
        confidence=np.array([0.5]),
        insert=((2, 2),),
    )
    after = apply(before, edit, 1)
    event: Any = Event(before, edit, FakeSequence(after))  # type: ignore[arg-type]
    assert Changes.of(event).fresh == {5: 0.5}


def test_the_live_view_draws_cues_without_color_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=10)
    with LiveView(console, PIECES, ENDS, None) as view:
        canvas = answer(None, None)
        view.begin(canvas)
        edit = Edit(np.array([1]), np.array([2]), np.array([0.2]))
        sequence: Any = FakeSequence(apply(canvas, edit, 0))
        view.show(Event(canvas, edit, sequence))
    drawn = file.getvalue()
    assert "\x1b[1;4m cat" in drawn
    assert "\x1b[38;" not in drawn
    assert "\x1b[2K" in drawn[drawn.rindex("forward") :], "the last frame was not erased"


HEADER = Header(
    model="demo",
    decoder="vanilla",
    cache="none",
    knobs={"steps": None},
    seed=0,
    prompt_ids=[1],
    gen_length=2,
    mask_id=MASK,
    tokens=[1, MASK, MASK],
    open=[1, 2],
)


def test_a_trace_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    steps = [
        Step(committed=(Commit(1, 2, 0.1 + 0.2), Commit(2, 3, 1.0)), num_queries=3),
        Step((), remasked=(1,), inserted=((3, 2),), replaced=(Commit(2, 5, 0.0),), deleted=(2,)),
    ]
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, HEADER, PIECES) as writer:
        for number, step in enumerate(steps):
            writer.step(number, step)
    assert read_trace(path) == (HEADER, steps)
    assert '[1, 2, 0.30000000000000004, " cat"]' in path.read_text("utf-8")


def test_a_trace_of_a_token_that_separates_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, HEADER, PIECES) as writer:
        writer.step(0, Step((Commit(1, 2, 0.5),), (), num_queries=1))
    path.write_text(path.read_text("utf-8").replace(" cat", "\u2028"), encoding="utf-8")
    assert read_trace(path)[1][0].committed == (Commit(1, 2, 0.5),)


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", "[1]\n", '{"format": "unmask-trace"}\n'])
def test_another_file_is_not_taken_for_a_trace(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="trace"):
        read_trace(path)


def test_a_place_where_no_trace_can_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        check_writable(tmp_path, "trace file")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_writable(tmp_path / "absent" / "trace.jsonl", "trace file")
    check_writable(tmp_path / "trace.jsonl", "trace file")
    assert not (tmp_path / "trace.jsonl").exists()
