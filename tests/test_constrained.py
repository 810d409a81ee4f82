"""Answers that meet a constraint, whatever the decoder, cache, family, temperature and batch."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_properties import KNOBS, knobs_for
from tiny import EOS, KNOWN, MASK, TURN_END, StubTokenizer, confidences_of, tiny_model, trace_of

import unmask
from unmask import LLM, caches, decoders
from unmask.canvas import Ask, Edit
from unmask.decoders.threshold import Threshold
from unmask.engine.model_runner import ModelRunner
from unmask.engine.token_bytes import vocabulary_bytes
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import ConfigError, DecoderError, GrammarError

PIECES = [*'{}[]":, .-0123456789abcefrnstuldgo\\_é\n', '{"', '":', '","', '"}', "true", "false"]
PIECES += ["null", "ab", "1.", "12", "name", "age", "red", "blue", "ok", '": "', ", ", "tag"]
PIECES += [f"w{i}" for i in range(KNOWN - 4 - len(PIECES))]


class PieceTokenizer(StubTokenizer):
    """Pieces of JSON: the text of tokens is that of one after another."""

    def decode(self, ids, skip_special_tokens=False):
        hidden = {MASK, EOS, TURN_END} if skip_special_tokens else set()
        return "".join("" if i in hidden else self.piece(i) for i in ids)

    @staticmethod
    def piece(id_):
        return PIECES[id_] if id_ < len(PIECES) else f"<{id_}>"


def is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tag": {"enum": ["red", "blue", None]},
    },
    "required": ["name", "tag"],
}


def fits_schema(text):
    value = json.loads(text)
    return (
        set(value) - {"age"} == {"name", "tag"}
        and len(value["name"]) <= 8
        and 0 <= value.get("age", 0) <= 130
        and value["tag"] in ("red", "blue", None)
    )


PATTERN = r"(ab|a\d)+(, (true|null))*\.(12|[b-g]{2,3})"
OPTIONS = ["red", "blue ok", "é", "12.5"]
CONSTRAINTS = [
    (unmask.regex(PATTERN), lambda text: re.fullmatch(PATTERN, text)),
    (unmask.json_schema(SCHEMA), fits_schema),
    (unmask.choice(OPTIONS), OPTIONS.__contains__),
    (unmask.json_object(2), is_json),
]
FAMILIES = {"llada": {}, "dream": {}, "blocks": {"block_size": 4}}
METHODS = [(name, knobs) for name in decoders.names() for knobs in KNOBS.get(name, [{}])]


@pytest.fixture(scope="module")
def models():
    """An `LLM` of random weights by family and seed."""
    loaded = {}

    def get(family, seed=0):
        if (family, seed) not in loaded:
            own = "llada" if family == "blocks" else family
            model = tiny_model(own, seed, **FAMILIES[family])
            loaded[family, seed] = LLM(model, tokenizer=PieceTokenizer())
        return loaded[family, seed]

    return get


def cases():
    """Every decoder with every cache and family it allows, once; the rest of the options rotate."""
    names = [name for name in caches.names() if name != "auto"]
    for number, ((name, knobs), cache, family) in enumerate(product(METHODS, names, FAMILIES)):
        if (cache == "block_causal") == (family == "blocks"):
            yield pytest.param(
                name, knobs, cache, family, number, id=f"{name}-{cache}-{family}-{number}"
            )


def answers(llm, name, knobs, cache, number, length=28):
    """Decode two prompts under a constraint; return them with the check of their texts."""
    constraint, check = CONSTRAINTS[number % len(CONSTRAINTS)]
    options = knobs_for(name, knobs, block_length=4)
    if decoders.finds_length(name):
        options = {"initial_gen_length": 6, "max_gen_length": 40} | options
    else:
        options["gen_length"] = length
        if name == "vanilla" and "steps" in knobs:
            options["steps"] = 7
    outputs = llm.generate(
        [[7, 8, 9], [3]],
        name,
        cache,
        constraint=constraint,
        seed=number,
        temperature=(0.0, 1.0, 3.0)[number // 4 % 3],
        **options,
    )
    return outputs, check


@pytest.mark.parametrize(("name", "knobs", "cache", "family", "number"), list(cases())[::7])
def test_every_answer_meets_its_constraint(models, name, knobs, cache, family, number):
    outputs, check = answers(models(family, number % 3), name, knobs, cache, number)
    for output in outputs:
        assert check(output.text), output.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "knobs", "cache", "family", "number"), list(cases()))
def test_every_answer_meets_its_constraint_in_2000_cases(
    models, name, knobs, cache, family, number, seed
):
    outputs, check = answers(models(family, seed), name, knobs, cache, number + 7 * seed)
    for output in outputs:
        assert check(output.text), output.text


@pytest.mark.parametrize(("name", "knobs"), METHODS)
def test_a_constraint_that_forbids_nothing_changes_nothing(models, name, knobs):
    free = unmask.regex(r"(.|\n)*")
    options = knobs_for(name, knobs, block_length=4)
    options |= {"max_gen_length": 12} if decoders.finds_length(name) else {"gen_length": 8}
    if decoders.finds_length(name):
        options["initial_gen_length"] = 6
    for temperature in (0.0, 1.0):
        options |= {"temperature": temperature, "return_trace": True, "logits_eos_inf": False}
        llm = without_ends(models("llada", 1))
        plain = llm.generate([[7, 8], [3]], name, **options)
        ours = llm.generate([[7, 8], [3]], name, constraint=free, **options)
        for a, b in zip(plain, ours, strict=True):
            assert trace_of(a) == trace_of(b)
            assert confidences_of(a) == confidences_of(b)
            assert a.canvas_ids == b.canvas_ids


def without_ends(llm):
    """The same model, which never proposes an end token or the token without a piece."""
    model = llm.model
    clone = type(model)(llm.spec)
    clone.load_state_dict(model.state_dict())
    clone.eval().requires_grad_(False)
    plain = clone.head

    def head(hidden):
        logits = plain(hidden).clone()
        logits[..., [EOS, TURN_END]] = -50.0
        return logits

    clone.head = head
    return LLM(clone, tokenizer=llm.tokenizer)


@pytest.mark.parametrize("name", ["vanilla", "threshold", "klass", "eb_sampler", "joint_threshold"])
def test_a_decode_without_forbidden_proposals_is_that_without_a_constraint(models, name):
    """The allowed pieces are those that the free run proposed anywhere, committed or not."""
    proposed = set()

    class Recorder(ModelRunner):
        def collect(self, pending):
            observations = super().collect(pending)
            for each in observations:
                proposed.update(each.reading.tokens.tolist())
            return observations

    num_compared = 0
    for seed in range(3):
        llm = without_ends(models("llada", seed))
        proposed.clear()
        llm.make_runner = Recorder
        options = {"gen_length": 6, "return_trace": True} | knobs_for(
            name, KNOBS.get(name, [{}])[0]
        )
        plain = llm.generate([[7, 8]], name, **options)[0]
        del llm.make_runner
        assert len(proposed) < KNOWN - 10
        pieces = "|".join(re.escape(PieceTokenizer.piece(id_)) for id_ in sorted(proposed))
        ours = llm.generate([[7, 8]], name, constraint=unmask.regex(f"({pieces})*"), **options)[0]
        assert trace_of(ours) == trace_of(plain)
        assert confidences_of(ours) == confidences_of(plain)
        num_compared += 1
    assert num_compared == 3


def test_a_batch_of_different_constraints_equals_its_rows(models):
    llm = models("llada")
    constraints = [None, *(constraint for constraint, _ in CONSTRAINTS)]
    requests = [
        llm.request([5, 6, 7], "threshold", gen_length=24, threshold=0.3, seed=i, constraint=each)
        for i, each in enumerate(constraints)
    ]
    together = llm.run(requests, 8)
    for request, sequence in zip(requests, together, strict=True):
        alone = llm.run([request], 1)[0]
        assert alone.canvas.tokens.tolist() == sequence.canvas.tokens.tolist()
        assert alone.num_forwards == sequence.num_forwards
    for sequence, (_, check) in zip(together[1:], CONSTRAINTS, strict=True):
        assert check(llm.output(sequence, return_trace=False).text)


@pytest.mark.parametrize("name", ["vanilla", "prophet", "wino", "joint_threshold"])
def test_all_forwards_make_progress_and_are_bounded(models, name):
    llm = models("llada")
    canvas = llm.prompt_canvas([7], 20)
    knobs = KNOBS.get(name, [{}])[0]
    events = list(llm.stream(canvas, name, constraint=CONSTRAINTS[1][0], **knobs))
    assert len(events) <= events[-1].sequence.request.max_forwards + 20
    assert all(not event.edit.is_empty for event in events) or name in ("wino", "joint_threshold")


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_every_blank_of_an_infill_meets_the_constraint(models, cache):
    name, age = (str(PIECES.index(word)) for word in ("name", "age"))
    for seed in range(3):
        llm = models("llada", seed)
        output = llm.infill([name, 5, age, 4], "vanilla", cache, constraint=CONSTRAINTS[2][0])
        assert len(output.blanks) == 2
        assert set(output.blanks) <= set(OPTIONS)
        assert re.fullmatch("name(red|blue ok|é|12.5)age(red|blue ok|é|12.5)", output.text)


def test_given_tokens_are_part_of_the_text(models):
    llm, constraint = models("llada"), unmask.regex("[a-f]{6}1(2|3)")
    given = {2: PIECES.index("d"), 4: PIECES.index("ab")}
    output = llm.generate([[7]], gen_length=12, constraint=constraint, constraints=given)[0]
    assert re.fullmatch("[a-f]{6}1(2|3)", output.text)
    assert [output.token_ids[2], output.token_ids[4]] == list(given.values())
    with pytest.raises(GrammarError, match="given tokens of the answer.*contradict"):
        llm.generate(
            [[7]], gen_length=12, constraint=constraint, constraints={2: PIECES.index("true")}
        )


@pytest.mark.parametrize(
    "family", ["dream", "fast_dllm_v2", "llada", "llada2_moe", "llada_moe", "sdar"]
)
def test_a_constraint_holds_for_every_family(parity_model, family):
    model = copy.copy(parity_model(family))
    mask_id, eos_id = min(model.spec.mask_id, 1023), min(model.spec.eos_id, 1022)
    model.spec = replace(model.spec, mask_id=mask_id, eos_id=eos_id)

    class Wide(PieceTokenizer):
        def __len__(self):
            return 960

        def get_vocab(self):
            return {str(i): i for i in range(960)} | {"end": eos_id}

        def decode(self, ids, skip_special_tokens=False):
            return "".join(PIECES[i % len(PIECES)] for i in ids if i < 960 and i != eos_id)

    llm = LLM(model, tokenizer=Wide())
    for number, name in enumerate(["vanilla", "threshold", "prophet", "block_diffusion"]):
        constraint, check = CONSTRAINTS[number]
        options = {"gen_length": 32, "temperature": float(number % 2)}
        assert check(llm.generate([[7, 8]], name, constraint=constraint, **options)[0].text)


def test_a_canvas_that_is_too_short_is_refused_with_the_positions_needed(models):
    llm = models("llada")
    constraint = unmask.regex("[12]{30}")
    with pytest.raises(GrammarError, match="at least 15 positions, but the answer has 14"):
        llm.generate([[7]], gen_length=14, constraint=constraint)
    output = llm.generate([[7]], gen_length=15, constraint=unmask.regex("(12){15}"))[0]
    assert output.text == "12" * 15
    with pytest.raises(GrammarError, match="this blank has 2"):
        llm.infill(["1", 2, "2"], constraint=unmask.regex("[12]{30}"))


def test_without_an_end_token_the_text_fills_the_canvas_exactly():
    llm = LLM(tiny_model("llada", eos_id=99, turn_end=None), tokenizer=PieceTokenizer())
    assert not llm.stop_ids
    output = llm.generate([[7]], gen_length=6, constraint=unmask.regex("[a-c]{6}"))[0]
    assert len(output.token_ids) == 6
    with pytest.raises(GrammarError, match="fills exactly 8 positions.*shortest has 3"):
        llm.generate([[7]], gen_length=8, constraint=unmask.regex("[a-c]{6}"))


def test_a_growing_answer_grows_until_the_text_ends(models):
    long = unmask.regex("(ab ){20}")
    for name, options in {
        "daedal": {"initial_gen_length": 4, "max_gen_length": 64, "initial_eot_expand_thres": 0.0},
        "block_diffusion": {"block_length": 4, "gen_length": 64},
        "ar": {"gen_length": 64},
    }.items():
        output = models("llada").generate([[7]], name, constraint=long, **options)[0]
        assert output.text == "ab " * 20, name
    with pytest.raises(GrammarError, match="at least 40 positions, but the answer has 30"):
        models("llada").generate(
            [[7]], "daedal", constraint=long, initial_gen_length=4, max_gen_length=30
        )


def test_no_decision_of_an_own_decoder_breaks_the_constraint(models):
    class Stubborn(Threshold):
        """Writes a token of its own choice everywhere, at once."""

        def step(self, canvas, state, reading):
            open_ = canvas.open_positions()
            tokens = np.full(len(open_), PIECES.index("a"))
            edit = Edit(commit=open_, tokens=tokens, confidence=np.ones(len(open_)))
            return edit, replace(state, step=state.step + 1)

    text = (
        models("llada")
        .generate([[7]], Stubborn(), gen_length=8, constraint=unmask.regex("(ab?,)+"))[0]
        .text
    )
    assert re.fullmatch("(ab?,)+", text)


def test_allowed_sets_belong_to_the_engine(models):
    class Meddler(Threshold):
        def ask(self, canvas, state):
            ask, state = super().ask(canvas, state)
            return replace(ask, allowed=object()), state

    with pytest.raises(DecoderError, match="set by the engine"):
        models("llada").generate([[7]], Meddler(), gen_length=4)
    assert Ask.__dataclass_fields__["allowed"].default is None


def test_what_cannot_be_obeyed_is_refused(models, tmp_path):
    llm = models("llada")
    with pytest.raises(ConfigError, match="vocabulary=union leaves out tokens"):
        llm.generate([[7]], constraint=CONSTRAINTS[0][0], vocabulary="union")
    with pytest.raises(GrammarError, match="must be unmask.regex"):
        llm.generate([[7]], constraint="a*")
    with pytest.raises(GrammarError, match="cannot spell"):
        llm.generate([[7]], constraint=unmask.regex("€+"))
    with pytest.raises(GrammarError, match="needs a model with a tokenizer"):
        LLM(tiny_model()).generate([[7]], constraint=CONSTRAINTS[0][0])


def test_the_bundled_model_answers_in_json():
    llm = LLM("demo")
    schema = {"properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    output = llm.generate(["What is 2 + 3?"], gen_length=24, constraint=unmask.json_schema(schema))[
        0
    ]
    assert isinstance(json.loads(output.text)["answer"], int)


@pytest.mark.parametrize("name", ["dream", "llada", "llada2_moe"])
def test_bytes_of_real_tokenizers_join_to_their_texts(name):
    tokenizer = load_tokenizer(Path(__file__).parent / "fixtures" / "tokenizers" / name)
    data = vocabulary_bytes(tokenizer, len(tokenizer), mask_id=0)
    text = '{"näme": "𝄞 x", "n": [1, -2.5e3]}\n'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [data.later[id_] for id_ in ids]
    assert None not in pieces
    assert b"".join(pieces) == text.encode()
    assert not any(data.later[id_] for id_ in tokenizer.all_special_ids)
