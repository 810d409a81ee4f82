"""Checkpoint folders made to hurt: refused in bounded time and memory, by name, never blocking."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.cli.main import main
from unmask.errors import ModelError
from unmask.json_text import MAX_DEPTH, JsonLimitError, parse_json
from unmask.models import load_model, read_spec
from unmask.models.folder_files import MAX_BYTES, read_object
from unmask.models.hf_config import MAX_VALUES
from unmask.models.safetensors_files import MAX_DIMENSIONS, MAX_NAME, tensors_of
from unmask.models.spec import ExpertSpec
from unmask.regular_files import open_regular, read_bounded

FAMILIES = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")
LIMIT = 1500
SOON_S = 30  # a loaded machine
INDEX = "model.safetensors.index.json"


class Victim:
    """A copy of a family's tiny checkpoint with its tokenizer, to be spoiled."""

    def __init__(self, source, tokenizer, path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for place in (source, tokenizer):
            for name in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ):
                if (place / name).is_file():
                    shutil.copyfile(place / name, path / name)
        self.keys = json.loads((path / "config.json").read_text())
        self.weights = path / "model.safetensors"

    def config(self, text=None, **changes):
        content = json.dumps(self.keys | changes) if text is None else text
        (self.path / "config.json").write_text(content)

    def header(self, change):
        """Replace the header of the weights; `change` takes and returns the parsed one, or bytes."""
        data = self.weights.read_bytes()
        length = int.from_bytes(data[:8], "little")
        made = change(json.loads(data[8 : 8 + length]))
        raw = made if isinstance(made, bytes) else json.dumps(made).encode()
        self.weights.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    def load(self):
        return load_model(self.path, "float32", "cpu")

    def refused(self, *words, call=None):
        began = time.monotonic()
        with pytest.raises(ModelError) as caught:
            (call or self.load)()
        assert time.monotonic() - began < SOON_S
        text = str(caught.value)
        assert len(text) <= LIMIT
        for word in words:
            assert word in text
        return text


@pytest.fixture
def victim(parity_folder, request, tmp_path):
    tokenizers = request.path.parent / "fixtures" / "tokenizers"
    own = {"llada_moe": "llada2_moe"}
    return lambda family="llada", name="home": Victim(
        parity_folder(family), tokenizers / own.get(family, family), tmp_path / name
    )


# config.json

SIZE_KEYS = {
    "llada": (
        "n_layers",
        "d_model",
        "n_heads",
        "vocab_size",
        "mlp_hidden_size",
        "max_sequence_length",
    ),
    "dream": ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"),
    "llada_moe": (
        "num_hidden_layers",
        "num_experts",
        "num_experts_per_tok",
        "expert_intermediate_size",
    ),
    "llada2_moe": ("num_hidden_layers", "num_experts", "n_group", "first_k_dense_replace"),
    "sdar": ("num_hidden_layers", "head_dim", "block_size", "intermediate_size"),
    "fast_dllm_v2": ("num_hidden_layers", "bd_size", "num_key_value_heads"),
}
ABSURD = [10**12, 10**15, 10**400, -1, -(10**400), 1e300, float("nan"), float("inf"), -float("inf")]
ABSURD += ["7", "x" * 100_000, [], {}, [10**9], True]


@pytest.mark.parametrize(("family", "key"), [(f, key) for f in FAMILIES for key in SIZE_KEYS[f]])
def test_a_size_of_no_model_is_refused_by_its_key_at_once(family, key, victim):
    folder = victim(family)
    for value in ABSURD:
        folder.config(**{key: value})
        folder.refused(key)
        folder.refused(key, call=lambda: read_spec(folder.path))


@pytest.mark.parametrize(
    "key", ["rope_theta", "rms_norm_eps", "mlp_ratio", "partial_rotary_factor", "rotary_dim"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, 10**400, "1", [1], -1])
def test_a_number_of_no_model_is_refused_by_its_key(key, value, victim):
    folder = victim("llada")
    del folder.keys["mlp_hidden_size"]
    folder.config(**{key: value})
    folder.refused(key)


