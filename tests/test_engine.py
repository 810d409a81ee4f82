"""The engine of a server: what it decodes, what it refuses, who leaves when, and what is left behind."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_properties import METHODS
from tiny import EOS, KNOWN, tiny_llm, trace_of, want

from unmask import caches, decoders
from unmask.attention.layered import FeatureStore
from unmask.decoders.vanilla import Vanilla
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine, RequestUpdate
from unmask.engine.kv_budget import PAGED_SHARE
from unmask.engine.lm_head import MAX_VOCABULARIES
from unmask.errors import CapacityError, ConfigError, EngineError, ModelError
from unmask.kv import dense_store
from unmask.kv.paged_store import PagedStore
from unmask.sampling.token_frequencies import save_background

WAIT_S, BLOCK = 120, 4
_MODELS: dict = {}


def model(kind="plain", seed=1):
    """One of two families, with full or block-causal attention."""
    if (kind, seed) not in _MODELS:
        changes = {"block_size": BLOCK} if kind.startswith("blocks") else {}
        family = "dream" if kind.endswith("dream") else "llada"
        _MODELS[kind, seed] = tiny_llm(family, seed, **changes)
    return _MODELS[kind, seed]


def bytes_for(llm, num_pages):
    """`kv_bytes` of an engine with so many pages; as much for a model that has none."""
    spec = replace(llm.spec, block_size=llm.spec.block_size or BLOCK)
    return int(np.ceil(num_pages * PagedStore.page_bytes(spec, torch.float32) / PAGED_SHARE))


class Listener:
    """Collects updates; `done` is set by the last. `act` is called with every step's."""

    def __init__(self, act=None):
        self.updates: list[RequestUpdate] = []
        self.done, self.act = threading.Event(), act

    def __call__(self, update):
        assert not self.done.is_set(), "told something after the end"
        self.updates.append(update)
        if update.kind != "step":
            self.done.set()
        elif self.act is not None:
            self.act(update)

    @property
    def last(self) -> RequestUpdate:
        assert self.done.wait(WAIT_S), "the request never ended"
        return self.updates[-1]


def positions_and_tokens(output):
    return [[c[:2] for c in step.committed] for step in output.trace]


def assert_same(ours, theirs):
    assert positions_and_tokens(ours) == positions_and_tokens(theirs)
    assert [s.remasked for s in ours.trace] == [s.remasked for s in theirs.trace]
    assert ours.canvas_ids == theirs.canvas_ids
    assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)


def assert_idle(engine):
    """Everything that was given out is back."""
    assert engine.drain(WAIT_S)
    stats = engine.stats
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.rows_free == stats.rows_total
    assert stats.pages_free == stats.pages_total
    assert stats.dense_bytes == 0
    assert not engine._batch.active
    assert not engine._batch._inputs
    assert not engine._batch._num_deferred
    paging = engine._batch.runner.paging
    assert paging is None or not paging._tables


def alone(llm, request):
    """What the library makes of a request."""
    return llm.output(llm.run([request], 1)[0], True)


def test_a_submitted_request_gives_what_the_library_gives():
    llm = model()
    wanted = llm.generate([[7, 8, 9]], "threshold", gen_length=8, return_trace=True)[0]
    with Engine(llm) as engine:
        listener = Listener()
        engine.submit(llm.request([7, 8, 9], "threshold", gen_length=8), listener)
        output = listener.last.output
        assert_idle(engine)
    assert listener.last.kind == "done"
    assert trace_of(output) == trace_of(wanted)
    assert output.text == wanted.text
    steps = listener.updates[:-1]
    assert [u.kind for u in steps] == ["step"] * wanted.num_forwards
    assert [u.num_forwards for u in steps] == list(range(1, wanted.num_forwards + 1))
    settled = [u.num_settled for u in steps]
    assert settled == sorted(settled), "what was settled stays so"
    for update in steps:
        kept = update.canvas.tokens[: update.num_settled].tolist()
        assert output.canvas_ids[: update.num_settled] == kept


# any mixture, in any order, with aborts and preemptions


@dataclass
class Case:
    request: object
    abort_after: int | None


