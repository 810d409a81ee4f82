"""`unmask inspect --fit`, `models` and `pull`: sizes from the config, and what is on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from unmask.cli.main import main
from unmask.engine.memory import Shape, largest_batch, memory_need, num_parameters
from unmask.errors import ConfigError

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "tiny-llada"


def test_the_weights_and_keys_are_those_that_a_decode_has(golden_llm):
    model = golden_llm.model
    held = sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values())
    prompt = list(range(10, 20))
    (out,) = golden_llm.generate([prompt], cache="prefix", gen_length=64, stop_at_eos=False)
    need = memory_need(golden_llm.spec, Shape(1, 10, 64), torch.float32, has_cache=True)
    assert need.weights == held
    assert need.kv == out.cache_bytes
    assert num_parameters(golden_llm.spec) * 4 == held


def test_memory_grows_with_rows_and_the_largest_batch_fits_just_so(golden_llm):
    spec, shape = golden_llm.spec, Shape(1, 32, 32)
    room = memory_need(spec, Shape(5, 32, 32), torch.float32, has_cache=True).total
    assert largest_batch(spec, shape, torch.float32, room, has_cache=True) == 5
    assert largest_batch(spec, shape, torch.float32, room - 1, has_cache=True) == 4
    assert largest_batch(spec, shape, torch.float32, 1000, has_cache=True) == 0
    half = memory_need(spec, shape, torch.bfloat16, has_cache=True)
    assert 2 * half.weights == memory_need(spec, shape, torch.float32, has_cache=True).weights
    assert memory_need(spec, shape, torch.float32, has_cache=False).kv == 0


def test_more_positions_than_the_context_are_refused(golden_llm):
    with pytest.raises(ConfigError, match="context is"):
        memory_need(golden_llm.spec, Shape(1, 1 << 20, 1), torch.float32, has_cache=False)


def test_inspect_tells_the_memory_of_a_decode(capsys):
    words = [
        "--fit",
        "--batch",
        "4",
        "--gen-length",
        "64",
        "--prompt-length",
        "64",
        "--cache",
        "dual",
    ]
    assert main(["inspect", "demo", *words, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["memory_kv"] > 0
    parts = ("memory_weights", "memory_kv", "memory_activations")
    assert found["memory_total"] >= sum(found[name] for name in parts)
    assert found["largest_batch"] >= 4
    assert main(["inspect", "demo", "--fit", "--device", "cpu"]) == 0
    assert "memory total\t" in capsys.readouterr().out


def test_sizes_without_fit_are_refused(capsys):
    assert main(["inspect", "demo", "--batch", "4"]) == 2
    assert "are for --fit" in capsys.readouterr().err


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache with one checkpoint, without its weights, and one repository of another kind."""
    import huggingface_hub.constants

    for name, files in (("GSAI-ML--LLaDA-8B-Instruct", GOLDEN), ("someone--else", None)):
        folder = tmp_path / f"models--{name}" / "snapshots" / ("a" * 40)
        folder.mkdir(parents=True)
        if files is None:
            (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        else:
            for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(files / file, folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_models_lists_bundled_cached_and_known_ones(hub_cache, capsys):
    assert main(["models", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["demo"]["origin"] == "bundled"
    assert entries["demo"]["fits"] is True
    cached = entries["GSAI-ML/LLaDA-8B-Instruct"]
    assert (cached["origin"], cached["size_bytes"]) == ("cached", None)
    assert cached["description"] == "preset llada-inst"
    assert cached["memory_bytes"] > 0
    assert "someone/else" not in entries
    known = entries["Dream-org/Dream-v0-Instruct-7B"]
    assert (known["origin"], known["memory_bytes"], known["folder"]) == ("preset", None, None)


def test_pull_resolves_a_preset_and_prints_the_folder(monkeypatch, tmp_path, capsys):
    asked = []

    def download(model, **options):
        asked.append((model, options["revision"]))
        shutil.copy(GOLDEN / "config.json", tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert main(["pull", "llada-inst"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert main(["pull", "owner/name@v1"]) == 0
    assert asked == [("GSAI-ML/LLaDA-8B-Instruct", None), ("owner/name", "v1")]
    assert main(["pull", "demo"]) == 2
    assert "already" in capsys.readouterr().err
