"""Decoders and caches against the naive renderings in `oracles/`: the same trace on random models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import llada as oracle
from tiny import EOS, FAMILIES, KNOWN, MASK, TURN_END, VOCAB, confidences_of, trace_of, want

from unmask.sampling.rng import row_keys, uniform

FORBIDDEN = {MASK, *range(KNOWN, VOCAB)}
SEEDS = range(2)
PROMPTS = ([7, 8, 9, 3], [1, 30, MASK, 22, 22, 5, 50])


def ours(llm, prompt, decoder, **options):
    return llm.generate([prompt], decoder, stop_at_eos=False, return_trace=True, **options)[0]


def assert_same(output, expected):
    trace, computed = expected
    assert trace_of(output) == trace
    assert [step.num_queries for step in output.trace] == computed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_naive_network_is_the_network(family, tiny):
    llm = tiny(family, seed=9)
    ids = [5, MASK, 17, MASK, 2, 40]
    rows = oracle.Network(llm.model).logits(ids, list(range(6)))
    theirs = torch.stack([rows[p] for p in range(6)])
    assert float((llm.model(torch.tensor([ids]))[0] - theirs).abs().max()) < 5e-5


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("gen", "block", "steps"), [(8, 8, 8), (8, 4, 6), (9, 3, 3), (6, 2, 6), (4, 4, 8)]
)
def test_vanilla_is_lladas_sampler(gen, block, steps, family, cache, tiny):
    for seed in SEEDS:
        llm = tiny(family, seed=seed)
        prompt = PROMPTS[seed]
        per_block = steps // (gen // block)
        expected = oracle.decode(
            oracle.Network(llm.model),
            prompt,
            gen,
            block,
            lambda n, t, per_block=per_block: oracle.quota_rule(n, per_block)(t),
            FORBIDDEN,
            cache=cache,
        )
        output = ours(
            llm, prompt, "vanilla", cache=cache, gen_length=gen, block_length=block, steps=steps
        )
        assert_same(output, expected)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_threshold_is_fast_dllms_rule(tau, family, cache, tiny):
    for seed in SEEDS:
        llm = tiny(family, seed=seed)
        expected = oracle.decode(
            oracle.Network(llm.model),
            PROMPTS[seed],
            8,
            4,
            lambda n, t: oracle.keep_threshold(tau),
            FORBIDDEN,
            cache=cache,
        )
        output = ours(
            llm,
            PROMPTS[seed],
            "threshold",
            cache=cache,
            gen_length=8,
            block_length=4,
            threshold=tau,
        )
        assert_same(output, expected)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_factor_is_fast_dllms_rule(phi, family, cache, compat, tiny):
    make = oracle.keep_factor_as_published if compat else oracle.keep_factor
    for seed in SEEDS:
        llm = tiny(family, seed=seed)
        expected = oracle.decode(
            oracle.Network(llm.model),
            PROMPTS[seed],
            8,
            4,
            lambda n, t: make(phi),
            FORBIDDEN,
            cache=cache,
        )
        knobs = {"gen_length": 8, "block_length": 4, "factor": phi, "compat": compat}
        assert_same(ours(llm, PROMPTS[seed], "factor", cache=cache, **knobs), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_factor_loop_differs_from_the_corrected_rule(family, tiny):
    """Else the compat knob would be tested by nothing."""
    traces = []
    for compat in (False, True):
        for seed in SEEDS:
            knobs = {"gen_length": 8, "block_length": 4, "factor": 1.0, "compat": compat}
            traces.append(trace_of(ours(tiny(family, seed=seed), PROMPTS[seed], "factor", **knobs)))
    assert traces[: len(SEEDS)] != traces[len(SEEDS) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_guidance_is_lladas_equation(family, scale, tiny):
    differs = False
    for seed in SEEDS:
        llm = tiny(family, seed=seed)
        trace, _ = oracle.decode(
            oracle.Network(llm.model),
            PROMPTS[seed],
            6,
            3,
            lambda n, t: oracle.keep_quota(1),
            FORBIDDEN,
            cfg_scale=scale,
        )
        knobs = {"gen_length": 6, "block_length": 3}
        output = ours(llm, PROMPTS[seed], "vanilla", cfg_scale=scale, **knobs)
        assert trace_of(output) == trace
        differs |= trace_of(ours(llm, PROMPTS[seed], "vanilla", **knobs)) != trace
    assert differs


@pytest.mark.parametrize("family", FAMILIES)
def test_random_remasking_keeps_the_positions_with_the_largest_numbers(family, tiny):
    for seed in SEEDS:
        llm = tiny(family, seed=seed)

        def number(forward, position, seed=seed):
            return float(uniform(row_keys(seed, forward, np.array([position])))[0])

        trace, _ = oracle.decode(
            oracle.Network(llm.model),
            PROMPTS[seed],
            8,
            4,
            lambda n, t: oracle.quota_rule(n, 2)(t),
            FORBIDDEN,
            uniform=number,
        )
        knobs = {"gen_length": 8, "block_length": 4, "steps": 4, "remasking": "random"}
        assert trace_of(ours(llm, PROMPTS[seed], "vanilla", seed=seed, **knobs)) == trace


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("knobs", "rules"),
    [
        ({"logits_eos_inf": True}, {"never": {EOS}}),
        ({"confidence_eos_eot_inf": True}, {"doubted": {EOS, TURN_END}}),
    ],
    ids=["logits_eos_inf", "confidence_eos_eot_inf"],
)
def test_end_of_text_options_are_lladas(family, knobs, rules, tiny):
    differs = False
    for seed in SEEDS:
        llm = want(tiny(family, seed=seed), EOS, by=3.0)
        plain = oracle.Network(llm.model)
        wanting = plain.logits

        def logits(ids, positions, wanting=wanting):
            rows = wanting(ids, positions)
            for row in rows.values():
                row[EOS] += 3.0
            return rows

        plain.logits = logits
        trace, _ = oracle.decode(
            plain, PROMPTS[seed], 6, 3, lambda n, t: oracle.keep_quota(1), FORBIDDEN, **rules
        )
        shape = {"gen_length": 6, "block_length": 3}
        assert trace_of(ours(llm, PROMPTS[seed], "vanilla", **knobs, **shape)) == trace
        differs |= trace_of(ours(llm, PROMPTS[seed], "vanilla", **shape)) != trace
    assert differs


@pytest.mark.parametrize("family", FAMILIES)
def test_reported_confidence_is_the_proposals_probability(family, tiny):
    llm = tiny(family, seed=1)
    output = ours(llm, PROMPTS[0], "threshold", gen_length=5, block_length=5, threshold=0.0)
    ids = PROMPTS[0] + [MASK] * 5
    rows = torch.softmax(llm.model(torch.tensor([ids]))[0].double(), dim=-1)
    shift = 1 if family == "dream" else 0
    wanted = [float(rows[p - shift, token]) for p, token in trace_of(output)[0]]
    assert confidences_of(output) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(10, 22))
def test_every_rule_gives_the_oracles_trace_on_many_random_models(seed, family, cache, tiny):
    llm = tiny(family, seed=seed)
    random = np.random.default_rng(seed)
    prompt = random.integers(0, KNOWN, random.integers(1, 12)).tolist()
    gen, block = [(12, 4), (12, 6), (10, 10), (9, 3)][seed % 4]
    shape = {"cache": cache, "gen_length": gen, "block_length": block}
    per_block = int(random.integers(1, block + 1))
    tau, phi = float(random.uniform(0.1, 0.9)), float(random.uniform(0.2, 3.0))
    rules = {
        "vanilla": (
            {"steps": per_block * (gen // block)},
            lambda n, t: oracle.quota_rule(n, per_block)(t),
        ),
        "threshold": ({"threshold": tau}, lambda n, t: oracle.keep_threshold(tau)),
        "factor": ({"factor": phi}, lambda n, t: oracle.keep_factor(phi)),
    }
    for decoder, (knobs, rule) in rules.items():
        expected = oracle.decode(
            oracle.Network(llm.model), prompt, gen, block, rule, FORBIDDEN, cache=cache
        )
        assert_same(ours(llm, prompt, decoder, **knobs, **shape), expected)
