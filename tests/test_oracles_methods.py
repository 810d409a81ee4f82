"""Every method against its naive rendering in `oracles/`: the same trace on random models.

The renderings were written from the specification alone, by another hand, and reproduce the published
golden decodes themselves (`test_oracles_golden*.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import cadllm as cadllm_oracle
from oracles import (
    daedal,
    dinfer,
    dkv,
    dream,
    eb_sampler,
    growing,
    joint_threshold,
    klass,
    network,
    pc_sampler,
    prior,
    prophet,
    speculative,
    wino,
)
from tiny import EOS, FAMILIES, KNOWN, MASK, VOCAB, trace_of

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
FORBIDDEN = {MASK, *range(KNOWN, VOCAB)}
PROMPTS = ([7, 8, 9, 3], [1, 30, MASK, 22, 22, 5, 50])
SEEDS = range(4)
every_family = pytest.mark.parametrize("family", FAMILIES)


def logits_fn(llm):
    """The network as the oracles want it: row i answers position i."""
    shift = llm.spec.shift_logits

    def rows(ids):
        raw = llm.model(torch.tensor([ids]))[0].double()
        return torch.cat((raw[:1], raw[:-1])) if shift else raw

    return rows


def ours(llm, prompt, decoder, **options):
    options = {"gen_length": 8} | options
    if options["gen_length"] is None:
        del options["gen_length"]
    return llm.generate([prompt], decoder, stop_at_eos=False, return_trace=True, **options)[0]


def runs(tiny, family):
    for seed in SEEDS:
        yield tiny(family, seed=seed), PROMPTS[seed % 2]


def committed(entries):
    """Of oracles whose steps are dictionaries."""
    return [sorted(map(tuple, entry["committed"])) for entry in entries]


@every_family
@pytest.mark.parametrize("order", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize(("block", "gamma"), [(4, 0.0), (8, 0.3), (4, 1.0), (8, 3.0), (8, 99.0)])
def test_eb_sampler(block, gamma, order, family, tiny):
    for llm, prompt in runs(tiny, family):
        expected = eb_sampler.decode(
            logits_fn(llm),
            prompt,
            8,
            block_length=block,
            gamma=gamma,
            order=order,
            mask_id=MASK,
            forbidden=FORBIDDEN,
        )
        out = ours(llm, prompt, "eb_sampler", block_length=block, gamma=gamma, order=order)
        assert trace_of(out) == expected


@every_family
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("block", "tau", "kl"), [(4, 0.2, 0.5), (8, 0.1, 2.0), (8, 0.6, 0.05)])
def test_klass(block, tau, kl, length, family, tiny):
    for llm, prompt in runs(tiny, family):
        expected = klass.decode(
            logits_fn(llm),
            prompt,
            8,
            block_length=block,
            steps=8,
            threshold=tau,
            kl_threshold=kl,
            kl_history_length=length,
            mask_id=MASK,
            forbidden=FORBIDDEN,
        )
        knobs = {"threshold": tau, "kl_threshold": kl, "kl_history_length": length, "steps": 8}
        assert trace_of(ours(llm, prompt, "klass", block_length=block, **knobs)) == expected


@every_family
@pytest.mark.parametrize(
    ("lambd", "alpha"), [(0.0, 10.0), (0.0, 0.5), (0.25, 10.0), (1.0, 0.5), (40.0, 10.0)]
)
@pytest.mark.parametrize(("block", "steps"), [(4, 8), (8, 4), (4, 6)])
def test_pc_sampler(block, steps, lambd, alpha, family, tiny, tmp_path):
    counts = {7: 50, 8: 20, 22: 9, 40: 300, EOS: 1000}
    total = sum(counts.values()) + 100
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"num_token": total, "p_baseline_dict": counts}))
    for llm, prompt in runs(tiny, family):
        expected = pc_sampler.decode(
            logits_fn(llm),
            prompt,
            8,
            block_length=block,
            steps=steps,
            lambd=lambd,
            alpha=alpha,
            counts=counts,
            total=total,
            mask_id=MASK,
            forbidden=FORBIDDEN,
        )
        knobs = {"frequencies": str(file), "lambd": lambd, "clip_alpha": alpha, "steps": steps}
        assert trace_of(ours(llm, prompt, "pc_sampler", block_length=block, **knobs)) == expected


@every_family
@pytest.mark.parametrize("sigma", [0.7, 3.0, 10.0, 100.0])
@pytest.mark.parametrize(("block", "steps"), [(8, 8), (4, 4)])
def test_the_certainty_prior(block, steps, sigma, family, tiny):
    for llm, prompt in runs(tiny, family):
        expected = prior.decode(
            logits_fn(llm),
            prompt,
            8,
            block_length=block,
            steps=steps,
            sigma=sigma,
            mask_id=MASK,
            forbidden=FORBIDDEN,
        )
        out = ours(llm, prompt, "vanilla", block_length=block, steps=steps, sigma=sigma)
        assert trace_of(out) == expected


@every_family
@pytest.mark.parametrize("start", [0, 3, 6])
@pytest.mark.parametrize("gaps", [(9.0, 3.0, 1.0), (0.5, 9.0, 9.0), (99.0, 99.0, 99.0)])
def test_prophet(gaps, start, family, tiny):
    for llm, prompt in runs(tiny, family):
        for block, steps in ((4, 8), (8, 4)):
            expected = prophet.decode(
                logits_fn(llm),
                prompt,
                8,
                block_length=block,
                steps=steps,
                answer_start=start,
                gap_thresholds=gaps,
                mask_id=MASK,
                forbidden=FORBIDDEN,
            )
            knobs = {"answer_start": start, "gap_thresholds": gaps, "steps": steps}
            assert trace_of(ours(llm, prompt, "prophet", block_length=block, **knobs)) == expected


@every_family
@pytest.mark.parametrize("given", [{1: 5, 2: 6}, {0: 3, 6: 9, 7: 2}])
def test_prophet_with_given_tokens(given, family, tiny):
    """The steps left over in the first block count when the second one begins."""
    for llm, prompt in runs(tiny, family):
        for gaps in ((99.0, 99.0, 0.0), (99.0, 0.5, 99.0), (4.0, 2.0, 1.0)):
            shape = {"block_length": 4, "steps": 8, "answer_start": 3, "gap_thresholds": gaps}
            expected = prophet.decode(
                logits_fn(llm),
                prompt,
                8,
                mask_id=MASK,
                forbidden=FORBIDDEN,
                constraints=given,
                **shape,
            )
            out = ours(llm, prompt, "prophet", constraints=given, **shape)
            assert trace_of(out) == expected
            assert out.num_forwards == len(expected)


@every_family
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_p": 0.9, "top_k": 2}])
def test_dream(filters, alg, family, tiny):
    for steps in (3, 5, 8, 16):
        for llm, prompt in runs(tiny, family):
            expected = dream.decode(
                logits_fn(llm),
                prompt,
                8,
                steps=steps,
                alg=alg,
                mask_id=MASK,
                forbidden=FORBIDDEN,
                **filters,
            )
            assert trace_of(ours(llm, prompt, "dream", steps=steps, alg=alg, **filters)) == expected


@every_family
@pytest.mark.parametrize("tau", [0.3, 0.9])
@pytest.mark.parametrize("block", [4, 8])
def test_hierarchical_decoding(block, tau, family, tiny):
    for llm, prompt in runs(tiny, family):
        for low in (0.1, 0.3):
            trace, ids = dinfer.decode(
                logits_fn(llm),
                prompt,
                8,
                block,
                MASK,
                FORBIDDEN,
                method="hierarchical",
                threshold=tau,
                low_threshold=low,
            )
            knobs = {"threshold": tau, "low_threshold": low}
            out = ours(llm, prompt, "hierarchy", block_length=block, **knobs)
            assert (trace_of(out), out.canvas_ids) == (committed(trace), ids)


@every_family
@pytest.mark.parametrize(("alpha", "gamma", "beta"), [(0.7, 0.2, 0.8), (3.0, 1.0, 0.5), (0, 1, 1)])
@pytest.mark.parametrize("block", [4, 8])
def test_credit_decoding(block, alpha, gamma, beta, family, tiny):
    for llm, prompt in runs(tiny, family):
        trace, ids = dinfer.decode(
            logits_fn(llm),
            prompt,
            8,
            block,
            MASK,
            FORBIDDEN,
            method="credit",
            threshold=0.6,
            credit_alpha=alpha,
            credit_gamma=gamma,
            credit_beta=beta,
        )
        knobs = {"credit_alpha": alpha, "credit_gamma": gamma, "credit_beta": beta}
        out = ours(llm, prompt, "credit", block_length=block, threshold=0.6, **knobs)
        assert (trace_of(out), out.canvas_ids) == (committed(trace), ids)


@every_family
@pytest.mark.parametrize(("edit", "penalty"), [(1.0, 0.0), (0.3, 0.0), (0.1, 0.0), (0.3, 2.0)])
@pytest.mark.parametrize("most", [0, 2, 16])
def test_joint_threshold(most, edit, penalty, family, tiny):
    edits = 0
    for llm, prompt in runs(tiny, family):
        trace, ids = joint_threshold.decode(
            logits_fn(llm),
            prompt,
            8,
            4,
            MASK,
            FORBIDDEN,
            threshold=0.2,
            edit_threshold=edit,
            max_post_edit_steps=most,
            penalty_lambda=penalty,
        )
        knobs = {"edit_threshold": edit, "max_post_edit_steps": most, "penalty_lambda": penalty}
        out = ours(llm, prompt, "joint_threshold", block_length=4, threshold=0.2, **knobs)
        replaced = [[(c.position, c.token) for c in step.replaced] for step in out.trace]
        assert trace_of(out) == committed(trace)
        assert replaced == [sorted(map(tuple, entry["replaced"])) for entry in trace]
        assert out.canvas_ids == ids
        edits += sum(map(len, replaced))
    assert edits or edit > 0.2, "no run of this test edited"


@every_family
@pytest.mark.parametrize(("block", "steps"), [(4, None), (4, 2), (3, None), (1, None), (8, 4)])
def test_growing_by_blocks_and_one_by_one(block, steps, family, tiny):
    for llm, prompt in runs(tiny, family):
        trace, ids = growing.decode(logits_fn(llm), prompt, 8, block, MASK, FORBIDDEN, steps=steps)
        blocks = -(-8 // block)
        knobs = {} if steps is None else {"steps": steps * blocks}
        out = ours(llm, prompt, "block_diffusion", block_length=block, **knobs)
        assert (trace_of(out), out.canvas_ids) == (committed(trace), ids)
        if block == 1:
            assert trace_of(ours(llm, prompt, "ar")) == trace_of(out)


@every_family
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("initial", "most"), [(8, 20), (4, 9), (12, 40)])
def test_daedal(initial, most, compat, family, tiny):
    inserted = 0
    for llm, prompt in runs(tiny, family):
        for low, expand in ((0.3, 0.9), (0.9, 0.5)):
            knobs = {
                "initial_gen_length": initial,
                "max_gen_length": most,
                "block_length": 4,
                "threshold": 0.4,
                "initial_eot_expand_thres": 0.02,
                "decode_eot_expand_thres": expand,
                "low_conf_expand_thres": low,
                "num_check_last_eot": 4,
                "expansion_factor": 3,
                "compat": compat,
            }
            trace, ids = daedal.decode(logits_fn(llm), prompt, MASK, EOS, FORBIDDEN, **knobs)
            out = ours(llm, prompt, "daedal", gen_length=None, **knobs)
            trace = merged(trace)
            assert trace_of(out) == committed(trace)
            assert out.canvas_ids == ids
            inserted += sum(len(step.inserted) for step in out.trace)
    assert inserted


def merged(trace):
    """Without phase 1's last forward if it changed nothing: phase 2 sees the same canvas, and we use it."""
    last = max(i for i, entry in enumerate(trace) if entry["phase"] == 1)
    return trace if trace[last]["inserted"] else trace[:last] + trace[last + 1 :]


