"""What a result says of its origin, its reproduction, and citations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

import unmask
from unmask import caches, decoders
from unmask.cli.main import main
from unmask.docgen.citations import PAPERS, sources_of
from unmask.evals.results import Results
from unmask.evals.run import evaluate
from unmask.evals.settings import EvalSettings
from unmask.models import BUNDLED
from unmask.models.digests import checkpoint_digests, file_digest

ROOT = Path(__file__).parents[1]
FAST = {"decoder": "threshold", "knobs": {"block_length": 16}, "gen_length": 16}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run on rows of one's own, judged by a file of one's own."""
    folder = tmp_path_factory.mktemp("ran")
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(2)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text("def score(answer, row):\n    return True\n")
    llm = unmask.LLM("demo", dtype="float32", device="cpu")
    own = {"task": str(folder / "mine.jsonl"), "metric": f"python:{folder / 'judge.py'}"}
    evaluate(EvalSettings.from_dict({**own, **FAST, "output": str(folder / "run")}), llm=llm)
    return folder


def test_results_name_the_digests_of_everything_that_took_part(ran):
    results = Results.read(ran / "run")
    demo = BUNDLED["demo"]
    weights = hashlib.sha256((demo / "model.safetensors").read_bytes()).hexdigest()
    line = f"model.safetensors {weights}\n"
    checkpoint = results.resolved["checkpoint"]
    assert checkpoint["weights"] == hashlib.sha256(line.encode()).hexdigest()
    assert checkpoint["revision"] is None
    assert checkpoint["tokenizer"]
    assert checkpoint["config"]
    assert results.resolved["files"] == {
        str(ran / name): hashlib.sha256((ran / name).read_bytes()).hexdigest()
        for name in ("mine.jsonl", "judge.py")
    }
    assert results.resolved["method"]["threshold"] == 0.9, "knobs in force, defaults too"
    assert results.machine["versions"]["torch"] == results.machine["torch"]


def test_a_file_of_the_hubs_cache_is_known_by_its_name(tmp_path):
    commit = "a" * 40
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / commit
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    name = hashlib.sha256(b"other").hexdigest()
    (blobs / name).write_bytes(b"content that is not read")
    (snapshot / "model.safetensors").symlink_to(blobs / name)
    (snapshot / "config.json").write_text("{}")
    assert file_digest(snapshot / "model.safetensors") == name
    assert file_digest(snapshot / "config.json") == hashlib.sha256(b"{}").hexdigest()
    found = checkpoint_digests(snapshot)
    assert (found["revision"], found["tokenizer"]) == (commit, None)
    (snapshot / "config.json").write_text("{ }")
    assert checkpoint_digests(snapshot)["config"] != found["config"]


def test_a_run_is_reproduced_from_its_results(ran, capsys):
    path = ran / "run" / "results.json"
    assert main(["eval", "--reproduce", str(path)]) == 0
    err = capsys.readouterr().err
    assert "reproduced: 2 documents, the same answers and scores" in err
    first, again = Results.read(ran / "run"), Results.read(ran / "run-again")
    assert again.metrics["num_forwards"] == first.metrics["num_forwards"]
    alone = ran / "alone.json"
    alone.write_bytes(path.read_bytes())
    assert main(["eval", "--reproduce", str(alone), "-o", str(ran / "third")]) == 0
    assert "the same scores (the answers are not beside the file)" in capsys.readouterr().err


def test_an_answer_that_differs_is_named_and_the_status_is_1(ran, tmp_path, capsys):
    for name in ("results.json", "samples.jsonl"):
        (tmp_path / name).write_bytes((ran / "run" / name).read_bytes())
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    record["text"] += " changed"
    (tmp_path / "samples.jsonl").write_text("\n".join([lines[0], json.dumps(record)]) + "\n")
    again = tmp_path / "again"
    assert main(["eval", "--reproduce", str(tmp_path / "results.json"), "-o", str(again)]) == 1
    err = capsys.readouterr().err
    assert f"differs: 1 documents (the first: {record['doc']})" in err
    assert "reproduced" not in err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("resolved", "checkpoint", "weights"), "the model's weights of"),
        (("resolved", "documents"), "the documents of"),
    ],
)
def test_other_files_are_refused(ran, tmp_path, capsys, place, message):
    record = json.loads((ran / "run/results.json").read_text())
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = "f" * 32
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert main(["eval", "--reproduce", str(tmp_path / "results.json")]) == 2
    assert message in capsys.readouterr().err


def test_leave_to_run_programs_is_not_taken_from_a_file(ran, tmp_path):
    from unmask.evals.reproduce import settings_again

    record = json.loads((ran / "run/results.json").read_text())
    record["settings"]["confirm_run_unsafe_code"] = True
    (tmp_path / "results.json").write_text(json.dumps(record))
    before = Results.read(tmp_path / "results.json")
    assert not settings_again(tmp_path / "results.json", before, {}).confirm_run_unsafe_code


def test_settings_of_another_run_are_refused(ran, capsys):
    path = str(ran / "run")
    for words, message in (
        (["--seed", "3"], "seed=3 would make another run of it"),
        (["--decoder", "klass"], "would make another run of it"),
        (["-o", path], "is the run itself"),
        (["-m"], "--reproduce takes no -m"),
    ):
        assert main(["eval", "--reproduce", path, *words]) == 2
        assert message in capsys.readouterr().err


def test_every_paper_that_a_method_names_can_be_cited():
    plugins = [decoders.decoder_class(name) for name in decoders.names()]
    plugins += [type(caches.make_cache(name)) for name in caches.names()]
    numbers = {number for plugin in plugins for number in sources_of(plugin)}
    assert numbers <= set(PAPERS)
    assert set(PAPERS) <= numbers, "no paper without a method"


def test_cite_prints_bibtex(capsys, tmp_path):
    assert main(["cite", "--decoder", "klass", "--cache", "dual"]) == 0
    out = capsys.readouterr().out
    assert f"version       = {{{unmask.__version__}}}" in out
    assert "eprint        = {2511.05664}" in out
    assert "KLASS: KL-Guided Fast Inference" in out
    assert "eprint        = {2505.22618}" in out
    assert out.count("\n}\n") == 3
    assert main(["cite", "--decoder", "klas"]) == 2
    assert "did you mean 'klass'" in capsys.readouterr().err


def test_the_citation_file_is_of_this_version():
    if not (ROOT / "CITATION.cff").exists():
        pytest.skip("the source distribution has no citation file")
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert content["version"] == unmask.__version__
    assert (content["cff-version"], content["type"]) == ("1.2.0", "software")
