"""`unmask convert`: the same numbers in other tensors, and back, bit by bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.cli.main import main
from unmask.errors import ConfigError, ModelError
from unmask.models import convert, convert_checkpoint, load_model, read_config
from unmask.models.families import llada
from unmask.models.safetensors_files import INDEX
from unmask.models.weights import save_weights

FORMS = {
    "llada_moe": ("family", "unmask", "fused"),
    "llada2_moe": ("family", "unmask", "stacked"),
    "sdar": ("family", "unmask", "fused"),
    "fast_dllm_v2": ("family", "unmask"),
    "dream": ("family", "unmask"),
    "llada": ("family", "unmask"),
}
PAIRS = [(family, form) for family, forms in FORMS.items() for form in forms]


@pytest.fixture
def source(tmp_path, parity_folder):
    """A copy of a parity checkpoint alone, its tensors changed by `change`."""

    def make(family, change=None):
        folder = tmp_path / family
        folder.mkdir()
        shutil.copy(parity_folder(family) / "config.json", folder)
        tensors = load_file(parity_folder(family) / "model.safetensors")
        if change is not None:
            change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def stored(folder):
    """Every tensor of a folder's files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name
    return True


@pytest.mark.parametrize(("family", "form"), PAIRS)
def test_there_and_back_is_bit_by_bit_the_same(family, form, source, tmp_path):
    folder = source(family)
    convert_checkpoint(folder, tmp_path / "there", form)
    convert_checkpoint(tmp_path / "there", tmp_path / "back", "family")
    assert same(stored(folder), stored(tmp_path / "back"))


@pytest.mark.parametrize(("family", "form"), PAIRS)
def test_every_form_loads_as_the_same_model(family, form, source, tmp_path, parity_model):
    convert_checkpoint(source(family), tmp_path / "there", form)
    loaded = load_model(tmp_path / "there", "float32", "cpu")
    for name, value in parity_model(family).named_parameters():
        assert torch.equal(loaded.get_parameter(name), value), name


def test_types_stay_as_they_are_stored(source, tmp_path):
    def half(tensors):
        for name in tensors:
            if not name.endswith("expert_bias"):
                tensors[name] = tensors[name].bfloat16()

    folder = source("llada2_moe", half)
    convert_checkpoint(folder, tmp_path / "there", "stacked")
    there = stored(tmp_path / "there")
    assert there["model.layers.1.mlp.gate.expert_bias"].dtype == torch.float32
    assert there["model.layers.1.mlp.experts.up_proj"].dtype == torch.bfloat16
    convert_checkpoint(tmp_path / "there", tmp_path / "back", "family")
    assert same(stored(folder), stored(tmp_path / "back"))


def test_the_fused_form_holds_gate_then_up_and_the_stacked_one_the_experts_in_order(
    source, tmp_path
):
    one = source("llada_moe")
    convert_checkpoint(one, tmp_path / "fused", "fused")
    tensors, fused = stored(one), stored(tmp_path / "fused")
    mlp = "model.layers.2.mlp"
    for expert, (both, down) in enumerate(zip(fused[f"{mlp}.w1"], fused[f"{mlp}.w2"], strict=True)):
        gate, up = both.chunk(2)
        assert torch.equal(gate, tensors[f"{mlp}.experts.{expert}.gate_proj.weight"])
        assert torch.equal(up, tensors[f"{mlp}.experts.{expert}.up_proj.weight"])
        assert torch.equal(down, tensors[f"{mlp}.experts.{expert}.down_proj.weight"])
    other = source("llada2_moe")
    convert_checkpoint(other, tmp_path / "stacked", "stacked")
    tensors, stacked = stored(other), stored(tmp_path / "stacked")
    for expert, up in enumerate(stacked[f"{mlp}.experts.up_proj"]):
        assert torch.equal(up, tensors[f"{mlp}.experts.{expert}.up_proj.weight"])


