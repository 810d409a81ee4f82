"""Tuning: the constraint grammar, the space, the search on a known landscape, and the files it leaves."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

import unmask
from unmask import decoders
from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.evals.settings import EvalSettings
from unmask.tune.goal import front, parse_constraint, parse_objectives, wilson
from unmask.tune.measure import Measurement, compare_paired
from unmask.tune.outcome import TURNS, check, write
from unmask.tune.plot import draw
from unmask.tune.reference import num_documents, share_out
from unmask.tune.space import Choice, Range, parse_changes, space_of, start_of
from unmask.tune.study import StudyPlan, run

BASE = {"accuracy": 0.8, "tokens_per_forward": 2.0, "latency_mean_s": 0.5}


@pytest.mark.parametrize(
    ("text", "value", "excess"),
    [
        ("accuracy>=0.99*baseline", 0.8, 0.0),
        ("accuracy >= 0.5 * baseline", 0.3, 0.1),
        ("accuracy>=baseline", 0.7, 0.1),
        ("accuracy>=0.9", 0.85, 0.05),
        ("latency_mean_s<=2*baseline", 1.5, 0.5),
        ("tokens_per_forward>=1e1", 12.0, 0.0),
    ],
)
def test_a_constraint_says_how_far_a_value_is_beyond_it(text, value, excess):
    metric = text.partition(">")[0].partition("<")[0].strip()
    found = parse_constraint(text).excess(value, BASE)
    assert max(0.0, found) == pytest.approx(excess)
    assert metric == parse_constraint(text).metric
    assert parse_constraint(str(parse_constraint(text))) == parse_constraint(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy>0.9", "cannot be read"),
        ("accuracy>=", "cannot be read"),
        ("accuracy>=high", "cannot be read"),
        ("accuracy>=1.2.3", "is not a number"),
        ("acuracy>=0.9", "did you mean 'accuracy'"),
        ("accuracy>=0.9*base", "cannot be read"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_constraint(text)


def test_accuracy_is_always_sought():
    assert parse_objectives(["tokens_per_second"]) == ("tokens_per_second", "accuracy")
    assert parse_objectives(["accuracy", "num_queries"]) == ("accuracy", "num_queries")
    with pytest.raises(ConfigError, match="did you mean 'tokens_per_second'"):
        parse_objectives(["tokens_per_s"])
    with pytest.raises(ConfigError, match="occurs twice"):
        parse_objectives(["accuracy", "accuracy"])


def test_the_front_holds_what_nothing_beats():
    names = ("tokens_per_forward", "latency_mean_s")
    found = [(1, 1), (2, 2), (2, 1), (3, 3), (2, 1), (0, 5)]
    points = [{"tokens_per_forward": a, "latency_mean_s": b} for a, b in found]
    assert front(points, names) == [2, 3], "more is better of one, less of the other; equals once"


def test_a_wilson_interval_holds_the_share_and_narrows():
    low, high = wilson(45, 50)
    assert low < 0.9 < high
    wider = wilson(9, 10)
    assert wider[0] < low < high < wider[1]
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 10)[0] == pytest.approx(0.0)


def test_a_space_is_the_ranges_of_the_knobs_with_changes():
    space = space_of("threshold", {})
    assert space == {"threshold": Range(0.5, 0.99, False)}
    changes = parse_changes(["threshold=0.7:0.9", "block_length=8,16", "sigma=null,5"])
    space = space_of("threshold", changes)
    assert space["threshold"] == Range(0.7, 0.9, False)
    assert space["block_length"] == Choice((8, 16))
    assert space["sigma"] == Choice((None, 5.0))
    assert space_of("klass", {"threshold": "off"}).keys() == {"kl_threshold", "kl_history_length"}
    assert (
        space_of("klass", {}, fixed=("threshold",)).keys()
        == space_of("klass", {"threshold": "off"}).keys()
    )
    assert space_of("klass", {})["kl_history_length"] == Range(1, 4, True)


@pytest.mark.parametrize(
    ("decoder", "change", "message"),
    [
        ("vanilla", [], "no knobs with a range of their own"),
        ("threshold", ["threshhold=0:1"], "did you mean 'threshold'"),
        ("threshold", ["threshold=0.9:0.8"], "the lower end comes first"),
        ("threshold", ["threshold=0.9"], "two values or more"),
        ("threshold", ["threshold=a:b"], "must be a number"),
        ("threshold", ["score=margin:pc"], "score"),
        ("threshold", ["threshold"], "must be KNOB=LOW:HIGH"),
        ("threshold", ["sigma=off"], "is not searched anyway"),
        ("threshold", ["sigma=1:2", "sigma=2:3"], "is set twice"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(decoder, change, message):
    with pytest.raises(ConfigError, match=message):
        space_of(decoder, parse_changes(change))


def test_every_range_of_a_knob_holds_its_default_and_only_allowed_values():
    searched = 0
    for name in decoders.names():
        ranged = [
            f for f in dataclasses.fields(decoders.decoder_class(name)) if f.metadata.get("tune")
        ]
        if not ranged:
            continue
        searched += 1
        space = space_of(name, {})
        assert start_of(space, name) == {item.name: item.default for item in ranged}
        for end in (0, 1):
            decoders.make_decoder(name, {item.name: item.metadata["tune"][end] for item in ranged})
    assert searched >= 8


class Landscape:
    """A bench whose answers are a formula of the threshold: fast when low, right when high."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.settings = EvalSettings.from_dict({"task": "word_problem", "decoder": "threshold"})
        self.asked = []

    def measure(self, knobs, offset, count, told):
        level = knobs.get("threshold", 0.9)
        if not 0 <= level <= 1:
            raise ConfigError(f"threshold={level}")
        self.asked.append((knobs, offset, count))
        told(count, count)
        share = 0.95 if level >= 0.7 else 0.4
        right = tuple(float((7 * i) % 20 < 20 * share) for i in range(offset, offset + count))
        forwards = tuple(max(1, round(20 * level)) for _ in right)
        metrics = {
            "accuracy": sum(right) / count,
            "tokens_per_forward": 20 * count / sum(forwards),
            "tokens_per_second": 100 * count / sum(forwards),
            "forwards_per_answer": sum(forwards) / count,
            "num_queries": 1.0 * sum(forwards),
            "latency_mean_s": 0.1,
            "latency_p95_s": 0.1,
        }
        seconds = tuple(0.2 * f for f in forwards)
        return Measurement(metrics, right, (20,) * count, forwards, seconds)


