"""Progress, streams, coroutines, and evaluations from Python."""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import dataclass

import pytest

import unmask
from unmask.canvas import Canvas
from unmask.decisions import choice
from unmask.decoders.threshold import Threshold
from unmask.errors import ConfigError, EngineError, PromptError
from unmask.progress import CallProgress


def test_progress_counts_positions_up_to_all_of_them(tiny):
    seen = []
    tiny("llada").generate(
        [[3, 4], [5]], gen_length=6, stop_at_eos=False, progress=lambda *pair: seen.append(pair)
    )
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {12}


def test_progress_of_an_infill_and_of_likelihoods(tiny):
    llm, seen = tiny("llada"), []
    note = lambda *pair: seen.append(pair)  # noqa: E731
    llm.infill(["3 4", 2, "5"], progress=note)
    assert seen[-1] == (2, 2)
    seen.clear()
    llm.loglikelihood([[3], [4]], [[5, 6], [7]], mc_num=2, progress=note)
    assert seen[-1] == (2, 2)


def test_a_bar_is_drawn_if_asked_for_and_nothing_where_nobody_looks(monkeypatch):
    shown = {}
    for wanted in (True, False, None):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with CallProgress(wanted, "decoding", "positions") as report:
            report(1, 2)
            report(2, 2)
        shown[wanted] = sys.stderr.getvalue()
    assert "decoding" in shown[True]
    assert shown[False] == shown[None] == ""


