"""Time of a decoding step on a GPU beside its floor, at the shapes of released models.

    python benchmarks/gpu_speed.py [CASE ...] [--device cuda] [--json FILE] [--quick] [--ab]

Without a CASE: all (`--list`). Weights are random and drawn on the device in bfloat16, so no checkpoint is
needed; the answer has 256 tokens after prompts of 100, and confidences are low, so that a step commits one
token of each row. Per case: median, best and worst time of a steady step (at most twice the positions of
the smallest), the time of a step that computes everything, and the floor: the weights read once at the
bandwidth of a copy, or their products at the rate of a large product, whichever takes longer. `fast_dllm`
is Fast-dLLM's dual-cache loop (arXiv:2505.22618, Algorithm 1) restated on the same network and weights:
float64 softmax over the vocabulary, a top-k for every row. cuDNN's attention, which makes a plan for every
new shape, is off; `--ab` adds runs with it, and without CUDA graphs. `--quick` shrinks every model to two
layers of width 64, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import LLM
from unmask.bench.environment import git_commit, machine
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState
from unmask.engine.static_step import captured
from unmask.engine.weight_forms import prepare_weights
from unmask.models.spec import ExpertSpec, ModelSpec
from unmask.models.transformer import Layer, Rotary, Transformer, attention

PROMPT, ANSWER, BLOCK = 100, 256, 32


def spec_of(
    vocab: int, width: int, layers: int, heads: int, kv: int, d_ff: int, **more: object
) -> ModelSpec:
    """Return the shape of a released model; the mask and the end token are the last two ids."""
    facts = {
        "family": "llada", "rope_theta": 5e5, "norm_eps": 1e-5, "max_length": 4096, "mask_id": vocab - 1,
        "eos_id": vocab - 2, "pad_id": vocab - 2, "head_dim": 128, "rope_fp32": True,
    }  # fmt: skip
    sizes = {
        "vocab_size": vocab, "d_model": width, "num_layers": layers, "num_heads": heads,
        "num_kv_heads": kv, "d_ff": d_ff,
    }  # fmt: skip
    return ModelSpec(**(facts | sizes | more))  # type: ignore[arg-type]


MODELS = {
    "llada-8b": spec_of(126464, 4096, 32, 32, 32, 12288),
    "dream-7b": spec_of(152064, 3584, 28, 28, 4, 18944, qkv_bias=True, shift_logits=True, rope_fp32=False),
    "sdar-8b": spec_of(151936, 4096, 36, 32, 8, 12288, qk_norm=True, norm_fp32=True, block_size=4),
    "llada-moe": spec_of(
        157184, 2048, 16, 16, 16, 1024, qk_norm=True, experts=ExpertSpec(64, 8, 1024, "softmax", False)
    ),
    "llada2-mini": spec_of(
        157184, 2048, 20, 16, 4, 5120, qk_norm=True, rotary_dim=64, block_size=32,
        experts=ExpertSpec(
            256, 8, 512, "sigmoid", True, scale=2.5, num_groups=8, num_chosen_groups=4, router_bias=True,
            in_fp32=True, d_shared=512, dense_layers=(0,),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, a cache and a batch; ragged: prompts of 20 to 180 tokens instead of equal ones."""

    model: str
    cache: str
    batch: int
    ragged: bool = False

    @property
    def name(self) -> str:
        """The case's name on the command line."""
        return f"{self.model}/{self.cache}/{self.batch}{'r' if self.ragged else ''}"


CASES = [
    Case("llada-8b", "dual", 1), Case("llada-8b", "dual", 16), Case("llada-8b", "dual", 16, ragged=True),
    Case("llada-8b", "vicinity", 1), Case("llada-8b", "none", 1), Case("llada-8b", "none", 16, ragged=True),
    Case("dream-7b", "dual", 1), Case("dream-7b", "dual", 16, ragged=True),
    Case("sdar-8b", "block_causal", 1), Case("sdar-8b", "block_causal", 16, ragged=True),
    Case("llada-moe", "dual", 1), Case("llada2-mini", "block_causal", 1),
]  # fmt: skip


def random_model(spec: ModelSpec, device: str, dtype: torch.dtype) -> Transformer:
    """Return a network whose weights are drawn on the device, in the form of a loaded model's."""
    with torch.device("meta"):
        model = Transformer(spec)
    model = model.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    prepare_weights(model, None, False, is_loaded=True)
    return model


