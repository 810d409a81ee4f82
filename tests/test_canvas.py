"""The canvas and its edits: what an edit does, and what it may never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.canvas import Edit, Reading, new_canvas
from unmask.edit_rules import apply, edit_fault, edit_faults
from unmask.errors import DecoderError

MASK = 99


def positions(*values):
    return np.array(values, dtype=np.int64)


def canvas(prompt=2, blanks=4):
    return new_canvas([7] * prompt + [0] * blanks, [False] * prompt + [True] * blanks, prompt, MASK)


def commit(*pairs):
    return Edit(
        commit=positions(*(position for position, _ in pairs)),
        tokens=positions(*(token for _, token in pairs)),
        confidence=np.full(len(pairs), 0.5),
    )


def test_a_new_canvas_shows_the_mask_where_it_is_open():
    new = new_canvas([5, MASK, 1, 2], [False, False, True, False], 2, MASK)
    assert new.tokens.tolist() == [5, MASK, MASK, 2]
    assert new.open.tolist() == [False, False, True, False]
    assert new.fixed.tolist() == [True, True, False, True]
    assert new.origin.tolist() == [-1] * 4
    assert new.uid.tolist() == [0, 1, 2, 3]
    assert new.num_open == 1
    assert len(new) == 4


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, [2, 3, 4, 5]),
        (0, 4, [2, 3]),
        (3, 5, [3, 4]),
        (5, None, [5]),
        (0, 2, []),
        (6, 9, []),
    ],
)
def test_open_positions_are_those_of_the_range(start, end, expected):
    assert canvas().open_positions(start, end).tolist() == expected


def test_commit_decides_positions_and_remembers_the_forward():
    after = apply(canvas(), commit((3, 11), (5, 12)), 6)
    assert after.tokens.tolist() == [7, 7, MASK, 11, MASK, 12]
    assert after.open.tolist() == [False, False, True, False, True, False]
    assert after.origin.tolist() == [-1, -1, -1, 6, -1, 6]
    assert not after.fixed[2:].any()


def test_an_edit_does_not_change_the_canvas_it_saw():
    before = canvas()
    apply(before, commit((3, 11)), 0)
    assert before.num_open == 4
    assert before.tokens.tolist() == [7, 7, MASK, MASK, MASK, MASK]


def test_replace_changes_a_decided_token():
    decided = apply(canvas(), commit((3, 11)), 0)
    after = apply(decided, Edit(replace=positions(3), replace_tokens=positions(13)), 4)
    assert after.tokens[3] == 13
    assert after.origin[3] == 4
    assert not after.open[3]


def test_remask_opens_a_decided_position_again():
    decided = apply(canvas(), commit((3, 11)), 0)
    after = apply(decided, Edit(remask=positions(3)), 4)
    assert after.open[3]
    assert after.tokens[3] == MASK
    assert after.origin[3] == -1


def test_fields_of_one_edit_apply_in_their_order():
    """Committed and remasked at once ends open."""
    edit = Edit(
        commit=positions(3), tokens=positions(11), confidence=np.ones(1), remask=positions(3)
    )
    assert apply(canvas(), edit, 0).open[3]


def test_insert_puts_open_positions_before_a_position_and_identities_survive():
    decided = apply(canvas(), commit((3, 11)), 0)
    after = apply(decided, Edit(insert=((3, 2),)), 1)
    assert after.tokens.tolist() == [7, 7, MASK, MASK, MASK, 11, MASK, MASK]
    assert after.uid.tolist() == [0, 1, 2, 6, 7, 3, 4, 5]
    assert after.open.tolist() == [False, False, True, True, True, False, True, True]
    assert after.origin[5] == 0
    assert after.origin[3] == -1


def test_insert_at_the_length_appends():
    after = apply(canvas(), Edit(insert=((6, 1),)), 0)
    assert after.uid.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert after.num_open == 5


def test_delete_removes_positions_and_insertions_count_in_the_old_positions():
    after = apply(canvas(), Edit(delete=positions(2, 4), insert=((4, 1), (6, 2))), 0)
    assert after.uid.tolist() == [0, 1, 3, 6, 5, 7, 8]


def test_a_deleted_identity_is_not_given_again():
    shorter = apply(canvas(), Edit(delete=positions(3)), 0)
    longer = apply(shorter, Edit(insert=((5, 1),)), 1)
    assert longer.uid.tolist() == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    "edit",
    [
        commit((0, 11)),
        commit((3, MASK)),
        commit((3, 11), (3, 12)),
        Edit(replace=positions(0), replace_tokens=positions(5)),
        Edit(replace=positions(3), replace_tokens=positions(5)),
        Edit(remask=positions(1)),
        Edit(remask=positions(3)),
        Edit(delete=positions(0)),
        Edit(insert=((1, 1),)),
        Edit(insert=((7, 1),)),
        Edit(insert=((4, 1), (4, 2))),
        Edit(commit=positions(2, 3), tokens=positions(11), confidence=np.ones(2)),
    ],
    ids=[
        "commit on a given token",
        "commit the mask",
        "commit twice",
        "replace a given token",
        "replace an open position",
        "remask a given token",
        "remask an open position",
        "delete a given token",
        "insert in the prompt",
        "insert past the end",
        "insert twice before one position",
        "commit two positions with one token",
    ],
)
def test_an_edit_that_breaks_the_rules_is_refused(edit):
    with pytest.raises(DecoderError):
        apply(canvas(), edit, 0)


def test_an_edit_that_writes_the_mask_by_replacing_is_refused():
    decided = apply(canvas(), commit((3, 11)), 0)
    with pytest.raises(DecoderError, match="mask"):
        apply(decided, Edit(replace=positions(3), replace_tokens=positions(MASK)), 1)


def test_commit_on_a_decided_position_is_refused():
    decided = apply(canvas(), commit((3, 11)), 0)
    with pytest.raises(DecoderError, match="decided"):
        apply(decided, commit((3, 12)), 1)


@pytest.mark.parametrize(
    "edit",
    [
        commit((3, 1)),
        Edit(replace=positions(3), replace_tokens=positions(1)),
        Edit(remask=positions(3)),
        Edit(delete=positions(3)),
        Edit(insert=((3, 1),)),
    ],
)
def test_only_an_edit_that_changes_nothing_is_empty(edit):
    assert Edit().is_empty
    assert not edit.is_empty


@st.composite
def edits(draw, current):
    """Any edit that the rules allow on a canvas."""
    own = [position for position in range(len(current)) if not current.fixed[position]]
    open_ = [position for position in own if current.open[position]]
    decided = [position for position in own if not current.open[position]]

    def some(pool):
        return sorted(draw(st.sets(st.sampled_from(pool), max_size=3))) if pool else []

    chosen, replaced, deleted = some(open_), some(decided), some(own)
    remasked = some(decided)
    where = draw(st.sets(st.integers(current.prompt_length, len(current)), max_size=2))
    return Edit(
        commit=positions(*chosen),
        tokens=positions(
            *draw(st.lists(st.integers(0, 50), min_size=len(chosen), max_size=len(chosen)))
        ),
        confidence=np.ones(len(chosen)),
        replace=positions(*replaced),
        replace_tokens=positions(*[51] * len(replaced)),
        remask=positions(*remasked),
        delete=positions(*deleted),
        insert=tuple((position, draw(st.integers(1, 3))) for position in sorted(where)),
    )


@given(st.data(), st.integers(0, 3), st.integers(1, 5))
def test_any_sequence_of_edits_equals_a_list_that_is_edited_by_hand(data, prompt, blanks):
    """The mirror is a list of [uid, token or None, fixed]."""
    current = canvas(prompt, blanks)
    mirror = [[i, 7 if i < prompt else None, i < prompt] for i in range(prompt + blanks)]
    highest = prompt + blanks - 1  # an identity is never given twice
    for step in range(data.draw(st.integers(1, 6))):
        edit = data.draw(edits(current))
        for position, token in zip(edit.commit, edit.tokens, strict=True):
            mirror[position][1] = int(token)
        for position in edit.replace:
            mirror[position][1] = 51
        for position in edit.remask:
            mirror[position][1] = None
        new = []
        inserts = dict(edit.insert)
        for position in range(len(mirror) + 1):
            for _ in range(inserts.get(position, 0)):
                highest += 1
                new.append([highest, None, False])
            if position < len(mirror) and position not in edit.delete:
                new.append(mirror[position])
        mirror = new
        current = apply(current, edit, step)
        assert current.uid.tolist() == [item[0] for item in mirror]
        assert current.tokens.tolist() == [MASK if item[1] is None else item[1] for item in mirror]
        assert current.open.tolist() == [item[1] is None for item in mirror]
        assert current.fixed.tolist() == [item[2] for item in mirror]
        assert current.tokens.tolist()[:prompt] == [7] * prompt
        assert len({len(current.tokens), len(current.open), len(current.origin)}) == 1


def reading(*odds):
    return Reading(
        positions=np.arange(len(odds)) * 2,
        tokens=np.arange(len(odds)) + 30,
        log_odds=np.array(odds, dtype=np.float64),
        uniform=np.zeros(len(odds)),
    )


def test_a_readings_confidence_and_doubt_add_to_one():
    some = reading(0.0, 2.0, -2.0, -np.inf)
    assert some.confidence == pytest.approx([0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)), 0.0])
    assert some.confidence + some.doubt == pytest.approx([1, 1, 1, 1])


def test_doubt_is_exact_where_confidence_rounds_to_one():
    some = reading(60.0, 61.0)
    assert some.confidence.tolist() == [1.0, 1.0]
    assert some.doubt == pytest.approx([np.exp(-60), np.exp(-61)])


def test_a_reading_commits_by_index_in_position_order():
    edit = reading(1.0, 2.0, 3.0).commit(positions(2, 0))
    assert edit.commit.tolist() == [0, 4]
    assert edit.tokens.tolist() == [30, 32]
    assert edit.confidence[1] > edit.confidence[0]


def test_insertions_and_deletions_are_those_of_a_walk_over_the_positions():
    draw = np.random.default_rng(0)
    for _ in range(60):
        size, prompt = int(draw.integers(3, 12)), 1
        canvas = new_canvas(list(range(size)), [i >= prompt for i in range(size)], prompt, 99)
        deleted = np.flatnonzero(draw.random(size) < 0.4)
        deleted = deleted[deleted >= prompt]
        places_ = draw.permutation(np.arange(prompt, size + 1))[: int(draw.integers(0, 4))]
        inserted = {int(place): int(draw.integers(1, 4)) for place in places_}
        changed = apply(canvas, Edit(delete=deleted, insert=tuple(inserted.items())), 0)
        walk, new = [], size
        for position in range(size + 1):
            walk += [None] * inserted.get(position, 0)
            walk += [position] if position < size and position not in deleted else []
        for i, uid in enumerate(walk):
            if uid is None:
                walk[i], new = new, new + 1
        assert changed.uid.tolist() == walk
        assert changed.next_uid == new
        assert changed.open.tolist() == [uid >= prompt for uid in walk]


def edits_of(canvas, values):
    """Edits that only commit, sound and broken ones, from drawn numbers."""
    commits, tokens, confidence = values
    count = min(len(commits), len(tokens))
    return Edit(
        commit=positions(*commits[:count]),
        tokens=positions(*tokens[:count]),
        confidence=np.array(confidence[:count] or [0.5] * count, dtype=np.float64),
    )


NUMBERS = st.tuples(
    st.lists(st.integers(-1, 6), max_size=3),
    st.lists(st.sampled_from([0, 5, MASK, 120, -1]), max_size=3),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, -0.1, float("nan")]), min_size=3, max_size=3),
)


@given(st.lists(NUMBERS, max_size=4), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_edits_that_are_checked_together_are_checked_as_each_alone(drawn, sizes):
    canvases = [canvas(blanks=size) for size in sizes[: len(drawn)]]
    edits = [edits_of(one, values) for one, values in zip(canvases, drawn, strict=True)]
    alone = [edit_fault(one, edit, 100) for one, edit in zip(canvases, edits, strict=True)]
    assert edit_faults(canvases, edits, 100) == alone


def test_sound_and_other_edits_are_told_apart_in_a_batch():
    sound, late = commit((2, 5), (4, 6)), commit((9, 5))
    odd = [Edit(remask=positions(2)), "no edit", Edit(notes={"a": "b"}), Edit(insert=[(2, 1)])]
    found = edit_faults([canvas()] * 6, [sound, late, *odd], 100)
    assert found[0] is None
    assert all(isinstance(rule, str) for rule in found[1:])
    assert edit_faults([canvas()] * 2, [sound, sound], 100) == [None, None]
    assert edit_faults([], [], 100) == []