def draw_cases(data, llm, most=6):
    names = [name for name in caches.names() if name != "auto"]
    names = names if llm.spec.block_size else [n for n in names if n != "block_causal"]
    names += ["block_causal"] * 6 if llm.spec.block_size else []
    prompts = st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=9)
    begin = data.draw(st.lists(st.integers(0, KNOWN - 1), max_size=40))
    for _ in range(data.draw(st.integers(2, most))):
        name, knobs = data.draw(st.sampled_from(METHODS))
        shape = {"block_length": 4} if "block_length" in decoders.knob_names(name, knobs) else {}
        length = data.draw(st.sampled_from([4, 8]))
        if not decoders.finds_length(name):
            shape["gen_length"] = length
        else:
            shape |= {"initial_gen_length": length, "max_gen_length": 2 * length}
        own = data.draw(prompts)
        request = llm.request(
            begin + own if data.draw(st.booleans()) else own,
            name,
            data.draw(st.sampled_from(names)),
            seed=data.draw(st.integers(0, 3)),
            stop_at_eos=data.draw(st.booleans()),
            temperature=data.draw(st.sampled_from([0.0, 0.8])),
            cfg_scale=data.draw(st.sampled_from([0.0, 0.0, 0.0, 1.0])),
            **(shape | knobs),
        )
        yield Case(request, data.draw(st.sampled_from([None, None, None, 0, 1, 3])))


@pytest.mark.parametrize("kind", ["plain", "blocks", "blocks-dream"])
@settings(max_examples=7, phases=[Phase.generate])  # shrinking threads takes minutes
@given(data=st.data())
def test_any_mixture_of_arrivals_and_aborts_decodes_like_each_request_alone(kind, data):
    llm = model(kind)
    cases = list(draw_cases(data, llm))
    num_pages = data.draw(st.sampled_from([12, 16, 1000]))
    engine = Engine(
        llm,
        EngineConfig(
            max_num_seqs=data.draw(st.sampled_from([2, 3, 16])),
            max_num_batched_tokens=data.draw(st.sampled_from([1, 24, 8192])),
            kv_cache_memory_bytes=bytes_for(llm, num_pages),
            max_wait=data.draw(st.sampled_from([0.001, 60.0])),
            steps_per_round=data.draw(st.sampled_from([1, 3])),
            enable_prefix_caching=data.draw(st.booleans()),
        ),
    )
    listeners = []
    with engine:
        for case in cases:
            act = None
            if case.abort_after is not None and case.abort_after > 0:
                after = case.abort_after
                act = lambda u, n=after: u.num_forwards == n and engine.abort(u.handle)  # noqa: E731
            listeners.append(Listener(act))
            handle = engine.submit(case.request, listeners[-1])
            if case.abort_after == 0:
                engine.abort(handle)
        ended = [listener.last for listener in listeners]
        assert_idle(engine)
    for case, last in zip(cases, ended, strict=True):
        if last.kind == "aborted":
            assert case.abort_after is not None
            continue
        assert last.kind == "done", last.error
        assert_same(last.output, alone(llm, case.request))


def submit_all(engine, requests, **options):
    listeners = [Listener() for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
        engine.submit(request, listener, **options)
    return listeners


# memory


@pytest.mark.parametrize("kind", ["blocks", "blocks-dream"])
def test_more_requests_than_pages_are_preempted_and_come_back_to_the_same_result(kind):
    llm = model(kind, 2)
    requests = [
        llm.request(
            [3 + i] * 14, "vanilla", "block_causal", gen_length=40, seed=i, temperature=1.0,
            stop_at_eos=False,
        )
        for i in range(6)
    ]  # fmt: skip
    with Engine(llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 8))) as engine:
        listeners = submit_all(engine, requests)
        outputs = [listener.last.output for listener in listeners]
        assert engine.stats.num_preempted > 0
        assert_idle(engine)
    for request, output in zip(requests, outputs, strict=True):
        assert_same(output, alone(llm, request))