def wait(device: str) -> None:
    """Return when the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Return the median time of `work()` after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def rates(device: str, dtype: torch.dtype, is_quick: bool) -> tuple[float, float]:
    """Return bytes a second of reading (a copy reads and writes) and products (FLOP) a second."""
    size, side = (1 << 24, 256) if is_quick else (1 << 30, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / seconds_of(lambda: target.copy_(source), device)
    a = torch.randn(side, side, device=device, dtype=dtype)
    return bandwidth, 2 * side**3 / seconds_of(lambda: a @ a, device)


def floor_s(model: Transformer, num_queries: int, bandwidth: float, flops: float) -> float:
    """Return the least time of a forward: its weights read once, or its products.

    Experts count with the expected number that `num_queries` tokens choose, if choices are even.
    """
    spec, size, work = model.spec, 0.0, 0.0
    for name, parameter in model.named_parameters():
        if name == "embed.weight" and not spec.tie_embeddings:
            continue
        share_read = share_used = 1.0
        if spec.experts is not None and ".experts." in name:
            share_used = spec.experts.num_chosen / spec.experts.num_experts
            share_read = 1 - (1 - share_used) ** num_queries
        size += share_read * parameter.numel() * parameter.element_size()
        work += 2 * share_used * parameter.numel() * num_queries
    return max(size / bandwidth, work / flops)


def prompts_of(case: Case, spec: ModelSpec) -> list[list[int]]:
    """Return seeded prompts."""
    generator = torch.Generator().manual_seed(1)
    lengths = [PROMPT] * case.batch
    if case.ragged:
        lengths = [20 + 160 * row // max(1, case.batch - 1) for row in range(case.batch)]
    return [
        torch.randint(0, spec.vocab_size - 8, (n,), generator=generator).tolist() for n in lengths
    ]


def our_steps(
    case: Case, model: Transformer, device: str, answer: int, has_graphs: bool = True
) -> Iterator[tuple[float, int]]:
    """Decode with the threshold rule and yield time and computed positions of every step."""
    llm = LLM(model)
    requests = [
        llm.request(prompt, "threshold", case.cache, gen_length=answer, stop_at_eos=False)
        for prompt in prompts_of(case, model.spec)
    ]
    sequences = [SequenceState.begin(request, row) for row, request in enumerate(requests)]
    batch = Scheduler(
        llm.make_runner(
            model,
            llm.vocabulary,
            max_rows=len(requests),
            max_positions=max(request.max_positions for request in requests),
            store=any(request.cache.stores for request in requests),
            features=any(request.cache.layered for request in requests),
            capture=captured if has_graphs else None,
        )
    )
    for sequence in sequences:
        batch.admit(sequence)
    while batch.active:
        wait(device)
        began = time.perf_counter()
        events = batch.step()
        wait(device)
        for event in events:
            if event.error is not None:
                raise event.error
        yield time.perf_counter() - began, batch.num_computed


class DualStore:
    """Keys and values of the whole canvas; a forward replaces those of its positions from `start` on."""

    def __init__(self, num_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.start = 0

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Run the block unchanged."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values, then attend to all that are stored."""
        end = self.start + k.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None or end - self.start > keys.shape[1] - 1:
            keys, values = k.clone(), v.clone()
            self.keys[layer], self.values[layer] = keys, values
        else:
            keys[:, self.start : end], values[:, self.start : end] = k, v
        return attention(q, keys.transpose(1, 2), values.transpose(1, 2), None)


@torch.inference_mode()
def fast_dllm_steps(
    case: Case, model: Transformer, device: str, answer: int
) -> Iterator[tuple[float, int]]:
    """Decode by Fast-dLLM's dual-cache loop and yield time and computed positions of every step."""
    spec = model.spec
    prompts = torch.tensor(prompts_of(replace(case, ragged=False), spec), device=device)
    x = torch.cat((prompts, torch.full((case.batch, answer), spec.mask_id, device=device)), dim=1)
    places = torch.arange(x.shape[1], device=device).expand_as(x)
    for first in range(prompts.shape[1], x.shape[1], BLOCK):
        store, last = DualStore(spec.num_layers), first + BLOCK
        is_full = True
        while is_full or bool((x[:, first:last] == spec.mask_id).any()):
            wait(device)
            began = time.perf_counter()
            begin, end = (0, x.shape[1]) if is_full else (first, last)
            store.start = begin
            hidden = model.hidden(x[:, begin:end], places[:, begin:end], backend=store)
            logits = model.head(hidden)
            if is_full:
                logits = logits[:, first:last]
            logits[..., spec.mask_id] = -torch.inf
            tokens = logits.argmax(-1)
            share = F.softmax(logits.to(torch.float64), dim=-1)
            confidence = share.gather(-1, tokens[..., None])[..., 0]
            is_open = x[:, first:last] == spec.mask_id
            confidence = torch.where(is_open, confidence, -torch.inf)
            chosen = torch.zeros_like(is_open)
            for row in range(case.batch):
                count = max(1, int((confidence[row] >= 0.9).sum()))
                chosen[row, confidence[row].topk(count).indices] = True
            x[:, first:last] = torch.where(chosen & is_open, tokens, x[:, first:last])
            wait(device)
            yield time.perf_counter() - began, case.batch * (end - begin)
            is_full = False


