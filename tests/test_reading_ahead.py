"""Reading ahead changes no token: `speculative` with lossless=true takes fewer forwards, no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from test_engine import submit_all
from tiny import FAMILIES, tiny_llm, trace_of

from unmask import decoders
from unmask.canvas import Edit
from unmask.decoders.threshold import Threshold
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.errors import ConfigError, DecoderError

PROMPTS = [[7, 8, 9], [3], [40, 41, 2, 2, 13, 57]]
INNER = {
    "vanilla": {},
    "threshold": {"threshold": 0.6},
    "factor": {"factor": 1.0},
    "eb_sampler": {"gamma": 1.0},
    "cadllm": {"tau_base": 0.5, "tau_min": 0.2},
    "hierarchy": {"threshold": 0.6},
    "block_diffusion": {},
    "dream": {"alg": "topk_margin"},
}
AHEAD = {"drafter": "previous", "lossless": True}


def run(llm, decoder, temperature=0.0, **knobs):
    return llm.generate(
        PROMPTS,
        decoder,
        gen_length=12,
        temperature=temperature,
        seed=3,
        stop_at_eos=False,
        return_trace=True,
        max_batch_size=2,
        **knobs,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_trace_is_that_of_the_decoder_inside(inner, family, temperature):
    llm, knobs = tiny_llm(family, 0, sure=3.0), INNER[inner]
    plain = run(llm, inner, temperature, **knobs)
    ahead = run(llm, "speculative", temperature, inner=inner, depth=3, **AHEAD, **knobs)
    for ours, theirs in zip(ahead, plain, strict=True):
        assert trace_of(ours) == trace_of(theirs)
        assert ours.canvas_ids == theirs.canvas_ids
        assert ours.num_forwards == theirs.num_forwards - ours.num_ahead
        assert ours.num_queries >= theirs.num_queries
        assert ours.num_logit_rows >= theirs.num_logit_rows


def test_a_forward_is_saved_where_a_prediction_comes_true():
    llm = tiny_llm("llada", 0, sure=3.0)
    plain, shallow, deep = (
        run(llm, "threshold", threshold=0.99),
        run(llm, "speculative", threshold=0.99, **AHEAD),
        run(llm, "speculative", threshold=0.99, depth=8, **AHEAD),
    )
    saved = [sum(out.num_ahead for out in outs) for outs in (shallow, deep)]
    assert 0 < saved[0] <= saved[1]
    forwards = [sum(out.num_forwards for out in outs) for outs in (plain, shallow, deep)]
    assert forwards[0] - forwards[1] == saved[0]
    queries = [sum(out.num_queries for out in outs) for outs in (plain, shallow, deep)]
    assert queries[0] < queries[1] < queries[2], "what is read ahead is paid for"


def test_what_is_read_ahead_takes_only_positions_that_are_left():
    llm = tiny_llm("llada", 0, sure=3.0)
    knobs = {"gen_length": 12, "threshold": 0.99, "depth": 3, "stop_at_eos": False}
    request = llm.request(PROMPTS[0], "speculative", **knobs, **AHEAD)
    outputs = {}
    for positions in (15, 16, 30, 8192):  # the canvas has 15
        with Engine(llm, EngineConfig(max_num_batched_tokens=positions)) as engine:
            outputs[positions] = submit_all(engine, [request])[0].last.output
    counts = [outputs[positions].num_ahead for positions in (15, 16, 30, 8192)]
    assert counts[0] == counts[1] == 0 < counts[2] <= counts[3]
    assert len({tuple(output.canvas_ids) for output in outputs.values()}) == 1


def test_a_request_that_ends_with_a_reading_ahead_ends_once():
    """Two steps of one forward are told, and the engine goes on."""
    llm = tiny_llm("llada", 0, sure=3.0)
    knobs = {"gen_length": 12, "threshold": 0.99, "depth": 3, "stop_at_eos": False}
    requests = [llm.request([i, 8, 9], "speculative", **knobs, **AHEAD) for i in range(8)]
    expected = llm.run(requests, 4)
    ends = [event.sequence.index for event in llm.events(requests, 4) if event.is_last]
    assert sorted(ends) == list(range(8))
    with Engine(llm) as engine:
        listeners = submit_all(engine, requests)
        lasts = [listener.last for listener in listeners]
        assert engine.failure is None
    num_late = 0
    for listener, last, sequence in zip(listeners, lasts, expected, strict=True):
        steps = [update for update in listener.updates if update.kind == "step"]
        assert len(steps) == sequence.num_forwards == len(last.output.trace)
        num_late += steps[-1].num_forwards == steps[-2].num_forwards
    assert num_late > 0, "some ended in a reading ahead"


def test_guidance_is_read_ahead_too():
    llm = tiny_llm("llada", 1, sure=3.0)
    plain = run(llm, "threshold", cfg_scale=1.0)
    ahead = run(llm, "speculative", cfg_scale=1.0, **AHEAD)
    assert [trace_of(out) for out in ahead] == [trace_of(out) for out in plain]


@dataclass(frozen=True)
class Wrong(Threshold):
    """Predicts a fixed token at the first open position, seldom rightly."""

    token: int = decoders.knob(5, "the token")

    def predict(self, canvas, state):
        first = np.flatnonzero(canvas.open)[:1]
        return (Edit(first, np.full(1, self.token), np.ones(1)),)


def test_a_wrong_prediction_changes_nothing_and_a_forbidden_one_is_an_error():
    llm = tiny_llm("llada", 0, sure=3.0)
    plain, wrong = run(llm, "threshold"), run(llm, Wrong())
    assert [trace_of(out) for out in wrong] == [trace_of(out) for out in plain]
    assert sum(out.num_queries for out in wrong) > sum(out.num_queries for out in plain)
    with pytest.raises(DecoderError, match=r"predict: Edit.tokens has the mask id"):
        run(llm, Wrong(token=llm.spec.mask_id))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"lossless": True}, "drafter='lookup'; use drafter=previous"),
        ({"drafter": "previous", "depth": 2}, "depth=2 has no effect without lossless=true"),
        ({**AHEAD, "depth": 0}, "depth=0 must be between 1 and 8"),
        ({**AHEAD, "depth": 9}, "depth=9 must be between 1 and 8"),
        ({**AHEAD, "inner": "klass"}, "no effect on decoder klass"),
        ({**AHEAD, "inner": "credit"}, "no effect on decoder credit"),
        ({**AHEAD, "inner": "wino"}, "no effect on decoder wino, which revises tokens"),
        ({**AHEAD, "inner": "joint_threshold"}, "no effect on decoder joint_threshold"),
    ],
)
def test_values_without_effect_are_refused(knobs, said):
    with pytest.raises(ConfigError, match=said):
        tiny_llm("llada").generate([[1]], "speculative", gen_length=8, **knobs)


def test_a_cache_that_stores_is_refused():
    with pytest.raises(
        ConfigError, match="lossless=true reads canvases ahead only without a cache"
    ):
        tiny_llm("llada").generate([[1]], "speculative", "dual", gen_length=8, **AHEAD)


def test_the_previous_proposals_as_drafts_save_forwards():
    llm = tiny_llm("llada", 0, sure=3.0)
    plain = run(llm, "threshold", threshold=0.99)
    drafted = run(llm, "speculative", drafter="previous", threshold=0.99, accept_threshold=0.2)
    assert sum(out.num_forwards for out in drafted) < sum(out.num_forwards for out in plain)
    assert sum(step.notes["num_accepted"] for out in drafted for step in out.trace) > 0
