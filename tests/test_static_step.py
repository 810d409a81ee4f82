"""Forwards of fixed shapes: the tokens of packed ones, one graph for each bucket."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_engine import alone, assert_idle, bytes_for, submit_all
from test_engine import assert_same as assert_same_output
from test_properties import METHODS, PROMPTS, generate
from tiny import FAMILIES, KNOWN, tiny_llm, trace_of

from unmask import caches
from unmask.attention.packed import RowMeta
from unmask.attention.static import Bucket, bucket_of, numbers_of, pages_of
from unmask.caches.registry import make_cache
from unmask.engine import engine as engine_module
from unmask.engine import static_step
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.kv_paged import PagedKV
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState
from unmask.engine.static_step import PagedRows, StaticForwards
from unmask.kv.paged_store import PagedStore, PageTable

PAGEABLE = [name for name in caches.names() if name != "auto" and make_cache(name).pageable]
DENSE = ("prefix", "dual", "dkv", "vicinity", "d2cache", "dllm")
"""Cache policies that store dense rows; the last two have forwards that cannot have fixed shapes."""


def with_capture(llm, capture):
    """The same model, whose runners capture their steps by a function."""
    llm.make_runner = lambda *args, **options: ModelRunner(*args, **options | {"capture": capture})
    return llm


def new_pages(llm, total=64, **options):
    return PagedStore(llm.spec, total, torch.float32, torch.device("cpu"), **options)


def with_pages(llm, capture=None):
    """The same model, whose runners have pages too."""

    def runner(*args, **options):
        paging = PagedKV(new_pages(llm))
        return ModelRunner(*args, **options | {"capture": capture, "paging": paging})

    llm.make_runner = runner
    return llm


class Counted:
    """A capture that runs the plain step and counts its forwards."""

    def __init__(self):
        self.shapes, self.num_forwards = [], 0

    def __call__(self, step, example):
        self.shapes.append(tuple(example.shape))

        def run(numbers):
            self.num_forwards += 1
            return step(numbers)

        return run


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert trace_of(one) == trace_of(other)
        assert (one.canvas_ids, one.num_queries) == (other.canvas_ids, other.num_queries)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "knobs"), METHODS)
def test_every_decoder_gives_the_tokens_of_packed_forwards(name, knobs, family):
    counted = Counted()
    packed = generate(tiny_llm(family), PROMPTS, name, "dual", knobs)
    fixed = generate(with_capture(tiny_llm(family), counted), PROMPTS, name, "dual", knobs)
    assert_same(fixed, packed)
    assert counted.num_forwards > 0 or all(out.num_forwards < 3 for out in packed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", DENSE)
def test_every_cache_gives_the_tokens_of_packed_forwards(cache, family):
    counted = Counted()
    packed = generate(tiny_llm(family), PROMPTS, "threshold", cache, {"threshold": 0.5})
    llm = with_capture(tiny_llm(family), counted)
    assert_same(generate(llm, PROMPTS, "threshold", cache, {"threshold": 0.5}), packed)
    assert (counted.num_forwards > 0) == (cache not in ("d2cache", "dllm"))


@pytest.mark.parametrize("changes", [{}, {"num_heads": 4, "num_kv_heads": 2}])
def test_block_causal_models_have_fixed_shapes_in_dense_rows(changes):
    counted = Counted()
    options = {"gen_length": 16, "threshold": 0.3, "return_trace": True}
    packed = tiny_llm("llada", block_size=4, **changes)
    fixed = with_capture(tiny_llm("llada", block_size=4, **changes), counted)
    assert_same(
        fixed.generate(PROMPTS, "threshold", "block_causal", **options),
        packed.generate(PROMPTS, "threshold", "block_causal", **options),
    )
    assert counted.num_forwards > 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", PAGEABLE)
@pytest.mark.parametrize(("name", "knobs"), METHODS)
def test_every_decoder_gives_the_tokens_of_packed_forwards_in_pages(name, knobs, cache, family):
    counted, changes = Counted(), {"block_size": 4}
    packed = generate(with_pages(tiny_llm(family, **changes)), PROMPTS, name, cache, knobs)
    fixed = with_pages(tiny_llm(family, **changes), counted)
    assert_same(generate(fixed, PROMPTS, name, cache, knobs), packed)
    assert counted.num_forwards > 0
    assert all(width > 2 * 5 + 1 for _, width in counted.shapes), "they have pages"


LOADS = {
    "ragged": ([[3] * n for n in (2, 30, 9, 17, 1)], {}, {}),
    "few pages": ([[3 + i] * 14 for i in range(6)], {}, {"num_pages": 8}),
    "guidance": ([[3], [4] * 20, [5] * 7], {"cfg_scale": 1.0}, {}),
    "samples": ([[3] * 20] * 4, {"temperature": 1.0}, {"max_num_seqs": 2}),
    "prefix": ([[*range(40), end] for end in (5, 6, 7)], {}, {"max_num_seqs": 1}),
    "long prompts": ([[3] * 70, [4] * 5], {}, {"max_num_batched_tokens": 32}),
}
"""Prompts, method and settings of an engine with pages."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("load", LOADS)
def test_an_engine_with_pages_decodes_as_packed_forwards_do(load, family):
    prompts, method, config = LOADS[load]
    counted, packed = Counted(), tiny_llm(family, 2, block_size=4)
    llm = with_capture(tiny_llm(family, 2, block_size=4), counted)
    method = {"threshold": 0.3, "gen_length": 40, "stop_at_eos": False, **method}
    requests = [
        packed.request(prompt, "threshold", "block_causal", seed=i, **method)
        for i, prompt in enumerate(prompts)
    ]
    size = bytes_for(llm, config.get("num_pages", 200))
    options = {key: value for key, value in config.items() if key != "num_pages"}
    with Engine(llm, EngineConfig(kv_cache_memory_bytes=size, **options)) as engine:
        outputs = [listener.last.output for listener in submit_all(engine, requests)]
        stats = engine.stats
        assert_idle(engine)
    for request, output in zip(requests, outputs, strict=True):
        assert_same_output(output, alone(packed, request))
    assert counted.num_forwards >= max(output.num_forwards for output in outputs) - 3
    assert (stats.num_preempted > 0) == (load == "few pages")
    assert stats.prefix_found > 0 or load not in ("samples", "prefix")


