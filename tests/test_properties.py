"""What must hold for every decoder, cache and family, found by name: new ones get it by existing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    EOS,
    FAMILIES,
    KNOWN,
    MASK,
    TURN_END,
    VOCAB,
    StubTokenizer,
    TableModel,
    confidences_of,
    tiny_llm,
    tiny_spec,
    trace_of,
    want,
)

from unmask import LLM, caches, decoders
from unmask.caches.base import CachePlan
from unmask.caches.registry import make_cache
from unmask.canvas import Edit
from unmask.engine.model_runner import ModelRunner
from unmask.engine.request import Request
from unmask.engine.request_builder import parse_method
from unmask.engine.scheduler import decode
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError

KNOBS = {
    "vanilla": [{}, {"steps": 4}, {"steps": 4, "remasking": "random"}],
    "threshold": [{"threshold": 0.4}],
    "factor": [{"factor": 1.0}],
    "eb_sampler": [{"gamma": 1.0, "order": "confidence"}],
    "klass": [{"threshold": 0.1, "kl_threshold": 1.0}],
    "wino": [{"wide_in_thres": 0.2, "narrow_out_thres": 0.6}],
    "hierarchy": [{"threshold": 0.6, "low_threshold": 0.2}],
    "credit": [{"threshold": 0.5}],
    "joint_threshold": [{"threshold": 0.3, "edit_threshold": 0.2, "max_post_edit_steps": 3}],
    "cadllm": [
        {"initial_block_length": 3, "min_block": 2, "max_block": 6, "tau_base": 0.5, "tau_min": 0.2}
    ],
    "daedal": [{"threshold": 0.4, "low_conf_expand_thres": 0.5, "num_check_last_eot": 4}],
    "dream": [{"alg": "origin"}, {"alg": "topk_margin", "schedule": "even"}],
    "prophet": [{"inner": "threshold", "answer_start": 1, "gap_thresholds": (1.5, 1.0, 0.5)}],
    "speculative": [{"accept_threshold": 0.1, "ngram": 1, "threshold": 0.6}],
}
"""Settings of a decoder that are worth their own runs; any other decoder runs with its defaults."""

METHODS = [(name, knobs) for name in decoders.names() for knobs in KNOBS.get(name, [{}])]
CACHES = [name for name in caches.names() if name not in ("auto", "block_causal")]
CASES = [
    pytest.param(
        name, knobs, cache, family, id="-".join((name, *map(str, knobs.values()), cache, family))
    )
    for (name, knobs), cache, family in product(METHODS, CACHES, FAMILIES)
]
every_case = pytest.mark.parametrize(("name", "knobs", "cache", "family"), CASES)
with_some_caches = pytest.mark.parametrize(
    ("name", "knobs", "cache", "family"), [c for c in CASES if c.values[2] in ("none", "dual")]
)
"""For what a cache cannot change by itself."""
every_family = pytest.mark.parametrize("family", FAMILIES)

PROMPTS = [[7, 8, 9], [3], [40, MASK, 41, 2, 2, 13, 57], [10, 11, 12], [5] * 12]
prompts = st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=9)
seeds = st.integers(0, 5)

_MODELS: dict = {}


def model(family, seed=0):
    """Hypothesis reruns a test many times; fixtures of a function's scope are not for it."""
    if (family, seed) not in _MODELS:
        _MODELS[family, seed] = tiny_llm(family, seed)
    return _MODELS[family, seed]


def knobs_for(name, knobs, **more):
    """The knobs, and those of `more` that the decoder has and that are not set."""
    return {k: v for k, v in more.items() if k in decoders.knob_names(name, knobs)} | knobs


def finds_length(name):
    return decoders.finds_length(name)


def generate(llm, given, name, cache, knobs, **options):
    options = {"gen_length": 8, "stop_at_eos": False} | options
    shape = knobs_for(name, knobs, block_length=4)
    if finds_length(name):
        length = options.pop("gen_length")
        shape = {"initial_gen_length": length, "max_gen_length": 2 * length} | shape
    return llm.generate(given, name, cache, return_trace=True, **shape, **options)


