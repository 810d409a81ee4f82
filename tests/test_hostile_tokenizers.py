"""Tokenizer files made to hurt: refused on loading, before the library takes memory or aborts."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path

import pytest

from unmask.engine.tokenizer import MAX_TEMPLATE_CHARS, load_tokenizer
from unmask.engine.tokenizer_files import MAX_ID, MAX_REGEX_CHARS, MAX_STAGES
from unmask.errors import ModelError

SOURCE = Path(__file__).parent / "fixtures" / "tokenizers" / "llada"
LIMIT = 1500
TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


@pytest.fixture
def folder(tmp_path):
    for path in SOURCE.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def refused(folder, *words):
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert time.monotonic() - began < 30
    text = str(caught.value)
    assert len(text) <= LIMIT
    for word in words:
        assert word in text


def replaced(key, value):
    return lambda content: content.update({key: value})


def in_model(**fields):
    return lambda content: content["model"].update(fields)


def in_vocab(**tokens):
    return lambda content: content["model"]["vocab"].update(tokens)


def added(**fields):
    return lambda content: content["added_tokens"].append(TOKEN | fields)


def padding(**fields):
    plain = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    return replaced("padding", plain | {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"} | fields)


def truncation(max_length, stride):
    plain = {"direction": "Right", "strategy": "LongestFirst"}
    return replaced("truncation", plain | {"max_length": max_length, "stride": stride})


def split(regex):
    return replaced(
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
    )


def replacing(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key, name, stages):
    return replaced(key, {"type": "Sequence", name: stages})


def template(single, tokens=()):
    return replaced(
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [],
            "special_tokens": {each: {"id": each, "ids": [0], "tokens": [each]} for each in tokens},
        },
    )


PIECE, UNKNOWN = (
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "no", "type_id": 0}},
)
TWICE = replacing({"String": "a"}, "aa")
WRONG = {
    "an id beyond any vocabulary": in_vocab(zzz=4294967295),
    "a negative id": in_vocab(zzz=-1),
    "an id that is text": in_vocab(zzz="1"),
    "a huge token": in_vocab(**{"z" * 100_000: 5}),
    "no vocabulary": in_model(vocab=None),
    "a vocabulary that is text": in_model(vocab="abc"),
    "no model": replaced("model", None),
    "merges of unknown tokens": in_model(merges=[["zz_nope", "q"]]),
    "merges that are no pairs": in_model(merges=[1, 2]),
    "a long prefix that panics": in_model(continuing_subword_prefix="x" * 50, merges=[["a", "b"]]),
    "a prefix that is a number": in_model(continuing_subword_prefix=3),
    "an added token beyond any vocabulary": added(id=4294967290, content="<x>"),
    "an added token without a text": added(id=5, content=None),
    "added tokens that are none": replaced("added_tokens", {"a": 1}),
    "padding that fills memory": padding(strategy={"Fixed": 10**12}),
    "padding to a negative length": padding(strategy={"Fixed": -1}),
    "padding to a huge multiple": padding(pad_to_multiple_of=10**12),
    "windows that do not advance": truncation(10, 20),
    "a stride as long as the window": truncation(10, 10),
    "a long pattern": split("a" * (MAX_REGEX_CHARS + 1)),
    "a pattern that is none": split("("),
    "many long patterns": sequence(
        "pre_tokenizer",
        "pretokenizers",
        [
            {
                "type": "Split",
                "pattern": {"Regex": "a" * 4000},
                "behavior": "Isolated",
                "invert": False,
            }
        ]
        * 9,
    ),
    "an empty pattern": replaced("normalizer", replacing({"String": ""}, "x")),
    "an empty expression": replaced("normalizer", replacing({"Regex": ""}, "x")),
    "replacements that double": sequence("normalizer", "normalizers", [TWICE] * 40),
    "replacements that grow by length": replaced(
        "normalizer", replacing({"String": "a"}, "x" * 10**6)
    ),
    "a decoder that doubles": sequence("decoder", "decoders", [TWICE] * 40),
    "a prefix that grows": replaced("normalizer", {"type": "Prepend", "prepend": "x" * 10**6}),
    "many stages": sequence("normalizer", "normalizers", [{"type": "NFC"}] * (MAX_STAGES + 1)),
    "a template with unknown tokens": template([PIECE, UNKNOWN]),
    "a template of many pieces": template([PIECE] * 1000),
    "a table that panics on loading": replaced(
        "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a table that panics on a text": replaced(
        "normalizer",
        {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(b"\4\0\0\0\xff\xff\xff\xff").decode(),
        },
    ),
    "an unknown stage": replaced("normalizer", {"type": "Nope"}),
    "a decoder that is text": replaced("decoder", "ByteLevel"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_tokenizer_that_would_hurt_is_refused_on_loading(kind, folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    WRONG[kind](content)
    path.write_text(json.dumps(content))
    refused(folder, str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'{"a": ' + b"[" * 10**5,
        b'{"a":' * 99 + b"1" + b"}" * 99,
        b"\xff\xfe{",
    ],
    ids=["empty", "text", "list", "null", "deep lists", "deep objects", "another encoding"],
)
def test_a_damaged_tokenizer_file_is_refused_by_name(name, data, folder):
    (folder / name).write_bytes(data)
    refused(folder, name, "again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fast_tokenizer_files", ["tokenizer.1.0.0.json", "../../x/tokenizer.4.0.0.json"]),
        ("init_inputs", ["x"]),
        ("gguf_file", "/etc/passwd"),
        ("tokenizer_object", "x"),
        ("added_tokens_decoder", {"9" * 5000: TOKEN | {"content": "x"}}),
        ("added_tokens_decoder", {str(MAX_ID + 1): TOKEN | {"content": "x"}}),
        ("added_tokens_decoder", {"-1": TOKEN | {"content": "x"}}),
        ("added_tokens_decoder", {"5": TOKEN | {"content": "x" * 10**6}}),
        ("added_tokens_decoder", {"5": "x"}),
        ("added_tokens_decoder", [1]),
        ("chat_template", "x" * (MAX_TEMPLATE_CHARS + 1)),
        ("chat_template", [{"name": str(n), "template": "x"} for n in range(100)]),
    ],
)
def test_a_configuration_that_would_hurt_is_refused(key, value, folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(folder, "template" if key == "chat_template" else "tokenizer_config.json")


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "tekken.json"])
def test_slow_files_with_another_beside_them_are_refused(name, folder):
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("\n".join(map(" ".join, content["merges"])))
    (folder / name).write_text("x")
    refused(folder, name, "remove")
    (folder / name).unlink()
    assert load_tokenizer(folder)("a")["input_ids"]