def test_pages_that_pass_to_another_sequence_beside_idle_rows_have_its_keys_alone():
    """Three rows run in a bucket of four; the store grows, and a fourth sequence gets freed pages."""
    counted, llm = Counted(), tiny_llm("llada", block_size=4)
    lengths = (8, 40, 40, 40)
    requests = [
        llm.request([7 + i] * 9, "vanilla", "block_causal", gen_length=n, stop_at_eos=False)
        for i, n in enumerate(lengths)
    ]
    expected = [alone(llm, request).canvas_ids for request in requests]
    paging = PagedKV(new_pages(llm, prefixes=False))
    batch = Scheduler(ModelRunner(llm.model, llm.vocabulary, 4, paging=paging, capture=counted))
    sequences = [SequenceState.begin(request, i) for i, request in enumerate(requests)]
    for sequence in sequences[:3]:
        batch.admit(sequence)
    batch.step()
    freed = set(paging.table(sequences[0], True).pages)
    while sequences[0].finish_reason is None:
        batch.step()
    batch.admit(sequences[3])
    batch.step()
    assert freed & set(paging.table(sequences[3], True).pages)
    while batch.active:
        batch.step()
    assert [sequence.canvas.tokens.tolist() for sequence in sequences] == expected
    assert counted.shapes[0][0] == 4, "one row was idle"
    assert len(counted.shapes) > len(set(counted.shapes)), "the store grew"


