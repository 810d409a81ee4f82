"""The forward process and the loss weights of LLaDA's two objectives.

Source: arXiv:2502.09992, Algorithms 1 and 2. A corruption draws, per row, t ~ U[0, 1), masks every
maskable token with probability `p = (1 - eps) t + eps`, and weighs each masked token so that

    loss = (1 / B) * sum over rows and masked tokens of weight * cross-entropy

is exactly the published loss: `weight = 1 / (p L)` with L all positions of the row (pre-training) or the
response's length, end-of-sequence padding included (fine-tuning; the prompt is never masked).

Letters: B rows, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-3


@dataclass(frozen=True)
class Noisy:
    """A corrupted batch: the network's input and the loss weight of each prediction."""

    ids_BT: Tensor
    weights_BT: Tensor
    """float32, 0 where a token was not masked."""
    levels_BT: Tensor | None = None
    """Probability with which each position was masked, where it is known; it stays on the CPU."""

    @property
    def masked_BT(self) -> Tensor:
        """Mask of the tokens that were replaced by the mask token, bool."""
        return self.weights_BT > 0


def draw_t(rows: int, generator: torch.Generator, stratified: bool = False) -> Tensor:
    """Draw `(B, 1)` noise levels in [0, 1): independent, or one in each of B equal strata.

    Stratified levels are `(u + i/B) mod 1` with one u (arXiv:2503.09573): the same marginal, less
    variance.
    """
    if not stratified:
        return torch.rand(rows, 1, generator=generator)
    shift = torch.rand(1, 1, generator=generator)
    return (shift + torch.arange(rows)[:, None] / rows) % 1.0


def random_length(length: int, generator: torch.Generator, share: float = 0.01) -> int:
    """Draw the length to cut a pre-training batch to: U{1..length} with probability `share`."""
    if torch.rand((), generator=generator) >= share:
        return length
    return int(torch.randint(1, length + 1, (), generator=generator))


def corrupt(
    ids_BT: Tensor,
    maskable_BT: Tensor,
    mask_id: int,
    generator: torch.Generator,
    *,
    t_B1: Tensor | None = None,
    count_weight: bool = False,
    stratified: bool = False,
) -> Noisy:
    """Mask every maskable token with its row's probability.

    `maskable_BT` bool: all True for pre-training; the response (with its padding) for fine-tuning. The
    weight's L is the number of maskable positions. For p near eps no token of a row may be masked; such a
    row has loss 0.

    `count_weight` divides by m, the number of tokens that were masked, instead of its expectation `p L`:
    a row's loss is then the mean over its masked tokens. This has less variance, but another expectation:
    the published weight is `m / (p L)` times that mean, and a row with m = 0 gets no more from the others.
    With a cross-entropy of c everywhere, the expectation at level p is `c (1 - (1 - p)^L)` instead of c,
    so low levels of short rows count less.
    """
    rows = ids_BT.shape[0]
    t = draw_t(rows, generator, stratified) if t_B1 is None else t_B1
    p_B1 = (1 - EPS) * t + EPS
    masked = (torch.rand(ids_BT.shape, generator=generator) < p_B1) & maskable_BT
    if count_weight:
        normalizer = masked.sum(-1, keepdim=True).clamp(min=1).float()
    else:
        normalizer = p_B1 * maskable_BT.sum(-1, keepdim=True).clamp(min=1)
    weights = torch.where(masked, 1.0 / normalizer, torch.zeros(()))
    return Noisy(torch.where(masked, mask_id, ids_BT), weights)