@every_family
@pytest.mark.parametrize("meet", [True, False])
@pytest.mark.parametrize(("wide", "narrow"), [(0.1, 0.5), (0.2, 0.9), (0.6, 0.3)])
def test_wino(wide, narrow, meet, family, tiny):
    remasked = 0
    for llm, prompt in runs(tiny, family):
        for block in (8, 16):
            trace, ids = wino.decode(
                network.Network(llm.model),
                prompt,
                16,
                block,
                MASK,
                FORBIDDEN,
                wide_in_thres=wide,
                narrow_out_thres=narrow,
                twins_see_each_other=meet,
            )
            knobs = {"wide_in_thres": wide, "narrow_out_thres": narrow}
            out = ours(
                llm,
                prompt,
                "wino",
                gen_length=16,
                block_length=block,
                shadows="block" if meet else "decided",
                **knobs,
            )
            assert trace_of(out) == committed(trace)
            assert [sorted(step.remasked) for step in out.trace] == [
                sorted(entry["remasked"]) for entry in trace
            ]
            assert out.canvas_ids == ids
            remasked += sum(len(step.remasked) for step in out.trace)
    assert remasked or narrow < 0.5, "no run of this test took anything back"


@every_family
@pytest.mark.parametrize("cap", [(0.0, 1, 1), (0.0, 2, 9), (0.4, 1, 3), (1.0, 1, 100), (0.7, 9, 9)])
def test_the_cap_of_winos_draft(cap, family, tiny):
    share, least, most = cap
    for llm, prompt in runs(tiny, family):
        shared = {"wide_in_thres": 0.2, "narrow_out_thres": 0.6}
        trace, _ = wino.decode(
            network.Network(llm.model),
            prompt,
            16,
            16,
            MASK,
            FORBIDDEN,
            share=share,
            least=least,
            most=most,
            **shared,
        )
        knobs = {"draft_share": share, "min_draft": least, "max_draft": most, **shared}
        out = ours(llm, prompt, "wino", gen_length=16, block_length=16, **knobs)
        assert trace_of(out) == committed(trace)


