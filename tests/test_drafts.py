"""Drafts: what a decoder may change of an answer that is given, and what it never does."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, KNOWN, MASK, TURN_END, StubTokenizer, tiny_llm, tiny_model, trace_of

import unmask
from unmask import LLM, caches, decoders
from unmask.canvas import NO_POSITIONS, Edit, Reading
from unmask.engine.drafts import read_draft, within_edits
from unmask.errors import ConfigError, GrammarError

DRAFT = list(range(10, 26))
REVISING = [
    ("joint_threshold", {"threshold": 0.3, "edit_threshold": 0.2, "max_post_edit_steps": 3}),
    ("wino", {"wide_in_thres": 0.2, "narrow_out_thres": 0.6}),
    ("wino", {"narrow_out_thres": 0.9, "shadows": "decided"}),
    ("prophet", {"inner": "joint_threshold", "edit_threshold": 0.1}),
    ("prophet", {"inner": "wino", "narrow_out_thres": 0.7}),
]
FAMILIES = {"llada": {}, "dream": {}, "blocks": {"block_size": 4}}
CASES = [
    (*method, cache, family)
    for method, cache, family in product(REVISING, caches.names(), FAMILIES)
    if cache != "auto" and (cache == "block_causal") == (family == "blocks")
]


@cache
def model(family):
    own = "llada" if family == "blocks" else family
    return tiny_llm(own, 0, **FAMILIES[family])


def answer_of(output, num_prompt=3):
    return output.canvas_ids[num_prompt:]


def changes(output, draft=DRAFT, num_prompt=3):
    """Offsets of the draft whose token the answer does not have."""
    pairs = zip(answer_of(output, num_prompt), draft, strict=False)
    return [at for at, (ours, theirs) in enumerate(pairs) if ours != theirs]


def revise(llm, decoder="joint_threshold", draft=DRAFT, prompt=(7, 8, 9), **options):
    usual = {"edit_threshold": 0.2} if decoder == "joint_threshold" else {}
    options = {"stop_at_eos": False, "return_trace": True} | usual | options
    return llm.generate([list(prompt)], decoder, draft=draft, **options)[0]


@pytest.mark.parametrize(("name", "knobs", "cache", "family"), CASES)
@settings(max_examples=3)
@given(data=st.data())
def test_a_seeded_canvas_never_breaks_a_pin_or_its_number_of_edits(
    name, knobs, cache, family, data
):
    size = data.draw(st.integers(2, 14), "size")
    draft = data.draw(st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=size), "draft")
    pins = data.draw(st.sets(st.integers(0, len(draft) - 1), max_size=len(draft)), "pins")
    pins = {at for at in pins if draft[at] != MASK}
    if len(pins) == size:
        pins.pop()
    most = data.draw(st.none() | st.integers(0, len(draft)), "max_edits")
    llm = model(family)
    canvas = llm.prompt_canvas([7, 8, 9], size)
    request = llm.request(
        canvas,
        name,
        cache,
        draft=draft,
        pinned=[(at, at + 1) for at in pins],
        max_edits=most,
        seed=size,
        temperature=data.draw(st.sampled_from([0.0, 1.0]), "temperature"),
        stop_at_eos=data.draw(st.booleans(), "stop_at_eos"),
        block_length=4,
        **knobs,
    )
    given_at = [at for at, id_ in enumerate(draft) if id_ != MASK]
    for event in llm.events([request], 1):
        now = event.sequence.canvas
        ours = now.tokens[3:]
        assert all(ours[at] == draft[at] and not now.open[3 + at] for at in pins)
        num_changed = sum(bool(now.open[3 + at]) or ours[at] != draft[at] for at in given_at)
        assert most is None or num_changed <= most
    assert event.sequence.finish_reason is not None
    assert event.sequence.canvas.num_open == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [n for n in decoders.names() if not decoders.finds_length(n)])
def test_every_decoder_changes_a_draft_or_says_that_it_does_not(name, family):
    llm = model(family)
    decoder = decoders.decoder_class(name)
    options = {"draft": DRAFT, "gen_length": 20, "stop_at_eos": False}
    if decoder.revises:
        output = llm.generate([[7, 8, 9]], name, **options)[0]
        assert len(answer_of(output)) == 20
        return
    with pytest.raises(ConfigError, match="never changes a decided token|lets it grow"):
        llm.generate([[7, 8, 9]], name, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [n for n in decoders.names() if not decoders.finds_length(n)])
def test_every_decoder_that_keeps_the_length_fills_what_a_pinned_draft_leaves_open(name, family):
    llm, draft = model(family), [10, 11, MASK, 13, MASK, MASK, 16, 17]
    pins = [(0, 2), (3, 4), (6, 8)]
    options = {"draft": draft, "pinned": pins, "gen_length": 12, "stop_at_eos": False}
    if name in ("ar", "block_diffusion"):
        with pytest.raises(ConfigError, match="lets it grow"):
            llm.generate([[7, 8, 9]], name, **options)
        return
    answer = answer_of(llm.generate([[7, 8, 9]], name, **options)[0])
    assert [answer[at] for at in (0, 1, 3, 6, 7)] == [10, 11, 13, 16, 17]
    assert MASK not in answer


def test_a_draft_whose_pins_hold_all_but_the_end_is_a_prompt(tiny):
    ours = answer_of(revise(tiny(), "vanilla", pinned=[(0, 16)], gen_length=20))
    theirs = tiny().generate([[7, 8, 9, *DRAFT]], "vanilla", gen_length=4, stop_at_eos=False)
    assert ours == [*DRAFT, *theirs[0].canvas_ids[19:]]


def test_max_edits_goes_from_nothing_to_everything(tiny):
    for decoder, knobs in (("joint_threshold", {}), ("wino", {"narrow_out_thres": 1.0})):
        counts = [
            len(changes(revise(tiny(), decoder, max_edits=most, **knobs)))
            for most in (0, 1, 3, len(DRAFT), None)
        ]
        assert counts[:3] == [0, 1, 3]
        assert counts[3] == counts[4] > 3


def test_the_edits_of_a_small_number_are_the_surest_ones(tiny):
    """In the forward in which the number is too small for all that the decoder asks for."""
    free = revise(tiny(), block_length=16)
    first = free.trace[0].replaced
    bound = revise(tiny(), block_length=16, max_edits=1)
    (only,) = bound.trace[0].replaced
    assert len(first) > 1
    assert only in first


def test_more_pins_keep_more_and_all_but_one_leave_one(tiny):
    free = changes(revise(tiny()))
    assert free
    last = free[-1]
    pins = [(at, at + 1) for at in range(16) if at != last]
    assert set(changes(revise(tiny(), pinned=pins, edit_threshold=0.0))) <= {last}
    assert changes(revise(tiny(), pinned=[(at, at + 1) for at in free])) != free


def test_edit_threshold_one_keeps_a_draft_and_zero_takes_the_models_word(tiny):
    assert changes(revise(tiny(), edit_threshold=1.0)) == []
    kept = revise(tiny(), edit_threshold=0.0, max_post_edit_steps=40)
    assert len(changes(kept)) >= len(changes(revise(tiny())))


def test_narrow_out_thres_zero_keeps_a_draft_and_one_opens_all_of_it(tiny):
    assert changes(revise(tiny(), "wino", narrow_out_thres=0.0)) == []
    opened = revise(tiny(), "wino", narrow_out_thres=1.0, block_length=16)
    assert opened.trace[0].remasked == tuple(range(3, 19))


def test_a_block_of_a_draft_is_verified_once_and_an_empty_one_as_without_a_draft(tiny):
    llm, knobs = tiny(), {"block_length": 4, "narrow_out_thres": 0.0}
    assert revise(llm, "wino", **knobs).num_forwards == 4
    half = revise(llm, "wino", draft=DRAFT[:4], gen_length=8, **knobs)
    plain = llm.generate(
        [[7, 8, 9, *DRAFT[:4]]], "wino", gen_length=4, stop_at_eos=False, return_trace=True, **knobs
    )
    assert trace_of(half)[1:] == trace_of(plain[0])


def test_the_length_is_the_drafts_unless_it_is_given(tiny):
    assert len(answer_of(revise(tiny()))) == 16
    longer = revise(tiny(), gen_length=24)
    assert len(answer_of(longer)) == 24
    assert MASK not in answer_of(longer)
    with pytest.raises(ConfigError, match=r"16 tokens long, but the answer has 8 .*use 16 or more"):
        revise(tiny(), gen_length=8)


def test_a_text_is_a_draft_too_and_its_characters_are_pinned(tiny):
    llm, text = tiny(), "10 11 12 13"
    free = revise(llm, draft=text, edit_threshold=0.0, max_post_edit_steps=40)
    assert 1 in changes(free, [10, 11, 12, 13])
    for pins in ([(3, 5)], ["11"], ["1 1"], [[4, 5]]):
        kept = revise(llm, draft=text, pinned=pins, edit_threshold=0.0, max_post_edit_steps=40)
        assert answer_of(kept)[1] == 11, pins


class Syllables(StubTokenizer):
    """Tokens of one to three bytes of UTF-8 and no spaces, some of which are half a character."""

    DATA = [*"abcdef", "ab", "cd", "é", b"\xe2", b"\x82", b"\xac"]

    def decode(self, ids, skip_special_tokens=False):
        pieces = [self.DATA[i] if i < len(self.DATA) else f"<{i}>" for i in ids]
        return b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces).decode(
            errors="replace"
        )

    def __call__(self, text, add_special_tokens):
        words = {"abé€cd": [6, 8, 9, 10, 11, 7], "abc": [0, 1, 2]}
        return {"input_ids": words[text]}


@pytest.mark.parametrize(
    ("pin", "offsets"),
    [
        ((0, 1), {0}),
        ((1, 2), {0}),
        ("é", {1}),
        ("€", {2, 3, 4}),
        ((2, 4), {1, 2, 3, 4}),
        ("c", {5}),
        ("bé€c", {0, 1, 2, 3, 4, 5}),
    ],
)
def test_a_token_that_has_a_pinned_character_is_pinned_as_a_whole(pin, offsets):
    llm = LLM(tiny_model(), tokenizer=Syllables())
    request = llm.request([7], "wino", draft="abé€cd", pinned=[pin], gen_length=9)
    assert set(np.flatnonzero(request.canvas.fixed[1:]).tolist()) == offsets


def test_every_occurrence_of_a_pinned_text_is_pinned(tiny):
    request = tiny().request([7], "wino", draft="10 11 10 12", pinned=["10"])
    assert np.flatnonzero(request.canvas.fixed[1:]).tolist() == [0, 2]


def test_each_prompt_has_a_draft_of_its_own_and_rows_are_those_decoded_alone(tiny):
    llm, prompts, drafts = tiny(), [[7, 8], [3], [9]], [DRAFT[:8], None, "20 21 22"]
    options = {"gen_length": 8, "edit_threshold": 0.2, "pinned": ["21"], "max_edits": 2}
    outputs = llm.generate(prompts, "joint_threshold", draft=drafts, **options)
    assert outputs[2].canvas_ids[2] == 21
    for prompt, draft, output in zip(prompts, drafts, outputs, strict=True):
        own = options | ({"pinned": None, "max_edits": None} if draft is None else {})
        own |= {"pinned": None} if isinstance(draft, list) else {}
        alone = llm.generate([prompt], "joint_threshold", draft=draft, **own)[0]
        assert alone.canvas_ids == output.canvas_ids
    for draft in (DRAFT, "10 11"):  # one for all
        both = llm.generate([[7], [3]], "wino", draft=draft, narrow_out_thres=0.0)
        assert {tuple(output.canvas_ids[1:]) for output in both} == {
            tuple(DRAFT if draft is DRAFT else (10, 11))
        }


def test_n_answers_revise_the_same_draft_and_chat_takes_one(tiny, demo_llm):
    outputs = tiny().generate(
        [[7]], "wino", draft=DRAFT, n=3, temperature=1.5, pinned=[(0, 4)], narrow_out_thres=1.0
    )
    assert len({tuple(output.canvas_ids) for output in outputs}) > 1
    assert all(output.canvas_ids[1:5] == DRAFT[:4] for output in outputs)
    turns = [{"role": "user", "content": "Tom has 3 pens and buys 2. How many?"}]
    text = "The answer is 9."
    output = demo_llm.chat(turns, "wino", draft=text, pinned=["The answer is"])
    assert output.text.startswith("The answer is")
    kept = demo_llm.chat(turns, "wino", draft=text, max_edits=0)
    assert kept.text == text


def test_an_infill_takes_a_draft_of_each_blank(tiny):
    llm, parts = tiny(), ["1 2", 3, "4 5", 2]
    options = {"narrow_out_thres": 0.0}
    output = llm.infill(parts, "wino", draft=["10 11 12", [20, 21]], **options)
    assert output.canvas_ids == [1, 2, 10, 11, 12, 4, 5, 20, 21]
    half = llm.infill(parts, "wino", draft=["10", None], **options)
    assert half.canvas_ids[2] == 10
    assert MASK not in half.canvas_ids
    kept = llm.infill(["1 2", 4], "wino", draft="10 11 12 13", pinned=["11"], narrow_out_thres=1.0)
    assert kept.canvas_ids[3] == 11
    assert len(kept.blanks) == 2  # like a text between two blanks
    for draft, fault in (
        ("10", "one text for 2 blanks"),
        (["10"], "1 items for 2 prompts or blanks"),
        (["10 11 12 13", None], "the blank has 3 positions"),
    ):
        with pytest.raises(ConfigError, match=fault):
            llm.infill(parts, "wino", draft=draft)


def test_a_stream_begins_as_the_draft(tiny):
    options = {"draft": DRAFT, "max_edits": 0, "stop_at_eos": False}
    canvases = list(tiny().stream([7, 8, 9], "wino", mode="canvas", **options))
    assert canvases[0].tokens[3:].tolist() == DRAFT
    assert "".join(tiny().stream([7, 8, 9], "wino", **options)) == " ".join(map(str, DRAFT))


def test_the_progress_of_a_call_counts_positions_of_the_draft(tiny):
    seen = []
    tiny().generate([[7]], "wino", draft=DRAFT, progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (16, 16)


def test_guidance_hides_pinned_tokens_alone(tiny):
    """As it hides given ones: a draft's other tokens are the answer."""
    free = revise(tiny(), cfg_scale=2.0, edit_threshold=0.0)
    held = revise(tiny(), cfg_scale=2.0, edit_threshold=0.0, pinned=[(0, 8)])
    assert changes(held)
    assert set(changes(held)) <= set(range(8, 16))
    assert changes(free) != changes(held)


