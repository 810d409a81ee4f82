"""Alternatives of a trace: the likeliest tokens of each commit, in Python, the CLI, HTTP and pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.pictures.page import data_of, html_of
from unmask.view.replay import plain_frames, play

PROMPT = [[3, 4]]


def decoded(tiny, decoder="threshold", **options):
    return tiny("llada").generate(PROMPT, decoder, gen_length=8, return_trace=True, **options)[0]


@pytest.mark.parametrize(
    ("decoder", "cache"),
    [("vanilla", "none"), ("wino", "none"), ("threshold", "dual"), ("credit", "none")],
)
def test_each_commit_has_its_likeliest_tokens_and_nothing_else_changes(tiny, decoder, cache):
    plain = decoded(tiny, decoder, cache=cache)
    rich = decoded(tiny, decoder, cache=cache, trace_alternatives=3)
    assert rich.token_ids == plain.token_ids
    for with_, without in zip(rich.trace, plain.trace, strict=True):
        assert without.alternatives == {}
        decided = {item.position for item in (*with_.committed, *with_.replaced)}
        assert set(with_.alternatives) == decided
        for pairs in with_.alternatives.values():
            shares = [share for _, share in pairs]
            assert len(pairs) == 3
            assert shares == sorted(shares, reverse=True)
            assert 0 <= sum(shares) <= 1 + 1e-6
        assert with_.committed == without.committed


def test_the_first_alternative_of_a_greedy_commit_is_its_token_with_its_confidence(tiny):
    for step in decoded(tiny, "vanilla", trace_alternatives=2).trace:
        for commit in step.committed:
            token, share = step.alternatives[commit.position][0]
            assert token == commit.token
            assert np.isclose(share, commit.confidence, atol=1e-6)


def test_more_alternatives_begin_with_those_of_fewer(tiny):
    few, many = (decoded(tiny, trace_alternatives=k).trace for k in (1, 4))
    for one, four in zip(few, many, strict=True):
        assert {at: pairs[:1] for at, pairs in four.alternatives.items()} == one.alternatives


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"trace_alternatives": 3}, "no effect without return_trace"),
        ({"trace_alternatives": 21, "return_trace": True}, "at most 20"),
        ({"trace_alternatives": -1, "return_trace": True}, "at least 0"),
        ({"trace_alternatives": True, "return_trace": True}, "whole number"),
    ],
)
def test_a_wrong_number_of_alternatives_is_refused(tiny, options, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny("llada").generate(PROMPT, gen_length=4, **options)
    if options.get("return_trace"):
        with pytest.raises(ConfigError, match=problem):
            tiny("llada").infill([3], **options)


def test_a_small_vocabulary_has_no_more_alternatives_than_tokens(tiny):
    options = {"vocabulary": "static", "vocab_size": 2, "trace_alternatives": 20}
    for step in decoded(tiny, **options).trace:
        for pairs in step.alternatives.values():
            assert len({token for token, _ in pairs}) == len(pairs) <= 20


def test_pictures_show_the_alternatives(tiny):
    out = decoded(tiny, trace_alternatives=2)
    cell = next(cell for cell in out.film().frames[-1].cells if cell.written.likeliest)
    (first, share), _ = cell.written.likeliest
    words = f"likeliest {first!r} {share:.2f}, "
    assert words.replace("'", "&#x27;") in out._repr_html_()
    assert words in "".join(plain_frames(out.film()))
    assert any(pair for pair in data_of(out.film())["cells"] if pair[7])
    assert f'["{first}",{round(share, 4)}]' in html_of(out.film()).replace(" ", "")
    console = Console(record=True, force_terminal=True, width=200)
    play(out.film(), console, fps=50)
    assert words in console.export_text()
    assert "likeliest '" not in "".join(plain_frames(decoded(tiny).film()))


def test_a_trace_file_keeps_the_alternatives_and_replays_them(tmp_path, capsys):
    path, plain = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    words = ["generate", "Sudoku\n0200\n4302\n3401\n0004", "-d", "threshold", "--gen-length", "24"]
    assert main([*words, "--trace", str(path), "--trace-alternatives", "2"]) == 0
    assert main([*words, "--trace", str(plain)]) == 0
    first, *lines = path.read_text("utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    assert all(
        set(line["alternatives"]) == {str(c[0]) for c in line["committed"]} for line in known
    )
    for line in known:
        del line["alternatives"]
    rest = [json.dumps(line, ensure_ascii=False) for line in known]
    assert "\n".join([first, *rest]) + "\n" == plain.read_text("utf-8")
    film = unmask.read_film(path)
    (out,) = unmask.LLM("demo").generate(
        words[1], "threshold", gen_length=24, return_trace=True, trace_alternatives=2
    )
    assert film.frames == out.film().frames
    capsys.readouterr()
    assert main(["replay", str(path)]) == 0
    assert capsys.readouterr().out.count("likeliest") == sum(len(x["committed"]) for x in known)
    assert main([*words, "--trace-alternatives", "2"]) == 2
    assert "no effect without --trace" in capsys.readouterr().err
