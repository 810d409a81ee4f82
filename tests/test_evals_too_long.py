"""Documents that the model's context does not hold: misses, counted and shown, not the end of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import unmask
from unmask.errors import ConfigError, LengthError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from unmask.cli.evaluate import show
from unmask.evals.lm import UnmaskLM
from unmask.evals.results import Results, markdown
from unmask.evals.run import evaluate
from unmask.evals.run_folder import read_all
from unmask.evals.settings import EvalSettings
from unmask.evals.tasks.judges import mmlu

LONG = "word " * 3000


@pytest.fixture(scope="module")
def llm() -> unmask.LLM:
    return unmask.LLM("demo", device="cpu")


def gsm8k(folder: Path, *questions: str) -> str:
    (folder / "gsm8k").mkdir(parents=True)
    rows = [json.dumps({"question": each, "answer": "#### 12"}) for each in questions]
    for split in ("train", "test"):
        (folder / "gsm8k" / f"{split}.jsonl").write_text("\n".join(rows))
    return str(folder)


def run(llm: unmask.LLM, folder: Path, **settings: Any) -> Results:
    values = {"gen_length": 8, "decoder": "threshold", "output": str(folder / "out"), **settings}
    return evaluate(EvalSettings.from_dict(values), llm=llm)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_long_document_is_one_miss_and_the_others_are_answered(
    llm: unmask.LLM, tmp_path: Path, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gsm8k(tmp_path, "1+1?", LONG, "Anna has 7 eggs. How many?")
    settings = {"task": "gsm8k", "num_fewshot": 0, "batch_size": batch_size, "trace": True}
    results = run(llm, tmp_path, data=data, **settings)
    m = results.metrics
    assert (m["num_docs"], m["num_too_long"], m["num_answers"]) == (3, 1, 2)
    assert results.right[1] == 0
    answers = {item.answer.doc: item.answer for item in read_all(tmp_path / "out").values()}
    assert answers[1].is_too_long
    assert (answers[1].text, answers[1].num_forwards) == ("", 0)
    assert m["num_forwards"] == answers[0].num_forwards + answers[2].num_forwards
    assert "3 documents (1 too long for the context: wrong)" in markdown(results)
    from rich.console import Console

    show([results], ["out"], Console(highlight=False, width=200))
    assert "too long" in capsys.readouterr().out
    assert run(llm, tmp_path, data=data, **settings).metrics["num_too_long"] == 1, "resumed"


def test_an_evaluation_that_nothing_fits_is_an_error(llm: unmask.LLM, tmp_path: Path) -> None:
    data = gsm8k(tmp_path, LONG, LONG + "x")
    with pytest.raises(LengthError, match="document 0: .* nor does any other of 2 document"):
        run(llm, tmp_path, task="gsm8k", data=data, num_fewshot=0)


@pytest.mark.parametrize("task", ["mmlu", "mmlu_generative"])
def test_a_long_question_with_choices_is_a_miss_not_the_first_choice(
    llm: unmask.LLM, tmp_path: Path, task: str
) -> None:
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    rows = f"{LONG},p,q,r,s,A\nWhat?,p,q,r,s,B\n"
    (tmp_path / "mmlu" / "test" / "law_test.csv").write_text(rows)
    own = {} if task == "mmlu_generative" else {"gen_length": None}
    results = run(llm, tmp_path, task=task, data=str(tmp_path), num_fewshot=0, mc_num=1, **own)
    assert (results.metrics["num_docs"], results.metrics["num_too_long"]) == (2, 1)
    assert results.right[0] == 0, "A would be right by chance"
    assert results.metrics["num_answers"] == (4 if task == "mmlu" else 1)


def test_our_judge_of_choices_needs_all_likelihoods() -> None:
    none, some = (-math.inf, False), (-2.0, False)
    assert mmlu({"answer": 0}, [none] * 4) == {"acc": 0.0}
    assert mmlu({"answer": 1}, [none, some, (-3.0, False), some]) == {"acc": 0.0}
    assert mmlu({"answer": 1}, [(-3.0, False), some, some, (-9.0, True)]) == {"acc": 1.0}
    assert mmlu({"answer": 2}, [(-3.0, False), some, some, (-9.0, True)]) == {"acc": 0.0}


def ask(kind: str, *arguments: Any, doc: int = 0) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", doc, 1))


def test_lm_eval_gets_an_empty_text_or_no_likelihood_and_a_warning(
    llm: unmask.LLM, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EvalSettings.from_dict({"task": "word_problem", "gen_length": 8, "mc_num": 1})
    model = UnmaskLM.of(llm, settings)
    giant = LONG * 20
    texts = [
        ask("generate_until", t, {"until": []}, doc=i) for i, t in enumerate(["Hi", LONG, giant])
    ]
    first, *others = model.generate_until(texts)
    assert first
    assert others == ["", ""]
    pairs = [ask("loglikelihood", t, " yes", doc=i) for i, t in enumerate([LONG, "Hi"])]
    (long, fits) = model.loglikelihood(pairs)
    assert long == (-math.inf, False)
    assert math.isfinite(fits[0])
    notes = [record.getMessage() for record in caplog.records]
    assert notes[0].startswith("2 of 3 documents did not fit the model's context")
    assert notes[1].startswith("1 of 2 documents did not fit")


def test_repeats_of_a_request_are_different_samples(llm: unmask.LLM) -> None:
    values = {"task": "word_problem", "gen_length": 8, "seed": 5, "knobs": {"temperature": 3.0}}
    model = UnmaskLM.of(llm, EvalSettings.from_dict(values))
    texts = model.generate_until([ask("generate_until", "Hi", {"until": []})] * 3)
    outputs = llm.generate("Hi", n=3, raw=True, gen_length=8, seed=5, temperature=3.0)
    assert texts == [output.text for output in outputs]
    assert len(set(texts)) == 3


def test_more_examples_than_there_are_are_refused(llm: unmask.LLM, tmp_path: Path) -> None:
    data = gsm8k(tmp_path, "1+1?", "2+2?")
    with pytest.raises(ConfigError, match="num_fewshot=3: task=gsm8k has 2 examples"):
        run(llm, tmp_path, task="gsm8k", data=data, num_fewshot=3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "was not written by unmask eval"),
        ('{"format": "unmask-eval"}', "format_version=None"),
        ('{"format": "unmask-eval", "format_version": 1}', "is incomplete"),
        ('{"format": "unmask-eval", "format_version": 1, "docs": 3}', "is incomplete"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_results_that_are_damaged_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        Results.read(tmp_path)