# with a constraint


@pytest.fixture(scope="module")
def pieces():
    from test_constrained import PieceTokenizer

    class Typed(PieceTokenizer):
        def __call__(self, text, add_special_tokens):
            from test_constrained import PIECES

            return {"input_ids": [PIECES.index(char) for char in text]}

    return LLM(tiny_model(), tokenizer=Typed())


@pytest.mark.parametrize(("name", "knobs"), REVISING)
def test_a_revised_draft_meets_its_constraint(pieces, name, knobs):
    constraint = unmask.regex("[ab]{3}c[de]{2}")
    for draft in ("abacdd", "xxxxxx", "aba", "eeeeee", "abacdd"):
        options = {"draft": draft.replace("x", "f"), "gen_length": 8, "seed": 3}
        output = pieces.generate(
            [[7]], name, constraint=constraint, temperature=1.0, **options, **knobs
        )
        text = output[0].text
        assert re.fullmatch("[ab]{3}c[de]{2}", text), text


def test_a_draft_that_meets_its_constraint_stays_and_the_wrong_part_of_another_is_opened(pieces):
    constraint = unmask.regex("[ab]{3}c")
    kept = {"narrow_out_thres": 0.0, "constraint": constraint}
    assert pieces.generate([[7]], "wino", draft="abac", **kept)[0].text == "abac"
    request = pieces.request([7], "wino", draft="adac", **kept)
    assert request.canvas.open.tolist() == [False, False, True, False, False]
    assert pieces.generate([[7]], "wino", draft="adac", max_edits=1, **kept)[0].text[::2] == "aa"
    with pytest.raises(GrammarError, match="breaks the constraint at 2 positions, but max_edits=1"):
        pieces.generate([[7]], "wino", draft="ddac", max_edits=1, **kept)
    with pytest.raises(GrammarError, match="pinned or in constraints"):
        pieces.generate([[7]], "wino", draft="adac", pinned=["d"], **kept)


