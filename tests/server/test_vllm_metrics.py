"""The series that vLLM's benchmark and its Grafana dashboard read."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import gated_client
from tiny import tiny_llm

DASHBOARD = (
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_success_total",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:iteration_tokens_total_bucket",
)
PREFIX = "vllm:diffusion_num_"


@pytest.fixture
def client():
    with gated_client(tiny_llm(block_size=8)) as found:
        yield found


def numbers(client):
    """The sum of each series over its labels, but `le`: the last bucket is all."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.labels.get("le", "+Inf") == "+Inf":
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def ask(client, **body):
    body = {"prompt": [7, 8, 9], "ignore_eos": True, "decoder": "threshold", **body}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def bench(found):
    """Steps per canvas, and committed tokens per step, as `vllm bench serve` computes them."""
    steps = found[f"{PREFIX}denoising_steps_total"]
    committed = found[f"{PREFIX}committed_tokens_total"]
    canvases = committed / (found[f"{PREFIX}canvas_positions_total"] / steps)
    return (steps - canvases) / canvases, committed / (steps - canvases)


@pytest.mark.parametrize(
    ("threshold", "length", "per_canvas"), [(0, 13, 1.0), (1, 13, 13.0), (0, 1, 1.0)]
)
def test_vllms_benchmark_finds_the_forwards_of_a_canvas(client, threshold, length, per_canvas):
    """Without a cache a forward evaluates the whole answer, which is one canvas."""
    body = {"threshold": threshold, "max_tokens": length, "cache": "none", "block_length": 16}
    usage = ask(client, **body)["usage"]
    assert usage["num_forwards"] == per_canvas
    steps_per_canvas, per_step = bench(numbers(client))
    assert steps_per_canvas == pytest.approx(per_canvas)
    assert per_step == pytest.approx(length / per_canvas)


def test_vllms_benchmark_finds_the_forwards_of_blocks(client):
    usage = ask(client, threshold=0, max_tokens=21, cache="block_causal")["usage"]
    assert usage["num_forwards"] == 3
    per_step = bench(numbers(client))[1]
    assert 21 / per_step == pytest.approx(3, rel=0.1), "canvases also have keys of the block before"


def test_all_series_of_the_dashboard_are_there_and_agree(client):
    ask(client, threshold=0.3, max_tokens=16, n=2, temperature=1.0)
    ask(client, threshold=0, max_tokens=5, decoder="threshold")
    found = numbers(client)
    assert not [name for name in DASHBOARD if name not in found]
    assert found["vllm:request_success_total"] == 3
    for name in ("prefill", "decode", "inference"):
        assert found[f"vllm:request_{name}_time_seconds_count"] == 3
        assert found[f"vllm:request_{name}_time_seconds_sum"] >= 0
    parts = sum(found[f"vllm:request_{name}_time_seconds_sum"] for name in ("prefill", "decode"))
    assert parts == pytest.approx(found["vllm:request_inference_time_seconds_sum"])
    # intervals lie between the first and the last final tokens of each answer
    spent = found["vllm:request_decode_time_seconds_sum"]
    assert found["vllm:inter_token_latency_seconds_sum"] == pytest.approx(spent)
    assert found["vllm:request_params_max_tokens_sum"] == 16 + 16 + 5
    assert found["vllm:request_params_n_sum"] == 3
    assert found["vllm:request_max_num_generation_tokens_sum"] == 16 + 5
    assert found["vllm:iteration_tokens_total_count"] == found["unmask:forwards_total"]
    assert found["vllm:iteration_tokens_total_sum"] == found["unmask:computed_positions_total"]
