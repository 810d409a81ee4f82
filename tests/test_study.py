"""The study in `studies/cadllm`: its numbers can be made again, and its README says what they are."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.demo.tasks import is_held_out
from unmask.engine.request_builder import parse_method

FOLDER = Path(__file__).parents[1] / "studies" / "cadllm"


@pytest.fixture(scope="module")
def study():
    """Imports a module of the study."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


def test_the_readmes_tables_are_those_of_the_results(study):
    tables = study("tables")
    text = tables.README.read_text(encoding="utf-8")
    assert tables.filled(text) == text
    named = re.findall(r"<!-- (\w+): begin -->", text)
    assert sorted(named) == sorted(tables.TABLES)


def test_the_readmes_pictures_are_there(study):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((pictures/\w+\.png)\)", text)
    assert shown
    for name in shown:
        assert (FOLDER / name).exists(), name


def test_every_cell_names_a_method_that_exists(study):
    for cells in study("parts").cells().values():
        for cell in cells:
            parse_method(cell.method, knobs=dict(cell.options))


def test_a_stored_cell_is_what_decoding_gives(study):
    cells, parts = study("cells"), study("parts")
    cell = parts.cell("sudoku", parts.CADLLM)
    kept = cells.stored()[cell.key]
    again = cells.measure(replace(cell, n=6))
    for name in ("right", "invalid", "tokens", "forwards", "queries", "logit_rows"):
        assert getattr(again, name) == getattr(kept, name)[:6], name
    assert sum(row[2] for row in again.bins) == sum(again.tokens)


def test_an_interrupted_part_goes_on_where_it_was(study, monkeypatch, tmp_path):
    cells, parts = study("cells"), study("parts")
    wanted = [parts.cell("word", f"threshold(threshold=0.{k})", n=1) for k in range(4)]
    asked = []

    def measure(cell):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(cell)
        return cells.Measured([1], [0], [2], [3], [4], [5])

    monkeypatch.setattr(cells, "STORE", tmp_path / "cells.jsonl")
    monkeypatch.setattr(cells, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        cells.ensure(wanted, lambda text: None)
    assert list(cells.stored()) == [cell.key for cell in wanted[:2]]
    first, asked[:] = list(asked), []
    cells.ensure([*wanted, wanted[3]], lambda text: None)
    assert first + asked == wanted
    assert cells.stored()[wanted[3].key].tokens == [2]


def test_shifted_prompts_keep_their_answers_and_differ_from_training(study):
    prompts = study("prompts")
    plain = {example.prompt for example in prompts.word(200)}
    for name in ("names", "reworded", "noise", "distractor", "large"):
        examples = prompts.SETS[name](40)
        assert len(examples) == 40
        changed = sum(example.prompt not in plain for example in examples)
        assert changed == 40 or (name == "names" and changed > 20), "some stories have no people"
        for example in examples:
            for left, operator, right, result in re.findall(
                r"(\d+)([-+*/])(\d+)=(\d+)", example.answer
            ):
                a, b = int(left), int(right)
                made = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(1, b)}[operator]
                assert made == int(result), example
    assert all(
        is_held_out(example) for name in ("word", "names") for example in prompts.SETS[name](40)
    )
    assert not any(prompts.is_invalid(e, e.answer) for s in prompts.SETS.values() for e in s(20))
    assert prompts.is_invalid(prompts.word(1)[0], "Left: 2-1=1")


def test_wilsons_interval_is_the_published_one(study):
    share, low, high = study("stats").wilson(81, 263)
    assert (share, low, high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)


def test_paired_intervals_know_that_both_sides_saw_the_same_prompts(study):
    stats = study("stats")
    a, b = [1, 0] * 50, [1, 0] * 50
    assert stats.difference(a, b) == (0.0, 0.0, 0.0)
    found = stats.difference([1] * 60 + [0] * 40, [1] * 50 + [0] * 50)
    assert found.value == pytest.approx(0.1)
    assert 0.03 < found.low < 0.07
    assert 0.13 < found.high < 0.17
    assert stats.speedup(([2] * 9, [1] * 9), ([3] * 9, [3] * 9)) == (2.0, 2.0, 2.0)