@every_family
@pytest.mark.parametrize("confidence", ["softmax", "entropy"])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_cadllm(variant, confidence, family, tiny):
    for llm, prompt in runs(tiny, family):
        knobs = {
            "initial_steps": 3,
            "max_steps": 9,
            "initial_block_length": 5,
            "max_block": 9,
            "min_block": 2,
        }
        trace, ids = cadllm_oracle.decode(
            network.Network(llm.model),
            prompt,
            20,
            MASK,
            FORBIDDEN,
            confidence=confidence,
            variant=variant,
            **knobs,
        )
        out = ours(
            llm,
            prompt,
            "cadllm",
            cache="dual",
            gen_length=20,
            variant=variant,
            confidence=confidence,
            **knobs,
        )
        assert trace_of(out) == committed(trace)
        notes = [step.notes for step in out.trace]
        assert [int(n["vocab_size"]) for n in notes] == [entry["vocab_size"] for entry in trace]
        assert [n["threshold"] for n in notes] == pytest.approx(
            [entry["threshold"] for entry in trace]
        )
        assert [int(n["steps"]) for n in notes] == [entry["num_steps"] for entry in trace]
        assert out.canvas_ids == ids


@every_family
@pytest.mark.parametrize(("confidence", "sure"), [("softmax", 4.0), ("entropy", 12.0)])
def test_cadllm_leaves_a_clear_block_early(confidence, sure, family, tiny):
    """A block only: the canvas has others, which go on."""
    exits = 0
    for seed in (1, 2, 3):
        llm = tiny(family, seed=seed, sure=sure)
        sizes = {"initial_block_length": 8, "max_block": 12, "min_block": 4}
        knobs = {"initial_steps": 6, "max_steps": 6, "early_exit": True, **sizes}
        trace, ids = cadllm_oracle.decode(
            network.Network(llm.model), [7, 8], 24, MASK, FORBIDDEN, confidence=confidence, **knobs
        )
        call = {"cache": "dual", "gen_length": 24, "confidence": confidence}
        out = ours(llm, [7, 8], "cadllm", **call, **knobs)
        assert trace_of(out) == committed(trace)
        assert out.canvas_ids == ids
        exits += sum("all_in" in step.notes for step in out.trace[:-1])
    assert exits, "no run of this test left a block early"


