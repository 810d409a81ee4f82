"""`--dllm-algorithm` decodes as SGLang does: against its loop and step rules, in `oracles/sglang.py`.

Prompts and answers of ragged lengths share a batch, and the last block reaches beyond the answer.
"""

from __future__ import annotations

import pytest
import torch
from oracles import sglang
from tiny import KNOWN, MASK, VOCAB, tiny_llm

from unmask.errors import ConfigError
from unmask.method import MethodSpec, Source
from unmask.server.sglang_algorithms import for_model, from_sglang

FORBIDDEN = {MASK, *range(KNOWN, VOCAB)}
SIZE = 8
PROMPTS = ([7], [1, 30, MASK, 22, 22, 5, 50], [9] * 8, list(range(10, 21)))
DEFAULTS = {
    "threshold": 0.5,
    "edit_threshold": 0.0,
    "max_post_edit_steps": 16,
    "penalty_lambda": 0.0,
}


def logits_fn(llm):
    def rows(ids):
        raw = llm.model(torch.tensor([ids]))[0].double()
        return torch.cat((raw[:1], raw[:-1])) if llm.spec.shift_logits else raw

    return rows


def expected(llm, step, prompts, lengths, fdfo, keys):
    """The texts, and the traces up to the answers' ends."""
    rows = sglang.decode(
        logits_fn(llm), prompts, lengths, SIZE, MASK, FORBIDDEN, step, fdfo=fdfo, **keys
    )
    traces = []
    for row, prompt, length in zip(rows, prompts, lengths, strict=True):
        traces.append(inside(row.trace, len(prompt) + length))
    return [row.text for row in rows], traces


def inside(trace, end):
    """Without the surplus and the last forwards, which change nothing else."""
    kept = [
        tuple([item for item in entry[kind] if item[0] < end] for kind in ("committed", "replaced"))
        for entry in trace
    ]
    while kept and kept[-1] == ([], []):
        kept.pop()
    return kept


def method_of(llm, algorithm, keys):
    return for_model(MethodSpec.parse(from_sglang(algorithm, keys)), algorithm, keys, llm.spec)


def check(llm, algorithm, step, keys, fdfo=True, cache="none", lengths=(1, 6, 13)):
    method = method_of(llm, algorithm, keys).with_values({"cache": cache})
    keys = {
        key: value
        for key, value in keys.items()
        if key not in ("block_size", "vectorized_decoding")
    }
    for length in lengths:
        texts, traces = expected(llm, step, PROMPTS, [length] * len(PROMPTS), fdfo, keys)
        outs = llm.generate(
            list(PROMPTS), method, gen_length=length, stop_at_eos=False, return_trace=True
        )
        assert [out.canvas_ids for out in outs] == texts
        for out, trace, prompt in zip(outs, traces, PROMPTS, strict=True):
            ours = [
                {
                    "committed": [(c.position, c.token) for c in entry.committed],
                    "replaced": [(c.position, c.token) for c in entry.replaced],
                }
                for entry in out.trace
            ]
            assert inside(ours, len(prompt) + length) == trace
            assert out.num_forced == 0


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("threshold", [-1, 0, 0.25, 0.95, 1, 1.5])
def test_low_confidence(threshold, family):
    llm = tiny_llm(family, seed=3, block_size=SIZE)
    keys = {"threshold": threshold}
    check(llm, "LowConfidence", sglang.low_confidence, keys, fdfo=threshold > 0)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"threshold": 0.2, "edit_threshold": 0.2},
        {"threshold": 0.2, "max_post_edit_steps": 0},
        {"threshold": 2, "edit_threshold": 2, "max_post_edit_steps": -1},
        {"threshold": -1, "edit_threshold": -1, "max_post_edit_steps": 3},
        {"threshold": 0.2, "edit_threshold": 0.3, "penalty_lambda": 3},
        {"threshold": 0.2, "edit_threshold": 1, "penalty_lambda": 50.0},
        {"threshold": 0.2, "edit_threshold": 0.3, "penalty_lambda": -3},
    ],
    ids=str,
)
def test_joint_threshold(keys, family):
    llm = tiny_llm(family, seed=1, block_size=SIZE)
    fdfo = family == "llada"
    check(llm, "JointThreshold", sglang.joint_threshold, DEFAULTS | keys, fdfo, lengths=(5, 12))


