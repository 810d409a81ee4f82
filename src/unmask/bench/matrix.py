"""Compatibility of decoders and caches, determined by running every combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask import caches, decoders
from unmask.bench.overhead import length_options
from unmask.errors import ConfigError
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer
from unmask.own_code import Reference

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output


@dataclass(frozen=True)
class Cell:
    """One decoder with one cache, compared with cache `none`; `problem`: why it is refused.

    `queries`: computed positions relative to cache `none`; `same`: share of decided positions with the same
    token.
    """

    decoder: str
    cache: str
    queries: float = 1.0
    same: float = 1.0
    problem: str | None = None

    def text(self) -> str:
        """Return "36 %, = 97 %" (queries, equal tokens), or "no" for a combination that is refused."""
        if self.problem is not None:
            return "no"
        return f"{100 * self.queries:.0f} %, = {100 * self.same:.0f} %"


def columns() -> list[str]:
    """Return the names of all caches except `none` and `auto`, which stands for another."""
    return [name for name in caches.names() if name not in ("none", "auto")]


def small_llm(*, block_size: int | None = None, shift_logits: bool = False) -> LLM:
    """Return a tiny model of random weights, for families without a bundled checkpoint."""
    from unmask.engine.llm import LLM

    spec = ModelSpec(
        family="random",
        vocab_size=64,
        d_model=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=48,
        rope_theta=10000.0,
        norm_eps=1e-5,
        max_length=256,
        mask_id=62,
        eos_id=61,
        pad_id=61,
        block_size=block_size,
        shift_logits=shift_logits,
    )
    generator = torch.Generator().manual_seed(0)
    model = Transformer(spec)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.5 * weight.shape[1] ** -0.5, generator=generator)
    return LLM(model.eval().requires_grad_(False))


def matrix(llm: LLM, prompts: Sequence[Sequence[int]], gen_length: int) -> list[Cell]:
    """Run all combinations, decoder by decoder; a refusal is recorded in its cell and never raised."""
    cells = []
    for name in decoders.names():
        try:
            plain = _run(llm, prompts, name, "none", gen_length)
        except ConfigError as error:
            cells += [Cell(name, cache, problem=str(error)) for cache in columns()]
            continue
        for cache in columns():
            try:
                cells.append(_cell(name, cache, _run(llm, prompts, name, cache, gen_length), plain))
            except ConfigError as error:
                cells.append(Cell(name, cache, problem=str(error)))
    return cells


def _run(
    llm: LLM, prompts: Sequence[Sequence[int]], name: str, cache: str, gen_length: int
) -> list[Output]:
    lengths = length_options(name, gen_length, gen_length // 2, gen_length // 2)
    return llm.generate(
        list(prompts),
        Reference(name),
        Reference(cache),
        stop_at_eos=False,
        progress=False,
        **lengths,
    )


def _cell(name: str, cache: str, cached: list[Output], plain: list[Output]) -> Cell:
    queries = sum(o.num_queries for o in cached) / sum(o.num_queries for o in plain)
    same = total = 0
    for outputs in zip(cached, plain, strict=True):
        left, right = (o.canvas_ids[o.prompt_length :] for o in outputs)
        same += sum(a == b for a, b in zip(left, right, strict=False))
        total += max(len(left), len(right))
    return Cell(name, cache, queries, same / total)


def table(cells: Sequence[Cell]) -> str:
    """Return Markdown with one row per decoder and one column per cache; the refusals follow below."""
    lines = [f"| decoder | {' | '.join(columns())} |", "|---" * (len(columns()) + 1) + "|"]
    for name in decoders.names():
        row = {cell.cache: cell for cell in cells if cell.decoder == name}
        lines.append(f"| `{name}` | {' | '.join(row[cache].text() for cache in columns())} |")
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.problem is not None:
            reasons.setdefault(cell.problem, []).append(f"{cell.decoder} with {cell.cache}")
    for reason, pairs in reasons.items():
        all_decoders = f"every decoder with {pairs[0].split(' with ')[1]}"
        subject = all_decoders if len(pairs) == len(decoders.names()) else ", ".join(pairs)
        lines.append(f"\nno, {subject}: {reason}.")
    return "\n".join(lines)
