"""`unmask inspect`: what a checkpoint is, from its small files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unmask.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"
TOKENIZERS = {"llada_moe": "llada2_moe"}
FAMILIES = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")


@pytest.fixture
def released(tmp_path):
    """A folder of config and tokenizer, and of weights if wanted."""

    def make(family, weights=True):
        sources = [FIXTURES / "parity" / family / "config.json"]
        if weights:
            sources.append(FIXTURES / "parity" / family / "model.safetensors")
        sources += (FIXTURES / "tokenizers" / TOKENIZERS.get(family, family)).iterdir()
        for path in sources:
            shutil.copy(path, tmp_path)
        return str(tmp_path)

    return make


def inspect(capsys, *words):
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_told_with_its_facts(family, released, capsys):
    found = json.loads(inspect(capsys, released(family), "--json"))
    assert found["family"] == family.removesuffix("_moe") or family == "llada_moe"
    assert found["mask_id"] == (1000 if family == "llada" else 1004)
    assert "mask" in found["mask"].lower()
    assert found["chat_template"] is True
    assert found["turn_end"] is not None
    blocks = {"llada2_moe": "32", "sdar": "4", "fast_dllm_v2": "16"}
    if family in blocks:
        assert found["attention"].startswith(f"block-causal: blocks of {blocks[family]},")
        assert found["cache_auto"] == "block_causal (exact)"
    else:
        assert found["attention"].startswith("full")
        assert found["cache_auto"] == "vicinity"
    assert ("shifted" in found["logits"]) == (family in ("dream", "fast_dllm_v2"))
    assert "F32" in found["weights"]


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("llada", "decoder=vanilla"),
        ("dream", "decoder=dream"),
        ("llada_moe", "decoder=vanilla"),
        ("llada2_moe", "preset=llada2 or llada2_1"),
        ("sdar", "preset=sdar"),
        ("fast_dllm_v2", "preset=fast_dllm_v2"),
    ],
)
def test_the_familys_own_sampler_is_named(family, own, released, capsys):
    assert json.loads(inspect(capsys, released(family), "--json"))["own_sampler"] == own


def test_the_parameters_are_those_of_the_file_and_the_active_ones_fewer(released, capsys):
    from safetensors.torch import load_file

    folder = released("llada2_moe")
    found = json.loads(inspect(capsys, folder, "--json"))
    stored = load_file(Path(folder) / "model.safetensors")
    assert found["parameters"] == sum(value.numel() for value in stored.values())
    experts = sum(value.numel() for name, value in stored.items() if ".experts." in name)
    assert found["active_parameters"] == found["parameters"] - experts * 12 // 16
    wanted = "16 experts of 48, 4 a token, 48 shared; 1 dense layers of 256"
    assert found["feed_forward"] == wanted


def test_no_weights_are_needed(released, capsys):
    text = inspect(capsys, released("sdar", weights=False))
    rows = dict(line.split("\t") for line in text.splitlines())
    assert rows["weights"] == "not here"
    assert rows["family"] == "sdar"
    assert rows["parameters"] == "1,599,136"
    assert rows["chat template"] == "yes"
    assert rows["mask id"] == "1004"


def test_the_bundled_model_is_the_default(capsys):
    assert json.loads(inspect(capsys, "--json"))["model"] == "demo"


@pytest.mark.parametrize("words", [["nowhere"], ["/tmp/there/is/none"]])
def test_what_is_no_model_is_refused_in_one_line(words, capsys):
    assert main(["inspect", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("unmask: error:")
    assert len(err.splitlines()) == 1


def test_an_unsupported_checkpoint_is_refused_with_the_reason(tmp_path, capsys):
    config = {"architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no mask token" in capsys.readouterr().err
