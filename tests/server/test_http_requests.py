"""What is sent wrongly is refused by name, in few bytes. Numbers: checks of the specification."""

from __future__ import annotations

import json
import re
import time

import pytest
from served import CHAT, QUESTION

CHAT_URL, COMPLETIONS, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"
JSON = {"content-type": "application/json"}


def error_of(response, status=400):
    assert response.status_code == status, response.text
    assert len(response.content) < 4096
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# 1
@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": [', b"[1]", b'"x"', b"null", b"\xff\xfe{}"]
)
def test_a_body_that_is_no_json_object_is_refused(client, body):
    error_of(client.post(CHAT_URL, content=body, headers=JSON))


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"]
)
def test_a_body_that_does_not_say_it_is_json_is_refused(client, kind):
    response = client.post(CHAT_URL, content=json.dumps(CHAT), headers={"content-type": kind})
    assert error_of(response)["code"] == "invalid_content_type"


# 2
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"messages":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        json.dumps({f"field{i}": "x" * 90 for i in range(10_000)}).encode(),
        json.dumps({"messages": [{"role": "x" * 90, "content": 1}] * 1000}).encode(),
        json.dumps({"messages": [1] * 300_000}).encode(),
        json.dumps({"x" * 1_000_000: 1}).encode(),
        json.dumps({**CHAT, "decoder": "x" * 400}).encode(),
        b'{"max_tokens": 1' + b"0" * 100_000 + b"}",
    ],
    ids=["deep list", "deep object", "fields", "messages", "numbers", "key", "decoder", "digits"],
)
def test_a_large_wrong_body_gets_a_small_answer_soon(client, body):
    before = time.process_time()  # of this process, in which the server is too
    error_of(client.post(CHAT_URL, content=body, headers=JSON))
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (COMPLETIONS, {"prompt": [1.5] * 200_000}),
        (COMPLETIONS, {"prompt": [[-1] * 200_000] * 2}),
        (COMPLETIONS, {"prompt": "a", "decoder_args": {f"k{i}": [[]] for i in range(60_000)}}),
        (COMPLETIONS, {"prompt": "a", "decoder_args": {"threshold": [[]] * 200_000}}),
        (CHAT_URL, {"messages": [{"role": "user", "content": [1] * 250}] * 1000}),
        ("/generate", {"input_ids": [-1] * 200_000}),
    ],
    ids=["floats", "ids", "knobs", "knob", "contents", "native"],
)
def test_a_body_full_of_faults_is_refused_at_the_first_of_them(client, url, body):
    content = json.dumps(body).encode()
    began = time.process_time()
    error_of(client.post(url, content=content, headers=JSON))
    assert time.process_time() - began < 1.5  # telling each of 200,000 faults takes five


# 3
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_tokens", value) for value in ("x", -1, 0, 1.5, True, [], {}, 1 << 40)],
        *[("temperature", value) for value in ("0", -0.1, True, [])],
        *[("top_p", value) for value in (-0.5, 1.5, "1", False)],
        *[("seed", value) for value in (1.5, "1", True, 1 << 63)],
        *[("n", value) for value in (0, -1, 1.5, True)],
        *[("stream", value) for value in (1, "true", [])],
        *[("stop", value) for value in (1, [1], "", [""], {"a": 1})],
        *[("timeout_s", value) for value in (0, -1, "x", True)],
        *[("decoder", value) for value in (1, ["threshold"], True)],
        *[("decoder_args", value) for value in ([], "x", {"threshold": {}}, {"threshold": [[1]]})],
        ("logprobs", 1),
        ("top_k", 1.5),
        ("steps", 0),
        ("block_length", 0),
        ("ignore_eos", 0),
        ("stream_mode", "words"),
        ("user", 5),
        ("model", 5),
    ],
)
def test_a_field_of_a_wrong_type_or_range_is_named(client, field, value):
    error = error_of(client.post(CHAT_URL, json={**CHAT, field: value}))
    assert error["param"].split(".")[0] == field
    assert field in error["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e309"])
