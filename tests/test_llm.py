"""`LLM`: what a caller may give, and what comes back."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny import (
    EOS,
    FAMILIES,
    KNOWN,
    MASK,
    TURN_END,
    VOCAB,
    StubTokenizer,
    TableModel,
    tiny_model,
    tiny_spec,
    trace_of,
    want,
)

import unmask
from unmask import LLM, ConfigError, ModelError, PromptError
from unmask.engine.drafter import draft_by
from unmask.errors import SettingWarning

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Parity checkpoints with their family's tokenizer, as a released folder has it."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        for source in ("parity", "tokenizers"):
            for path in (FIXTURES / source / family).iterdir():
                if path.name in ("config.json", "model.safetensors") or "tokenizer" in path.name:
                    shutil.copy(path, made[family])
    return made


@pytest.fixture(scope="module")
def chat_llm(folders):
    loaded = {family: LLM(folder, device="cpu") for family, folder in folders.items()}
    return loaded.__getitem__


def says(*tokens, order=None, family="llada"):
    """A model that puts `tokens` behind a prompt of two, whatever it reads; surest first by `order`."""
    shift = 1 if family == "dream" else 0
    table = torch.zeros(64, VOCAB)
    order = range(len(tokens)) if order is None else order
    for rank, i in enumerate(order):
        table[2 + i - shift, tokens[i]] = 20.0 - rank / 4
    stub = TableModel(tiny_spec(family, max_length=64), table)
    return LLM(stub, tokenizer=StubTokenizer())


SMALL = {"gen_length": 4, "block_length": 4}


# what may be given


def test_the_front_door_is_exported():
    assert {"LLM", "Output", "load_model"} <= set(unmask.__all__)
    assert unmask.LLM is LLM


def test_one_prompt_and_many_give_a_list_in_order(tiny):
    llm = tiny()
    one_text = llm.generate("7 8", **SMALL)
    texts = llm.generate(["7 8", "9"], **SMALL)
    one_ids = llm.generate([7, 8], **SMALL)
    ids = llm.generate([[7, 8], [9]], **SMALL)
    for outputs in (one_text, texts, one_ids, ids):
        assert isinstance(outputs, list)
        assert all(isinstance(output, unmask.Output) for output in outputs)
    assert [len(outputs) for outputs in (one_text, texts, one_ids, ids)] == [1, 2, 1, 2]
    assert texts == ids
    assert one_text == one_ids == ids[:1]
    assert [output.canvas_ids[: output.prompt_length] for output in ids] == [[7, 8], [9]]


def test_tuples_and_mixtures_of_text_and_ids_are_prompts_too(tiny):
    outputs = tiny().generate(("7 8", (9, 3)), **SMALL)
    assert [output.canvas_ids[:2] for output in outputs] == [[7, 8], [9, 3]]


def test_no_prompts_give_no_outputs(tiny):
    assert tiny().generate([], **SMALL) == []


def test_prompts_of_ids_are_used_as_given(tiny):
    prompt = [EOS, MASK, 0, KNOWN, VOCAB - 1, TURN_END, EOS]
    output = tiny().generate([prompt], **SMALL)[0]
    assert output.canvas_ids[:7] == prompt
    assert output.prompt_length == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_a_user_turn_of_the_chat_template_and_raw_text_is_itself(family, chat_llm):
    llm = chat_llm(family)
    text = "def main():"
    rendered = llm.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert text in rendered
    assert rendered != text
    chat = llm.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    plain = llm.tokenizer(text, add_special_tokens=True)["input_ids"]
    assert llm.generate(text, **SMALL)[0].canvas_ids[:-4] == list(chat)
    assert llm.generate(text, raw=True, **SMALL)[0].canvas_ids[:-4] == list(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_continues_a_conversation(family, chat_llm):
    llm = chat_llm(family)
    messages = [
        {"role": "user", "content": "import os"},
        {"role": "assistant", "content": "print(1)"},
        {"role": "user", "content": "return"},
    ]
    output = llm.chat(messages, "threshold", cache="dual", threshold=0.1, **SMALL)
    assert isinstance(output, unmask.Output)
    ids = llm.chat_ids(messages)
    assert output.canvas_ids[:-4] == ids
    shown = llm.tokenizer.decode(ids)
    assert shown.index("import os") < shown.index("print(1)") < shown.index("return")
    assert output == llm.generate([ids], "threshold", "dual", threshold=0.1, **SMALL)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokenizers_give_their_special_ids_to_the_engine(family, chat_llm):
    llm = chat_llm(family)
    turn_end = {"llada": 1012, "dream": 1002}[family]
    assert llm.stop_ids == {llm.spec.eos_id, turn_end}
    assert llm.tokenizer.convert_ids_to_tokens(turn_end) == llm.spec.turn_end
    forbidden = set(llm.vocabulary.forbidden.tolist())
    assert llm.spec.mask_id in forbidden
    assert forbidden - {llm.spec.mask_id} == set(range(len(llm.tokenizer), llm.spec.vocab_size))


def test_the_tokenizer_is_read_without_its_folders_code(folders, tmp_path):
    for path in folders["dream"].iterdir():
        shutil.copy(path, tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "tokenization_dream.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    config["tokenizer_class"] = "DreamTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert LLM(tmp_path, device="cpu").generate("x", **SMALL)
    assert not marker.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1.0"}'])
def test_an_unreadable_tokenizer_is_refused(folders, tmp_path, text):
    for path in folders["llada"].iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="tokenizer"):
        LLM(tmp_path, device="cpu")


def test_a_folder_without_a_tokenizer_takes_ids_only(parity_model):
    llm = LLM(parity_model("llada"))
    output = llm.generate([[5, 6]], **SMALL)[0]
    assert output.text == ""
    assert len(output.canvas_ids) == 6
    for call in (
        lambda: llm.generate("hello", **SMALL),
        lambda: llm.chat([{"role": "user", "content": "hi"}]),
        lambda: llm.infill(["a", 1]),
    ):
        with pytest.raises(PromptError, match="tokenizer"):
            call()


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ModelError, match="highest id is 61.*60 rows"):
        LLM(tiny_model(vocab_size=60, mask_id=59), tokenizer=StubTokenizer())


@pytest.mark.parametrize("changes", [{"eos_id": 126081}, {"pad_id": 126081}])
def test_special_ids_outside_the_vocabulary_do_not_break_a_batch(changes):
    """LLaDA's default ids apply when a small model's config has none."""
    llm = LLM(tiny_model(**changes))
    assert len(llm.generate([[1, 2, 3], [4]], **SMALL)) == 2


def test_suppressing_an_end_token_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match="logits_eos_inf has no effect.*126081"):
        LLM(tiny_model(eos_id=126081)).generate([[1]], logits_eos_inf=True, **SMALL)


# what comes back


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", [EOS, TURN_END])
def test_token_ids_end_before_the_first_end_token_and_canvas_ids_do_not(end, family):
    llm = says(10, 11, end, 12, 13, 14, family=family)
    output = llm.generate([[1, 2]], gen_length=6, stop_at_eos=False)[0]
    assert output.canvas_ids == [1, 2, 10, 11, end, 12, 13, 14]
    assert output.token_ids == [10, 11]
    assert output.text == "10 11"
    assert output.finish_reason == "stop"
    assert output.num_forwards == 6


@pytest.mark.parametrize("end", [EOS, TURN_END])
def test_stopping_skips_what_lies_behind_the_end(end):
    llm = says(10, 11, end, 12, 13, 14)
    output = llm.generate([[1, 2]], gen_length=6, return_trace=True)[0]
    assert output.token_ids == [10, 11]
    assert output.canvas_ids == [1, 2, 10, 11, end, EOS, EOS, EOS]
    assert output.finish_reason == "stop"
    assert output.num_forwards == len(output.trace) == 3


def test_an_end_token_with_open_positions_before_it_does_not_stop():
    llm = says(10, 11, EOS, 12, order=[2, 3, 1, 0])
    output = llm.generate([[1, 2]], gen_length=4, return_trace=True)[0]
    assert output.num_forwards == 4
    assert output.canvas_ids == [1, 2, 10, 11, EOS, 12]
    assert output.token_ids == [10, 11]


def test_an_end_token_of_the_prompt_does_not_stop():
    llm = says(10, 11)
    output = llm.generate([[EOS, TURN_END]], gen_length=2)[0]
    assert output.token_ids == [10, 11]
    assert output.finish_reason == "length"


def test_an_answer_without_end_token_finishes_by_length():
    output = says(10, 11, 12).generate([[1, 2]], gen_length=3)[0]
    assert output.finish_reason == "length"
    assert output.token_ids == [10, 11, 12]
    assert output.trace is None
    assert output.blanks == ()


def test_an_answer_may_be_empty():
    output = says(EOS, 11).generate([[1, 2]], gen_length=2)[0]
    assert (output.token_ids, output.text, output.finish_reason) == ([], "", "stop")
    assert output.num_forwards == 1


def test_the_trace_says_what_each_forward_committed():
    llm = says(10, 11, 12, 13, order=[2, 0, 3, 1])
    output = llm.generate([[1, 2]], gen_length=4, steps=2, return_trace=True)[0]
    assert trace_of(output) == [[(2, 10), (4, 12)], [(3, 11), (5, 13)]]
    step = output.trace[0]
    assert step.committed[0]._fields == ("position", "token", "confidence")
    assert step.committed[1].confidence > step.committed[0].confidence > 0.99
    assert (step.remasked, step.inserted, step.replaced, step.deleted) == ((), (), (), ())
    assert step.num_queries == 6
    kinds = {type(value) for commit in step.committed for value in commit}
    assert kinds == {int, float}, "plain numbers, ready for JSON"


def test_an_output_is_made_of_plain_python_values(tiny):
    output = tiny().generate([[1, 2]], return_trace=True, **SMALL)[0]
    values = dataclasses.asdict(
        dataclasses.replace(output, opening=None)
    )  # the film's first canvas
    assert json.loads(json.dumps(values))["token_ids"] == output.token_ids


def test_forwards_follow_steps(tiny):
    for steps in (2, 4, 8):
        output = tiny().generate(
            [[1]], gen_length=8, block_length=4, steps=steps, stop_at_eos=False
        )[0]
        assert output.num_forwards == steps
    output = tiny().generate([[1]], gen_length=8, block_length=4, steps=16, stop_at_eos=False)[0]
    assert output.num_forwards == 8, "a forward that would commit nothing is not made"


@pytest.mark.parametrize(
    ("gen_length", "block"), [(64, 32), (96, 32), (48, 24), (40, 20), (7, 7), (37, 37)]
)
def test_the_default_block_length_is_32_or_the_nearest_divisor(gen_length, block, tiny):
    output = tiny().generate(
        [[1]], gen_length=gen_length, steps=gen_length, return_trace=True, stop_at_eos=False
    )[0]
    positions = [position - 1 for step in trace_of(output) for position, _ in step]
    assert [position // block for position in positions] == sorted(p // block for p in positions)
    if block < gen_length:
        assert sorted(positions[:block]) == list(range(block))
    assert positions != sorted(positions)


def test_stream_gives_an_event_a_forward(tiny):
    llm = tiny()
    output = llm.generate([[1, 2]], stop_at_eos=False, return_trace=True, **SMALL)[0]
    canvas = llm.prompt_canvas([1, 2], 4)
    seen = []
    for event in llm.stream(canvas, block_length=4, stop_at_eos=False):
        assert event.sequence.num_forwards == len(seen) + 1
        seen.append(list(zip(event.edit.commit.tolist(), event.edit.tokens.tolist(), strict=True)))
    assert seen == trace_of(output)


# infilling


def test_infilling_returns_the_whole_text_and_the_fillings():
    llm = says(9, 10, 11, 12, 13, 14)
    output = llm.infill(["7 8", 2, "5", 1, "6"], return_trace=True)
    assert output.canvas_ids == [7, 8, 9, 10, 5, 12, 6]
    assert output.text == "7 8 9 10 5 12 6"
    assert output.blanks == ("9 10", "12")
    assert output.token_ids == [9, 10, 12]
    assert output.finish_reason == "length"
    assert sorted(position for step in trace_of(output) for position, _ in step) == [2, 3, 5]


@pytest.mark.parametrize("parts", [["7 8", 2], ["7 8", 1, 1]])
def test_a_blank_at_the_end_is_a_blank_like_any_other(parts):
    llm = says(9, 10)
    output = llm.infill(parts)
    assert output.canvas_ids == [7, 8, 9, 10]
    assert output.token_ids == [9, 10]
    assert output.text == "7 8 9 10"
    assert output.blanks == ("9 10",)


def test_a_blank_at_the_end_is_filled_to_its_length_and_in_one_block():
    llm = says(*[EOS] * 40, order=list(reversed(range(40))))
    output = llm.infill(["7 8", 40], return_trace=True)
    assert [position for step in trace_of(output) for position, _ in step] == list(
        reversed(range(2, 42))
    )
    assert output.token_ids == [EOS] * 40


def test_a_blank_may_come_first(tiny):
    output = tiny().infill([2, "7 8"])
    assert output.canvas_ids[2:] == [7, 8]
    assert len(output.blanks) == 1


def test_an_end_token_in_a_blank_does_not_stop_the_filling():
    llm = says(EOS, 10, 11, 12)
    output = llm.infill(["7 8", 1, "5", 2], return_trace=True)
    assert output.canvas_ids == [7, 8, EOS, 5, 11, 12]
    assert output.token_ids == [EOS, 11, 12]


def test_infilling_works_block_by_block_too():
    llm = says(9, 10, 11, 12, 13, 14, order=[5, 4, 3, 2, 1, 0])
    output = llm.infill(["7 8", 2, "5", 3], block_length=3, return_trace=True)
    positions = [position for step in trace_of(output) for position, _ in step]
    assert positions == [3, 2, 7, 6, 5]
    whole = llm.infill(["7 8", 2, "5", 3], return_trace=True)
    assert [position for step in trace_of(whole) for position, _ in step] == [7, 6, 5, 3, 2]


def test_infilling_with_a_real_tokenizer_keeps_the_text(golden_llm):
    output = golden_llm.infill(["Tom has ", 2, " pens and ", 3, " boxes."])
    assert output.text.startswith("Tom has ")
    assert " pens and " in output.text
    assert output.text.endswith(" boxes.")
    assert len(output.blanks) == 2
    assert len(output.token_ids) == 5


@pytest.mark.parametrize(
    "parts",
    [
        "The ___",
        [],
        ["only text"],
        ["a", 0],
        ["a", -1],
        ["a", True, 1],
        ["a", 1.5, 1],
        ["a", None, 1],
    ],
)
def test_infilling_refuses_what_is_not_text_with_blanks(parts, golden_llm):
    with pytest.raises(PromptError, match="blank"):
        golden_llm.infill(parts)


def test_infilling_refuses_a_text_longer_than_the_context(tiny):
    with pytest.raises(PromptError, match="129.*128"):
        tiny().infill(["1", 128])


# errors of the caller


@pytest.mark.parametrize("prompt", ["", [[]], [[1], []], ["7", ""]])
def test_an_empty_prompt_is_refused(prompt, tiny):
    with pytest.raises(PromptError, match="empty"):
        tiny().generate(prompt, **SMALL)


@pytest.mark.parametrize("bad", [-1, VOCAB, 10**9, True, 1.5, "7", None])
def test_a_bad_token_id_is_named(bad, tiny):
    with pytest.raises(PromptError, match=f"{bad!r}"):
        tiny().generate([[1, 2, bad]], **SMALL)


@pytest.mark.parametrize("prompts", [5, None, [5.5], [None], [[1], None]])
def test_something_that_is_no_prompt_is_refused(prompts, tiny):
    with pytest.raises(PromptError):
        tiny().generate(prompts, **SMALL)


def test_a_prompt_that_is_too_long_is_refused_with_what_would_fit(tiny):
    llm = tiny()
    assert llm.generate([[1] * 120], gen_length=8)[0].prompt_length == 120
    with pytest.raises(PromptError, match=r"129.*context is 128; use gen_length=7") as caught:
        llm.generate([[1] * 121], gen_length=8)
    assert "121" in str(caught.value)
    with pytest.raises(PromptError, match="shorten the prompt"):
        llm.generate([[1] * 128], gen_length=1)


@pytest.mark.parametrize("value", [0, -8, True, 2.5, "8"])
def test_a_gen_length_that_is_none_is_refused(value, tiny):
    with pytest.raises(ConfigError, match="gen_length"):
        tiny().generate([[1]], gen_length=value)


@pytest.mark.parametrize("decoder", ["vanilla", "threshold", "factor"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("block_length", [3, 5, 7, 16])
def test_the_last_block_ends_with_the_answer(decoder, cache, block_length, tiny):
    (out,) = tiny().generate(
        [[1]], decoder, cache=cache, gen_length=8, block_length=block_length, return_trace=True
    )
    blocks = [{(position - 1) // block_length for position, _ in step} for step in trace_of(out)]
    assert [min(block) for block in blocks] == sorted(min(block) for block in blocks)
    assert all(len(block) == 1 for block in blocks)
    assert sorted(p for step in trace_of(out) for p, _ in step) == list(range(1, 9))


@pytest.mark.parametrize("value", [0, -4])
def test_a_block_length_below_one_is_refused(value, tiny):
    with pytest.raises(ConfigError, match=f"block_length={value}"):
        tiny().generate([[1]], gen_length=8, block_length=value)


@pytest.mark.parametrize("value", [1, 3, 7, 0, -2])
def test_steps_that_do_not_split_over_the_blocks_are_refused(value, tiny):
    with pytest.raises(ConfigError, match=f"steps={value} .*multiple of 2"):
        tiny().generate([[1]], gen_length=8, block_length=4, steps=value)


@pytest.mark.parametrize(
    ("decoder", "knob", "needed"),
    [
        ("vanilla", "stepz", "did you mean 'steps'"),
        ("vanilla", "block_lenght", "did you mean 'block_length'"),
        ("vanilla", "temprature", "did you mean 'temperature'"),
        ("threshold", "treshold", "did you mean 'threshold'"),
        ("vanilla", "retrun_trace", "did you mean 'return_trace'"),
        ("vanilla", "kl_threshold", "'kl_threshold' is a knob of decoder klass"),
        ("threshold", "factor", "'factor' is a knob of decoder factor"),
        ("threshold", "steps", "'steps' is a knob of decoder block_diffusion, dream, klass"),
        ("factor", "remasking", "'remasking' is a knob of decoder vanilla"),
        ("vanilla", "zzzzzz", "allowed: "),
    ],
)
def test_an_unknown_knob_is_refused_with_the_nearest_or_its_owner(decoder, knob, needed, tiny):
    with pytest.raises(ConfigError, match="unknown knob") as caught:
        tiny().generate([[1]], decoder, **SMALL, **{knob: 1})
    assert repr(knob) in str(caught.value)
    assert needed in str(caught.value)


def test_infilling_refuses_an_option_of_generate_without_offering_it(tiny):
    with pytest.raises(ConfigError) as caught:
        tiny().infill(["1", 2, "3"], gen_length=4)
    assert "did you mean 'gen_length'" not in str(caught.value)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("temperature", -1),
        ("temperature", "warm"),
        ("temperature", float("nan")),
        ("cfg_scale", -0.5),
        ("logits_eos_inf", 3),
        ("remasking", "entropy"),
        ("steps", 2.5),
        ("steps", True),
        ("block_length", "four"),
        ("compat", "maybe"),
    ],
)
def test_a_knob_of_the_wrong_kind_is_named(knob, value, tiny):
    with pytest.raises(ConfigError, match=knob):
        tiny().generate([[1]], **({"gen_length": 4} | {knob: value}))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "high"])
def test_a_threshold_out_of_range_is_refused(value, tiny):
    with pytest.raises(ConfigError, match="threshold"):
        tiny().generate([[1]], "threshold", threshold=value, **SMALL)


@pytest.mark.parametrize("value", [-0.1, float("nan"), "high"])
def test_a_factor_out_of_range_is_refused(value, tiny):
    with pytest.raises(ConfigError, match="factor"):
        tiny().generate([[1]], "factor", factor=value, **SMALL)


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [
        ("decoder", "vanila", "vanilla"),
        ("decoder", "Threshold", "threshold"),
        ("cache", "dula", "dual"),
    ],
)
def test_an_unknown_decoder_or_cache_is_refused_with_the_nearest(kind, name, near, tiny):
    with pytest.raises(ConfigError, match=f"unknown {kind} '{name}'.*{near}"):
        tiny().generate([[1]], **SMALL, **{kind: name})


@pytest.mark.parametrize("name", ["store", "_x", "__init__", "", "../x", None, 3])
def test_a_module_that_is_no_cache_is_no_cache(name, tiny):
    with pytest.raises(ConfigError, match="unknown cache"):
        tiny().generate([[1]], cache=name, **SMALL)


@pytest.mark.parametrize("value", [1.5, "3", True, None])
def test_a_seed_that_is_no_whole_number_is_refused(value, tiny):
    with pytest.raises(ConfigError, match="seed"):
        tiny().generate([[1]], seed=value, **SMALL)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63, 2**64 - 1, 2**70])
def test_any_whole_number_is_a_seed(seed, tiny):
    assert tiny().generate([[1]], seed=seed, temperature=1.0, **SMALL)


def test_a_chat_has_one_answer_or_a_list_of_n(chat_llm):
    llm = chat_llm("llada")
    messages = [{"role": "user", "content": "hi"}]
    sampled = SMALL | {"temperature": 2.0}
    ids = [output.canvas_ids for output in llm.chat(messages, n=3, seed=2, **sampled)]
    assert len(ids) == 3
    assert ids[0] != ids[1]
    assert ids[1] == llm.chat(messages, seed=3, **sampled).canvas_ids


@pytest.mark.parametrize("value", [0, -1])
def test_a_batch_of_none_is_refused(value, tiny):
    with pytest.raises(ConfigError, match="max_batch_size"):
        tiny().generate([[1]], max_batch_size=value, **SMALL)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        ["hi"],
        "hi",
    ],
)
def test_messages_that_are_none_are_refused(messages, chat_llm):
    with pytest.raises(PromptError):
        chat_llm("llada").chat(messages, **SMALL)


def test_chat_without_a_template_is_refused(tiny):
    with pytest.raises(PromptError, match="chat template"):
        tiny().chat([{"role": "user", "content": "1"}], **SMALL)


def test_errors_are_found_before_any_forward(tiny, monkeypatch):
    llm = tiny()
    monkeypatch.setattr(type(llm.model), "hidden", lambda *_: pytest.fail("a forward was made"))
    with pytest.raises(PromptError):
        llm.generate([[1], [1] * 200], **SMALL)
    with pytest.raises(ConfigError):
        llm.generate([[1]], gen_length=8, block_length=0)


# one method by another name, and methods around methods


@pytest.mark.parametrize(
    ("knobs", "method"),
    [
        ({"threshold": 0.8}, "threshold(threshold=0.8)"),
        ({"factor": 2.0}, "factor(factor=2.0)"),
        ({"gamma": 0.3}, "eb_sampler(gamma=0.3, order=confidence)"),
        ({"debias": True, "clip_alpha": 5.0}, "pc_sampler(clip_alpha=5.0, lambd=0.0)"),
        ({"sigma": 4.0}, "vanilla(sigma=4.0)"),
    ],
)
def test_what_the_documents_write_on_vanilla_is_the_method_it_names(knobs, method, tiny):
    out = tiny().generate([[1, 2]], "vanilla", gen_length=8, **knobs)[0]
    assert out.method == method


def test_steps_that_the_named_method_does_not_have_are_warned_of(tiny):
    with pytest.warns(SettingWarning, match="steps=4 has no effect"):
        out = tiny().generate([[1, 2]], gen_length=8, steps=4, threshold=0.5)[0]
    assert out.method == "threshold(threshold=0.5)"


def test_two_methods_in_one_call_are_refused(tiny):
    with pytest.raises(ConfigError, match="threshold and factor name different methods"):
        tiny().generate([[1]], **SMALL, threshold=0.5, factor=1.0)


def test_a_decoders_name_may_carry_its_knobs(tiny):
    llm = tiny()
    inside = llm.generate([[1, 2]], "prophet(inner=threshold, threshold=0.4)", gen_length=8)[0]
    beside = llm.generate([[1, 2]], "prophet", inner="threshold", threshold=0.4, gen_length=8)[0]
    assert inside == beside
    assert inside.method == "prophet(inner=threshold(threshold=0.4))"
    with pytest.raises(ConfigError, match=r"threshold=0.4 and threshold=0.5 contradict"):
        llm.generate([[1]], "threshold(threshold=0.4)", threshold=0.5, **SMALL)


@pytest.mark.parametrize(
    ("decoder", "knobs", "message"),
    [
        ("threshold(", {}, "not of the form"),
        ("threshold(0.4)", {}, "not of the form key=value"),
        ("threshold(threshold=[)", {}, "brackets"),
        ("prophet", {"inner": "prophet"}, "wraps a decoder itself"),
        ("prophet", {"inner": "ar"}, "constant length"),
        ("prophet", {"inner": "daedal"}, "constant length"),
        ("prophet", {"answer_start": 99}, "answer_start=99 is beyond"),
        ("prophet", {"inner": "treshold"}, "did you mean 'threshold'"),
        ("prophet", {"gap": "probability"}, "never reached"),
        ("speculative", {"inner": "daedal"}, "such as daedal"),
        ("threshold", {"lambd": 1.0}, "lambd=1.0 has no effect with score=confidence"),
        ("threshold", {"sigma": 0.0}, "sigma=0.0 must be greater than 0"),
        ("threshold", {"top_p": 1.5}, "top_p=1.5 must be between 0 and 1"),
        ("threshold", {"max_missed": 0.1}, "no effect without vocabulary=union"),
        ("threshold", {"vocabulary": "union", "cfg_scale": 1.0}, "cannot bound"),
        ("threshold", {"frequencies": "x.json"}, "has no effect here"),
        ("cadllm", {"threshold": 0.5}, "adaptive_threshold=false"),
        ("cadllm", {"min_block": 9, "max_block": 3}, "1 <= min_block <= max_block"),
        ("dream", {"alg": "origin", "alg_temp": 1.0}, "no effect with alg=origin"),
        ("hierarchy", {"low_threshold": 0.95}, "low_threshold <= threshold"),
        ("wino", {"wide_in_thres": 1.5}, "wide_in_thres=1.5"),
        ("wino", {"draft_share": -0.1}, "draft_share=-0.1 must be between 0 and 1"),
        ("wino", {"min_draft": 0}, "use 1 <= min_draft <= max_draft"),
        ("wino", {"max_draft": 4}, "min_draft=5, max_draft=4"),
        ("eb_sampler", {"score": "margin", "order": "confidence"}, "contradict"),
    ],
)
def test_a_combination_that_cannot_be_is_refused_with_the_reason(decoder, knobs, message, tiny):
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny().generate([[1]], decoder, gen_length=8, **knobs)


def test_daedal_finds_the_length_and_says_so_when_told_one(tiny):
    llm = tiny()
    with pytest.raises(ConfigError, match="initial_gen_length and max_gen_length"):
        llm.generate([[1]], "daedal", gen_length=8)


def test_a_smaller_model_may_draft(tiny, monkeypatch):
    llm, small = tiny(seed=1), tiny(seed=1)
    made, draft_of = [], draft_by(small)

    def draft(canvas):
        made.append(draft_of(canvas))
        return made[-1]

    llm.requests.drafters["small"] = draft
    plain = llm.generate([[1, 2]], "threshold", gen_length=16, threshold=0.99)[0]
    drafted = llm.generate(
        [[1, 2]],
        "speculative",
        drafter="small",
        gen_length=16,
        threshold=0.99,
        accept_threshold=0.0,
        return_trace=True,
    )[0]
    forwards, queries = sum(d.num_forwards for d in made), sum(d.num_queries for d in made)
    assert (drafted.num_draft_forwards, drafted.num_draft_queries) == (forwards, queries)
    assert forwards > 0
    assert queries == forwards * 18
    own = len(drafted.trace)
    assert own < plain.num_forwards
    assert drafted.num_forwards == own + forwards, "the drafter's work is part of the counts"
    assert drafted.num_queries == sum(step.num_queries for step in drafted.trace) + queries
    assert (plain.num_draft_forwards, plain.num_draft_queries) == (0, 0)


@pytest.mark.parametrize(
    ("decoder", "knobs", "message"),
    [
        ("prophet(inner=threshold(foo=1))", {}, "unknown knob for decoder 'prophet': 'foo'"),
        ("vanilla", {"threshold": 0.9, "remasking": "random"}, "unknown knob"),
        ("klass", {"vocabulary": "union"}, "compares distributions over all tokens"),
        ("threshold", {"vocabulary": "static", "score": "margin"}, "no effect on score=margin"),
        ("ar", {"sigma": 3.0}, "no effect on decoder ar"),
        ("dream", {"schedule": "even", "eps": 0.1}, "eps=0.1 has no effect"),
        ("prophet", {"answer_length": 3}, "no effect without answer_start"),
        ("cadllm", {"adaptive_blocks": False, "min_block": 2}, "adaptive_blocks=false"),
    ],
)
def test_what_has_no_effect_or_no_owner_is_refused(decoder, knobs, message, tiny):
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny().generate([[1]], decoder, gen_length=8, **knobs)


def test_zero_is_a_value_of_an_alias_and_false_is_not(tiny):
    llm = tiny()
    assert llm.generate([[1]], gen_length=8, threshold=0.0)[0].num_forwards == 1
    assert llm.generate([[1]], gen_length=8, debias=False)[0].method == "vanilla"
    assert llm.generate([[1]], gen_length=8, debias="no")[0].method == "vanilla"


def test_debias_beside_a_rule_is_its_score(tiny):
    out = tiny().generate([[1]], gen_length=8, threshold=0.5, debias=True)[0]
    assert out.method == "threshold(score=pc, threshold=0.5)"


def test_what_the_documents_write_also_goes_inside_a_wrapper(tiny):
    with pytest.warns(SettingWarning, match="steps=4 has no effect"):
        out = tiny().generate([[1]], "prophet", gen_length=8, threshold=0.5, steps=4)[0]
    assert out.method == "prophet(inner=threshold(threshold=0.5))"


def test_daedals_error_for_a_full_context_names_its_own_knob(tiny):
    with pytest.raises(PromptError, match="use initial_gen_length=8"):
        tiny().generate([[1] * 120], "daedal")


@pytest.mark.parametrize("decoder", ["eb_sampler", "dream", "wino", "threshold"])
def test_an_end_without_confidence_is_committed_last_by_every_score(decoder, tiny):
    llm = want(tiny(seed=3), EOS, by=3.0)
    knobs = {"confidence_eos_eot_inf": True, "stop_at_eos": False, "return_trace": True}
    out = llm.generate([[1, 2]], decoder, gen_length=8, **knobs)[0]
    tokens = [token for step in trace_of(out) for _, token in step]
    assert EOS in tokens
    first = tokens.index(EOS)
    assert all(token == EOS for token in tokens[first:]) or decoder == "wino"


def test_a_run_that_the_guard_ended_says_so(tiny):
    assert tiny().generate([[1, 2]], "threshold", gen_length=8)[0].num_forced == 0


def test_daedal_never_outgrows_the_context(tiny):
    knobs = {"initial_gen_length": 8, "max_gen_length": 200, "initial_eot_expand_thres": 1.0}
    out = tiny().generate([[1] * 100], "daedal", stop_at_eos=False, **knobs)[0]
    assert len(out.canvas_ids) == 128