def assert_dkv(llm, prompt, mask_id, forbidden, interval, **call):
    """The trace of the oracle, and as many positions computed in each forward."""
    net = network.Network(llm.model)
    trace, computed = dkv.decode(
        net, prompt, interval=interval, mask_id=mask_id, forbidden=forbidden, **call
    )
    out = ours(llm, prompt, "vanilla", cache="dkv", cache_args={"interval": interval}, **call)
    assert trace_of(out) == trace
    assert [step.num_queries for step in out.trace] == computed


@every_family
@pytest.mark.parametrize("interval", [1, 2, 3, 4, 8])
def test_dkv_cache(interval, family, tiny):
    """Dream's code has no blocks."""
    for llm, prompt in runs(tiny, family):
        for block, steps in ((12, 12), (12, 6), *(((6, 12),) if family == "llada" else ())):
            call = {"gen_length": 12, "block_length": block, "steps": steps}
            assert_dkv(llm, prompt, MASK, FORBIDDEN, interval, **call)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [2, 4, 8])
def test_dkv_cache_of_a_trained_model(interval, golden_llm):
    cases = json.loads((GOLDEN / "llada_b32_sG.json").read_text())["cases"]
    call = {"gen_length": 64, "block_length": 32, "steps": 64}
    for case in cases[:4]:
        never = {2042, 2046, 2047}
        assert_dkv(golden_llm, case["prompt_ids"], 2042, never, interval, **call)


