"""Several answers to one prompt: seeds of the rows of a call."""

from __future__ import annotations

import pytest
from tiny import tiny_llm, trace_of

from unmask.errors import ConfigError

SAMPLED = {"gen_length": 8, "temperature": 2.0, "stop_at_eos": False, "return_trace": True}
A, B = [3, 4, 5], [6, 7]


def traces(outputs):
    return [trace_of(output) for output in outputs]


@pytest.fixture(scope="module")
def llm():
    return tiny_llm()


@pytest.mark.parametrize("decoder", ["vanilla", "threshold", "ar"])
def test_equal_prompts_are_sampled_differently_and_the_call_repeats(llm, decoder):
    outputs = llm.generate([A] * 5, decoder, seed=3, **SAMPLED)
    assert len({tuple(output.token_ids) for output in outputs}) == 5
    assert traces(llm.generate([A] * 5, decoder, seed=3, **SAMPLED)) == traces(outputs)
    assert traces(llm.generate([A] * 5, decoder, seed=9, **SAMPLED)) != traces(outputs)


def test_a_row_is_the_call_with_its_prompt_and_the_seed_plus_its_number(llm):
    outputs = llm.generate([A, B, A], seed=3, **SAMPLED)
    alone = [llm.generate(prompt, seed=3 + i, **SAMPLED)[0] for i, prompt in enumerate([A, B, A])]
    assert traces(outputs) == traces(alone)
    for rows in (1, 2):
        assert traces(llm.generate([B, B, A], seed=3, max_batch_size=rows, **SAMPLED)[2:]) == [
            trace_of(outputs[2])
        ]


def test_n_answers_are_the_rows_of_a_list_of_equal_prompts(llm):
    one_by_one = llm.generate([A, A, A, B, B, B], seed=1, **SAMPLED)
    assert traces(llm.generate([A, B], n=3, seed=1, **SAMPLED)) == traces(one_by_one)
    assert traces(llm.generate(A, n=1, **SAMPLED)) == traces(llm.generate(A, **SAMPLED))


def test_greedy_answers_do_not_depend_on_the_seed(llm):
    greedy = SAMPLED | {"temperature": 0.0}
    first, *others = traces(llm.generate(A, n=3, seed=4, **greedy))
    assert [first] * 2 == others
    assert [first] == traces(llm.generate(A, **greedy))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "two", None])
def test_a_number_of_answers_that_is_none_is_refused(llm, n):
    with pytest.raises(ConfigError, match="n="):
        llm.generate(A, n=n, **SAMPLED)
