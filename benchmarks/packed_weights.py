"""Packed weights on the CPU: their products, their share of a forward, and forwards of few rows.

    python benchmarks/packed_weights.py [PART ...] [--rounds 15] [--quick]

Without a name, all parts (about fifteen minutes):
- products: plain against packed products, in float32 and bfloat16, for the LM head and the projections of
  a layer of width 1024 (goal in bfloat16: 1.4 times as fast with 1 to 64 rows);
- share: `vanilla` through the engine in bfloat16, and of each step the part that its bare packed products
  take, timed right after it (goal: 0.85);
- forward: a forward of one row of 1, 8 and 32 positions beside a hand-written one with the same packed
  products (goal: at most 1.15 of it), on the wide model and on the bundled one;
- answers: the bundled model's answers to 200 word problems with plain, packed and 8-bit weights;
- sampling: the largest of 126,464 logits by `topk` and `argmax`, and in two stages;
- int8: 8-bit products (`quantization="int8-dynamic"`) and torchao's against packed bfloat16 ones, with
  their errors (extra `quantize`), and a decode with layers as wide as an 8B's (goal: 1.3 times as fast).

All things compared run in turns in this process, on one thread; times are those of the processor, medians
of the rounds. The wide model is random: LLaDA's shape at width 1024, 8 layers, FFN 3072, 126,464 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unmask
from unmask import LLM
from unmask.bench.environment import machine
from unmask.bench.overhead import random_llm
from unmask.demo.tasks import check, held_out_set
from unmask.models.int8_linear import Int8Linear, use_int8_products
from unmask.models.packed_weights import PackedLinear
from unmask.models.quantize import NOT_QUANTIZED
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Rotary, Transformer
from unmask.sampling.largest import first_largest, largest_values

SHAPES = ((126464, 1024), (3072, 1024), (1024, 3072), (1024, 1024))
WIDE_SHAPES = ((4096, 4096), (12288, 4096), (4096, 12288))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CACHES = ("none", "prefix", "dual", "vicinity")
PROMPT, GEN, BLOCK, STEPS = 256, 64, 32, 32
SPEED_GOAL, SHARE_GOAL, FORWARD_GOAL, INT8_GOAL = 1.4, 0.85, 1.15, 1.3
ROWS_HINT = 32
Run = Callable[[], object]


def in_turns(runs: Sequence[Run], rounds: int) -> list[float]:
    """Return the median processor time of each function in milliseconds; the rounds call all in turns."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, seconds, strict=True):
            began = time.process_time()
            run()
            own.append(time.process_time() - began)
    return [1000 * statistics.median(own) for own in seconds]


def mark(value: float, goal: float, *, is_least: bool) -> str:
    """Return a figure, with a star where it reaches the goal."""
    is_good = value >= goal if is_least else value <= goal
    return f"{value:.2f}{'*' if is_good else ''}"


def table(columns: Sequence[object]) -> None:
    """Print the head of a table."""
    print(f"\n| {' | '.join(str(name) for name in columns)} |")
    print("|---" * len(columns) + "|", flush=True)


@torch.inference_mode()
def products(rounds: int, *, is_quick: bool) -> None:
    """Print the times of plain and packed products."""
    print(f"\n## Products: plain / packed ms (times as fast; * reaches {SPEED_GOAL} in bfloat16)")
    table(("matrix", "dtype", *(f"{rows} rows" for rows in ROWS)))
    for width_out, width_in in ((512, 256),) if is_quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            with torch.inference_mode(mode=False):
                plain = nn.Linear(width_in, width_out, bias=False).to(dtype).requires_grad_(False)
                packed = PackedLinear(plain)
            cells = []
            for rows in ROWS:
                x = torch.randn(rows, width_in, dtype=dtype)
                slow, fast = in_turns([lambda: plain(x), lambda: packed(x)], rounds)  # noqa: B023
                ratio = f"{slow / fast:.2f}"
                if dtype == torch.bfloat16:
                    ratio = mark(slow / fast, SPEED_GOAL, is_least=True)
                cells.append(f"{slow:.2f} / {fast:.2f} ({ratio})")
            name = str(dtype).removeprefix("torch.")
            print(f"| {width_out} x {width_in} | {name} | {' | '.join(cells)} |", flush=True)


