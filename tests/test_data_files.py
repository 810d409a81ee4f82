"""Data files: what is read, in which forms, and what is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from unmask.bench import tasks as exams
from unmask.data import releases
from unmask.data.records import find_files, read_rows
from unmask.errors import ConfigError
from unmask.evals.tasks import sources

GOOD = {"question": "1+1?", "answer": "#### 2"}
LINE = json.dumps(GOOD)
DATA = Path(__file__).parent / "fixtures" / "evals"


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


FORMS = {
    "a.jsonl": f"{LINE}\n{LINE}\n",
    "b.jsonl": f"{LINE}\r\n\r\n  \n{LINE}".encode(),
    "c.jsonl": b"\xef\xbb\xbf" + f"{LINE}\n{LINE}".encode(),
    "d.jsonl.gz": gzip.compress(f"{LINE}\n{LINE}".encode(), mtime=0),
    "e.json": json.dumps([GOOD, GOOD], indent=2),
    "f.json": f"{LINE}\n{LINE}\n",
    "g.json": json.dumps(GOOD, indent=1) * 2,
    "h.csv": "question,answer\n1+1?,#### 2\n1+1?,#### 2\n",
    "i.json.gz": gzip.compress(json.dumps([GOOD, GOOD]).encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(name, tmp_path):
    rows = read_rows(written(tmp_path / name, FORMS[name]))
    assert [dict(row.values) for row in rows] == [GOOD, GOOD]


def test_parquet_of_the_hub_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "gsm8k"
    for config, question in (("main", "1+1?"), ("socratic", "Why?")):
        (folder / config).mkdir(parents=True)
        table = pyarrow.table({"question": [question], "answer": ["#### 2"]})
        for split in ("train", "test"):
            parquet.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
    assert sources.gsm8k(data=str(tmp_path))["test"].to_list() == [GOOD]
    assert exams.gsm8k(tmp_path, 1, 0, None)[0].answer == "2"
    bad = written(folder / "main" / "test-00000-of-00001.parquet", b"PAR1 no")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        read_rows(bad)
    bad.rename(folder / "main" / "test-00000-of-00002.parquet")
    with pytest.raises(ConfigError, match="has 1 of 2 test shards"):
        find_files(folder, "test")


def test_a_line_of_unicode_separators_is_one_line(tmp_path):
    row = {"question": "a\u2028b\u0085c\x0b?", "answer": "#### 1"}
    path = written(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False))
    assert releases.gsm8k_document(read_rows(path)[0]) == row
    assert exams.gsm8k(path, 1, 0, None)[0].prompt == f"Question: {row['question']}\nAnswer:"


def test_a_field_that_nobody_reads_may_hold_anything(tmp_path):
    extra = '"x": NaN, "x": 1e999, "y": ' + "[" * 50 + "]" * 50 + ', "answer": "#### 2"'
    path = written(tmp_path / "a.jsonl", LINE[:-1] + ", " + extra + "}")
    assert releases.gsm8k_document(read_rows(path)[0]) == GOOD


BAD_FILES = [
    ("a.jsonl", [GOOD], "line 1 is an array, not an object.*name a file that is one array .json"),
    ("a.jsonl", f"{LINE}\n\n3\n", "line 3 is a number, not an object"),
    ("a.jsonl", f"{LINE}\nnull\n", "line 2 is null, not an object"),
    ("a.jsonl", f"{LINE}\n{LINE[:-1]}\n", "line 2 is not JSON: Expecting ',' delimiter"),
    ("a.jsonl", f"{LINE} {LINE}", "line 1 is not JSON: there is more after its value"),
    ("a.jsonl", b'x\n{"question":"caf\xe9"}', "line 2 is not UTF-8 .byte 0xe9.; convert"),
    ("a.jsonl", LINE.encode("utf-16"), "UTF-16"),
    ("a.jsonl", LINE.encode("utf-16-le"), "UTF-16"),
    ("a.jsonl", " \n\n", "has no rows"),
    ("a.json", "[]", "has no rows"),
    ("a.json", b"", "has no rows"),
    ("a.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
    ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1 is not JSON: Exceeds the limit"),
    ("a.jsonl.gz", LINE, "cannot be read: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(LINE.encode() * 50, mtime=0)[:-9], "cannot be read"),
    ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("a.json", f"[{LINE},\n{LINE}\n", "line 3 is not JSON: expected ',' or '.'"),
    ("a.json", f"[{LINE}\n{LINE}]", "line 2 is not JSON: expected ','"),
    ("a.json", f"[{LINE}]\n{LINE}", "line 2 is not JSON: there is more after the array"),
    ("a.json", f"[{LINE},\n 4]", "line 2 is a number, not an object"),
    ("a.json", f'[{LINE},\n{{"question": "x",\n"answer"}}]', "line 2 is not JSON.* 1 lines below"),
    ("a.csv", 'question,answer\n"a,b\n', "line 2 is not CSV"),
    ("a.csv", "question,answer\na,b,c\n", "line 2 has 3 cells, but the header has 2"),
    ("a.csv", "question,answer\n", "has no rows"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD_FILES)
def test_a_file_that_is_no_list_of_rows_is_refused_with_its_line(name, content, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        read_rows(written(tmp_path / name, content))
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1000


BAD_ROWS = [
    ({"question": "x?", "answer": 12}, "line 2: answer=12 must be text"),
    ({"question": "x?", "answer": None}, "line 2: 'answer' is null"),
    ({"question": "x?"}, "line 2 has no 'answer'"),
    ({"question": ["x?"], "answer": "#### 1"}, "line 2: question=.* must be text"),
    ({"question": " \n", "answer": "#### 1"}, "line 2: question is empty"),
    ({"question": "x?", "answer": ""}, "line 2: answer is empty"),
    ({"question": "x?", "answer": "I do not know"}, "must end with '#### ' and a number"),
    ({"question": "x?", "answer": "3 #### "}, "must end with '#### ' and a number"),
    ({"question": "\ud800?", "answer": "#### 1"}, "line 2: question has half a character"),
    ('{"question": "x?", "answer": "#### 1", "answer": "#### 2"}', "the field 'answer' twice"),
    ('{"question": NaN, "answer": "#### 1"}', "line 2: question=nan must be text"),
    ({"question": {"x" * 9999: "y" * 9999}, "answer": "#### 1"}, "line 2: question="),
]


@pytest.mark.parametrize(("row", "said"), BAD_ROWS)
@pytest.mark.parametrize(
    "reader",
    [
        lambda folder: sources.gsm8k(data=str(folder)),
        lambda folder: exams.gsm8k(folder, 1, 1, None),
    ],
    ids=["task", "exam"],
)
def test_a_row_without_question_or_answer_is_refused_with_its_line(row, said, reader, tmp_path):
    text = row if isinstance(row, str) else json.dumps(row)
    for split in ("train", "test"):
        written(tmp_path / "gsm8k" / f"{split}.jsonl", f"{LINE}\n{text}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        reader(tmp_path)
    assert len(str(caught.value)) < 1000


def test_an_answer_may_be_the_number_alone_and_mgsms_is_in_a_field_of_its_own(tmp_path):
    rows = [{"question": "x?", "answer": each} for each in ("12", "-1,234.5", "a #### $7")]
    rows.append({"question": "x?", "answer": None, "answer_number": 18})
    path = written(tmp_path / "a.json", rows)
    answers = [releases.gsm8k_document(row)["answer"] for row in read_rows(path)]
    assert answers == ["12", "-1,234.5", "a #### $7", "#### 18"]


MMLU_ROW = ["What, or who?", "p", "q", "r", "s"]
CSV = '"What, or who?",p,q,r,s,{}\n'
MMLU_FORMS = {
    "authors": [("data/{}/law_{}.csv", CSV.format("C"))],
    "header": [("{}/law_{}.csv", "question,choice0,choice1,choice2,choice3,answer\n" + CSV.format(2))],
    "letters": [("{}/law_{}.csv", "\ufeffinput,A,B,C,D,target\r\n" + CSV.format("c"))],
    "rows": [
        ("{}.jsonl", {"question": MMLU_ROW[0], "choices": MMLU_ROW[1:], "answer": 2, "subject": "law"})
    ],
    "array": [
        ("{}.json", [{"question": MMLU_ROW[0], **dict(zip("ABCD", MMLU_ROW[1:], strict=True)),
                      "answer": "C", "subject": "law"}])
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", MMLU_FORMS)
def test_mmlu_is_read_in_the_forms_of_its_releases(form, tmp_path):
    for split in ("dev", "test", "val"):
        for name, content in MMLU_FORMS[form]:
            written(tmp_path / "mmlu" / name.format(split, split), content)
    (row,) = sources.mmlu(data=str(tmp_path), shots=1)["test"]
    asked = "What, or who?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    assert row["prompt"].endswith(f"about law.\n\n{asked} C\n\n{asked}")
    assert (row["answer"], row["subject"]) == (2, "law")
    assert [each.answer for each in exams.mmlu(tmp_path, 1, 0)] == ["C"]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("-1", "line 2: answer=-1 must be 0 to 3"),
        ("4", "line 2: answer=4 must be 0 to 3"),
        ("E", "line 2: answer='E' must be one of A to D"),
        ("", "line 2: answer='' must be one of A to D"),
        ("A,A", "line 2 has 7 cells"),
    ],
)
def test_an_answer_that_is_no_choice_is_refused(last, said, tmp_path):
    written(tmp_path / "mmlu" / "test" / "law_test.csv", CSV.format("A") + CSV.format(last))
    with pytest.raises(ConfigError, match=said):
        sources.mmlu(data=str(tmp_path), shots=0)
    with pytest.raises(ConfigError, match=said):
        exams.mmlu(tmp_path, 1, 0)


def test_math_has_its_answers_in_boxes_and_a_file_a_problem(tmp_path):
    row = {"problem": "1/2?", "level": "1", "solution": "so $\\boxed{\\frac{1}{2}}$."}
    written(tmp_path / "math500" / "test" / "algebra" / "1.json", row)
    (found,) = sources.math500(data=str(tmp_path))["test"]
    assert found["answer"] == "\\frac{1}{2}"
    written(tmp_path / "math500" / "test" / "algebra" / "2.json", row | {"solution": "no box"})
    with pytest.raises(ConfigError, match=r"2.json, line 1: there is no answer"):
        sources.math500(data=str(tmp_path))


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed 5$ is it", "5"),
        ("\\fbox{x}", "x"),
        ("\\boxed{", None),
        ("\\boxed{ }", None),
        ("none", None),
    ],
)
def test_the_last_box_is_the_answer(solution, answer):
    assert releases.boxed(solution) == answer


MBPP = {
    "text": "Do.",
    "code": "x = 1",
    "task_id": 11,
    "test_setup_code": "",
    "test_list": ["a", "b"],
}


def test_the_sanitized_mbpp_is_an_array_with_imports(tmp_path):
    rows = [
        {"task_id": id_, "prompt": "Do.", "code": "x", "test_imports": ["import math"]}
        | {"test_list": ["a"]}
        for id_ in (2, 3, 4, 11)
    ]
    written(tmp_path / "mbpp" / "sanitized-mbpp.json", rows)
    found = sources.mbpp(data=str(tmp_path))
    assert found["test"][0]["test_setup_code"] == "import math"
    assert (found["test"][0]["text"], len(found["prompt"])) == ("Do.", 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_id": "eleven"}, "task_id='eleven' must be a whole number"),
        ({"task_id": 600}, "has no task_id from 11 to 510"),
        ({"test_list": "assert f(1)"}, "test_list='assert .* must be a list of texts"),
        ({"test_list": []}, "test_list=.. must be a list of texts"),
        ({"test_list": ["a", 3]}, "test_list=3 must be text"),
        ({"test_setup_code": 3}, "test_setup_code=3 must be text"),
    ],
)
def test_a_problem_of_mbpp_that_cannot_be_tested_is_refused(change, said, tmp_path):
    written(tmp_path / "mbpp" / "mbpp.jsonl", MBPP | change)
    with pytest.raises(ConfigError, match=said):
        sources.mbpp(data=str(tmp_path))


def test_two_problems_of_one_number_are_refused_and_a_copy_is_not(tmp_path):
    rows = [MBPP, MBPP | {"task_id": "11"}]
    path = written(tmp_path / "mbpp" / "mbpp.jsonl", "\n".join(map(json.dumps, rows)))
    assert len(sources.mbpp(data=str(tmp_path))["test"]) == 1
    written(path, "\n".join(map(json.dumps, [MBPP, MBPP | {"code": "y = 2"}])))
    with pytest.raises(ConfigError, match="two problems with task_id=11"):
        sources.mbpp(data=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entry_point": "not a name"}, "entry_point='not a name' is not a name"),
        ({"test": "assert f(1)"}, "test has no function check"),
        ({"test": None}, "'test' is null"),
    ],
)
def test_a_problem_of_humaneval_that_cannot_be_tested_is_refused(change, said, tmp_path):
    row = {"task_id": "a", "prompt": "def f():\n", "test": "def check(f): ...", "entry_point": "f"}
    written(tmp_path / "humaneval" / "HumanEval.jsonl", row)
    assert len(sources.humaneval(data=str(tmp_path))["test"]) == 1
    written(tmp_path / "humaneval" / "HumanEval.jsonl", row | change)
    with pytest.raises(ConfigError, match=said):
        sources.humaneval(data=str(tmp_path))


def test_puzzles_are_grids_and_numbers(tmp_path):
    solution = "1234341221434321"
    written(tmp_path / "sudoku" / "a.csv", f"Puzzle,Solution\n0234341221434321,{solution}\n")
    (row,) = sources.sudoku(data=str(tmp_path))["test"]
    assert row["answer"] == "1234\n3412\n2143\n4321"
    written(tmp_path / "sudoku" / "b.json", [{"input": 234341221434321, "output": solution}])
    with pytest.raises(ConfigError, match="b.json, line 1: input=234341221434321 must be text"):
        sources.sudoku(data=str(tmp_path))
    written(tmp_path / "countdown" / "cd3_test.jsonl", {"input": "1,2,3", "output": "1+2=3"})
    with pytest.raises(ConfigError, match="input='1,2,3' must be 3 numbers and the target"):
        sources.countdown(data=str(tmp_path))


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match="has no folder gsm8k; docs/reference/tasks.md"):
        sources.gsm8k(data=str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(ConfigError, match="has no gsm8k/train.jsonl; docs/reference/tasks.md"):
        sources.gsm8k(data=str(tmp_path))


@pytest.mark.parametrize(
    "task", ["gsm8k", "math500", "humaneval", "mbpp", "mmlu", "sudoku", "countdown"]
)
def test_the_fixtures_are_read(task):
    options = {"shots": 1} if task == "mmlu" else {}
    assert len(getattr(sources, task)(data=str(DATA), **options)["test"])