@pytest.mark.parametrize("is_shared", [False, True])
def test_of_what_is_found_after_a_preemption_only_what_others_computed_counts(is_shared):
    llm = model("blocks", 2)
    begin = [5] * 16 if is_shared else []
    first = gated(llm, [*begin, *[3] * 10], cache="block_causal", gen_length=30)
    second = llm.request(
        [*begin, *[4] * 34], "vanilla", "block_causal", gen_length=44, stop_at_eos=False
    )
    with Engine(
        llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 7 if is_shared else 6))
    ) as engine:
        if is_shared:
            early = llm.request(begin, "vanilla", "block_causal", gen_length=4, stop_at_eos=False)
            assert submit_all(engine, [early])[0].last.output.num_cached == 0
        listeners = submit_all(engine, [first])
        assert first.decoder.reached.wait(WAIT_S)
        listeners += submit_all(engine, [second])
        first.decoder.open.set()
        outputs = [listener.last.output for listener in listeners]
        stats = engine.stats
    assert stats.num_preempted == 1
    assert stats.prefix_found == 3 * len(begin) + 48, "it found the three pages it had filled"
    assert [output.num_cached for output in outputs] == [len(begin)] * 2


@pytest.mark.parametrize("kind", ["blocks", "blocks-dream"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_a_prefix_that_was_computed_serves_who_begins_alike_until_it_is_evicted(kind, cfg_scale):
    llm = model(kind, 3)
    begin = [int(i) for i in np.random.default_rng(0).integers(0, KNOWN, 40)]
    endings = [[5], [6, 7], [8] * 9]

    def request(prompt):
        return llm.request(
            prompt,
            "threshold",
            "block_causal",
            gen_length=8,
            cfg_scale=cfg_scale,
            stop_at_eos=False,
        )

    with Engine(
        llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 12), max_num_seqs=2)
    ) as engine:
        found = []
        for prompt in (
            [begin + end for end in endings] + [[i] * 64 for i in (9, 8, 7, 6)] + [begin + [5]]
        ):
            output = submit_all(engine, [request(prompt)])[0].last.output
            found.append(output.num_cached)
            assert_same(output, alone(llm, request(prompt)))
        stats = engine.stats
        assert_idle(engine)
    assert found[:7] == [0, 32, 32, 0, 0, 0, 0], "full pages of what is decided, and no more"
    assert found[7] < 32, "given away meanwhile"
    assert stats.prefix_found == sum(found) * (2 if cfg_scale else 1)
    with Engine(llm, EngineConfig(enable_prefix_caching=False)) as engine:
        for _ in range(2):
            output = submit_all(engine, [request(begin)])[0].last.output
            assert output.num_cached == 0
        assert engine.stats.pages_cached == 0


def test_a_hit_computes_only_what_is_new():
    llm = model("blocks", 3)
    request = llm.request([7] * 48, "vanilla", "block_causal", gen_length=4, stop_at_eos=False)
    with Engine(llm) as engine:
        first, second = (submit_all(engine, [request])[0].last.output for _ in range(2))
    assert (first.trace[0].num_queries, second.trace[0].num_queries) == (52, 4)
    assert second.num_queries == first.num_queries - 48
    assert trace_of(first) == trace_of(second)


@pytest.mark.parametrize("kind", ["blocks", "blocks-dream"])
def test_a_long_prompt_is_taken_in_parts_that_leave_no_trace(kind):
    llm = model(kind, 4)
    request = llm.request([7, 8, 9] * 20, "threshold", "block_causal", gen_length=8)
    wanted = alone(llm, request)
    with Engine(llm, EngineConfig(max_num_batched_tokens=16)) as engine:
        short = llm.request([5], "vanilla", "block_causal", gen_length=8, stop_at_eos=False)
        long, other = submit_all(engine, [request, short])
        assert_same(long.last.output, wanted)
        assert_same(other.last.output, alone(llm, short))
        assert engine.stats.num_forwards > other.last.num_forwards + 2
    assert max(step.num_queries for step in long.last.output.trace) <= 16
    assert long.last.output.num_queries == wanted.num_queries


