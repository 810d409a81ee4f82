"""Adapters over weights of 8 and 4 bits: the same gradients as over the rounded weights, in less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_lora import filled
from tiny import tiny_model
from torch.utils.checkpoint import checkpoint

import unmask
from unmask.errors import ConfigError
from unmask.models.frozen_linear import FrozenLinear, plain_linear
from unmask.models.lora import adapters, add_adapters, merge_adapters, quantize_bases
from unmask.train.config import compose

KINDS = ("int8", "int4")
IDS = torch.arange(1, 13)[None]


def wide(**options):
    """A tiny model whose widths are multiples of a group."""
    return filled(d_ff=64, **options)


def rounded_pair(kind):
    """The same adapters over rounded weights: of few bits, and in float32."""
    ours, plain = wide(), wide()
    quantize_bases(ours, kind)
    for (_, small), (_, large) in zip(adapters(ours), adapters(plain), strict=True):
        large.base = plain_linear(small.base.weight, small.base.bias)
    return ours, plain


def gradients(model, run=None):
    model.zero_grad()
    logits = model(IDS) if run is None else run(model)
    logits.float().log_softmax(-1)[0, :, 7].sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_numbers_are_rounded_by_hand():
    linear = torch.nn.Linear(32, 1)
    with torch.no_grad():
        linear.weight.fill_(0.1)
        linear.weight[0, 0], linear.weight[0, 1] = -7.0, 3.4
    small = FrozenLinear(linear, "int4")
    assert small.weight[0, :3].tolist() == [-7.0, 3.0, 0.0]
    assert small.codes.nbytes == 16
    eight = FrozenLinear(linear, "int8")
    step = 7 / 127
    expected = torch.tensor([-7.0, round(3.4 / step) * step, round(0.1 / step) * step])
    torch.testing.assert_close(eight.weight[0, :3], expected)
    x = torch.randn(3, 32)
    torch.testing.assert_close(eight(x), x @ eight.weight.T + linear.bias)
    with torch.no_grad():
        linear.weight.zero_()
    assert not FrozenLinear(linear, "int4").weight.any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_over_the_rounded_weights(kind):
    ours, plain = rounded_pair(kind)
    expected = gradients(plain)
    assert len(expected) == 2 * 7 * 2
    found = gradients(ours)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)

    def again(model):
        return checkpoint(model, IDS, use_reentrant=False)

    for name, value in gradients(ours, again).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_fewer_bits_are_further_from_the_weights():
    weight = torch.randn(64, 64)
    linear = plain_linear(weight, None)
    errors = [(FrozenLinear(linear, kind).weight - weight).abs().mean() for kind in KINDS]
    assert 0 < errors[0] < errors[1] / 4 < 0.1


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.27), ("int4", 0.16)])
def test_memory_is_a_quarter_or_an_eighth_and_the_backward_pass_keeps_no_weights(kind, share):
    generator = torch.Generator().manual_seed(0)
    linear = plain_linear(torch.randn(256, 256, generator=generator), None)
    small = FrozenLinear(linear, kind)
    assert small.size_bytes < share * linear.weight.nbytes
    saved: list[int] = []

    def note(tensor):
        saved.append(tensor.numel())
        return tensor

    x = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = small(x)
    assert max(saved, default=0) < linear.weight.numel()
    result.sum().backward()
    wanted = small.weight.sum(0).expand(2, -1)
    torch.testing.assert_close(x.grad, wanted, atol=1e-4, rtol=1e-4)


def test_bf16_and_autocast_multiply_in_their_type():
    small = FrozenLinear(plain_linear(torch.randn(8, 32), torch.randn(8)), "int4")
    assert small(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert small(torch.randn(2, 32)).dtype == torch.bfloat16


def test_merging_gives_the_model_that_was_trained():
    ours, _ = rounded_pair("int4")
    with torch.no_grad():
        before = ours(IDS)
        merge_adapters(ours)
        torch.testing.assert_close(ours(IDS), before, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, FrozenLinear) for module in ours.modules())


def test_what_cannot_be_rounded_is_refused():
    model = tiny_model(d_ff=48)
    add_adapters(model, 2, 4.0)
    with pytest.raises(
        ConfigError, match="takes 48 numbers, which must be a multiple of 32; use int8"
    ):
        quantize_bases(model, "int4")
    with pytest.raises(ConfigError, match="no effect without adapters; add lora.rank=16"):
        compose(["lora.base=int8"])
    with pytest.raises(ConfigError, match="not for parallel=fsdp"):
        compose(["lora.base=int8", "lora.rank=2", "parallel=fsdp"])
    with pytest.raises(ConfigError, match="lora.base"):
        compose(["lora.base=int2", "lora.rank=2"])


def test_a_run_trains_the_adapters_and_writes_what_it_trained(tmp_path):
    rows = [{"prompt": "a", "response": "b"}]
    train = partial(unmask.train, rows, steps=2, batch_size=1, dtype="float32")
    done = train(output=tmp_path / "run", lora={"rank": 2, "base": "int8"})
    base, final = unmask.load_model("demo", "float32"), unmask.load_model(done.folder, "float32")
    names = ("layers.0.attn.q.weight", "embed.weight")
    old, new = (dict(model.named_parameters()) for model in (base, final))
    assert torch.equal(old[names[1]], new[names[1]])
    adapted = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    a, b = (next(v for k, v in adapted.items() if ".0." in k and end in k and "q_proj" in k)
            for end in ("lora_A", "lora_B"))  # fmt: skip
    rounded = FrozenLinear(plain_linear(old[names[0]].detach(), None), "int8").weight
    torch.testing.assert_close(new[names[0]], rounded + 2.0 * (b @ a))