def test_a_number_that_is_none_is_refused(client, value):
    body = json.dumps(CHAT)[:-1] + f', "temperature": {value}}}'
    error_of(client.post(CHAT_URL, content=body, headers=JSON))


def test_a_wrong_knob_is_refused_with_its_name(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "threshold": "sure"}))
    assert "threshold" in error["message"]
    error = error_of(client.post(CHAT_URL, json={**CHAT, "threshold": 1.5}))
    assert "threshold=1.5" in error["message"]
    assert error["param"] == "threshold"
    body = {**CHAT, "cache": "dllm", "cache_args": {"kr": 3, "kp": 0}}
    assert error_of(client.post(CHAT_URL, json=body))["param"] == "cache_args.kp"


# 4
def test_an_unknown_decoder_lists_those_there_are(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "decoder": "treshold"}))
    assert "did you mean 'threshold'?" in error["message"]
    assert "cadllm" in error["message"]


def test_an_unknown_cache_lists_those_there_are(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "cache": "duel"}))
    assert "did you mean 'dual'?" in error["message"]


@pytest.mark.parametrize("place", ["top", "decoder_args"])
def test_an_unknown_knob_names_the_nearest(client, place):
    knobs = {"treshold": 0.5}
    body = {**CHAT, **(knobs if place == "top" else {place: knobs})}
    assert "did you mean 'threshold'?" in error_of(client.post(CHAT_URL, json=body))["message"]


def test_a_knob_of_another_decoder_is_refused(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "tau_min": 0.5}))
    assert "'tau_min' is a knob of decoder cadllm" in error["message"]


@pytest.mark.parametrize("place", ["top", "decoder_args"])
@pytest.mark.parametrize("given", [{"0": "So", "12": 5}, "0:So"], ids=["object", "text"])
def test_given_tokens_stand_in_the_answer(client, given, place):
    knobs = {"constraints": given}
    body = {"prompt": "Tom has 3 boxes.", "max_tokens": 16, **(knobs if place == "top" else {})}
    body |= {} if place == "top" else {place: knobs}
    reply = client.post(COMPLETIONS, json={**body, "ignore_eos": True})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["text"].startswith("So")
    assert reply.json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"16": 5}, "offset 16 is beyond the 16 generated positions"),
        ({"0": 10**9}, "is no token"),
        ({"0": [1]}, "constraints: "),
        ({"x" * 10: "y" * 200}, "must be a whole number"),
        ({str(i): 1 for i in range(5000)}, "constraints: "),
        (7, "must map numbers to values"),
    ],
)
def test_given_tokens_that_do_not_fit_are_refused(client, given, words):
    body = {"prompt": "Tom has 3 boxes.", "max_tokens": 16, "constraints": given}
    assert words in error_of(client.post(COMPLETIONS, json=body))["message"]
    error_of(client.post(INFILL, json={"parts": ["a", 3], "constraints": {"0": 5}}))


def test_an_unknown_field_names_the_nearest(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "max_token": 5}))
    assert "did you mean 'max_tokens'?" in error["message"]
    assert error["param"] == "max_token"


def test_a_knob_given_twice_differently_is_refused(client):
    body = {**CHAT, "threshold": 0.5, "decoder_args": {"threshold": 0.6}}
    assert "contradict" in error_of(client.post(CHAT_URL, json=body))["message"]
    body = {**CHAT, "max_completion_tokens": 7}
    assert "contradict" in error_of(client.post(CHAT_URL, json=body))["message"]


def test_a_knob_without_effect_is_refused(client):
    body = {**CHAT, "decoder": "vanilla", "threshold": 0.9, "steps": 8}
    assert "no effect" in error_of(client.post(CHAT_URL, json=body))["message"]


@pytest.mark.parametrize(
    "knobs",
    [
        {"decoder": "speculative", "drafter": "/etc"},
        {"decoder": "speculative(drafter=/etc)"},
        {"decoder": "pc_sampler", "frequencies": "/etc/passwd"},
        {"frequencies": "/etc/passwd"},
        {"decoder": "threshold(frequencies=/etc/passwd)"},
        {"vocabulary": "frequency", "decoder_args": {"frequencies": "/etc/passwd"}},
        {"decoder": "speculative", "decoder_args": {"inner": "threshold", "drafter": "demo"}},
    ],
)
def test_a_client_can_not_make_the_server_read_a_file_or_load_a_model(client, knobs):
    error = error_of(client.post(CHAT_URL, json={**CHAT, **knobs}))
    assert "when the server starts" in error["message"]
    assert error["param"] in ("drafter", "frequencies")
    assert error["code"] == "unsupported_parameter"


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]"