def test_a_bar_of_a_terminal_appears_after_a_while_and_is_erased(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with CallProgress(None, "decoding", "positions") as report:
        report(1, 3)
        assert sys.stderr.getvalue() == ""
        monkeypatch.setattr("unmask.progress.BAR_AFTER_S", 0.0)
        report(2, 3)
    assert "decoding" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\x1b[2K")


def test_another_kind_of_progress_is_refused(tiny):
    with pytest.raises(ConfigError, match="progress='yes'"):
        tiny("llada").generate([[3]], gen_length=2, progress="yes")


@pytest.mark.parametrize("decoder", ["vanilla", "wino", "ar"])
def test_a_stream_of_text_joins_to_the_answer(decoder, tiny):
    llm = tiny("llada")
    (out,) = llm.generate([[3, 4]], decoder, gen_length=10)
    pieces = list(llm.stream([3, 4], decoder, gen_length=10))
    assert "".join(pieces) == out.text
    assert all(pieces)


def test_a_stream_of_canvases_begins_open_and_ends_with_the_answer(tiny):
    llm = tiny("llada")
    (out,) = llm.generate([[3, 4]], gen_length=6, steps=3)
    canvases = list(llm.stream([3, 4], gen_length=6, steps=3, mode="canvas"))
    assert all(isinstance(canvas, Canvas) for canvas in canvases)
    assert canvases[0].num_open == 6
    assert canvases[-1].tokens.tolist() == out.canvas_ids
    assert len(canvases) == 1 + out.num_forwards


def test_a_stream_of_a_canvas_yields_events_and_takes_no_mode(tiny):
    llm = tiny("llada")
    canvas = llm.prompt_canvas([3, 4], 4)
    assert list(llm.stream(canvas))[-1].sequence.canvas.num_open == 0
    with pytest.raises(ConfigError, match="left out for a canvas"):
        llm.stream(canvas, mode="text")
    with pytest.raises(ConfigError, match="'text' or 'canvas'"):
        llm.stream([3], mode="events")


def test_a_stream_is_checked_at_the_call(tiny):
    with pytest.raises(ConfigError, match="thresold"):
        tiny("llada").stream([3], "threshold", thresold=0.5)
    with pytest.raises(PromptError):
        tiny("llada").stream([])


def test_concurrent_calls_of_an_async_llm_equal_those_of_an_llm(tiny):
    llm = tiny("llada")
    expected = llm.generate([[3, 4], [5], [6, 7, 8]], gen_length=8)

    async def ask():
        async with unmask.AsyncLLM(llm) as server:
            calls = (server.generate(ids, gen_length=8) for ids in ([3, 4], [5], [6, 7, 8]))
            outputs = await asyncio.gather(*calls)
            pieces = [piece async for piece in server.stream([3, 4], gen_length=8)]
            return outputs, "".join(pieces)

    outputs, text = asyncio.run(ask())
    assert [out.text for out in outputs] == [out.text for out in expected]
    assert text == expected[0].text
    assert outputs[0].film().num_forwards == outputs[0].num_forwards


def test_an_async_stream_that_is_left_leaves_the_batch(tiny):
    async def leave():
        async with unmask.AsyncLLM(tiny("llada")) as server:
            stream = server.stream([3], "ar", gen_length=60, stop_at_eos=False)
            async for _ in stream:
                break
            await stream.aclose()
            for _ in range(200):
                if not server._engine.stats.running:
                    return True
                await asyncio.sleep(0.01)
        return False

    assert asyncio.run(leave())


def test_an_async_llm_decides_as_an_llm(demo_llm):
    questions = [choice("7+11=", ["18", "19"]), choice("9+33=", ["41", "42"])]
    options = {"independent": True, "estimator": "likelihood"}
    expected = demo_llm.decide("", questions, **options)

    async def ask():
        async with unmask.AsyncLLM(demo_llm) as server:
            found = await server.decide("", questions, **options)
            with pytest.raises(ConfigError, match="estimator"):
                await server.decide("", questions, estimator="none")
            return found

    assert asyncio.run(ask()) == expected


@dataclass(frozen=True)
class Empty(Threshold):
    def __post_init__(self):
        raise StopIteration("empty")


def test_an_own_decoder_that_stops_an_iteration_ends_its_call(tiny):
    async def ask():
        async with unmask.AsyncLLM(tiny("llada")) as server:
            await asyncio.wait_for(server.generate([3], Empty, gen_length=4), 20)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(ask())


def test_an_async_llm_refuses_what_cannot_work(tiny):
    with pytest.raises(ConfigError, match="dtype"):
        unmask.AsyncLLM(tiny("llada"), dtype="float32")

    async def unstarted():
        await unmask.AsyncLLM(tiny("llada")).generate([3], gen_length=4)

    with pytest.raises(EngineError, match="not started"):
        asyncio.run(unstarted())

    async def late():
        async with unmask.AsyncLLM(tiny("llada")) as server:
            await server.generate([3], "ar", gen_length=100, timeout_s=1e-6)

    with pytest.raises(TimeoutError, match="timeout_s"):
        asyncio.run(late())


def test_an_evaluation_from_python_equals_that_of_the_command(tmp_path, demo_llm):
    pytest.importorskip("lm_eval")
    seen = []
    results = unmask.evaluate(
        "word_problem",
        demo_llm,
        "threshold",
        threshold=0.8,
        limit=4,
        batch_size=4,
        gen_length=64,
        output=tmp_path / "run",
        progress=lambda *pair: seen.append(pair),
    )
    assert seen[-1] == (4, 4)
    assert len((tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()) == 4
    assert results.settings["knobs"] == {"threshold": 0.8}
    table = unmask.report(results)
    assert table == unmask.report(tmp_path / "run")
    assert "word_problem" in table
    with pytest.raises(ConfigError, match="thresold"):
        unmask.evaluate("word_problem", demo_llm, "threshold", thresold=0.8)
    with pytest.raises(ConfigError, match="no runs"):
        unmask.report([])


def test_a_search_from_python_finds_knobs_and_writes_a_preset(tmp_path, demo_llm):
    pytest.importorskip("optuna")
    options = {"trials": 3, "prompts": 4, "held_out": 2, "batch_size": 4, "gen_length": 32}
    found = unmask.tune(
        "threshold",
        demo_llm,
        space={"threshold": "0.5:0.9"},
        constraints=(),
        output=tmp_path / "study",
        **options,
    )
    assert len(found.result.points) == 3
    assert 0.5 <= found.knobs["threshold"] <= 0.9
    assert found.preset.exists()
    with pytest.raises(ConfigError, match="limit has no effect"):
        unmask.tune("threshold", demo_llm, limit=3)