def summary(steps: list[tuple[float, int]]) -> dict[str, float]:
    """Return times in milliseconds of the steady steps, and of those that compute the most."""
    small, large = min(n for _, n in steps), max(n for _, n in steps)
    steady = sorted(1e3 * t for t, n in steps if n <= 2 * small)
    full = [1e3 * t for t, n in steps if n == large]
    return {
        "num_steps": len(steps), "queries": small, "median_ms": statistics.median(steady),
        "best_ms": steady[0], "worst_ms": steady[-1], "full_ms": statistics.median(full),
    }  # fmt: skip


def quick(spec: ModelSpec) -> ModelSpec:
    """Return the model at two layers of width 64 and 512 tokens."""
    experts = spec.experts
    if experts is not None:
        experts = replace(experts, d_ff=32, d_shared=min(32, experts.d_shared))
    return replace(
        spec, vocab_size=512, d_model=64, num_layers=2, num_heads=4, num_kv_heads=4 if spec.num_kv_heads ==
        spec.num_heads else 2, head_dim=16, d_ff=96, mask_id=511, eos_id=510, pad_id=510, experts=experts,
        rotary_dim=None if spec.rotary_dim is None else 8,
    )  # fmt: skip


def measure(
    case: Case, options: argparse.Namespace, known: tuple[float, float]
) -> list[dict[str, object]]:
    """Return a line for our steps, for those of Fast-dLLM's loop where it applies, and for cuDNN on."""
    spec = quick(MODELS[case.model]) if options.quick else MODELS[case.model]
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model, answer = random_model(spec, options.device, dtype), 64 if options.quick else ANSWER
    ways = {"unmask": (our_steps, False)}
    if options.ab and options.device.startswith("cuda"):
        ways["unmask, cuDNN attention"] = (our_steps, True)
        ways["unmask, no CUDA graphs"] = (partial(our_steps, has_graphs=False), False)
    if case.cache == "dual" and case.model == "llada-8b" and not case.ragged:
        ways["fast_dllm"] = (fast_dllm_steps, False)
    lines = []
    for way, (steps_of, has_cudnn) in ways.items():
        torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
        list(steps_of(case, model, options.device, BLOCK))  # warm up
        steps = list(steps_of(case, model, options.device, answer))
        line = {"case": case.name, "way": way, **summary(steps)}
        floor = 1e3 * floor_s(model, int(line["queries"]), *known)
        lines.append({**line, "floor_ms": floor, "ratio": line["median_ms"] / floor})
    del model
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return lines


def main() -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    for flag in ("--quick", "--ab", "--list"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    if options.list:
        print("\n".join(by_name))
        return
    unknown = [name for name in options.cases if name not in by_name]
    if unknown:
        sys.exit(f"error: unknown case {unknown[0]!r}; allowed: {', '.join(by_name)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: no CUDA device is visible; use --device cpu --quick to try the script")
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    known = rates(options.device, dtype, options.quick)
    facts = {**machine(options.device), "commit": git_commit()}
    print(
        f"{facts['accelerator'] or facts['processor']}, torch {facts['torch']}, {facts['commit']}"
    )
    print(f"copy {known[0] / 1e9:.0f} GB/s, product {known[1] / 1e12:.2f} TFLOP/s")
    columns = ("median_ms", "best_ms", "worst_ms", "full_ms", "floor_ms", "ratio")
    print(f"{'case':28} {'way':24} {'queries':>7}" + "".join(f"{name:>10}" for name in columns))
    lines = []
    for name in options.cases or by_name:
        for line in measure(by_name[name], options, known):
            lines.append(line)
            figures = "".join(f"{line[column]:10.2f}" for column in columns)
            print(f"{line['case']:28} {line['way']:24} {line['queries']:7}{figures}", flush=True)
    if options.json is not None:
        rate = {"copy_bytes_s": known[0], "product_flop_s": known[1]}
        options.json.write_text(
            json.dumps({"machine": facts, "rates": rate, "lines": lines}, indent=1)
        )


if __name__ == "__main__":
    main()
