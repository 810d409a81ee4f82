"""Forwards of fixed shapes: the tokens of packed ones, one graph for each bucket."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_properties import METHODS, PROMPTS, generate
from tiny import FAMILIES, tiny_llm, trace_of

from unmask.attention.packed import RowMeta
from unmask.attention.static import Bucket, bucket_of, numbers_of
from unmask.engine import engine as engine_module
from unmask.engine import static_step
from unmask.engine.config import EngineConfig
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState

DENSE = ("prefix", "dual", "dkv", "vicinity", "d2cache", "dllm")
"""Cache policies that store dense rows; the last two have forwards that cannot have fixed shapes."""


def with_capture(llm, capture):
    """The same model, whose runners capture their steps by a function."""
    llm.make_runner = lambda *args, **options: ModelRunner(*args, **options | {"capture": capture})
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
    assert bucket_of([meta(0, range(33), 256)], 64) == Bucket(64, 33, 256)


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
    numbers = numbers_of(Bucket(3, 4, 256), [meta(1, (3, 5), 8)], [np.array([40, 41])], spare=99)
    assert numbers[1].tolist() == [40, 41, 41, 41, 3, 5, 5, 5, 8]
    assert numbers[0].tolist() == numbers[2].tolist() == [0, 0, 0, 0, 99, 99, 99, 99, 1]


@pytest.mark.slow  # torch.compile loads and traces for half a minute
def test_a_compiler_takes_the_step_of_each_bucket_as_one_graph():
    graphs, shapes = [], []

    def keep(graph, example):
        graphs.append(graph)
        return graph

    def compiled(step, example):
        shapes.append(tuple(example.shape))
        return torch.compile(step, backend=keep, fullgraph=True, dynamic=False)

    for changes, cache in (({}, "dual"), ({"block_size": 4}, "block_causal")):
        options = {"gen_length": 16, "return_trace": True}
        packed = tiny_llm("llada", **changes).generate(PROMPTS, "threshold", cache, **options)
        llm = with_capture(tiny_llm("llada", **changes), compiled)
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
    assert ModelRunner(llm.model, llm.vocabulary, 1).static is None, "there is no CUDA device"