class HandWritten:
    """A forward of one row with full attention, written out: packed products and as few passes as possible.

    Its matrices are packed here, query, key and value as one and gate and up as one. It computes what the
    model computes, in the model's dtype, on a canvas of one fixed length: the tables of RoPE are made once.
    """

    def __init__(self, model: Transformer) -> None:
        self.spec: ModelSpec = model.spec
        self.embed = model.embed.weight
        self.final = (model.norm.weight, pack(model.head_weight))
        self.layers = []
        for layer in model.layers:
            attn, ffn = layer.attn, layer.ffn
            self.layers.append(
                (
                    layer.attn_norm.weight,
                    pack(attn.q.weight, attn.k.weight, attn.v.weight),
                    pack(attn.o.weight),
                    layer.ffn_norm.weight,
                    pack(ffn.gate.weight, ffn.up.weight),
                    pack(ffn.down.weight),
                )
            )

    def prepare(self, ids: Tensor) -> Run:
        """Return the forward of these tokens `(T,)`, which returns their logits."""
        dtype = self.embed.dtype
        rotary = Rotary(torch.arange(len(ids)), self.spec, dtype)
        cos, sin = rotary.cos.to(rotary.dtype), rotary.sin.to(rotary.dtype)
        return lambda: self(ids, cos, sin)

    def __call__(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the logits `(T, V)`."""
        spec, width, eps = self.spec, (self.spec.d_model,), self.spec.norm_eps
        heads, each, half = spec.num_heads, spec.head_dim, spec.head_dim // 2
        x = F.embedding(ids, self.embed)
        for attn_norm, qkv, o, ffn_norm, gate_up, down in self.layers:
            all_heads = product(F.rms_norm(x, width, attn_norm, eps), qkv).view(-1, 3 * heads, each)
            qk, v = all_heads[:, : 2 * heads], all_heads[:, 2 * heads :]
            qk = (qk * cos).add_(qk.roll(half, -1) * sin).to(x.dtype)
            q, k, v = (part.transpose(0, 1)[None] for part in (qk[:, :heads], qk[:, heads:], v))
            out = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(len(ids), -1)
            x = x + product(out, o)
            gate, up = product(F.rms_norm(x, width, ffn_norm, eps), gate_up).chunk(2, -1)
            x = x + product(F.silu(gate).mul_(up), down)
        return product(F.rms_norm(x, width, self.final[0], eps), self.final[1])

    def bare(self, queries: int, head_rows: int, keys: int) -> Run:
        """Return the matrix products alone of a forward of so many queries, attention's included."""
        spec, dtype = self.spec, self.embed.dtype
        x, h = (
            torch.randn(queries, spec.d_model).to(dtype),
            torch.randn(queries, spec.d_ff).to(dtype),
        )
        inner = torch.randn(queries, spec.num_heads * spec.head_dim).to(dtype)
        q = torch.randn(spec.num_heads, queries, spec.head_dim).to(dtype)
        k = torch.randn(spec.num_heads, keys, spec.head_dim).to(dtype)
        p = torch.randn(spec.num_heads, queries, keys).to(dtype)

        def run() -> None:
            for _, qkv, o, _, gate_up, down in self.layers:
                product(x, qkv)
                q @ k.transpose(1, 2)
                p @ k
                product(inner, o)
                product(x, gate_up)
                product(h, down)
            product(x[:head_rows], self.final[1])

        return run


def pack(*weights: Tensor) -> Tensor:
    """Return matrices with one input as one packed matrix."""
    joined = torch.cat([weight.detach() for weight in weights])
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined, ROWS_HINT)
    return packed


