"""Layers that recompute a part of their positions, for rows of all kinds together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend import can_pretend, pretend, to_device
from tiny import FAMILIES, MASK, tiny_model

from unmask.attention.layer_selection import LayerSelection, row_selections
from unmask.attention.layered import FeatureRowMeta, FeatureStore, LayeredAttention
from unmask.attention.packed import RowMeta
from unmask.caches.base import Layers

CPU = torch.device("cpu")


def meta_of(row: int, length: int, shadows=(), attend: bool = True) -> RowMeta:
    own, behind = np.arange(length), np.array(shadows, dtype=np.int64)
    return RowMeta(
        row, own, length, np.concatenate((own, behind)), shadows=behind, shadows_attend=attend
    )


def layers_of(prompt: int, is_due: bool, moved: int, forced=()) -> Layers:
    return Layers(prompt, False, is_due, moved, np.array(forced, dtype=np.int64))


rows_of_any_kind = st.lists(
    st.tuples(
        st.integers(1, 5), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 9)
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60)
@given(rows=rows_of_any_kind, data=st.data())
def test_the_least_similar_positions_are_chosen_and_ties_go_to_the_lowest(rows, data):
    metas, layers = list[RowMeta](), list[Layers]()
    for number, (prompt, size, prompt_due, response_due, moved) in enumerate(rows):
        length = prompt + size
        forced = sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=3)))
        metas.append(meta_of(number, length, range(number % 3)))
        plan = layers_of(prompt, response_due, moved, forced)
        layers.append(Layers(prompt, prompt_due, response_due, moved, plan.forced))
    parts = row_selections(metas, layers, is_first=False)
    selection = LayerSelection(parts, CPU)
    alike = st.sampled_from([0.5, 0.75, 1.0])
    similar = torch.tensor([data.draw(alike) for _ in range(selection.num_compared)])
    found = selection.choose(similar.clone() if len(similar) else None)
    total = sum(len(meta.position_ids) for meta in metas)
    chosen = list(range(total)) if found is None else found.tolist()
    expected, shadows, start, at = [], [], 0, 0
    for meta, plan in zip(metas, layers, strict=True):
        size, prompt = meta.length - plan.prompt_length, plan.prompt_length
        inside = [p for p in plan.forced.tolist() if p < prompt]
        expected += [start + p for p in (range(prompt) if plan.prompt else inside)]
        count = (
            size if plan.response else min(size, plan.num_moved + len(plan.forced) - len(inside))
        )
        best = list(range(size))
        if 0 < count < size:
            own = similar[at : at + size].tolist()
            own = [-2.0 if prompt + i in plan.forced else own[i] for i in range(size)]
            best, at = sorted(range(size), key=lambda i, own=own: own[i]), at + size
        expected += [start + prompt + i for i in sorted(best[:count])]
        shadows += range(start + meta.length, start + len(meta.position_ids))
        start += len(meta.position_ids)
    assert chosen == expected + shadows


def test_what_is_no_number_is_chosen_last_and_padding_never():
    metas = [meta_of(0, 4), meta_of(1, 8)]
    layers = [layers_of(1, False, 2), layers_of(1, False, 2)]
    selection = LayerSelection(row_selections(metas, layers, is_first=False), CPU)
    found = selection.choose(torch.full((3 + 7,), torch.nan))
    assert found.tolist() == [1, 2, 5, 6]


KINDS = (
    (meta_of(0, 12, (7, 9)), layers_of(4, False, 2)),
    (meta_of(1, 12, (5, 6)), layers_of(4, False, 2, (1, 8))),
    (meta_of(3, 9), layers_of(3, True, 2)),
    (meta_of(4, 16, (9,), attend=False), layers_of(6, False, 3, (0, 2))),
    (meta_of(5, 16), Layers(6, True, False, 3)),
    (meta_of(6, 7), layers_of(3, False, 0)),
)


@torch.inference_mode()
def states(model, store, items, device=CPU):
    """Two forwards, the second one with other tokens: all positions first, then those of the plans."""
    found = []
    for number in range(2):
        rows = [
            FeatureRowMeta(meta, plan if number else Layers(plan.prompt_length, True, True, 0))
            for meta, plan in items
        ]
        backend = LayeredAttention(rows, store, model.spec.block_size, device)
        ids, positions = list[int](), list[int]()
        for meta, _ in items:
            own = [(5 * p + meta.row + number * (p % 3)) % 50 for p in range(meta.length)]
            ids += own + [MASK] * len(meta.shadows)
            positions += meta.position_ids.tolist()
        fed = torch.tensor([ids, positions]).to(device)
        found = model.hidden(fed[0], fed[1], backend=backend)
    return found


def store_of(model, device=CPU):
    return FeatureStore(model.spec, 7, 1, torch.float32, device)


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_all_kinds_have_the_states_that_each_has_alone(family, block_size):
    model = tiny_model(family, 2, block_size=block_size)
    together = states(model, store_of(model), KINDS)
    start = 0
    for item in KINDS:
        alone = states(model, store_of(model), [item])
        assert torch.allclose(together[start : start + len(alone)], alone, atol=2e-5)
        start += len(alone)
    assert start == len(together)


@pytest.mark.skipif(not can_pretend(), reason="no C++ compiler for the device guard")
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_calls_on_a_device_have_the_states_of_the_cpu(family, block_size):
    on_cpu = tiny_model(family, 2, block_size=block_size)
    expected = states(on_cpu, store_of(on_cpu), KINDS)
    model = to_device(tiny_model(family, 2, block_size=block_size))
    with pretend() as counts:
        device = torch.device("cuda:0")
        store = store_of(model, device)
        found = states(model, store, KINDS, device).cpu()
    assert torch.allclose(found, expected, atol=2e-5)
    assert {call.kernel for call in counts.attentions} <= {"flash", "efficient"}
    calls = [call for call in counts.attentions if call.queries[0] > 1]
    assert calls, "rows of unequal numbers of queries share calls"
