"""Fields of other servers: what cannot change the answer is taken, what would have to is refused."""

from __future__ import annotations

import json

import pytest
from served import CHAT

from unmask.server.errors import ApiError
from unmask.server.foreign_fields import FOREIGN_FIELDS, shown
from unmask.server.protocol import ChatRequest, CompletionRequest, InfillRequest
from unmask.server.request_parsing import cache_knob_names, knob_names, parse_body
from unmask.server.sglang import parse_sampling

BODIES = (
    (ChatRequest, CHAT),
    (CompletionRequest, {"prompt": "a"}),
    (InfillRequest, {"parts": ["a", 1]}),
)
SECRET = "sk-proj-0123456789-this-is-private"


def refusal(**fields):
    with pytest.raises(ApiError) as caught:
        parse_body(ChatRequest, {**CHAT, **fields})
    assert caught.value.status == 400
    return caught.value


def test_a_foreign_field_is_no_knob():
    assert not FOREIGN_FIELDS.keys() & (knob_names() | cache_knob_names())


@pytest.mark.parametrize("key", FOREIGN_FIELDS)
def test_a_foreign_field_is_taken_at_null_and_where_it_does_nothing_in_every_route(key):
    rule = FOREIGN_FIELDS[key]
    samples = {"text": "x" * 1024, "flag": True, "number": -2.5, "list": [1], "object": {"a": [{}]}}
    for value in (None, *rule.values, *(samples[kind] for kind in rule.kinds)):
        for model, body in BODIES:
            if key not in model.model_fields:
                assert parse_body(model, {**body, key: value})[1] == {}
        assert parse_sampling({key: value})[1] == {}


@pytest.mark.parametrize("key", FOREIGN_FIELDS)
def test_no_error_about_a_foreign_field_repeats_what_was_sent(key):
    rule = FOREIGN_FIELDS[key]
    if key in ChatRequest.model_fields:
        return
    deep = {SECRET: [SECRET] * 99, **{f"{SECRET}{i}": i for i in range(99)}}
    for value in (SECRET * 99, [SECRET] * 99, deep):
        error = refusal(**{key: value})
        assert error.param == key
        assert "sk-" not in error.message
        assert len(error.message) < 400
        assert rule.words() in error.message


def test_what_a_sibling_switches_off_is_taken_and_without_it_refused():
    parse_body(ChatRequest, {**CHAT, "min_tokens": 5, "ignore_eos": True})
    parse_body(ChatRequest, {**CHAT, "best_of": 3, "n": 3})
    parse_body(ChatRequest, {**CHAT, "do_sample": True, "temperature": 0.5})
    parse_body(ChatRequest, {**CHAT, "do_sample": False})
    parse_body(ChatRequest, {**CHAT, "logit_bias": {"5": 0, "7": 0.0}})
    parse_body(ChatRequest, {**CHAT, "top_logprobs": 0, "logprobs": False})
    for fields in (
        {"logprob_start_len": 0, "top_logprobs_num": 5, "return_logprob": False},
        {"include_stop_str_in_output": True, "stop": []},
        {"reasoning": {"effort": None, "summary": None, "exclude": True}},
        {"reasoning": {"enabled": False}},
        {"stream_options": {"include_usage": False, "continuous_usage_stats": None}},
        {"stream_options": {}, "stream": False},
        {"tool_choice": {"type": "auto"}, "thinking": False, "structured_outputs": {}},
    ):
        parse_body(ChatRequest, {**CHAT, **fields})
    assert parse_body(CompletionRequest, {"prompt": "a", "logprobs": False})[0].logprobs is None
    for fields in (
        {"min_tokens": 5},
        {"best_of": 3, "n": 2},
        {"do_sample": True},
        {"include_stop_str_in_output": True, "stop": "x"},
        {"include_stop_str_in_output": True, "stop_token_ids": [5]},
        {"reasoning": {"enabled": True}},
        {"reasoning": {"effort": "low", "enabled": None}},
        {"logprob_start_len": "0"},
        {"do_sample": False, "temperature": 1},
        {"logit_bias": {"5": 1}},
        {"logit_bias": {"5": False}},
        {"echo": 0},
        {"priority": True},
        {"store": 1},
        {"metadata": {str(i): i for i in range(65)}},
    ):
        assert refusal(**fields).param == next(iter(fields))


def test_a_name_or_a_number_is_repeated_in_an_error_and_a_long_one_is_measured():
    values = {"required": '"required"', -1.5: "-1.5", 10**5000: "(a number of many digits)"}
    for value, text in values.items():
        assert shown(value) == text
    assert shown({}) == "(an object of 0 keys)"
    assert shown(["a"]) == "(a list of 1 item)"
    assert '"required"' in refusal(tool_choice="required").message
    assert json.dumps("none") in refusal(tool_choice="required").message


def test_an_unknown_field_is_refused_with_the_nearest_name_also_at_null():
    for value in (1, None):
        assert "did you mean 'logit_bias'" in refusal(logit_biass=value).message
    assert "did you mean 'prompt_cache_key'" in refusal(prompt_cachekey="a").message


def test_a_wrong_field_is_named_without_its_text():
    for fields in ({"temperature": SECRET}, {"stop": {"a": SECRET}}, {"messages": [SECRET]}):
        error = refusal(**fields)
        assert error.param.startswith(next(iter(fields)))
        assert "sk-" not in error.message


@pytest.mark.parametrize(("model", "body"), BODIES)
def test_null_counts_as_left_out_in_every_field(model, body):
    plain = parse_body(model, body)
    nulls = dict.fromkeys(model.model_fields.keys() - body.keys() - {"messages"})
    assert parse_body(model, {**body, **nulls}) == plain
    sampling = {"ignore_eos": None, "max_new_tokens": None, "n": None}
    assert parse_sampling(sampling) == parse_sampling({})


def test_null_is_no_value_of_a_field_that_is_needed():
    with pytest.raises(ApiError, match="messages: Field required"):
        parse_body(ChatRequest, {"messages": None})