@every_family
@pytest.mark.parametrize("ngram", [1, 2])
@pytest.mark.parametrize(("tau", "accept"), [(0.9, 0.0), (0.6, 0.1), (0.9, 0.5)])
def test_speculation_by_lookup(tau, accept, ngram, family, tiny):
    accepted = 0
    for seed in range(6):
        llm = tiny(family, seed=seed)
        prompt = [7, 8, 9, 7, 8, 9, 7, 8] if seed % 2 else [4, 4, 4, 4]
        for block in (4, 8):
            expected = speculative.decode(
                logits_fn(llm),
                prompt,
                16,
                block_length=block,
                threshold=tau,
                accept_threshold=accept,
                ngram=ngram,
                mask_id=MASK,
                forbidden=FORBIDDEN,
            )
            knobs = {"threshold": tau, "accept_threshold": accept, "ngram": ngram}
            out = ours(llm, prompt, "speculative", gen_length=16, block_length=block, **knobs)
            assert trace_of(out) == expected
            accepted += sum(step.notes["num_accepted"] for step in out.trace)
    assert accepted or accept > 0.1, "no draft of this test was accepted"


# Dream's coin by coin algorithm has no deterministic oracle: its law is tested


def test_origin_commits_each_position_with_the_scheduled_probability(tiny):
    """The step at which a position is decided is uniform over the steps, up to eps."""
    llm, steps = tiny(), 4
    seen = np.zeros(steps)
    for seed in range(300):
        out = ours(llm, [1, 2], "dream", alg="origin", steps=steps, seed=seed)
        assert out.num_forwards <= steps
        if out.num_forwards == steps:
            for k, step in enumerate(out.trace):
                seen[k] += len(step.committed)
    assert abs(seen / seen.sum() - 1 / steps).max() < 0.04