def product(x: Tensor, packed: Tensor) -> Tensor:
    """Compute `x W^T` with a packed matrix."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return out


@torch.inference_mode(mode=False)
def wide_llm(dtype: torch.dtype, *, is_quick: bool) -> LLM:
    """Return the wide random model."""
    vocabulary, width, layers = (4096, 256, 2) if is_quick else (126464, 1024, 8)
    return random_llm(vocabulary, width, layers, dtype, head_width=64)


@torch.inference_mode()
def share(rounds: int, *, is_quick: bool) -> None:
    """Print the share of the bare products in each step of the engine, by cache."""
    llm = wide_llm(torch.bfloat16, is_quick=is_quick)
    bare = HandWritten(llm.model)
    prompt = torch.randint(0, 1000, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    print(
        f"\n## Share of the bare packed products in a bfloat16 step (* reaches {SHARE_GOAL}); prompt "
        f"{PROMPT}, gen {GEN}, block {BLOCK}, vanilla, {STEPS} steps"
    )
    table(("cache", "steps", "queries", "seconds", "share of all steps", "median", "smallest"))
    for cache in CACHES:
        ours, theirs, queries = list[float](), list[float](), 0
        for _ in range(max(1, rounds // 8)):
            canvas = llm.prompt_canvas(prompt, GEN)
            options = {"stop_at_eos": False, "steps": STEPS, "block_length": BLOCK}
            events, rows_before = llm.stream(canvas, "vanilla", cache, **options), 0
            while True:
                began = time.process_time()
                event = next(events, None)
                took = time.process_time() - began
                if event is None:
                    break
                count = event.sequence.trace[-1].num_queries
                rows = event.sequence.num_logit_rows - rows_before
                rows_before = event.sequence.num_logit_rows
                run = bare.bare(count, rows, PROMPT + GEN)
                run()
                began = time.process_time()
                run()
                theirs.append(time.process_time() - began)
                ours.append(took)
                queries += count
        shares = [bare_s / own for own, bare_s in zip(ours, theirs, strict=True)]
        print(
            f"| {cache} | {len(ours)} | {queries} | {sum(ours):.2f} | "
            f"{mark(sum(theirs) / sum(ours), SHARE_GOAL, is_least=True)} | "
            f"{statistics.median(shares):.2f} | {min(shares):.2f} |",
            flush=True,
        )


@torch.inference_mode()
def forward(rounds: int, *, is_quick: bool) -> None:
    """Print the times of forwards of few rows beside hand-written ones."""
    print(f"\n## A forward of few rows, ms (* at most {FORWARD_GOAL} of the hand-written one)")
    table(("model", "dtype", "rows", "ours", "hand-written", "bare products", "of hand-written"))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode(mode=False):
            models = {"wide": wide_llm(dtype, is_quick=is_quick).model}
            models["bundled"] = LLM("demo", device="cpu", dtype=dtype).model
        for name, model in models.items():
            own = HandWritten(model)
            for rows in (1, 8, 32):
                ids = torch.arange(rows) + 7
                hand, bare = own.prepare(ids), own.bare(rows, rows, rows)
                gap = float((model(ids[None])[0].float() - hand().float()).abs().max())
                limit = 1e-4 if dtype == torch.float32 else 1.0
                assert gap <= limit, f"the hand-written forward differs by {gap}"
                runs = [lambda: model(ids[None]), hand, bare]  # noqa: B023
                times = in_turns(runs, rounds * (1 if name == "wide" else 9))
                kind = str(dtype).removeprefix("torch.")
                print(
                    f"| {name} | {kind} | {rows} | {times[0]:.2f} | {times[1]:.2f} | {times[2]:.2f} | "
                    f"{mark(times[0] / times[1], FORWARD_GOAL, is_least=False)} |",
                    flush=True,
                )


def answers(rounds: int, *, is_quick: bool) -> None:
    """Print how the bundled model answers with plain, packed and 8-bit weights."""
    examples = held_out_set("word_problem", 4 if is_quick else 200)
    print(f"\n## Answers of the bundled model to {len(examples)} word problems")
    table(("decoder", "dtype", "weights", "right, %", "canvases as with float32, plain", "seconds"))
    forms = {"plain": {"pack_weights": False}, "packed": {"pack_weights": True}}
    eight: dict[str, dict[str, object]] = {"8 bits": {"quantization": "int8-dynamic"}}
    for decoder, cache in (("vanilla", "none"), ("threshold", "none"), ("threshold", "dual")):
        reference: list[tuple[int, ...]] = []
        for dtype in ("float32", "bfloat16"):
            for form, options in (forms | eight).items():
                llm = unmask.LLM("demo", device="cpu", dtype=dtype, **options)
                began = time.process_time()
                outs = llm.generate(
                    [example.prompt for example in examples], decoder, cache, gen_length=64
                )
                seconds = time.process_time() - began
                canvases = [tuple(out.canvas_ids) for out in outs]
                reference = reference or canvases
                same = sum(a == b for a, b in zip(canvases, reference, strict=True))
                right = sum(check(e, out.text) for e, out in zip(examples, outs, strict=True))
                print(
                    f"| {decoder}, {cache} | {dtype} | {form} | {100 * right / len(outs):.1f} | "
                    f"{same} of {len(outs)} | {seconds:.1f} |",
                    flush=True,
                )


@torch.inference_mode()
def sampling(rounds: int, *, is_quick: bool) -> None:
    """Print the times of the largest logits of a row, found in one stage and in two."""
    width = 4096 if is_quick else 126464
    logits = torch.randn(32, width, generator=torch.Generator().manual_seed(0))
    print(f"\n## The largest of {width} logits, 32 rows, ms")
    table(("largest", "in one stage", "in two", "times as fast"))
    for count in (2, 16, 200, 500, 1000):
        runs = [lambda: logits.topk(count).values, lambda: largest_values(logits, count)]  # noqa: B023
        assert torch.equal(*(cast(Tensor, run()) for run in runs))
        slow, fast = in_turns(runs, rounds)
        print(f"| {count} | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} |", flush=True)
    runs = [lambda: logits.argmax(-1), lambda: first_largest(logits)]
    assert torch.equal(*(cast(Tensor, run()) for run in runs))
    slow, fast = in_turns(runs, rounds)
    print(
        f"| the first, with its column | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} |", flush=True
    )


@torch.inference_mode()
def int8(rounds: int, *, is_quick: bool) -> None:
    """Print times and errors of 8-bit products beside packed bfloat16 ones, and times of decoding."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    print(
        f"\n## 8-bit products against packed bfloat16: times as fast (* {INT8_GOAL}; relative error)"
    )
    table(("matrix", "rows", "bfloat16, ms", "torchao", "int8-dynamic"))
    for width_out, width_in in ((512, 256),) if is_quick else (*SHAPES[1:3], *WIDE_SHAPES):
        with torch.inference_mode(mode=False):
            plain = nn.Linear(width_in, width_out, bias=False).bfloat16().requires_grad_(False)
            weight, holder = plain.weight.detach().clone(), nn.Sequential(plain)
            packed, eight = pack(weight), Int8Linear(plain)
            quantize_(holder, Int8DynamicActivationInt8WeightConfig())
        for rows in (1, 8, 32, 64, 256):
            x = torch.randn(rows, width_in).bfloat16()
            exact = F.linear(x.double(), weight.double())
            runs = [lambda: product(x, packed), lambda: holder(x), lambda: eight(x)]  # noqa: B023
            times = in_turns(runs, rounds)
            errors = [float((cast(Tensor, f()) - exact).norm() / exact.norm()) for f in runs]
            cells = [f"{times[0]:.2f} ({errors[0]:.4f})"]
            for own, error in zip(times[1:], errors[1:], strict=True):
                cells.append(f"{mark(times[0] / own, INT8_GOAL, is_least=True)} ({error:.4f})")
            print(f"| {width_out} x {width_in} | {rows} | {' | '.join(cells)} |", flush=True)
    size = (4096, 256, 2) if is_quick else (8192, 4096, 2)
    print(f"\nDecoding with a random model of vocabulary, width and layers {size}, vanilla, s")
    table(("cache", "bfloat16", "int8-dynamic", "times as fast"))
    with torch.inference_mode(mode=False):
        llms = [random_llm(*size, torch.bfloat16, head_width=64) for _ in range(2)]
        use_int8_products(llms[1].model, NOT_QUANTIZED)
    prompt = list(range(PROMPT))
    options = {"gen_length": GEN, "steps": STEPS // 2, "block_length": BLOCK}
    for cache in ("none", "dual"):
        runs = [partial(llm.generate, [prompt], "vanilla", cache, **options) for llm in llms]
        slow, fast = (each / 1000 for each in in_turns(runs, 3))
        gain = mark(slow / fast, INT8_GOAL, is_least=True)
        print(f"| {cache} | {slow:.2f} | {fast:.2f} | {gain} |", flush=True)


PARTS = {
    "products": products,
    "share": share,
    "forward": forward,
    "answers": answers,
    "sampling": sampling,
    "int8": int8,
}


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each thing")
    parser.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    where = machine("cpu")
    print(f"{where['processor']}, 1 thread, load {where['load_average']}, torch {where['torch']}")
    for name in options.parts or PARTS:
        PARTS[name](options.rounds, is_quick=options.quick)


if __name__ == "__main__":
    main()
