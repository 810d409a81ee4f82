"""Block-causal families decode as their own samplers do, cached, padded and in blocks of their own."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import KNOWN, MASK, VOCAB, confidences_of, tiny_llm, trace_of, want

from unmask import LLM, decoders
from unmask.errors import ConfigError
from unmask.method import MethodSpec, Source
from unmask.models.spec import ExpertSpec

LLADA2 = {
    "v20.static": ("llada2", {"block_steps": 16}),
    "v20.threshold": ("llada2", {"threshold": 0.1, "block_steps": 16}),
    "v20.steps4": ("llada2", {"block_steps": 4}),
    "v21.static": ("llada2_1", {"edit_threshold": 0.12, "max_post_edit_steps": 4}),
    "v21.threshold": (
        "llada2_1",
        {"threshold": 0.1, "edit_threshold": 0.12, "max_post_edit_steps": 4},
    ),
}
SDAR = {
    "sdar.sequential": (4, {"remasking": "sequential", "block_steps": 4, "whole_blocks": True}),
    "sdar.sequential2": (4, {"remasking": "sequential", "block_steps": 2, "whole_blocks": True}),
    # top_k=1 makes SDAR's confidence 1 everywhere, so its threshold passes all
    "sdar.dynamic_all": (4, {"preset": "sdar", "threshold": 0.0, "block_steps": 4}),
    "sdar.sequential_block8": (
        8,
        {"remasking": "sequential", "block_steps": 8, "whole_blocks": True},
    ),
}
CACHES = ("none", "block_causal", "auto")
OTHERS = [[7, 8, 9], list(range(100, 127))]
"""Prompts of other lengths that share the batch."""


@pytest.fixture
def llm_of(parity_model):
    """A family's LLM whose blocks are of this size; the fixtures' mask id stands in no config."""

    def get(family, block_size):
        model = copy(parity_model(family))
        model.spec = replace(model.spec, mask_id=1004, block_size=block_size)
        return LLM(model)

    return get


def reference(parity_folder, family, name):
    values = load_file(parity_folder(family) / "decode" / "decode.safetensors")
    return values["prompt"][0].tolist(), values[name][0].tolist()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LLADA2)
def test_llada2_decodes_as_its_own_sampler(name, cache, llm_of, parity_folder):
    prompt, wanted = reference(parity_folder, "llada2_moe", name)
    preset, knobs = LLADA2[name]
    out = llm_of("llada2_moe", 16).generate(
        [prompt], preset=preset, cache=cache, gen_length=40, stop_at_eos=False, **knobs
    )[0]
    assert out.canvas_ids == prompt + wanted
    assert out.num_forced == 0


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", SDAR)
def test_sdar_decodes_as_its_own_sampler(name, cache, llm_of, parity_folder):
    prompt, wanted = reference(parity_folder, "sdar", name)
    block_size, knobs = SDAR[name]
    out = llm_of("sdar", block_size).generate(
        [prompt], cache=cache, gen_length=24, stop_at_eos=False, **knobs
    )[0]
    assert out.canvas_ids == wanted[: 13 + 24], "the reference returns its surplus too"
    assert out.num_forced == 0


@pytest.mark.parametrize("cache", ["none", "block_causal"])
@pytest.mark.parametrize("name", ["v20.static", "v20.threshold", "v21.static"])
def test_llada2_decodes_so_beside_prompts_of_other_lengths(name, cache, llm_of, parity_folder):
    prompt, wanted = reference(parity_folder, "llada2_moe", name)
    preset, knobs = LLADA2[name]
    prompts = [OTHERS[0], prompt, OTHERS[1]]
    outs = llm_of("llada2_moe", 16).generate(
        prompts, preset=preset, cache=cache, gen_length=40, stop_at_eos=False, **knobs
    )
    assert outs[1].canvas_ids == prompt + wanted
    assert [len(out.canvas_ids) for out in outs] == [3 + 40, 13 + 40, 27 + 40]


@pytest.mark.parametrize("cache", ["none", "block_causal"])
@pytest.mark.parametrize("name", ["sdar.sequential2", "sdar.dynamic_all"])
def test_sdar_decodes_so_beside_prompts_of_other_lengths(name, cache, llm_of, parity_folder):
    prompt, wanted = reference(parity_folder, "sdar", name)
    block_size, knobs = SDAR[name]
    outs = llm_of("sdar", block_size).generate(
        [OTHERS[1], OTHERS[0], prompt], cache=cache, gen_length=24, stop_at_eos=False, **knobs
    )
    assert outs[2].canvas_ids == wanted[: 13 + 24]


# The rules, against a plain loop over whole forwards


def inside(trace, end):
    """What each forward commits of the answer, without the surplus and the forwards of it alone."""
    kept = [[item for item in step if item[0] < end] for step in trace]
    return [step for step in kept if step]


def naive(llm, prompt, gen_length, *, length, tau, least=None):
    """Forward by forward, which (position, token) LLaDA2.0's rule commits, without any cache."""
    spec = llm.spec
    ids = list(prompt) + [spec.mask_id] * gen_length
    open_ = [False] * len(prompt) + [True] * gen_length
    trace, forbidden = [], llm.vocabulary.forbidden
    for block in range(len(prompt) // length, -(-len(ids) // length)):
        step, inside = 0, range(block * length, min((block + 1) * length, len(ids)))
        while masked := [position for position in inside if open_[position]]:
            shares = llm.model(torch.tensor([ids]))[0].double().softmax(-1)
            shares[:, forbidden] = 0  # never proposed, but the confidence stays the model's own
            shares = shares.float()  # where near-certain tokens are certain, as in the references
            if spec.shift_logits:
                shares = torch.cat((shares[:1], shares[:-1]))
            top = shares.max(-1)
            sure = {position: float(top.values[position]) for position in masked}
            chosen = [position for position in masked if sure[position] > tau]
            need = 1 if least is None or step >= len(least) else least[step]
            if len(chosen) < min(need, len(masked)):
                chosen = sorted(masked, key=lambda position: -sure[position])[:need]
            trace.append(sorted((position, int(top.indices[position])) for position in chosen))
            for position, token in trace[-1]:
                ids[position], open_[position] = token, False
            step += 1
    return trace


def fast_dllm_v2(llm, prompt, gen_length, *, small, tau):
    """Forward by forward, what Fast-dLLM v2's sampler commits, in its own terms.

    The text grows by whole blocks, of which the first begins with the prompt's tail. A forward over a block
    that is full says the next block's first token; sub-blocks follow from left to right, and inside one all
    tokens above tau and the surest are committed. The forward sees nothing beyond its block.
    """
    size, trace = llm.spec.block_size, []

    def shares(text):
        rows = llm.model(torch.tensor([text]))[0].softmax(-1)
        rows[:, llm.vocabulary.forbidden] = 0
        return rows

    text = list(prompt)
    end = len(prompt) + gen_length
    while len(text) < end:
        if len(text) % size == 0:
            text.append(int(shares(text)[-1].argmax()))
            trace.append([(len(text) - 1, text[-1])])
        block = range(len(text) // size * size, (len(text) // size + 1) * size)
        is_open = {position: position >= len(text) for position in block}
        text += [llm.spec.mask_id] * (block.stop - len(text))
        for first in range(block.start, block.stop, small):
            while masked := [
                position for position in range(first, first + small) if is_open[position]
            ]:
                rows = shares(text)[[position - 1 for position in masked]]
                best = rows.max(-1)
                chosen = (best.values > tau).tolist()
                chosen[int(best.values.argmax())] = True
                trace.append([])
                for position, token, is_chosen in zip(
                    masked, best.indices.tolist(), chosen, strict=True
                ):
                    if is_chosen:
                        text[position], is_open[position] = token, False
                        trace[-1].append((position, token))
                if block.stop >= end and not any(
                    is_open[position] for position in block if position < end
                ):
                    return trace
    return trace


@pytest.mark.parametrize("cache", ["none", "block_causal"])
@pytest.mark.parametrize("tau", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("prompt", [[7, 8, 9], [5] * 16, list(range(21))], ids=len)
def test_fast_dllm_v2_decodes_sub_blocks_and_each_first_token_alone(prompt, tau, cache):
    llm = tiny_llm("dream", seed=2, sure=6.0, block_size=16)
    out = llm.generate(
        [prompt, [1]],
        cache=cache,
        gen_length=30,
        stop_at_eos=False,
        return_trace=True,
        preset="fast_dllm_v2",
        block_length=4,
        threshold=tau,
    )[0]
    wanted = fast_dllm_v2(llm, prompt, 30, small=4, tau=tau)
    assert inside(trace_of(out), len(prompt) + 30) == inside(wanted, len(prompt) + 30)
    assert any(len(step) > 1 for step in wanted) == (tau < 1)


CERTAIN = {"llada2": {"block_steps": 4}, "sdar": {"block_steps": 4}, "fast_dllm_v2": {}}


@pytest.mark.parametrize("preset", CERTAIN)
def test_no_certainty_passes_a_threshold_of_one_in_the_families_own_samplers(preset):
    """They ask for more than the threshold; Fast-dLLM for as much."""
    llm = want(tiny_llm("llada", seed=2, block_size=8), 7, by=200.0)
    options = {"gen_length": 16, "stop_at_eos": False, "return_trace": True, "threshold": 1.0}
    own = llm.generate([[1] * 8], preset=preset, **options, **CERTAIN[preset])[0]
    assert set(confidences_of(own)) == {1.0}
    most = {"llada2": 2, "sdar": 2, "fast_dllm_v2": 1}[preset]
    assert {len(step) for step in trace_of(own)} == {most}
    other = llm.generate([[1] * 8], preset=preset, comparator="ge", **options, **CERTAIN[preset])[0]
    assert other.num_forwards < own.num_forwards


@pytest.mark.parametrize(
    ("gen_length", "per_forward"), [(2, [4, 4]), (3, [3, 3, 2]), (4, [2] * 4), (8, [1] * 8)]
)
def test_llada2_takes_no_more_forwards_a_block_than_the_answer_has_tokens(gen_length, per_forward):
    llm = tiny_llm("llada", seed=4, block_size=8)
    knobs = {"gen_length": gen_length, "threshold": 1.0, "stop_at_eos": False, "return_trace": True}
    out = llm.generate([[5] * 8], preset="llada2", **knobs)[0]
    wanted = naive(llm, [5] * 8, 8, length=8, tau=1.0, least=per_forward)
    assert inside(trace_of(out), 8 + gen_length) == inside(wanted, 8 + gen_length)
    free = llm.generate([[5] * 8], preset="llada2", minimal_topk=None, **knobs)[0]
    assert free.num_forwards >= out.num_forwards


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(("steps", "least"), [(2, [4, 4]), (3, [3, 3, 2]), (8, [1] * 8)])
def test_a_quota_under_the_threshold_is_that_of_a_whole_block(family, steps, least):
    llm = tiny_llm(family, seed=4, block_size=8)
    for prompt in ([7, 8, 9], [5] * 15, [1] * 8):
        out = llm.generate(
            [prompt],
            preset="llada2",
            threshold=0.6,
            block_steps=steps,
            whole_blocks=False,
            gen_length=21,
            stop_at_eos=False,
            return_trace=True,
        )[0]
        assert trace_of(out) == naive(llm, prompt, 21, length=8, tau=0.6, least=least)


def test_blocks_of_a_block_causal_model_end_where_the_models_do():
    llm = tiny_llm(block_size=8)
    for prompt in ([7] * 3, [5] * 8, [1] * 13):
        out = llm.generate(
            [prompt], "vanilla", gen_length=22, stop_at_eos=False, return_trace=True
        )[0]
        blocks = [position // 8 for step in trace_of(out) for position, _ in step]
        assert blocks == sorted(blocks)


def test_sequential_remasking_goes_from_left_to_right():
    out = tiny_llm().generate(
        [[7, 8]],
        remasking="sequential",
        gen_length=12,
        block_length=6,
        block_steps=2,
        stop_at_eos=False,
        return_trace=True,
    )[0]
    positions = [[position for position, _ in step] for step in trace_of(out)]
    assert positions == [[2, 3, 4], [5, 6, 7], [8, 9, 10], [11, 12, 13]]


EXPERTS = ExpertSpec(
    num_experts=6, num_chosen=2, d_ff=24, score="softmax", renormalize=False, dense_layers=(0,)
)
NETWORKS = {
    "llada2": (
        "llada",
        {"experts": EXPERTS, "qk_norm": True, "rotary_dim": 4, "rope_fp32": False},
    ),
    "sdar": ("llada", {"qk_norm": True, "norm_fp32": True, "num_kv_heads": 2}),
    "fast_dllm_v2": ("dream", {}),
}
"""The families' networks, tiny and block-causal."""
KNOBS = {
    "threshold": {"threshold": 0.3},
    "joint_threshold": {"threshold": 0.3, "edit_threshold": 0.2, "max_post_edit_steps": 3},
    "wino": {"wide_in_thres": 0.2, "narrow_out_thres": 0.6},
    "daedal": {"initial_gen_length": 8, "max_gen_length": 16},
}
"""Of decoders that would do little with their defaults."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("decoder", decoders.names())
def test_every_decoder_decodes_the_same_with_the_exact_cache(decoder, network):
    family, changes = NETWORKS[network]
    llm = tiny_llm(family, seed=3, block_size=4, **changes)
    knobs = dict(KNOBS.get(decoder, {}))
    if decoder != "daedal":
        knobs["gen_length"] = 14
    plain, cached = (
        llm.generate([[7, 8, 9], [1, 2]], decoder, cache, return_trace=True, **knobs)
        for cache in ("none", "block_causal")
    )
    for one, other in zip(plain, cached, strict=True):
        assert trace_of(one) == trace_of(other)
        assert one.canvas_ids == other.canvas_ids
        assert one.num_forced == other.num_forced == 0


SHARED = ("dream", "joint_threshold", "klass", "speculative", "threshold", "wino")
"""`test_properties.py` has all decoders on bidirectional dense networks; these differ most."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("decoder", SHARED)
def test_a_row_does_not_depend_on_its_neighbors_in_any_network(decoder, network):
    family, changes = NETWORKS[network]
    llm = tiny_llm(family, seed=5, block_size=4, **changes)
    prompts = [[7, 8, 9], [1, 2], [5] * 6]
    options = {"gen_length": 10, "return_trace": True, **KNOBS.get(decoder, {})}
    together = llm.generate(prompts, decoder, "auto", **options)
    for prompt, row in zip(prompts, together, strict=True):
        alone = llm.generate([prompt], decoder, "auto", **options)[0]
        assert trace_of(alone) == trace_of(row)
        assert alone.canvas_ids == row.canvas_ids


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("decoder", SHARED)
def test_the_mask_and_padded_rows_are_never_proposed_in_any_network(decoder, network):
    family, changes = NETWORKS[network]
    llm = want(tiny_llm(family, seed=5, block_size=4, **changes), MASK, *range(KNOWN, VOCAB))
    out = llm.generate([[7, 8, 9]], decoder, gen_length=10, **KNOBS.get(decoder, {}))[0]
    assert max(out.canvas_ids) < KNOWN
    assert MASK not in out.canvas_ids
    assert len(out.canvas_ids) == 13


@pytest.mark.parametrize("decoder", ["vanilla", "threshold", "joint_threshold"])
@pytest.mark.parametrize("gen_length", [1, 5, 6, 13])
def test_whole_blocks_are_a_longer_canvas_that_is_cut(decoder, gen_length):
    """To the answer's end it is the decode of the answer and surplus together."""
    llm, prompt = tiny_llm(seed=6, block_size=8), [7, 8, 9]
    surplus = -(3 + gen_length) % 8
    short, long = (
        llm.generate([prompt], decoder, gen_length=n, whole_blocks=whole, stop_at_eos=False)[0]
        for n, whole in ((gen_length, True), (gen_length + surplus, False))
    )
    assert short.canvas_ids == long.canvas_ids[: 3 + gen_length]
    assert short.num_forwards <= long.num_forwards
    assert short.num_forced == 0


# presets


@pytest.mark.parametrize(
    ("preset", "knobs"),
    [
        (
            "llada2",
            {"threshold": 0.95, "comparator": "gt", "block_steps": 32, "minimal_topk": 1},
        ),
        ("llada2_1", {"threshold": 0.95, "edit_threshold": 0.9, "max_post_edit_steps": 16}),
        ("sdar", {"threshold": 0.85, "comparator": "gt"}),
        (
            "fast_dllm_v2",
            {"block_length": 8, "threshold": 0.9, "comparator": "gt", "first_alone": True},
        ),
    ],
)
def test_a_preset_is_a_decoder_with_its_knobs(preset, knobs):
    llm = tiny_llm(block_size=8)
    out = llm.generate([[7]], gen_length=16, preset=preset)[0]
    decoder = "joint_threshold" if preset == "llada2_1" else "threshold"
    assert out == llm.generate([[7]], decoder, gen_length=16, whole_blocks=True, **knobs)[0]
    assert out.method.startswith(f"{decoder}(")
    (note,) = MethodSpec.parse(Source({"preset": preset})).notes
    assert (note.code, note.key) == ("preset", "preset")
    assert preset in note.message


def test_a_given_knob_wins_over_the_presets():
    llm = tiny_llm(block_size=8)
    out = llm.generate([[7]], "threshold", gen_length=16, preset="sdar", threshold=0.5)[0]
    assert out.method == "threshold(whole_blocks=True, threshold=0.5, comparator=gt)"


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"preset": "llada3"}, ("preset", "llada3", "llada2")),
        ({"preset": "sdar", "decoder": "wino"}, ("preset=sdar", "'threshold'", "'wino'")),
        ({"preset": "sdar", "steps": 4}, ("steps",)),
        ({"preset": "sdar"}, ("whole_blocks=True", "no blocks")),
        ({"decoder": "prophet", "inner": "threshold", "whole_blocks": True}, ("whole_blocks",)),
        ({"decoder": "threshold", "block_steps": 0}, ("block_steps=0",)),
        ({"decoder": "threshold", "minimal_topk": 1}, ("minimal_topk=1", "block_steps")),
        ({"decoder": "threshold", "block_steps": 2, "minimal_topk": 0}, ("minimal_topk=0",)),
        ({"decoder": "threshold", "comparator": ">"}, ("comparator", "ge", "gt")),
        ({"decoder": "threshold", "first_alone": True}, ("first_alone=True",)),
        ({"steps": 4, "block_steps": 4}, ("steps=4", "block_steps=4")),
        ({"block_steps": 0}, ("block_steps=0",)),
        ({"remasking": "sequential", "score": "margin"}, ("sequential", "margin")),
        ({"remasking": "sequential", "sigma": 3.0}, ("sequential", "sigma")),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused(knobs, words):
    with pytest.raises(ConfigError) as caught:
        tiny_llm().generate([[7]], gen_length=16, **knobs)
    for word in words:
        assert word in str(caught.value)
