"""Knobs of single decoders: thresholds, schedules, growth, drafts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import EOS, trace_of

from unmask.decoders import make_decoder
from unmask.engine.drafter import draft_by
from unmask.errors import ConfigError

from .registry import direction
from .stubs import (
    LENGTH,
    POSITIONS,
    SLOW,
    decode,
    notes,
    order,
    random_llm,
    ranking,
    slowly,
    table,
    table_llm,
    tokens,
)


def forwards(name: str, llm=None, **knobs: object) -> int:
    rest = {"block_length": LENGTH} if name != "cadllm" else {"initial_block_length": LENGTH}
    return decode(llm or random_llm(), name, **(rest | knobs)).num_forwards


@direction("threshold", "threshold", "credit", ends="0, 1")
@direction("factor", "factor", ends="0, large")
@direction("gamma", "eb_sampler", ends="0, large")
def a_block_at_once_or_one_token_each(name: str) -> None:
    knob, high, least, most = {
        "threshold": ("threshold", 1.0, LENGTH, 1),
        "credit": ("threshold", 1.0, LENGTH, 1),
        "factor": ("factor", 1e9, 1, LENGTH),
        "eb_sampler": ("gamma", 1e9, 1, LENGTH),
    }[name]
    counted = [forwards(name, **{knob: value}) for value in (high, 0.5, 0.0)]
    assert counted == sorted(counted, reverse=counted[0] > counted[-1])
    assert (counted[0], counted[-1]) == (least, most)


@direction("threshold", "joint_threshold", "daedal", ends="0, 1")
def all_above_or_one_token_each(name: str) -> None:
    assert slowly(random_llm(), name, threshold=0.0).num_forwards <= 2
    assert len(order(slowly(random_llm(), name, threshold=1.0))) == LENGTH
    assert all(len(step.committed) <= 1 for step in slowly(random_llm(), name, threshold=1.0).trace)


@direction("threshold", "hierarchy", ends="0, 1")
@direction("low_threshold", "hierarchy", ends="0, at threshold")
def the_best_of_each_run(name: str) -> None:
    assert forwards(name, threshold=0.0, low_threshold=0.0) == 1
    divided = decode(random_llm(), name, block_length=LENGTH, threshold=1.0, low_threshold=0.0)
    open_ = set(POSITIONS)
    for step in divided.trace:
        runs = [p for p in open_ if p - 1 not in open_]
        assert len(step.committed) == len(runs)
        open_ -= {commit.position for commit in step.committed}
    assert forwards(name, threshold=1.0, low_threshold=1.0) == LENGTH


@direction("comparator", "threshold", ends="ge, gt")
def an_equal_confidence(name: str) -> None:
    rows = table(1).clone()
    rows[POSITIONS] = -1e4
    rows[POSITIONS, 5] = 0.0  # every confidence is 1
    llm = table_llm(rows)
    assert forwards(name, llm, threshold=1.0, comparator="ge") == 1
    assert forwards(name, llm, threshold=1.0, comparator="gt") == LENGTH


@direction("block_steps", "threshold", ends="1, default")
def a_least_share_of_the_block(name: str) -> None:
    assert forwards(name, threshold=1.0, block_steps=1) == 1
    assert forwards(name, threshold=1.0, block_steps=4) == 4
    assert forwards(name, threshold=1.0) == LENGTH


@direction("minimal_topk", "threshold", ends="1, large, default")
def a_limit_for_short_answers(name: str) -> None:
    knobs = {"threshold": 1.0, "block_steps": LENGTH}
    assert forwards(name, **knobs) == forwards(name, **knobs, minimal_topk=1) == LENGTH
    assert forwards(name, **knobs, minimal_topk=2) == LENGTH // 2
    assert forwards(name, **knobs, minimal_topk=1000) == 1


@direction("first_alone", "threshold", ends="true, false")
def the_first_position_of_a_block(name: str) -> None:
    llm = random_llm(0, 1.5, 4)
    knobs = {"threshold": 0.0, "gen_length": 13}
    assert decode(llm, name, **knobs).num_forwards == 4
    alone = decode(llm, name, **knobs, first_alone=True)
    assert [p for p, *rest in map(list, map(dict, trace_of(alone))) if p % 4 == 0 and not rest]
    assert alone.num_forwards > 4
    with pytest.raises(ConfigError, match="first_alone=True has no effect"):
        decode(random_llm(), name, first_alone=True)


@direction("remasking", "vanilla", ends="low_confidence, random, sequential")
def what_is_committed_first(name: str) -> None:
    rows = table(6)
    llm = table_llm(rows)
    found = {r: order(slowly(llm, name, remasking=r)) for r in ("low_confidence", "sequential")}
    assert found == {"low_confidence": ranking(rows), "sequential": POSITIONS}
    drawn = [order(slowly(llm, name, remasking="random", seed=seed)) for seed in range(2)]
    assert drawn[0] != drawn[1]


@direction("block_length", "block_diffusion", ends="1, gen_length, default")
def grows_by_blocks(name: str) -> None:
    rows = table(5)
    llm = table_llm(rows)
    assert order(decode(llm, name, block_length=1)) == POSITIONS
    assert order(decode(llm, name, block_length=LENGTH)) == ranking(rows)
    default, given = (decode(llm, name, gen_length=40, **k) for k in ({}, {"block_length": 32}))
    assert trace_of(default) == trace_of(given)


@direction("steps", "block_diffusion", ends="few, default")
@direction("steps", "dream", ends="1, default")
def forwards_in_total(name: str) -> None:
    knobs = {"schedule": "even"} if name == "dream" else {"block_length": LENGTH}
    assert decode(random_llm(), name, steps=1, **knobs).num_forwards == 1
    assert decode(random_llm(), name, **knobs).num_forwards == LENGTH


# credit


@direction("credit_alpha", "credit", ends="0, large")
@direction("credit_beta", "credit", ends="0, 1")
@direction("credit_gamma", "credit", ends="0, large")
def credit_makes_repeated_proposals_surer(name: str) -> None:
    rows = table(7, scale=1.0)
    knobs = {"block_length": LENGTH, "threshold": 0.5}

    def steps(**more: float) -> int:
        return decode(table_llm(rows), name, **(knobs | {"credit_gamma": 0.0} | more)).num_forwards

    none = decode(table_llm(rows), "threshold", **knobs).num_forwards
    assert steps(credit_alpha=0.0) == none
    assert steps(credit_alpha=50.0) < steps(credit_alpha=1.0) <= none
    assert steps(credit_alpha=1.0, credit_beta=1.0) < steps(credit_alpha=1.0, credit_beta=0.0)
    assert steps(credit_alpha=2.0, credit_gamma=1e3) == none
    assert steps(credit_alpha=2.0, credit_gamma=0.0) < none


# DAEDAL


GROWTH = {"gen_length": None, "initial_gen_length": 8, "max_gen_length": 40}


def grown(**knobs: object):
    return decode(random_llm(1), "daedal", **(GROWTH | knobs))


def ending(at: int):
    """A model that predicts end-of-text from offset `at` of the answer, with certainty."""
    rows = table(8).clone()
    rows[3 + at :, EOS] = 40.0
    return table_llm(rows)


@direction("initial_eot_expand_thres", "daedal", ends="0, 1")
def phase_one_grows_below_it(name: str) -> None:
    never = {"decode_eot_expand_thres": 0.0}
    assert len(grown(initial_eot_expand_thres=0.0, **never).canvas_ids) == 3 + 8
    assert len(grown(initial_eot_expand_thres=1.0, **never).canvas_ids) == 3 + 40


@direction("decode_eot_expand_thres", "daedal", ends="0, 1")
@direction("low_conf_expand_thres", "daedal", ends="0, 1")
def phase_two_expands_below_them(name: str) -> None:
    knobs = {"initial_eot_expand_thres": 0.0, "threshold": 1.0}
    least = {"decode_eot_expand_thres": 0.0, "low_conf_expand_thres": 1.0}
    assert len(grown(**knobs, **least).canvas_ids) == 3 + 8
    least = {"decode_eot_expand_thres": 1.0, "low_conf_expand_thres": 0.0}
    assert len(grown(**knobs, **least).canvas_ids) == 3 + 8
    most = {"decode_eot_expand_thres": 1.0, "low_conf_expand_thres": 1.0}
    assert len(grown(**knobs, **most).canvas_ids) == 3 + 40


@direction("initial_gen_length", "daedal", ends="small, large")
def phase_one_finds_the_length(name: str) -> None:
    knobs = {"num_check_last_eot": 8, "decode_eot_expand_thres": 0.0, "gen_length": None}
    small = decode(ending(20), name, initial_gen_length=4, **knobs)
    assert 24 <= len(tokens(small)) <= 32
    large = decode(ending(20), name, initial_gen_length=64, **knobs)
    assert len(tokens(large)) == 64


@direction("max_gen_length", "daedal", ends="at initial_gen_length, default")
def growth_ends_there(name: str) -> None:
    always = {"initial_eot_expand_thres": 1.0, "decode_eot_expand_thres": 0.0}
    assert len(tokens(grown(**always, max_gen_length=8))) == 8
    assert len(tokens(grown(**always, max_gen_length=None))) == 125, "the context of the model"
    assert make_decoder(name, {}).defaults(128, None) == {"max_gen_length": 2048}


@direction("num_check_last_eot", "daedal", ends="1, large")
def end_tokens_that_must_be_seen(name: str) -> None:
    knobs = {"initial_gen_length": 4, "decode_eot_expand_thres": 0.0, "max_gen_length": 64}
    one, many = (
        len(tokens(decode(ending(9), name, num_check_last_eot=count, **knobs)))
        for count in (1, 1000)
    )
    assert one <= 9 + 8
    assert many == 64


@direction("expansion_factor", "daedal", ends="2, large")
def masks_per_growth(name: str) -> None:
    knobs = {"initial_eot_expand_thres": 1.0, "decode_eot_expand_thres": 0.0}
    slow, fast = (grown(**knobs, expansion_factor=factor) for factor in (2, 1000))
    assert [step.inserted[0][1] for step in slow.trace if step.inserted] == [2] * 16
    assert [step.inserted[0][1] for step in fast.trace if step.inserted] == [32]


@direction("block_length", "daedal", ends="1, large")
def the_sliding_block(name: str) -> None:
    rows = table(5)
    llm = table_llm(rows)
    assert order(slowly(llm, name, block_length=1)) == POSITIONS
    assert order(slowly(llm, name, block_length=1000)) == ranking(rows)


# Dream


@direction("alg", "dream", ends="origin, maskgit_plus, topk_margin, entropy")
def each_algorithm_has_its_score(name: str) -> None:
    rows = table(9)
    llm = table_llm(rows)
    for alg, score in (("maskgit_plus", "confidence"), ("topk_margin", "margin")):
        assert order(slowly(llm, name, alg=alg)) == ranking(rows, score)
    assert order(slowly(llm, name, alg="entropy")) == ranking(rows, "entropy")
    drawn = [order(decode(llm, name, alg="origin", seed=seed)) for seed in range(2)]
    assert drawn[0] != drawn[1]


@direction("alg_temp", "dream", ends="near 0, large, default")
def draws_positions(name: str) -> None:
    rows = table(9)
    llm = table_llm(rows)
    assert order(slowly(llm, name)) == ranking(rows)
    assert order(slowly(llm, name, alg_temp=1e-9)) == ranking(rows)
    firsts = {order(slowly(llm, name, alg_temp=1e9, seed=seed))[0] for seed in range(24)}
    assert len(firsts) > 8


@direction("eps", "dream", ends="near 0, near 1")
@direction("schedule", "dream", ends="dream, even")
def shares_of_the_steps(name: str) -> None:
    def sizes(**knobs: object) -> list[int]:
        return [len(step) for step in trace_of(decode(random_llm(), name, steps=4, **knobs))]

    assert sizes(schedule="even") == [4, 4, 4, 4]
    near = sizes(eps=1e-6)
    assert max(near) - min(near) <= 2
    assert sizes(eps=0.999) == [16]
    assert sizes(eps=0.5)[-1] > 8


# EB-Sampler, KLASS, PC-Sampler


@direction("order", "eb_sampler", ends="confidence, entropy, margin")
def the_papers_name_of_the_score(name: str) -> None:
    rows = table(1)
    for proxy in ("confidence", "entropy", "margin"):
        knobs = {"gamma": 0.0, "block_length": LENGTH, "order": proxy}
        assert order(decode(table_llm(rows), name, **knobs)) == ranking(rows, proxy)


@direction("threshold", "klass", ends="0, 1")
@direction("kl_threshold", "klass", ends="tiny, large")
@direction("kl_history_length", "klass", ends="1, large")
def stable_and_confident_positions(name: str) -> None:
    stable = {"kl_threshold": 1e9, "kl_history_length": 1, "threshold": 0.0}
    assert forwards(name, **stable) == 2, "the first forward has nothing to compare with"
    assert forwards(name, **(stable | {"threshold": 1.0})) == LENGTH
    assert forwards(name, **(stable | {"kl_threshold": 1e-300})) == LENGTH
    assert forwards(name, **(stable | {"kl_history_length": 4})) == 5
    assert forwards(name, **(stable | {"kl_history_length": 1000})) == LENGTH


@direction("debias", "pc_sampler", ends="true, false")
def calibration_has_a_switch(name: str) -> None:
    rows = table(3)
    assert order(slowly(table_llm(rows), name, debias=False)) == ranking(rows)
    assert order(slowly(table_llm(rows), name, debias=True)) != ranking(rows)


# JointThreshold, WINO


@direction("edit_threshold", "joint_threshold", ends="0, 1")
@direction("max_post_edit_steps", "joint_threshold", ends="0, large")
def edits_of_decided_tokens(name: str) -> None:
    def edits(**knobs: object) -> tuple[int, int]:
        out = decode(random_llm(1), name, block_length=LENGTH, threshold=0.0, **knobs)
        return sum(len(step.replaced) for step in out.trace), out.num_forwards

    assert edits(edit_threshold=1.0) == (0, 2), "one forward sees that nothing changes"
    assert edits(edit_threshold=0.0)[0] > 0
    assert edits(edit_threshold=0.0, max_post_edit_steps=0) == (0, 1)
    bounds = [edits(edit_threshold=0.0, max_post_edit_steps=bound)[1] for bound in (1, 2, 60)]
    assert bounds == sorted(bounds)
    assert bounds[:2] == [2, 3]


@direction("penalty_lambda", "joint_threshold", ends="0, large")
def no_token_twice_in_a_row(name: str) -> None:
    rows = table(1).clone()
    rows[POSITIONS, 5] = 12.0
    plain, varied = (
        tokens(slowly(table_llm(rows), name, penalty_lambda=value, sigma=0.3))
        for value in (0.0, 1e3)
    )
    assert plain == [5] * LENGTH
    assert all(a != b for a, b in zip(varied, varied[1:], strict=False))


def drafts(**knobs: object) -> list[int]:
    out = decode(random_llm(1), "wino", block_length=LENGTH, narrow_out_thres=0.0, **knobs)
    return [len(step.committed) for step in out.trace]


@direction("wide_in_thres", "wino", ends="0, 1")
@direction("draft_share", "wino", ends="0, 1")
@direction("min_draft", "wino", ends="1, at max_draft")
@direction("max_draft", "wino", ends="1, large")
def how_wide_a_draft_is(name: str) -> None:
    assert drafts(wide_in_thres=1.0) == [1] * LENGTH
    assert drafts(wide_in_thres=0.0) == [11, 5], "0.7 of 16, then at least 5"
    all_of_it = {"wide_in_thres": 0.0, "draft_share": 1.0}
    assert drafts(**all_of_it) == [LENGTH]
    assert drafts(**all_of_it, max_draft=7) == [7, 7, 2]
    assert drafts(**all_of_it, min_draft=1, max_draft=1) == [1] * LENGTH
    none_of_it = {"wide_in_thres": 0.0, "draft_share": 0.0}
    assert drafts(**none_of_it) == [5, 5, 5, 1]
    assert drafts(**none_of_it, min_draft=1) == [1] * LENGTH
    assert drafts(**none_of_it, min_draft=6, max_draft=6) == [6, 6, 4]
    half = {"wide_in_thres": 0.0, "draft_share": 0.5}
    assert drafts(**half, min_draft=1, max_draft=1000) == [8, 4, 2, 1, 1]


@direction("narrow_out_thres", "wino", ends="0, 1")
@direction("shadows", "wino", ends="block, decided")
def what_fails_the_verification(name: str) -> None:
    def run(**knobs: object):
        return decode(random_llm(1), name, block_length=LENGTH, wide_in_thres=0.1, **knobs)

    assert not any(step.remasked for step in run(narrow_out_thres=0.0).trace)
    always = run(narrow_out_thres=1.0)
    assert any(step.remasked for step in always.trace)
    queries = [run(narrow_out_thres=0.0, shadows=kind).num_queries for kind in ("block", "decided")]
    assert queries[0] > queries[1]


# wrappers


@direction("inner", "prophet", "speculative", ends="any")
def knobs_go_to_the_wrapped_decoder(name: str) -> None:
    off = {"gap_thresholds": (1e9, 1e9, 1e9)} if name == "prophet" else {"accept_threshold": 1.0}
    for inner, forwards_ in (("vanilla", 4), ("pc_sampler", 4)):
        out = decode(random_llm(), name, inner=inner, steps=4, block_length=LENGTH, **off)
        assert out.num_forwards == forwards_


@direction("compat", "prophet", "speculative", ends="true, false")
def compat_goes_to_the_wrapped_decoder(name: str) -> None:
    llm = table_llm(table(4, scale=4.0))
    off = {"gap_thresholds": (1e9, 1e9, 1e9)} if name == "prophet" else {"accept_threshold": 1.0}
    knobs = {"inner": "threshold", "threshold": 0.5, "sigma": 10.0, "block_length": LENGTH} | off
    ours, theirs = (decode(llm, name, **knobs, compat=compat) for compat in (False, True))
    assert ours.num_forwards < theirs.num_forwards


@direction("gap_thresholds", "prophet", ends="0, large")
def when_everything_is_committed(name: str) -> None:
    assert decode(random_llm(), name, gap_thresholds=(0.0, 0.0, 0.0)).num_forwards == 1
    assert decode(random_llm(), name, gap_thresholds=(1e9, 1e9, 1e9)).num_forwards == LENGTH


@direction("answer_start", "prophet", ends="0, default")
@direction("answer_length", "prophet", ends="1, large")
@direction("gap", "prophet", ends="logits, probability")
def the_span_whose_gap_counts(name: str) -> None:
    rows = table(9)
    logits = np.sort(rows[POSITIONS].double().numpy(), axis=-1)
    gaps = logits[:, -1] - logits[:, -2]

    def first(**knobs: object) -> float:
        return notes(
            decode(table_llm(rows), name, gap_thresholds=(99.0, 99.0, 99.0), **knobs), "gap"
        )[0]

    assert first() == pytest.approx(gaps.mean(), rel=1e-5)
    assert first(answer_start=0) == pytest.approx(gaps[:5].mean(), rel=1e-5)
    assert first(answer_start=0, answer_length=1) == pytest.approx(gaps[0], rel=1e-5)
    assert first(answer_start=3, answer_length=1000) == pytest.approx(gaps[3:].mean(), rel=1e-5)
    p = np.sort(torch.softmax(rows[POSITIONS].double(), -1).numpy(), axis=-1)
    unlikely = decode(table_llm(rows), name, gap="probability", gap_thresholds=(1.0, 1.0, 1.0))
    assert notes(unlikely, "gap")[0] == pytest.approx((p[:, -1] - p[:, -2]).mean(), rel=1e-5)


REPEATING = [7, 8, 9, 10, 7, 8]


@direction("ngram", "speculative", ends="1, large")
def a_match_must_be_this_long(name: str) -> None:
    def drafted(ngram: int) -> float:
        out = random_llm().generate(
            [REPEATING], name, gen_length=8, ngram=ngram, stop_at_eos=False, return_trace=True
        )[0]
        return notes(out, "num_drafted")[0]

    assert drafted(1) >= drafted(2) > 0
    assert drafted(1000) == 0


@direction("accept_threshold", "speculative", ends="0, 1")
@direction("drafter", "speculative", ends="lookup, previous")
def a_matching_draft_is_accepted(name: str) -> None:
    llm = table_llm(table(1))
    llm.requests.drafters["same"] = draft_by(llm)
    knobs = {"inner": "vanilla", "block_length": LENGTH}
    always, never = (
        decode(llm, name, drafter="same", accept_threshold=value, **knobs) for value in (0.0, 1.0)
    )
    assert len(always.trace) == 1, "its own predictions are the draft"
    assert len(never.trace) == LENGTH
    out = decode(llm, name, **knobs)
    assert sum(notes(out, "num_drafted")) <= sum(notes(always, "num_drafted")) * LENGTH
    repeated = decode(llm, name, **{**knobs, "drafter": "previous"}, accept_threshold=0.0)
    assert [len(step.committed) for step in repeated.trace] == [1, LENGTH - 1], (
        "no proposal changes"
    )


@direction("lossless", "speculative", ends="true, false")
@direction("depth", "speculative", ends="1, 8")
def canvases_are_read_ahead(name: str) -> None:
    llm = table_llm(table(1))
    knobs = {"inner": "vanilla", "block_length": LENGTH, "drafter": "previous"}
    plain = decode(llm, "vanilla", block_length=LENGTH)
    one, eight = (decode(llm, name, lossless=True, depth=depth, **knobs) for depth in (1, 8))
    assert trace_of(one) == trace_of(eight) == trace_of(plain)
    assert plain.num_forwards == LENGTH
    assert eight.num_forwards < one.num_forwards < LENGTH, "every prediction comes true"
    drafted = decode(llm, name, lossless=False, accept_threshold=0.0, **knobs)
    assert trace_of(drafted) != trace_of(plain)


assert SLOW.keys() >= {"wino", "daedal"}
