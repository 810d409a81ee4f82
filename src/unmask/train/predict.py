"""Predictions for a corrupted batch: any topology of attention, shifted logits or not.

Letters: B rows, T positions, N masked tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.models.transformer import Transformer
from unmask.train.dataset import Batch


def masked_logits(model: Transformer, hidden: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Return the `(N, V)` logits of the masked positions; the head computes no others.

    As `masked_states`, which see.
    """
    return model.head(masked_states(model, hidden, batch))


def masked_states(model: Transformer, hidden: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Return the final states `(N, D)` that predict the masked positions.

    `hidden` is the model's method, perhaps compiled. A block-causal model runs on the noisy row followed
    by the clean one: twice the positions. With shifted logits row i - 1 predicts position i, and the first
    position of a block is predicted by the clean row before it, as in decoding; no row predicts position 0
    of an example, which must not be masked.
    """
    noisy, masked = batch.noisy.ids_BT, batch.noisy.masked_BT
    rows, length = noisy.shape
    position_ids = batch.position_ids_BT
    if position_ids is None:
        position_ids = torch.arange(length, device=noisy.device).expand(rows, length)
    block_size = model.spec.block_size if batch.block_size is None else batch.block_size
    is_shifted = model.spec.shift_logits
    if is_shifted:
        assert not masked[position_ids == 0].any(), "no row predicts position 0"
    if not block_size:
        states = hidden(noisy, position_ids, _visible(batch))
        return _before(states, masked) if is_shifted else states[masked]
    twice = torch.cat((noisy, batch.clean_BT), 1), torch.cat((position_ids, position_ids), 1)
    # All rows have the same blocks unless examples are packed.
    block = (
        position_ids // block_size
        if batch.position_ids_BT is not None
        else position_ids[:1] // block_size
    )
    both = hidden(*twice, two_streams(block, batch.segments_BT))
    states = both[:, :length]
    if not is_shifted:
        return states[masked]
    is_first = position_ids % block_size == 0
    before = torch.where(
        is_first[..., None], both[:, length:].roll(1, dims=1), states.roll(1, dims=1)
    )
    return before[masked]


def _before(states_BTD: Tensor, masked_BT: Tensor) -> Tensor:
    """Return the states of the rows before the masked positions."""
    return states_BTD.roll(1, dims=1)[masked_BT]


def _visible(batch: Batch) -> Tensor | None:
    """Return the attention mask of a batch without blocks: bool `(B or 1, 1, T, T)`, None for all."""
    visible: Tensor | None = None
    if batch.segments_BT is not None:
        visible = (batch.segments_BT[:, :, None] == batch.segments_BT[:, None, :])[:, None]
    length = batch.clean_BT.shape[1]
    if batch.reach is not None and batch.reach < length:
        at = torch.arange(length, device=batch.clean_BT.device)
        near = (at[None, :] - at[:, None] <= batch.reach)[None, None]
        visible = near if visible is None else visible & near
    return visible


def two_streams(block_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Return the attention mask of `[noisy | clean]`: bool `(B, 1, 2T, 2T)`.

    A noisy block attends to itself and to the clean blocks before it, a clean block to the clean ones up
    to itself: the context that each block has in decoding, for all blocks in one forward pass. `block_BT`:
    the number of each position's block; `segments_BT` as in `Batch`. Source: arXiv:2503.09573, Sec. 3.
    """
    query, key = block_BT[:, :, None], block_BT[:, None, :]
    own, before = query == key, query > key
    if segments_BT is not None:
        same = segments_BT[:, :, None] == segments_BT[:, None, :]
        own, before = own & same, before & same
    noisy = torch.cat((own, before), 2)
    clean = torch.cat((torch.zeros_like(own), own | before), 2)
    return torch.cat((noisy, clean), 1)[:, None]
