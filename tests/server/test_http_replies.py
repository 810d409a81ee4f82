"""What is answered: texts, usage, seeds, infills, caches. Numbers: checks of the specification."""

from __future__ import annotations

import json

import pytest
from served import ANSWER, CHAT, QUESTION, gated_client
from tiny import tiny_llm

from unmask import caches, decoders
from unmask.knobs import split_call
from unmask.method import MethodSpec, Source
from unmask.server.settings import Limits, ServerSettings

CHAT_URL, COMPLETIONS, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"
SAMPLED = {"prompt": "A story about a dog: ", "temperature": 2.0, "max_tokens": 8, "steps": 4}


def ask(client, url, **body):
    response = client.post(url, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_chat_is_answered_as_the_library_answers_it(client, demo_llm):
    reply = ask(client, CHAT_URL, **CHAT)
    own = demo_llm.chat(CHAT["messages"], "threshold", gen_length=48)
    message = reply["choices"][0]["message"]
    assert message == {"role": "assistant", "content": own.text, "refusal": None}
    assert own.text == ANSWER
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "demo"


# 29
def test_the_usage_counts_prompt_answer_and_forwards(client, demo_llm):
    usage = ask(client, CHAT_URL, **CHAT)["usage"]
    own = demo_llm.chat(CHAT["messages"], "threshold", gen_length=48)
    assert usage["prompt_tokens"] == own.prompt_length == len(demo_llm.chat_ids(CHAT["messages"]))
    assert usage["completion_tokens"] == len(own.token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["num_forwards"] == own.num_forwards > 0
    assert usage["tokens_per_forward"] == pytest.approx(
        usage["completion_tokens"] / usage["num_forwards"], abs=1e-4
    )
    assert usage["num_queries"] == own.num_queries
    assert usage["num_wasted"] == own.num_wasted > 0
    twice = ask(client, CHAT_URL, **CHAT, n=2)["usage"]
    assert twice["num_queries"] == 2 * own.num_queries, "no randomness: the same twice"
    assert twice["num_wasted"] == 2 * own.num_wasted


def test_what_of_the_prompt_was_cached_is_told():
    llm = tiny_llm("llada", block_size=4)
    prompt = [7] * 40
    with gated_client(
        llm, ServerSettings(("tiny",), MethodSpec.parse(Source({"cache": "block_causal"})))
    ) as client:
        body = {"prompt": prompt, "max_tokens": 4}
        details = [ask(client, COMPLETIONS, **body)["usage"]["prompt_tokens_details"] for _ in "ab"]
        assert details == [{"cached_tokens": 0}, {"cached_tokens": 32}]
        native = ask(client, "/generate", input_ids=prompt, sampling_params={"max_new_tokens": 4})
        assert native["meta_info"]["cached_tokens"] == 32


# 31
def test_the_finish_reason_says_what_ended_the_answer(client):
    assert ask(client, CHAT_URL, **CHAT)["choices"][0]["finish_reason"] == "stop"
    short = ask(client, CHAT_URL, **{**CHAT, "max_tokens": 8})["choices"][0]
    assert short["finish_reason"] == "length"
    assert len(short["message"]["content"]) < len(ANSWER)


def test_dropping_what_lies_right_of_an_end_is_a_knob_of_every_decoder(client):
    body = {**CHAT, "decoder": "dream", "max_tokens": 64}
    plain, dropping = (ask(client, CHAT_URL, **body, drop_after_eos=drop) for drop in (False, True))
    assert dropping["usage"]["num_forwards"] < plain["usage"]["num_forwards"]
    refused = client.post(CHAT_URL, json={**body, "drop_after_eos": True, "ignore_eos": True})
    assert refused.status_code == 400
    assert "drop_after_eos=true has no effect" in refused.json()["error"]["message"]


def test_ignore_eos_fills_and_counts_every_position(client):
    reply = ask(client, CHAT_URL, **CHAT, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 48
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["message"]["content"].startswith(ANSWER)


# 28
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("\nThen", "In boxes: 3*4=12"),
        (["####", "4=1"], "In boxes: 3*"),
        ("never there", ANSWER),
        ("In", ""),
    ],
)
def test_a_stop_string_ends_the_answer_before_it(client, stop, text):
    reply = ask(client, CHAT_URL, **CHAT, stop=stop)
    assert reply["choices"][0]["message"]["content"] == text
    assert reply["choices"][0]["finish_reason"] == "stop"


# 24
def test_requests_that_run_together_are_answered_as_alone(client):
    from concurrent.futures import ThreadPoolExecutor

    bodies = [
        {**CHAT, "decoder": name, "max_tokens": 16 + 4 * i, "seed": 1, "temperature": i % 2 * 0.7}
        for i, name in enumerate(("vanilla", "threshold", "klass", "wino", "eb_sampler", "cadllm"))
    ]
    bodies[1]["cache"] = "dual"

    def text(body):
        reply = ask(client, CHAT_URL, **body)
        return reply["choices"], reply["usage"]

    alone = [text(body) for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text, bodies)) == alone


