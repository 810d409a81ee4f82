"""Packed weights give what plain ones give, and step aside when they cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_llm, tiny_model

from unmask import LLM
from unmask.errors import ConfigError
from unmask.models import adapters
from unmask.models import packed_weights as packing
from unmask.models.families import llada
from unmask.models.lora import LowRank
from unmask.models.spec import ExpertSpec


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(packing, "LEAST_ELEMENTS", 1)


pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no packed kernels"
)


needs_bfloat16 = pytest.mark.skipif(
    torch.bfloat16 not in packing.packable_dtypes(),
    reason="this CPU has no packed bfloat16 kernels",
)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_packed_weights_decode_the_same(family, dtype, everything_is_large):
    plain = tiny_llm(family, 1)
    packed, plain_again = (
        LLM(tiny_model(family, 1).to(dtype), tokenizer=plain.tokenizer, pack_weights=pack)
        for pack in (True, False)
    )
    kinds = [isinstance(m, packing.PackedLinear) for m in packed.model.modules()]
    assert sum(kinds) == 2 * 7 + 1
    assert not any(isinstance(m, packing.PackedLinear) for m in plain_again.model.modules())
    for cache in ("none", "dual"):
        ours, theirs = (
            llm.generate([[1, 2, 3], [4]], "vanilla", cache, gen_length=16, block_length=8)
            for llm in (packed, plain_again)
        )
        assert [o.canvas_ids for o in ours] == [o.canvas_ids for o in theirs]


def test_packing_keeps_names_values_and_rows(everything_is_large):
    model = tiny_model("dream", 2)
    names, x = list(model.state_dict()), torch.randn(3, 5, model.spec.d_model)
    wanted = model.layers[0].attn.q(x)
    assert packing.pack_weights(model) > 0
    assert list(model.state_dict()) == names
    with torch.inference_mode():
        found = model.layers[0].attn.q(x)
        assert model.layers[0].attn.q(x[:0]).shape == (0, 5, found.shape[-1])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_changed_weight_is_not_answered_from_the_old_copy(everything_is_large):
    model = tiny_model("llada", 2)
    packing.pack_weights(model)
    linear, x = model.layers[0].ffn.up, torch.randn(4, model.spec.d_model)
    linear.weight.mul_(2)
    with torch.inference_mode():
        assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.weight))
    assert packing.can_pack(model)


def test_gradients_go_through_the_plain_kernel(everything_is_large):
    model = tiny_model("llada", 2)
    packing.pack_weights(model)
    linear = model.layers[0].ffn.up
    x = torch.randn(4, model.spec.d_model, requires_grad=True)
    linear(x).sum().backward()
    assert torch.allclose(x.grad, linear.weight.sum(dim=0).expand(4, -1), atol=1e-5)


def groups_of(model):
    return [(layer.attn, layer.ffn) for layer in model.layers]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_layers_with_one_input_are_packed_as_one_matrix_and_held_once(
    family, dtype, everything_is_large
):
    model = tiny_model(family, 3).to(dtype)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        wanted = model(ids)
    size_bytes = packing.pack_weights(model)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert size_bytes == sum(m.weight.nbytes for m in linear), "each weight is counted once"
    for attn, ffn in groups_of(model):
        assert isinstance(attn.fused, packing.PackedGroup)
        assert isinstance(ffn.fused, packing.PackedGroup)
        assert attn.o.packed is not None
    with torch.inference_mode():
        gap = (model(ids) - wanted).abs().max() / wanted.abs().max()
    assert float(gap) <= (1e-5 if dtype == torch.float32 else 2**-5)
    lazy = [m for attn, ffn in groups_of(model) for m in (attn.q, attn.k, attn.v, ffn.gate, ffn.up)]
    assert all(m.packed is None for m in lazy), "a forward uses the copy of the group alone"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_of_a_group_used_alone_gives_the_bits_of_the_group(dtype, everything_is_large):
    attn = packed_model("dream", dtype).layers[0].attn
    x = torch.randn(2, 9, 32).to(dtype)
    with torch.inference_mode():
        together = attn.fused(x)
        alone = torch.cat([layer(x) for layer in (attn.q, attn.k, attn.v)], dim=-1)
    assert torch.equal(together, alone)
    assert attn.q.packed is not None, "packed when it was first used alone"


def packed_model(family, dtype=torch.float32):
    model = tiny_model(family, 3).to(dtype)
    packing.pack_weights(model)
    return model


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_group_steps_aside_once_a_parameter_changed_and_is_packed_anew(part, everything_is_large):
    model = packed_model("dream")
    attn = model.layers[0].attn
    x, parts = torch.randn(3, 32), (attn.q, attn.k, attn.v)
    with torch.inference_mode():
        assert attn.fused.fits(x, *parts)
        getattr(attn.k, part).add_(1)
        assert not attn.fused.fits(x, *parts)
        wanted = attn.k(x)
    if part == "weight":
        packing.pack_weights(model)
        parts = (attn.q, attn.k, attn.v)
        with torch.inference_mode():
            assert attn.fused.fits(x, *parts)
            found = attn.fused(x)[:, 32:48]
            assert torch.allclose(found, wanted, atol=1e-5)


def test_a_group_steps_aside_for_other_layers_inputs_and_gradients(everything_is_large):
    model = packed_model("llada")
    ffn, x = model.layers[0].ffn, torch.randn(3, 32)
    assert not ffn.fused.fits(x, ffn.gate, ffn.up), "gradients are on"
    with torch.inference_mode():
        assert ffn.fused.fits(x, ffn.gate, ffn.up)
        assert not ffn.fused.fits(x.double(), ffn.gate, ffn.up)
        assert not ffn.fused.fits(x[:0], ffn.gate, ffn.up), "no rows"
        assert ffn(x[:0]).shape == (0, 32)
        assert not ffn.fused.fits(x, ffn.up, ffn.gate), "other layers"
        ffn.up = torch.nn.Linear(32, 48, bias=False).requires_grad_(False)
        expected = ffn.down(torch.nn.functional.silu(ffn.gate(x)) * ffn.up(x))
        assert torch.allclose(ffn(x), expected, atol=1e-5)


def test_gradients_reach_the_parameters_of_a_packed_group(everything_is_large):
    model = packed_model("dream").requires_grad_(True)
    model(torch.tensor([[3, 1, 4]])).square().sum().backward()
    for attn, ffn in groups_of(model):
        assert all(float(m.weight.grad.abs().max()) > 0 for m in (attn.q, attn.k, attn.v, ffn.up))


EXPERTS = ExpertSpec(num_experts=6, num_chosen=3, d_ff=24, score="softmax", renormalize=True)


@needs_bfloat16
def test_packed_experts_in_bfloat16_differ_by_rounding_at_most(everything_is_large):
    plain, model = (tiny_model("llada", 2, experts=EXPERTS).bfloat16() for _ in range(2))
    packing.pack_weights(model)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        wanted = plain(ids)
        assert float((model(ids) - wanted).abs().max()) <= 2**-5 * float(wanted.abs().max())


def test_packed_experts_say_the_same_and_each_used_one_multiplies_once(
    everything_is_large, monkeypatch
):
    plain, model = (tiny_model("llada", 2, experts=EXPERTS) for _ in range(2))
    packing.pack_weights(model)
    bank = model.layers[1].ffn.experts
    assert isinstance(bank.gate, packing.PackedStack)
    assert list(model.state_dict()) == list(plain.state_dict())
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert float((model(ids) - plain(ids)).abs().max()) <= 1e-5
        x, seen = torch.randn(7, model.spec.d_model), []
        times = packing.PackedStack.times
        monkeypatch.setattr(
            packing.PackedStack,
            "times",
            lambda self, expert, rows: seen.append((id(self), expert)) or times(self, expert, rows),
        )
        model.layers[1].ffn(x)
        assert len(seen) == len(set(seen)) == 3 * len({expert for _, expert in seen})
    bank.up.weight.mul_(2)
    with torch.inference_mode():
        rows = x[:, : bank.up.weight.shape[-1]]
        wanted = torch.nn.functional.linear(rows, bank.up.weight[3])
        assert torch.equal(bank.up.times(3, rows), wanted), "not from the old copy"


def test_packing_on_demand_is_refused_where_it_has_no_effect():
    with pytest.raises(ConfigError, match="pack_weights=True cannot pack this model's float32"):
        LLM(tiny_model("llada"), pack_weights=True)


def test_packing_float16_is_refused_with_the_dtypes_that_can_be(everything_is_large):
    model = tiny_model("llada").half()
    with pytest.raises(ConfigError, match=r"float16 weights on cpu: .*\(here float32"):
        LLM(model, pack_weights=True)
    assert not packing.can_pack(model)
    LLM(model)
    assert not any(isinstance(m, packing.PackedLinear) for m in model.modules())


@needs_bfloat16
def test_bfloat16_is_packed_by_default_like_float32(everything_is_large):
    for dtype in (torch.float32, torch.bfloat16):
        llm = LLM(tiny_model("llada").to(dtype))
        assert llm.model.lm_head.packed.dtype == dtype
        assert llm.model.layers[0].attn.fused.packed.dtype == dtype


def test_bfloat16_is_packed_only_where_the_cpu_multiplies_it(everything_is_large, monkeypatch):
    monkeypatch.setattr(packing, "packable_dtypes", lambda: (torch.float32,))
    assert not packing.can_pack(tiny_model("llada").bfloat16())
    assert packing.can_pack(tiny_model("llada"))


def test_nothing_is_packed_without_the_kernels(everything_is_large, monkeypatch):
    monkeypatch.setattr(packing, "_ops", object)
    assert packing.packable_dtypes() == ()
    assert not packing.can_pack(tiny_model("llada"))


@needs_bfloat16
@pytest.mark.parametrize("bias", [False, True])
def test_packed_bfloat16_differs_by_its_rounding_at_most(bias, everything_is_large):
    plain = torch.nn.Linear(160, 96, bias=bias).bfloat16().requires_grad_(False)
    linear = packing.PackedLinear(plain)
    with torch.inference_mode():
        for count in (1, 2, 7, 9, 33, 300):
            x = torch.randn(count, 160).bfloat16()
            exact = torch.nn.functional.linear(x.double(), plain.weight.double())
            exact = exact + plain.bias.double() if bias else exact
            found = linear(x)
            assert found.dtype == torch.bfloat16
            error = (found - exact).abs() / exact.abs().clamp(min=0.25)
            assert float(error.max()) <= 2**-7, count


@needs_bfloat16
def test_a_model_cast_after_packing_uses_its_own_weights(everything_is_large):
    linear = packing.PackedLinear(torch.nn.Linear(64, 64).requires_grad_(False))
    linear.to(torch.bfloat16)
    x = torch.randn(3, 64)
    with torch.inference_mode():
        found = linear(x.bfloat16())
        assert torch.equal(
            found, torch.nn.functional.linear(x.bfloat16(), linear.weight, linear.bias)
        )
        with pytest.raises(RuntimeError, match="dtype"):
            linear(x)


@pytest.fixture(params=["few", "many"])
def rungs(request, monkeypatch):
    """The numbers of rows of products with small and with large matrices."""
    monkeypatch.setattr(packing, "LEAST_ELEMENTS", 1)
    if request.param == "few":
        return packing.FEW_RUNGS
    monkeypatch.setattr(packing, "MANY_RUNGS_ELEMENTS", 1)
    return packing.RUNGS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_a_packed_row_has_the_same_bits_among_any_number_of_rows(dtype, rungs):
    """Rows are padded to a rung and cut into pieces: no row may notice."""
    with torch.inference_mode(mode=False):
        plain = torch.nn.Linear(48, 64).to(dtype).requires_grad_(False)
        linear = packing.PackedLinear(plain)
    most = rungs[-1]
    x = torch.randn(2 * most + 3, 48).to(dtype)
    whole = linear(x)
    assert float((whole - plain(x)).abs().max()) <= (1e-5 if dtype == torch.float32 else 2**-6)
    for count in (1, 3, 8, 9, 17, 33, 65, 129, 257, most, most + 1, len(x)):
        assert torch.equal(linear(x[:count]), whole[:count]), count
        assert torch.equal(linear(x[-count:]), whole[-count:]), count
    x[4] = torch.nan
    others = [row for row in range(9) if row != 4]
    assert torch.equal(linear(x[:9])[others], whole[others]), "a row of NaN stays alone"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_products_have_few_numbers_of_rows(dtype, rungs, monkeypatch):
    """The kernels keep half a megabyte for every number of rows that they have met."""
    seen = set()
    product = torch.ops.mkldnn._linear_pointwise

    class Ops:
        @staticmethod
        def _linear_pointwise(x, *rest):
            seen.add(len(x))
            return product(x, *rest)

    linear = packing.PackedLinear(torch.nn.Linear(8, 8).to(dtype).requires_grad_(False))
    monkeypatch.setattr(packing, "_ops", lambda: Ops)
    with torch.inference_mode():
        for count in range(1, rungs[-1] + 260):
            assert linear(torch.zeros(count, 8, dtype=dtype)).shape == (count, 8)
    assert seen == set(rungs)
    added, most = (1 / 4, 32) if rungs is packing.RUNGS else (1 / 2, 15)
    assert len(seen) <= most
    steps = zip(rungs, rungs[1:], strict=False)
    assert all(high <= (1 + added) * (low + 1) for low, high in steps), "little is added"


GROWTH = """
import sys

