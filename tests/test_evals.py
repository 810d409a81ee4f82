"""Runs of `evaluate` on the bundled model: what they store, how they go on, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unmask
from unmask.errors import ConfigError, PromptError
from unmask.evals import run as run_module
from unmask.evals.catalog import CATALOG
from unmask.evals.generation import AnswerTimer, Question, decode_all
from unmask.evals.results import Results
from unmask.evals.run import evaluate
from unmask.evals.run_folder import RunFolderWarning, begin_run, read_all
from unmask.evals.settings import EvalSettings
from unmask.evals.traces import replay
from unmask.method import MethodSpec, Source

DATA = Path(__file__).parent / "fixtures" / "evals"
FAST = {"decoder": "threshold", "knobs": {"block_length": 32}, "limit": 3}


@pytest.fixture(scope="module")
def llm() -> unmask.LLM:
    return unmask.LLM("demo", dtype="float32", device="cpu")


def run(llm: unmask.LLM, folder: Path, **settings: Any) -> Results:
    return evaluate(
        EvalSettings.from_dict({"task": "word_problem", "output": str(folder), **FAST, **settings}),
        llm=llm,
    )


def texts(folder: Path) -> dict[int, str]:
    return {item.answer.doc: item.answer.text for item in read_all(folder).values()}


@pytest.fixture(scope="module")
def whole(llm: unmask.LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five documents, one at a time, without a cache."""
    folder = tmp_path_factory.mktemp("runs") / "whole run"
    run(llm, folder, limit=5)
    return folder


def test_a_run_is_what_generate_and_check_say(llm: unmask.LLM, whole: Path) -> None:
    from unmask.demo.tasks import check, held_out_set

    examples = held_out_set("word_problem", 500)[:5]
    outs = llm.generate(
        [example.prompt for example in examples], "threshold", gen_length=64, block_length=32
    )
    results = Results.read(whole)
    assert texts(whole) == {i: out.text for i, out in enumerate(outs)}
    assert results.right == tuple(
        float(check(e, o.text)) for e, o in zip(examples, outs, strict=True)
    )
    m = results.metrics
    assert m["num_forwards"] == sum(out.num_forwards for out in outs)
    assert m["response_tokens"] == sum(len(out.token_ids) for out in outs)
    assert m["num_queries"] == sum(out.num_queries for out in outs)
    assert m["tokens_per_forward"] == m["response_tokens"] / m["num_forwards"]
    assert 0 < m["decode_s"] <= m["wall_s"]
    assert m["latency_p50_s"] <= m["latency_p95_s"] <= m["decode_s"]
    assert {path.name for path in whole.iterdir()} == {
        ".lock",
        "config.yaml",
        "results.json",
        "results.md",
        "samples.jsonl",
        "scores.jsonl",
    }


def test_batches_and_an_exact_cache_change_no_answer(
    llm: unmask.LLM, whole: Path, tmp_path: Path
) -> None:
    results = run(llm, tmp_path, limit=5, batch_size=4)
    assert texts(tmp_path) == texts(whole)
    assert results.metrics["num_forwards"] == Results.read(whole).metrics["num_forwards"]
    assert "tok_s_d2cache" not in results.metrics


