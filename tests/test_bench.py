"""`unmask bench decode`: what it counts, what it compares, what it writes; on tiny random models."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unmask import decoders
from unmask.bench.decode import measure, method_in
from unmask.bench.examples import TASKS, examples_of
from unmask.bench.plot import Box, draw, points
from unmask.bench.report import (
    BASELINE,
    DecodeSetting,
    Report,
    ReportRow,
    Result,
    compare,
    from_json,
)
from unmask.cli.bench_decode import COLUMNS, parse_decoders, setting_of
from unmask.cli.bench_options import SettingOptions
from unmask.cli.main import main
from unmask.demo.example import Example
from unmask.demo.tasks import held_out_set
from unmask.errors import ConfigError, DependencyError
from unmask.method import MethodSpec, Source
from unmask.models import BUNDLED

EXAMPLES = [Example("drill", prompt, "", prompt) for prompt in ("1 2 3", "4 5", "6 7 8 9")]
SMALL = DecodeSetting(task="drill", limit=3, gen_length=8, block_length=4, seed=2)


def method(decoder: str = "vanilla", **knobs: str) -> MethodSpec:
    return MethodSpec.parse(Source({"decoder": decoder, **knobs}))


SURE = method("threshold", threshold="0.3")
VANILLA = method()


def row(spec: MethodSpec, in_force: dict[str, Any], *rest: Any) -> ReportRow:
    return ReportRow(spec.label, spec.decoder_name, dict(spec.given), in_force, *rest)


def result(right: str, seconds: tuple[float, ...] = (2.0,), tokens: int = 20) -> Result:
    return Result(tuple(mark == "+" for mark in right), tokens, 40, 400, seconds)


def report(*rows: ReportRow) -> Report:
    facts: dict[str, Any] = {
        "python": "3",
        "torch": "2",
        "platform": "p",
        "processor": "x",
        "num_cpus": 2,
        "num_threads": 1,
        "accelerator": None,
        "load_average": None,
    }
    base = row(VANILLA, {"steps": None}, result("++-+", (2.0, 4.0)))
    return Report("demo", "float32", "cpu", SMALL, (base, *rows), facts, "today", "0")


# measuring


def test_a_row_counts_what_generate_counts(tiny: Any) -> None:
    llm = tiny()
    found = measure(llm, [SURE], SMALL, EXAMPLES)
    assert [row.label for row in found.rows] == [BASELINE, SURE.label]
    for row, knobs in zip(found.rows, ({}, {"threshold": 0.3}), strict=True):
        prompts = [llm.prompt_ids(example.prompt) for example in EXAMPLES]
        outs = llm.generate(prompts, row.decoder, gen_length=8, block_length=4, seed=2, **knobs)
        assert row.result is not None
        assert row.result.num_tokens == sum(len(out.token_ids) for out in outs)
        assert row.result.num_forwards == sum(out.num_forwards for out in outs)
        assert row.result.num_queries == sum(out.num_queries for out in outs)
        assert row.result.right == tuple(not out.text for out in outs)
        assert row.in_force["block_length"] == 4
        assert len(row.result.seconds) == 1
        assert row.result.is_repeatable


def test_a_decoder_that_cannot_run_gets_a_row_and_stops_nothing(tiny: Any) -> None:
    bad = method("threshold", block_length="0")
    found = measure(tiny(), [bad, SURE], SMALL, EXAMPLES)
    problem, well = found.rows[1:]
    assert problem.result is None
    assert "block_length=0 must be" in str(problem.problem)
    assert well.result is not None


def test_without_a_baseline_there_is_no_run(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="block_length=0 must be"):
        measure(tiny(), [SURE], dataclasses.replace(SMALL, block_length=0), EXAMPLES)


def test_every_decoder_warms_up_and_each_repeat_starts_with_another(tiny: Any) -> None:
    seen: list[tuple[str, int]] = []

    @contextmanager
    def watch(entry: MethodSpec, repeat: int) -> Iterator[None]:
        seen.append((entry.decoder_name, repeat))
        yield

    setting = dataclasses.replace(SMALL, repeat=2)
    found = measure(tiny(), [SURE, VANILLA], setting, EXAMPLES[:1], watch)
    names = ("vanilla", "threshold")
    assert seen == [
        *((name, 0) for name in names),
        *((name, 1) for name in names),
        *((name, 2) for name in reversed(names)),
    ]
    assert all(row.result is not None and len(row.result.seconds) == 2 for row in found.rows)


class Recorder:
    """Passes calls on to a model and keeps what they were told."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.told = llm, list[dict[str, Any]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def generate(self, prompts: Any, *words: str, **options: Any) -> Any:
        self.told.append(options)
        return self.llm.generate(prompts, *words, **options)


