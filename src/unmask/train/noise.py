"""Noise of laid-out rows for every objective: levels, masks and loss weights.

A masked token has the weight `factor / denominator`, with which the loss of a step is

    sum over masked tokens of weight * cross-entropy / rows.

The factor is 1/p (the likelihood bound of arXiv:2502.09992, Eq. 3), n/m with n trainable and m masked
tokens instead of its expectation, 1, or Dream's CART. The denominator is the trainable tokens of the
example, all its positions, or the trainable tokens of the step over its rows.

Letters: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.train.config import NoiseConfig
from unmask.train.corrupt import Noisy, cart_weights


@dataclass(frozen=True)
class Layout:
    """A micro-batch before noise; `segments_BT` is the example's number in the step, -1 for padding."""

    ids_BT: Tensor
    maskable_BT: Tensor
    segments_BT: Tensor
    position_ids_BT: Tensor
    is_text: bool
    is_packed: bool


@dataclass(frozen=True)
class Draw:
    """The facts of a step that the noise of each example depends on.

    `seed` of all draws, number of `rows` and of `maskable` tokens, `block_size` (0: no blocks).
    """

    seed: int
    rows: int
    maskable: int
    block_size: int = 0


def mix(*numbers: int) -> int:
    """Return a seed of 62 bits for a tuple of numbers."""
    state = np.random.SeedSequence([number & (2**63 - 1) for number in numbers])
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(2))


def level(draw: Draw, number: int, kind: str) -> float:
    """Return the noise level in [0, 1) of example `number` of a step.

    stratified: `(u + i/B) mod 1` with one u; antithetic: t and 1 - t in turn, t in equal strata;
    independent: a draw of its own.
    """
    if kind == "independent":
        return torch.rand((), generator=_generator(draw.seed, number, 3)).item()
    shift = torch.rand((), generator=_generator(draw.seed, 0, 4)).item()
    if kind == "stratified":
        return (shift + number / draw.rows) % 1.0
    half = -(-draw.rows // 2)
    t = (shift + number // 2 / half) % 1.0
    return t if number % 2 == 0 else (1.0 - t) % 1.0


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*numbers))


def corrupt_rows(
    layout: Layout, noise: NoiseConfig, draw: Draw, objective: str, mask_id: int
) -> Noisy:
    """Return the noisy rows; with `noise.complementary` twice as many, the second half for the others.

    Of each pair of complementary rows a token is masked in exactly one, and both have half the weight.
    """
    if objective == "causal":
        factor = torch.ones(layout.ids_BT.shape)
        return Noisy(layout.ids_BT, _weights(layout.maskable_BT, factor, layout, noise, draw))
    p_BT, masked = _masks(layout, noise, draw, objective == "block_diffusion")
    pairs = [(p_BT, masked)]
    if noise.complementary:
        pairs.append(((1 - p_BT).clamp(min=noise.low), layout.maskable_BT & ~masked))
    kind = noise.weight
    if kind == "auto":
        kind = "cart" if objective == "dream" else "inverse"
    ids, weights, levels = [], [], []
    for p, chosen in pairs:
        factor = _factor(
            kind, p, chosen, layout, noise, draw if objective == "block_diffusion" else None
        )
        ids.append(torch.where(chosen, mask_id, layout.ids_BT))
        weights.append(_weights(chosen, factor, layout, noise, draw) / len(pairs))
        levels.append(p)
    return Noisy(torch.cat(ids), torch.cat(weights), torch.cat(levels))


def _units(layout: Layout) -> Iterator[tuple[int, int, Tensor]]:
    """Yield row, number and positions of every example."""
    for row, numbers in enumerate(layout.segments_BT):
        for number in numbers.unique().tolist():
            if number >= 0:
                yield row, number, (numbers == number).nonzero()[:, 0]


def _masks(layout: Layout, noise: NoiseConfig, draw: Draw, by_block: bool) -> tuple[Tensor, Tensor]:
    """Return each position's masking probability and the masks."""
    p_BT = torch.ones(layout.ids_BT.shape)
    chosen = torch.zeros(layout.ids_BT.shape, dtype=torch.bool)
    span = noise.high - noise.low
    for row, number, places in _units(layout):
        generator = _generator(draw.seed, number, 5)
        t = level(draw, number, noise.levels)
        levels = torch.full((len(places),), noise.low + span * t)
        if by_block and draw.block_size:
            block = layout.position_ids_BT[row, places] // draw.block_size
            count = int(block.max()) + 1
            own = noise.low + span * ((t + torch.arange(count) / count) % 1.0)
            order = torch.randperm(count, generator=generator)
            is_full = torch.rand(count, generator=generator) < noise.full_blocks
            levels = torch.where(is_full, 1.0, own[order])[block]
        p_BT[row, places] = levels
        chosen[row, places] = torch.rand(len(places), generator=generator) < levels
    return p_BT, chosen & layout.maskable_BT


def _factor(
    kind: str, p_BT: Tensor, chosen: Tensor, layout: Layout, noise: NoiseConfig, blocks: Draw | None
) -> Tensor:
    """Return the factor of each position; `blocks`: the step, if its levels are those of blocks."""
    if kind == "uniform":
        return torch.ones_like(p_BT)
    if kind == "inverse":
        return 1.0 / p_BT
    if kind == "cart":
        if layout.is_packed:
            result = torch.zeros_like(p_BT)
            for row, _, places in _units(layout):
                one = chosen[row, places][None]
                result[row, places] = cart_weights(one, torch.ones_like(one), noise.cart_p)[0]
            return result
        return cart_weights(chosen, layout.segments_BT >= 0, noise.cart_p)
    result = torch.ones_like(p_BT)
    for row, _, places in _units(layout):
        group = torch.zeros(len(places), dtype=torch.long)
        if blocks is not None and blocks.block_size:
            group = layout.position_ids_BT[row, places] // blocks.block_size
        count = int(group.max()) + 1
        masked = torch.zeros(count).index_add_(0, group, chosen[row, places].float())
        maskable = torch.zeros(count).index_add_(0, group, layout.maskable_BT[row, places].float())
        result[row, places] = (maskable / masked.clamp(min=1))[group]
    return result


def _weights(
    chosen: Tensor, factor: Tensor, layout: Layout, noise: NoiseConfig, draw: Draw
) -> Tensor:
    """Return factor over denominator, 0 where nothing is masked."""
    if noise.denominator == "tokens":
        scaled = factor * (draw.rows / max(1, draw.maskable))
        return torch.where(chosen, scaled, torch.zeros(()))
    counts = torch.ones(chosen.shape)
    for row, _, places in _units(layout):
        size = (
            layout.maskable_BT[row, places].sum()
            if noise.denominator == "sequence"
            else len(places)
        )
        counts[row, places] = max(1.0, float(size))
    return torch.where(chosen, factor / counts, torch.zeros(()))
