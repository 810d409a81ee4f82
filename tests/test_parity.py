"""The transformer against reference values of the families' own code (`fixtures/parity`).

Families whose attention is block-causal are in `test_parity_blocks.py`.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from unmask.errors import ConfigError
from unmask.models import load_model
from unmask.models.families import llada as llada_family
from unmask.models.weights import save_weights

FAMILIES = ("llada", "dream", "llada_moe")
ATOL = 5e-5


@pytest.fixture(scope="module")
def reference(parity_folder):
    return {
        family: {
            **load_file(parity_folder(family) / "inputs.safetensors"),
            **load_file(parity_folder(family) / "logits.safetensors"),
        }
        for family in FAMILIES
    }


def error(ours, theirs):
    return float((ours - theirs).abs().max())


def shifted(logits):
    """The prediction for position i, read from row i - 1 (position 0 from its own)."""
    return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_forward_gives_the_reference_logits(family, parity_model, reference):
    ours = parity_model(family)(reference[family]["full.input_ids"])
    assert error(ours, reference[family]["full.logits"]) <= ATOL


def test_dreams_raw_logits_shift_to_what_its_sampler_reads(parity_model, reference):
    ours = parity_model("dream")(reference["dream"]["full.input_ids"])
    assert error(shifted(ours), reference["dream"]["full.shifted_logits"]) <= ATOL
    assert error(ours, reference["dream"]["full.shifted_logits"]) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hidden_state_is_the_reference_state(family, parity_model, reference):
    states: list[torch.Tensor] = []
    parity_model(family)(reference[family]["full.input_ids"], hidden_states=states)
    wanted = reference[family]["full.hidden_states"]
    assert len(states) == len(wanted)
    for layer, (ours, theirs) in enumerate(zip(states, wanted, strict=True)):
        assert error(ours, theirs) <= ATOL, f"state {layer}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("as_bool", [True, False])
def test_a_padded_batch_gives_the_reference_logits(family, side, as_bool, parity_model, reference):
    values = reference[family]
    mask = values[f"{side}.attention_mask"]
    positions = values.get(f"{side}.tok_idx", values.get(f"{side}.position_ids"))
    ours = parity_model(family)(
        values[f"{side}.input_ids"], mask.bool() if as_bool else mask, positions
    )
    valid = values[f"{side}.valid"].bool()
    assert 0 < int((~valid).sum()) < valid.numel()
    assert error(ours[valid], values[f"{side}.logits"][valid]) <= ATOL
    assert torch.isfinite(ours).all(), "unused rows must not poison a batch"


@pytest.mark.parametrize("side", ["left", "right"])
def test_dreams_padded_shifted_logits_agree_where_they_are_defined(side, parity_model, reference):
    values = reference["dream"]
    ours = parity_model("dream")(values[f"{side}.input_ids"], values[f"{side}.attention_mask"])
    valid = values[f"{side}.valid"].bool()
    defined = valid.clone()
    defined[:, 1:] &= valid[
        :, :-1
    ]  # the first real row of a left-padded sequence reads a pad's row
    assert error(shifted(ours)[defined], values[f"{side}.shifted_logits"][defined]) <= ATOL


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_by_index_and_by_count_give_the_same_logits(side, parity_model, reference):
    """RoPE is relative, so LLaDA's plain 0..47 and the default count of real tokens agree."""
    values = reference["llada"]
    ids, mask = values[f"{side}.input_ids"], values[f"{side}.attention_mask"]
    valid = values[f"{side}.valid"].bool()
    by_count = parity_model("llada")(ids, mask)
    by_index = parity_model("llada")(ids, mask, torch.arange(ids.shape[1]).expand_as(ids))
    assert error(by_count[valid], values[f"{side}.logits"][valid]) <= ATOL
    assert error(by_index[valid], values[f"{side}.logits"][valid]) <= ATOL


def test_the_padding_mask_is_not_ignored(parity_model, reference):
    """LLaDA's first release and its copies ignore it; that is a known wrong target."""
    values = reference["llada"]
    valid = values["left.valid"].bool()
    padded_row = valid.any(dim=1) & ~valid.all(dim=1)
    at = valid & padded_row[:, None]
    ours = parity_model("llada")(values["left.input_ids"], values["left.attention_mask"])
    assert error(ours[at], values["left.logits_mask_ignored"][at]) > 1
    blind = parity_model("llada")(values["left.input_ids"])
    assert error(blind[at], values["left.logits_mask_ignored"][at]) <= ATOL


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(family, side, parity_model, reference):
    values = reference[family]
    ids, mask = values[f"{side}.input_ids"], values[f"{side}.attention_mask"]
    batched = parity_model(family)(ids, mask)
    for row in range(len(ids)):
        real = mask[row].bool()
        alone = parity_model(family)(ids[row : row + 1, real])
        assert error(batched[row : row + 1, real], alone) <= ATOL


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_4d_mask_says_who_sees_whom(family, parity_model, reference):
    values = reference[family]
    mask = values["block.attention_mask_4d"].bool()
    ours = parity_model(family)(values["full.input_ids"], mask)
    assert error(ours, values["block.logits"]) <= ATOL
    per_row = mask.expand(len(ours), -1, -1, -1)
    assert error(parity_model(family)(values["full.input_ids"], per_row), ours) <= 1e-5
    assert error(ours, values["full.logits"]) > 1