import torch
from unmask.models.packed_weights import PackedLinear

def resident_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

dtype = getattr(torch, sys.argv[1])
linear = PackedLinear(torch.nn.Linear(256, 256, dtype=dtype).requires_grad_(False))
with torch.inference_mode():
    linear(torch.randn(400, 256, dtype=dtype))
    before = resident_mb()
    for count in range(1, 400):
        linear(torch.zeros(count, 256, dtype=dtype))
print(resident_mb() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_new_numbers_of_rows_take_little_memory(dtype):
    """399 of them took 200 MB unpadded; here they add at most that of the rungs."""
    command = [sys.executable, "-c", GROWTH, dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 25


def test_a_packed_matrix_of_adapted_layers_is_given_back(everything_is_large, monkeypatch):
    model = packed_model("llada")
    part = LowRank(torch.randn(2, 32), torch.randn(32, 2), 0.5)
    found = {f"layers.0.attn.{name}": part for name in ("q", "v")}
    monkeypatch.setattr(adapters, "read_adapters", lambda model, names, folder: found)
    with torch.inference_mode():
        ids = torch.tensor([[3, 1, 4]])
        wanted = model(ids)
        bank = adapters.AdapterBank(model, llada.NAMES, {"x": Path("x")}, max_rank=2)
        assert model.layers[0].attn.fused is None
        assert model.layers[0].ffn.fused is not None
        assert model.layers[1].attn.fused is not None
        assert torch.allclose(model(ids), wanted, atol=1e-5), "without an adapter nothing changes"
        with bank.only("x"):
            assert not torch.allclose(model(ids), wanted, atol=1e-2)
