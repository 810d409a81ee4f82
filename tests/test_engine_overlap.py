"""Listeners that are notified during the next forward get what they would get right after each forward."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_engine import WAIT_S, Gate, Listener, assert_idle, bytes_for, draw_cases, model
from tiny import trace_of

from unmask.engine import engine as engine_module
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState
from unmask.sampling.transfer import is_asynchronous


@dataclass
class Case:
    """A request, and the numbers of the forwards of the engine in which things befall it."""

    request: Any
    abort: int | None = None
    finish: int | None = None
    deadline: int | None = None
    error: int | None = None
    """The decoder raises in this step of its own."""


@dataclass
class Script:
    """What happens, and in which forward of the engine."""

    cases: list[Case]
    config: EngineConfig
    stop: int | None = None
    failure: int | None = None
    fails_late: bool = False
    """The wait fails, not the launch."""


def content(update):
    """Return all that an update says, but for the time."""
    canvas, before, edit, output = update.canvas, update.before, update.edit, update.output
    return (
        update.kind,
        [each.tolist() for each in (canvas.tokens, canvas.open, canvas.uid)],
        [each.tolist() for each in (before.tokens, before.open, before.uid)],
        [each.tolist() for each in (edit.commit, edit.tokens, edit.remask)],
        (update.num_settled, update.num_forwards, update.num_queries, update.num_cached),
        (update.num_draft_forwards, update.num_draft_queries),
        None if output is None else (output.text, output.canvas_ids, trace_of(output)),
        repr(update.error),
    )


def played(llm, script, is_overlapping):
    """Return the contents of all updates of each case; the clock counts forwards."""
    clock, handles = SimpleNamespace(now=0), []
    engine = Engine(llm, script.config)
    engine.is_overlapping = is_overlapping
    runner = engine._batch.runner
    launch, collect = runner.launch, runner.collect

    def scripted(inputs, ahead=()):
        clock.now += 1
        for handle, case in zip(handles, script.cases, strict=True):
            if case.abort == clock.now:
                engine.abort(handle)
            if case.finish == clock.now:
                handle.finish()
        if script.stop == clock.now:
            engine.stop()
        if script.failure == clock.now and not script.fails_late:
            raise RuntimeError("the device fell off")
        return launch(inputs, ahead)

    def collected(pending):
        if script.failure == clock.now:
            raise RuntimeError("the device fell off")
        return collect(pending)

    runner.launch, runner.collect = scripted, collected
    listeners = [Listener() for _ in script.cases]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: float(clock.now)))
        with engine:
            with engine._wake:  # the engine sees them all at once
                for case, listener in zip(script.cases, listeners, strict=True):
                    until = None if case.deadline is None else case.deadline + 0.5
                    handles.append(engine.submit(with_error(case), listener, deadline_s=until))
            for listener in listeners:
                assert listener.done.wait(WAIT_S), "a request never ended"
        assert not engine._waiting
        if script.failure is None or clock.now < script.failure:
            assert_idle(engine)
    return [list(map(content, listener.updates)) for listener in listeners]


def with_error(case):
    if case.error is None:
        return case.request
    gate = Gate(case.request.decoder, case.error, RuntimeError("a bug"))
    gate.open.set()
    return replace(case.request, method=replace(case.request.method, decoder=gate))


@pytest.mark.parametrize("kind", ["plain", "blocks"])
@settings(max_examples=12, phases=[Phase.generate])
@given(data=st.data())
def test_a_listener_gets_the_same_updates_during_the_next_forward(kind, data):
    llm = model(kind)
    soon = st.sampled_from([None] * 5 + [1, 2, 3, 5])
    cases = [
        Case(case.request, *(data.draw(soon) for _ in range(4))) for case in draw_cases(data, llm)
    ]
    config = EngineConfig(
        max_num_seqs=data.draw(st.sampled_from([2, 3, 16])),
        max_num_batched_tokens=data.draw(st.sampled_from([1, 24, 8192])),
        kv_cache_memory_bytes=bytes_for(llm, data.draw(st.sampled_from([18, 24, 1000]))),
        steps_per_round=data.draw(st.sampled_from([1, 3])),
        enable_prefix_caching=data.draw(st.booleans()),
    )
    late = data.draw(st.booleans())
    script = Script(cases, config, data.draw(soon), data.draw(soon), late)
    plain = played(llm, script, is_overlapping=False)
    assert played(llm, script, is_overlapping=True) == plain
    for updates in plain:
        assert [update[0] == "step" for update in updates] == [True] * (len(updates) - 1) + [False]


def ar(llm, length, prompt=7):
    """Return a request that takes as many forwards as it has positions."""
    return llm.request([prompt, 8], "ar", gen_length=length, stop_at_eos=False)


def test_updates_are_the_same_when_requests_lose_their_pages():
    llm = model("blocks", 2)
    requests = [
        llm.request([3 + i] * 14, "vanilla", "block_causal", gen_length=40, stop_at_eos=False)
        for i in range(6)
    ]
    config = EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 8))
    script = Script([Case(request) for request in requests], config)
    assert played(llm, script, is_overlapping=True) == played(llm, script, is_overlapping=False)


class Record:
    """The order of launches, waits and updates of an engine."""

    def __init__(self, engine):
        self.entries, runner = [], engine._batch.runner
        for name in ("launch", "collect"):
            setattr(runner, name, self.noting(name, getattr(runner, name)))

    def noting(self, name, call):
        def noted(*args):
            self.entries.append(name)
            return call(*args)

        return noted

    def listener(self, name):
        return Listener(lambda update: self.entries.append((name, update.num_forwards)))


def recorded(llm, lengths, is_overlapping=True):
    """Decode requests of so many forwards together; return the order of everything."""
    engine = Engine(llm)
    engine.is_overlapping = is_overlapping
    record = Record(engine)
    listeners = [record.listener(name) for name in range(len(lengths))]
    with engine:
        with engine._wake:
            for name, (length, listener) in enumerate(zip(lengths, listeners, strict=True)):
                engine.submit(
                    ar(llm, length), lambda u, n=name, told=listener: end(record, u, n, told)
                )
        for listener in listeners:
            assert listener.last.kind == "done"
    return record.entries


def end(record, update, name, listener):
    """Note the end of a request too."""
    if update.kind != "step":
        record.entries.append((name, update.kind))
    listener(update)


def test_a_listener_runs_between_the_launch_and_the_wait_of_the_next_forward():
    assert recorded(model(), [3]) == [
        *("launch", "collect"),
        *("launch", (0, 1), "collect"),
        *("launch", (0, 2), "collect"),
        *((0, 3), (0, "done")),
    ]
    assert recorded(model(), [2], is_overlapping=False) == [
        *("launch", "collect", (0, 1)),
        *("launch", "collect", (0, 2), (0, "done")),
    ]


def test_the_end_of_a_request_does_not_wait_for_the_next_forward():
    assert recorded(model(), [1, 3, 2]) == [
        *("launch", "collect", (0, 1), (0, "done")),
        *("launch", (1, 1), (2, 1), "collect", (2, 2), (2, "done")),
        *("launch", (1, 2), "collect", (1, 3), (1, "done")),
    ]


def test_only_a_device_beside_the_host_is_asynchronous():
    assert not Engine(model()).is_overlapping
    assert not is_asynchronous(torch.device("cpu"))
    assert is_asynchronous(torch.device("cuda", 0))


@pytest.mark.parametrize("name", ["raises", "aborts", "finishes"])
def test_a_listener_that_ends_its_request_ends_it_after_the_present_forward(name):
    llm = model()

    def act(update):
        if update.num_forwards == 2:
            if name == "raises":
                raise RuntimeError("a bug of the server")
            (engine.abort if name == "aborts" else type(update.handle).finish)(update.handle)

    engine = Engine(llm)
    engine.is_overlapping = True
    listener, other = Listener(act), Listener()
    with engine:
        with engine._wake:
            engine.submit(ar(llm, 8), listener)
            engine.submit(ar(llm, 8, 9), other)
        last = listener.last
        assert other.last.kind == "done"
        assert_idle(engine)
    kind = "done" if name == "finishes" else "aborted"
    assert [update.kind for update in listener.updates] == ["step"] * 3 + [kind]
    assert [update.num_forwards for update in listener.updates] == [1, 2, 3, 3]
    assert last.output is None or last.output.finish_reason == "stop"
    assert engine.stats.listener_errors == (name == "raises")
    assert len(other.updates) == 9


def test_a_change_comes_after_all_updates_of_the_requests_before_it():
    llm, order, reached = model(), [], threading.Event()
    engine = Engine(llm)
    engine.is_overlapping = True

    def note(update):
        order.append((update.kind, update.num_forwards))
        reached.set()

    with engine:
        engine.submit(ar(llm, 4), note)
        assert reached.wait(WAIT_S)
        engine.change(lambda: order.append("change"), WAIT_S)
        after = Listener()
        engine.submit(ar(llm, 2), after)
        assert after.last.kind == "done"
    assert order == [("step", 1), ("step", 2), ("step", 3), ("step", 4), ("done", 4), "change"]


class Broken:
    """A decoder that asks for nothing."""

    def __init__(self, decoder):
        self.decoder = decoder

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def ask(self, canvas, state):
        raise RuntimeError("a bug")


def test_a_step_without_a_forward_calls_what_runs_meanwhile_and_a_failed_launch_does_not():
    llm, calls = model(), []
    request = ar(llm, 4)
    broken = replace(request, method=replace(request.method, decoder=Broken(request.decoder)))
    runner = ModelRunner(llm.model, llm.vocabulary, 2)
    scheduler = Scheduler(runner)
    assert scheduler.step(lambda: calls.append("idle")) == []
    scheduler.admit(SequenceState.begin(broken))
    assert [str(event.error) for event in scheduler.step(lambda: calls.append("broken"))] == [
        "a bug"
    ]
    assert calls == ["idle", "broken"]
    scheduler.admit(SequenceState.begin(request))
    runner.lm_head.propose = None
    with pytest.raises(TypeError):
        scheduler.step(lambda: calls.append("failed"))
    assert calls == ["idle", "broken"]
