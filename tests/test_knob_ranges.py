"""Ranges: what a help text states is what the method takes, and what `/v1/schema` says."""

from __future__ import annotations

import pytest

from unmask import caches, decoders
from unmask.canvas import ModelFacts, new_canvas
from unmask.errors import ConfigError
from unmask.knobs import KnobRange, range_of
from unmask.method import MethodSpec, Source
from unmask.sampling.params import SamplingParams
from unmask.server.capabilities import COMMON, knob_infos
from unmask.server.request_planner import MAX_SUSPECTS, knob_at_fault

METHODS = [
    *((name, decoders.decoder_class(name)) for name in decoders.served_names()),
    *((name, caches.cache_class(name)) for name in caches.served_names()),
    ("shared", SamplingParams),
]
NUMBERS = {
    (name, knob["name"]): knob
    for name, cls in METHODS
    for knob in knob_infos(cls)
    if knob["type"] in ("int", "float")
}
NEEDS = {"vocab_size": {"vocabulary": "static"}, "max_missed": {"vocabulary": "union"}}
NEEDS |= {"minimal_topk": {"block_steps": 4}, "answer_length": {"answer_start": 0}}
WITH_OTHERS = {"tau_base", "tau_min", "low_threshold", "min_block", "initial_gen_length"}
WITH_OTHERS |= {"threshold", "max_missed", "min_draft", "min_vocab_size", "steps", "depth"}
"""Knobs whose limits also depend on other knobs."""


@pytest.mark.parametrize(
    ("help", "expected"),
    [
        ("a share, in [0, 1]; 0: none", KnobRange("in [0, 1]", least=0, most=1)),
        ("in (0, 1); near 0: even", KnobRange("in (0, 1)", above=0, below=1)),
        ("in [0, tau_base]; 0", KnobRange("in [0, tau_base]", least=0)),
        ("positions, at least 1; 1: one", KnobRange("at least 1", least=1)),
        ("0 or at least 1e-6; 0: greedy", KnobRange("0 or at least 1e-6", least=0)),
        ("at least -1; 1", KnobRange("at least -1", least=-1)),
        ("at least min_draft; 1", KnobRange("at least min_draft")),
        ("width, > 0; small", KnobRange("> 0", above=0)),
        ("weight, >= 0.5; 0", KnobRange(">= 0.5", least=0.5)),
        ("at least one token per forward", None),
        ("the file", None),
    ],
)
def test_a_help_text_states_its_range(help, expected):
    assert range_of(help) == expected


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_every_number_has_a_range_and_a_value_outside_is_refused(method, name):
    knob = NUMBERS[method, name]
    assert knob["range"], f"the help of {name} states no range"
    step = 1 if knob["type"] == "int" else 0.25
    outside = [knob[key] + sign * step for key, sign in (("min", -1), ("max", 1)) if key in knob]
    outside += [knob[key] for key in ("above", "below") if key in knob]
    for value in outside:
        assert refusal(method, name, value), f"{name}={value} is taken"
    inside = [knob[key] for key in ("min", "max") if key in knob]
    for value in inside if name not in WITH_OTHERS else []:
        assert not refusal(method, name, value), f"{name}={value}"


def refusal(method: str, name: str, value: float) -> str:
    """Return the error of a method with a knob, built and begun; empty if there is none."""
    own = {name: value, **NEEDS.get(name, {})}
    if method in caches.served_names():
        own = {"cache": method, **{f"cache.{key}": item for key, item in own.items()}}
    elif method != "shared":
        own["decoder"] = method
    canvas = new_canvas([1] + [0] * 8, [False] + [True] * 8, 1, 0)
    try:
        spec = MethodSpec.parse(Source(own), gen_length=8)
        spec.decoder.start(canvas, ModelFacts(10, 9, None, None, 64, end_ids=frozenset((9,))))
    except ConfigError as error:
        return str(error)
    return ""


def test_common_knobs_are_those_that_are_tuned_and_those_of_most_requests():
    common = {knob["name"] for knob in knob_infos(decoders.decoder_class("threshold"))}
    found = {
        knob["name"]
        for knob in knob_infos(decoders.decoder_class("threshold"))
        if knob["is_common"]
    }
    assert found == {"threshold", "block_length"}
    assert found < common
    assert {k["name"] for k in knob_infos(SamplingParams) if k["is_common"]} == {"temperature"}
    known = {knob["name"] for _, cls in METHODS for knob in knob_infos(cls)}
    assert known >= COMMON


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([{"threshold": 2}], "threshold"),
        ([{"threshold": 0.5}, {"temperature": -1}], "decoder_args.temperature"),
        ([{}, {}, {"cache.kp": 0, "cache": "dllm"}], "cache_args.kp"),
        ([{"threshold": 2, "temperature": -1}], None),
        ([{"threshold": 0.5}], "threshold"),
    ],
)
def test_the_knob_that_is_refused_is_the_one_without_which_nothing_is(sources, expected):
    forms = ["{key}", "decoder_args.{key}", "cache_args.{key}"]
    given = [Source(values, spelling=form) for values, form in zip(sources, forms, strict=False)]
    assert knob_at_fault(*given) == expected


def test_a_request_of_very_many_knobs_is_not_searched():
    values = {f"x{number}": 1 for number in range(MAX_SUSPECTS)} | {"threshold": 2}
    assert knob_at_fault(Source(values)) is None