# refused


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"draft": ""}, "neither empty"),
        ({"draft": []}, "must be a text"),
        ({"draft": 3}, "must be a text"),
        ({"draft": b"10"}, "must be a text"),
        ({"draft": [None, 3.5]}, "has the item 3.5"),
        ({"draft": [10, 3.5]}, "whole number"),
        ({"draft": ["10", "11"]}, "2 items for 1 prompts"),
        ({"draft": "10", "max_edits": -1}, "max_edits=-1 must be at least 0"),
        ({"draft": "10", "max_edits": 1.0}, "whole number"),
        ({"draft": "10", "pinned": "10"}, "must be a list"),
        ({"draft": "10", "pinned": [3]}, "a range"),
        ({"draft": "10", "pinned": [(1, 1)]}, "start must be below"),
        ({"draft": "10", "pinned": [(0, 3)]}, "the draft has 2 characters"),
        ({"draft": [10, 11], "pinned": [(0, 3)]}, "the draft has 2 positions"),
        ({"draft": [10, 11], "pinned": ["10"]}, "not in the draft"),
        ({"draft": "10 11", "pinned": ["12"]}, "not in the draft"),
        ({"draft": [10, MASK], "pinned": [(1, 2)]}, "the mask"),
        ({"draft": [10, 11], "pinned": [(0, 2)]}, "all positions of the answer are pinned"),
        ({"pinned": [(0, 1)]}, "pinned=.* has no effect without draft"),
        ({"max_edits": 3}, "max_edits=3 has no effect without draft"),
        ({"draft": "10 11", "constraints": {"1": 12}}, "different tokens at offset 1"),
    ],
)
def test_a_draft_that_says_nothing_sensible_is_refused(tiny, options, fault):
    with pytest.raises(ConfigError, match=fault):
        tiny().generate([[7]], "wino", **options)


