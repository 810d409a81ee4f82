"""Masks of shadow queries against plain loops; the canvas's own queries need none beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model

from unmask.attention import packed
from unmask.attention.packed import PackedAttention, RowMeta
from unmask.attention.visibility import ShadowRow, shadow_mask
from unmask.kv.dense_store import DenseStore

CPU = torch.device("cpu")
ROWS = (
    ShadowRow(5, 5, np.array([1, 4]), np.array([1, 4]), True),
    ShadowRow(7, 8, np.array([0, 2, 6]), np.array([0, 1, 5]), False),
    ShadowRow(6, 8, np.array([3]), np.array([3]), True),
)


@pytest.mark.parametrize("block_size", [None, 2])
def test_a_shadow_query_sees_the_canvas_without_its_position_and_the_shadows_of_its_row(block_size):
    found = shadow_mask(ROWS, 11, block_size, CPU)
    assert found.shape == (3, 1, 3, 11)
    for row, own in zip(ROWS, found[:, 0], strict=True):
        for i in range(3):
            number = min(i, len(row.shadows) - 1)
            seen = {key for key in range(row.length) if key != row.shadows[number]}
            if block_size is not None:
                last = row.position_ids[number] // block_size
                seen = {key for key in seen if key // block_size <= last}
            others = range(len(row.shadows)) if row.attend else [number]
            assert set(own[i].nonzero()[:, 0].tolist()) == seen | {row.start + j for j in others}


def test_the_queries_of_a_canvas_with_shadows_have_no_mask(monkeypatch):
    model, positions, shadows = tiny_model(), np.arange(10), np.array([7, 9])
    masks, plain = list[torch.Tensor | None](), packed.attention
    monkeypatch.setattr(
        packed, "attention", lambda q, k, v, mask: (masks.append(mask), plain(q, k, v, mask))[1]
    )
    meta = RowMeta(0, positions, 10, np.concatenate((positions, shadows)), shadows=shadows)
    backend = PackedAttention([meta], DenseStore(model.spec, 1, 12, torch.float32, CPU), None, CPU)
    with torch.inference_mode():
        model.hidden(
            torch.zeros(12, dtype=torch.long), torch.from_numpy(meta.position_ids), backend=backend
        )
    assert [mask is None for mask in masks] == [True, False] * model.spec.num_layers