@torch.inference_mode()
def test_a_forward_writes_the_new_keys_of_its_rows_and_page_0_alone():
    llm = tiny_llm("dream", block_size=4)
    store = new_pages(llm)
    tables, ends = [PageTable(store) for _ in range(3)], (20, 40, 4)
    for table, end in zip(tables, ends, strict=True):
        table.reserve(0, end)
    random = torch.Generator().manual_seed(0)
    for tensors in (store.keys, store.values):
        tensors[:] = [torch.randn(each.shape, generator=random) for each in tensors]
    tables[0].publish(np.arange(20), 16)
    before = [tensor.clone() for tensor in (*store.keys, *store.values)]
    starts = (16, 36, 0)
    metas = [
        meta(0, range(max(start - 1, 0), end), end, table=table, write_from=start)
        for table, start, end in zip(tables, starts, ends, strict=True)
    ]
    forwards = StaticForwards(llm.model, PagedRows(store), Counted())
    bucket = forwards.bucket_of(metas)
    assert bucket == Bucket(4, 5, 256)
    states, first = forwards.run(bucket, metas, [one.positions % KNOWN for one in metas])
    assert first == [0, 5, 10]
    assert states.isfinite().all()
    own = {
        int(slot)
        for table, start, end in zip(tables, starts, ends, strict=True)
        for slot in table.slots[start:end]
    }
    for tensor, old in zip((*store.keys, *store.values), before, strict=True):
        assert set((tensor != old).flatten(1).any(1).nonzero()[:, 0].tolist()) == own | {0}


def test_a_row_alone_decodes_as_in_a_batch():
    llm = with_capture(tiny_llm("llada"), Counted())
    options = {"gen_length": 16, "threshold": 0.5, "return_trace": True}
    together = llm.generate(PROMPTS, "threshold", "dual", **options)
    alone = [llm.generate([prompt], "threshold", "dual", **options)[0] for prompt in PROMPTS]
    assert [trace_of(out) for out in together] == [trace_of(out) for out in alone]


def test_a_store_that_grows_gets_new_steps():
    """A step writes into the tensors that it was made with."""
    counted, llm, sizes = Counted(), tiny_llm("llada"), (12, 20, 40)
    options = {"block_length": 4, "stop_at_eos": False}
    expected = [
        llm.generate([[7, 8, 9]], "vanilla", "dual", gen_length=n, **options)[0] for n in sizes
    ]
    scheduler = Scheduler(ModelRunner(llm.model, llm.vocabulary, 4, capture=counted))
    sequences = []
    for i, size in enumerate(sizes):
        request = llm.request([7, 8, 9], "vanilla", "dual", gen_length=size, **options)
        sequences.append(SequenceState.begin(request, i))
        scheduler.admit(sequences[-1])
        for _ in range(3):
            scheduler.step()
    while scheduler.active:
        scheduler.step()
    found = [sequence.canvas.tokens.tolist() for sequence in sequences]
    assert found == [out.canvas_ids for out in expected]
    assert len(counted.shapes) > len(set(counted.shapes)), "some bucket was made anew"


def meta(row=0, positions=(3, 4), length=8, **more):
    ids = np.array(positions, dtype=np.int64)
    return RowMeta(row, ids, length, ids, **more)


def test_the_bucket_is_the_smallest_that_holds_the_rows():
    assert bucket_of([meta()], 1) == Bucket(1, 2, 256)
    assert bucket_of([meta(), meta(2, range(5, 12), 257)], 3) == Bucket(4, 8, 512)
    assert bucket_of([meta(0, range(33), 256)] * 64, 64) == Bucket(64, 33, 256)


def test_a_large_bucket_that_is_mostly_padding_is_not_used():
    long, short = meta(0, range(60), 60), meta()
    assert bucket_of([long, *[short] * 3], 4) == Bucket(4, 64, 256)
    assert bucket_of([long, *[short] * 4], 5) is None
    assert bucket_of([long] * 5, 5) == Bucket(8, 64, 256)


@pytest.mark.parametrize(
    ("metas", "num_rows"),
    [
        ([meta()], 65),
        ([meta(0, range(66), 66)], 1),
        ([meta(0, ())], 1),
        ([meta(), meta(1, is_cached=False)], 2),
        ([meta(needs_weights=True)], 1),
        ([meta(shadows=np.array([1]))], 1),
    ],
)
def test_other_rows_run_packed(metas, num_rows):
    assert bucket_of(metas, num_rows) is None


