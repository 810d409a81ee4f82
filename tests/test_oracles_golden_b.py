"""The naive renderings of adaptive, revising and length-changing methods, judged by what is not ours.

That is: golden decodes of the methods' own published code, numbers published with it, and decodes by hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from oracles import cadllm, daedal, dinfer, growing, joint_threshold, llada, wino
from oracles.network import Network
from tiny import FAMILIES, MASK

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
CADLLM = ("cadllm_default", "cadllm_gsm8k", "cadllm_gsm8k_entropy", "cadllm_gsm8k_prophet")
GOLDEN_MASK, GOLDEN_EOS = 2042, 2041
NEVER = {GOLDEN_MASK, 2046, 2047}  # the mask and the two reserved tokens


def cases_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def indices(*names):
    """(name, index) of every case; those after the first two of a file are slow."""
    return [
        pytest.param(name, i, marks=[pytest.mark.slow] if i > 1 else [], id=f"{name}-{i}")
        for name in names
        for i in range(len(cases_of(name)))
    ]


def golden_steps(case):
    prompt = len(case["prompt_ids"])
    return [
        sorted((position + prompt, token) for position, token in step) for step in case["steps"]
    ]


@pytest.fixture(scope="module")
def golden_network(golden_llm):
    return Network(golden_llm.model)


def test_the_fast_naive_network_is_the_golden_model(golden_llm, golden_network):
    ids = cases_of("wino_b64")[0]["prompt_ids"] + [GOLDEN_MASK] * 8
    theirs = golden_llm.model(torch.tensor([ids]))[0]
    assert float((golden_network.uncached(ids) - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_naive_network_is_the_slow_one_with_and_without_stored_keys(family, tiny):
    model = tiny(family, seed=4).model
    fast, slow = Network(model), llada.Network(model)
    ids = [5, MASK, 17, MASK, 2, 40]
    for positions in (list(range(6)), [1, 2, 4]):
        ids[4] += 1
        rows, others = fast.logits(ids, positions), slow.logits(ids, positions)
        assert max(float((rows[p] - others[p]).abs().max()) for p in positions) < 1e-9


def test_the_fast_naive_network_masks_as_the_golden_model(golden_llm, golden_network):
    ids = cases_of("wino_b64")[0]["prompt_ids"][:5] + [GOLDEN_MASK] * 4
    places = [0, 1, 2, 3, 4, 5, 6, 5, 6]
    visible = wino.shadow_mask(7, [5, 6], see_each_other=True)
    theirs = golden_llm.model(
        torch.tensor([ids]),
        attention_mask=visible[None, None],
        position_ids=torch.tensor([places]),
    )[0]
    rows = golden_network.forward(ids, places, visible)
    assert float((rows - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize(("name", "index"), indices(*CADLLM))
def test_cadllm_decodes_as_published(name, index, golden_network):
    case = cases_of(name)[index]
    knobs = {k: v for k, v in case["call"].items() if k not in ("decoder", "cache", "gen_length")}
    gen_length = case["call"]["gen_length"]
    trace, ids = cadllm.decode(
        golden_network, case["prompt_ids"], gen_length, GOLDEN_MASK, NEVER, **knobs
    )
    assert ids == case["prompt_ids"] + case["final_ids"]
    assert len(trace) == case["num_forwards"]
    assert [entry["committed"] for entry in trace] == golden_steps(case)
    assert [entry["vocab_size"] for entry in trace] == case["vocab_sizes"]


@pytest.mark.parametrize(("name", "index"), indices("wino_b64"))
def test_wino_decodes_as_published(name, index, golden_network):
    """A golden step writes the mask where a position was remasked."""
    case = cases_of(name)[index]
    knobs = {k: v for k, v in case["call"].items() if k != "decoder"}
    trace, ids = wino.decode(
        golden_network, case["prompt_ids"], mask_id=GOLDEN_MASK, forbidden=NEVER, **knobs
    )
    assert ids == case["prompt_ids"] + case["final_ids"]
    assert len(trace) == case["num_forwards"]
    written = [
        sorted(entry["committed"] + [(p, GOLDEN_MASK) for p in entry["remasked"]])
        for entry in trace
    ]
    assert written == golden_steps(case)


@pytest.mark.parametrize(("name", "index"), indices("daedal_default_max192"))
def test_daedal_decodes_as_published(name, index, golden_llm):
    case = cases_of(name)[index]
    knobs = {k: v for k, v in case["call"].items() if k != "decoder"}
    trace, ids = daedal.decode(
        lambda ids: golden_llm.model(torch.tensor([ids]))[0].double(),
        case["prompt_ids"],
        GOLDEN_MASK,
        GOLDEN_EOS,
        NEVER,
        **knobs,
    )
    assert ids == case["prompt_ids"] + case["final_ids"]
    assert len(trace) == case["num_forwards"]


PRESETS = {
    "gsm8k": (24, 90, 24, 64, 4),
    "humaneval": (16, 32, 48, 96, 12),
    "dream": (24, 70, 16, 48, 8),
    "mbpp": (128, 90, 24, 64, 4),
}
PLANS = [
    ("gsm8k", [], (24, 24)),
    ("gsm8k", [0.3], (22, 64)),
    ("gsm8k", [0.5], (34, 80)),
    ("gsm8k", [0.6], (40, 83)),
    ("gsm8k", [0.75], (49, 81)),
    ("gsm8k", [0.9], (57, 71)),
    ("gsm8k", [0.98], (62, 64)),
    ("humaneval", [], (48, 16)),
    ("humaneval", [0.3], (37, 20)),
    ("humaneval", [0.6], (62, 28)),
    ("humaneval", [0.9], (87, 30)),
    ("dream", [], (16, 24)),
    ("dream", [0.3], (20, 70)),
    ("dream", [0.6], (32, 84)),
    ("dream", [0.9], (43, 75)),
    ("mbpp", [], (24, 128)),
    ("mbpp", [0.3], (22, 117)),
    ("mbpp", [0.9], (57, 304)),
]


def plan(preset, history, remaining=10_000, variant="code"):
    names = ("initial_steps", "max_steps", "initial_block_length", "max_block", "min_block")
    knobs = dict(zip(names, PRESETS[preset], strict=True))
    return cadllm.block_plan(history, remaining, variant=variant, **knobs)


@pytest.mark.parametrize(("preset", "history", "expected"), PLANS)
def test_cadllm_plans_its_blocks_as_the_published_code(preset, history, expected):
    assert plan(preset, history) == expected


def test_cadllm_averages_two_forwards_in_float32():
    """In exact arithmetic the blocks are 58 and 46."""
    assert plan("gsm8k", [0.1, 0.9, 0.9])[0] == 57
    assert plan("gsm8k", [0.1, 0.9, 0.5])[0] == 45
    assert plan("gsm8k", [0.9], remaining=7) == (7, int(30 * 7 / 24))


def test_cadllm_plans_fewer_steps_when_sure_in_the_paper():
    steps = [plan("gsm8k", [sure], variant="paper")[1] for sure in (0.3, 0.6, 0.9, 0.98)]
    assert steps == [70, 50, 30, 25]
    assert plan("gsm8k", [1.0, 0.5, 0.5, 0.5, 0.5, 0.5], variant="paper")[0] == 34


@pytest.mark.parametrize(
    ("history", "expected", "repeating"),
    [
        ([], (800, 70, 90), 210),
        ([0.2], (1000, 105, 135), 315),
        ([0.5], (960, 84, 108), 252),
        ([0.7], (800, 70, 90), 210),
        ([0.9], (640, 56, 72), 168),
        ([0.9, 0.9, 0.7], (832, 72, 93), 218),
    ],
)
def test_cadllm_sizes_its_vocabulary_as_the_published_code(history, expected, repeating):
    def size(ring, progress=0.5):
        return cadllm.vocabulary_size(history, ring, progress)

    assert tuple(size([], progress) for progress in (0.1, 0.5, 0.9)) == expected
    assert size([1, 2, 3, 4, 5, 5, 5, 5]) == repeating
    assert size([2, 3, 4, 5, 5, 5, 5]) == size([1, 2, 3, 4] * 2) == expected[1]


def test_cadllm_relaxes_its_threshold_in_a_line():
    wanted = {0: 0.85, 1: 0.83125, 12: 0.625, 24: 0.4, 40: 0.4}
    for t, tau in wanted.items():
        assert cadllm.relaxed_threshold(t / 24) == pytest.approx(tau)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cadllm_block_of_the_paper_takes_no_more_forwards_than_planned(family, tiny):
    network = Network(tiny(family, seed=3, sure=0.5).model)
    knobs = {"initial_steps": 2, "max_steps": 3, "initial_block_length": 4}
    trace, ids = cadllm.decode(
        network,
        [3, 4],
        12,
        MASK,
        {MASK, 62, 63},
        variant="paper",
        max_block=6,
        min_block=3,
        **knobs,
    )
    assert MASK not in ids
    for block in {entry["block"] for entry in trace}:
        forwards = [entry for entry in trace if entry["block"] == block]
        assert len(forwards) <= forwards[0]["num_steps"]
        assert [entry["computed"] for entry in forwards[:1]] == [14]


# Decodes by hand. Tokens 0 to 5 are ordinary, 6 is the end, 7 the mask.


def row(**probabilities):
    """A row of logits; what is left of the probability is spread over the tokens not named."""
    given = {int(name[1:]): value for name, value in probabilities.items()}
    rest = (1 - sum(given.values())) / (8 - len(given))
    return torch.tensor([math.log(given.get(v, rest)) for v in range(8)], dtype=torch.float64)


def test_daedal_makes_room_at_its_least_sure_position_and_cuts_the_tail():
    def logits(ids):
        return torch.stack([row(t1=0.95) if p == 1 else row() for p in range(len(ids))])

    knobs = {"initial_gen_length": 4, "max_gen_length": 7, "block_length": 4}
    trace, ids = daedal.decode(
        logits,
        [5],
        7,
        6,
        {7},
        initial_eot_expand_thres=0.0,
        low_conf_expand_thres=0.2,
        expansion_factor=3,
        compat=False,
        **knobs,
    )
    assert ids == [5, 1, 0, 0, 0, 0, 0, 0]
    assert [entry["committed"] for entry in trace] == [[], [(1, 1)]] + [
        [(p, 0)] for p in range(2, 8)
    ]
    assert [entry["inserted"] for entry in trace] == [[], [(3, 2)], [(4, 2)], [], [], [], [], []]
    assert [entry["truncated"] for entry in trace] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_daedal_appends_end_tokens_that_it_never_looked_at_only_in_compat():
    def logits(ids):
        return torch.stack([row(t6=0.96) for _ in ids])

    knobs = {"initial_gen_length": 4, "max_gen_length": 9, "num_check_last_eot": 8}
    long, _ = daedal.decode(logits, [5], 7, 6, {7}, compat=True, **knobs)
    short, _ = daedal.decode(logits, [5], 7, 6, {7}, compat=False, **knobs)
    # Four positions of the eight that count propose the end: 0.48, so it grows once.
    assert [entry["end_mass"] for entry in short] == pytest.approx([0.48, 0.96, 0.96])
    assert [entry["inserted"] for entry in short] == [[(5, 5)], [], []]
    assert long == short  # at its limit there is no room
    knobs["max_gen_length"] = 20
    long, ids = daedal.decode(logits, [5], 7, 6, {7}, compat=True, **knobs)
    assert len(ids) == 1 + 12 + 4
    assert long[1]["filled"] == [(p, 6) for p in range(13, 17)]


def test_dinfers_hierarchy_takes_the_surest_of_each_run_that_is_sure_enough():
    scores = {1: 0.5, 2: 0.3, 4: 0.45, 5: 0.95, 7: 0.2, 9: 0.4}
    assert dinfer.keep_hierarchical(scores, 0.4, 0.9) == [1, 5]
    assert dinfer.keep_hierarchical(scores | {2: 0.91}, 0.4, 0.9) == [2, 5]
    assert dinfer.keep_hierarchical({1: 0.1, 3: 0.2}, 0.4, 0.9) == [3]
    assert dinfer.keep_hierarchical({1: 0.95, 2: 0.95, 3: 0.96}, 0.4, 0.9) == [1, 2, 3]

    def logits(ids):
        return torch.stack([row(t1=0.9), row(t1=0.5), row(t2=0.8), row(t3=0.6), row(t4=0.7)])

    trace, ids = dinfer.decode(logits, [5], 4, 4, 7, {7}, method="hierarchical")
    assert [e["committed"] for e in trace] == [[(2, 2)], [(1, 1), (4, 4)], [(3, 3)]]
    assert ids == [5, 1, 2, 3, 4]


def test_dinfers_credit_holds_on_to_what_was_proposed_before():
    def logits(ids):
        last = row(t0=0.5) if ids.count(7) > 1 else row(t0=0.47, t1=0.51)
        return torch.stack([row(), row(t2=0.8), row(t2=0.7), row(t2=0.6), last])

    def decode(**knobs):
        shape = {"threshold": 0.99, "method": "credit"}
        return dinfer.decode(logits, [5], 4, 4, 7, {7}, **shape, **knobs)

    trace, ids = decode()
    assert [e["committed"] for e in trace] == [[(1, 2)], [(2, 2)], [(3, 2)], [(4, 0)]]
    assert decode(credit_alpha=0.0)[1] == [5, 2, 2, 2, 1]
    assert decode(credit_beta=0.0)[1] == [5, 2, 2, 2, 1]


def test_joint_threshold_edits_until_nothing_changes():
    def logits(ids):
        first = row(t0=0.9) if ids[2] == 7 else row(t2=0.8)
        return torch.stack([row(t5=0.9), first, row(t1=0.6)])

    def decode(**knobs):
        return joint_threshold.decode(logits, [0], 2, 2, 7, {7}, threshold=0.7, **knobs)

    trace, ids = decode()
    assert [e["committed"] for e in trace] == [[(1, 0)], [(2, 1)], [], []]
    assert [e["replaced"] for e in trace] == [[], [], [(1, 2)], []]
    assert ids == [0, 2, 1]
    assert len(decode(max_post_edit_steps=1)[0]) == 3
    assert decode(max_post_edit_steps=0)[1] == [0, 0, 1]
    assert decode(edit_threshold=0.8)[1] == [0, 0, 1]
    assert decode(edit_threshold=0.79)[1] == [0, 2, 1]


def test_joint_threshold_takes_the_penalty_from_the_token_at_the_left():
    def logits(ids):
        return torch.stack([row(t0=0.5, t1=0.4) for _ in ids])

    def decode(penalty):
        return joint_threshold.decode(logits, [0], 3, 3, 7, {7}, penalty_lambda=penalty)[1]

    assert decode(0.0) == [0, 0, 0, 0]
    assert decode(1.0)[:3] == [0, 0, 1], "the block's first position has no neighbor in the block"


def test_a_growing_canvas_shows_no_masks_after_its_block():
    def logits(ids):
        return torch.stack([row(**{f"t{p % 6}": 0.5 + p / 100}) for p in range(len(ids))])

    def decode(block, **knobs):
        trace, ids = growing.decode(logits, [5, 5], 5, block, 7, {7}, **knobs)
        return [(e["length"], e["committed"]) for e in trace], ids

    one = [(p + 1, [(p, p % 6)]) for p in range(2, 7)]
    assert decode(1) == (one, [5, 5, 2, 3, 4, 5, 0])
    two, _ = decode(2)
    assert two == [(4, [(3, 3)]), (4, [(2, 2)]), (6, [(5, 5)]), (6, [(4, 4)]), (7, [(6, 0)])]
    fast, _ = decode(2, steps=1)
    assert fast == [(4, [(2, 2), (3, 3)]), (6, [(4, 4), (5, 5)]), (7, [(6, 0)])]
    assert decode(2, end_ids={3})[1] == [5, 5, 2, 3]
