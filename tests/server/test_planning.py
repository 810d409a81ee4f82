"""Planning of a request with many answers costs little more than that of one per prompt."""

from __future__ import annotations

from unmask.engine.sequence import SequenceState
from unmask.method import MethodSpec
from unmask.server.protocol import CompletionRequest
from unmask.server.request_planner import Planner
from unmask.server.settings import ServerSettings


def test_a_method_is_parsed_once_and_a_request_checked_once_per_prompt(demo_llm, monkeypatch):
    """The answers to a prompt differ by their seeds alone."""
    calls = {"parse": 0, "begin": 0}

    def counted(name, call):
        def run(*arguments, **options):
            calls[name] += 1
            return call(*arguments, **options)

        return run

    monkeypatch.setattr(MethodSpec, "parse", counted("parse", MethodSpec.parse))
    monkeypatch.setattr(SequenceState, "begin", counted("begin", SequenceState.begin))
    planner = Planner(demo_llm, ServerSettings(models=("demo",)))
    calls.update(parse=0)
    body = CompletionRequest(prompt=["A dog", "A cat", "A cow"], n=4, max_tokens=16, seed=5)
    plans = planner.completion(body, {})
    assert [plan.request.seed for plan in plans] == list(range(5, 17))
    assert calls == {"parse": 1, "begin": 3}