@pytest.mark.parametrize(
    "value",
    [
        LAUGHS,
        "[" * 200,
        "(" * 200,
        "x" * 201,
        "0.5",
        "true",
        "null",
        10**30,
        -(10**400),
        [1, [2]],
        [{"a": 1}],
        {"a": 1},
        ["x"] * 65,
        "a\nb",
        "!!python/object:os.system",
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("place", ["top", "decoder_args", "cache_args"])
def test_a_knob_is_a_bounded_value_and_no_program(client, place, value):
    """The library reads a knob's text as YAML; what a client sends is checked before it gets there."""
    body = {**CHAT, "cache": "dllm"}
    body |= {"threshold": value} if place == "top" else {place: {"threshold": value}}
    error_of(client.post(CHAT_URL, json=body))


@pytest.mark.parametrize(
    "decoder",
    [
        f"threshold(threshold={LAUGHS})",
        "threshold(block_length=" + "9" * 400 + ")",
        "prophet(inner=" * 20 + ")" * 20,
        "threshold" + "(" * 400,
        "a\nb",
        "__init__",
        "_blocks",
        "../threshold",
        "threshold.py",
        "",
    ],
)
def test_a_decoders_name_is_a_name(client, decoder):
    error_of(client.post(CHAT_URL, json={**CHAT, "decoder": decoder}))


# 5
@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("frequency_penalty", 0.5, 0),
        ("presence_penalty", -1, 0.0),
        ("logit_bias", {"5": 1}, {}),
        ("functions", [{"name": "f"}], []),
        ("tool_choice", "required", "auto"),
        ("response_format", {"type": "structural_tag"}, {"type": "text"}),
        ("structural_tag", "x", None),
        ("repetition_penalty", 1.1, 1.0),
        ("skip_special_tokens", False, True),
        ("top_logprobs", 21, None),
        ("reasoning_effort", "high", None),
    ],
)
def test_what_is_not_supported_is_refused_and_its_default_is_taken(client, field, value, neutral):
    error = error_of(client.post(CHAT_URL, json={**CHAT, field: value}))
    assert error["param"] == field
    response = client.post(CHAT_URL, json={**CHAT, "max_tokens": 4, field: neutral})
    assert response.status_code == 200, response.text


def test_filters_of_sampled_tokens_do_not_change_a_greedy_answer(client):
    body = {**CHAT, "max_tokens": 8, "temperature": 0}
    filters = {"top_p": 0.5, "top_k": 3, "min_p": 0.2}, {"top_p": 1, "top_k": -1}, {"top_p": 0}
    replies = [client.post(CHAT_URL, json={**body, **each}) for each in ({}, *filters)]
    assert {one.json()["choices"][0]["message"]["content"] for one in replies} == {
        replies[0].json()["choices"][0]["message"]["content"]
    }
    sampled = {**CHAT, "max_tokens": 8, "temperature": 5.0, "top_p": 0}
    assert client.post(CHAT_URL, json=sampled).json()["choices"] == replies[0].json()["choices"]


