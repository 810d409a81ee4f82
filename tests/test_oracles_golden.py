"""The naive renderings in `oracles/` against golden decodes of the methods' own published code.

They are the judges of our decoders, so they are judged by something else than us.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import dream, eb_sampler, klass, pc_sampler, prior, prophet
from oracles.network import Network
from safetensors.torch import load_file
from tiny import trace_of

from unmask.selection import certainty_density

FIXTURES = Path(__file__).parent / "fixtures"


def pc_sampler_decode(frequencies, clip_alpha, **call):
    table = json.loads((FIXTURES / frequencies).read_text())
    counts = {int(token): count for token, count in table["p_baseline_dict"].items()}
    return pc_sampler.decode(alpha=clip_alpha, counts=counts, total=table["num_token"], **call)


def prophet_decode(compat, constraints=None, **call):
    assert compat, "the gap is of raw logits"
    given = {int(offset): token for offset, token in (constraints or {}).items()}
    return prophet.decode(constraints=given, **call)


def prior_decode(remasking, **call):
    assert remasking == "low_confidence"
    return prior.decode(**call)


ORACLES = {
    "pc_l0.25_a10": pc_sampler_decode,
    "pc_l0_a10_b32": pc_sampler_decode,
    "pcrepo_eb_g0.1": eb_sampler.decode,
    "klass_gsm8k": klass.decode,
    "prophet_ans36": prophet_decode,
    "prophet_cons40": prophet_decode,
    "d2_sigma10": prior_decode,
}


def cases_of(name):
    return json.loads((FIXTURES / "golden" / f"{name}.json").read_text())["cases"]


def logits_of(model):
    return lambda ids: model(torch.tensor([ids]))[0].double()


def ids_of(trace):
    """The tokens in the order of their positions: the generated part, if each was committed once."""
    commits = sorted(commit for step in trace for commit in step)
    assert len({position for position, _ in commits}) == len(commits)
    return [token for _, token in commits]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param(name, index, marks=[pytest.mark.slow] if index > 1 else [])
        for name in ORACLES
        for index in range(len(cases_of(name)))
    ],
)
def test_an_oracle_decodes_as_published(name, index, golden_llm):
    case = cases_of(name)[index]
    call = {key: value for key, value in case["call"].items() if key != "decoder"}
    mask_id = golden_llm.model.spec.mask_id
    trace = ORACLES[name](
        logits_fn=logits_of(golden_llm.model),
        prompt=case["prompt_ids"],
        mask_id=mask_id,
        forbidden={mask_id},
        **call,
    )
    given = {int(offset) for offset in call.get("constraints", ())}
    assert ids_of(trace) == [id_ for at, id_ in enumerate(case["final_ids"]) if at not in given]
    if "steps" in case:
        start = len(case["prompt_ids"])
        golden = [
            sorted((start + position, token) for position, token in step) for step in case["steps"]
        ]
        assert trace == [step for step in golden if step]
    else:
        assert len(trace) == case["num_forwards"]


DREAM_RUNS = FIXTURES / "parity" / "dream" / "decode"


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_the_dream_oracle_decodes_as_dreams_own_sampler(alg, row, parity_model):
    """Row 1 was left-padded there; here it is what it is, a shorter prompt."""
    name = f"dream.{alg}_padded"
    call = json.loads((DREAM_RUNS / "decode.json").read_text())["runs"][name]
    tensors = load_file(DREAM_RUNS / "decode.safetensors")
    prompt = tensors["prompt"][row][tensors["attention_mask"][row].bool()].tolist()
    model = parity_model("dream")
    assert call["temperature"] == 0
    trace = dream.decode(
        logits_of(model),
        prompt,
        call["max_new_tokens"],
        steps=call["steps"],
        alg=alg,
        eps=call["eps"],
        mask_id=model.spec.mask_id,
        forbidden={model.spec.mask_id},
        shift=True,
    )
    assert ids_of(trace) == tensors[name][row, tensors["prompt"].shape[1] :].tolist()


@pytest.mark.parametrize(
    ("length", "steps", "counts"),
    [
        (64, 64, [0] + [1] * 62 + [2]),
        (256, 256, [0] + [1] * 254 + [2]),
        (64, 32, [1] + [2] * 30 + [3]),
        (64, 16, [3] + [4] * 14 + [5]),
    ],
)
def test_dreams_schedule_starts_with_too_few_and_ends_with_the_rest(length, steps, counts):
    left, made = length, []
    for t in range(steps):
        made.append(dream.quota(left, t, steps, 1e-3))
        left -= made[-1]
    assert made == counts


def test_the_density_of_an_empty_canvas_is_the_published_one():
    found = prior.density([False] * 256, 10.0)
    assert found[0] == pytest.approx(0.48, abs=5e-3)
    assert found == sorted(found, reverse=True)
    assert prior.density([True] * 64, 1.0) == pytest.approx([1.0] * 64)


def published_density(known: list[bool], sigma: float) -> list[float]:
    """The definition in the published code: a float32 transform of six times the length."""
    size = len(known)
    line = [1.0] * size + [float(flag) for flag in known] + [float(known[-1])] * size
    distance = torch.cat((torch.arange(3 * size), torch.arange(-3 * size, 0))).float()
    kernel = torch.fft.fft(torch.exp(-(distance**2) / (2 * sigma**2)))
    spread = torch.fft.ifft(torch.fft.fft(torch.tensor(line + [0.0] * (3 * size))) * kernel).real
    return (spread[size : 2 * size] / kernel[0].real).tolist()


@pytest.mark.parametrize("sigma", [0.5, 3.0, 10.0, 100.0, 1e4, 1e6])
@pytest.mark.parametrize("size", [1, 2, 32, 100])
def test_the_density_is_the_published_one_at_every_width(size, sigma):
    pattern = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.4
    for known in ([False] * size, [True] * size, pattern.tolist(), (~pattern).tolist()):
        found = prior.density(known, sigma)
        assert found == pytest.approx(published_density(known, sigma), abs=2e-6)
        ours = certainty_density(np.array(known), sigma)
        assert ours.tolist() == pytest.approx(found, rel=1e-12, abs=1e-300)


FLOAT32_EPS = 2.0**-23


def other_numbers(prompt_ids):
    """A prompt with other digits, whose tokens are 16 to 24."""
    return [16 + (id_ + i) % 9 if 16 <= id_ <= 24 else id_ for i, id_ in enumerate(prompt_ids)]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 2])
def test_guidance_commits_in_the_float64_order_where_float32_sees_ties(index, golden_llm):
    """LLaDA's code takes the softmax in float32: its choice differs where 1 - p is lost."""
    prompt = other_numbers(cases_of("llada_b32_sG_cfg1")[index]["prompt_ids"])
    wide, mask_id = Network(golden_llm.model), golden_llm.model.spec.mask_id
    options = {"block_length": 32, "steps": 32, "cfg_scale": 1.0, "gen_length": 32}
    out = golden_llm.generate([prompt], "vanilla", stop_at_eos=False, return_trace=True, **options)[
        0
    ]
    ids, open_ = prompt + [mask_id] * 32, list(range(len(prompt), len(prompt) + 32))
    for step in out.trace:
        hidden = [mask_id] * len(prompt) + ids[len(prompt) :]
        uncond = wide.uncached(hidden)
        logits = uncond + 2 * (wide.uncached(ids) - uncond)
        logits[:, mask_id] = -torch.inf
        best = logits.max(dim=-1)
        doubt = {
            p: float(
                torch.exp(logits[p].scatter(0, best.indices[p], -torch.inf) - best.values[p]).sum()
            )
            for p in open_
        }
        ours = step.committed[0]
        first = min(open_, key=lambda p: (doubt[p], p))
        assert (ours.position, ours.token) == (first, int(best.indices[first]))
        narrow = torch.softmax(logits.float(), dim=-1).amax(dim=-1)
        published = max(open_, key=lambda p: (float(narrow[p]), -p))
        assert published == first or abs(doubt[published] - doubt[first]) < FLOAT32_EPS
        ids[first] = ours.token
        open_.remove(first)


@pytest.mark.slow
def test_the_entropy_bound_holds_on_other_prompts(golden_llm):
    call = cases_of("pcrepo_eb_g0.1")[0]["call"]
    knobs = {key: value for key, value in call.items() if key != "decoder"}
    mask_id = golden_llm.model.spec.mask_id
    for case in cases_of("pcrepo_eb_g0.1")[:4]:
        prompt = other_numbers(case["prompt_ids"])
        trace = eb_sampler.decode(
            Network(golden_llm.model).uncached,
            prompt,
            mask_id=mask_id,
            forbidden={mask_id},
            **knobs,
        )
        out = golden_llm.generate(
            [prompt], "eb_sampler", stop_at_eos=False, return_trace=True, **knobs
        )[0]
        assert trace_of(out) == trace