def test_dense_rows_stay_in_their_budget_and_go_when_they_are_not_needed():
    llm = model("plain")
    seen = []
    with Engine(
        llm, EngineConfig(kv_cache_memory_bytes=100 * 512)
    ) as engine:  # 512 bytes a position
        requests = [llm.request([i], "vanilla", "dual", gen_length=39) for i in range(5)]
        listeners = [Listener(lambda _: seen.append(engine.stats)) for _ in requests]
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        for listener in listeners:
            assert listener.last.kind == "done"
        assert max(stats.dense_bytes for stats in seen) == 80 * 512
        assert max(stats.running for stats in seen) == 2
        with pytest.raises(ConfigError, match="kv_cache_memory_bytes"):
            engine.submit(llm.request([1], "vanilla", "dual", gen_length=101), Listener())
        assert_idle(engine)


def test_requests_that_can_never_run_are_refused_at_once():
    llm = model("blocks")
    with Engine(
        llm, EngineConfig(max_num_seqs=1, kv_cache_memory_bytes=bytes_for(llm, 3))
    ) as engine:
        with pytest.raises(ConfigError, match="2 rows"):
            engine.submit(llm.request([1], cfg_scale=1.0, gen_length=4), Listener())
        with pytest.raises(ConfigError, match="takes 4 pages of cache, but the engine has 3"):
            engine.submit(llm.request([1] * 33, "ar", "block_causal", gen_length=16), Listener())
        with pytest.raises(ConfigError, match="deadline_s=0"):
            engine.submit(llm.request([1], gen_length=4), Listener(), deadline_s=0)
    with pytest.raises(ConfigError, match="holds no page"):
        Engine(llm, EngineConfig(kv_cache_memory_bytes=1000))
    sizes = ("max_num_seqs", 0), ("max_queue", 0), ("max_wait", 0), ("enable_prefix_caching", "yes")
    for name, value in sizes:
        with pytest.raises(ConfigError, match=name):
            EngineConfig(**{name: value})


def test_only_so_many_vocabularies_that_clients_choose_are_remembered(tmp_path):
    llm, count = model(), MAX_VOCABULARIES + 3
    file = str(tmp_path / "counts.json")
    save_background(file, {id_: 100 - id_ for id_ in range(KNOWN)})
    knobs = {"vocabulary": "frequency", "frequencies": file, "gen_length": 4, "stop_at_eos": False}
    requests = [llm.request([7], "ar", vocab_size=1 + i, **knobs) for i in range(count)]
    with Engine(llm, EngineConfig(max_num_seqs=count)) as engine:
        outputs = [listener.last.output for listener in submit_all(engine, requests)]
        assert (
            engine._batch.runner.lm_head.frequency_vocabulary.cache_info().currsize
            == MAX_VOCABULARIES
        )
        assert_idle(engine)
    for request, output in zip(requests[:3], outputs, strict=False):
        assert_same(output, alone(llm, request))


# the queue


class Gate:
    """A decoder that waits at its n-th step until it is let through, and may then raise."""

    def __init__(self, decoder, step=0, error=None):
        self.decoder, self.at, self.error = decoder, step, error
        self.reached, self.open = threading.Event(), threading.Event()
        self.count = 0

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def step(self, canvas, state, reading):
        if self.count == self.at:
            self.reached.set()
            assert self.open.wait(WAIT_S)
            if self.error is not None:
                raise self.error
        self.count += 1
        return self.decoder.step(canvas, state, reading)


class Unsettled(Vanilla):
    """A decoder that breaks a rule which the engine checks after the forward."""

    def num_settled(self, canvas, state):
        return "all"


class Failing:
    """A cache that raises when it is told what is known already."""

    def __init__(self, cache):
        self.cache = cache

    def __getattr__(self, name):
        return getattr(self.cache, name)

    def resume(self, *_):
        raise RuntimeError("a bug of the cache")