def test_layers_times_experts_are_bounded_too(victim):
    folder = victim("sdar")
    folder.config(
        architectures=["SDARMoeForCausalLM"],
        num_hidden_layers=MAX_VALUES["num_hidden_layers"],
        num_experts=MAX_VALUES["num_experts"],
        num_experts_per_tok=1,
        moe_intermediate_size=8,
    )
    folder.refused("layers of experts")


def test_the_largest_sizes_that_are_read_make_no_tensor(victim):
    folder = victim("dream")
    heads = {"num_attention_heads": 4096, "num_key_value_heads": 4096}
    heads["num_hidden_layers"] = 64
    folder.config(hidden_size=1 << 24, intermediate_size=1 << 24, vocab_size=1 << 24, **heads)
    folder.refused("the weights do not fit the config")


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "null": b"null",
    "list": b"[]",
    "cut": b'{"architectures": ["LLaDAModelLM"',
    "not UTF-8": b'{"a": "\xff"}',
    "deep lists": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "rather deep": b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
    "many values": b'{"a": [' + b"0," * 600_000 + b"0]}",
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"n_layers": 1, "n_layers": 2}',
    "a nested key twice": b'{"a": {"b": {"c": 1, "c": [1]}}}',
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", ["config.json", INDEX, "adapter_config.json"])
def test_damaged_json_is_refused_by_name_with_the_remedy(kind, name, victim):
    folder = victim()
    if name == INDEX:
        folder.weights.unlink()
    (folder.path / name).write_bytes(DAMAGED[kind])
    folder.refused(name, "again")


def test_a_key_twice_with_one_value_and_constants_that_nobody_reads_are_no_damage(victim):
    folder = victim()
    text = json.dumps(folder.keys)[:-1]
    folder.config(f'{text}, "n_layers": {folder.keys["n_layers"]}, "unread": Infinity}}')
    folder.load()


def test_a_file_larger_than_any_release_is_refused_without_reading_it(victim):
    for name, most in MAX_BYTES.items():
        folder = victim(name=name.replace(".", "_"))
        with (folder.path / name).open("wb") as file:
            file.truncate(most + 1)  # a hole: no disk is used
        folder.refused(name, str(most + 1), str(most), "again")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**12, 10**30, 10**400, 2**31, 2**63])
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_key_loads_or_is_a_model_error(family, victim):
    folder = victim(family)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data):
        known = st.sampled_from(sorted(folder.keys.keys() | MAX_VALUES.keys() | EXTRA))
        changes = data.draw(st.dictionaries(known, json_values, min_size=1, max_size=2))
        folder.config(**changes)
        with suppress(ModelError):
            read_spec(folder.path)

    check()


EXTRA = {
    "dtype",
    "expert_capacity",
    "layer_types",
    "mlp_only_layers",
    "moe_layer_freq",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "use_sliding_window",
}


# kinds and places of files


def spoil(path, kind):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)


KINDS = ("pipe", "socket", "folder", "/dev/zero", "/dev/stdin", "/etc/passwd", "../outside.json")
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES += (INDEX, "chat_template.jinja", "special_tokens_map.json", "generation_config.json")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_the_folder_is_refused_at_once(
    kind, name, victim, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "outside.json").write_text("{}")
    folder = victim()
    spoil((folder.path / name).relative_to(tmp_path), kind)
    folder.refused(name)
    folder.refused(name, call=lambda: read_spec(folder.path))


def test_a_named_template_that_leads_out_is_refused(victim, tmp_path):
    folder = victim()
    (tmp_path / "secret").write_text("s")
    (folder.path / "additional_chat_templates").mkdir()
    (folder.path / "additional_chat_templates" / "a.jinja").symlink_to(tmp_path / "secret")
    folder.refused("a.jinja", "outside")


