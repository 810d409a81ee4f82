"""Golden decodes of the methods' own published code, token for token and forward for forward.

Golden forwards that committed nothing (the reference looks whether the block is full only after one more
cached forward) are not made here: tokens and steps are equal without them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import trace_of

from unmask import LLM

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = FIXTURES / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def cases_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def golden_steps(case):
    """(position, token) pairs of every forward; a position that was masked again has the mask's id."""
    prompt = len(case["prompt_ids"])
    return [
        sorted((position + prompt, token) for position, token in step) for step in case["steps"]
    ]


def steps_of(output, mask_id=2042):
    return [
        sorted([*pairs, *((position, mask_id) for position in step.remasked)])
        for pairs, step in zip(trace_of(output), output.trace, strict=True)
    ]


def check(case, output):
    assert output.canvas_ids == case["prompt_ids"] + case["final_ids"]
    assert len(output.trace) == output.num_forwards
    assert all(step.committed or step.inserted or step.appended for step in output.trace)
    if "vocab_sizes" in case:
        assert [int(step.notes["vocab_size"]) for step in output.trace] == case["vocab_sizes"]
    if "steps" not in case:
        assert output.num_forwards == case["num_forwards"]
        return
    assert len(case["steps"]) == case["num_forwards"]
    assert steps_of(output) == [step for step in golden_steps(case) if step]


def run(llm, cases, call):
    prompts = [case["prompt_ids"] for case in cases]
    if "frequencies" in call:
        call = call | {"frequencies": str(FIXTURES / call["frequencies"])}
    return llm.generate(prompts, stop_at_eos=False, return_trace=True, **call)


def by_call(cases):
    groups: dict[str, list] = {}
    for case in cases:
        groups.setdefault(json.dumps(case["call"]), []).append(case)
    return [(json.loads(call), group) for call, group in groups.items()]


def test_the_golden_files_of_this_slice_are_here():
    assert len(FILES) == 30
    assert {name.split("_")[0] for name in FILES} == {
        *("llada", "fastdllm", "d2", "pc", "pcrepo", "klass", "wino", "daedal", "prophet", "cadllm")
    }


def two_of_each_method():
    """Return the names of all files; from the third of a method on they are slow."""
    seen = Counter()
    for name in FILES:
        method = name.split("_")[0]
        seen[method] += 1
        yield name if seen[method] <= 2 else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", list(two_of_each_method()))
def test_two_golden_cases_decode_as_published_in_one_batch(name, golden_llm):
    cases = [case for case in cases_of(name) if case["call"].get("gen_length", 64) == 64]
    cases = sorted(cases, key=lambda case: "steps" not in case)[:2]
    assert len({len(case["prompt_ids"]) for case in cases}) == 2 or name == "d2_cache_dllm"
    for case, output in zip(cases, run(golden_llm, cases, cases[0]["call"]), strict=True):
        check(case, output)


@pytest.mark.parametrize(
    "name", ["fastdllm_nocache_thr0.9", "fastdllm_prefix_factor1", "fastdllm_dual_thr0.9"]
)
def test_a_golden_case_decodes_as_published_alone(name, golden_llm):
    case = cases_of(name)[2]
    check(case, run(golden_llm, [case], case["call"])[0])


def test_an_empty_forward_of_the_reference_is_all_that_is_left_out(golden_llm):
    """Where the reference's forwards all commit something, ours are exactly as many."""
    case = cases_of("fastdllm_dual_thr0.9")[0]
    assert all(case["steps"])
    assert run(golden_llm, [case], case["call"])[0].num_forwards == case["num_forwards"]
    case = cases_of("fastdllm_dual_thr0.9")[2]
    assert case["steps"].count([]) == 1
    assert run(golden_llm, [case], case["call"])[0].num_forwards == case["num_forwards"] - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_golden_cases_decode_as_published_in_batches(name, golden_llm):
    for call, cases in by_call(cases_of(name)):
        for case, output in zip(cases, run(golden_llm, cases, call), strict=True):
            check(case, output)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_golden_cases_decode_as_published_alone(name, golden_llm):
    for case in cases_of(name):
        check(case, run(golden_llm, [case], case["call"])[0])


RUNS = json.loads((FIXTURES / "parity" / "llada" / "decode" / "decode.json").read_text())["runs"]


@pytest.fixture(scope="module")
def decoded(parity_folder):
    return load_file(parity_folder("llada") / "decode" / "decode.safetensors")


@pytest.fixture(scope="module")
def parity_llm(parity_model):
    return LLM(parity_model("llada"))


def call_of(run_name):
    """The arguments of `generate` for a run of LLaDA's or Fast-dLLM's own sampler."""
    knobs = {
        k: v for k, v in RUNS[run_name].items() if k not in ("nfe", "stable_under_2e-5_logit_noise")
    }
    cache = next((name for name in ("prefix", "dual") if name in run_name), "none")
    if "threshold" in knobs:
        del knobs["steps"]  # the threshold rule ignores the quota
        return {"decoder": "threshold", "cache": cache, **knobs}
    return {"decoder": "vanilla", "cache": cache, **knobs}


def test_every_run_of_the_samplers_is_covered():
    assert len(RUNS) == 11
    assert {name.split(".")[0] for name in RUNS} == {"gsai", "fast"}


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("gsai.")])
def test_lladas_own_sampler_gives_the_same_tokens_for_a_padded_batch(name, decoded, parity_llm):
    """Padded prompts are given as what they are: shorter prompts."""
    prompts, real = decoded["prompt"], decoded["attention_mask"].bool()
    assert not real.all()
    given = [row[mask].tolist() for row, mask in zip(prompts, real, strict=True)]
    outputs = parity_llm.generate(given, stop_at_eos=False, **call_of(name))
    width = prompts.shape[1]
    for row, (prompt, output) in enumerate(zip(given, outputs, strict=True)):
        assert output.canvas_ids == prompt + decoded[name][row, width:].tolist(), f"row {row}"
        assert output.num_forwards == RUNS[name]["steps"]


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("fast.")])
def test_fast_dllms_own_sampler_gives_the_same_tokens(name, decoded, parity_llm):
    prompt = decoded["prompt"][0][decoded["attention_mask"][0].bool()].tolist()
    output = parity_llm.generate([prompt], stop_at_eos=False, **call_of(name))[0]
    width = decoded["prompt"].shape[1]
    assert output.canvas_ids == prompt + decoded[name][0, width:].tolist()
    assert output.num_forwards == RUNS[name]["nfe"]
