"""Knobs that many decoders inherit: score, prior, blocks and schedule."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from tiny import EOS, MASK, trace_of

from unmask.errors import ConfigError

from .registry import direction
from .stubs import (
    ENDS,
    LENGTH,
    POSITIONS,
    SLOW,
    counts_file,
    decode,
    inversions,
    order,
    random_llm,
    ranking,
    slowly,
    surprisal,
    table,
    table_llm,
)

SCORED = (
    "block_diffusion",
    "credit",
    "daedal",
    "factor",
    "hierarchy",
    "joint_threshold",
    "klass",
    "threshold",
    "vanilla",
    "wino",
)
PRIOR = (*SCORED, "dream", "eb_sampler", "pc_sampler")
BLOCKS = (
    "credit",
    "eb_sampler",
    "factor",
    "hierarchy",
    "joint_threshold",
    "klass",
    "pc_sampler",
    "threshold",
    "vanilla",
    "wino",
)
COUNTS = {token: 1 + 3 * token**3 for token in range(58)}


@direction("score", *SCORED, "eb_sampler", ends="confidence, margin, entropy, pc, random")
def orders_by_score(name: str) -> None:
    rows = table(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = {"frequencies": counts_file(Path(folder), COUNTS)}
        for score in ("confidence", "margin", "entropy", "pc"):
            more = counts if score == "pc" else {}
            out = slowly(table_llm(rows), name, score=score, **more)
            assert order(out) == ranking(rows, score, COUNTS), score
    drawn = [order(slowly(table_llm(rows), name, score="random", seed=seed)) for seed in range(2)]
    assert drawn[0] != drawn[1]
    assert ranking(rows) not in drawn


@direction("score", "ar", "dream", ends="confidence, margin, entropy, pc, random")
def takes_no_other_score(name: str) -> None:
    assert slowly(table_llm(table(1)), name, score="confidence").num_forwards == LENGTH
    for score in ("margin", "entropy", "pc", "random"):
        with pytest.raises(ConfigError, match="score"):
            slowly(table_llm(table(1)), name, score=score)


@direction("score", "pc_sampler", ends="always")
def is_always_pc(name: str) -> None:
    with pytest.raises(ConfigError, match="score=margin"):
        slowly(table_llm(table(1)), name, score="margin")


@direction("sigma", *PRIOR, ends="small, far beyond gen_length, default")
def goes_from_left_to_right_to_no_prior(name: str) -> None:
    rows = table(2)
    llm = table_llm(rows)
    free = order(slowly(llm, name))
    assert free == ranking(rows) != sorted(free)
    counted = []
    for sigma in (0.3, 2.0, 10.0, 100.0, 1e6):
        found = order(slowly(llm, name, sigma=sigma))
        counted.append(inversions(found))
    assert counted[0] == 0
    assert counted == sorted(counted)
    assert found == free


@direction("sigma", "ar", ends="small, far beyond gen_length, default")
def has_no_choice_to_prefer(name: str) -> None:
    with pytest.raises(ConfigError, match="sigma have no effect on decoder ar"):
        slowly(table_llm(table(2)), name, sigma=3.0)


def pc(name: str) -> dict[str, object]:
    return {"debias": True} if name == "pc_sampler" else {"score": "pc"}


@direction("frequencies", *SCORED, "eb_sampler", "pc_sampler", ends="default")
def rare_tokens_come_first(name: str) -> None:
    rows = table(3)
    with tempfile.TemporaryDirectory() as folder:
        file = counts_file(Path(folder), COUNTS)
        given = order(slowly(table_llm(rows), name, **pc(name), frequencies=file))
    assert given == ranking(rows, "pc", COUNTS)
    estimated = slowly(table_llm(rows), name, **pc(name))
    assert sorted(order(estimated)) == POSITIONS
    assert order(estimated) != given


@direction("frequencies", "ar", "dream", ends="default")
def reads_no_counts(name: str) -> None:
    with pytest.raises(ConfigError, match="frequencies"):
        slowly(table_llm(table(3)), name, frequencies="counts.json")


@direction("clip_alpha", *SCORED, "eb_sampler", "pc_sampler", ends="small, large")
def bounds_the_calibrated_confidence(name: str) -> None:
    rows = table(3)
    with tempfile.TemporaryDirectory() as folder:
        more = {**pc(name), "frequencies": counts_file(Path(folder), COUNTS), "lambd": 1e-9}
        least, most = (
            order(slowly(table_llm(rows), name, **more, clip_alpha=alpha)) for alpha in (1e-6, 1e9)
        )
    assert least == POSITIONS
    assert most == ranking(rows, "pc", COUNTS)


@direction("lambd", *SCORED, "eb_sampler", "pc_sampler", ends="0, large")
def weighs_positions(name: str) -> None:
    rows = table(3)
    with tempfile.TemporaryDirectory() as folder:
        more = {**pc(name), "frequencies": counts_file(Path(folder), COUNTS)}
        alike, left = (
            order(slowly(table_llm(rows), name, **more, lambd=lambd)) for lambd in (0.0, 1e4)
        )
    assert alike == ranking(rows, "pc", COUNTS)
    assert left == POSITIONS


@direction("clip_alpha", "ar", "dream", ends="small, large")
@direction("lambd", "ar", "dream", ends="0, large")
def belongs_to_another_score(name: str) -> None:
    for knob, value in (("clip_alpha", 1e-6), ("lambd", 1e4)):
        with pytest.raises(ConfigError, match=f"{knob}=.* has no effect with score="):
            slowly(table_llm(table(3)), name, **{knob: value})


COMPARED = {
    "credit": {"threshold": 0.5},
    "daedal": None,
    "eb_sampler": {},
    "factor": {"factor": 0.9},
    "hierarchy": {"threshold": 0.5, "low_threshold": 0.5},
    "joint_threshold": {"threshold": 0.5, "max_post_edit_steps": 0},
    "klass": {"threshold": 0.5, "kl_threshold": 1e9, "kl_history_length": 1},
    "threshold": {"threshold": 0.5},
    "wino": {"wide_in_thres": 0.5, "narrow_out_thres": 0.0},
}


@direction(
    "compat",
    "credit",
    "hierarchy",
    "joint_threshold",
    "klass",
    "threshold",
    "wino",
    ends="true, false",
)
def the_published_prior_is_not_rescaled(name: str) -> None:
    """Its density is at most a half at the text's edge, so that hardly anything reaches a threshold."""
    llm = table_llm(table(4, scale=4.0))
    knobs = {**COMPARED[name], "block_length": LENGTH, "sigma": 10.0}
    ours, theirs = (decode(llm, name, **knobs, compat=compat) for compat in (False, True))
    assert ours.num_forwards < theirs.num_forwards
    del knobs["sigma"]
    assert trace_of(decode(llm, name, **knobs)) == trace_of(decode(llm, name, **knobs, compat=True))


