"""The lm-eval model `unmask`: its three kinds of requests are the engine's own answers."""

from __future__ import annotations

from typing import Any

import pytest

import unmask
from unmask.errors import ConfigError, PromptError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from unmask.evals.lm import UnmaskLM
from unmask.evals.settings import EvalSettings


@pytest.fixture(scope="module")
def model() -> UnmaskLM:
    made: UnmaskLM = get_model("unmask").create_from_arg_string(
        "pretrained=demo,decoder=threshold,threshold=0.8,gen_length=16,mc_num=8,cache=dual",
        {"batch_size": 2, "device": "cpu"},
    )
    return made


def request(kind: str, *arguments: Any, doc: int = 0) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", doc, 1))


def test_generate_until_is_generate_up_to_the_stop(model: UnmaskLM) -> None:
    prompt = "Tom has 3 pens. He buys 4 more pens. How many pens does he have?"
    out = model.llm.generate(prompt, "threshold", "dual", gen_length=16, threshold=0.8, raw=True)[0]
    asked = [
        request("generate_until", prompt, {"until": []}),
        request("generate_until", prompt, {"until": [out.text[3:5]]}, doc=1),
    ]
    assert model.generate_until(asked) == [out.text, out.text[: out.text.find(out.text[3:5])]]


def test_loglikelihood_is_the_engines_with_the_space_on_the_right_side(model: UnmaskLM) -> None:
    encode = model.llm.prompts.encode
    before, both = encode("The cat", special=True), encode("The cat sat on", special=True)
    expected = model.llm.loglikelihood(before, both[len(before) :], mc_num=8)
    found = model.loglikelihood(
        [
            request("loglikelihood", "The cat", " sat on"),
            request("loglikelihood", "The cat ", "sat on", doc=1),
        ]
    )
    assert [value for value, _ in found] == pytest.approx([expected.log_prob] * 2, abs=1e-4)


def test_greedy_means_that_decoding_writes_it(model: UnmaskLM) -> None:
    prompt = "Tom has 3 pens. He buys 4 more pens. How many pens does he have?"
    ids = model.llm.prompt_ids(prompt, raw=True)
    written = model.llm.generate([ids], "vanilla", gen_length=4, block_length=4, stop_at_eos=False)[
        0
    ]
    told = tuple(written.canvas_ids[len(ids) :])
    pair = model._pair(request("loglikelihood", "", ""), tuple(ids), told)
    other = model._pair(request("loglikelihood", "", ""), tuple(ids), (*told[:-1], told[-1] ^ 1))
    from unmask.evals.likelihoods import is_greedy

    assert is_greedy(model.llm, pair)
    assert not is_greedy(model.llm, other)


def test_a_rolling_likelihood_is_the_sum_of_its_windows(model: UnmaskLM) -> None:
    text = "The small cat sat on the mat."
    begin = model._prefix()
    ids = model.llm.prompts.encode(text, special=False)
    expected = model.llm.loglikelihood(list(begin), ids, mc_num=8)
    found = model.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert found == pytest.approx([expected.log_prob], abs=1e-4)


def test_what_would_be_ignored_is_refused(model: UnmaskLM) -> None:
    with pytest.raises(ConfigError, match="temperature=0.7 is not taken from tasks"):
        model.generate_until([request("generate_until", "Hi", {"temperature": 0.7})])
    with pytest.raises(ConfigError, match="limit=3 is not one of the model's arguments"):
        UnmaskLM("demo", limit=3)
    with pytest.raises(ConfigError, match="batch_size='auto' must be a whole number"):
        UnmaskLM("demo", batch_size="auto")


def test_the_chat_template_is_the_models(model: UnmaskLM) -> None:
    settings = EvalSettings(task="word_problem")
    chatting = UnmaskLM.of(model.llm, settings)
    text = chatting.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chatting._encode(text) == model.llm.prompt_ids("Hello")
    bare = unmask.LLM("demo")
    bare.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="has no chat template"):
        UnmaskLM.of(bare, settings).chat_template(True)
