"""LoRA in PEFT's files: what PEFT computes from ours, and ours from PEFT's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model

import unmask
from unmask.errors import ConfigError, ModelError
from unmask.models import read_config
from unmask.models.families import dream, llada, sdar
from unmask.models.lora import (
    LoraLinear,
    adapters,
    add_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from unmask.models.registry import find_family

IDS = torch.arange(1, 13)[None]


def filled(family="llada", **changes):
    """A model whose adapters are not zero."""
    model = tiny_model(family, **changes)
    add_adapters(model, 4, 8.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator) * 0.1)
    return model


def test_a_new_adapter_changes_nothing_and_only_it_is_trained():
    model = tiny_model()
    before = model(IDS)
    add_adapters(model, 4, 8.0)
    assert torch.equal(model(IDS), before)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert all(name.endswith((".a", ".b")) for name in trained)


def test_merging_adds_scale_times_b_a_by_hand():
    linear = torch.nn.Linear(3, 2, bias=False)
    adapter = LoraLinear(linear, rank=1, alpha=3.0)
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 2.0, 0.0]]))
        adapter.b.copy_(torch.tensor([[1.0], [-1.0]]))
    expected = 3.0 * torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])
    assert torch.allclose(adapter.delta(), expected)
    x = torch.randn(4, 3)
    assert torch.allclose(adapter(x), linear(x) + x @ expected.T, atol=1e-6)
    model = filled()
    with torch.no_grad():
        before = model(IDS)
        merge_adapters(model)
        torch.testing.assert_close(model(IDS), before, atol=1e-4, rtol=1e-4)
    assert not list(adapters(model))


@pytest.mark.parametrize("targets", [("q", "k", "v", "o"), ("v",), ("q", "v", "o")])
def test_matrices_that_a_family_stores_as_one_have_one_adapter_there(
    tmp_path, parity_folder, targets
):
    folder = parity_folder("llada2_moe")
    names = find_family(read_config(folder), folder).names
    model, other = (unmask.load_model(folder, "float32") for _ in range(2))
    add_adapters(model, 4, 8.0, targets)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(
                torch.randn(adapter.b.shape, generator=torch.Generator().manual_seed(3))
            )
    save_adapters(model, names, tmp_path, "base")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    fused = {key for key in stored if "query_key_value" in key}
    assert len(fused) == 2 * len(model.layers)
    num_fused = len({"q", "k", "v"} & set(targets))
    assert {len(stored[key]) for key in fused if "lora_A" in key} == {4 * num_fused}
    load_adapters(other, names, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(other(IDS), model(IDS), atol=1e-4, rtol=1e-4)
    found = {name: adapter.delta() for name, adapter in adapters(other)}
    for name, adapter in adapters(model):
        torch.testing.assert_close(found[name], adapter.delta())
    unadapted = [delta for name, delta in found.items() if name.split(".")[-1] not in targets]
    assert all(not delta.any() for delta in unadapted)


@pytest.mark.parametrize(("family", "names"), [("llada", llada.NAMES), ("dream", dream.NAMES)])
def test_saved_adapters_load_again(tmp_path, family, names):
    model = filled(family)
    save_adapters(model, names, tmp_path, "base")
    other = tiny_model(family)
    load_adapters(other, names, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(other(IDS), model(IDS))
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    published = names[4][0].split(".{i}")[0]
    assert all(key.startswith("base_model.model.model.") for key in keys)
    assert any(published.removeprefix("model.") in key for key in keys)


def theirs_and_ours(folder):
    """A tiny Qwen3 of transformers, and the same network here."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from unmask.models.families import a2d
    from unmask.models.transformer import Transformer
    from unmask.models.weights import load_weights

    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, eos_token_id=59,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    spec = a2d.spec_from_config({**a2d.adapted_config(stored), "mask_token_id": 60})
    with torch.device("meta"):
        ours = Transformer(spec)
    load_weights(ours, folder, a2d.NAMES, torch.float32, torch.device("cpu"))
    return theirs, ours.eval()


CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_our_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    theirs, ours = theirs_and_ours(tmp_path / "base")
    add_adapters(ours, 4, 8.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, adapter in adapters(ours):
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator) * 0.1)
        save_adapters(ours, sdar.NAMES, tmp_path / "adapter", "base")
        wrapped = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
        torch.testing.assert_close(ours(IDS, CAUSAL), wrapped(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_loads_here(tmp_path, rslora):
    peft = pytest.importorskip("peft")
    theirs, ours = theirs_and_ours(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
    )  # fmt: skip
    wrapped = peft.get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    load_adapters(ours, sdar.NAMES, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS, CAUSAL), wrapped(IDS).logits, atol=1e-4, rtol=1e-4)


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no adapter of PEFT can be read"):
        load_adapters(tiny_model(), llada.NAMES, tmp_path)
    save_adapters(filled(), llada.NAMES, tmp_path, "base")
    with pytest.raises(ModelError, match="fit no matrix of the model"):
        load_adapters(tiny_model("dream"), dream.NAMES, tmp_path)
    with pytest.raises(ModelError, match="of another size"):
        load_adapters(tiny_model(d_ff=40), llada.NAMES, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"lora_alpha": [8]}, "lora_alpha"),
        ({"lora_alpha": "x" * 9999}, "lora_alpha"),
        ({"use_dora": True}, "use_dora of adapter_config.json is not supported"),
        ({"bias": "all"}, "bias of adapter_config.json is not supported"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=message):
            load_adapters(tiny_model(), llada.NAMES, tmp_path)
    with pytest.raises(ConfigError, match="the model has none of these"):
        add_adapters(tiny_model(), 4, 8.0, ("head",))


def test_a_run_writes_an_adapter_that_gives_its_merged_model(tmp_path):
    import unmask

    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    done = unmask.train(
        rows, output=tmp_path / "run", steps=2, batch_size=2, lora={"rank": 2}, **{"optim.lr": 0.01}
    )
    merged = unmask.LLM(done.folder, dtype="float32").model
    adapted = unmask.LLM("demo", dtype="float32", lora=done.folder / "adapter").model
    plain = unmask.load_model("demo", "float32")
    with torch.no_grad():
        ids = torch.arange(5, 25)[None]
        difference = (adapted(ids) - plain(ids)).abs().max()
        assert difference > 0.05
        # The merged weights were rounded to the checkpoint's bfloat16.
        assert (merged(ids) - adapted(ids)).abs().max() < difference / 2 + 0.1