def block_state(
    ids_BT: Tensor,
    response_BT: Tensor,
    mask_id: int,
    generator: torch.Generator,
    block_length: int | Tensor = 32,
    tail_share: float = 0.2,
    t_B1: Tensor | None = None,
) -> Noisy:
    """Corrupt rows into states of semi-autoregressive decoding: decided, a partly masked block, all masked.

    Per row, a cut is drawn in the response: tokens left of it are unmasked, the next `block_length` (one
    number, or `(B, 1)`) are masked with probability p, all later ones are masked. The block's masked
    tokens share weight `1 - tail_share`, those after it `tail_share`. `t_B1` fixes p; at 1 only the
    prefix is unmasked, as in decoding from left to right.
    """
    rows, length = ids_BT.shape
    order = response_BT.long().cumsum(-1) - 1
    size = response_BT.sum(-1, keepdim=True)
    cut = (torch.rand(rows, 1, generator=generator) * size).long()
    t = draw_t(rows, generator, stratified=True) if t_B1 is None else t_B1
    p_B1 = (1 - EPS) * t + EPS
    inside = response_BT & (order >= cut) & (order < cut + block_length)
    tail = response_BT & (order >= cut + block_length)
    chosen = torch.rand(rows, length, generator=generator) < p_B1
    masked = inside & chosen
    none = ~masked.any(-1, keepdim=True)
    masked = masked | (inside & none & (order == cut))
    weights = torch.zeros(rows, length)
    for part, share in ((masked, 1.0 - tail_share), (tail, tail_share)):
        count = part.sum(-1, keepdim=True).clamp(min=1)
        weights = weights + part.float() * share / count
    return Noisy(torch.where(masked | tail, mask_id, ids_BT), weights)


def block_noise(
    ids_BT: Tensor,
    maskable_BT: Tensor,
    mask_id: int,
    generator: torch.Generator,
    block_size: int,
    full_share: float = 0.0,
) -> Noisy:
    """Mask every block of `block_size` positions with a probability of its own.

    For block-causal models, where each noisy block attends to the clean blocks before it. The levels are
    stratified over all blocks of the batch; a share `full_share` of the blocks is masked entirely, the
    state in which decoding starts a block. A block's masked tokens share its part of the row's maskable
    tokens as weight. Source: arXiv:2503.09573, Sec. 3. Differs: weights by count, not by 1/t.
    """
    rows, length = ids_BT.shape
    block_T = torch.arange(length) // block_size
    num_blocks = -(-length // block_size)
    t_BN = draw_t(rows * num_blocks, generator, stratified=True).view(rows, num_blocks)
    is_full = torch.rand(rows, num_blocks, generator=generator) < full_share
    p_BN = torch.where(is_full, 1.0, (1 - EPS) * t_BN + EPS)
    chosen = torch.rand(rows, length, generator=generator) < p_BN[:, block_T]
    masked = chosen & maskable_BT

    def per_block(flags_BT: Tensor) -> Tensor:
        return torch.zeros(rows, num_blocks).index_add_(1, block_T, flags_BT.float())

    share = per_block(maskable_BT) / maskable_BT.sum(-1, keepdim=True).clamp(min=1)
    weight_BN = share / per_block(masked).clamp(min=1)
    weights = torch.where(masked, weight_BN[:, block_T], torch.zeros(()))
    return Noisy(torch.where(masked, mask_id, ids_BT), weights)


def row_losses(
    logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, masked_BT: Tensor
) -> Tensor:
    """Return the sum of weight times cross-entropy over each row's masked tokens, `(B,)` float32.

    The N logits are those of the True positions of `masked_BT`, in order; the published loss is the mean
    over the rows.
    """
    losses_N = torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    row_N = masked_BT.nonzero()[:, 0]
    return torch.zeros(len(masked_BT)).index_add(0, row_N, losses_N * weights_N)


def cart_weights(masked_BT: Tensor, visible_BT: Tensor, p: float) -> Tensor:
    """Return Dream's weight of every position: half the sum of `p (1 - p)^(|n - i| - 1)` over clean ones.

    `visible_BT`: positions that exist (padding is neither clean nor masked). Source: arXiv:2508.15487,
    Eq. 5 (context-adaptive noise rescheduling).
    """
    length = masked_BT.shape[1]
    at = torch.arange(length)
    distance = (at[:, None] - at[None, :]).abs()
    kernel = torch.where(distance > 0, p * (1 - p) ** (distance - 1).clamp(min=0).double(), 0.0)
    clean = (~masked_BT & visible_BT).double()
    return (0.5 * clean @ kernel).float()