def gated(llm, prompt=(7, 8), step=0, error=None, cache="none", gen_length=8):
    request = llm.request(list(prompt), "vanilla", cache, gen_length=gen_length, stop_at_eos=False)
    gate = Gate(request.decoder, step, error)
    return replace(request, method=replace(request.method, decoder=gate))


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    llm = model()
    first = gated(llm)
    with Engine(llm, EngineConfig(max_num_seqs=1, max_queue=2)) as engine:
        listeners = submit_all(engine, [first])
        assert first.decoder.reached.wait(WAIT_S)
        listeners += submit_all(engine, [llm.request([i], gen_length=4) for i in range(2)])
        with pytest.raises(CapacityError, match="at most 2 may") as caught:
            engine.submit(llm.request([9], gen_length=4), Listener())
        assert caught.value.retry_after_s >= 1
        first.decoder.open.set()
        assert [listener.last.kind for listener in listeners] == ["done"] * 3
        assert listeners[1].last.queue_s > 0
        assert_idle(engine)


def test_a_deadline_ends_a_request_in_the_queue_and_while_it_runs():
    llm = model()
    first = gated(llm, step=1)
    with Engine(llm, EngineConfig(max_num_seqs=1)) as engine:
        # long enough for a busy machine to come to the second forward before it is over
        running = submit_all(engine, [first], deadline_s=1)[0]
        queued = submit_all(engine, [llm.request([1], gen_length=4)], deadline_s=1)[0]
        assert first.decoder.reached.wait(WAIT_S)
        time.sleep(1)
        first.decoder.open.set()
        assert (running.last.kind, queued.last.kind) == ("timeout", "timeout")
        assert (running.last.num_forwards, queued.last.num_forwards) == (2, 0)
        assert running.last.output is None
        assert_idle(engine)
        assert engine.stats.ended["timeout"] == 2


@pytest.mark.parametrize("cache", ["none", "dual", "block_causal"])
def test_an_abort_frees_everything_before_the_next_forward(cache):
    llm = model("blocks")
    first = gated(llm, step=2, cache=cache)
    with Engine(llm) as engine:
        listener = Listener()
        handle = engine.submit(first, listener)
        assert first.decoder.reached.wait(WAIT_S)
        engine.abort(handle)
        first.decoder.open.set()
        assert listener.last.kind == "aborted"
        assert listener.last.num_forwards == 3, "the forward under way, and no other"
        assert_idle(engine)
        engine.abort(handle)
        handle.finish()


def test_an_abort_and_an_end_wait_for_the_rounds_end():
    llm = model()
    request = llm.request([7, 8], "ar", gen_length=8, stop_at_eos=False)
    with Engine(llm, EngineConfig(steps_per_round=3)) as engine:
        aborted = Listener(lambda u: u.num_forwards == 2 and engine.abort(u.handle))
        ended = Listener(lambda u: u.num_forwards == 4 and u.handle.finish())
        for listener in (aborted, ended):
            engine.submit(request, listener)
            assert listener.done.wait(WAIT_S)
        assert_idle(engine)
    assert (aborted.last.kind, aborted.last.num_forwards) == ("aborted", 3)
    assert (ended.last.kind, ended.last.num_forwards) == ("done", 6)


def test_a_listener_may_end_its_request_as_if_an_end_token_stood_there():
    llm = model()
    request = llm.request([7, 8], "ar", gen_length=8, stop_at_eos=False)
    wanted = alone(llm, request)
    with Engine(llm) as engine:
        listener = Listener(lambda u: u.num_forwards == 3 and u.handle.finish())
        engine.submit(request, listener)
        output = listener.last.output
        assert_idle(engine)
    assert listener.last.kind == "done"
    assert output.finish_reason == "stop"
    assert output.token_ids == wanted.token_ids[:3]
    assert output.num_forwards == 3


def test_small_requests_pass_a_large_one_until_it_has_waited_long_enough():
    llm = model()
    for max_wait_s, order in ((60.0, ["small", "large"]), (1e-6, ["large", "small"])):
        first, ended = gated(llm), []
        with Engine(llm, EngineConfig(max_num_seqs=2, max_wait=max_wait_s)) as engine:
            submit_all(engine, [first])
            assert first.decoder.reached.wait(WAIT_S)
            large = llm.request([1], gen_length=4, cfg_scale=1.0)  # two rows
            listeners = [Listener(), Listener()]
            engine.submit(large, listeners[0])
            engine.submit(llm.request([2], "ar", gen_length=4, stop_at_eos=False), listeners[1])
            for name, listener in zip(("large", "small"), listeners, strict=True):
                listener.act = lambda u, n=name, told=ended: told.append(n)
            first.decoder.open.set()
            for listener in listeners:
                assert listener.last.kind == "done"
        assert list(dict.fromkeys(ended)) == order


