"""Weights in 8 bits: near the plain model, a quarter of its float32 blocks, refused where of no use."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import tiny_model

from unmask import LLM
from unmask.errors import ConfigError, DependencyError
from unmask.models import load_model
from unmask.models._quantize import quantize_weights


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(DependencyError, match=r"torchao.*pip install 'unmask\[quantize\]'"):
        quantize_weights(tiny_model("llada"), "int8")


@pytest.mark.parametrize("kind", ["int4", "INT8", "fp8", ""])
def test_a_kind_that_there_is_not_is_refused(kind):
    with pytest.raises(ConfigError, match="allowed: int8"):
        quantize_weights(tiny_model("llada"), kind)


def test_a_model_with_experts_is_refused_by_its_family(parity_folder):
    with pytest.raises(ConfigError, match="experts of llada_moe"):
        LLM(parity_folder("llada_moe"), device="cpu", quantize="int8")


def test_packing_and_quantizing_exclude_each_other(parity_folder):
    with pytest.raises(ConfigError, match="pack_weights=True"):
        LLM(parity_folder("dream"), device="cpu", quantize="int8", pack_weights=True)


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


def test_an_answer_in_eight_bits_is_decoded_as_ever():
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    llm = LLM("demo", device="cpu", quantize="int8")
    out = llm.generate("Tom has 3 boxes.", "threshold", "dual", gen_length=32)[0]
    assert out.num_forwards > 0
    assert llm.spec.mask_id not in out.canvas_ids[out.prompt_length :]