def test_links_into_the_folder_and_into_a_hub_caches_blobs_are_read(victim, tmp_path):
    folder = victim()
    folder.weights.rename(folder.path / "real.safetensors")
    folder.weights.symlink_to("real.safetensors")
    folder.load()
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    commit = cache / "snapshots" / ("1" * 40)
    commit.mkdir(parents=True)
    local = tmp_path / "local"  # as older versions of huggingface_hub fill a folder
    local.mkdir()
    for number, path in enumerate(sorted(folder.path.iterdir())):
        blob = cache / "blobs" / f"{number:064}"
        shutil.copyfile(path, blob)
        (commit / path.name).symlink_to(f"../../blobs/{blob.name}")
        (local / path.name).symlink_to(blob)
    for place in (cache, commit, local):
        load_model(place, "float32", "cpu")


def test_weights_may_be_links_to_weights_elsewhere_but_texts_may_not(victim, tmp_path):
    folder = victim()
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    folder.weights.rename(elsewhere / "a.safetensors")
    folder.weights.symlink_to(elsewhere / "a.safetensors")
    folder.load()
    (elsewhere / "b.safetensors").symlink_to("/etc/passwd")
    folder.weights.unlink()
    folder.weights.symlink_to(elsewhere / "b.safetensors")
    folder.refused("outside")


