"""`unmask generate --prompts`: files of prompts, resumed; batch files of OpenAI's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import unmask
from unmask.cli.main import main

MODEL = str(Path(__file__).parent / "fixtures" / "golden" / "tiny-llada")
SUDOKU = "Sudoku\n0200\n4302\n3401\n0004"
WORDS = ["-m", "demo", "-d", "threshold", "--gen-length", "16", "--batch-size", "2"]


@pytest.fixture
def files(tmp_path):
    """Writes rows to a file; returns its path and that of the output."""

    def make(*rows):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path, tmp_path / "out.jsonl"

    return make


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(source: Path, target: Path, *words: str) -> int:
    return main(["generate", "--prompts", str(source), "-o", str(target), *(words or WORDS)])


def test_rows_keep_their_order_and_fields_and_have_the_answers_of_generate(files):
    prompts = [SUDOKU, "The cat", "Tom has 3 pens. He buys 2 more pens. How many pens?"]
    rows = [{"id": 7, "prompt": prompts[0]}, {"prompt": prompts[1]}]
    rows.append({"messages": [{"role": "user", "content": prompts[2]}], "split": "test"})
    source, target = files(*rows)
    assert run(source, target) == 0
    found = rows_of(target)
    expected = unmask.LLM("demo").generate(prompts, "threshold", gen_length=16)
    assert [row["text"] for row in found] == [out.text for out in expected]
    assert [row["num_forwards"] for row in found] == [out.num_forwards for out in expected]
    assert (found[0]["id"], found[2]["split"], found[1]["seed"]) == (7, "test", 1)


def test_an_interrupted_file_is_resumed_after_its_last_whole_line(files, capsys):
    source, target = files(*[{"prompt": f"The cat {n}"} for n in range(5)])
    assert run(source, target) == 0
    whole = target.read_bytes()
    lines = whole.splitlines(keepends=True)
    marked = lines[0].replace(b'"seed": 0', b'"seed": 0, "mark": 1')
    target.write_bytes(marked + lines[1] + lines[2][:20])
    assert run(source, target) == 0
    assert target.read_bytes() == marked + b"".join(lines[1:]), "row 0 is not decoded again"
    assert run(source, target) == 0
    assert "5 rows, 0 with an error" in capsys.readouterr().err


def test_a_row_that_cannot_be_decoded_does_not_end_the_others(files, capsys):
    source, target = files({"prompt": "The cat"}, {"prompt": ""}, {"prompt": "The dog"})
    assert run(source, target) == 1
    found = rows_of(target)
    assert [bool(row.get("error")) for row in found] == [False, True, False]
    assert found[1]["text"] is None
    assert "empty" in found[1]["error"]
    assert "1 with an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"text": "x"}], "rename it|give prompt"),
        ([{"prompt": "a"}, {"question": "b"}], "line 2: give prompt"),
        ([{"prompt": 3}], "must be a text"),
        ([{"prompt": "a", "messages": []}], "one of them"),
        ([{"prompt": "a", "text": "b"}], "'text' is one of the output"),
        ([], "no rows"),
        (["a"], "no object"),
    ],
)
def test_a_file_with_a_mistake_is_refused_before_anything_is_decoded(rows, problem, files, capsys):
    import re

    source, target = files(*rows)
    assert run(source, target) == 2
    assert re.search(problem, capsys.readouterr().err)
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a prompt", "--prompts", "IN", "-o", "OUT"], "has the prompts"),
        (["--prompts", "IN"], "go together"),
        (["-o", "OUT"], "are for --prompts"),
        (["--prompts", "IN", "-o", "OUT", "--json"], "no effect with --prompts"),
        (["--prompts", "ABSENT", "-o", "OUT"], "cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, problem, files, capsys):
    source, target = files({"prompt": "a"})
    names = {"IN": str(source), "OUT": str(target), "ABSENT": str(source) + "x"}
    assert main(["generate", *[names.get(word, word) for word in words]]) == 2
    assert problem in capsys.readouterr().err


def test_an_output_of_other_prompts_or_another_method_is_not_continued(files, capsys):
    source, target = files({"prompt": "a cat"}, {"prompt": "a dog"})
    target.write_text(json.dumps({"prompt": "other", "text": ""}) + "\n", encoding="utf-8")
    assert run(source, target) == 2
    assert "not the answer to line 1" in capsys.readouterr().err
    target.write_text(json.dumps({"prompt": "a cat", "method": "klass"}) + "\n", encoding="utf-8")
    assert run(source, target) == 2
    assert "another file, or use the same method" in capsys.readouterr().err


def test_a_batch_file_of_openai_is_answered_by_the_routes(files):
    pytest.importorskip("fastapi")
    line = {"method": "POST", "url": "/v1/chat/completions"}
    message = {"role": "user", "content": SUDOKU}
    body = {"model": "demo", "messages": [message], "max_tokens": 32, "decoder": "threshold"}
    source, target = files(
        {"custom_id": "a", **line, "body": body},
        {"custom_id": "b", **line, "body": {**body, "max_tokens": -1}},
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "demo", "prompt": "The cat", "max_tokens": 8},
        },
    )
    assert run(source, target, "-m", "demo") == 1
    found = rows_of(target)
    assert [row["custom_id"] for row in found] == ["a", "b", "c"]
    assert [row["response"]["status_code"] for row in found] == [200, 400, 200]
    text = found[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert text.strip() == "1243\n4312\n3421\n2134"
    assert (found[0]["error"], found[1]["error"]["code"]) == (None, "400")
    assert run(source, target, "-m", "demo") == 1, "nothing is left to decode"
    assert rows_of(target) == found
    assert run(source, target, "-m", "demo", "--seed", "3") == 2


def test_a_constraint_and_a_draft_hold_for_every_row(files, capsys):
    source, target = files({"prompt": "The cat"}, {"prompt": "Is it?"})
    assert run(source, target, "--choice", "yes|no", "--gen-length", "4") == 0
    assert {row["text"] for row in rows_of(target)} <= {"yes", "no"}
    target.unlink()
    words = ["-d", "wino", "--draft", "The dog", "--max-edits", "0"]
    assert run(source, target, *words) == 0
    assert [row["text"] for row in rows_of(target)] == ["The dog"] * 2
    line = {"method": "POST", "url": "/v1/chat/completions", "custom_id": "a", "body": {}}
    source, _ = files(line)
    target.unlink()
    assert run(source, target, "--choice", "yes|no") == 2
    assert "no effect on a batch file of OpenAI's" in capsys.readouterr().err
