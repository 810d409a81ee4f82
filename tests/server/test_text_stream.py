"""Text that only grows: whatever the order in which a canvas fills, the pieces are the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.canvas import Canvas, Edit, new_canvas
from unmask.edit_rules import apply
from unmask.engine.text_stream import StopCriteria, TextStream

END, MASK = 300, 999
PROMPT = [65, 66]


def decode(ids: list[int]) -> str:
    """Bytes as tokens; the end has no text."""
    return bytes(id_ for id_ in ids if id_ != END).decode("utf-8", "replace")


def empty(size: int) -> Canvas:
    return new_canvas(PROMPT + [0] * size, [False] * 2 + [True] * size, 2, MASK)


def commit(canvas: Canvas, position: int, token: int) -> Canvas:
    return apply(canvas, Edit(np.array([position]), np.array([token]), np.array([0.5])), 0)


def streamed(ids: list[int], order: list[int], ends: StopCriteria) -> tuple[list[str], TextStream]:
    """The pieces when the positions are decided in `order`."""
    canvas, stream = empty(len(ids)), TextStream(decode, ends, 2)
    pieces = []
    for number, index in enumerate(order):
        canvas = commit(canvas, 2 + index, ids[index])
        pieces.append(stream.feed(canvas, len(canvas), is_last=number == len(order) - 1))
    return pieces, stream


def at_once(ids: list[int], ends: StopCriteria) -> TextStream:
    canvas = empty(len(ids))
    for index, token in enumerate(ids):
        canvas = commit(canvas, 2 + index, token)
    stream = TextStream(decode, ends, 2)
    stream.feed(canvas, len(canvas), is_last=True)
    return stream


TEXT = st.text(alphabet="ab\u00e9\u6f22\U0001f642\n", min_size=1, max_size=12)


@st.composite
def canvases(draw):
    ids = list(draw(TEXT).encode())
    for _ in range(draw(st.integers(0, 2))):
        ids.insert(draw(st.integers(0, len(ids))), draw(st.sampled_from([END, 0xFF, 0xE2])))
    order = draw(st.permutations(range(len(ids))))
    stops = draw(st.lists(st.text(alphabet="ab\u00e9\n", min_size=1, max_size=3), max_size=3))
    return ids, order, StopCriteria(frozenset({END}), tuple(stops))


@settings(max_examples=50)
@given(canvases())
def test_the_pieces_are_the_text_that_is_not_streamed(case):
    ids, order, ends = case
    pieces, stream = streamed(ids, order, ends)
    whole = at_once(ids, ends)
    assert "".join(pieces) == stream.text == whole.text
    assert (stream.finish_reason, stream.token_ids) == (whole.finish_reason, whole.token_ids)


@settings(max_examples=50)
@given(canvases())
def test_no_piece_holds_a_stop_string_or_half_a_character_that_is_completed_later(case):
    ids, order, ends = case
    pieces, stream = streamed(ids, order, ends)
    assert all(stop not in stream.text for stop in ends.stops)
    final = at_once(ids, StopCriteria(ends.stop_ids)).text
    assert final.startswith("".join(pieces))


def test_what_is_right_of_an_open_position_waits():
    canvas, stream = empty(3), TextStream(decode, StopCriteria(), 2)
    canvas = commit(canvas, 3, ord("b"))
    assert stream.feed(canvas, len(canvas)) == ""
    canvas = commit(canvas, 2, ord("a"))
    assert stream.feed(canvas, len(canvas)) == "ab"


def test_what_the_decoder_may_still_revise_waits():
    canvas, stream = empty(2), TextStream(decode, StopCriteria(), 2)
    canvas = commit(commit(canvas, 2, ord("a")), 3, ord("b"))
    assert stream.feed(canvas, 3) == "a"
    assert stream.feed(canvas, 4) == "b"


def test_an_emoji_of_four_tokens_comes_whole():
    ids = list("\U0001f642!".encode())
    pieces, _ = streamed(ids, list(range(5)), StopCriteria())
    assert pieces == ["", "", "", "\U0001f642", "!"]


def test_bytes_that_are_no_character_come_at_the_end_only():
    pieces, _ = streamed([ord("a"), 0xE2, 0x82], [0, 1, 2], StopCriteria())
    assert pieces == ["a", "", "\ufffd"]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    ends = StopCriteria(stops=("STOP",))
    pieces, stream = streamed(list(b"aSTaSTOPb"), list(range(9)), ends)
    assert "".join(pieces) == stream.text == "aSTa"
    assert "ST" not in "".join(pieces[:3])
    assert stream.finish_reason == "stop"
    assert stream.num_tokens == 8, "up to the token that completed the stop string"


def test_an_end_token_ends_the_text_and_releases_what_was_held_back():
    ends = StopCriteria(frozenset({END}), ("bcd",))
    pieces, stream = streamed([97, 98, 99, END, 120], [0, 1, 2, 3, 4], ends)
    assert "".join(pieces[:4]) == "abc"
    assert stream.finish_reason == "stop"
    assert stream.num_tokens == 3


@pytest.mark.parametrize("size", [0, 2])
def test_only_the_positions_of_the_answer_are_read(size):
    canvas = new_canvas([65, 0, 0, 90], [False, True, True, False], 1, MASK, infilling=True)
    canvas = commit(commit(canvas, 1, 97), 2, 98)
    stream = TextStream(decode, StopCriteria(), 1, size)
    assert stream.feed(canvas, 4, is_last=True) == "ab"[:size]