@direction(
    "compat",
    "ar",
    "block_diffusion",
    "dream",
    "eb_sampler",
    "pc_sampler",
    "vanilla",
    ends="true, false",
)
def the_reference_has_no_quirk_in_the_order(name: str) -> None:
    llm = table_llm(table(4))
    plain = order(slowly(llm, name))
    assert order(slowly(llm, name, compat=True)) == plain


@direction("compat", "factor", ends="true, false")
def the_published_loop_takes_the_last_rank(name: str) -> None:
    rows = table(4)
    rows = rows.clone()
    rows[POSITIONS] = 0.0
    rows[POSITIONS[0], 5] = 9.0
    rows[POSITIONS[1], 5] = 1.0
    knobs = {"gen_length": 2, "block_length": 2, "factor": 0.5}
    llm = table_llm(rows)
    assert decode(llm, name, **knobs).num_forwards == 2
    assert decode(llm, name, **knobs, compat=True).num_forwards == 1


@direction("compat", "daedal", ends="true, false")
def the_published_code_appends_end_tokens(name: str) -> None:
    knobs = {"initial_eot_expand_thres": 0.0, "decode_eot_expand_thres": 0.0, "max_gen_length": 64}
    knobs |= {"initial_gen_length": LENGTH, "num_check_last_eot": 8}
    ours, theirs = (decode(random_llm(), name, **knobs, compat=compat) for compat in (False, True))
    assert len(theirs.canvas_ids) == len(ours.canvas_ids) + 4
    assert theirs.canvas_ids[-4:] == [EOS] * 4


@direction("block_length", *BLOCKS, ends="1, gen_length, default")
def bounds_the_choice(name: str) -> None:
    rows = table(5)
    llm = table_llm(rows)
    assert order(slowly(llm, name, block_length=1)) == POSITIONS
    assert order(slowly(llm, name, block_length=LENGTH)) == ranking(rows)
    rest = {key: value for key, value in SLOW[name].items() if key != "block_length"}
    default = [order(decode(llm, name, **rest, gen_length=length)) for length in (40, 37)]
    for found, length, size in zip(default, (40, 37), (20, 37), strict=True):
        assert found == order(slowly(llm, name, gen_length=length, block_length=size))


@direction("steps", "vanilla", "klass", "pc_sampler", ends="few, gen_length or more, default")
def shares_the_answer_among_forwards(name: str) -> None:
    llm = random_llm()
    for steps, forwards in ((2, 2), (LENGTH, LENGTH), (10 * LENGTH, LENGTH), (None, LENGTH)):
        assert slowly(llm, name, steps=steps).num_forwards == forwards


@direction("block_steps", "vanilla", "klass", "pc_sampler", ends="1, default")
def shares_a_block_among_forwards(name: str) -> None:
    llm = random_llm()
    assert slowly(llm, name, block_steps=1, block_length=4).num_forwards == 4
    assert slowly(llm, name, steps=8, block_length=4).num_forwards == 8


@direction("whole_blocks", "vanilla", "threshold", "joint_threshold", ends="true, false")
def decodes_the_surplus(name: str) -> None:
    llm = random_llm(0, 1.5, 4)
    knobs = {"gen_length": 6} | {k: v for k, v in SLOW[name].items() if k != "block_length"}
    cut, whole = (decode(llm, name, **knobs, whole_blocks=value) for value in (False, True))
    assert len(cut.canvas_ids) == len(whole.canvas_ids) == 9
    assert max(order(cut)) == 8
    assert whole.num_queries > cut.num_queries
    assert any(step.deleted for step in whole.trace)
    with pytest.raises(ConfigError, match="whole_blocks=True has no effect"):
        slowly(random_llm(), name, whole_blocks=True)


assert not {MASK, *ENDS} & {int(t) for t in np.unique(table(3)[POSITIONS].argmax(-1))}
assert surprisal(table(3), COUNTS).std() > 0
