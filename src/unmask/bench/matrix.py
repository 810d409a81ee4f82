"""Every decoder with every cache, found by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unmask import caches, decoders
from unmask.errors import ConfigError
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output


@dataclass(frozen=True)
class Cell:
    """One decoder with one cache, against the decoder without; `problem` where it is refused.

    `queries`: share of the positions computed; `same`: share of the decided positions that hold the same
    token.
    """

    decoder: str
    cache: str
    queries: float = 1.0
    same: float = 1.0
    problem: str | None = None

    def text(self) -> str:
        """`36 %, = 97 %`: of the queries, equal tokens; `no` where it is refused."""
        if self.problem is not None:
            return "no"
        return f"{100 * self.queries:.0f} %, = {100 * self.same:.0f} %"


def columns() -> list[str]:
    """Every cache but `none` and `auto`, which stands for another."""
    return [name for name in caches.names() if name not in ("none", "auto")]


def small_llm(*, block_size: int | None = None, shift_logits: bool = False) -> LLM:
    """A tiny model of random weights, for the families of which none ships with the package."""
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
    """All cells, decoder by decoder. Raises nothing: what is refused says so in its cell."""
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
    length: dict[str, Any] = {"gen_length": gen_length}
    if decoders.finds_length(name):
        length = {"initial_gen_length": gen_length // 2, "max_gen_length": gen_length}
    own = decoders.knob_names(name)
    block: dict[str, Any] = {"block_length": gen_length // 2} if "block_length" in own else {}
    return llm.generate(list(prompts), name, cache, stop_at_eos=False, **length, **block)


def _cell(name: str, cache: str, cached: list[Output], plain: list[Output]) -> Cell:
    queries = sum(o.num_queries for o in cached) / sum(o.num_queries for o in plain)
    same = total = 0
    for ours, exact in zip(cached, plain, strict=True):
        left, right = (o.canvas_ids[o.prompt_length :] for o in (ours, exact))
        same += sum(a == b for a, b in zip(left, right, strict=False))
        total += max(len(left), len(right))
    return Cell(name, cache, queries, same / total)


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a row a decoder, a column a cache; below it why cells are refused."""
    lines = [f"| decoder | {' | '.join(columns())} |", "|---" * (len(columns()) + 1) + "|"]
    for name in decoders.names():
        own = {cell.cache: cell for cell in cells if cell.decoder == name}
        lines.append(f"| `{name}` | {' | '.join(own[cache].text() for cache in columns())} |")
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.problem is not None:
            reasons.setdefault(cell.problem, []).append(f"{cell.decoder} with {cell.cache}")
    for reason, who in reasons.items():
        shown = f"every decoder with {who[0].split(' with ')[1]}"
        listed = shown if len(who) == len(decoders.names()) else ", ".join(who)
        lines.append(f"\nno, {listed}: {reason}.")
    return "\n".join(lines)
