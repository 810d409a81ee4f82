"""Weights in 8 and 4 bits: near the plain model, in less memory, refused where of no use."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import tiny_model

from unmask import LLM
from unmask.cli.main import main
from unmask.errors import ConfigError, DependencyError
from unmask.models import load_model
from unmask.models.quantize import quantize_weights


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(DependencyError, match=r"torchao.*pip install 'unmask\[quantize\]'"):
        quantize_weights(tiny_model("llada"), "int8")


@pytest.mark.parametrize("kind", ["int2", "INT8", "fp8", ""])
def test_a_kind_that_there_is_not_is_refused(kind):
    with pytest.raises(ConfigError, match="int8"):
        quantize_weights(tiny_model("llada"), kind)


def test_four_bits_need_bfloat16_and_widths_that_split(monkeypatch):
    with pytest.raises(ConfigError, match=r"float32 weights on cpu.*dtype='bfloat16'"):
        quantize_weights(tiny_model("llada"), "int4")
    odd = tiny_model("llada", d_ff=40).bfloat16()
    with pytest.raises(ConfigError, match=r"ffn.gate takes 32 numbers and returns 40.*32 and 16"):
        quantize_weights(odd, "int4")
    narrow = tiny_model("llada", d_ff=48).bfloat16()
    with pytest.raises(ConfigError, match=r"ffn.down takes 48 numbers and returns 32"):
        quantize_weights(narrow, "int4")
    monkeypatch.setitem(sys.modules, "torchao.prototype.quantization.int4", None)
    with pytest.raises(DependencyError, match="torchao"):
        quantize_weights(tiny_model("llada", d_ff=64).bfloat16(), "int4")


def test_a_model_with_experts_is_refused_by_its_family(parity_folder):
    with pytest.raises(ConfigError, match="experts, which have most weights of llada_moe"):
        LLM(parity_folder("llada_moe"), device="cpu", quantization="int8")


def test_packing_and_quantizing_exclude_each_other(parity_folder):
    with pytest.raises(ConfigError, match="pack_weights=True"):
        LLM(parity_folder("dream"), device="cpu", quantization="int8", pack_weights=True)


def test_a_trained_model_says_nearly_the_same_in_eight_bits():
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    model = load_model("demo", "float32", "cpu")
    plain_bytes = sum(value.nbytes for value in model.parameters())
    ids = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(0))
    ids[:, ::2] = model.spec.mask_id
    plain = model(ids)
    now_bytes = quantize_weights(model, "int8")
    rough = model(ids)
    same = (plain.argmax(-1) == rough.argmax(-1)).float().mean().item()
    off = (plain.softmax(-1) - rough.softmax(-1)).abs().sum(-1).mean().item() / 2
    print(f"bytes {now_bytes / plain_bytes:.3f}, same token {same:.3f}, total variation {off:.4f}")
    assert now_bytes < 0.4 * plain_bytes
    assert same > 0.95
    assert off < 0.05


def test_four_bits_take_less_than_eight_and_say_roughly_the_same():
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    ids = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(0))
    plain = load_model("demo", "bfloat16", "cpu")
    ids[:, ::2] = plain.spec.mask_id
    wanted, sizes = plain(ids).float(), {}
    for kind in ("int8", "int4"):
        model = load_model("demo", "bfloat16", "cpu")
        sizes[kind] = quantize_weights(model, kind)
        said = model(ids).float()
        same = (wanted.argmax(-1) == said.argmax(-1)).float().mean().item()
        print(kind, sizes[kind], f"same token {same:.3f}")
        assert same > (0.95 if kind == "int8" else 0.75)
    assert sizes["int4"] < 0.85 * sizes["int8"]
    assert sizes["int4"] < 0.5 * sum(value.nbytes for value in plain.parameters())


@pytest.mark.parametrize(("kind", "dtype"), [("int8", None), ("int4", "bfloat16")])
def test_an_answer_in_few_bits_is_decoded_as_ever(kind, dtype):
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    llm = LLM("demo", device="cpu", dtype=dtype, quantization=kind)
    out = llm.generate("Tom has 3 boxes.", "threshold", "dual", gen_length=32)[0]
    assert out.num_forwards > 0
    assert llm.spec.mask_id not in out.canvas_ids[out.prompt_length :]


def test_the_commands_take_it_as_a_flag_or_a_key(capsys):
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    text = ["generate", "Tom has 3 boxes.", "--gen-length", "8", "--device", "cpu"]
    assert main([*text, "--quantize", "int8"]) == 0
    first = capsys.readouterr().out
    assert main([*text, "quantization=int8"]) == 0
    assert capsys.readouterr().out == first
    assert main(["infill", "Tom has {2} boxes.", "--dtype", "bfloat16", "--quantize", "int4"]) == 0
    assert main([*text, "--quantize", "int4"]) == 2
    assert "bfloat16" in capsys.readouterr().err
    assert main([*text, "--quantize", "int9"]) == 2
    assert "int8" in capsys.readouterr().err
