"""Background frequencies: the file, counting, the model's own, and `unmask frequencies`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import FAMILIES, KNOWN, MASK, VOCAB, StubTokenizer, tiny_llm

from unmask import ConfigError, PromptError
from unmask.cli.frequencies import pieces
from unmask.cli.main import main
from unmask.engine.token_frequencies import count, estimate
from unmask.engine.tokenizer import load_tokenizer
from unmask.models import BUNDLED, read_spec
from unmask.models.transformer import Transformer
from unmask.sampling.token_frequencies import counts_of, load_background, save_background


def written(folder: Path, content: Any) -> Path:
    path = folder / "frequencies.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# the file


def test_seen_tokens_have_their_share_and_unseen_ones_that_of_one_token(tmp_path: Path) -> None:
    counts = {"3": 6, "0": 3, "7": 0}
    found = load_background(written(tmp_path, {"num_token": 10, "p_baseline_dict": counts}), 8)
    assert found.dtype == np.float64
    assert found.tolist() == [0.3, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.1]


def test_frequencies_are_read_only_and_read_once(tmp_path: Path) -> None:
    path = written(tmp_path, {"num_token": 2, "p_baseline_dict": {"1": 2}})
    found = load_background(path, 4)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    assert load_background(str(path), 4) is found
    assert len(load_background(path, 5)) == 5


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, {"num_token": 4, "p_baseline_dict": {"1": 2}})
    assert load_background(path, 4)[1] == 0.5
    stat = path.stat()
    written(tmp_path, {"num_token": 4, "p_baseline_dict": {"1": 3}})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_background(path, 4)[1] == 0.75


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    save_background(path, {9: 1, 2: 3})
    save_background(path, {9: 1, 2: 7})
    assert json.loads(path.read_text()) == {"num_token": 8, "p_baseline_dict": {"2": 7, "9": 1}}
    assert load_background(path, 10)[[2, 9, 0]].tolist() == [7 / 8, 1 / 8, 1 / 8]
    assert [file.name for file in tmp_path.iterdir()] == ["counts.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([1], "has a list, not token counts; it must be"),
        ({"model": {}, "version": 1}, r"has keys \['model', 'version'\], not token counts"),
        ({"num_token": 1}, "not token counts"),
        ({"num_token": 0, "p_baseline_dict": {}}, "num_token=0 must be a whole number above 0"),
        ({"num_token": -5, "p_baseline_dict": {}}, "num_token=-5 must"),
        ({"num_token": 1.5, "p_baseline_dict": {}}, r"num_token=1\.5 must"),
        ({"num_token": True, "p_baseline_dict": {}}, "num_token=True must"),
        ({"num_token": 1, "p_baseline_dict": [1]}, "p_baseline_dict must be an object"),
        ({"num_token": 1, "p_baseline_dict": {"8": 1}}, r"token id 8 is outside .* 0\.\.7"),
        ({"num_token": 1, "p_baseline_dict": {"9" * 5000: 1}}, "is not a token id"),
        ({"num_token": 1, "p_baseline_dict": {"-1": 1}}, "'-1' is not a token id"),
        ({"num_token": 1, "p_baseline_dict": {"the": 1}}, "'the' is not a token id"),
        ({"num_token": 1, "p_baseline_dict": {"03": 1}}, "'03' is not a token id"),
        ({"num_token": 9, "p_baseline_dict": {"3": -1}}, "token id 3 has count -1"),
        ({"num_token": 9, "p_baseline_dict": {"3": "x"}}, "token id 3 has count 'x'"),
        ({"num_token": 9, "p_baseline_dict": {"3": 10}}, r"numbers from 0 to num_token \(9\)"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_background(written(tmp_path, content), 8)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file.*`unmask frequencies` writes one"):
        load_background(tmp_path / "none.json", 8)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_background(tmp_path, 8)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_background(tmp_path / "binary", 8)


def test_counts_that_are_none_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokens were counted"):
        save_background(tmp_path / "a", {})
    with pytest.raises(ConfigError, match="token id 3 with count -1"):
        save_background(tmp_path / "a", {3: -1, 4: 5})
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        save_background(tmp_path / "none" / "a", {3: 1})
    assert not list(tmp_path.iterdir())


# counting and asking the model


def test_tokens_are_counted_over_all_texts() -> None:
    assert count(StubTokenizer(), iter(["5 3 5", "", "3 40 5"])) == {3: 2, 5: 3, 40: 1}
    assert list(count(StubTokenizer(), ["9 1"])) == [1, 9]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(PromptError, match="half a character"):
        count(StubTokenizer(), ["\ud800"])


class WithBegin(StubTokenizer):
    bos_token_id = 57


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_s_own_is_the_mean_over_empty_canvases(
    family: str, begin: bool, block_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny_llm(family, block_size=block_size)
    llm.tokenizer = WithBegin() if begin else StubTokenizer()
    monkeypatch.setattr("unmask.engine.token_frequencies.MAX_POSITIONS", 30)
    monkeypatch.setattr("unmask.engine.token_frequencies.HEAD_CHUNK", 3 * VOCAB)
    found = estimate(llm.model, llm.tokenizer, num_canvases=9, length=12, seed=4)

    generator = torch.Generator().manual_seed(4)
    rows = []
    for length in torch.randint(6, 13, (9,), generator=generator).tolist():
        front = [57] if begin else []
        with torch.inference_mode():
            logits = llm.model(torch.tensor([front + [MASK] * length]))[0]
        if llm.spec.shift_logits:
            logits = torch.cat((logits[:1], logits[:-1]))
        rows.append(logits[len(front) :].double().softmax(-1))
    expected = torch.cat(rows).mean(0).numpy()
    np.testing.assert_allclose(found, np.maximum(expected, 1e-9), rtol=1e-4, atol=1e-9)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_no_token_is_impossible_to_the_model() -> None:
    llm = tiny_llm(sure=60)
    found = estimate(llm.model, llm.tokenizer, num_canvases=3, length=5)
    assert found.min() == 1e-9
    assert found.shape == (VOCAB,)
    assert found.dtype == np.float64


def test_an_estimate_repeats_itself_and_survives_the_file(tmp_path: Path) -> None:
    llm = tiny_llm()
    found = estimate(llm.model, llm.tokenizer, seed=1)
    assert (estimate(llm.model, llm.tokenizer, seed=1) == found).all()
    assert not (estimate(llm.model, llm.tokenizer, num_canvases=1, seed=2) == found).all()
    save_background(tmp_path / "own.json", counts_of(found))
    loaded = load_background(tmp_path / "own.json", VOCAB)
    np.testing.assert_allclose(loaded, found, rtol=1e-3, atol=1e-9)


def test_a_canvas_longer_than_the_context_is_refused() -> None:
    llm = tiny_llm()
    llm.tokenizer = WithBegin()
    with pytest.raises(ConfigError, match="length=128 does not fit .* of 128; use 127 or less"):
        estimate(llm.model, llm.tokenizer, length=128)
    with pytest.raises(ConfigError, match="num_canvases=0 must be at least 1"):
        estimate(llm.model, llm.tokenizer, num_canvases=0)
    assert KNOWN < VOCAB == len(estimate(llm.model, llm.tokenizer, num_canvases=1, length=127))


# the command line


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*words: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main(["frequencies", *map(str, words)])
        return Result(status, *capsys.readouterr())

    return run


TEXT = "Tom has 3 boxes.\n\n\nEach box holds 12 pens.\r\n"


def counted(text: str) -> dict[str, int]:
    tokenizer = load_tokenizer(BUNDLED["demo"])
    return {str(id_): number for id_, number in count(tokenizer, [text]).items()}


def test_files_and_standard_input_are_counted_by_the_tokenizer(cli: Cli, tmp_path: Path) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out.json"
    source.write_bytes(TEXT.encode())
    status, printed, err = cli(source, "--out", out)
    expected = counted(TEXT)
    assert (status, printed) == (0, "")
    assert json.loads(out.read_text()) == {
        "num_token": sum(expected.values()),
        "p_baseline_dict": expected,
    }
    (line,) = err.splitlines()
    assert line.startswith(f"{out}: {sum(expected.values())} tokens, {len(expected)} of ")

    assert cli("--out", tmp_path / "piped.json", stdin=b"3 boxes").status == 0
    assert json.loads((tmp_path / "piped.json").read_text())["p_baseline_dict"] == counted(
        "3 boxes"
    )
    vocab_size = read_spec(BUNDLED["demo"]).vocab_size
    assert len(load_background(out, vocab_size)) == vocab_size


def test_json_lines_are_read_by_field(cli: Cli, tmp_path: Path) -> None:
    lines = [{"text": "3 boxes", "answer": "12 pens"}, {"text": "Tom", "answer": "Tom"}]
    content = "\n\n".join(map(json.dumps, lines)) + "\n"
    for name, words in {"a.jsonl": [], "a.data": ["--field", "answer"]}.items():
        (tmp_path / name).write_text(content)
        assert cli(tmp_path / name, "--out", tmp_path / f"{name}.out", *words).status == 0
    expected = {"a.jsonl": ["3 boxes", "Tom"], "a.data": ["12 pens", "Tom"]}
    for name, texts in expected.items():
        total = sum(sum(counted(text).values()) for text in texts)
        assert json.loads((tmp_path / f"{name}.out").read_text())["num_token"] == total
    piped = cli("-", "--field", "answer", "--out", tmp_path / "p", stdin=content.encode())
    assert piped.status == 0
    assert (tmp_path / "p").read_bytes() == (tmp_path / "a.data.out").read_bytes()


def test_long_texts_are_cut_between_lines_but_not_in_empty_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unmask.cli.frequencies.MIN_PIECE", 4)
    lines = ["abc\n", "de\n", "\n", "\n", "fghij\n", "k"]
    assert list(pieces(lines)) == ["abc\n", "de\n\n\n", "fghij\n", "k"]
    assert list(pieces([])) == []


def test_the_model_is_asked_on_request(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[np.ndarray] = []

    def short(model: Transformer, tokenizer: Any, seed: int) -> np.ndarray:
        assert seed == 3
        found.append(estimate(model, tokenizer, num_canvases=2, length=6, seed=seed))
        return found[0]

    monkeypatch.setattr("unmask.engine.token_frequencies.estimate", short)
    out = tmp_path / "own.json"
    status, printed, err = cli("--estimate", "--out", out, "--seed", "3")
    assert (status, printed, len(err.splitlines())) == (0, "", 1)
    own = load_background(out, len(found[0]))
    np.testing.assert_allclose(own, found[0], rtol=1e-3, atol=2e-9)


def test_an_existing_file_is_overwritten_only_by_force(cli: Cli, tmp_path: Path) -> None:
    out = written(tmp_path, "precious")
    status, _, err = cli("--out", out, stdin=b"3 boxes")
    assert status == 2
    assert "it exists; use --force to overwrite it" in err
    assert out.read_text() == "precious"
    assert cli("--out", out, "--force", stdin=b"3 boxes").status == 0
    assert "num_token" in out.read_text()


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        ([], b"x", "name one with --out OUT.json"),
        (["--out", "{}/no/a.json"], b"x", "there is no folder"),
        (["--out", "{}"], b"x", "it is a folder"),
        (["--out", "{}/o", "{}/none.txt"], b"", "none.txt' cannot be read: No such file"),
        (["--out", "{}/o", "{}/a.txt", "{}/a.txt"], b"", "is listed twice"),
        (["--out", "{}/o"], b"", "the texts are empty"),
        (["--out", "{}/o"], b"\xff", "standard input is not UTF-8 text"),
        (["--out", "{}/o", "--field", "t"], b"{", "standard input, line 1 is not JSON"),
        (["--out", "{}/o", "--field", "t"], b'{"a": 1}', "has no field 't' but fields 'a'"),
        (["--out", "{}/o", "--field", "t"], b"3", "has no field 't' but no object"),
        (["--out", "{}/o", "--field", "t"], b'{"t": 1}', "field 't' holds a int, not text"),
        (["--out", "{}/o", "--field", "t"], b'{"t": "\\ud800"}', "half a character"),
        (["--out", "{}/o", "--seed", "1"], b"x", "--seed 1 has no effect without --estimate"),
        (["--out", "{}/o", "--device", "cpu"], b"x", "--device cpu has no effect"),
        (["--out", "{}/o", "--model", "dmeo"], b"x", "unknown model 'dmeo'"),
        (["--out", "{}/o", "--estimate", "{}/a.txt"], b"", "--estimate reads no text"),
        (["--out", "{}/o", "--estimate", "--field", "t"], b"", "--field t has no effect"),
        (["--out", "{}/o", "--estimate", "--seed", "x"], b"", "--seed x must be a whole number"),
        (["--out", "{}/o", "--estimate", "--dtype", "int3"], b"", "unknown dtype 'int3'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    cli: Cli, tmp_path: Path, words: list[str], stdin: bytes, message: str
) -> None:
    (tmp_path / "a.txt").write_text("3 boxes")
    status, printed, err = cli(*(word.format(tmp_path) for word in words), stdin=stdin)
    assert (status, printed) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("unmask: error: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_reading_a_background_and_the_help_page_import_no_torch() -> None:
    code = (
        "import sys, unmask.sampling.token_frequencies\n"
        "from unmask.cli.main import main\n"
        "status = main(['frequencies', '--help'])\n"
        "sys.exit(status or 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--estimate" in done.stdout
