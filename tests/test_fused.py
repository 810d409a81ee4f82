"""Products that share an input, made one."""

from __future__ import annotations

import copy

import pytest
import torch
from pretend import can_pretend, pretend, to_device
from tiny import StubTokenizer, tiny_model

from unmask import LLM
from unmask.engine.weight_forms import prepare_weights
from unmask.models import avoid_attention_plans
from unmask.models.lora import LoraLinear
from unmask.models.transformer import attention, fuse_products

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}], ids=["plain", "qk_norm"])
def test_fused_products_give_the_same_logits(family, changes):
    model = tiny_model(family, **changes)
    with torch.inference_mode():
        expected = model(IDS)
        assert fuse_products(model) == 4
        assert float((model(IDS) - expected).abs().max()) <= 5e-5


def test_fused_products_hold_the_weights_once():
    model = tiny_model()
    names = set(model.state_dict())
    fuse_products(model)
    attention = model.layers[0].attn
    assert set(model.state_dict()) == names
    for layer in (attention.q, attention.k, attention.v):
        assert layer.weight.untyped_storage().data_ptr() == attention.fused.weight.data_ptr()


def test_weights_changed_in_place_change_the_fused_product():
    model, other = tiny_model(), tiny_model(seed=1)
    fuse_products(model)
    with torch.inference_mode():
        model.load_state_dict(other.state_dict())
        assert float((model(IDS) - other(IDS)).abs().max()) <= 5e-5


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_replaced_layer_is_used(part):
    model = tiny_model()
    fuse_products(model)
    attention = model.layers[1].attn
    adapter = LoraLinear(getattr(attention, part), 2, 2.0)
    torch.nn.init.normal_(adapter.a)
    torch.nn.init.normal_(adapter.b)
    setattr(attention, part, adapter)
    with torch.inference_mode():
        fused = model(IDS)
        attention.fused = None
        assert torch.equal(model(IDS), fused)
        setattr(attention, part, adapter.base)
        assert not torch.allclose(model(IDS), fused)


def test_gradients_reach_the_weights_of_fused_products():
    model = tiny_model()
    fuse_products(model)
    model.requires_grad_(True)
    model(IDS).square().sum().backward()
    attention, ffn = model.layers[0].attn, model.layers[0].ffn
    assert all(float(each.weight.grad.abs().max()) > 0 for each in (attention.q, ffn.gate, ffn.up))


def test_a_copy_of_a_fused_model_has_weights_of_its_own():
    model = tiny_model()
    fuse_products(model)
    copied = copy.deepcopy(model)
    with torch.inference_mode():
        expected = model(IDS)
        for value in copied.parameters():
            value.zero_()
        assert torch.equal(model(IDS), expected)
        assert float(copied(IDS).abs().max()) == 0


@pytest.mark.skipif(not can_pretend(), reason="no C++ compiler for the device guard")
def test_a_model_loaded_to_a_gpu_is_fused_and_a_network_of_the_caller_is_not():
    model = to_device(tiny_model())
    with pretend():
        llm = LLM(model, tokenizer=StubTokenizer())
        assert model.layers[0].attn.fused is None
        prepare_weights(llm.model, None, None, is_loaded=True)
    assert model.layers[0].attn.fused is not None
    assert model.layers[0].ffn.fused is not None


@pytest.mark.parametrize(("device", "calls"), [("cuda:0", [False]), ("cpu", [])])
def test_cudnn_attention_is_off_on_a_gpu_alone(device, calls, monkeypatch):
    found = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", found.append)
    avoid_attention_plans(torch.device(device))
    assert found == calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("num_queries", [1, 2, 32, 33, 64, 65, 97])
def test_no_bfloat16_kernel_of_the_cpu_is_left_with_one_query(
    num_queries, is_masked, dtype, monkeypatch
):
    """One query takes three times as long as two, since it goes another way through the kernel."""
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, []

    def recorded(q, *rest, **options):
        seen.append(q.shape[2])
        return kernel(q, *rest, **options)

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, num_queries, 6, 16, generator=generator).to(dtype)
    keys, values = torch.randn(2, 2, 3, 70, 16, generator=generator).to(dtype)
    visible = torch.rand(2, 1, num_queries, 70, generator=generator) < 0.5 if is_masked else None
    wanted = kernel(q.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    out = attention(q, keys, values, visible)
    assert out.shape == q.shape
    assert float((out - wanted.transpose(1, 2)).abs().max()) <= 2**-7
    is_left = dtype == torch.bfloat16 and num_queries % 32 == 1
    assert seen == [num_queries + is_left]
    if visible is not None:
        of_all = visible[:, :, :1]
        out = attention(q, keys, values, of_all)
        wanted = kernel(q.transpose(1, 2), keys, values, attn_mask=of_all, enable_gqa=True)
        assert float((out - wanted.transpose(1, 2)).abs().max()) <= 2**-7