def test_who_does_not_fit_in_a_forward_goes_first_in_the_next():
    llm = model()
    requests = [llm.request([i], "ar", gen_length=8, stop_at_eos=False) for i in range(4)]
    order = []
    with Engine(llm, EngineConfig(max_num_batched_tokens=20)) as engine:
        listeners = [Listener(lambda u, n=i: order.append(n)) for i in range(4)]
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        for listener in listeners:
            assert listener.last.kind == "done"
    for i in range(4):
        turns = [k for k, n in enumerate(order) if n == i]
        assert max(np.diff(turns)) <= 12, "nobody waits for long"


# waste


def test_work_right_of_an_end_token_is_counted():
    llm = want(model(), EOS)
    request = llm.request([7, 8], "vanilla", gen_length=8, steps=4, block_length=8)
    output = alone(llm, request)
    assert output.finish_reason == "stop"
    first = min(c.position for step in output.trace for c in step.committed if c.token == EOS)
    assert first == 2
    assert output.num_wasted == output.num_forwards * 7
    with Engine(llm) as engine:
        ours = submit_all(engine, [request])[0].last.output
        assert engine.stats.num_wasted == ours.num_wasted == output.num_wasted
        assert engine.stats.num_queries == 10 * output.num_forwards
        assert engine.stats.num_answer == 8 * output.num_forwards, "the prompt's two are left out"
    full = alone(llm, llm.request([7, 8], "ar", gen_length=8))
    assert (full.num_forwards, full.num_wasted) == (1, 0), "a canvas that grows wastes nothing"
    grown = alone(llm, llm.request([7, 8], "block_diffusion", gen_length=8, block_length=4))
    assert grown.num_wasted == 3 * grown.num_forwards


# faults


def test_an_exception_in_one_decoder_fails_that_request_alone():
    llm = model("blocks")
    others = [
        llm.request([i, 3], "threshold", cache, gen_length=8)
        for i, cache in enumerate(("none", "dual", "block_causal"))
    ]
    for cache in ("none", "dual", "block_causal"):
        broken = gated(llm, step=1, error=RuntimeError("a bug"), cache=cache)
        broken.decoder.open.set()
        with Engine(llm) as engine:
            listeners = submit_all(engine, [*others, broken, *others])
            last = listeners[3].last
            assert (last.kind, str(last.error), last.num_forwards) == ("error", "a bug", 1)
            for listener, request in zip(listeners[:3] + listeners[4:], others * 2, strict=True):
                assert_same(listener.last.output, alone(llm, request))
            assert_idle(engine)
            assert engine.failure is None


@pytest.mark.parametrize("stop_at_eos", [False, True])
def test_a_decoder_without_a_number_of_settled_positions_fails_that_request_alone(stop_at_eos):
    llm = model()
    broken = llm.request([7, 8], "vanilla", gen_length=8, stop_at_eos=stop_at_eos)
    decoder = Unsettled(block_length=8)
    broken = replace(broken, method=replace(broken.method, decoder=decoder))
    other = llm.request([3], "threshold", gen_length=8)
    with Engine(llm) as engine:
        listeners = submit_all(engine, [other, broken])
        assert listeners[1].last.kind == "error"
        assert "num_settled returned all" in str(listeners[1].last.error)
        assert_same(listeners[0].last.output, alone(llm, other))
        assert_idle(engine)


def test_a_listener_that_raises_loses_its_request_and_nothing_else():
    llm = model()

    def broken(update):
        raise RuntimeError("a bug of the server")

    with Engine(llm) as engine:
        engine.submit(llm.request([7], gen_length=8), broken)
        listener = submit_all(engine, [llm.request([8], gen_length=8)])[0]
        assert listener.last.kind == "done"
        assert_idle(engine)
        assert engine.stats.listener_errors >= 1
        assert engine.stats.ended["aborted"] == 1