def revises(name):
    """Whether a decided position may change, so that a position may take more than one forward."""
    own = decoders.decoder_class(name).num_settled
    return own not in (decoders.Decoder.num_settled, decoders.Wrapper.num_settled)


def assert_same_run(ours, theirs):
    assert trace_of(ours) == trace_of(theirs)
    assert ours.canvas_ids == theirs.canvas_ids
    assert confidences_of(ours) == pytest.approx(confidences_of(theirs), abs=1e-4)
    assert (ours.num_forwards, ours.num_queries) == (theirs.num_forwards, theirs.num_queries)
    assert ours.finish_reason == theirs.finish_reason


# one sequence


@every_case
@settings(max_examples=3)
@given(prompt=prompts, seed=seeds, temperature=st.sampled_from([0.0, 1.0]))
def test_only_open_positions_change_and_all_are_decided_in_bounded_forwards(
    name, knobs, cache, family, prompt, seed, temperature
):
    llm = model(family, seed)
    canvas = llm.prompt_canvas(prompt, 8)
    shape = knobs_for(name, knobs, block_length=4)
    forwards = 0
    for event in llm.stream(
        canvas, name, cache, seed=seed, stop_at_eos=False, temperature=temperature, **shape
    ):
        before, after = event.before, event.sequence.canvas
        edit = event.edit
        assert not edit.is_empty or revises(name)
        assert before.open[edit.commit].all()
        assert not set(edit.tokens.tolist()) & {MASK, *range(KNOWN, VOCAB)}
        assert ((edit.confidence >= 0) & (edit.confidence <= 1)).all()
        assert after.tokens[: len(prompt)].tolist() == prompt
        untouched = ~before.open & ~np.isin(np.arange(len(before)), [*edit.replace, *edit.remask])
        if len(before) == len(after):
            assert (after.tokens[untouched] == before.tokens[untouched]).all()
        forwards += 1
    assert (
        event.sequence.finish_reason == "length" or EOS in after.tokens or TURN_END in after.tokens
    )
    assert after.num_open == 0
    assert forwards == event.sequence.num_forwards <= event.sequence.request.max_forwards + 8
    if name == "vanilla" and "steps" in knobs:
        assert forwards == knobs["steps"]


@with_some_caches
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_and_padded_rows_are_never_proposed_however_wanted(
    name, knobs, cache, family, temperature
):
    llm = want(model(family), MASK, *range(KNOWN, VOCAB))
    output = generate(llm, [[7, 8, 9]], name, cache, knobs, temperature=temperature)[0]
    assert not set(output.canvas_ids[3:]) & {MASK, *range(KNOWN, VOCAB)}
    assert output.num_forwards <= 8 or revises(name) or finds_length(name)
    assert max(confidences_of(output)) < 1e-6


@with_some_caches
def test_a_mask_id_in_the_prompt_is_a_token_like_any_other(name, knobs, cache, family):
    prompt = [MASK, 4, MASK, MASK, 9, MASK]
    output = generate(model(family), [prompt], name, cache, knobs)[0]
    assert output.canvas_ids[:6] == prompt
    assert output.prompt_length == 6
    pairs = [pair for step in trace_of(output) for pair in step]
    assert all(position >= 6 for position, _ in pairs)
    assert len(pairs) == 8 or revises(name) or finds_length(name)


@with_some_caches
def test_decoding_ends_early_only_behind_a_complete_answer(name, knobs, cache, family):
    """With an end token, the run that stops is a beginning of the run that does not."""
    if finds_length(name):
        pytest.skip("positions of a later insertion have no place in the run that stopped")
    stopped = 0
    for seed in range(4):
        llm = want(model(family, seed), EOS, by=2.5)
        full = generate(llm, PROMPTS, name, cache, knobs, seed=seed)
        early = generate(llm, PROMPTS, name, cache, knobs, seed=seed, stop_at_eos=True)
        for ours, whole in zip(early, full, strict=True):
            assert trace_of(ours) == trace_of(whole)[: ours.num_forwards]
            assert ours.token_ids == whole.token_ids
            assert ours.finish_reason == whole.finish_reason
            decided = {position for step in trace_of(ours) for position, _ in step}
            for position, token in enumerate(ours.canvas_ids):
                if position >= ours.prompt_length and not revises(name):
                    same = token == whole.canvas_ids[position]
                    assert same if position in decided else token == EOS
            end = ours.prompt_length + len(ours.token_ids)
            assert set(range(ours.prompt_length, end)) <= decided
            stopped += ours.num_forwards < whole.num_forwards
    fast = {"factor", "credit", "prophet"}
    assert stopped or name in fast, "no run of this test stopped early"