# 6
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": ""}],
        [{"role": "robot", "content": "hi"}],
        [{"role": "tool"}],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "hi", "tool_calls": [{}]}],
        "hi",
        None,
    ],
)
def test_messages_that_are_none_are_refused(client, messages):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "messages": messages}))
    assert error["param"].startswith("messages")


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt_cache_key": "a", "safety_identifier": "b", "store": True, "metadata": {"k": "v"}},
        {"service_tier": "flex", "priority": 3, "cache_salt": None, "request_id": "r"},
        {"typical_p": 1, "bad_words": [], "truncate_prompt_tokens": None, "vllm_xargs": {}},
        {"top_p": 0.5, "top_k": 3},
        {"top_p": 0},
        {"block_length": 5},
        {"messages": [{"role": "user", "content": CHAT["messages"][0]["content"], "name": "Ann"}]},
    ],
)
def test_what_cannot_change_a_greedy_answer_is_accepted(client, extra):
    body = {**CHAT, "temperature": 0}
    plain = client.post(
        CHAT_URL, json={**body, **{k: extra[k] for k in extra if k == "block_length"}}
    )
    got = client.post(CHAT_URL, json={**body, **extra})
    assert got.status_code == 200, got.text
    assert got.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt_cache_key", 5),
        ("prompt_cache_key", "k" * 2000),
        ("store", "yes"),
        ("priority", True),
        ("metadata", []),
        ("bad_words", ["a"]),
        ("truncate_prompt_tokens", 5),
    ],
)
def test_a_hint_of_another_type_is_refused_without_its_value(client, key, value):
    error = error_of(client.post(CHAT_URL, json={**CHAT, key: value}))
    assert error["param"] == key
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "system", "content": ""},
        {"role": "assistant", "content": [], "name": "helper"},
    ],
)
def test_a_turn_without_text_is_legal_history(client, turn):
    question = CHAT["messages"][0]
    messages = [turn, question] if turn["role"] == "system" else [question, turn, question]
    got = client.post(CHAT_URL, json={**CHAT, "messages": messages})
    assert got.status_code == 200, got.text


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""], [["a"]], [1, "a"], None, 5, [-1]])
def test_prompts_that_are_none_are_refused(client, prompt):
    error = error_of(client.post(COMPLETIONS, json={"prompt": prompt, "max_tokens": 4}))
    assert error["param"].startswith("prompt")


def test_a_token_id_outside_the_vocabulary_is_refused(client):
    error = error_of(client.post(COMPLETIONS, json={"prompt": [5, 99999], "max_tokens": 4}))
    assert "99999" in error["message"]


@pytest.mark.parametrize(
    "parts", [[], ["no blank"], [0], [-1], ["a", True], "a {3}", [1.5], [2000]]
)
def test_texts_without_blanks_or_with_wrong_ones_are_refused(client, parts):
    error = error_of(client.post(INFILL, json={"parts": parts}))
    assert "parts" in error["param"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (
            {"max_tokens": 5},
            "max_tokens=5: the blanks determine the number of tokens; leave it out",
        ),
        ({"stop": "x"}, "every blank is filled"),
        ({"ignore_eos": True}, "every blank is filled"),
    ],
)
def test_an_infill_says_why_it_takes_no_length_and_no_end(client, field, why):
    error = error_of(client.post(INFILL, json={"parts": ["a", 1], **field}))
    assert error["param"] == next(iter(field))
    assert why in error["message"]


def test_a_content_in_parts_is_the_text_of_its_parts(client):
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    split = client.post(CHAT_URL, json={**CHAT, "messages": [{"role": "user", "content": parts}]})
    whole = client.post(CHAT_URL, json=CHAT)
    assert split.json()["choices"] == whole.json()["choices"]


# 7, 8
def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client):
    error = error_of(client.post(COMPLETIONS, json={"prompt": [5] * 1024, "max_tokens": 1}))
    assert "1024" in error["message"]
    assert "1025" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_an_answer_that_does_not_fit_is_refused_with_what_does(client):
    error = error_of(client.post(COMPLETIONS, json={"prompt": [5] * 1000, "max_tokens": 25}))
    assert "use max_tokens=24" in error["message"]
    error = error_of(
        client.post(
            CHAT_URL,
            json={
                **{k: v for k, v in CHAT.items() if k != "max_tokens"},
                "max_completion_tokens": 1024,
            },
        )
    )
    assert error["param"] == "max_completion_tokens"
    assert "+ max_completion_tokens=1024 =" in error["message"]


def test_without_max_tokens_an_answer_takes_what_is_left(client):
    body = {"prompt": [5] * 1016, "decoder": "threshold", "ignore_eos": True}
    response = client.post(COMPLETIONS, json=body)
    assert response.json()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(("length", "status"), [(2, 200), (24, 200), (25, 400)])