def test_a_batched_run_with_a_cache_equals_it_one_by_one(llm: unmask.LLM, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    run(llm, one, cache="dual")
    run(llm, many, cache="dual", batch_size=3)
    assert texts(one) == texts(many)


def test_a_part_by_offset_has_the_documents_of_the_whole(
    llm: unmask.LLM, whole: Path, tmp_path: Path
) -> None:
    results = run(llm, tmp_path, offset=3, limit=2)
    assert results.docs == (3, 4)
    assert texts(tmp_path) == {doc: text for doc, text in texts(whole).items() if doc >= 3}


def test_a_growing_run_asks_only_what_is_new(llm: unmask.LLM, tmp_path: Path) -> None:
    run(llm, tmp_path, limit=2)
    before = (tmp_path / "samples.jsonl").read_bytes()
    told: list[tuple[int, int]] = []
    settings = EvalSettings.from_dict({"task": "word_problem", "output": str(tmp_path), **FAST})
    results = evaluate(settings, lambda done, total: told.append((done, total)), llm)
    after = (tmp_path / "samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 3
    assert told == [(2, 3), (3, 3)]
    assert results.docs == (0, 1, 2)


def test_a_finished_run_asks_nothing_and_keeps_its_times(
    llm: unmask.LLM, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Results.read(whole)

    def refuse(llm: Any, questions: list[Any], *rest: Any) -> Any:
        assert not questions, "asked again"
        return iter(())

    monkeypatch.setattr(run_module, "decode_all", refuse)
    after = run(llm, whole, limit=5)
    for name in ("wall_s", "decode_s", "latency_mean_s", "tokens_per_second", "accuracy"):
        assert after.metrics[name] == before.metrics[name]


def test_a_half_written_line_is_answered_anew(llm: unmask.LLM, whole: Path, tmp_path: Path) -> None:
    run(llm, tmp_path)
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    run(llm, tmp_path)
    assert [json.loads(line)["doc"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert texts(tmp_path) == {doc: text for doc, text in texts(whole).items() if doc < 3}


def test_a_whole_line_without_its_end_counts_as_half_written(
    llm: unmask.LLM, tmp_path: Path
) -> None:
    run(llm, tmp_path, limit=1)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_all(tmp_path) == {}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(llm: unmask.LLM, tmp_path: Path) -> None:
    options = {
        "task": "word_problem",
        "output": str(tmp_path),
        "limit": 8,
        "knobs": {"block_length": 8},
    }
    code = (
        "import json, sys; from unmask.evals.run import evaluate; "
        "from unmask.evals.settings import EvalSettings; "
        "evaluate(EvalSettings.from_dict(json.loads(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(options)])
    path = tmp_path / "samples.jsonl"
    deadline = time.monotonic() + 600
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline, "no answers"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = path.read_bytes()
    kept = stored[: stored.rfind(b"\n") + 1]
    assert kept.count(b"\n") < 8, "it was too quick to be killed"
    results = evaluate(EvalSettings.from_dict(options), llm=llm)
    assert path.read_bytes().startswith(kept)
    assert sorted(json.loads(line)["doc"] for line in path.read_text().splitlines()) == [*range(8)]
    assert results.docs == tuple(range(8))
    assert results.resolved["num_sessions"] == 2


@pytest.mark.slow
def test_two_processes_find_what_one_finds(whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import json, sys\n"
        "from unmask.evals.run import evaluate\n"
        "from unmask.evals.settings import EvalSettings\n"
        "results = evaluate(EvalSettings.from_dict(json.loads(sys.argv[1])))\n"
        "assert len(results.docs) == 5\n"
    )
    folder = tmp_path / "two"
    options = {"task": "word_problem", "output": str(folder), **FAST, "limit": 5}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*launch, str(script), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = Results.read(whole), Results.read(folder)
    assert texts(folder) == texts(whole)
    assert (two.docs, two.right, two.scores) == (one.docs, one.right, one.scores)
    for name in ("num_forwards", "num_queries", "response_tokens", "committed_tokens"):
        assert two.metrics[name] == one.metrics[name]
    assert two.resolved["num_processes"] == 2
    assert (folder / "samples.1.jsonl").read_bytes().count(b"\n") == 2


def test_a_folder_of_another_run_is_refused_until_told_to_replace_it(
    llm: unmask.LLM, tmp_path: Path
) -> None:
    run(llm, tmp_path, limit=1)
    with pytest.raises(ConfigError, match="seed=0 .now 7.; give another output"):
        run(llm, tmp_path, limit=1, seed=7)
    assert run(llm, tmp_path, limit=1, seed=7, resume=False).settings["seed"] == 7


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    settings = EvalSettings(task="word_problem", output=str(tmp_path), limit=1)
    (tmp_path / "samples.jsonl").write_text("kept")
    replacing = dataclasses.replace(settings, resume=False)
    with begin_run(settings), pytest.raises(ConfigError, match="written by another evaluation"):
        begin_run(replacing)
    assert (tmp_path / "samples.jsonl").read_text() == "kept"
    begin_run(replacing).release()
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize("damage", ["", "task: [", "- 1", "\0", "task: word_pro"])
def test_a_damaged_config_does_not_orphan_a_run(tmp_path: Path, damage: str) -> None:
    settings = EvalSettings(task="word_problem", output=str(tmp_path), limit=1)
    begin_run(settings).release()
    whole = (tmp_path / "config.yaml").read_bytes()
    (tmp_path / "samples.jsonl").touch()
    (tmp_path / "config.yaml").write_text(damage)
    with pytest.warns(RunFolderWarning, match="written anew"):
        begin_run(settings).release()
    assert (tmp_path / "config.yaml").read_bytes() == whole


def test_a_hostile_config_is_refused_and_nothing_of_it_is_built(tmp_path: Path) -> None:
    settings = EvalSettings(task="word_problem", output=str(tmp_path), limit=1)
    (tmp_path / "samples.jsonl").touch()
    for text in ("!!python/object/apply:os.system ['touch pwned']", "a: &a [*a]", "[" * 300):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match="is not the settings of a run"):
            begin_run(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "gsm9k"}, "did you mean 'gsm8k'"),
        ({"task": "gsm8k"}, "needs data=FOLDER with gsm8k/train.jsonl"),
        ({"task": "gsm8k", "data": "/no/such/folder"}, "is not a folder"),
        ({"task": "word_problem", "data": "."}, "has no effect: task=word_problem is bundled"),
        ({"task": "word_problem", "num_fewshot": 3}, "num_fewshot=3 has no effect"),
        ({"task": "word_problem", "limit": 0}, "limit=0 must be at least 1"),
        (
            {"task": "word_problem", "batch_size": "four"},
            "batch_size='four' must be a whole number",
        ),
        ({"task": "word_problem", "output": " "}, "names no folder"),
        ({"task": "word_problem", "knobs": [1]}, "must map names to values"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EvalSettings.from_dict(settings)


def test_what_only_shows_in_the_run_is_refused_too(llm: unmask.LLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threshhold"):
        run(llm, tmp_path / "a", knobs={"threshhold": 0.9})
    with pytest.raises(PromptError, match="document 0: .*context"):
        run(llm, tmp_path / "b", gen_length=5000)
    with pytest.raises(ConfigError, match="offset=2 is past the end"):
        run(llm, tmp_path / "c", task="gsm8k", data=str(DATA), num_fewshot=0, offset=2)


@pytest.mark.parametrize("task", [task for task, entry in CATALOG.items() if entry.files])
def test_every_task_runs_from_local_files(llm: unmask.LLM, task: str, tmp_path: Path) -> None:
    entry = CATALOG[task]
    results = run(
        llm,
        tmp_path,
        task=task,
        data=str(DATA),
        limit=1,
        gen_length=None if entry.choices else 8,
        knobs={"block_length": 8},
        num_fewshot=1 if entry.num_fewshot else None,
        confirm_run_unsafe_code=entry.runs_code,
        mc_num=1,
    )
    assert results.docs == (0,)
    assert f"{entry.metric},{entry.filter}" in results.scores
    assert results.metrics["num_answers"] == (4 if entry.choices else 1)


@pytest.mark.parametrize(
    ("decoder", "knobs"),
    [
        ("vanilla", {"gen_length": 16}),
        ("wino", {"gen_length": 32, "block_length": 16}),
        ("daedal", {"initial_gen_length": 8, "max_gen_length": 64}),
        ("block_diffusion", {"gen_length": 32, "block_length": 8}),
        ("ar", {"gen_length": 8}),
    ],
)
def test_a_trace_gives_the_canvases_back(
    llm: unmask.LLM, decoder: str, knobs: dict[str, Any]
) -> None:
    question = Question(0, 0, "k", tuple(llm.prompt_ids("Tom has 3 pens.")), None)
    length = knobs.pop("gen_length", None)
    method = MethodSpec.parse(Source({"decoder": decoder, **knobs}))
    settings = EvalSettings(task="word_problem", method=method, gen_length=length, trace=True)
    asked = replace(question, gen_length=length)
    answer = next(iter(decode_all(llm, [asked], settings, AnswerTimer())))
    out = llm.generate("Tom has 3 pens.", decoder, gen_length=length, **knobs)[0]
    canvases = list(replay(json.loads(json.dumps(answer.trace)), llm.spec.mask_id))
    assert len(canvases) == answer.num_forwards + 1 == out.num_forwards + 1
    last = canvases[-1]
    decided = ~last.open
    ids = last.tokens[decided].tolist()
    assert ids == [t for t, there in zip(out.canvas_ids, decided, strict=False) if there]
    assert canvases[0].num_open > 0


def test_a_traced_run_says_when_answers_were_right(llm: unmask.LLM, tmp_path: Path) -> None:
    results = run(llm, tmp_path, limit=2, trace=True)
    assert len(results.early) == 21
    assert results.early[-1] == results.metrics["accuracy"]
    rows = json.loads((tmp_path / "confidence.json").read_text())
    assert len(rows[0]) == 64
    assert all(0 < cell <= 1 for cell in rows[0])
