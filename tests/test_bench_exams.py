"""`unmask bench gsm8k` and `mmlu` against a server whose answers are known."""

from __future__ import annotations

import json
import re

import pytest
from mock_server import mock_server

from unmask.bench.tasks import GSM8K_STOPS, answer_letter, last_number, mmlu
from unmask.cli.main import main

PRINTED = re.compile(
    r"Accuracy: (\d\.\d{3})\nInvalid: (\d\.\d{3})\nLatency: (\d+\.\d{3}) s\n"
    r"Output throughput: (\d+\.\d{3}) token/s\n"
)


@pytest.fixture
def gsm8k(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    answers = [f"It is <<{n}={n}>>{n}.\n#### {n}" for n in ("1,018", "2", "3", "4")]
    lines = [json.dumps({"question": f"Q{i}?", "answer": a}) for i, a in enumerate(answers)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def subjects(tmp_path):
    (tmp_path / "test").mkdir()
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    (tmp_path / "test" / "a_test.csv").write_text(head + '"One, or two?",p,q,r,s,1\nB?,p,q,r,s,2\n')
    (tmp_path / "test" / "b_test.csv").write_text("C?,p,q,r,s,D\n")
    return tmp_path


def run(mock, *words) -> int:
    return main(["bench", *map(str, words), "--base-url", mock.url])


def test_gsm8k_is_asked_and_printed_as_document_000_has_it(gsm8k, capsys):
    words = ["gsm8k", "--data", gsm8k, "--num-questions", 4, "--num-shots", 2]
    with mock_server(answer="So 1,000 and 18 are 1,018 pens.") as mock:
        assert run(mock, *words, "--max-new-tokens", 50) == 0
    printed = PRINTED.fullmatch(capsys.readouterr().out)
    assert printed, "the four lines"
    assert (printed[1], printed[2]) == ("0.250", "0.000")
    rate, latency = float(printed[4]), float(printed[3])
    assert rate * latency == pytest.approx(4 * 50, rel=0.1)
    shot = "Question: Q0?\nAnswer: It is <<1,018=1,018>>1,018.\n#### 1,018\n\n"
    prompts = sorted(body["prompt"] for body in mock.log)
    assert prompts[2].startswith(shot + "Question: Q1?\nAnswer: It is")
    assert prompts[2].endswith("#### 2\n\nQuestion: Q2?\nAnswer:")
    assert mock.log[0]["stop"] == list(GSM8K_STOPS)


def test_gsm8k_over_sglangs_endpoint_sends_the_stops_where_it_takes_them(gsm8k, capsys):
    words = ["gsm8k", "--data", gsm8k / "gsm8k" / "test.jsonl", "--num-questions", 1, "--json"]
    with mock_server(answer=" no idea") as mock:
        assert run(mock, *words, "--num-shots", 0, "--backend", "sglang") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["invalid"], found["answers"]) == (0, 1, [" no idea"])
    assert mock.log[0]["text"] == "Question: Q0?\nAnswer:"
    assert mock.log[0]["sampling_params"]["stop"] == list(GSM8K_STOPS)


def test_shots_can_come_from_another_file(gsm8k, tmp_path):
    other = tmp_path / "train.jsonl"
    other.write_text(json.dumps({"question": "T?", "answer": "9"}))
    words = ["gsm8k", "--data", gsm8k, "--num-questions", 1, "--num-shots", 1]
    with mock_server(answer="1018") as mock:
        assert run(mock, *words, "--shots-from", other) == 0
    assert mock.log[0]["prompt"] == "Question: T?\nAnswer: 9\n\nQuestion: Q0?\nAnswer:"


def test_mmlu_grades_the_letter_behind_answer(subjects, capsys):
    with mock_server(answer="I think.\nanswer: b") as mock:
        assert run(mock, "mmlu", "--data", subjects, "--num-questions", 3) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Total latency: \d+\.\d{3} s", out[0])
    assert out[1:3] == ["Score: 0.333", "Invalid: 0.000"]
    contents = {body["messages"][0]["content"] for body in mock.log}
    assert any(text.startswith("One, or two?\n\nA) p\nB) q\nC) r\nD) s\n\n") for text in contents)


def test_the_sample_of_mmlu_is_the_same_for_the_same_seed(subjects):
    assert mmlu(subjects, 2, 0) == mmlu(subjects, 2, 0)
    assert {q.answer for q in mmlu(subjects, 3, 0)} == {"B", "C", "D"}


def test_a_failed_request_is_invalid_and_ends_with_status_1(gsm8k, capsys):
    words = ["gsm8k", "--data", gsm8k, "--num-questions", 2, "--num-shots", 0, "--parallel", 1]
    with mock_server(answer="1018", fail={1}) as mock:
        assert run(mock, *words) == 1
    shown = capsys.readouterr()
    assert "Accuracy: 0.500\nInvalid: 0.500" in shown.out
    assert "1 of 2 requests failed; the first: status 429" in shown.err


def test_a_question_that_does_not_fit_is_wrong_and_no_failure(gsm8k, capsys):
    words = ["gsm8k", "--data", gsm8k, "--num-questions", 2, "--num-shots", 0, "--parallel", 1]
    with mock_server(answer="1018", too_long={1}) as mock:
        assert run(mock, *words) == 0
    shown = capsys.readouterr()
    assert "Accuracy: 0.500\nInvalid: 0.500" in shown.out
    assert "1 of 2 questions are too long for the server: wrong" in shown.err


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234", "1234"), ("5 or 6.", "6"), ("007", "7"), ("none", None), ("3.50", "50")],
)
def test_the_last_run_of_digits_is_the_answer(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [("Answer: C", "C"), ("answer :d or Answer: A", "D"), ("Answer: E", None), ("C", None)],
)
def test_the_letter_behind_the_first_answer_counts(text, letter):
    assert answer_letter(text) == letter


def test_the_data_may_be_named_by_the_environment(gsm8k, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_DATA", str(gsm8k))
    with mock_server(answer="4") as mock:
        assert run(mock, "gsm8k", "--num-questions", 1, "--num-shots", 1) == 0
    assert "Accuracy" in capsys.readouterr().out
    monkeypatch.delenv("UNMASK_DATA")
    assert main(["bench", "gsm8k"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_bad_data_is_named(gsm8k, tmp_path, capsys):
    def refused(*words) -> str:
        assert main(["bench", *map(str, words), "--base-url", "http://127.0.0.1:9"]) == 2
        return capsys.readouterr().err

    assert "has 4 questions" in refused("gsm8k", "--data", gsm8k, "--num-questions", 5)
    assert "cannot be read" in refused("gsm8k", "--data", tmp_path / "none")
    assert "no MMLU test files" in refused("mmlu", "--data", gsm8k)
    assert "at least 1" in refused("mmlu", "--data", gsm8k, "--num-questions", 0)
    (tmp_path / "a.csv").write_text("just,two\n")
    assert "a.csv, line 1" in refused("mmlu", "--data", tmp_path)