def test_a_block_that_would_reach_beyond_the_context_is_cut_or_refused(client, length, status):
    body = {"prompt": [5] * 1000, "max_tokens": length, "decoder": "threshold"}
    assert client.post(COMPLETIONS, json=body).status_code == status


# 9
@pytest.mark.parametrize(
    ("url", "change"),
    [
        (CHAT_URL, {"n": 17}),
        (CHAT_URL, {"stop": ["a"] * 17}),
        (CHAT_URL, {"stop": "a" * 257}),
        (CHAT_URL, {"user": "u" * 257}),
        (CHAT_URL, {"messages": [{"role": "user", "content": "a"}] * 1025}),
        (COMPLETIONS, {"prompt": ["a"] * 65}),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}),
        (COMPLETIONS, {"prompt": "a", "echo": True}),
        (INFILL, {"parts": ["a", 1] * 600}),
        (CHAT_URL, {"decoder_args": {f"k{i}": 1 for i in range(65)}}),
    ],
)
def test_more_than_the_cap_is_refused(client, url, change):
    body = {**(CHAT if url == CHAT_URL else {}), **change}
    error = error_of(client.post(url, json=body))
    assert error["param"].split(".")[0] in change


# 14
def test_another_model_is_not_found(client):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "model": "gpt-4"}), 404)
    assert error["code"] == "model_not_found"
    assert "demo, other-name" in error["message"]
    error_of(client.get("/v1/models/gpt-4"), 404)
    error_of(client.get("/v1/models/../../etc/passwd"), 404)


# 15
@pytest.mark.parametrize("special", ["<|mdm_mask|>", "<|endoftext|>", "<|eot_id|>"])
def test_special_tokens_in_a_prompt_are_given_and_not_blanks(client, special):
    body = {"prompt": f"The {special} cat", "suffix": f" sat {special}", "max_tokens": 2}
    body |= {"stream": True, "stream_mode": "canvas"}
    response = client.post(COMPLETIONS, json=body)
    assert response.status_code == 200, response.text
    frames = [
        json.loads(line[6:])["choices"][0].get("canvas")
        for line in response.text.splitlines()
        if line.startswith("data: {")
    ]
    given = [
        [position for position in frame["slots"] if position["fixed"]] for frame in frames if frame
    ]
    assert not any(position["open"] for positions in given for position in positions)
    texts = {"".join(position["text"] for position in positions) for positions in given}
    assert len(texts) == 1
    assert texts.pop().count(special) == 2
    chat = {**CHAT, "messages": [{"role": "user", "content": f"{special} {QUESTION}"}]}
    assert client.post(CHAT_URL, json=chat).status_code == 200


# 16
@pytest.mark.parametrize(
    "text", [b'"\\ud800"', b'"a\\udc00b"', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc3"']
)
def test_half_a_character_is_refused(client, text):
    for url, key in ((COMPLETIONS, "prompt"), (COMPLETIONS, "suffix"), (CHAT_URL, "user")):
        body = b'{"prompt": "a"' if url == COMPLETIONS else json.dumps(CHAT).encode()[:-1]
        body = body.replace(b'"prompt": "a"', b'"max_tokens": 2') if key == "prompt" else body
        body += b', "%s": %s}' % (key.encode(), text)
        error_of(client.post(url, content=body, headers=JSON))


def test_control_characters_in_a_prompt_are_text(client):
    body = {"prompt": "a\u0000b\u001b[31m\u2028", "max_tokens": 2}
    assert client.post(COMPLETIONS, json=body).status_code == 200


# 46
def test_an_error_repeats_no_control_characters(client):
    body = {**CHAT, "decoder": "x\nFAKE LOG LINE\u001b[2J"}
    message = error_of(client.post(CHAT_URL, json=body))["message"]
    assert message.isprintable()
    assert error_of(client.post(CHAT_URL, json={**CHAT, "a\nb": 1}))["param"] == "a\\nb"


def test_a_route_that_does_not_exist_is_named(client):
    assert "/v2/x" in error_of(client.get("/v2/x"), 404)["message"]
    error_of(client.get(CHAT_URL), 405)


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        (COMPLETIONS, lambda text: {"prompt": text}, "prompt"),
        (COMPLETIONS, lambda text: {"prompt": "a", "suffix": text}, "prompt"),
        (CHAT_URL, lambda text: {"messages": [{"role": "user", "content": text}]}, "messages"),
        (INFILL, lambda text: {"parts": [text, 1]}, "parts"),
        ("/generate", lambda text: {"text": text}, "text"),
    ],
)
def test_a_text_that_cannot_fit_is_refused_unread_with_both_numbers(
    client, demo_llm, monkeypatch, url, body, param
):
    plain, longest = type(demo_llm.tokenizer).__call__, []

    def read(self, text, **options):
        longest.append(len(text))
        return plain(self, text, **options)

    monkeypatch.setattr(type(demo_llm.tokenizer), "__call__", read)
    error = error_of(client.post(url, json=body("a" * 4_000_000)))
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert re.search(r"40000\d\d characters", error["message"]), "with the template's"
    assert "context is 1024" in error["message"]
    assert max(longest, default=0) < 10


