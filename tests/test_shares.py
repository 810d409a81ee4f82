"""Small requests among large ones: their wait has a bound, large ones go on, and no trace depends on it."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from test_engine import WAIT_S, Listener, alone, assert_idle, assert_same, gated, model, submit_all

from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.shares import MAX_DEFERRED, SMALLER, most_work, num_extra_rows
from unmask.errors import CapacityError

LARGE, SMALL = 64, 4


def request_of(llm, prompt, size, cache="none", **knobs):
    return llm.request([prompt], "ar", cache, gen_length=size, stop_at_eos=False, **knobs)


def watched(engine):
    """Record the rows of every forward."""
    runner, found = engine._batch.runner, []
    plain = runner.launch

    def launch(inputs, ahead=()):
        found.append([item.sequence for item in inputs])
        return plain(inputs, ahead)

    runner.launch = launch
    return found


def turns_of(listener, forwards):
    """Return the numbers of the forwards that a request was part of."""
    own = listener.last.handle.sequence
    return [n for n, rows in enumerate(forwards) if any(one is own for one in rows)]


@pytest.mark.parametrize(
    ("max_num_seqs", "cache"),
    [
        (1, "none"),
        (4, "prefix"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, "prefix"), (2, "none")]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, "prefix"), (4, "none")]),
    ],
)
def test_a_small_request_does_not_wait_for_large_ones(max_num_seqs, cache):
    llm = model()
    first = gated(llm, cache=cache, gen_length=LARGE)
    large = [request_of(llm, n, LARGE, cache) for n in range(5)]
    small = request_of(llm, 9, SMALL, cache)
    with Engine(llm, EngineConfig(max_num_seqs=max_num_seqs)) as engine:
        forwards = watched(engine)
        listeners = submit_all(engine, [first, *large])
        assert first.decoder.reached.wait(WAIT_S)
        before = len(forwards)
        listener = Listener()
        engine.submit(small, listener)
        first.decoder.open.set()
        assert_same(listener.last.output, alone(llm, small))
        own = turns_of(listener, forwards)
        assert own[-1] - before < 2 * SMALL + 2, "at most a forward in MAX_DEFERRED is not its own"
        for one, request in zip(listeners, [first, *large], strict=True):
            assert_same(one.last.output, alone(llm, request))
        assert_idle(engine)
        assert not engine._small
    rows = [sum(one.num_rows for one in forward) for forward in forwards]
    assert max(rows) <= max_num_seqs


@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_a_stream_of_small_requests_never_stops_a_large_one(max_num_seqs):
    llm = model()
    first = gated(llm, gen_length=LARGE)
    large = [request_of(llm, n, LARGE) for n in range(max_num_seqs - 1)]
    with Engine(llm, EngineConfig(max_num_seqs=max_num_seqs)) as engine:
        forwards = watched(engine)
        listeners = submit_all(engine, [first, *large])
        assert first.decoder.reached.wait(WAIT_S)
        smalls = submit_all(engine, [request_of(llm, n, SMALL) for n in range(40)])
        first.decoder.open.set()
        for listener in (*listeners, *smalls):
            assert listener.last.kind == "done"
        assert_idle(engine)
    for listener in listeners:
        turns = turns_of(listener, forwards)
        assert max(later - sooner for sooner, later in pairwise(turns)) <= MAX_DEFERRED + 1


def test_requests_of_one_size_start_in_the_order_of_their_arrival():
    llm = model()
    first, ended = gated(llm, gen_length=8), []
    with Engine(llm, EngineConfig(max_num_seqs=1)) as engine:
        listeners = submit_all(engine, [first])
        assert first.decoder.reached.wait(WAIT_S)
        for number in range(6):
            listener = Listener(lambda _, n=number: ended.append(n))
            engine.submit(request_of(llm, number, 8 - number // 2), listener)
            listeners.append(listener)
        first.decoder.open.set()
        for listener in listeners:
            assert listener.last.kind == "done"
    assert list(dict.fromkeys(ended)) == list(range(6))


def test_large_requests_are_admitted_though_small_ones_are_in_the_batch():
    llm = model()
    first = gated(llm, gen_length=LARGE)
    with Engine(llm, EngineConfig(max_num_seqs=2)) as engine:
        listeners = submit_all(engine, [first])
        assert first.decoder.reached.wait(WAIT_S)
        listeners += submit_all(engine, [request_of(llm, n, SMALL) for n in range(2)])
        listeners += submit_all(engine, [request_of(llm, 5, LARGE)])
        listeners += submit_all(engine, [request_of(llm, n, SMALL) for n in range(20)])
        first.decoder.open.set()
        smalls = [listener.last for listener in listeners[4:]]
        assert all(update.kind == "done" for update in smalls)
        started = listeners[3].updates[0].handle.started_s
        assert started < smalls[3].handle.started_s
        for listener in listeners:
            assert listener.last.kind == "done"
        assert_idle(engine)


def test_guided_small_requests_take_two_extra_rows_or_wait():
    llm = model()
    for max_num_seqs in (2, 8):
        first = gated(llm, gen_length=LARGE)
        large = [request_of(llm, n, LARGE) for n in range(max_num_seqs - 1)]
        small = request_of(llm, 9, SMALL, cfg_scale=1.0)
        with Engine(llm, EngineConfig(max_num_seqs=max_num_seqs)) as engine:
            listeners = submit_all(engine, [first, *large])
            assert first.decoder.reached.wait(WAIT_S)
            listeners += submit_all(engine, [small])
            first.decoder.open.set()
            assert_same(listeners[-1].last.output, alone(llm, small))
            for listener in listeners:
                assert listener.last.kind == "done"
            assert_idle(engine)


def test_the_more_extra_rows_are_taken_the_smaller_a_request_must_be():
    for num_extra in (1, 2, 4, 16):
        limits = [most_work(1000, taken, num_extra) for taken in range(num_extra)]
        assert limits[0] == 1000 // SMALLER
        assert limits == sorted(limits, reverse=True)
        assert limits[-1] >= 1000 // SMALLER**3
    assert most_work(1000, 1, 2) == 1000 // SMALLER**2
    assert [num_extra_rows(size) for size in (1, 2, 4, 8, 16, 64)] == [1, 1, 2, 2, 4, 16]


def test_a_full_queue_says_when_a_place_is_free():
    llm = model()
    slow = [gated(llm, prompt=(n, 8), gen_length=40) for n in range(1, 3)]
    for request in slow:
        request.decoder.open.set()
        plain = request.decoder.step

        def step(*arguments, plain=plain):
            time.sleep(0.1)
            return plain(*arguments)

        request.decoder.step = step
    with Engine(llm, EngineConfig(max_num_seqs=1, max_queue=1)) as engine:
        listeners = submit_all(engine, slow[:1])
        while not (listeners[0].updates and listeners[0].updates[-1].num_forwards >= 10):
            time.sleep(0.02)
        listeners += submit_all(engine, slow[1:])
        asked_s = time.monotonic()
        with pytest.raises(CapacityError) as caught:
            engine.submit(request_of(llm, 5, 40), Listener())
        said_s = caught.value.retry_after_s
        assert listeners[0].last.kind == "done"
        took_s = time.monotonic() - asked_s
        assert took_s / 2 < said_s < 2 * took_s + 1
        time.sleep(max(0.0, asked_s + said_s + 0.5 - time.monotonic()))
        engine.submit(request_of(llm, 5, 40), Listener())