# many sequences


@every_case
def test_a_rows_trace_does_not_depend_on_its_batch(name, knobs, cache, family):
    llm = model(family, 1)
    temperature = 0.7 if finds_length(name) or cache in ("prefix", "dllm") else 0.0
    options = {"temperature": temperature, "seed": 5}

    @lru_cache(None)
    def alone(i, row):
        return generate(llm, [PROMPTS[i]], name, cache, knobs, **options | {"seed": 5 + row})[0]

    for order in ([0, 1, 2, 3, 4], [4, 1, 0, 3, 2]):
        for rows in (2, 3, 32) if cache in ("none", "dual") else (3,):
            batch = [PROMPTS[i] for i in order]
            outputs = generate(llm, batch, name, cache, knobs, max_batch_size=rows, **options)
            for row, (i, output) in enumerate(zip(order, outputs, strict=True)):
                assert_same_run(output, alone(i, row))
                assert output.num_logit_rows == alone(i, row).num_logit_rows


@with_some_caches
def test_guidance_in_a_batch_equals_guidance_alone(name, knobs, cache, family):
    llm = model(family, 2)
    options = {"cfg_scale": 1.5, "temperature": 0.3}
    alone = [
        generate(llm, [prompt], name, cache, knobs, seed=row, **options)[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    plain = [generate(llm, [prompt], name, cache, knobs, temperature=0.3)[0] for prompt in PROMPTS]
    assert [trace_of(output) for output in alone] != [trace_of(output) for output in plain]
    for rows in (1, 2, 32):
        outputs = generate(llm, PROMPTS, name, cache, knobs, max_batch_size=rows, **options)
        for output, wanted in zip(outputs, alone, strict=True):
            assert_same_run(output, wanted)


@every_family
@settings(max_examples=40)
@given(data=st.data())
def test_any_mixture_of_requests_decodes_like_each_request_alone(family, data):
    """Decoder, cache, length, guidance, temperature and seed may differ from row to row."""
    llm = model(family, 3)
    requests = []
    for prompt in data.draw(st.lists(prompts, min_size=2, max_size=5)):
        name, knobs = data.draw(st.sampled_from(METHODS))
        shared = {
            "temperature": data.draw(st.sampled_from([0.0, 0.8])),
            "cfg_scale": data.draw(st.sampled_from([0.0, 0.0, 1.0])),
        }
        method = parse_method(name, knobs=knobs_for(name, knobs, block_length=4) | shared)
        requests.append(
            Request(
                canvas=llm.prompt_canvas(prompt, data.draw(st.sampled_from([4, 8]))),
                method=replace(method, cache=make_cache(data.draw(st.sampled_from(CACHES)))),
                seed=data.draw(seeds),
                stop_ids=llm.stop_ids,
                stop_at_eos=data.draw(st.booleans()),
                facts=llm.facts,
            )
        )
    together = run(llm, requests, data.draw(st.sampled_from([2, 3, 10])))
    for ours, request in zip(together, requests, strict=True):
        alone = run(llm, [request], 2)[0]
        positions = [[(c.position, c.token) for c in step.committed] for step in ours.trace]
        assert positions == [
            [(c.position, c.token) for c in step.committed] for step in alone.trace
        ]
        assert ours.canvas.tokens.tolist() == alone.canvas.tokens.tolist()
        assert ours.num_queries == alone.num_queries


def run(llm, requests, max_rows):
    sequences = [SequenceState.begin(request, i) for i, request in enumerate(requests)]
    positions = max(request.max_positions for request in requests)
    list(
        decode(
            sequences,
            ModelRunner(llm.model, llm.vocabulary, max_rows, positions, store=True, features=True),
        )
    )
    assert all(sequence.finish_reason for sequence in sequences)
    return sequences


@with_some_caches
def test_a_seed_repeats_itself_and_another_seed_differs(name, knobs, cache, family):
    llm = model(family, 1)

    def traces(seed):
        outputs = generate(llm, PROMPTS, name, cache, knobs, temperature=1.0, seed=seed)
        return [trace_of(output) for output in outputs]

    assert traces(3) == traces(3)
    assert traces(3) != traces(4)


@every_family
def test_random_remasking_depends_on_the_seed_and_greedy_decoding_does_not(family):
    llm = model(family, 1)
    for knobs, differs in (({"remasking": "random"}, True), ({}, False)):
        first, second = (
            trace_of(generate(llm, [[7, 8, 9]], "vanilla", "none", knobs, seed=seed)[0])
            for seed in (3, 4)
        )
        assert (first != second) == differs


@every_family
def test_requests_of_one_seed_share_their_randomness(family):
    """A request's randomness is its seed alone, whatever its place in the batch."""
    llm = model(family)
    sampled = {"gen_length": 8, "temperature": 1.0, "stop_at_eos": False}
    requests = [llm.request([7, 8], seed=seed, **sampled) for seed in (3, 4, 3)]
    first, second, third = (llm.output(one, True) for one in llm.run(requests, 3))
    assert_same_run(first, third)
    assert trace_of(first) != trace_of(second)


# caches


class RefreshAlways(caches.CachePolicy):
    """Keeps everything and computes everything again."""

    stores, exact = True, True

    def start(self, canvas, facts):
        return None

    def plan(self, canvas, ask, rows, state):
        return CachePlan(np.arange(len(canvas))), None

    def observe(self, before, after, seen, state):
        return None


@every_family
@pytest.mark.parametrize(("name", "knobs"), METHODS)
def test_a_cache_that_refreshes_every_forward_equals_none(name, knobs, family):
    llm = model(family, 4)
    method = parse_method(name, knobs=knobs_for(name, knobs, block_length=4))
    common = {
        "seed": 0,
        "stop_ids": llm.stop_ids,
        "stop_at_eos": False,
        "facts": llm.facts,
    }
    canvases = [llm.prompt_canvas(prompt, 8) for prompt in PROMPTS]
    for rows in (1, 3):
        cached, plain = (
            run(llm, [Request(canvas=c, method=one, **common) for c in canvases], rows)
            for one in (replace(method, cache=RefreshAlways()), method)
        )
        for ours, wanted in zip(cached, plain, strict=True):
            assert ours.canvas.tokens.tolist() == wanted.canvas.tokens.tolist()
            assert ours.canvas.origin.tolist() == wanted.canvas.origin.tolist()


BLOCK_CACHES = ("prefix", "dual")


@every_family
@pytest.mark.parametrize("cache", BLOCK_CACHES)
@pytest.mark.parametrize("name", ["vanilla", "threshold", "factor"])
def test_blocks_of_one_position_refresh_every_forward_and_equal_none(name, cache, family):
    for seed in range(3):
        llm = model(family, seed)
        cached, plain = (
            generate(llm, PROMPTS, name, which, {"block_length": 1}) for which in (cache, "none")
        )
        for ours, wanted in zip(cached, plain, strict=True):
            assert_same_run(ours, wanted)


@every_family
@pytest.mark.parametrize("cache", BLOCK_CACHES)
def test_blocks_that_take_one_forward_equal_none(cache, family):
    llm = model(family)
    cached, plain = (
        generate(llm, PROMPTS, "threshold", which, {"threshold": 0.0}) for which in (cache, "none")
    )
    for ours, wanted in zip(cached, plain, strict=True):
        assert_same_run(ours, wanted)
        assert ours.num_forwards == 2


@every_family
@pytest.mark.parametrize("name", ["vanilla", "threshold"])
def test_with_one_block_the_first_forward_equals_none_and_dual_equals_prefix(name, family):
    later = 0
    for seed in range(4):
        llm = model(family, seed)
        prefix, dual, none = (
            generate(llm, PROMPTS, name, which, {"block_length": 8})
            for which in ("prefix", "dual", "none")
        )
        for left, right, plain in zip(prefix, dual, none, strict=True):
            assert trace_of(left) == trace_of(right)
            assert left.num_queries == right.num_queries < plain.num_queries
            assert trace_of(left)[0] == trace_of(plain)[0]
            later += trace_of(left) != trace_of(plain)
    assert later, "the caches are approximate; equal everywhere means they were not used"


@pytest.mark.parametrize("name", CACHES)
def test_outputs_say_whether_their_cache_is_exact(name):
    output = generate(model("llada"), [[1, 2]], "vanilla", name, {})[0]
    assert output.cache_exact == make_cache(name).exact == (name == "none")
    assert output.cache == name


# accounting, by hand: prompt 5, two blocks of 4, one token a forward, in the order that the table says


def by_table(family, order, cache, **options):
    """Runs vanilla on a model that says token `p` at position `p`, the surest first by `order`."""
    shift = 1 if family == "dream" else 0
    table = torch.zeros(32, VOCAB)
    for rank, position in enumerate(order):
        table[position - shift, position] = 20.0 - rank
    stub = TableModel(tiny_spec(family, max_length=64), table)
    llm = LLM(stub, tokenizer=StubTokenizer())
    output = llm.generate(
        [[1, 2, 3, 4, 5]],
        cache=cache,
        gen_length=8,
        block_length=4,
        return_trace=True,
        stop_at_eos=False,
        **options,
    )[0]
    assert output.canvas_ids[5:] == list(range(5, 13))
    return output, stub


ALL, LEFT, RIGHT = 13, [5, 6, 7, 8, 9, 10, 11, 12], [8, 7, 6, 5, 12, 11, 10, 9]


@pytest.mark.parametrize(
    ("family", "order", "cache", "queries"),
    [
        ("llada", LEFT, "none", [ALL] * 8),
        ("llada", LEFT, "prefix", [ALL, 8, 8, 8, ALL, 4, 4, 4]),
        ("llada", RIGHT, "prefix", [ALL, 8, 8, 8, ALL, 4, 4, 4]),
        ("llada", LEFT, "dual", [ALL, 4, 4, 4] * 2),
        ("llada", RIGHT, "dual", [ALL, 4, 4, 4] * 2),
        ("dream", LEFT, "none", [ALL] * 8),
        # the row before the block is needed only while the block's first position is open
        ("dream", LEFT, "prefix", [ALL, 8, 8, 8, ALL, 4, 4, 4]),
        ("dream", RIGHT, "prefix", [ALL, 9, 9, 9, ALL, 5, 5, 5]),
        ("dream", LEFT, "dual", [ALL, 4, 4, 4] * 2),
        ("dream", RIGHT, "dual", [ALL, 5, 5, 5] * 2),
    ],
)
def test_queries_and_logit_rows_are_those_counted_by_hand(family, order, cache, queries):
    output, stub = by_table(family, order, cache)
    assert [position for step in trace_of(output) for position, _ in step] == order
    assert [step.num_queries for step in output.trace] == queries
    assert output.num_queries == sum(queries)
    assert output.num_logit_rows == 2 * (4 + 3 + 2 + 1)
    assert output.num_forwards == len(stub.seen) == 8
    assert [len(ids) for ids, *_ in stub.seen] == queries


@every_family
@pytest.mark.parametrize(("cache", "queries"), [("none", 8 * ALL), ("dual", 2 * (ALL + 12))])
def test_guidance_computes_everything_twice_in_one_forward(family, cache, queries):
    output, stub = by_table(family, LEFT, cache, cfg_scale=1.0)
    assert output.num_queries == 2 * queries
    assert output.num_logit_rows == 2 * 20
    assert output.num_forwards == 8
    seen, blind = stub.seen[0][0].unflatten(0, (2, -1))
    assert seen[:5].tolist() == [1, 2, 3, 4, 5]
    assert blind[:5].tolist() == [MASK] * 5


def test_only_the_asked_rows_pass_through_the_head(monkeypatch):
    rows = []
    llm = model("llada")
    plain = type(llm.model).head

    def head(self, hidden, ids=None):
        rows.append(hidden.shape[:-1].numel())
        return plain(self, hidden, ids)

    monkeypatch.setattr(type(llm.model), "head", head)
    output = generate(llm, [[7, 8, 9]], "vanilla", "none", {})[0]
    assert rows == [4, 3, 2, 1] * 2
    assert output.num_logit_rows == sum(rows)


# infilling


@every_case
@settings(max_examples=2)
@given(data=st.data())
def test_infilling_keeps_what_is_given_and_fills_the_rest(name, knobs, cache, family, data):
    tokens = st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=4)
    parts = data.draw(st.lists(tokens | st.integers(1, 3), min_size=0, max_size=5))
    parts += [data.draw(st.integers(1, 3)), data.draw(tokens)]
    texts = [" ".join(map(str, part)) if isinstance(part, list) else part for part in parts]
    knobs = {key: value for key, value in knobs.items() if key != "steps"}
    llm = model(family, 1)
    if decoders.make_decoder(name, knobs).grows:
        with pytest.raises(ConfigError, match="cannot fill blanks"):
            llm.infill(texts, name, cache, **knobs)
        return
    output = llm.infill(texts, name, cache, return_trace=True, **knobs)
    at, filled = 0, []
    for part in parts:
        size = len(part) if isinstance(part, list) else part
        found = output.canvas_ids[at : at + size]
        if isinstance(part, list):
            assert found == part
        else:
            filled += found
        at += size
    assert at == len(output.canvas_ids)
    assert output.token_ids == filled
    assert not set(filled) & {MASK, *range(KNOWN, VOCAB)}
    committed = [p for step in trace_of(output) for p, _ in step]
    assert len(committed) == len(set(committed)) or revises(name)
    assert sorted(set(committed)) == [i for i, id_ in enumerate(blank_flags(parts)) if id_]


def blank_flags(parts):
    return [
        flag
        for part in parts
        for flag in ([0] * len(part) if isinstance(part, list) else [1] * part)
    ]


# the loop's own guards, with decoders that misbehave


class Misbehaving(decoders.Decoder):
    """Wraps the threshold rule and spoils its edits."""

    def __init__(self, spoil, room=0):
        self.rule = parse_method("threshold", knobs={"threshold": 0.5, "block_length": 4}).decoder
        self.spoil, self.room = spoil, room

    def max_positions(self, canvas, facts):
        return len(canvas) + self.room

    def start(self, canvas, facts):
        return self.rule.start(canvas, facts)

    def ask(self, canvas, state):
        ask, state = self.rule.ask(canvas, state)
        return ask, state

    def step(self, canvas, state, reading):
        edit, state = self.rule.step(canvas, state, reading)
        return self.spoil(canvas, edit), state


def endless_revision(canvas, edit):
    """Opens again what the forward before decided."""
    decided = np.flatnonzero(~canvas.open & ~canvas.fixed)
    return replace(edit, remask=decided)


@every_family
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("spoil", "room", "most"),
    [
        pytest.param(lambda canvas, edit: Edit(), 0, 8, id="never commits"),
        pytest.param(endless_revision, 0, 2 * 8 + 64 + 2, id="revises without end"),
    ],
)
def test_a_decoder_that_does_not_come_to_an_end_is_ended(spoil, room, most, cache, family):
    llm = model(family)
    method = replace(parse_method("threshold", cache), decoder=Misbehaving(spoil, room))
    request = Request(
        canvas=llm.prompt_canvas([1, 2, 3], 8),
        method=method,
        seed=0,
        stop_ids=llm.stop_ids,
        stop_at_eos=False,
        facts=llm.facts,
    )
    sequence = run(llm, [request], 1)[0]
    assert sequence.num_forwards <= most
    assert sequence.canvas.num_open == 0
    assert sequence.canvas.tokens[:3].tolist() == [1, 2, 3]