def test_stop_token_ids_end_the_text_in_every_route(client):
    usual = client.post(CHAT_URL, json={**CHAT, "max_tokens": 16}).json()
    text = usual["choices"][0]["message"]["content"]
    ids = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    stop = ids["tokens"][3]
    first = ids["tokens"].index(stop)
    for extra in ({"stop_token_ids": [stop]}, {"stop_token_ids": [stop, 1 << 30]}):
        for more in ({}, {"ignore_eos": True}):
            reply = client.post(CHAT_URL, json={**CHAT, "max_tokens": 16, **extra, **more}).json()
            assert reply["choices"][0]["finish_reason"] == "stop"
            assert reply["usage"]["completion_tokens"] <= first + 1
            assert text.startswith(reply["choices"][0]["message"]["content"])
    body = {"text": QUESTION, "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}}
    whole = client.post("/generate", json=body).json()
    ids = client.post(
        "/tokenize", json={"prompt": whole["text"], "add_special_tokens": False}
    ).json()
    body["sampling_params"]["stop_token_ids"] = [ids["tokens"][2]]
    cut = client.post("/generate", json=body).json()
    assert cut["meta_info"]["finish_reason"]["type"] == "stop"
    assert len(cut["text"]) < len(whole["text"])
    assert whole["text"].startswith(cut["text"])


@pytest.mark.parametrize("value", [[-1], [True], ["5"], 5, list(range(2000))])
def test_stop_token_ids_that_are_no_ids_are_refused(client, value):
    error = error_of(client.post(CHAT_URL, json={**CHAT, "stop_token_ids": value}))
    assert error["param"].startswith("stop_token_ids")


def test_blanks_take_no_stop_tokens(client):
    body = {"parts": ["A ", 2, " dog"], "stop_token_ids": [5]}
    error_of(client.post(INFILL, json=body))
    assert client.post(INFILL, json={**body, "stop_token_ids": []}).status_code == 200


def test_a_begin_token_is_added_once_or_not_at_all(client):
    def count(url, **body):
        reply = client.post(url, json={"max_tokens": 2, **body})
        assert reply.status_code == 200, reply.text
        return reply.json()["usage"]["prompt_tokens"]

    one = count(COMPLETIONS, prompt="A dog")
    assert count(COMPLETIONS, prompt="<|startoftext|>A dog") == one
    assert count(COMPLETIONS, prompt="A dog", add_special_tokens=True) == one
    assert count(COMPLETIONS, prompt="A dog", add_special_tokens=None) == one
    assert count(COMPLETIONS, prompt="A dog", add_special_tokens=False) == one - 1
    middle = count(COMPLETIONS, prompt="A dog", suffix=" sat")
    assert count(COMPLETIONS, prompt="A dog", suffix=" sat", add_special_tokens=False) < middle
    chat = count(CHAT_URL, messages=CHAT["messages"])
    assert count(CHAT_URL, messages=CHAT["messages"], add_special_tokens=True) == chat