def test_a_decoder_that_chooses_the_length_is_not_told_one(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chooses = decoders.decoder_class("threshold")
    monkeypatch.setattr(chooses, "chooses_length", True, raising=False)
    monkeypatch.setattr(chooses, "first_length", lambda self: 8, raising=False)
    llm: Any = Recorder(tiny())
    measure(llm, [SURE], SMALL, EXAMPLES[:1])
    assert [told["gen_length"] is not None for told in llm.told] == [True, False, True, False]


def test_block_length_goes_to_decoders_with_blocks_and_a_typed_one_wins() -> None:
    assert method_in(SMALL, SURE, "none").decoder.block_length == 4
    assert method_in(SMALL, SURE, "none").decoder.threshold == 0.3
    typed = method("threshold", block_length="2")
    assert method_in(SMALL, typed, "dual").decoder.block_length == 2
    assert method_in(SMALL, typed, "dual").cache_name == "dual"
    assert "block_length" not in method_in(SMALL, method("dream"), "none").knobs()


def test_the_tasks_are_held_out_sets_and_too_high_a_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for task in TASKS:
        assert len(examples_of(DecodeSetting(task=task, limit=2))) == 2
    assert setting_of(SettingOptions(task="sudoku")).gen_length == 32
    assert setting_of(SettingOptions(task="sudoku", gen_length=16)).gen_length == 16
    (puzzle,) = examples_of(DecodeSetting(task="sudoku", limit=1))
    assert puzzle == held_out_set("sudoku", 1, blanks=8)[0]
    monkeypatch.setattr("unmask.demo.tasks.PATIENCE", 1)
    monkeypatch.setattr("unmask.demo.tasks.is_held_out", lambda example: False)
    with pytest.raises(ConfigError, match=r"limit=3 is too high: only 0 distinct"):
        examples_of(DecodeSetting(task="countdown", limit=3))


# comparing


def test_a_difference_is_judged_by_the_pairs() -> None:
    base = result("++++----" * 4)
    same = compare(base, base)
    assert (same.difference, same.error, same.is_different) == (0, 0, False)
    worse = compare(result("--------" * 4), base)
    assert (worse.num_better, worse.num_worse, worse.difference) == (0, 16, -0.5)
    assert worse.error == pytest.approx(math.sqrt((32 * 0.25 / 31) / 32))
    assert worse.is_different
    one_lost = compare(result("-+++----" + "++++----" * 3), base)
    assert one_lost.is_different is False
    assert compare(result("+"), result("-")).is_different is None


def test_rates_are_medians_and_the_speed_up_is_their_ratio() -> None:
    fast = result("++++", (1.0, 1.0, 5.0), tokens=30)
    assert fast.tokens_per_s == (30, 6, 30)
    assert fast.tokens_per_forward == 0.75
    assert (fast.forwards_per_answer, fast.queries_per_answer) == (10, 100)
    assert result("++-+").accuracy_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert compare(fast, result("++++")).speed_up == 3
    assert compare(fast, result("++++", tokens=0)).speed_up is None


def test_json_holds_what_the_report_is_made_of() -> None:
    whole = report(
        row(SURE, {"threshold": 0.3}, result("+--+")),
        ReportRow("x", "x", {}, {}, None, "why"),
    )
    again = from_json(json.loads(json.dumps(whole.as_json())))
    assert again == whole
    assert again.as_json()["rows"][1]["derived"]["against_baseline"]["num_worse"] == 1


# the words


def test_decoders_are_names_with_or_without_knobs() -> None:
    assert parse_decoders("all") == [method(name) for name in decoders.names()]
    assert parse_decoders(" factor , threshold( block-length = 8,threshold=0.3 ),threshold") == [
        method("factor"),
        method("threshold", block_length="8", threshold="0.3"),
        method("threshold"),
    ]
    (entry,) = parse_decoders("threshold(threshold=0.3)")
    assert parse_decoders(entry.label) == [entry]


MISTAKES = [
    (("--decoders", "treshold"), "did you mean 'threshold'"),
    (("--decoders", "threshold(treshold=1)"), "did you mean 'threshold'"),
    (("--decoders", "threshold(threshold=2)"), "between 0 and 1"),
    (("--decoders", "threshold(0.3)"), "key=value"),
    (("--decoders", "threshold(threshold=0.3"), "unbalanced brackets"),
    (("--decoders", "threshold)("), "unbalanced brackets"),
    (("--decoders", "factor,,threshold"), "cannot be parsed"),
    (("--decoders", ""), "cannot be parsed"),
    (("--decoders", "all(steps=2)"), "takes no knobs"),
    (("--decoders", "all,factor"), "factor is listed twice"),
    (("--decoders", "vanilla(steps=2, steps=4)"), "steps is set twice"),
    (("--decoders", "threshold(gen_length=8)"), "use --gen-length 8"),
    (("--task", "word-problem"), "did you mean 'word_problem'"),
    (("--task", "sentence"), "allowed: countdown, sudoku, word_problem"),
    (("--cache", "duel"), "did you mean 'dual'"),
    (("--limit", "0"), "limit=0 must be at least 1"),
    (("--repeat", "x"), "--repeat"),
    (("--json", "/nowhere/at/all"), "JSON file '/nowhere/at/all' cannot be written"),
    (("--plot", "x.bmp"), ".png"),
    (("--plot-x", "tokens_per_s"), "no effect without --plot"),
    (("--model", "dem"), "did you mean 'demo'"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "decode", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("unmask: error: ")
    assert says in line


# the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the demo's tokenizer."""
    import torch

    from unmask.demo.training_data import demo_spec
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.train.checkpoint import export
    from unmask.train.loop import build
    from unmask.train.recipe import Recipe

    folder = tmp_path_factory.mktemp("random model")
    recipe = Recipe(d_model=32, num_layers=1, num_heads=2, d_ff=64, max_length=192)
    spec = demo_spec(recipe, load_tokenizer(BUNDLED["demo"]))
    export(build(spec, 0, recipe.embed_std), BUNDLED["demo"], folder, torch.float32)
    return folder


LITTLE = ("--limit", "2", "--gen-length", "8", "--block-length", "8")


def test_the_table_has_a_row_a_decoder_and_says_why_one_is_missing(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "threshold(threshold=0.3),factor,vanilla(steps=3,block_length=4)"
    words = ("--model", str(model), "--decoders", names, "--repeat", "2")
    assert main(["bench", "decode", *LITTLE, *words]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == COLUMNS
    rows = {row[0]: row for row in cells[2:]}
    assert list(rows) == [
        "vanilla",
        "threshold(threshold=0.3)",
        "factor",
        "vanilla(steps=3, block_length=4)",
    ]
    assert rows["vanilla"][-1] == "the baseline"
    assert rows["factor"][-1] == "no: +0.0 ± 0.0"
    assert rows["vanilla(steps=3, block_length=4)"][-1].startswith("cannot run here: steps=3")
    assert "factor: repeat 2 of 2" in err
    for word in ("gen_length 8", "batch 1", "torch", "Python"):
        assert word in out


def test_json_alone_goes_to_standard_output_with_the_command_to_repeat_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", str(model), "--decoders", "threshold(threshold=0.3)", "--json", "-")
    assert main(["bench", "decode", *LITTLE, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found["rows"]] == ["vanilla", "threshold(threshold=0.3)"]
    assert found["rows"][1]["in_force"]["threshold"] == 0.3
    assert found["setting"]["limit"] == 2
    assert {"python", "torch", "num_cpus", "num_threads", "platform"} <= set(found["machine"])
    assert "--decoders 'vanilla,threshold(threshold=0.3)'" in found["command"]
    again = json.loads(json.dumps(from_json(found).as_json()))
    assert again | {"command": found["command"]} == found


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys; from unmask.cli.main import main; main(['bench', '--help'])"
    code += "; assert not {'torch', 'matplotlib', 'unmask.bench'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# the picture


def test_a_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"unmask\[plot\]"):
        draw(report(), tmp_path / "x.png")


def test_every_decoder_with_a_result_is_a_point() -> None:
    rows = (
        row(SURE, {}, result("+--+", (1.0, 2.0))),
        ReportRow("x", "x", {}, {}, None, "why"),
    )
    base, sure = points(report(*rows), "tokens_per_s")
    assert (base.label, base.is_baseline, base.y) == ("vanilla (baseline)", True, 75)
    assert (sure.label, sure.is_baseline, sure.y) == ("threshold(threshold=0.3)", False, 50)
    assert (sure.x, sure.x_ends) == (15, (5, 5))
    assert points(report(), "tokens_per_forward")[0].x == 0.5


def test_boxes_overlap_in_pixels() -> None:
    assert Box(0, 0, 4, 2).overlap(Box(3, 1, 9, 9)) == 1
    assert Box(0, 0, 1, 1).overlap(Box(2, 0, 3, 1)) == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib (extra: plot)")
    sure = row(SURE, {}, result("+--+", (1.0, 2.0)))
    path = tmp_path / f"picture.{suffix}"
    draw(report(sure), path, "tokens_per_s" if suffix == "png" else "tokens_per_forward")
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)
