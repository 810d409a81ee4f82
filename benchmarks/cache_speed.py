"""Overhead of a cached forward beyond its unavoidable matrix products.

    python benchmarks/cache_speed.py            (about 6 minutes on 2 cores; --quick: a small model)

Random weights in the LLaDA shape with the real vocabulary. Three things are timed in one run, forward by
forward:
- ours: `vanilla` through the engine, with each cache;
- bare: the same matrix products and nothing else (projections, feed-forward and attention products of
  the queried rows, the LM head of the asked rows), timed right after each forward of ours, with the
  plain weights and with the packed ones that `LLM` makes;
- reference: the loop of the published code: the network and the head on the whole canvas, a float64
  softmax over all of it, and the commits by quota.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unmask import LLM
from unmask.bench.environment import machine
from unmask.bench.overhead import random_llm
from unmask.models.transformer import Transformer

PROMPT, GEN, BLOCK, STEPS = 256, 128, 32, 64


class Bare:
    """The matrix products of a forward, on inputs allocated beforehand."""

    def __init__(self, model: Transformer) -> None:
        self.model, spec = model, model.spec
        self.x = torch.randn(PROMPT + GEN, spec.d_model)
        self.h = torch.randn(PROMPT + GEN, spec.d_ff)
        self.q = torch.randn(spec.num_heads, PROMPT + GEN, spec.head_dim)
        self.p = torch.randn(spec.num_heads, PROMPT + GEN, PROMPT + GEN)

    @torch.inference_mode()
    def __call__(self, queries: int, rows: int, *, packed: bool) -> float:
        """Time the products of queries and LM-head rows, with plain or packed weights."""
        x, h, q, p = self.x[:queries], self.h[:queries], self.q[:, :queries], self.p[:, :queries]
        began = time.perf_counter()
        for layer in self.model.layers:
            for linear in (layer.attn.q, layer.attn.k, layer.attn.v):
                product(linear, x, packed)
            q @ self.q.transpose(1, 2)
            p @ self.q
            product(layer.attn.o, x, packed)
            product(layer.ffn.gate, x, packed)
            product(layer.ffn.up, x, packed)
            product(layer.ffn.down, h, packed)
        product(self.model.lm_head, self.x[:rows], packed)
        return time.perf_counter() - began


def product(linear: torch.nn.Linear, x: torch.Tensor, packed: bool) -> None:
    """Compute one matrix product."""
    if packed:
        linear(x)
    else:
        F.linear(x, linear.weight)


@dataclass(frozen=True)
class Forward:
    """A forward of the engine: queries, LM-head rows, seconds, and those of the bare products."""

    queries: int
    rows: int
    seconds: float
    plain: float
    packed: float


def ours(llm: LLM, prompt: list[int], cache: str, bare: Bare) -> list[Forward]:
    """Time the forwards of the engine, each followed by its bare products."""
    canvas = llm.prompt_canvas(prompt, GEN)
    options = {"stop_at_eos": False, "steps": STEPS, "block_length": BLOCK}
    events = llm.stream(canvas, "vanilla", cache, **options)
    found, rows_before = list[Forward](), 0
    while True:
        began = time.perf_counter()
        event = next(events, None)
        took = time.perf_counter() - began
        if event is None:
            return found
        queries = event.sequence.changes[-1][1]
        rows = event.sequence.num_logit_rows - rows_before
        rows_before = event.sequence.num_logit_rows
        plain, packed = (bare(queries, rows, packed=kind) for kind in (False, True))
        found.append(Forward(queries, rows, took, plain, packed))


@torch.inference_mode()
def reference(model: Transformer, prompt: list[int]) -> list[float]:
    """Time each forward of a loop equivalent to the published ones."""
    mask_id = model.spec.mask_id
    x = torch.tensor([prompt + [mask_id] * GEN])
    seconds = []
    for block in range(GEN // BLOCK):
        end = PROMPT + (block + 1) * BLOCK
        for _ in range(STEPS // (GEN // BLOCK)):
            began = time.perf_counter()
            logits = model(x)
            tokens = logits.argmax(dim=-1)
            shares = F.softmax(logits.to(torch.float64), dim=-1)
            confidence = shares.gather(-1, tokens[..., None])[..., 0]
            confidence[x != mask_id] = -torch.inf
            confidence[:, end:] = -torch.inf
            chosen = confidence[0].topk(GEN // STEPS).indices
            x[0, chosen] = tokens[0, chosen]
            seconds.append(time.perf_counter() - began)
    return seconds


def _row(name: str, found: list[Forward]) -> str:
    """Return a line of the table."""
    plain = [item.seconds / item.plain for item in found]
    packed = [item.seconds / item.packed for item in found]
    sizes = [item.queries == PROMPT + GEN for item in found]
    cells = []
    for wanted in (True, False):
        own = [item.seconds for item, full in zip(found, sizes, strict=True) if full is wanted]
        cells.append(f"{statistics.median(own):.3f}" if own else "-")
    total = sum(item.seconds for item in found)
    return (
        f"| {name} | {len(found)} | {sum(item.queries for item in found)} | "
        f"{sum(item.rows for item in found)} | {total:.1f} | {cells[0]} | {cells[1]} | "
        f"{statistics.median(plain):.2f}, {max(plain):.2f} | "
        f"{statistics.median(packed):.2f}, {max(packed):.2f} |"
    )


def main(say: Callable[[str], None] = print) -> None:
    """Run all timings and print the table."""
    parser = argparse.ArgumentParser(description="forwards of caches beside their matrix products")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--caches", default="none,prefix,dual,vicinity,dkv,d2cache,dllm")
    wanted = parser.parse_args()
    vocabulary, width, layers = (4096, 128, 2) if wanted.quick else (126464, 1024, 8)
    llm = random_llm(vocabulary, width, layers, torch.float32, head_width=64)
    model, bare = llm.model, Bare(llm.model)
    prompt = torch.randint(0, 1000, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    for cache in ("none", "dual"):  # warm up
        for event in llm.stream(
            llm.prompt_canvas(prompt, 32), "vanilla", cache, block_length=8, steps=8
        ):
            bare(event.sequence.changes[-1][1], 8, packed=True)
    where = machine("cpu")
    say(
        f"{where['processor']}, {where['num_threads']} threads, load {where['load_average']}, torch "
        f"{where['torch']}; prompt {PROMPT}, gen {GEN}, block {BLOCK}, {STEPS} steps, fp32\n"
    )
    say(
        "| cache | forwards | queries | head rows | seconds | a full forward | another | of bare: median, "
        "worst | of bare, packed |\n|---|---|---|---|---|---|---|---|---|"
    )
    totals = {}
    for cache in wanted.caches.split(","):
        found = ours(llm, prompt, cache, bare)
        totals[cache] = sum(item.seconds for item in found)
        say(_row(cache, found))
    seconds = reference(model, prompt)
    totals["reference"] = sum(seconds)
    say(
        f"| reference-style loop | {len(seconds)} | | | {sum(seconds):.1f} | "
        f"{statistics.median(seconds):.3f} | - | - | - |"
    )
    for name in ("none", "reference"):
        say(f"\ndual against {name}: {totals[name] / totals['dual']:.1f}x")


if __name__ == "__main__":
    main()
