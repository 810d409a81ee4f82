"""Rows of one's own data: forms, what is trained, what is cut or left out, and how it is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.cli.main import main
from unmask.data.records import DataRow, stream_rows
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import ConfigError
from unmask.models import BUNDLED, read_spec
from unmask.train.config import TrainConfig, compose, read_config_file, save_config
from unmask.train.prepare import prepare
from unmask.train.rows import RowEncoder

FAMILIES = Path("/work/shared/fixtures/families")
PAIR = {"prompt": "Hi", "response": "Yo"}


@pytest.fixture(scope="module")
def encoder():
    return RowEncoder(load_tokenizer(BUNDLED["demo"]), read_spec("demo"))


def row(values) -> DataRow:
    return DataRow(Path("rows.jsonl"), "line 3", values)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def spelled(encoder, example) -> str:
    """The tokens of an example, the trained ones in brackets."""
    words = [encoder.tokenizer.decode([id_]) for id_ in example.ids]
    return "".join(f"[{w}]" if t else w for w, t in zip(words, example.loss, strict=True))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "Tom has"}, "[<|startoftext|>][Tom][ has][<|endoftext|>]"),
        (PAIR, "<|startoftext|>Hi<|eot_id|>[Y][o][<|eot_id|>]"),
        ({"question": "q", "answer": "a"}, "<|startoftext|>q<|eot_id|>[a][<|eot_id|>]"),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            "<|startoftext|>a\n\nb<|eot_id|>[c][<|eot_id|>]",
        ),
        (
            {"instruction": "a", "input": "", "output": "c"},
            "<|startoftext|>a<|eot_id|>[c][<|eot_id|>]",
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                    {"role": "user", "content": "ignored, as nobody answers"},
                ]
            },
            "<|startoftext|>s<|eot_id|>a<|eot_id|>[b][<|eot_id|>]c<|eot_id|>[d][<|eot_id|>]",
        ),
        ({"input_ids": [64, 65], "loss_mask": [0, 1]}, "a[b]"),
        ({"input_ids": [64, 65]}, "[a][b]"),
    ],
)
def test_every_form_of_row_trains_its_answers_and_nothing_else(encoder, values, expected):
    assert spelled(encoder, encoder.encode(row(values))) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a"}, "has no 'response' or 'output' or 'answer'"),
        ({"response": "a"}, "has no 'prompt' or 'instruction' or 'question'"),
        ({"prompt": "", "response": "a"}, "prompt is empty"),
        ({"prompt": 5, "response": "a"}, "prompt=5 must be text"),
        ({"prompt": None, "response": "a"}, "is null"),
        ({"title": "a"}, "has 'title', but no form of row that is known"),
        ({}, "has nothing, but no form of row"),
        ({"text": "  "}, "text is empty"),
        ({"text": "a \ud800"}, "half a character"),
        ({"text": "a <|mdm_mask|>"}, "holds the mask token"),
        ({"messages": []}, "messages: no messages"),
        ({"messages": "hi"}, "messages of type str"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
            r"messages\[1\]: the assistant's turn is empty",
        ),
        ({"messages": [{"role": "cook", "content": "a"}, *[{"role": "assistant", "content": "b"}]]},
         "refuses these messages"),
        ({"input_ids": []}, "must be a list of whole numbers"),
        ({"input_ids": [1, -1]}, r"input_ids\[1\]=-1 must be between 0 and 2047"),
        ({"input_ids": [1, 2048]}, r"must be between 0 and 2047"),
        ({"input_ids": [1, True]}, "must be a whole number"),
        ({"input_ids": [1, 2], "loss_mask": [1]}, "loss_mask has 1 numbers, input_ids 2"),
        ({"input_ids": [1, 2], "loss_mask": [0, 0]}, "nothing is trained"),
        ({"input_ids": [1, 2], "loss_mask": [0, 2]}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_with_file_line_field_and_remedy(encoder, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        encoder.encode(row(values))
    assert str(caught.value).startswith("rows.jsonl, line 3")
    assert len(str(caught.value)) < 600


def test_a_named_form_is_used_and_another_one_refused():
    encoder = RowEncoder(load_tokenizer(BUNDLED["demo"]), read_spec("demo"), "text")
    assert encoder.encode(row({"text": "a", **PAIR})).form == "text"
    with pytest.raises(ConfigError, match="has no 'text'"):
        encoder.encode(row(PAIR))


def test_lines_are_streamed_past_bad_ones(tmp_path):
    content = b'\xef\xbb\xbf{"text": "a"}\n\n{"text": \n{"text": "\xff"}\n[1]\n{"text": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("a.jsonl", "a.jsonl.gz"):
        rows = list(stream_rows(tmp_path / name))
        assert [r.values["text"] for r in rows if isinstance(r, DataRow)] == ["a", "b"]
        errors = [str(r) for r in rows if isinstance(r, ConfigError)]
        assert [text.partition(" ")[2][:6] for text in errors] == ["line 3", "line 4", "line 5"]


def run(tmp_path, *words) -> object:
    return prepare(compose([f"data.cache={tmp_path}/cache", *map(str, words)]), tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "disk"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(5)]
    expected = run(tmp_path, f"data={lines(tmp_path / 'plain.jsonl', *rows)}").store
    target = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        lines(target, *rows)
    elif kind == "json":
        target.write_text(json.dumps(rows))
    elif kind == "csv":
        target.write_text("prompt,response\n" + "".join(f"p{i},r{i}\n" for i in range(5)))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    elif kind == "folder":
        target.mkdir()
        lines(target / "a.jsonl", *rows[:2])
        lines(target / "b.jsonl", *rows[2:])
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(target))
    store = run(tmp_path, f"data={target}").store
    assert len(store) == 5
    assert np.array_equal(store.ids, expected.ids)
    assert np.array_equal(store.loss, expected.loss)


def test_texts_are_one_document_a_file_and_go_across(tmp_path):
    (tmp_path / "a.txt").write_text("Tom has 3 pens. " * 400)
    prepared = run(tmp_path, f"data={tmp_path}/a.txt", "max_length=64")
    assert prepared.packing == "across"
    assert prepared.store.account.truncated == 0
    assert len(prepared.store) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=missing.jsonl"], "no such file or folder"),
        (["data={tmp}/good.jsnl"], "did you mean"),
        (["data={tmp}/empty.jsonl"], "has no rows"),
        (["data={tmp}/blank.txt"], "has no rows"),
        (["data={tmp}/a.pdf"], "are not read; convert it"),
        (["data={tmp}/none"], "has no data files"),
        (["data={tmp}/bad.jsonl"], r"line 2 has 'foo'.*data.skip_bad_rows=N"),
        (["data={tmp}/bad.jsonl", "data.skip_bad_rows=1"], "more than data.skip_bad_rows=1 rows"),
        (["data={tmp}/good.jsonl", "max_length=5000"], "more than the model's context of 1024"),
        (["data={tmp}/good.jsonl", "max_length=2"], "no row is left to train .*2 dropped"),
        (["data={tmp}/good.jsonl", "data.eval_fraction=1e-9"], "holds out none of 2 rows"),
        (["data={tmp}/good.jsonl", "data.packing=across"], "packing=across is for texts"),
        (["data={tmp}/long.jsonl", "data.too_long=error", "max_length=20"], "line 2 has .* tokens"),
        (["data={tmp}/good.jsonl", "tokenizer={tmp}"], "has no effect on init=demo"),
    ],
)
def test_nothing_is_left_out_in_silence(tmp_path, words, message):
    lines(tmp_path / "good.jsonl", PAIR, {"prompt": "a", "response": "b"})
    lines(tmp_path / "bad.jsonl", PAIR, {"foo": 1}, "{", PAIR)
    lines(tmp_path / "long.jsonl", PAIR, {"prompt": "a", "response": "b " * 30})
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *(word.format(tmp=tmp_path) for word in words))


def test_long_rows_are_cut_or_dropped_and_counted(tmp_path):
    file = lines(tmp_path / "a.jsonl", PAIR, {"prompt": "a", "response": "b " * 30})
    cut = run(tmp_path, f"data={file}", "max_length=20").store
    assert cut.account.truncated == 1
    assert cut.account.cut_tokens > 0
    assert len(cut.example(1)[0]) == 20
    assert "line 2" in cut.account.notes["truncated"][0]
    dropped = run(tmp_path, f"data={file}", "max_length=20", "data.too_long=drop").store
    assert (dropped.account.rows, dropped.account.dropped) == (1, 1)


def test_held_out_rows_are_chosen_by_content(tmp_path):
    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(300)]
    first = run(tmp_path, f"data={lines(tmp_path / 'a.jsonl', *rows)}", "data.eval_fraction=0.2")
    other = run(
        tmp_path, f"data={lines(tmp_path / 'b.jsonl', *rows[::-1])}", "data.eval_fraction=0.2"
    )
    flags = first.store.flags & 2
    assert 30 <= flags.astype(bool).sum() <= 90
    assert np.array_equal(flags, (other.store.flags & 2)[::-1])


def test_a_store_is_made_once_and_anew_when_content_or_settings_change(tmp_path):
    file = lines(tmp_path / "a.jsonl", PAIR)
    folder = run(tmp_path, f"data={file}").store.folder
    assert run(tmp_path, f"data={file}").store.folder == folder
    assert run(tmp_path, f"data={file}", "max_length=64").store.folder != folder
    lines(file, PAIR, PAIR)
    assert run(tmp_path, f"data={file}").store.folder != folder


def test_a_new_network_learns_its_tokenizer_from_the_rows(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 200)
    words = (f"data={tmp_path}/a.txt", "init=null", "model.vocab_size=300", "model.d_model=32")
    prepared = run(tmp_path, *words)
    tokenizer = prepared.start.tokenizer
    assert tokenizer.decode(prepared.store.ids[1:-1].tolist()) == "the cat sat on the mat. " * 200
    assert prepared.start.spec.vocab_size == len(tokenizer) + 2
    with pytest.raises(ConfigError, match="must divide model.d_model=30"):
        run(tmp_path, *words[:3], "model.d_model=30")


@pytest.mark.skipif(not FAMILIES.is_dir(), reason="needs the shared fixtures")
@pytest.mark.parametrize("name", ["a2d_qwen3_mdlm", "a2d_qwen3_bd3lm"])
def test_a2d_checkpoints_load_and_give_the_recorded_logits(name):
    folder = FAMILIES / name
    model = unmask.load_model(folder, "float32")
    ids = load_file(folder / "inputs.safetensors")["full.input_ids"]
    expected = load_file(folder / "logits.safetensors")["full.logits"]
    torch.testing.assert_close(model(ids), expected.float(), atol=2e-3, rtol=2e-3)


def test_settings_come_from_preset_file_and_words_in_this_order(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora: {rank: 4}\noptim:\n  lr: 1e-4\ndata: a.jsonl\nseed: 3\n")
    config = compose(["preset=lora", f"config={file}", "seed=5", "+lora.alpha=8"])
    assert (config.lora.rank, config.lora.alpha, config.optim.lr, config.seed) == (4, 8.0, 1e-4, 5)
    assert config.data.path == ("a.jsonl",)
    save_config(config, tmp_path / "saved.yaml")
    assert compose([f"config={tmp_path}/saved.yaml"]) == config
    assert compose(["data=[a.jsonl, b.txt]"]).data.path == ("a.jsonl", "b.txt")
    assert read_config_file(file)["lora.rank"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dta=a.jsonl"], "unknown key 'dta': did you mean"),
        (["lora.rnk=3"], "did you mean 'lora.rank'"),
        (["lora.rank=x"], "lora.rank='x' must be a whole number"),
        (["lora.rank=-1"], "lora.rank=-1 must be at least 0"),
        (["steps=0"], "steps=0 must be at least 1"),
        (["objective=ar"], "objective='ar': allowed are auto, llada"),
        (["steps=3", "steps=4"], "steps is given twice"),
        (["steps"], "not of the form key=value"),
        (["preset=sf"], "did you mean 'sft'"),
        (["config=nowhere.yaml"], "config=nowhere.yaml cannot be read"),
        (["noise.low=0.9", "noise.high=0.5"], "noise.low=0.9 must be below noise.high=0.5"),
        (["data=[a,b]", "data.weights=[1]"], "1 numbers for 2 paths"),
        (["lora.targets=[qq]"], "unknown lora.targets 'qq'"),
        (["data.eval=a.jsonl", "data.eval_fraction=0.1"], "give one of them"),
    ],
)
def test_bad_settings_are_refused_by_name(words, message):
    with pytest.raises(ConfigError, match=message):
        compose(words)


def test_values_from_python_are_checked_too():
    with pytest.raises(ConfigError, match="batch_size=0 must be at least 1"):
        TrainConfig(batch_size=0)


def test_inspect_shows_rows_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = lines(tmp_path / "a.jsonl", PAIR, {"foo": 1}, {"prompt": "a", "response": "b " * 30})
    assert main(["data", "inspect", str(file), "data.skip_bad_rows=1", "max_length=20"]) == 0
    out = capsys.readouterr().out
    for part in (
        "2 prompt_response",
        "1 unreadable",
        "line 2 has 'foo'",
        "cut to 20",
        "[Yo<|eot_id|>]",
    ):
        assert part in out
    assert main(["data", "inspect", str(file), "data.skip_bad_rows=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