def test_large_targets_are_cut_into_shards_with_an_index(source, tmp_path, monkeypatch):
    monkeypatch.setattr(convert.convert, "__defaults__", (1_500_000, None))
    folder = source("llada2_moe")
    done = convert_checkpoint(folder, tmp_path / "there", "unmask")
    files = sorted(path.name for path in (tmp_path / "there").glob("*.safetensors"))
    assert len(files) == done.num_files > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "there" / INDEX).read_text())
    tensors = stored(tmp_path / "there")
    assert index["weight_map"].keys() == tensors.keys()
    assert set(index["weight_map"].values()) == set(files)
    size = sum(value.nbytes for value in tensors.values())
    assert index["metadata"]["total_size"] == size == done.size_bytes
    convert_checkpoint(tmp_path / "there", tmp_path / "back", "family")
    assert same(stored(folder), stored(tmp_path / "back"))


def test_config_tokenizer_and_texts_go_along_but_no_code(source, tmp_path):
    folder = source("dream")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"):
        (folder / name).write_text("{}")
    (folder / "modeling_dream.py").write_text("raise SystemExit")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    convert_checkpoint(folder, tmp_path / "there", "unmask")
    found = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert found == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert read_config(folder) == read_config(tmp_path / "there")


def test_nothing_is_overwritten(source, tmp_path):
    folder = source("sdar")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        convert_checkpoint(folder, folder, "unmask")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        convert_checkpoint(folder, file, "unmask")
    assert (folder / "model.safetensors").read_bytes() == before
    assert file.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert_checkpoint(folder, tmp_path / "empty", "unmask")
    assert load_model(tmp_path / "empty", "float32", "cpu").spec.family == "sdar"


def test_a_form_that_the_family_does_not_have_is_refused_with_those_that_it_has(source, tmp_path):
    with pytest.raises(ConfigError, match="unknown form 'stacked': allowed: family, unmask"):
        convert_checkpoint(source("dream"), tmp_path / "there", "stacked")
    assert not (tmp_path / "there").exists()


def test_a_source_that_does_not_fit_leaves_no_target_behind(source, tmp_path):
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    folder = source("llada_moe", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"missing: {name}"):
        convert_checkpoint(folder, tmp_path / "there", "fused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llada_moe"]


def test_tensors_of_different_types_are_not_joined(source, tmp_path):
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    folder = source("llada_moe", lambda tensors: tensors.update({name: tensors[name].half()}))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.w1.*F16 and F32"):
        convert_checkpoint(folder, tmp_path / "there", "fused")
    convert_checkpoint(folder, tmp_path / "there", "family")
    assert same(stored(folder), stored(tmp_path / "there"))


def test_a_stored_head_that_is_tied_is_left_out_if_it_is_the_embedding(tmp_path):
    from tiny import tiny_model

    folder = tmp_path / "tied"
    folder.mkdir()
    model = tiny_model("llada", tie_embeddings=True)
    (folder / "config.json").write_text(json.dumps(llada.config_from_spec(model.spec)))
    save_weights(model, folder / "model.safetensors", llada.NAMES, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    head, embed = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    save_file(tensors | {head: tensors[embed].clone()}, folder / "model.safetensors")
    convert_checkpoint(folder, tmp_path / "there", "family")
    assert same(stored(tmp_path / "there"), tensors)
    save_file(tensors | {head: tensors[embed] + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="differs from the embedding"):
        convert_checkpoint(folder, tmp_path / "other", "family")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_command_converts_and_says_what_it_wrote(source, tmp_path, capsys):
    folder, target = str(source("llada_moe")), str(tmp_path / "there")
    assert main(["convert", folder, target, "--to", "fused"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{target}: ")
    assert err.endswith(" MB, 1 file\n")
    assert main(["convert", folder, target, "--to", "fused"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", folder, target + "2", "--to", "fusd"]) == 2
    assert "did you mean 'fused'?" in capsys.readouterr().err