def plan(**changes):
    space = space_of("threshold", {})
    given = {
        "space": space,
        "objectives": parse_objectives(["tokens_per_forward"]),
        "constraints": (parse_constraint("accuracy>=0.99*baseline"),),
        "num_prompts": 80,
        "num_trials": 25,
    }
    return StudyPlan(**(given | changes))


def quiet(label, done, total):
    pass


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished search of the landscape."""
    return run(Landscape(tmp_path_factory.mktemp("found")), plan(), quiet)


def test_the_search_finds_the_fastest_that_keeps_the_accuracy(found):
    assert len(found.points) == 25
    assert found.points[0].knobs == {"threshold": 0.9}, "it begins with the published defaults"
    assert found.best.is_feasible
    assert 0.7 <= found.best.knobs["threshold"] < 0.77
    assert found.best.metrics["tokens_per_forward"] > found.baseline.metrics["tokens_per_forward"]


def test_a_point_that_cannot_keep_the_accuracy_is_given_up_early(found):
    low = [point for point in found.points if point.knobs["threshold"] < 0.7]
    assert low
    assert all(point.given_up.startswith("accuracy at most") for point in low)
    assert all(point.num_prompts == 20 for point in low), "after a quarter of the prompts"
    worse = [point for point in found.points if point.given_up.startswith("worse than")]
    assert all(point.knobs["threshold"] >= 0.7 for point in worse)
    assert all(point.num_prompts == 80 for point in found.complete)


def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = run(Landscape(tmp_path / "whole"), plan(num_trials=8), quiet)

    class Stop(Exception):
        pass

    def stop(point):
        if point.number == 4:
            raise Stop

    with pytest.raises(Stop):
        run(Landscape(tmp_path / "parts"), plan(num_trials=8), quiet, stop)
    rest = Landscape(tmp_path / "parts")
    found = run(rest, plan(num_trials=8), quiet)
    assert [point.knobs for point in found.points] == [point.knobs for point in whole.points]
    assert len({str(knobs) for knobs, _, _ in rest.asked if knobs}) == 3, "the other five were"


def test_a_point_that_was_killed_in_the_middle_is_measured_again(tmp_path):
    class Killed(BaseException):
        pass

    class Fragile(Landscape):
        def measure(self, knobs, offset, count, told):
            if len(self.asked) == 9:
                raise Killed
            return super().measure(knobs, offset, count, told)

    bench = Fragile(tmp_path)
    with pytest.raises(Killed):
        run(bench, plan(num_trials=6), quiet)
    found = run(Landscape(tmp_path), plan(num_trials=6), quiet)
    assert len(found.points) == 6


def test_a_folder_with_another_study_is_refused(tmp_path):
    run(Landscape(tmp_path), plan(num_trials=1), quiet)
    with pytest.raises(ConfigError, match="holds a study with other num_prompts"):
        run(Landscape(tmp_path), plan(num_trials=1, num_prompts=40), quiet)


def test_knobs_that_do_not_fit_together_are_skipped_and_a_space_without_any_is_an_error(tmp_path):
    wide = {"threshold": Range(0.5, 2.0, False)}
    found = run(Landscape(tmp_path / "some"), plan(space=wide, num_trials=4), quiet)
    assert len(found.points) == 4
    none = {"threshold": Range(1.5, 2.0, False)}
    with pytest.raises(ConfigError, match="threshold=1"):
        run(Landscape(tmp_path / "none"), plan(space=none, num_trials=6), quiet)


def test_held_out_prompts_are_others_and_both_methods_take_turns(found, tmp_path):
    bench = Landscape(tmp_path)
    held_out = check(bench, found, 40, quiet)
    assert {offset for _, offset, _ in bench.asked} == {80}
    assert len(bench.asked) == 2 * TURNS
    assert len(held_out.tuned.right) == 40
    difference = held_out.difference
    assert difference.accuracy.low <= difference.accuracy.value <= difference.accuracy.high
    ratio = (
        held_out.tuned.metrics["tokens_per_forward"]
        / held_out.defaults.metrics["tokens_per_forward"]
    )
    assert difference.per_forward.value == pytest.approx(ratio)
    assert check(bench, found, 0, quiet) is None


def test_the_difference_of_a_method_and_itself_is_none():
    one = Landscape(".").measure({}, 0, 30, quiet_two)
    told = compare_paired(one, one)
    assert dataclasses.astuple(told.accuracy) == (0.0, 0.0, 0.0)
    assert dataclasses.astuple(told.per_forward) == (1.0, 1.0, 1.0)


def quiet_two(done, total):
    pass


def test_the_outcome_is_a_preset_numbers_a_table_and_a_picture(found, tmp_path):
    bench = Landscape(tmp_path)
    method = bench.settings.method.with_values({"block_length": 16, "cache": "dllm", "cache.kp": 3})
    bench.settings = dataclasses.replace(bench.settings, method=method)
    held_out = check(bench, found, 20, quiet)
    made = write(bench, found, held_out, "unmask tune ...", tmp_path)
    assert [path.name for path in made] == ["preset.yaml", "tune.json", "tune.md"]
    text = (tmp_path / "preset.yaml").read_text()
    assert yaml.safe_load(text) == {"strategy": "threshold", "block_length": 16, **found.best.knobs}
    assert "# Held-out prompts, against the defaults: accuracy" in text
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["best"] == found.best.number
    assert len(record["points"]) == 25
    page = (tmp_path / "tune.md").read_text()
    assert f"best: point {found.best.number}" in page
    draw(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_no_point_that_keeps_to_what_is_asked_is_said_so(tmp_path):
    bench = Landscape(tmp_path)
    found = run(bench, plan(num_trials=3, constraints=(parse_constraint("accuracy>=1"),)), quiet)
    assert found.best is None
    assert check(bench, found, 20, quiet) is None
    made = write(bench, found, None, "unmask tune ...", tmp_path)
    assert [path.name for path in made] == ["tune.json", "tune.md"]
    assert "No point satisfies the constraints." in (tmp_path / "tune.md").read_text()


def test_tune_on_the_bundled_model_writes_a_preset_that_eval_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--decoder", "threshold", "--trials", "2", "--prompts", "4", "--held-out", "1"]
    words += ["--batch-size", "4", "--space", "threshold=0.3:0.95", "-o", "out"]
    assert main(["tune", *words]) == 0
    out = capsys.readouterr().out
    assert "defaults" in out
    assert "held out, best against defaults: accuracy" in out
    assert main(["eval", "--cfg", "job", "generation=out/preset.yaml", "--task", "sudoku"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    best = yaml.safe_load(Path("out/preset.yaml").read_text())
    assert job["generation"] == best
    assert main(["tune", *words]) == 0, "the same command finds everything answered"
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if "point" in line] == [
        line for line in out.splitlines() if "point" in line
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoder", "vanilla"], "no knobs with a range"),
        (["--decoder", "threshold", "limit=4"], "use --prompts"),
        (["--decoder", "threshold", "--constraint", "accuracy>0.9"], "cannot be read"),
        (["--decoder", "threshold", "--objective", "speed"], "unknown objective"),
        (["--decoder", "threshold", "--trials", "0"], "--trials 0 must be at least 1"),
        (["--decoder", "threshold", "--plot", "front.gif"], "must end in .png"),
        (
            ["--decoder", "threshold", "generation.threshold=0.8", "--space", "threshold=0:1"],
            "is given",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_runs(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def rows_file(folder, count=9):
    rows = [{"question": f"Anna has {n} eggs. She buys 5 more. How many?"} for n in range(count)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_prompts_without_answers_are_compared_with_those_of_the_defaults(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    words = ["--decoder", "threshold", "--prompts", "mine.jsonl", "--prompt", "Q: {{question}}"]
    words += ["--trials", "2", "--num-prompts", "3", "--held-out", "1", "--batch-size", "4"]
    words += ["--gen-length", "16", "--space", "threshold=0.3:0.95", "-o", "out"]
    assert main(["tune", *words]) == 0
    assert "held out, best against defaults" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("out/reference.jsonl").read_text().splitlines()]
    assert [row["prompt"][:12] for row in rows] == [f"Q: Anna has {n}"[:12] for n in range(4)]
    assert all(row["target"] for row in rows)
    numbers = json.loads(Path("out/tune.json").read_text())
    assert numbers["baseline"]["accuracy"] == 1.0, "the defaults agree with themselves"
    assert "--prompts mine.jsonl" in numbers["command"]
    assert main(["tune", *words]) == 0, "the same command finds everything answered"


ON_ROWS = ["--task", "mine.jsonl", "--target", "{{question}}", "--metric", "exact"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "none.jsonl"], "is no file"),
        (["--prompts", "1"], "must be at least 2, or a file"),
        (["--prompts", "mine.jsonl", "--num-prompts", "9"], "has 9 rows, but 9 prompts"),
        (
            ["--prompts", "mine.jsonl", "--held-out", "8"],
            "6 prompts of the search and 8 held out need 14",
        ),
        (
            [*ON_ROWS, "--prompts", "8", "--held-out", "2"],
            "need 10",
        ),
        (["--prompts", "mine.jsonl", "--prompt", "{{no}}"], "line 1"),
        (["--prompts", "mine.jsonl", "--metric", "exact"], "leave --metric out"),
        (["--prompts", "mine.jsonl", "--task", "sudoku"], "leave --task out"),
        (["--num-prompts", "4"], "write --prompts 4"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_at_once(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    assert main(["tune", "--decoder", "threshold", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("rows", "searched", "held_out", "expected"),
    [
        (None, None, None, (100, 200)),
        (None, 7, 0, (7, 0)),
        (600, None, None, (100, 200)),
        (600, None, 450, (100, 450)),
        (164, None, None, (100, 64)),
        (30, None, None, (20, 10)),
        (30, None, 0, (30, 0)),
        (30, 29, None, (29, 1)),
        (3, None, None, (2, 1)),
        (2, None, 0, (2, 0)),
    ],
)
def test_the_prompts_of_a_file_are_shared_out(rows, searched, held_out, expected):
    shares = share_out(rows, searched, held_out, "f")
    assert (shares.searched, shares.held_out) == expected
    assert rows is None or shares.total <= rows


@pytest.mark.parametrize(
    ("rows", "searched", "held_out"),
    [(30, 30, None), (30, 30, 1), (2, None, None), (1, None, 0), (30, 31, 0), (30, None, 11)],
)
def test_more_prompts_than_a_file_has_are_refused(rows, searched, held_out):
    with pytest.raises(ConfigError, match=f"f has {rows} rows, but .* need "):
        share_out(rows, searched, held_out, "f")


def test_documents_are_counted_before_a_model_is_loaded(tmp_path):
    rows_file(tmp_path, 9)
    own = EvalSettings(task=str(tmp_path / "mine.jsonl"), target="{{question}}", metric="exact")
    assert num_documents(own) == 9
    assert num_documents(EvalSettings(task="word_problem")) is None


def test_prompts_of_a_file_are_tuned_on_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    given = {"gen_length": 16, "batch_size": 4, "output": "out", "space": {"threshold": "0.3:0.95"}}
    found = unmask.tune("threshold", prompts="mine.jsonl", num_prompts=3, trials=2, **given)
    assert found.held_out is not None
    assert found.held_out.count == 6, "the rows that are left"
    assert found.result.baseline.metrics["accuracy"] == 1.0
    numbers = json.loads(Path("out/tune.json").read_text())
    assert "prompts='mine.jsonl'" in numbers["command"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "mine.jsonl", "num_prompts": 9}, "has 9 rows"),
        ({"prompts": "mine.jsonl", "metric": "exact"}, "leave metric out"),
        ({"prompts": "mine.jsonl", "task": "sudoku"}, "leave task out"),
        ({"prompts": Path("none.jsonl")}, "is no file"),
        ({"prompts": 1}, "must be at least 2"),
        ({"num_prompts": 4}, "use prompts"),
        ({"limit": 4}, "limit has no effect"),
    ],
)
def test_a_call_that_cannot_be_tuned_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    with pytest.raises(ConfigError, match=message):
        unmask.tune("threshold", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_an_interval_of_a_rate_is_finite_where_nothing_was_answered():
    nothing = Measurement({}, (0.0, 0.0), (0, 0), (1, 1), (0.1, 0.1))
    assert math.isfinite(compare_paired(nothing, nothing).per_second.high)