def test_a_text_that_cannot_be_told_is_its_requests_error(monkeypatch):
    llm = tiny_llm("llada", 9)

    def decode(ids):
        raise ValueError("no such token")

    with Engine(llm) as engine:
        monkeypatch.setattr(llm, "decode", decode)
        last = submit_all(engine, [llm.request([7], gen_length=4)])[0].last
        assert (last.kind, type(last.error), last.output) == ("error", ValueError, None)
        assert_idle(engine)
        assert (engine.stats.ended["error"], engine.stats.ended["done"]) == (1, 0)


def test_a_request_whose_own_knobs_give_no_numbers_fails_alone():
    llm = model()
    with Engine(llm) as engine:
        listeners = submit_all(
            engine,
            [llm.request([7], gen_length=8, cfg_scale=1e39), llm.request([7], gen_length=8)],
        )
        assert listeners[0].last.kind == "error"
        assert isinstance(listeners[0].last.error, ModelError)
        assert listeners[1].last.kind == "done"
        assert engine.failure is None


def test_a_dead_engine_answers_everybody_and_takes_no_more():
    llm = tiny_llm("llada", 9)
    first = gated(llm, step=1)
    failed = threading.Event()
    with Engine(llm, EngineConfig(max_num_seqs=2)) as engine:
        engine.on_failure = failed.set
        listeners = submit_all(
            engine, [first, *(llm.request([i], gen_length=8, stop_at_eos=False) for i in range(4))]
        )
        assert first.decoder.reached.wait(WAIT_S)
        llm.model.layers[0].ffn.down.weight.fill_(float("nan"))
        first.decoder.open.set()
        for listener in listeners:
            assert listener.last.kind == "error"
            assert isinstance(listener.last.error, EngineError)
        assert isinstance(engine.failure, ModelError)
        assert failed.wait(WAIT_S)
        with pytest.raises(EngineError, match="failed"):
            engine.submit(llm.request([1], gen_length=4), Listener())
        assert engine.stats.running == engine.stats.queued == 0


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_who_finds_no_memory_when_it_comes_in_fails_alone(monkeypatch, cfg_scale):
    """Its rows are known to the runner by then, and two layers have their new tensors."""
    llm = model()
    first = gated(llm, step=1, cache="dual")
    shapes = {"cache": "dual", "gen_length": 8}
    others = [llm.request([i, 7], **shapes) for i in range(3)]
    broken = llm.request([9], cfg_scale=cfg_scale, **(shapes | {"gen_length": 24}))
    grown, count = dense_store._grown, [0]

    def fail(tensor, rows, positions):
        if positions == 25:
            count[0] += 1
            if count[0] == 3:
                raise MemoryError("no more of it")
        return grown(tensor, rows, positions)

    monkeypatch.setattr(dense_store, "_grown", fail)
    with Engine(llm) as engine:
        listeners = submit_all(engine, [first])
        assert first.decoder.reached.wait(WAIT_S)
        listeners += submit_all(engine, [*others[:2], broken, others[2]])
        first.decoder.open.set()
        last = listeners[3].last
        assert (last.kind, type(last.error), last.num_forwards) == ("error", MemoryError, 0)
        for listener, request in zip(listeners[1:3] + listeners[4:], others, strict=True):
            assert_same(listener.last.output, alone(llm, request))
        assert listeners[0].last.kind == "done"
        again = submit_all(engine, [broken])[0].last
        assert_same(again.output, alone(llm, broken))
        assert engine.failure is None
        assert_idle(engine)


def test_a_cache_that_cannot_begin_gives_its_pages_back():
    llm = model("blocks", 3)
    request = llm.request([7] * 48, "vanilla", "block_causal", gen_length=4, stop_at_eos=False)
    broken = replace(request, method=replace(request.method, cache=Failing(request.cache)))
    with Engine(llm) as engine:
        first, second, third = (
            submit_all(engine, [each])[0].last for each in (request, broken, request)
        )
        assert (second.kind, str(second.error)) == ("error", "a bug of the cache")
        assert_same(third.output, first.output)
        assert_idle(engine)


