"""Weights in 8 and 4 bits: near the plain model, in less memory, refused where of no use."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref

import pytest
import torch
from tiny import FAMILIES, StubTokenizer, tiny_model, trace_of

from unmask import LLM
from unmask.cli.main import main
from unmask.engine.weight_forms import prepare_weights
from unmask.errors import ConfigError, DependencyError
from unmask.models import int8_linear, load_model, packed_weights, quantize
from unmask.models.adapters import AdaptedLinear, Selection, _Current
from unmask.models.int8_linear import Int8Linear, can_multiply
from unmask.models.lora import LowRank, add_adapters, matrices
from unmask.models.packed_weights import FEW_RUNGS, PackedLinear
from unmask.models.quantize import quantize_weights, weight_bytes


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


needs_int8 = pytest.mark.skipif(not can_multiply(), reason="this PyTorch has no 8-bit products")


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_an_eight_bit_product_is_near_the_plain_one(dtype, bias):
    """The rounding of 96 numbers a row, twice, is some 0.01 of the result."""
    plain = torch.nn.Linear(96, 80, bias=bias).to(dtype)
    x = torch.randn(3, 7, 96).to(dtype) * torch.logspace(-6, 6, 7)[:, None].to(dtype)
    found, wanted = Int8Linear(plain)(x), plain(x)
    assert (found.dtype, found.shape) == (dtype, wanted.shape)
    error = (found - wanted).float().norm(dim=-1) / wanted.float().norm(dim=-1)
    assert 0 < float(error.max()) < 0.03, "each row has its own scale"


@needs_int8
@torch.no_grad()
def test_an_eight_bit_row_has_the_same_bits_beside_any_others():
    product = Int8Linear(torch.nn.Linear(96, 80))
    x = torch.randn(600, 96)
    whole = product(x)
    for count in (1, 2, 3, 9, 33, 257, 599):
        assert torch.equal(product(x[:count]), whole[:count])
        assert torch.equal(product(1000 * x[-count:])[-1:], product(1000 * x[-1:]))
    x[4], x[5] = torch.nan, 0
    again = product(x[:9])
    assert again[4].isnan().all(), "nothing is hidden"
    assert torch.equal(again[5], product.bias), "a row of zeros"
    assert torch.equal(again[[0, 1, 2, 3, 6, 7, 8]], whole[[0, 1, 2, 3, 6, 7, 8]])
    assert product(x[:0]).shape == (0, 80)


@needs_int8
def test_eight_bit_products_have_few_numbers_of_rows(monkeypatch):
    """The kernels keep memory for every number of rows."""
    product, seen = Int8Linear(torch.nn.Linear(96, 80)), set()
    multiply = product._multiply
    monkeypatch.setattr(product, "_multiply", lambda x: (seen.add(len(x)), multiply(x))[1])
    for count in range(1, 600):
        product(torch.zeros(count, 96))
    assert seen == set(FEW_RUNGS)


@needs_int8
@pytest.mark.parametrize(
    ("family", "cache"),
    [
        *((family, cache) for family in FAMILIES for cache in ("none", "dual", "dllm", "d2cache")),
        ("sdar", "block_causal"),
    ],
)
def test_a_row_in_eight_bits_decodes_as_alone(family, cache):
    model = tiny_model("llada", 1, block_size=8) if family == "sdar" else tiny_model(family, 1)
    llm = LLM(model, tokenizer=StubTokenizer(), quantization="int8-dynamic")
    attn = llm.model.layers[0].attn
    assert isinstance(attn.q, Int8Linear)
    assert not isinstance(llm.model.lm_head, Int8Linear)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    options = {"gen_length": 16, "block_length": 8, "return_trace": True}
    together = llm.generate(prompts, "threshold", cache, **options)
    for prompt, out in zip(prompts, together, strict=True):
        alone = llm.generate([prompt], "threshold", cache, **options)[0]
        assert trace_of(out) == trace_of(alone)


@needs_int8
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_model_says_nearly_the_same_in_eight_bit_products(dtype):
    plain = load_model("demo", dtype, "cpu")
    plain_bytes = weight_bytes(plain)
    ids = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(0))
    ids[:, ::2] = plain.spec.mask_id
    wanted = plain(ids).float()
    model = load_model("demo", dtype, "cpu")
    now_bytes = quantize_weights(model, "int8-dynamic")
    said = model(ids).float()
    same = (wanted.argmax(-1) == said.argmax(-1)).float().mean().item()
    off = (wanted.softmax(-1) - said.softmax(-1)).abs().sum(-1).mean().item() / 2
    assert now_bytes == weight_bytes(model) < (0.4 if dtype == "float32" else 0.6) * plain_bytes
    assert same > 0.95
    assert 0 < off < 0.05


@needs_int8
def test_eight_bit_products_pack_the_head_alone(monkeypatch):
    monkeypatch.setattr(packed_weights, "LEAST_ELEMENTS", 1)
    for pack, kind in ((True, PackedLinear), (None, PackedLinear), (False, torch.nn.Linear)):
        model = tiny_model("llada")
        prepare_weights(model, "int8-dynamic", pack, is_loaded=True)
        assert type(model.lm_head) is kind
        assert {type(m) for m in model.layers.modules() if hasattr(m, "out_features")} == {
            Int8Linear
        }


def test_eight_bit_products_are_refused_where_there_are_none(monkeypatch, parity_folder):
    with pytest.raises(ConfigError, match="experts, which have most weights of llada_moe"):
        LLM(parity_folder("llada_moe"), device="cpu", quantization="int8-dynamic")
    with pytest.raises(ConfigError, match="8-bit products of a CPU with VNNI, not meta.*'int8'"):
        quantize_weights(tiny_model("llada").to("meta"), "int8-dynamic")
    monkeypatch.setattr(quantize, "can_multiply", lambda: False)
    with pytest.raises(ConfigError, match="this one or this PyTorch has none"):
        quantize_weights(tiny_model("llada"), "int8-dynamic")


@needs_int8
def test_adapters_are_put_beside_eight_bit_products():
    model = tiny_model("llada")
    quantize_weights(model, "int8-dynamic")
    names = {name for name, _, _ in matrices(model)}
    assert names == {name for name, _, _ in matrices(tiny_model("llada"))}
    part = LowRank(torch.randn(2, 32), torch.randn(32, 2), 0.5)
    linear, current = model.layers[0].attn.q, _Current()
    adapted = AdaptedLinear(linear, [part], current, model.embed.weight)
    x = torch.randn(3, 32)
    assert torch.equal(adapted(x), linear(x))
    current.selection = Selection(0, 0, None)
    wanted = linear(x) + 0.5 * x @ part.a.T @ part.b.T
    assert torch.allclose(adapted(x), wanted, atol=1e-5)


@needs_int8
def test_a_plain_layer_is_freed_as_soon_as_it_is_replaced(monkeypatch):
    """The peak of memory stays near that of the plain model."""
    model, alive = tiny_model("llada"), []
    plain = [weakref.ref(m.weight) for m in model.layers.modules() if hasattr(m, "out_features")]

    class Counting(Int8Linear):
        def __init__(self, layer):
            super().__init__(layer)
            alive.append(sum(each() is not None for each in plain))

    monkeypatch.setattr(int8_linear, "Int8Linear", Counting)
    int8_linear.use_int8_products(model, "lm_head")
    assert alive == list(range(len(plain), 0, -1))


@needs_int8
def test_adapters_are_not_trained_over_eight_bit_products():
    model = tiny_model("llada")
    quantize_weights(model, "int8-dynamic")
    with pytest.raises(ConfigError, match=r"no gradients.*lora.base='int8'"):
        add_adapters(model, 2, 4.0)


SATURATION = """
from unmask.models.int8_linear import can_multiply
print(can_multiply())
"""


def test_eight_bit_products_that_saturate_are_not_offered():
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", SATURATION]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert run.stdout == "False\n"
