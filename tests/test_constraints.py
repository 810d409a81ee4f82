"""Given tokens of an answer: they stand where they were given, with every decoder, in any batch."""

from __future__ import annotations

import signal

import pytest
from tiny import EOS, MASK, trace_of

from unmask import ConfigError, decoders
from unmask.canvas import new_canvas
from unmask.knobs import read_pairs, set_field
from unmask.method import MethodSpec, Source
from unmask.sampling.params import SamplingParams

PROMPTS = ([1, 2, 3], [4, 5, 6, 7, 8])
GIVEN = {2: 5, "3": 7, 9: 1, 10: 2, 11: 3}
FIXED_LENGTH = [name for name in decoders.names() if not decoders.make_decoder(name, {}).grows]


def generate(llm, prompts, name, cache="auto", **options):
    call = {"gen_length": 12, "constraints": GIVEN, "return_trace": True, "stop_at_eos": False}
    if "block_length" in decoders.knob_names(name):
        call["block_length"] = 3
    return llm.generate(prompts, name, cache, **(call | options))


@pytest.mark.parametrize("name", FIXED_LENGTH)
@pytest.mark.parametrize("block_size", [None, 4])
def test_given_tokens_stand_with_every_decoder_and_in_a_batch(name, block_size, tiny):
    """One block is given completely, the last one."""
    for cache in ("none", "auto", "dual") if block_size is None else ("none", "auto"):
        llm = tiny("llada", seed=1, block_size=block_size)
        together = generate(llm, PROMPTS, name, cache)
        for prompt, out in zip(PROMPTS, together, strict=True):
            answer = out.canvas_ids[len(prompt) :]
            assert all(answer[int(at)] == token for at, token in GIVEN.items())
            assert MASK not in answer
            committed = {position - len(prompt) for step in trace_of(out) for position, _ in step}
            assert committed == set(range(12)) - {int(at) for at in GIVEN}
            alone = generate(llm, [prompt], name, cache)[0]
            assert trace_of(alone) == trace_of(out)


def test_a_given_token_is_read_by_the_model(tiny):
    """It changes what stands elsewhere."""
    llm = tiny("llada", seed=1)
    plain, given = (generate(llm, [[1, 2]], "vanilla", constraints=c)[0] for c in ({}, {0: 40}))
    assert plain.canvas_ids[3:] != given.canvas_ids[3:]


def test_guidance_hides_given_tokens_like_the_prompt(tiny):
    """With the same token given or standing at the prompt's end, the row without a prompt is the same."""
    llm = tiny("llada", seed=3)
    call = {"cfg_scale": 1.0, "gen_length": 9, "stop_at_eos": False, "return_trace": True}
    inside = llm.generate([[1, 2]], "vanilla", constraints={0: 40}, block_length=9, **call)[0]
    before = llm.generate([[1, 2, 40]], "vanilla", block_length=8, **call | {"gen_length": 8})[0]
    assert inside.canvas_ids == before.canvas_ids


def test_a_given_end_of_text_ends_the_answer(tiny):
    llm = tiny("llada", seed=1)
    out = llm.generate([[1, 2]], "vanilla", gen_length=8, constraints={3: EOS})[0]
    assert out.finish_reason == "stop"
    assert len(out.token_ids) == 3


def test_texts_are_tokens_from_their_offset_on(tiny):
    llm = tiny("llada", seed=1)
    forms = ({"4": "7 8 9"}, {4: 7, 5: "8 9"}, "4:7 8|6:9", '{"4": "7", "5": 8, "6": "9"}')
    answers = [
        llm.generate([[1, 2]], "vanilla", gen_length=8, constraints=form)[0].canvas_ids
        for form in forms
    ]
    assert answers[0][6:9] == [7, 8, 9]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({12: 5}, "offset 12 is beyond the 12 generated positions"),
        ({-1: 5}, "must be at least 0"),
        ({0: MASK}, "is the mask"),
        ({0: 64}, "is no token"),
        ({0: "5 6", 1: 7}, "offset 1 twice"),
        (dict.fromkeys(range(12), 5), "leave at least one"),
        ({0: True}, "must be a whole number"),
        ({0: 1.5}, "must be a whole number"),
        ({"a": 1}, "must be a whole number"),
        ([1, 2], "must map numbers to values"),
        ("3:5|3:6", "key 3 twice"),
        ("text", "must be a whole number"),
        ({"9" * 5000: 1}, "must be a whole number"),
    ],
)
def test_what_cannot_be_given_is_refused_in_few_words(given, message, tiny):
    with pytest.raises(ConfigError, match=message) as error:
        generate(tiny("llada", seed=1), [[1, 2]], "vanilla", constraints=given)
    assert "constraints" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["daedal", "block_diffusion", "ar"])
def test_a_growing_answer_has_no_fixed_offsets(name, tiny):
    with pytest.raises(ConfigError, match="constant length"):
        tiny("llada", seed=1).generate([[1, 2]], name, constraints={0: 5})


def test_blanks_take_their_given_text_as_text(tiny):
    with pytest.raises(ConfigError, match="between the blanks"):
        tiny("llada", seed=1).infill(["1 2", 4, "5"], constraints={0: 5})


def test_nothing_given_changes_nothing(tiny):
    llm = tiny("llada", seed=1)
    plain = generate(llm, [[1, 2]], "vanilla", constraints=None)[0]
    for empty in ({}, [], "null", {3: ""}):
        assert trace_of(generate(llm, [[1, 2]], "vanilla", constraints=empty)[0]) == trace_of(plain)


def test_a_mapping_is_read_alike_from_python_yaml_and_text():
    for value in ({3: "a", 1: 2}, '{"1": 2, 3: a}', [[3, "a"], ["1", 2]]):
        assert set_field(SamplingParams, "constraints", value) == ((1, 2), (3, "a"))
    assert read_pairs("x", "3:a:b|1:10:30") == ((1, "10:30"), (3, "a:b"))
    given = MethodSpec.parse(Source({"decoder": "prophet", "constraints": "1:x|2:y"}))
    assert given.sampling_params.constraints == ((1, "x"), (2, "y"))


@pytest.mark.parametrize("name", ["wino", "joint_threshold"])
def test_given_text_to_the_right_of_the_last_blank_ends_the_decode(name, tiny):
    """A decoder that revises waits for its last block, which no forward can reach."""
    tokens, blanks = [1, 2] + [0] * 4 + [5] * 8, [False] * 2 + [True] * 4 + [False] * 8
    canvas = new_canvas(tokens, blanks, 2, MASK, infilling=True)
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("does not end"))
    signal.alarm(20)
    try:
        events = list(tiny("llada").stream(canvas, name, block_length=4))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert events[-1].sequence.finish_reason == "length"
