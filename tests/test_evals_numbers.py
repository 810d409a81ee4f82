"""The numbers of a run, and its report."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import unmask
from unmask.bench.head import HeadSetting, measure_head
from unmask.cli.main import main
from unmask.demo.example import Example
from unmask.demo.puzzles import solutions
from unmask.demo.tasks import check
from unmask.errors import ConfigError
from unmask.evals import metrics
from unmask.evals.convergence import curve
from unmask.evals.generation import EvalAnswer
from unmask.evals.plots import front
from unmask.evals.results import Results, markdown, paired
from unmask.evals.run_folder import StoredAnswer
from unmask.evals.tasks import judges, shots
from unmask.evals.token_counts import Counted, cut, d2cache_tokens
from unmask.view.progress import EvaluationView


def stored(session: int, rank: int, seconds: float, response: int = 10) -> StoredAnswer:
    counted = Counted(prompt=5, response=response, committed=12, fastdllm=11, d2cache=8, canvas=16)
    answer = EvalAnswer(
        doc=0,
        part=0,
        key="k",
        text="",
        counted=counted,
        num_forwards=4,
        num_queries=40,
        num_wasted=10,
        latency_s=seconds,
        decode_s=seconds,
        wall_s=2 * seconds,
    )
    return StoredAnswer(answer, session, rank)


def test_time_adds_up_over_answers_and_sessions_and_takes_the_slowest_process() -> None:
    items = [stored(1, 0, 1), stored(1, 0, 2), stored(1, 1, 5), stored(2, 0, 1), stored(2, 1, 0.5)]
    assert metrics.run_time(items, "decode_s") == 6
    assert metrics.run_time(items, "wall_s") == 12


def test_rates_follow_their_definitions() -> None:
    m = metrics.speed([stored(1, 0, 1.0), stored(1, 0, 3.0)], batch_size=1)
    assert m["tokens_per_second"] == 20 / 4
    assert m["committed_per_second"] == 24 / 4
    assert m["tokens_per_forward"] == 20 / 8
    assert m["waste"] == 20 / 80
    assert m["tok_s_fastdllm"] == 22 / 8
    assert m["tok_s_d2cache"] == (8 / 1 + 8 / 3) / 2
    assert m["tok_s_d2cache_full"] == (16 / 1 + 16 / 3) / 2
    assert m["tokens_per_step_d2cache"] == 2
    assert (m["latency_mean_s"], m["latency_p50_s"], m["latency_p95_s"]) == (
        2,
        2,
        pytest.approx(2.9),
    )


def test_the_standard_error_is_that_of_a_mean() -> None:
    found = metrics.accuracy([1, 1, 1, 0])
    assert found == {"accuracy": 0.75, "accuracy_stderr": pytest.approx(0.25)}
    assert metrics.accuracy([1.0]) == {"accuracy": 1.0}


def test_aup_weighs_what_is_lost() -> None:
    assert metrics.aup([]) is None
    assert metrics.aup([(2.0, 80.0)]) == 160
    weight = math.exp(-3 * (1 - 78 / 80))
    expected = 80 + (80 + 78 * weight) / 2 * 2
    assert metrics.aup([(3.0, 78.0), (1.0, 80.0)]) == pytest.approx(expected)
    assert metrics.aup([(3.0, 78.0), (1.0, 80.0), (9.0, 74.9)]) == pytest.approx(expected)


def test_d2cache_counts_all_when_the_end_comes_first_or_never() -> None:
    assert d2cache_tokens([5, 6, 0, 0], eos_id=0) == 2
    assert d2cache_tokens([5, 6, 7, 8], eos_id=0) == 4
    assert d2cache_tokens([0, 6, 7, 8], eos_id=0) == 4


def test_an_answer_is_cut_at_its_first_stop() -> None:
    llm = unmask.LLM("demo")
    ids = llm.prompts.encode("Tom has 3 pens. Q: 4", special=False)
    text, count = cut(llm, ids, llm.decode(ids), ("Q:", " has"))
    assert text == "Tom"
    assert llm.decode(ids[:count]).startswith("Tom")
    assert count < len(ids)
    assert cut(llm, ids, llm.decode(ids), ()) == (llm.decode(ids), len(ids))


def test_the_early_curve_reads_decodes_of_any_length_at_the_same_shares() -> None:
    found = curve([[0, 1], [0, 0, 0, 1]])
    assert len(found) == 21
    assert (found[0], found[-1]) == (0, 1)


def test_the_front_is_what_no_point_beats() -> None:
    assert front([(1, 90), (2, 80), (3, 85), (2.5, 95)]) == [(2.5, 95), (3, 85)]


def test_examples_in_prompts_are_right() -> None:
    for puzzle, solution in shots.SUDOKU_SHOTS:
        assert solutions(puzzle.replace("\n", "")) == [solution.replace("\n", "")]
    for puzzle, solution in shots.COUNTDOWN_SHOTS:
        key = f"Countdown {puzzle}"
        assert check(Example("countdown", key, solution, key), solution)
    assert len(shots.gsm8k_cot()) == 8
    for item in shots.math500():
        answer = item["solution"].split("\\boxed{")[1].rsplit("}", 1)[0]
        assert judges.math500({"answer": answer}, [item["solution"]]) == {"math_verify": 1.0}


def test_a_sudoku_with_several_solutions_takes_any() -> None:
    doc = {"key": "Sudoku\n1000\n0000\n0000\n0000", "prompt": "", "answer": ""}
    assert judges.sudoku(doc, ["1234\n3412\n2143\n4321"]) == {"right": 1.0}
    assert judges.sudoku(doc, ["1234\n3412\n2143\n4312"]) == {"right": 0.0}
    assert judges.sudoku(doc, ["2134\n3412\n1243\n4321"]) == {"right": 0.0}


def results(name: str, right: tuple[float, ...], speed: float) -> Results:
    m = metrics.accuracy(right) | metrics.speed([stored(1, 0, 1.0)], 1)
    m |= {"tokens_per_second": speed, "num_docs": len(right), "peak_memory_bytes": 1 << 20}
    return Results(
        task="word_problem",
        model="demo",
        method=name,
        cache="none",
        metrics=m,
        docs=tuple(range(len(right))),
        right=right,
        settings={"batch_size": 1, "seed": 0},
        resolved={"num_fewshot": 0, "num_processes": 1, "dtype": "float32"},
        machine={
            "accelerator": None,
            "processor": "a processor",
            "num_threads": 1,
            "load_average": 0.1,
            "torch": "2",
        },
        scores={"right,none": 0.5, "right_stderr,none": 0.1},
        date="2026-01-01",
        version="0",
        early=(0.0, 0.5, 1.0),
    )


def test_the_table_and_what_is_written_come_back(tmp_path: Path) -> None:
    made = results("threshold", (1.0, 0.0), 5.0)
    made.write(tmp_path)
    assert Results.read(tmp_path) == made
    assert "|word_problem|none|0|right|0.5000|±|0.1000|" in markdown(made)
    assert "5.0 response tokens/s" in markdown(made)


def test_differences_are_paired_by_document() -> None:
    first, second = results("a", (1, 1, 0, 0), 1), results("b", (1, 0, 0, 0), 2)
    assert paired(first, second) == "-25.0 ± 25.0"
    assert paired(first, replace(second, docs=(7, 8, 9, 10))) == "no common documents"


def test_the_report_draws_what_the_runs_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, right, speed in (("a", (1.0, 1.0), 5.0), ("b", (1.0, 0.0), 9.0)):
        (tmp_path / name).mkdir()
        results(name, right, speed).write(tmp_path / name)
    (tmp_path / "b" / "confidence.json").write_text(json.dumps([[0.5, 1.0], [None, 0.9]]))
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert "|b|word_problem|b|none|50.0 ± 50.0 %|-50.0 ± 50.0|9.0|1.80x|" in capsys.readouterr().out
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {
        "confidence_b.png",
        "early.png",
        "front_tokens_per_forward.png",
        "front_tokens_per_second.png",
    }
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert main(["report", str(tmp_path / "a"), "--no-pictures"]) == 0
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "give a run folder of unmask eval" in capsys.readouterr().err


def test_the_head_is_timed_at_every_size(tmp_path: Path) -> None:
    rows = measure_head(HeadSetting(width=8, rows=2, sizes=(64, 16), repeat=2))
    assert [row["vocab_size"] for row in rows] == [16, 64]
    assert all(row[name] > 0 for row in rows for name in ("head_ms", "softmax_ms", "both_ms"))
    with pytest.raises(ConfigError, match="repeat=0 must be at least 1"):
        HeadSetting(repeat=0)
    with pytest.raises(ConfigError, match="dtype='int3'"):
        measure_head(HeadSetting(dtype="int3"))
    plot = tmp_path / "head.png"
    words = ["bench", "head", "--width", "8", "--sizes", "16,64", "--repeat", "1", "--json"]
    assert main([*words, "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_bar_tells_the_time_left_from_what_this_run_did() -> None:
    quiet = io.StringIO()
    with EvaluationView("gsm8k", Console(file=quiet)) as view:
        view(1, 2)
    assert quiet.getvalue() == ""
    shown = io.StringIO()
    with EvaluationView("gsm8k", Console(file=shown, force_terminal=True, width=100)) as view:
        view(10, 20)
        view(11, 20)
    assert "11/20" in shown.getvalue()
    assert "left" in shown.getvalue()
