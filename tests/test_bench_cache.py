"""`bench cache`: staleness is measured against the network without a cache, work against none."""

from __future__ import annotations

import json

import pytest

from unmask import LLM
from unmask.bench.cache import measure_caches
from unmask.bench.report import DecodeSetting
from unmask.cli.main import main
from unmask.demo.tasks import held_out_set
from unmask.method import MethodSpec, Source


@pytest.fixture(scope="module")
def found():
    """Two prompts under a cache that computes everything and two that do not."""
    setting = DecodeSetting(limit=2, gen_length=16, block_length=8)
    names = ["vicinity(prefix_look=999, after_look=999)", "dual", "dllm"]
    examples = held_out_set("word_problem", 2)
    made = measure_caches(
        LLM("demo"), names, MethodSpec.parse(Source({"decoder": "threshold"})), setting, examples
    )
    assert [item.name for item in made] == ["none", *names]
    return made


def test_a_cache_that_computes_everything_is_not_stale(found):
    none, whole, _, _ = found
    assert whole.divergence == pytest.approx(0, abs=1e-6)
    assert (whole.same_top, whole.same_answers, whole.same_tokens) == (1, 1, 1)
    assert whole.num_queries == none.num_queries
    assert (none.is_exact, whole.is_exact) == (True, False)


def test_one_that_does_not_is_stale_and_computes_less(found):
    none, _, dual, dllm = found
    for item in (dual, dllm):
        assert item.divergence > 1e-6
        assert item.num_queries < none.num_queries
    assert none.bytes_per_position == 0
    assert dllm.bytes_per_position == 2 * dual.bytes_per_position > 0


def test_the_command_prints_json_alone(capsys):
    arguments = ["bench", "cache", "--caches", "dual", "--limit", "1", "--gen-length", "16"]
    assert main([*arguments, "--block-length", "8", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in report["caches"]] == ["none", "dual"]
    assert report["setting"]["limit"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--caches", "duel"], "did you mean 'dual'"),
        (["--caches", "dllm(kp=0)"], "kp=0 must be at least 1"),
        (["--decoder", "vanilla,threshold"], "give one decoder"),
        (["--limit", "0"], "limit"),
        (["--json", "/nowhere/x.json"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(arguments, words, capsys):
    assert main(["bench", "cache", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