# 25
def test_a_seed_repeats_an_answer_and_another_changes_it(client):
    def texts(seed, n=1):
        found = ask(client, COMPLETIONS, **SAMPLED, seed=seed, n=n)
        return [choice["text"] for choice in found["choices"]]

    assert texts(7) == texts(7)
    assert texts(7) != texts(8)
    assert texts(7, n=2) == texts(7) + texts(8), "choice i has seed + i"


@pytest.mark.parametrize("seed", [7, None])
def test_equal_prompts_of_a_request_are_sampled_as_by_the_library(client, seed):
    prompt = SAMPLED["prompt"]
    body = {**SAMPLED, "prompt": [prompt, prompt], "n": 2, "seed": seed}
    reply = ask(client, COMPLETIONS, **body)
    texts = [choice["text"] for choice in reply["choices"]]
    if seed is not None:  # a drawn seed may give two short samples the same text
        assert len(set(texts)) == 4
    first = reply["unmask"]["seed"]
    alone = [ask(client, COMPLETIONS, **SAMPLED, seed=first + i)["choices"] for i in range(4)]
    assert texts == [choices[0]["text"] for choices in alone]


def test_without_a_seed_one_is_drawn_and_told(client):
    first = ask(client, COMPLETIONS, **SAMPLED)
    second = ask(client, COMPLETIONS, **SAMPLED)
    assert first["unmask"]["seed"] != second["unmask"]["seed"]
    again = ask(client, COMPLETIONS, **SAMPLED, seed=first["unmask"]["seed"])
    assert again["choices"] == first["choices"]


