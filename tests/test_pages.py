"""Pages: the books against a naive model, and paged attention against dense rows, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KNOWN, tiny_llm

from unmask.engine.kv_paged import PagedKV
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState
from unmask.kv.page_pool import PagePool, page_key
from unmask.kv.paged_store import PagedStore, page_positions

BLOCK = 4
actions = st.lists(
    st.tuples(st.sampled_from(["take", "share", "drop", "publish"]), st.integers(0, 5)), max_size=60
)


@settings(max_examples=60)
@given(actions=actions)
def test_every_page_is_free_held_or_kept_and_a_key_finds_the_content_it_stands_for(actions):
    pages, held, content, keys = PagePool(4), [], {}, [bytes([i]) for i in range(6)]
    for action, which in actions:
        if action == "take" and pages.num_available:
            page = pages.allocate()
            assert page not in held
            content.pop(page, None)
            held.append(page)
        elif action == "share" and (page := pages.share(keys[which])) is not None:
            assert content[page] == keys[which], "content that was given away is not found"
            held.append(page)
        elif action == "drop" and held:
            pages.release([held.pop(which % len(held))])
        elif action == "publish" and held:
            page = held[which % len(held)]
            known = keys[which] in content.values() and pages.share(keys[which])
            if known is not None and known is not False:
                pages.release([known])
            pages.publish(page, keys[which])
            if not pages.is_writable(page) and page not in content:
                content[page] = keys[which]
        assert pages.num_available == 4 - len(set(held))
        for page in held:
            assert pages.is_writable(page) == (held.count(page) == 1 and page not in content)
    pages.release(held)
    assert pages.num_available == 4
    pages.clear_cached()
    assert (pages.num_available, pages.num_cached) == (4, 0)


def test_a_key_stands_for_all_that_came_before():
    one, two = np.arange(4), np.arange(4) + 1
    assert page_key(page_key(b"", one), two) != page_key(page_key(b"", two), two)
    assert page_key(page_key(b"", one), two) == page_key(page_key(b"", one), two.copy())


def test_a_page_is_whole_blocks():
    assert [page_positions(block) for block in (1, 4, 16, 32, 12)] == [16, 16, 16, 32, 24]


def events_of(llm, requests, paging):
    runner = ModelRunner(llm.model, llm.vocabulary, len(requests), paging=paging)
    batch = Scheduler(runner)
    for i, request in enumerate(requests):
        batch.admit(SequenceState.begin(request, i))
    while batch.active:
        yield from batch.step()


@pytest.mark.parametrize("lengths", [(3,), (17,), (30, 30)])
@pytest.mark.parametrize("method", ["threshold", "ar", "wino"])
def test_paged_attention_equals_dense_rows_bit_by_bit(method, lengths):
    """Where both take the same rows in one product; rows that only pages can join round apart."""
    llm = tiny_llm("llada", 5, block_size=BLOCK)
    rng = np.random.default_rng(1)
    requests = [
        llm.request(
            rng.integers(0, KNOWN, n).tolist(), method, "block_causal", gen_length=24,
            stop_at_eos=False,
        )
        for n in lengths
    ]  # fmt: skip
    device = torch.device("cpu")
    store = PagedStore(llm.spec, 64, torch.float32, device, prefixes=False)
    for page in [store.allocate() for _ in range(9)][::2]:  # pages in no order
        store.pool.release([page])
    dense, paged = events_of(llm, requests, None), events_of(llm, requests, PagedKV(store))
    for one, other in zip(dense, paged, strict=True):
        assert one.sequence.index == other.sequence.index
        assert one.edit.commit.tolist() == other.edit.commit.tolist()
        assert one.edit.tokens.tolist() == other.edit.tokens.tolist()
        assert one.edit.confidence.tolist() == other.edit.confidence.tolist()
    assert store.pool.num_available == 60


@torch.inference_mode()
def test_a_shared_page_is_copied_before_it_is_changed():
    """A revision in the middle of a published page: who shares it must not see it."""
    from unmask.kv.paged_store import PageTable

    llm = tiny_llm("llada", 5, block_size=BLOCK)
    store = PagedStore(llm.spec, 8, torch.float32, torch.device("cpu"))
    tokens = np.arange(32)
    first = PageTable(store)
    first.reserve(0, 32)
    random = torch.Generator().manual_seed(0)
    for tensors in (store.keys, store.values):
        tensors[:] = [torch.randn(each.shape, generator=random) for each in tensors]
    first.publish(tokens, 32)
    second = PageTable(store)
    assert second.match_prefix(tokens) == 32
    assert second.pages == first.pages
    before = [tensor[first.slots].clone() for tensor in store.keys]
    assert second.num_missing(20, 32) == 1
    second.reserve(20, 32)  # positions 16..19 stay, 20.. are computed again
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    for layer, tensor in enumerate(store.keys):
        assert torch.equal(tensor[second.slots[:20]], before[layer][:20])
        tensor[second.slots[20:]] = 0
        assert torch.equal(tensor[first.slots], before[layer])
    assert len(second.page_keys) == 1
    for table in (first, second):
        table.truncate(0)
    assert store.pool.num_available == 8