def test_a_draft_of_ids_outside_the_vocabulary_is_refused(tiny):
    with pytest.raises(unmask.PromptError, match="outside 0"):
        tiny().generate([[7]], "wino", draft=[10, 99])


def test_a_tokenizer_that_changes_the_text_cannot_pin_parts_of_it(tiny):
    with pytest.raises(ConfigError, match="give the draft as token ids"):
        tiny().generate([[7]], "wino", draft="10  11", pinned=["11"])
    assert tiny().generate([[7]], "wino", draft="10  11", max_edits=0)[0].text == "10 11"


def test_nothing_to_pin_is_no_fault(tiny):
    assert read_draft(None, [], None) is None
    assert read_draft("10", [], None) == read_draft("10")


# the seam


def test_deletions_and_remasks_of_drafted_positions_are_edits(tiny):
    request = tiny().request([7], "wino", draft=DRAFT[:6], max_edits=2)
    canvas = request.canvas
    nothing = Reading(
        NO_POSITIONS, NO_POSITIONS, NO_POSITIONS.astype(float), NO_POSITIONS.astype(float)
    )

    def kept(edit, shadows=NO_POSITIONS, reading=nothing):
        return within_edits(request, canvas, edit, shadows, reading)

    two, three = np.array([2, 4]), np.array([2, 4, 6])
    assert kept(Edit(delete=two)).delete.tolist() == [2, 4]
    assert kept(Edit(delete=three)).delete.tolist() == []
    assert kept(Edit(remask=three)).remask.tolist() == [2, 4]

    sure = replace(nothing, shadow_log_odds=np.array([3.0, 0.0, -1.0]))
    assert kept(Edit(remask=three), three, sure).remask.tolist() == [4, 6]
    both = Edit(replace=np.array([1]), replace_tokens=np.array([5]), remask=three)
    assert kept(both, three, sure).remask.tolist() == [6]
    assert kept(both, three, sure).replace.tolist() == [1]


def test_padding_is_no_draft(tiny):
    llm = tiny()
    outputs = llm.generate(
        [[7, 8, 9]] * 4, "wino", gen_length=16, temperature=2.0, drop_after_eos=True
    )
    again = llm.generate(
        [[7, 8, 9]] * 4, "wino", gen_length=16, temperature=2.0, drop_after_eos=True
    )
    assert [o.canvas_ids for o in outputs] == [o.canvas_ids for o in again]
    assert any(EOS in o.canvas_ids or TURN_END in o.canvas_ids for o in outputs)


def test_options_of_a_draft_are_offered_in_errors(tiny):
    with pytest.raises(ConfigError, match="draft"):
        tiny().generate([[7]], "wino", drafts="10")
