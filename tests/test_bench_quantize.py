"""`bench quantize`: forms in processes of their own, compared on the first one's answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unmask.bench.quantize import FormatResult, QuantizeResult, compare_with
from unmask.cli.main import main


def test_forms_are_weighed_and_compared_with_the_first(capsys):
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    arguments = ["bench", "quantize", "--forms", "bfloat16,int4", "--limit", "1", "--repeat", "1"]
    assert main([*arguments, "--json", "-"]) == 0
    first, second = json.loads(capsys.readouterr().out)["forms"]
    assert (first["name"], second["name"]) == ("bfloat16", "int4")
    assert (first["same_top"], first["divergence"]) == (1, 0)
    assert second["num_bytes"] < 0.5 * first["num_bytes"]
    assert 0 < second["divergence"] < 0.1
    assert second["same_top"] > 0.8
    assert second["num_rows"] == first["num_rows"] > 10
    assert all(item["seconds"] > 0 and len(item["right"]) == 1 for item in (first, second))


def test_agreement_is_of_the_likeliest_token_and_of_the_distributions():
    reference = np.log(np.array([[0.5, 0.5 - 1e-6, 1e-6], [0.25, 0.5, 0.25]], dtype=np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]], dtype=np.float32))
    result = compare_with(QuantizeResult(FormatResult("x"), [], other), reference)
    assert (result.same_top, result.num_rows) == (0.5, 2)
    assert result.divergence == pytest.approx(0.5 * 0.5 * np.log(2), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--forms", "float32,int5"], "int5"),
        (["--decoder", "vanilla,threshold"], "give one decoder"),
        (["--limit", "0"], "limit"),
        (["--json", "/nowhere/x.json"], "/nowhere"),
        (["--model", "demmo", "--forms", "float32"], "demo"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(arguments, words, capsys):
    assert main(["bench", "quantize", *arguments]) == 2
    assert words in capsys.readouterr().err