@pytest.mark.parametrize("seed", range(2))
def test_both_decode_so_with_the_exact_cache(seed):
    llm = tiny_llm(seed=seed, block_size=SIZE)
    keys = {"threshold": 0.3, "block_size": SIZE, "vectorized_decoding": True}
    check(llm, "LowConfidence", sglang.low_confidence, keys, cache="block_causal")
    keys = DEFAULTS | keys | {"edit_threshold": 0.2, "penalty_lambda": 1.0}
    check(llm, "JointThreshold", sglang.joint_threshold, keys, cache="block_causal")


@pytest.mark.parametrize(
    ("algorithm", "keys", "same"),
    [
        ("LowConfidence", {"threshold": 7}, {"threshold": 1}),
        ("LowConfidenceFDFO", {}, {}),
        ("LowConfidence", {"vectorized_decoding": True, "threshold": None}, {}),
        ("LowConfidence", {"edit_threshold": 1.5, "penalty_lambda": 0}, {}),
        ("JointThreshold", {"max_post_edit_steps": -4}, {"max_post_edit_steps": 0}),
        ("JointThreshold", {"penalty_lambda": -1}, {"penalty_lambda": 0.0}),
        ("JointThreshold", {"vectorized_decoding": False}, {}),
        ("HierarchyBlock", {"token_shift": 1, "block_size": 8}, {}),
    ],
    ids=str,
)
def test_keys_that_change_nothing_are_taken(algorithm, keys, same):
    plain = "LowConfidence" if algorithm == "LowConfidenceFDFO" else algorithm
    assert MethodSpec.parse(from_sglang(algorithm, keys)) == MethodSpec.parse(
        from_sglang(plain, same)
    )


@pytest.mark.parametrize(
    ("algorithm", "keys", "words"),
    [
        ("LowConfidence", {"penalty_lambda": 0.5}, "unknown key"),
        ("LowConfidence", {"vectorized_decoding": "maybe"}, "true or false"),
        ("HierarchyBlock", {"token_shift": 0}, "token_shift=0"),
    ],
)
def test_keys_that_would_change_the_answer_are_refused(algorithm, keys, words):
    with pytest.raises(ConfigError, match=words):
        from_sglang(algorithm, keys)


def test_hierarchy_block_is_the_sampler_of_fast_dllm_v2():
    parsed = MethodSpec.parse(from_sglang("HierarchyBlock", {"sub_block_size": 8}))
    assert parsed.decoder == MethodSpec.parse(Source({"preset": "fast_dllm_v2"})).decoder


@pytest.mark.parametrize(
    ("algorithm", "keys", "changes", "words"),
    [
        ("LowConfidence", {"block_size": 4}, {"block_size": 8}, "blocks of 8"),
        ("JointThreshold", {"block_size": "8"}, {"block_size": 8}, "blocks of 8"),
        ("HierarchyBlock", {}, {}, "shifted logits"),
        ("HierarchyBlock", {}, {"block_size": 8}, "shifted logits"),
    ],
)
def test_an_algorithm_that_does_not_suit_the_model_is_refused(algorithm, keys, changes, words):
    with pytest.raises(ConfigError, match=words):
        method_of(tiny_llm(**changes), algorithm, keys)


def test_a_model_without_blocks_decodes_without_whole_blocks():
    llm = tiny_llm()
    method = method_of(llm, "LowConfidence", {"threshold": 0.8, "block_size": 8})
    assert method.label == "threshold(threshold=0.8, comparator=gt, block_length=8)"
    assert llm.generate([[7]], method, gen_length=16)[0].canvas_ids