def test_dreams_own_4d_padding_mask_is_accepted(parity_model, reference):
    """Its pad queries see nothing, which may make their rows anything but must not touch real rows."""
    values = reference["dream"]
    for side in ("left", "right"):
        ours = parity_model("dream")(
            values[f"{side}.input_ids"],
            values[f"{side}.attention_mask_4d"].bool(),
            values[f"{side}.tok_idx"],
        )
        valid = values[f"{side}.valid"].bool()
        assert error(ours[valid], values[f"{side}.logits"][valid]) <= ATOL


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 47, dtype=torch.bool),
        torch.ones(48, dtype=torch.bool),
        torch.ones(2, 48, 48, dtype=torch.bool),
        torch.ones(1, 1, 48, 48),
        torch.ones(1, 1, 48, 48, dtype=torch.long),
        torch.ones(1, 1, 47, 48, dtype=torch.bool),
    ],
    ids=lambda mask: f"{tuple(mask.shape)}-{mask.dtype}",
)
def test_a_mask_of_another_shape_or_kind_is_refused(mask, parity_model, reference):
    with pytest.raises(ConfigError, match="attention_mask"):
        parity_model("llada")(reference["llada"]["full.input_ids"], mask)


@pytest.mark.parametrize(("family", "noted"), [("llada", 0.263), ("dream", 0.172)])
def test_bfloat16_is_as_near_as_the_references_own_bfloat16(
    family, noted, parity_folder, reference
):
    model = load_model(parity_folder(family), "bfloat16", "cpu")
    assert model.dtype == torch.bfloat16
    ours = model(reference[family]["full.input_ids"]).float()
    assert error(ours, reference[family]["full.logits"]) <= 1.5 * noted
    same = (ours - reference[family]["full.logits_bf16"]).abs()
    assert float(same.mean()) < 0.02


def test_llada_moes_bfloat16_is_the_references_own_bit_for_bit(parity_folder, reference):
    model = load_model(parity_folder("llada_moe"), "bfloat16", "cpu")
    ours = model(reference["llada_moe"]["full.input_ids"]).float()
    theirs = reference["llada_moe"]["full.logits_bf16"]
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # as where it was made
        assert torch.equal(ours, theirs)
    assert float((ours - theirs).abs().mean()) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_checkpoint_equals_the_single_file(
    family, tmp_path, parity_folder, parity_model, reference
):
    tensors = load_file(parity_folder(family) / "model.safetensors")
    shutil.copy(parity_folder(family) / "config.json", tmp_path)
    weight_map = {}
    names = sorted(tensors)
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[shard::3]}
        save_file(part, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_model(tmp_path, "float32", "cpu")
    ids = reference[family]["full.input_ids"]
    assert torch.equal(sharded(ids), parity_model(family)(ids))


VARIANTS = {
    "plain": {},
    "gqa": {"num_kv_heads": 2},
    "mqa": {"num_kv_heads": 1},
    "qkv_bias": {"qkv_bias": True},
    "all_biases": {"qkv_bias": True, "linear_bias": True, "norm_bias": True},
    "no_norm_bias": {"qkv_bias": True, "linear_bias": True},
    "tied": {"tie_embeddings": True},
    "low_precision_rope": {"rope_fp32": False},
    "gqa_tied_biases": {"num_kv_heads": 2, "tie_embeddings": True, "qkv_bias": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_llada_variant_survives_saving_and_loading(variant, tmp_path):
    model = tiny_model("llada", seed=3, **VARIANTS[variant])
    config = llada_family.config_from_spec(model.spec)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(model, tmp_path / "model.safetensors", llada_family.NAMES, torch.float32)
    loaded = load_model(tmp_path, "float32", "cpu")
    assert loaded.spec == model.spec
    ids = torch.randint(0, 58, (2, 9), generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(ids), model(ids))
    stored = load_file(tmp_path / "model.safetensors")
    assert ("model.transformer.ff_out.weight" in stored) != model.spec.tie_embeddings
    assert ("model.transformer.blocks.0.q_proj.bias" in stored) == model.spec.qkv_bias
    assert ("model.transformer.blocks.0.ff_out.bias" in stored) == model.spec.linear_bias
    assert ("model.transformer.ln_f.bias" in stored) == model.spec.norm_bias


def test_each_bias_takes_part():
    """Zeroing any bias vector changes the logits, so none is loaded and then forgotten."""
    changes = {"qkv_bias": True, "linear_bias": True, "norm_bias": True}
    ids = torch.arange(7)[None]
    plain = tiny_model("llada", **changes)(ids)
    biases = [
        name for name, _ in tiny_model("llada", **changes).named_parameters() if "bias" in name
    ]
    assert len(biases) == 2 * 9 + 2
    for name in biases:
        model = tiny_model("llada", **changes)
        dict(model.named_parameters())[name].zero_()
        assert error(model(ids), plain) > 1e-4, name
