"""Predictions for a corrupted batch: bidirectional or block-causal attention, shifted logits or not.

Letters: B rows, T positions, N masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.models.transformer import Transformer
from unmask.train.dataset import Batch


def masked_logits(model: Transformer, hidden: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Return the `(N, V)` logits of the masked positions; the head computes no others.

    `hidden` is the model's method, perhaps compiled. A block-causal model runs on the noisy row followed
    by the clean one: twice the positions. With shifted logits row i - 1 predicts position i; no row
    predicts position 0, which must not be masked.
    """
    noisy, masked = batch.noisy.ids_BT, batch.noisy.masked_BT
    rows, length = noisy.shape
    position_ids = torch.arange(length).expand(rows, length)
    if model.spec.block_size is None:
        states = hidden(noisy, position_ids)
    else:
        twice = torch.cat((noisy, batch.clean_BT), 1), torch.cat((position_ids, position_ids), 1)
        states = hidden(*twice, two_streams(length, model.spec.block_size))[:, :length]
    if model.spec.shift_logits:
        assert not masked[:, 0].any(), "no row predicts position 0"
        states = states.roll(1, dims=1)
    return model.head(states[masked])


def two_streams(length: int, block_size: int) -> Tensor:
    """Return the attention mask of `[noisy | clean]`: bool `(1, 1, 2T, 2T)`.

    A noisy block attends to itself and to the clean blocks before it, a clean block to the clean ones up
    to itself: the context that each block has in decoding, for all blocks in one forward pass.
    Source: arXiv:2503.09573, Sec. 3.
    """
    block = torch.arange(length) // block_size
    query, key = block[:, None], block[None, :]
    noisy = torch.cat((query == key, query > key), 1)
    clean = torch.cat((torch.zeros(length, length, dtype=torch.bool), query >= key), 1)
    return torch.cat((noisy, clean), 0)[None, None]