@torch.inference_mode()
def test_a_store_that_cannot_grow_is_as_it_was(monkeypatch):
    llm = model()
    for kind in (dense_store.DenseStore, FeatureStore):
        kept = kind(llm.spec, 1, 4, torch.float32, torch.device("cpu"))
        before = [tensor for tensors in kept.tensors for tensor in tensors]
        for number in range(len(before)):
            grown, left = dense_store._grown, iter(range(number))

            def fail(tensor, rows, positions, left=left, grown=grown):
                if next(left, None) is None:
                    raise MemoryError("no more of it")
                return grown(tensor, rows, positions)

            with monkeypatch.context() as patch:
                patch.setattr(dense_store, "_grown", fail)
                with pytest.raises(MemoryError):
                    kept.reserve(8, 2)
            after = [tensor for tensors in kept.tensors for tensor in tensors]
            assert all(one is other for one, other in zip(before, after, strict=True))
            assert kept.positions == 4
        kept.reserve(8, 2)
        assert {tensor.shape[::2] for tensors in kept.tensors for tensor in tensors} == {(2, 8)}


def test_stopping_tells_who_waits_and_leaves_no_thread():
    others = set(threading.enumerate())  # another file's server may run in this process
    llm = model()
    first = gated(llm)
    engine = Engine(llm, EngineConfig(max_num_seqs=1))
    with pytest.raises(EngineError, match="not started"):
        engine.submit(llm.request([1], gen_length=4), Listener())
    engine.start()
    with pytest.raises(EngineError, match="started already"):
        engine.start()
    listeners = submit_all(engine, [first, llm.request([1], gen_length=4)])
    assert first.decoder.reached.wait(WAIT_S)
    assert not engine.drain(0.01)
    with pytest.raises(CapacityError, match="stopping"):
        engine.submit(llm.request([1], gen_length=4), Listener())
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    first.decoder.open.set()
    stopper.join(WAIT_S)
    assert [listener.last.kind for listener in listeners] == ["aborted", "aborted"]
    assert set(threading.enumerate()) <= others
    assert_idle(engine)
    engine.stop()


def soak(engine, llm, count, seed):
    """Random requests with random aborts; how each ended."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, KNOWN, 30).tolist()
    listeners = []
    for _ in range(count):
        cache = str(rng.choice(["none", "dual", "dllm", "block_causal", "block_causal"]))
        request = llm.request(
            begin[: rng.integers(1, 30)] + rng.integers(0, KNOWN, rng.integers(1, 5)).tolist(),
            str(rng.choice(["threshold", "vanilla", "wino", "klass"])),
            cache,
            gen_length=8,
            temperature=float(rng.choice([0.0, 1.0])),
            cfg_scale=float(rng.choice([0.0, 0.0, 1.0])) if cache != "dllm" else 0.0,
        )
        after = int(rng.integers(0, 12))
        act = lambda u, n=after: u.num_forwards == n and engine.abort(u.handle)  # noqa: E731
        listeners.append(Listener(act))
        handle = engine.submit(request, listeners[-1], deadline_s=5 * WAIT_S)
        if after == 0:
            engine.abort(handle)
    kinds = [listener.last.kind for listener in listeners]
    assert set(kinds) <= {"done", "aborted"}, kinds
    return kinds


def test_nothing_is_left_behind_by_many_requests_and_aborts():
    llm = model("blocks")
    threads = threading.active_count()
    with Engine(
        llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 32), max_queue=1000)
    ) as engine:
        kinds = soak(engine, llm, 120, 0)
        assert_idle(engine)
    assert {"done", "aborted"} == set(kinds)
    assert threading.active_count() == threads


@pytest.mark.slow
def test_a_thousand_requests_leave_the_memory_as_it_was():
    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    llm = model("blocks")
    with Engine(
        llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 32), max_queue=1000)
    ) as engine:
        soak(engine, llm, 300, 1)
        before = resident()
        for part in range(4):
            soak(engine, llm, 250, 2 + part)
        assert resident() - before < 16 << 20
        assert_idle(engine)
