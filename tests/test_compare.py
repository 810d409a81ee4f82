"""`unmask compare` and `unmask samples`: tables, plots, and the page of answers."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.evals.comparison import as_csv, as_latex, records
from unmask.evals.results import Results, read_runs
from unmask.evals.samples import read_pairs, read_samples
from unmask.plain_text import script_json

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\x1b[2J"
CHROMIUM = Path("/usr/bin/chromium")
OWN = """
from dataclasses import dataclass
import numpy as np
from unmask.decoders import Blockwise, knob

@dataclass(frozen=True)
class TopTwo(Blockwise):
    count: int = knob(2, "positions committed in a forward")
    def select(self, reading, scores, block):
        return np.argsort(-scores.rank, kind="stable")[: self.count]
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder in which two decoders were compared with two caches on hostile rows."""
    folder = tmp_path_factory.mktemp("compared")
    before = Path.cwd()
    os.chdir(folder)
    try:
        rows = [
            {"question": f"What is {n} + 1? {HOSTILE if n == 1 else ''}", "answer": n + 1}
            for n in range(3)
        ]
        Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("judge.py").write_text(
            "def score(answer, row):\n    return 'is 2' in row['question']\n"
        )
        Path("top_two.py").write_text(OWN)
        words = ["compare", "--decoders", "threshold(threshold=0.8),./top_two.py(count=4)"]
        words += ["--caches", "none,prefix", "--task", "mine.jsonl", "--metric", "python:judge.py"]
        words += [
            "--gen-length",
            "8",
            "generation.block_length=8",
            "--batch-size",
            "2",
            "-o",
            "out",
        ]
        assert main(words) == 0
        yield folder, words
    finally:
        os.chdir(before)


def runs_of(folder):
    return sorted(path.parent for path in (folder / "out").glob("*/results.json"))


def test_every_decoder_runs_with_every_cache(compared):
    folder, _ = compared
    rows = json.loads((folder / "out/table.json").read_text())
    assert [row["run"] for row in rows] == [
        "threshold(threshold=0.8)",
        "threshold(threshold=0.8), prefix",
        "./top_two.py(count=4)",
        "./top_two.py(count=4), prefix",
    ]
    assert len(runs_of(folder)) == 4
    for row in rows:
        results = Results.read(folder / row["folder"])
        assert row["tokens_per_forward"] == results.metrics["tokens_per_forward"]
        assert row["accuracy"] == pytest.approx(1 / 3)
    assert rows[2]["forwards_per_answer"] == 2, "8 positions, 4 a forward"
    assert [row["gain"] for row in rows] == [None, 0.0, 0.0, 0.0]


def test_the_tables_hold_the_same_numbers(compared):
    folder, _ = compared
    rows = json.loads((folder / "out/table.json").read_text())
    table = list(csv.DictReader((folder / "out/table.csv").read_text().splitlines()))
    for row, line in zip(rows, table, strict=True):
        assert float(line["tokens_per_forward"]) == row["tokens_per_forward"]
    latex = (folder / "out/table.tex").read_text()
    assert "./top\\_two.py(count=4), prefix & prefix" in latex
    assert latex.count("\\\\") == 5


def test_the_plots_are_there_in_each_format_and_name_the_methods(compared):
    folder, _ = compared
    for axis in ("tokens_per_forward", "tokens_per_second"):
        for ending, magic in {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}.items():
            assert (folder / f"out/front_{axis}.{ending}").read_bytes().startswith(magic)


def test_the_same_command_asks_nothing_again(compared, capsys):
    folder, words = compared
    before = [(run / "samples.jsonl").read_bytes() for run in runs_of(folder)]
    assert main([*words, "--no-pictures", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert [(run / "samples.jsonl").read_bytes() for run in runs_of(folder)] == before


def test_the_page_holds_hostile_texts_as_data_alone(compared):
    folder, _ = compared
    page = (folder / "out/report.html").read_text()
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert page.count("</script>") == 2, "of the data and of the program"
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    data = json.loads(text)
    assert [doc["doc"] for doc in data["docs"]] == [0, 1, 2], "wrong ones first"
    assert [doc["answers"][0]["is_wrong"] for doc in data["docs"]] == [True, True, False]
    (hostile,) = [doc for doc in data["docs"] if doc["doc"] == 1]
    assert "<img src=x onerror=alert(1)>" in hostile["prompt"]


def test_the_trace_on_the_page_is_that_of_the_run(compared):
    folder, _ = compared
    text = (folder / "out/report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    for doc in data["docs"]:
        answer = doc["answers"][0]
        film = answer["film"]
        assert len(film["frames"]) == answer["num_forwards"] + 1
        assert all(film["kinds"][film["cells"][i][2]] == "open" for i in film["frames"][0][2])
        last = "".join(
            film["cells"][i][1] for i in film["frames"][-1][2] if not film["cells"][i][3]
        )
        assert last.strip().startswith(answer["text"].strip())


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_the_page_works_in_a_browser(compared, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    folder, _ = compared
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=sandbox)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto((folder / "out/report.html").as_uri())
        assert page.locator("#list button").count() == 3
        assert page.locator(".run").count() == 4
        page.locator("input[type=range]").fill("0")
        assert "░" * 8 in page.locator(".run .text").first.inner_text().replace("\n", "")
        page.locator("#filter").select_option("wrong")
        assert page.locator("#list button").count() == 2
        page.screenshot(path=os.environ.get("UNMASK_SCREENSHOT", str(tmp_path / "page.png")))
        browser.close()
    assert errors == []


def test_samples_shows_answers_and_those_that_differ(compared, capsys):
    folder, _ = compared
    first, *others = [str(run) for run in runs_of(folder)]
    assert main(["samples", first]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 documents" in out
    assert "\x1b" not in out
    assert main(["samples", first, "--wrong", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [line["doc"] for line in lines] == [0, 1]
    assert {line["verdict"] for line in lines} == {"wrong"}
    assert main(["samples", first, "--diff", others[-1], "--limit", "1"]) == 0
    pairs = read_pairs(Path(first), Path(others[-1]))
    differ = sum(pair.first.text != pair.second.text for pair in pairs)
    assert f"{differ} differ; " in capsys.readouterr().out


def test_runs_of_different_tasks_have_no_pairs(compared, tmp_path):
    folder, _ = compared
    run = runs_of(folder)[0]
    other = tmp_path / "other"
    other.mkdir()
    for path in run.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    text = (other / "results.json").read_text()
    (other / "results.json").write_text(text.replace('"task": "mine"', '"task": "yours"', 1))
    with pytest.raises(ConfigError, match="answer different tasks, mine .* and yours"):
        read_pairs(run, other)
    (other / "scores.jsonl").write_text("[]\n")
    with pytest.raises(ConfigError, match="line 1 is no score of ours"):
        read_samples(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoders", "threshold,threshold"], "is listed twice"),
        (["--decoders", "threshold,"], "must be names with commas"),
        (["--decoders", "tresh"], "did you mean 'threshold'"),
        (["--decoder", "threshold"], "give all of them in --decoders"),
        (["--task", "mmlu", "--data", "."], "which no decoder changes"),
        (["--task", "humaneval", "--data", "."], "runs code that the model wrote"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    task = [] if "--task" in words else ["--task", "word_problem"]
    assert main(["compare", *task, *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_cells_are_escaped_for_their_format(compared):
    folder, _ = compared
    (row, *_) = records(read_runs(runs_of(folder)))
    hostile = row | {"run": "=1+1|\\input{x}", "model": "@a\nb"}
    text = as_csv([hostile])
    assert "'=1+1|\\input{x}" in text
    assert "'@a b" in text
    assert "=1+1|\\textbackslash{}input\\{x\\}" in as_latex([hostile])
    assert script_json("</script>\u2028") == '"\\u003c/script>\\u2028"'


def test_a_label_stands_beside_its_point_in_svg_and_pdf_too(tmp_path):
    from matplotlib.text import Annotation

    from unmask.bench.plot import Point, new_figure, save, set_limits

    figure, axes = new_figure(9, 6)
    points = [Point(name, 1.0, (0, 0), 75.0, 5.0, False, False) for name in ("one", "two, prefix")]
    set_limits(axes, points)
    save(figure, tmp_path / "front.svg", axes, points)
    figure.dpi = 72  # that of the formats made of lines
    x, _ = axes.transData.transform((1.0, 75.0))
    for text in axes.findobj(Annotation):
        box = text.get_window_extent(figure.canvas.get_renderer())
        assert min(abs(box.x0 - x), abs(box.x1 - x)) < 20
