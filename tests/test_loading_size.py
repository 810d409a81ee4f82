"""Loading at real size: no second copy of the weights, no byte of what does not fit, a bar when long."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from unmask.errors import ModelError
from unmask.models import load_model, read_config
from unmask.models import safetensors_files as files
from unmask.models import weights as weights
from unmask.models.families import dream, llada, llada2, llada_moe
from unmask.models.transformer import Transformer
from unmask.models.weight_names import layout
from unmask.view.progress import LoadingView

DENSE = {
    "architectures": ["DreamModel"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 20,
    "vocab_size": 65536,
}
SPARSE = {
    "architectures": ["LLaDA2MoeModelLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "n_group": 8,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
    "vocab_size": 65536,
}
FUSED = {
    "architectures": ["LLaDAMoEModelLM"],
    "expert_intermediate_size": 1024,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 5,
    "vocab_size": 65536,
}
CASES = {
    "dense": (dream, DENSE, None),
    "experts_and_fused_qkv": (llada2, SPARSE, None),
    "fused_experts": (llada_moe, FUSED, ("mlp.w1", "mlp.w2")),
}
"""Family, config, and the ends of the names that are stored in place of single experts."""

CHILD = """
import sys, torch
from unmask.models import load_model
def peak_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
load_model(sys.argv[1], "bfloat16", "cpu")  # everything imported, its buffers made
before = peak_bytes()
model = load_model(sys.argv[2], sys.argv[3], "cpu")
size = sum(value.nbytes for value in model.parameters())
print(before, peak_bytes(), size)
"""


def write_checkpoint(folder, family, config, fused=None, shard_bytes=700_000_000):
    """A bfloat16 checkpoint in several shards, without ever holding more than one of them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Transformer(family.spec_from_config(config))
    shapes = {}
    for name, place in layout(weights.shapes_of(model), family.NAMES).items():
        is_wanted = place.is_first
        if fused:
            is_other = name.endswith(fused)
            is_wanted = is_other or (place.is_first and ".experts." not in name)
        if is_wanted:
            shapes[name] = place.shape
    shards, size = [{}], 0
    for name, shape in shapes.items():
        if size > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * torch.Size(shape).numel()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shard.items()
        }
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return len(shards)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_loading_gigabytes_takes_no_more_memory_than_the_weights(
    case, dtype, tmp_path, parity_folder
):
    assert write_checkpoint(tmp_path / "model", *CASES[case]) >= 3
    small = str(parity_folder("llada2_moe"))
    command = [sys.executable, "-c", CHILD, small, str(tmp_path / "model"), dtype]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, peak, size = map(int, out.split())
    assert size > (2e9 if dtype == "bfloat16" else 4e9)
    ratio = (peak - before) / size
    print(f"{case} {dtype}: weights {size / 1e9:.2f} GB, peak {ratio:.3f} of them")
    assert ratio <= 1.1


CONVERTING = """
import sys
from unmask.models import convert, convert_checkpoint
def peak_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
convert.convert.__defaults__ = (300_000_000, None)
convert_checkpoint(sys.argv[1], sys.argv[3] + "-small", "unmask")
before = peak_bytes()
done = convert_checkpoint(sys.argv[2], sys.argv[3], "unmask")
print(before, peak_bytes(), done.size_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_converting_gigabytes_takes_the_memory_of_a_shard_or_two(tmp_path, parity_folder):
    write_checkpoint(tmp_path / "model", *CASES["experts_and_fused_qkv"])
    small = str(parity_folder("llada2_moe"))
    command = [
        sys.executable,
        "-c",
        CONVERTING,
        small,
        *map(str, (tmp_path / "model", tmp_path / "to")),
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, peak, size = map(int, out.split())
    assert size > 2e9
    print(f"converted {size / 1e9:.2f} GB, peak {(peak - before) / 3e8:.2f} shards")
    assert peak - before < 2.5 * 3e8


def test_what_does_not_fit_is_refused_before_a_weight_is_read(tmp_path, parity_folder, monkeypatch):
    tensors = load_file(parity_folder("sdar") / "model.safetensors")
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(read_config(parity_folder("sdar"))))
    monkeypatch.setattr(weights, "read", None)
    with pytest.raises(ModelError, match="stray"):
        load_model(tmp_path, "float32", "cpu")


@pytest.mark.parametrize("chunk", [1000, 7777])
@pytest.mark.parametrize("family", ["llada2_moe", "llada_moe", "dream"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_pieces_in_which_weights_are_read_do_not_matter(
    chunk, family, dtype, parity_folder, parity_model, monkeypatch
):
    monkeypatch.setattr(files, "CHUNK", chunk)
    loaded = load_model(parity_folder(family), dtype, "cpu")
    for name, value in parity_model(family).named_parameters():
        assert torch.equal(loaded.get_parameter(name), value.to(getattr(torch, dtype))), name


def test_the_files_are_closed_and_may_be_overwritten_after_loading(tmp_path, parity_folder):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((parity_folder("dream") / name).read_bytes())
    model = load_model(tmp_path, "float32", "cpu")
    ids = torch.arange(9)[None]
    before = model(ids)
    size = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "model.safetensors").write_bytes(b"\0" * size)
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_weights_of_a_type_that_has_no_meaning_alone_are_refused(kind, tmp_path):
    model = tiny_model("llada")
    (tmp_path / "config.json").write_text(json.dumps(llada.config_from_spec(model.spec)))
    weights.save_weights(model, tmp_path / "model.safetensors", llada.NAMES, torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.transformer.blocks.1.ff_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape).to(kind)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"ill-typed: {name}.*F64, F32, F16, BF16"):
        load_model(tmp_path, "float32", "cpu")


def test_progress_counts_the_stored_bytes_up_to_all_of_them(parity_folder):
    told = []
    load_model(
        parity_folder("dream"), "bfloat16", "cpu", lambda done, total: told.append((done, total))
    )
    done = [count for count, _ in told]
    assert done == sorted(done)
    tensors = load_file(parity_folder("dream") / "model.safetensors")
    total = sum(value.nbytes for value in tensors.values())
    assert {all_ for _, all_ in told} == {total}
    assert done[-1] == total


def terminal(is_terminal=True):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def test_a_long_load_draws_a_bar_with_its_bytes():
    console = terminal()
    with LoadingView("big", console, after_s=0) as progress:
        progress(500_000_000, 2_000_000_000)
        progress(2_000_000_000, 2_000_000_000)
    assert "loading big" in console.file.getvalue()
    assert "2.0/2.0 GB" in console.file.getvalue()


def test_a_short_load_draws_no_bar():
    console = terminal()
    with LoadingView("small", console, after_s=1000) as progress:
        progress(1, 2)
    assert "GB" not in console.file.getvalue()
    assert "bytes" not in console.file.getvalue()


def test_nothing_is_drawn_where_there_is_no_terminal():
    console = terminal(False)
    with LoadingView("big", console, after_s=0) as progress:
        progress(1, 2)
    assert console.file.getvalue() == ""


def test_a_failing_load_takes_its_bar_along():
    view = LoadingView("big", terminal(), after_s=0)

    def load():
        with view:
            view(1, 2)
            assert not view._bar.finished
            raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        load()
    assert not view._bar.live.is_started
