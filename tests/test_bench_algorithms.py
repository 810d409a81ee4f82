"""`unmask bench algorithms`: the page's tables are those of the clients, run against each server."""

from __future__ import annotations

import contextlib
import json

import pytest
from mock_server import mock_server

from unmask.cli import bench_algorithms
from unmask.cli.main import main
from unmask.errors import RemoteError

SMALL = ["--num-questions", "4", "--num-shots", "1", "--max-new-tokens", "8", "--num-prompts", "2"]
LOAD = ["--random-input-len", "8", "--random-output-len", "32"]


@pytest.fixture
def servers(monkeypatch):
    """The servers' commands, each answered by a mock whose every answer is a letter and a number."""
    commands = []

    @contextlib.contextmanager
    def serving(words, timeout_s):
        commands.append(words)
        with mock_server(answer="Answer: B, that is 4") as mock:
            yield mock.url

    monkeypatch.setattr(bench_algorithms, "serving", serving)
    monkeypatch.setattr(bench_algorithms, "likelihood_of", lambda options, folder: "LIKELIHOOD\n")
    monkeypatch.delenv("UNMASK_DATA", raising=False)
    return commands


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    rows = [{"question": f"Q{n}?", "answer": f"#### {n}"} for n in (4, 4, 5, 6, 7)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text(text)
    (tmp_path / "data" / "mmlu" / "test").mkdir(parents=True)
    lines = "question,choice0,choice1,choice2,choice3,answer\n"
    lines += "".join(f"Q{n}?,p,q,r,s,{n}\n" for n in range(4))
    (tmp_path / "data" / "mmlu" / "test" / "a_test.csv").write_text(lines)
    return tmp_path / "data"


def test_the_page_has_every_table_of_every_algorithm(servers, data, tmp_path):
    page = tmp_path / "page.md"
    config = tmp_path / "cad.yaml"
    config.write_text("tau_base: 0.9\n")
    words = ["LowConfidence", "CadLLM", "--config", f"CadLLM={config}", "--data", str(data)]
    assert main(["bench", "algorithms", *words, *SMALL, *LOAD, "-o", str(page)]) == 0
    text = page.read_text()
    assert [command[5] for command in servers] == ["LowConfidence", "CadLLM"]
    assert str(config) in servers[1]
    assert "--dllm-algorithm-config" not in servers[0]
    baseline, cadllm = text.split("## Baseline\n")[1].split("## Baseline + CadLLM\n")
    for part in (baseline, cadllm):
        assert part.count("Accuracy: 0.500") == 2  # GSM8K with and without shots
        assert part.count("Accuracy: ") == 4
        assert part.count("Score: 0.250") == 1
        assert part.count("Serving Benchmark Result") == 1
        assert "Successful requests:                     2" in part
    assert "| GSM8K, no shots: Accuracy | 0.500 ± 0.250 | 0.500 ± 0.250 |" in text
    assert "| MMLU, by chat: Score | 0.250 ± 0.217 | 0.250 ± 0.217 |" in text
    assert "| Online benchmark: Successful requests | 2 | 2 |" in text
    assert "chance is 0.250" in text
    assert f"--config CadLLM={config}" in text
    assert "torch" in text.split("## Side by side")[0]
    assert text.endswith("LIKELIHOOD\n")


def test_without_data_the_bundled_problems_and_the_load_remain(servers, capsys):
    assert main(["bench", "algorithms", "CadLLM", *SMALL, *LOAD]) == 0
    text = capsys.readouterr().out
    assert "GSM8K, no shots" not in text
    assert "MMLU, by chat" not in text
    assert text.count("| Bundled word problems, 1 shots: Accuracy |") == 1
    assert text.count("\nBundled word problems, 1 shots:\n") == 1
    assert "LIKELIHOOD" not in text
    assert "Serving Benchmark Result" in text


@pytest.mark.slow
def test_the_likelihood_is_measured_once_by_an_evaluation(data, tmp_path):
    options = bench_algorithms.AlgorithmOptions(data=data, num_questions=4)
    text = bench_algorithms.likelihood_of(options, tmp_path)
    assert text.startswith("\n## MMLU, by likelihood\n")
    assert text.endswith(" the first 4 questions, no shots.\n")
    options = bench_algorithms.AlgorithmOptions(data=tmp_path / "nowhere", num_questions=4)
    assert "no result: " in bench_algorithms.likelihood_of(options, tmp_path)


def test_two_are_the_default(servers, capsys):
    assert main(["bench", "algorithms", *SMALL, *LOAD]) == 0
    assert "| | LowConfidence | CadLLM |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["LowConfidense"], "did you mean 'LowConfidence'"),
        (["CadLLM", "CadLLM"], "listed twice"),
        (["CadLLM", "--config", "Other=x.yaml"], "ALGORITHM=FILE"),
        (["CadLLM", "--config", "CadLLM"], "ALGORITHM=FILE"),
        (["CadLLM", "--config", "CadLLM=/nowhere"], "no such file"),
        (["CadLLM", "--num-questions", "0"], "--num-questions 0"),
        (["CadLLM", "--output", "/nowhere/at/all/page.md"], "page"),
    ],
)
def test_a_mistake_is_found_before_a_server_is_started(servers, words, said, capsys):
    assert main(["bench", "algorithms", *words]) == 2
    assert said in capsys.readouterr().err
    assert servers == []


def test_a_server_that_does_not_start_is_an_error_with_its_reason():
    words = bench_algorithms.command_of("CadLLM", "/nowhere/at/all", None)
    with (
        pytest.raises(RemoteError, match=r"does not start: (.|\n)*unknown model '/nowhere/at/all'"),
        bench_algorithms.serving(words, 300),
    ):
        pass


def test_a_server_that_takes_too_long_is_ended():
    words = bench_algorithms.command_of("CadLLM", "demo", None)
    with (
        pytest.raises(RemoteError, match="not ready within 0.01 s"),
        bench_algorithms.serving(words, 0.01),
    ):
        pass