# 26
def test_every_request_has_its_own_temperature(client):
    from concurrent.futures import ThreadPoolExecutor

    body = {"prompt": "A story about a dog: ", "max_tokens": 6}

    def text(number):
        sampled = {**body, "temperature": 3.0, "seed": number} if number % 2 else body
        return ask(client, COMPLETIONS, **sampled)["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(text, range(10)))
    assert len(set(found[::2])) == 1
    assert len(set(found[1::2])) > 3


def test_several_prompts_have_n_answers_each_in_order(client):
    prompts = ["A dog", "Two cats and a bird"]
    reply = ask(client, COMPLETIONS, prompt=prompts, n=2, max_tokens=4, decoder="threshold")
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    singles = [
        ask(client, COMPLETIONS, prompt=one, max_tokens=4, decoder="threshold") for one in prompts
    ]
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts == [single["choices"][0]["text"] for single in singles for _ in range(2)]
    counted = sum(single["usage"]["prompt_tokens"] for single in singles)
    assert reply["usage"]["prompt_tokens"] == counted, "a prompt counts once"


def test_token_ids_are_taken_as_they_are(client, demo_llm):
    ids = demo_llm.prompt_ids("A dog", raw=True)
    by_ids = ask(client, COMPLETIONS, prompt=ids, max_tokens=4)
    assert by_ids["choices"] == ask(client, COMPLETIONS, prompt="A dog", max_tokens=4)["choices"]
    several = ask(client, COMPLETIONS, prompt=[ids, ids], max_tokens=4)
    assert [choice["text"] for choice in several["choices"]] == [by_ids["choices"][0]["text"]] * 2


# 30
def test_the_middle_depends_on_both_sides(client):
    def middle(prompt, suffix):
        body = {"prompt": prompt, "suffix": suffix, "max_tokens": 1, "logprobs": 0}
        found = ask(client, COMPLETIONS, **body)["choices"][0]
        return found["text"], found["logprobs"]["token_logprobs"]

    base = middle("The dog slept on the", " because it was tired.")
    others = [
        middle("The dog slept on the", " of the house."),
        middle("The dog slept on the", " to the park."),
        middle("The fish swam in the", " because it was tired."),
    ]
    assert base[0] == " bed"
    assert len({base[0], *(text for text, _ in others)}) == 4, "either side decides"
    assert all(logprobs != base[1] for _, logprobs in others)


def test_the_given_sides_of_a_middle_stay_as_they_are(client):
    body = {"prompt": "  The cat  ", "suffix": " on  the mat. ", "max_tokens": 3}
    body |= {"logits_eos_inf": True, "stream": True, "stream_mode": "canvas"}
    lines = client.post(COMPLETIONS, json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    final = [chunk["choices"][0]["canvas"] for chunk in chunks if "canvas" in chunk["choices"][0]]
    text = "".join(position["text"] for position in final[-1]["slots"][1:] if "end" not in position)
    assert text.startswith(body["prompt"])
    assert text.endswith(body["suffix"])
    middle = chunks[-1]["choices"][0]["text"]
    assert text == body["prompt"] + middle + body["suffix"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_given_texts_of_an_infill_come_back_as_they_were(client, stream):
    """Special tokens too: somebody wrote them."""
    given = [
        "\tA\u00e9  \U0001f642\n",
        "  \u6f22 <|mdm_mask|> <|endoftext|>\u0000 ",
        "<|eot_id|> x\n\n",
    ]
    parts = [given[0], 2, given[1], 1, given[2]]
    body = {"parts": parts, "decoder": "threshold", "stream": stream}
    response = client.post(INFILL, json=body)
    assert response.status_code == 200
    if stream:
        lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [json.loads(line[6:])["choices"][0] for line in lines]
        text, blanks = "".join(choice["text"] for choice in choices), choices[-1]["blanks"]
    else:
        text, blanks = (response.json()["choices"][0][key] for key in ("text", "blanks"))
    one, two = blanks
    assert text == given[0] + one + given[1].removesuffix(" ") + two + given[2]


def test_a_middle_that_a_stop_string_ends_is_counted_up_to_it(client):
    body = {"prompt": "The dog slept on the", "suffix": " because it was tired.", "logprobs": 0}
    body |= {"max_tokens": 6, "decoder": "threshold", "threshold": 1e-6}
    whole = ask(client, COMPLETIONS, **body)
    tokens = whole["choices"][0]["logprobs"]["tokens"]
    assert whole["usage"]["completion_tokens"] == len(tokens) == 6
    reply = ask(client, COMPLETIONS, **body, stop=tokens[1])
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (tokens[0], "stop")
    assert reply["usage"]["num_forwards"] == 1, "all six were there when the stop string was found"
    assert choice["logprobs"]["tokens"] == tokens[:2]
    assert reply["usage"]["completion_tokens"] == 2


def test_any_number_of_blanks_is_filled(client, demo_llm):
    parts = ["The cat ", 3, " on the ", 2, "."]
    reply = ask(client, INFILL, parts=parts, decoder="threshold")
    own = demo_llm.infill(parts, "threshold")
    choice = reply["choices"][0]
    assert choice["text"] == own.text
    assert choice["blanks"] == list(own.blanks)
    assert len(choice["blanks"]) == 2
    assert reply["usage"]["completion_tokens"] == 5
    assert reply["object"] == "infill"


# 33
@pytest.mark.parametrize("name", ["none", "dual", "auto"])
def test_a_cache_is_used_only_when_asked_for_and_the_reply_says_if_it_is_exact(client, name):
    plain = ask(client, CHAT_URL, **CHAT)["unmask"]
    assert (plain["cache"], plain["cache_exact"]) == ("none", True)
    told = ask(client, CHAT_URL, **CHAT, cache=name)["unmask"]
    policy = caches.bind(caches.make_cache(name), None)
    assert told["cache"] == caches.describe(policy)
    assert told["cache_exact"] == policy.exact


def test_a_cache_takes_its_knobs_in_three_spellings(client):
    spellings = [
        {"cache": "dllm(kp=7)"},
        {"cache": "dllm", "cache_args": {"kp": 7}},
        {"cache": "dllm", "cache.kp": 7},
    ]
    told = [ask(client, CHAT_URL, **{**CHAT, "max_tokens": 8}, **s)["unmask"] for s in spellings]
    assert {one["cache"] for one in told} == {"dllm(kp=7)"}


def test_a_greedy_request_needs_nothing_of_the_servers_sampling(demo_llm):
    defaults = MethodSpec.parse(Source({"temperature": "0.9", "top_p": "0.8", "steps": "4"}))
    with gated_client(demo_llm, ServerSettings(("demo",), defaults)) as client:
        body = {"prompt": "A dog", "max_tokens": 8}
        greedy = ask(client, COMPLETIONS, **body, temperature=0)
        assert greedy["usage"]["num_forwards"] == 4
        assert greedy["choices"] == ask(client, COMPLETIONS, **body, temperature=0)["choices"]
        assert (
            greedy["choices"] == ask(client, COMPLETIONS, **body, temperature=0, top_p=1)["choices"]
        )


def test_the_servers_cache_knobs_stay_with_its_cache(demo_llm):
    names = {"decoder": "threshold", "cache": "dkv"}
    defaults = MethodSpec.parse(Source({**names, "threshold": 0.8, "cache.interval": "5"}))
    with gated_client(demo_llm, ServerSettings(("demo",), defaults)) as client:
        for change, cache in (
            ({}, "dkv(interval=5)"),
            ({"decoder": "vanilla"}, "dkv(interval=5)"),
            ({"cache.interval": 2}, "dkv(interval=2)"),
            ({"cache_args": {"interval": 3}}, "dkv(interval=3)"),
            ({"cache": "dkv"}, "dkv"),
            ({"cache": "none"}, "none"),
            ({"cache": "dual"}, "dual"),
        ):
            reply = ask(client, COMPLETIONS, prompt="A dog", max_tokens=4, **change)
            assert reply["unmask"]["cache"] == cache, change


@pytest.mark.parametrize("name", decoders.names())
def test_every_decoder_can_be_asked_for(client, name):
    body = {**CHAT, "decoder": name, "max_tokens": 8}
    reply = ask(client, CHAT_URL, **body)
    assert split_call(reply["unmask"]["decoder"])[0] == name
    assert reply["usage"]["completion_tokens"] <= 8


def test_knobs_stand_at_the_top_or_in_decoder_args(client):
    top = ask(client, CHAT_URL, **CHAT, threshold=0.6, block_length=8)
    inside = ask(client, CHAT_URL, **CHAT, decoder_args={"threshold": 0.6, "block_length": 8})
    assert top["choices"] == inside["choices"]
    assert top["unmask"]["decoder"] == "threshold(block_length=8, threshold=0.6)"


def test_max_tokens_bounds_a_decoder_that_finds_the_length(client):
    body = {**CHAT, "decoder": "daedal", "max_tokens": 40}
    reply = ask(client, CHAT_URL, **body)
    assert "max_gen_length=40" in reply["unmask"]["decoder"]
    assert client.post(CHAT_URL, json={**body, "max_gen_length": 50}).status_code == 400


def test_log_probabilities_are_those_of_the_committed_tokens(client, demo_llm):
    import math

    chat = ask(client, CHAT_URL, **CHAT, logprobs=True)
    content = chat["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == ANSWER
    own = demo_llm.chat(CHAT["messages"], "threshold", gen_length=48, return_trace=True)
    by_position = {c.position: c.confidence for step in own.trace for c in step.committed}
    expected = [math.log(by_position[own.prompt_length + i]) for i in range(len(content))]
    assert [item["logprob"] for item in content] == pytest.approx(expected, abs=1e-6)
    assert bytes(b for item in content for b in item["bytes"]).decode() == ANSWER
    prompt = {"prompt": QUESTION, "decoder": "threshold", "max_tokens": 24, "logprobs": 0}
    found = ask(client, COMPLETIONS, **prompt)["choices"][0]
    pieces = found["logprobs"]
    assert "".join(pieces["tokens"]) == found["text"]
    assert all(value <= 0 for value in pieces["token_logprobs"])
    pairs = zip(pieces["text_offset"], pieces["tokens"], strict=True)
    assert all(found["text"][at:].startswith(token) for at, token in pairs)


def test_a_trace_tells_every_forward(client, demo_llm):
    reply = ask(client, CHAT_URL, **CHAT, return_trace=True)
    own = demo_llm.chat(CHAT["messages"], "threshold", gen_length=48, return_trace=True)
    trace = reply["choices"][0]["trace"]
    assert len(trace) == reply["usage"]["num_forwards"]
    told = [[tuple(item[:2]) for item in step["committed"]] for step in trace]
    assert told == [[(c.position, c.token) for c in step.committed] for step in own.trace]
    assert "trace" not in ask(client, CHAT_URL, **CHAT)["choices"][0]


def test_the_models_are_listed(client):
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["demo", "other-name"]
    assert client.get("/v1/models/other-name").json()["max_model_len"] == 1024
    assert ask(client, CHAT_URL, **CHAT, model="other-name")["model"] == "other-name"


def test_the_schema_tells_every_decoder_cache_and_knob_with_type_and_default(client):
    schema = client.get("/v1/schema").json()
    assert [item["name"] for item in schema["decoders"]] == decoders.names()
    assert [item["name"] for item in schema["caches"]] == caches.names()
    refused = {item["name"]: item["refused"] for item in schema["caches"] if item["refused"]}
    assert list(refused) == ["block_causal"], "the demo model has full attention"
    asked = client.post("/v1/completions", json={"prompt": "A", "cache": "block_causal"})
    assert asked.json()["error"]["message"] == refused["block_causal"]
    assert schema["model"]["mask"] == "<|mdm_mask|>"
    assert schema["model"]["max_length"] == 1024
    threshold = next(item for item in schema["decoders"] if item["name"] == "threshold")
    knob = next(item for item in threshold["knobs"] if item["name"] == "threshold")
    assert (knob["type"], knob["default"]) == ("float", 0.9)
    assert knob["help"]
    score = next(item for item in threshold["knobs"] if item["name"] == "score")
    assert score["choices"] == ["confidence", "margin", "entropy", "pc", "random"]
    every = [*schema["shared"], *(k for d in schema["decoders"] for k in d["knobs"])]
    assert {"temperature", "top_p", "top_k"} <= {item["name"] for item in schema["shared"]}
    assert not {"frequencies", "drafter"} & {item["name"] for item in every}
    assert all(
        item["type"] in {"int", "float", "bool", "str", "choice", "list", "object"}
        for item in every
    )


def test_the_servers_block_length_never_makes_a_length_an_error(demo_llm):
    defaults = MethodSpec.parse(Source({"decoder": "threshold", "block_length": "32"}))
    settings, room = ServerSettings(("demo",), defaults, limits=Limits(max_model_len=64)), 64
    with gated_client(demo_llm, settings) as client:
        for size in (1, 33, 55):
            ask(client, COMPLETIONS, prompt="A dog", max_tokens=size)
        ask(client, COMPLETIONS, prompt="A dog", suffix=" sat", max_tokens=5)
        ask(client, COMPLETIONS, prompt="A dog", suffix=" sat")
        ask(client, COMPLETIONS, prompt="A dog", decoder="vanilla", steps=5, temperature=0)
        for rest in (
            1,
            2,
            31,
            33,
        ):  # what the context leaves, in blocks of the server's or of one's own
            body = {"prompt": [7] * (room - rest), "ignore_eos": True}
            for own in ({}, {"block_length": 16}, {"decoder": "block_diffusion", "steps": 3}):
                usage = ask(client, COMPLETIONS, **body, **own)["usage"]
                assert usage["completion_tokens"] == rest
