"""The engine of a server: what it decodes, what it refuses, who leaves when, and what is left behind."""

from __future__ import annotations

import threading

import pytest
from tiny import tiny_llm, trace_of

from unmask.engine.service import Engine, Update

WAIT_S = 60


class Listener:
    """Collects updates; `done` is set by the last."""

    def __init__(self, act=None):
        self.updates: list[Update] = []
        self.done, self.act = threading.Event(), act

    def __call__(self, update):
        self.updates.append(update)
        if update.kind != "step":
            self.done.set()
        elif self.act is not None:
            self.act(update)

    @property
    def last(self) -> Update:
        assert self.done.wait(WAIT_S), "the request never ended"
        return self.updates[-1]


@pytest.fixture(scope="module")
def llm():
    return tiny_llm("llada", 1)


def test_a_submitted_request_gives_what_the_library_gives(llm):
    alone = llm.generate([[7, 8, 9]], "threshold", gen_length=8, return_trace=True)[0]
    with Engine(llm) as engine:
        listener = Listener()
        engine.submit(llm.request([7, 8, 9], "threshold", gen_length=8), listener)
        output = listener.last.output
    assert listener.last.kind == "done"
    assert trace_of(output) == trace_of(alone)
    assert output.text == alone.text
    assert [u.kind for u in listener.updates[:-1]] == ["step"] * alone.num_forwards