def test_short_rows_repeat_their_last_query_and_idle_ones_compute_the_spare_position():
    numbers = numbers_of(Bucket(3, 4, 256), [1], [meta(1, (3, 5), 8)], [np.array([40, 41])], 99)
    assert numbers[1].tolist() == [40, 41, 41, 41, 3, 5, 5, 5, 8]
    assert numbers[0].tolist() == numbers[2].tolist() == [0, 0, 0, 0, 99, 99, 99, 99, 1]


def test_rows_in_pages_and_dense_ones_have_no_common_bucket():
    table = PageTable(new_pages(tiny_llm(block_size=4)))
    table.reserve(0, 8)
    paged = meta(table=table)
    assert bucket_of([paged], 1, in_pages=True) == Bucket(1, 2, 256)
    assert bucket_of([paged], 1) is None
    for in_pages in (False, True):
        assert bucket_of([meta(), paged], 2, in_pages=in_pages) is None


def test_final_keys_and_padding_go_to_page_0():
    table = PageTable(new_pages(tiny_llm(block_size=4)))
    table.reserve(0, 40)
    rows = [meta(0, (15, 16, 17), 20, table=table, write_from=16)]
    numbers = pages_of(Bucket(2, 4, 256), rows, 16)
    assert table.pages == [1, 2, 3]
    assert numbers[0].tolist() == [0, 32, 33, 0, 1, 2, *[0] * 14]
    assert numbers[1].tolist() == [0] * 20


@torch.inference_mode()
def test_a_store_that_grew_twice_has_new_steps_though_the_ids_of_its_tensors_return():
    llm, counted = tiny_llm(block_size=4, num_layers=1), Counted()
    store = new_pages(llm)
    table = PageTable(store)
    table.reserve(0, 8)
    forwards = StaticForwards(llm.model, PagedRows(store), counted)
    rows, tokens = [meta(table=table)], [np.array([5, 6])]
    forwards.run(Bucket(1, 2, 256), rows, tokens)
    former = id(store.keys[0]), id(store.values[0])
    for num_slots in range(64, 1024, 16):
        store.grow(num_slots)
        if (id(store.keys[0]), id(store.values[0])) == former:
            break
    forwards.run(Bucket(1, 2, 256), rows, tokens)
    assert len(counted.shapes) == 2


@pytest.mark.slow  # torch.compile loads and traces for half a minute
def test_a_compiler_takes_the_step_of_each_bucket_as_one_graph():
    graphs, shapes = [], []

    def keep(graph, example):
        graphs.append(graph)
        return graph

    def compiled(step, example):
        shapes.append(tuple(example.shape))
        return torch.compile(step, backend=keep, fullgraph=True, dynamic=False)

    block = {"block_size": 4}
    for changes, cache, make in (
        ({}, "dual", with_capture),
        (block, "block_causal", with_capture),
        (block, "block_causal", with_pages),
    ):
        options = {"gen_length": 16, "return_trace": True}
        packed = tiny_llm("llada", **changes).generate(PROMPTS, "threshold", cache, **options)
        llm = make(tiny_llm("llada", **changes), compiled)
        torch._dynamo.reset()  # it takes no more than eight buckets of one function
        assert_same(llm.generate(PROMPTS[:3], "threshold", cache, **options), packed[:3])
    assert len(graphs) == len(shapes) > 2


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch):
    def fails(step, example):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(static_step, "_captured", fails)
    with pytest.warns(RuntimeWarning, match="no CUDA graph: operation not permitted"):
        step = static_step.captured(lambda numbers: numbers + 1, torch.zeros(2))
    assert step(torch.zeros(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("is_on", [True, False])
def test_the_switch_of_the_engine_and_of_the_library_reaches_the_runner(is_on):
    llm, seen = tiny_llm("llada"), []

    def runner(*args, **options):
        seen.append(options["capture"])
        return ModelRunner(*args, **options)

    llm.make_runner = runner
    engine_module._runner(llm, EngineConfig(cuda_graphs=is_on))
    llm.cuda_graphs = is_on
    llm.generate([[7]], gen_length=4)
    assert seen == [static_step.captured if is_on else None] * 2
    assert ModelRunner(llm.model, llm.vocabulary, 1).static == [], "there is no CUDA device"