def test_a_folder_that_is_a_link_itself_is_read(victim, tmp_path):
    folder = victim()
    (tmp_path / "link").symlink_to(folder.path, target_is_directory=True)
    load_model(tmp_path / "link", "float32", "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..\\x.safetensors",
        "",
        ".",
        "..",
        "x.bin",
    ]
    + ["x\0.safetensors", "x\n.safetensors", "C:x.safetensors", "y" * 5000 + ".safetensors"],
)
def test_an_index_names_files_of_its_own_folder_alone(name, victim, tmp_path):
    folder = victim()
    folder.weights.rename(tmp_path / "x.safetensors")
    (folder.path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    folder.refused(INDEX, "same folder", "again")


@pytest.mark.parametrize("value", [1, None, ["a"], {"a": 1}])
def test_an_index_with_other_than_names_is_refused(value, victim):
    folder = victim()
    folder.weights.unlink()
    (folder.path / INDEX).write_text(json.dumps({"weight_map": {"a": value}}))
    folder.refused(INDEX, "again")


def test_no_command_follows_a_link_out_of_the_folder(victim, tmp_path, capsys):
    folder = victim()
    (tmp_path / "secret").write_text("do not copy")
    (folder.path / "chat_template.jinja").symlink_to(tmp_path / "secret")
    for words in (
        ["inspect", str(folder.path)],
        ["convert", str(folder.path), str(tmp_path / "out"), "--to", "unmask"],
    ):
        assert main(words) == 2
        assert "outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# safetensors

Q = 1 << 60


def first(header):
    return next(name for name in header if name != "__metadata__")


def changed(**fields):
    return lambda header: header | {first(header): header[first(header)] | fields}


HEADERS = {
    "negative offsets": changed(data_offsets=[-8, 0]),
    "reversed offsets": changed(data_offsets=[8, 0]),
    "offsets beyond the file": changed(data_offsets=[0, Q]),
    "huge offsets": changed(data_offsets=[10**30, 10**30]),
    "three offsets": changed(data_offsets=[0, 4, 8]),
    "offsets that are no numbers": changed(data_offsets=["0", True]),
    "a huge shape": changed(shape=[Q, Q]),
    "a shape of an absurd size": changed(shape=[10**30]),
    "a negative shape": changed(shape=[-1]),
    "too many dimensions": changed(shape=[1] * 1000),
    "a shape that is none": changed(shape="3"),
    "another dtype": changed(dtype="F64"),
    "no dtype": changed(dtype="NOPE"),
    "a dtype that is no name": changed(dtype=7),
    "no fields": lambda header: header | {first(header): {}},
    "no tensor": lambda header: header | {first(header): 3},
    "metadata of numbers": lambda header: header | {"__metadata__": {"a": 1}},
    "overlaps": lambda header: header | {"more": header[first(header)]},
    "a long name": lambda header: {
        ("model." * 500_000 if key == first(header) else key): item for key, item in header.items()
    },
    "a list": lambda header: b"[]",
    "nothing": lambda header: b"",
    "deep": lambda header: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "another encoding": lambda header: json.dumps(header).encode("utf-16"),
    "not UTF-8": lambda header: b'{"\xff\xfe": 1}',
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_refused(kind, victim):
    folder = victim()
    folder.header(HEADERS[kind])
    folder.refused("model.safetensors", "again")
    folder.refused("model.safetensors", call=lambda: tensors_of(folder.weights))


@pytest.mark.parametrize("length", [0, 1, 2, 10**6, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_length_that_lies_is_refused(length, victim):
    folder = victim()
    folder.weights.write_bytes(struct.pack("<Q", length) + folder.weights.read_bytes()[8:])
    folder.refused("model.safetensors", "again")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_a_file_that_is_cut_is_refused(size, victim):
    folder = victim()
    folder.weights.write_bytes(folder.weights.read_bytes()[:size])
    folder.refused("model.safetensors", "again")


def test_a_header_of_more_bytes_than_any_release_is_not_read(victim):
    folder = victim()
    with folder.weights.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate(2 << 30)
    folder.refused("model.safetensors", "header", "again")


def test_long_names_and_many_dimensions_are_refused(victim):
    for change in (
        lambda header: {"n" * (MAX_NAME + 1): header[first(header)]},
        changed(shape=[1] * (MAX_DIMENSIONS + 1)),
    ):
        folder = victim()
        folder.header(change)
        folder.refused("model.safetensors")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_loads_or_is_a_model_error(victim, data):
    folder = victim()
    field = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F64", "I8", "F4", "BOOL", 1]) | json_values,
            "shape": st.lists(st.integers(-2, 1 << 65), max_size=4) | json_values,
            "data_offsets": st.lists(st.integers(-4, 1 << 65), min_size=2, max_size=2)
            | json_values,
        },
    )
    names = data.draw(st.lists(st.text(max_size=9), min_size=1, max_size=3))
    drawn = {name: data.draw(field | json_values) for name in names}
    folder.header(lambda header: data.draw(st.sampled_from([header | drawn, drawn])))
    with suppress(ModelError):
        tensors_of(folder.weights)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_bytes_in_a_header_load_or_are_a_model_error(victim, noise, at):
    folder = victim()
    whole = folder.weights.read_bytes()
    folder.weights.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    with suppress(ModelError):
        tensors_of(folder.weights)


def test_a_large_bias_of_zeros_is_not_read_to_be_passed_over(victim):
    folder = victim()
    header = {"x_bias": {"dtype": "U8", "shape": [1 << 33], "data_offsets": [0, 1 << 33]}}
    raw = json.dumps(header).encode()
    with folder.weights.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + (1 << 33))
    folder.refused("x_bias", "unmapped")


def test_a_pickle_is_never_loaded(victim, tmp_path):
    folder = victim()
    folder.weights.unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name in ("pytorch_model.bin", "consolidated.pth", "model.pt", "weights.ckpt"):
        torch.save(Evil(), folder.path / name)
        folder.refused(name, "pickle", "safetensors")
        assert not (tmp_path / "ran").exists()
        (folder.path / name).unlink()


# the readers


def test_json_is_bounded_before_and_after_it_is_built():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, NaN]}')["a"][0] == 1
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for data in (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b"[" * 10**6 + b"]" * 10**6):
        with pytest.raises(JsonLimitError, match="nested|values"):
            parse_json(data, max_values=10**7)
    with pytest.raises(JsonLimitError, match="about 11 values; at most 10"):
        parse_json(b"[1,2,3,4,5,6,7,8,9,10,11]", max_values=10)
    with pytest.raises(JsonLimitError, match="'a' twice"):
        parse_json(b'{"a": 1, "b": 2, "a": 3}')


def test_a_regular_file_is_read_up_to_its_limit_and_nothing_else_is(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes; at most 4"):
        read_bounded(file, 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match="pipe|folder|No such"):
            open_regular(path)


def test_an_expert_model_of_usual_size_is_no_absurd_one():
    from tiny import tiny_spec

    experts = ExpertSpec(384, 8, 2048, "sigmoid", True)
    assert tiny_spec(num_layers=61, experts=experts).experts is experts


def test_read_object_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: must hold a JSON object"):
        read_object(tmp_path / "config.json")
