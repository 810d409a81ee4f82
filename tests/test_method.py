"""`MethodSpec`: precedence, contradictions, aliases, notes, effective values; parsed once a request."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from tiny import tiny_llm

from unmask import caches, decoders
from unmask.errors import ConfigError, ContradictionError
from unmask.knobs import merge
from unmask.method import MethodSpec, Source
from unmask.server.protocol import CompletionRequest
from unmask.server.request_planner import Planner
from unmask.server.settings import ServerSettings


def parse(**values):
    return MethodSpec.parse(Source(values))


# sources


def test_sources_are_merged_in_order_and_defaults_yield():
    spec = MethodSpec.parse(
        Source({"threshold": 0.7}, "body"),
        Source({"decoder": "threshold", "threshold": "0.7", "temperature": 0.5}, "words"),
        Source({"threshold": 0.9, "sigma": 2.0}, "file", is_default=True),
    )
    assert spec.decoder.threshold == 0.7
    assert spec.decoder.sigma == 2.0
    assert spec.sampling_params.temperature == 0.5
    assert spec.origins == {"threshold": "body", "temperature": "words", "sigma": "file"}


def test_a_default_method_yields_as_a_whole():
    default = parse(decoder="threshold", threshold=0.8, cache="dkv", **{"cache.interval": 5})
    for values, decoder, cache in (
        ({}, "threshold(threshold=0.8)", "dkv(interval=5)"),
        ({"decoder": "vanilla"}, "vanilla", "dkv(interval=5)"),
        ({"preset": "sdar"}, "threshold(threshold=0.85", "dkv(interval=5)"),
        ({"cache": "dual"}, "threshold(threshold=0.8)", "dual"),
        ({"cache": "dkv", "cache.interval": 2}, "threshold(threshold=0.8)", "dkv(interval=2)"),
        ({"threshold": 0.6}, "threshold(threshold=0.6)", "dkv(interval=5)"),
    ):
        spec = MethodSpec.parse(Source(values), default.source(is_default=True))
        assert decoder in spec.describe().replace("whole_blocks=True, ", "")
        assert spec.describe_cache() == cache


def test_soft_values_are_left_out_where_the_method_has_no_such_knob():
    soft = Source({"block_length": 32, "temperature": 0.5}, is_soft=True)
    assert MethodSpec.parse(Source({"decoder": "dream"}), soft).given == {"temperature": 0.5}
    assert MethodSpec.parse(Source({"decoder": "threshold"}), soft).decoder.block_length == 32
    with pytest.raises(ConfigError, match="unknown knob for decoder 'dream': 'block_length'"):
        parse(decoder="dream", block_length=32)


@pytest.mark.parametrize(
    ("sources", "key", "message"),
    [
        (
            (Source({"steps": 4}), Source({"steps": 8}, spelling="decoder_args.{key}")),
            "steps",
            "steps=4 and decoder_args.steps=8 contradict; give one of them",
        ),
        (
            (Source({"decoder": "threshold(threshold=0.5)", "threshold": 0.7}),),
            "threshold",
            "threshold=0.5 and threshold=0.7 contradict",
        ),
        (
            (Source({"alg": "entropy", "score": "margin"}),),
            "score",
            "alg=entropy, that is score=entropy and score=margin contradict",
        ),
        (
            (Source({"gen_length": 4}, spelling="--{flag}"), Source({"gen_length": "8"})),
            "gen_length",
            "--gen-length=4 and gen_length=8 contradict",
        ),
    ],
)
def test_two_values_of_one_key_are_refused_in_one_wording(sources, key, message):
    with pytest.raises(ContradictionError, match=message) as caught:
        MethodSpec.parse(*sources)
    assert caught.value.key == key
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.key, str(again)) == (key, str(caught.value))


def test_values_that_mean_the_same_agree():
    merged = merge(Source({"steps": 4, "compat": True}), Source({"steps": "4", "compat": "true"}))
    assert {key: item.value for key, item in merged.items()} == {"steps": 4, "compat": True}
    with pytest.raises(ContradictionError):
        merge(Source({"steps": 1}), Source({"steps": True}))


# aliases


@pytest.mark.parametrize(
    ("values", "decoder", "cache", "codes"),
    [
        ({"threshold": 0.8}, "threshold(threshold=0.8)", "none", ["alias"]),
        ({"threshold": None}, "vanilla", "none", []),
        ({"threshold": 0.8, "steps": 8}, "threshold(threshold=0.8)", "none", ["no_effect"]),
        ({"factor": 2.0}, "factor(factor=2.0)", "none", ["alias"]),
        ({"gamma": 0.2}, "eb_sampler(", "none", ["alias"]),
        ({"debias": True}, "pc_sampler", "none", ["alias"]),
        ({"debias": True, "threshold": 0.8}, "threshold(score=pc, ", "none", ["alias"]),
        ({"alg": "topk_margin"}, "vanilla(score=margin)", "none", ["translated"]),
        ({"decoder": "dream", "alg": "topk_margin"}, "dream(alg=topk_margin)", "none", []),
        ({"num_transfer_tokens": 4}, "vanilla(steps=16)", "none", ["translated"]),
        ({"cache": "prefix(use_dual=true)"}, "vanilla", "dual", []),
        ({"cache": "dual", "cache.use_dual": False}, "vanilla", "prefix", []),
        ({"cache": "dual", "cache.use_dual": True}, "vanilla", "dual", []),
        ({"cache": "dkv(inner=prefix, use_dual=true)"}, "vanilla", "dkv(inner=dual)", []),
        (
            {"decoder": "prophet(inner=vanilla)", "factor": 2.0},
            "prophet(inner=factor",
            "none",
            ["alias"],
        ),
        ({"preset": "sdar"}, "threshold(", "none", ["preset"]),
        ({"preset": "null"}, "vanilla", "none", []),
    ],
)
def test_an_alias_is_the_method_that_it_names_and_a_note_tells(values, decoder, cache, codes):
    spec = MethodSpec.parse(Source(values), gen_length=64)
    assert spec.describe().startswith(decoder)
    assert spec.describe_cache() == cache
    assert [note.code for note in spec.notes] == codes


@pytest.mark.parametrize(
    ("values", "message", "key"),
    [
        ({"decoder": "vanila"}, "did you mean 'vanilla'", "decoder"),
        ({"decoder": None}, "unknown decoder 'None'", None),
        ({"cache": "duall"}, "did you mean 'dual'", None),
        ({"threshold": 0.8, "factor": 2.0}, "name different methods; use one", "decoder"),
        ({"decoder": "ar", "preset": "sdar"}, "preset=sdar selects decoder 'threshold'", "decoder"),
        ({"preset": "sdra"}, "did you mean 'sdar'", "decoder"),
        ({"num_transfer_tokens": 4}, "must divide gen_length=None", "decoder"),
        ({"thresold": 0.8}, "did you mean 'threshold'|knob of decoder", None),
        ({"cache": "dual", "cache.use_dual": "maybe"}, "use_dual='maybe'", None),
        ({"cache.kp": 3}, "unknown knob for cache 'none': 'kp'", None),
    ],
)
def test_a_mistake_is_refused(values, message, key):
    with pytest.raises(ConfigError, match=message) as caught:
        MethodSpec.parse(Source(values))
    assert caught.value.key == key


# the spec


def test_a_spec_is_frozen_has_all_values_and_travels_to_other_processes():
    spec = parse(decoder="threshold", threshold="0.8", cache="dllm", **{"cache.kp": 7})
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.cache = None
    assert spec == pickle.loads(pickle.dumps(spec))
    values = spec.values()
    assert (values["decoder"], values["cache"]) == ("threshold", "dllm")
    assert (values["threshold"], values["temperature"], values["cache.kp"]) == (0.8, 0.0, 7)
    own = {f"cache.{field.name}" for field in dataclasses.fields(spec.cache)}
    assert values.keys() == {"decoder", "cache", *spec.knobs(), *own}
    assert spec.given == {"threshold": "0.8", "cache.kp": 7}
    assert spec.label == "threshold(threshold=0.8)"


def test_auto_is_bound_to_the_model():
    spec = parse(cache="auto")
    assert spec.cache_name == "auto"
    assert spec.bind(None).cache_name == "vicinity"
    assert spec.bind(8).cache_name == "block_causal"
    assert parse(cache="dual").bind(8) == parse(cache="dual")


def test_other_values_replace_those_of_a_spec():
    spec = parse(decoder="threshold", threshold=0.8, cache="dual")
    assert spec.with_values({"threshold": 0.6}).values()["threshold"] == 0.6
    assert spec.with_values({"cache": "none"}).describe() == "threshold(threshold=0.8)"
    assert spec.with_values({}) == spec


def test_a_spec_is_taken_in_the_place_of_a_decoder_and_nothing_beside_it():
    llm = tiny_llm()
    spec = parse(decoder="threshold", threshold=0.3, cache="dual")
    out = llm.generate([[1, 2]], spec, gen_length=8)[0]
    assert out == llm.generate([[1, 2]], "threshold", "dual", gen_length=8, threshold=0.3)[0]
    for beside in ({"threshold": 0.3}, {"cache": "none()"}, {"cache_args": {"kp": 1}}):
        with pytest.raises(ConfigError, match="no effect beside a MethodSpec"):
            llm.generate([[1, 2]], spec, gen_length=8, **beside)


# parsed once


@pytest.fixture
def counts(monkeypatch):
    """How often a method is parsed, and a decoder and a cache are built."""
    found = {"parse": 0, "make_decoder": 0, "make_cache": 0}
    parse_ = MethodSpec.parse.__func__

    def counted(cls, *args, **options):
        found["parse"] += 1
        return parse_(cls, *args, **options)

    monkeypatch.setattr(MethodSpec, "parse", classmethod(counted))
    for module, name in ((decoders, "make_decoder"), (caches, "make_cache")):
        function = getattr(module, name)

        def wrapped(*args, name=name, function=function, **options):
            found[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, wrapped)
    return found


ONCE = {"parse": 1, "make_decoder": 1, "make_cache": 1}


def test_many_prompts_are_one_method(counts):
    llm = tiny_llm()
    llm.generate([[i, 2] for i in range(8)], "threshold", "dual", gen_length=4, threshold=0.1)
    assert counts == ONCE


@pytest.mark.parametrize("field", [{}, {"decoder": "threshold"}, {"cache": "dllm(kp=7)"}])
def test_a_request_of_many_choices_is_one_method(counts, field):
    planner = Planner(tiny_llm(), ServerSettings(("tiny",)))
    counts.update(dict.fromkeys(counts, 0))
    body = CompletionRequest(prompt=[7, 8], n=16, max_tokens=4, seed=3, **field)
    plans = planner.completion(body, {})
    assert counts == ONCE
    assert [plan.request.seed for plan in plans] == list(range(3, 19))
    assert len({id(plan.request.method) for plan in plans}) == 1


def test_a_request_of_many_prompts_is_one_method(counts):
    planner = Planner(tiny_llm(), ServerSettings(("tiny",)))
    counts.update(dict.fromkeys(counts, 0))
    prompts = [[i % 50, 1] for i in range(64)]
    plans = planner.completion(CompletionRequest(prompt=prompts, n=16, max_tokens=4), {})
    assert counts == ONCE
    assert [plan.prompt for plan in plans] == [i // 16 for i in range(64 * 16)]


def test_more_choices_than_the_queue_holds_are_refused_before_they_are_planned(counts):
    planner = Planner(tiny_llm(), ServerSettings(("tiny",)), max_choices=256)
    counts.update(dict.fromkeys(counts, 0))
    prompts = [[i % 50, 1] for i in range(64)]
    with pytest.raises(Exception, match="1024 answers in one request") as caught:
        planner.completion(CompletionRequest(prompt=prompts, n=16, max_tokens=4), {})
    assert (caught.value.status, caught.value.code) == (400, "request_too_large")
    assert set(counts.values()) == {0}


# values that nobody wrote


def defaults(**values):
    return MethodSpec.parse(Source(values)).source(is_default=True, is_adaptable=True)


@pytest.mark.parametrize(
    ("default", "written", "remaining"),
    [
        ({"vocabulary": "static", "vocab_size": 9}, {"vocabulary": "none"}, {"vocabulary": "none"}),
        ({"vocabulary": "union", "max_missed": 0.5}, {"cfg_scale": 1.0}, {"cfg_scale": 1.0}),
        (
            {"decoder": "threshold", "block_steps": 4, "minimal_topk": 2},
            {"block_steps": None},
            {"block_steps": None},
        ),
        ({"steps": 8}, {"block_length": 4}, {"steps": 8, "block_length": 4}),
    ],
)
def test_a_default_gives_way_to_a_written_value_that_it_contradicts(default, written, remaining):
    spec = MethodSpec.parse(Source(written), defaults(**default))
    assert spec.given == remaining
    assert spec.adaptable == remaining.keys() - written.keys()


def test_a_wrong_written_value_is_an_error_beside_defaults_too():
    for written in ({"threshold": 7.0}, {"vocab_size": 0}, {"comparator": "x"}):
        with pytest.raises(ConfigError, match=next(iter(written))):
            MethodSpec.parse(Source(written), defaults(decoder="threshold", comparator="gt"))
    with pytest.raises(ConfigError, match="threshold=7"):
        MethodSpec.parse(Source({"preset": "sdar", "threshold": 7.0}))


def test_the_values_of_a_preset_are_nobodys_and_stay_so():
    spec = MethodSpec.parse(Source({"preset": "fast_dllm_v2", "threshold": 0.5}))
    assert spec.adaptable == {"block_length", "comparator", "first_alone", "whole_blocks"}
    changed = spec.with_values({"block_length": 4, "cache": "dual"})
    assert changed.adaptable == {"comparator", "first_alone", "whole_blocks"}
