"""LLaDA-MoE, LLaDA2, SDAR and Fast-dLLM v2: released sizes and ids, names, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import LLM
from unmask.errors import CheckpointWarning, ModelError
from unmask.models import families, load_model, read_config, read_spec, registry
from unmask.models.families import fast_dllm_v2, llada2, llada_moe, sdar
from unmask.models.transformer import Transformer
from unmask.models.weight_names import layout
from unmask.models.weights import save_weights

ABSENT = object()
FAMILIES = {
    "llada_moe": llada_moe,
    "llada2_moe": llada2,
    "sdar": sdar,
    "fast_dllm_v2": fast_dllm_v2,
}

# released configurations: the keys that say something about the network

LLADA_MOE = {
    "architectures": ["LLaDAMoEModel"],
    "model_type": "llada",
    "expert_intermediate_size": 1024,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "moe_layer_freq": [1] * 16,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000,
    "vocab_size": 157184,
}
LLADA2_MINI = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 600000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "topk_group": 4,
    "use_bias": False,
    "use_qkv_bias": False,
    "vocab_size": 157184,
}
LLADA2_FLASH = LLADA2_MINI | {
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
SDAR_4B = {
    "architectures": ["SDARForCausalLM"],
    "model_type": "sdar",
    "attention_bias": False,
    "block_size": 4,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "vocab_size": 151936,
}
SDAR_8B = SDAR_4B | {"hidden_size": 4096, "intermediate_size": 12288}
FAST_7B = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "model_type": "Fast_dLLM_Qwen",
    "bd_size": 32,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "layer_types": ["full_attention"] * 28,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151645,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "vocab_size": 152064,
}


def shapes_of(model):
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "config", "parameters", "tensors", "examples"),
    [
        (
            llada_moe,
            LLADA_MOE,
            7_356_880_896,
            3 + 16 * (9 + 64 * 3),
            {
                "model.layers.15.mlp.gate.weight": (64, 2048),
                "model.layers.15.mlp.experts.63.down_proj.weight": (2048, 1024),
                "model.layers.0.self_attn.q_norm.weight": (128,),
                "lm_head.weight": (157184, 2048),
            },
        ),
        (
            sdar,
            SDAR_4B,
            4_411_424_256,
            399,
            {
                "model.layers.35.self_attn.q_proj.weight": (4096, 2560),
                "model.layers.0.self_attn.o_proj.weight": (2560, 4096),
                "model.layers.0.self_attn.k_norm.weight": (128,),
            },
        ),
        (sdar, SDAR_8B, 8_190_735_360, 399, {}),
        (
            fast_dllm_v2,
            FAST_7B,
            7_615_616_512,
            339,
            {"model.layers.27.self_attn.k_proj.bias": (512,)},
        ),
        (
            llada2,
            LLADA2_MINI,
            16_255_643_392,
            None,
            {
                "model.word_embeddings.weight": (157184, 2048),
                "model.layers.19.attention.query_key_value.weight": (3072, 2048),
                "model.layers.0.mlp.down_proj.weight": (2048, 5120),
                "model.layers.1.mlp.gate.expert_bias": (256,),
                "model.layers.1.mlp.experts.255.up_proj.weight": (512, 2048),
                "model.layers.1.mlp.shared_experts.up_proj.weight": (512, 2048),
            },
        ),
        (llada2, LLADA2_FLASH, None, None, {}),
    ],
    ids=["LLaDA-MoE", "SDAR-4B", "SDAR-8B", "Fast_dLLM_v2_7B", "LLaDA2-mini", "LLaDA2-flash"],
)
def test_a_released_config_has_the_released_tensors(family, config, parameters, tensors, examples):
    with torch.device("meta"):
        model = Transformer(family.spec_from_config(config))
    found = layout(shapes_of(model), family.NAMES)
    stored = {name: place.shape for name, place in found.items() if place.is_first}
    count = sum(value.numel() for value in model.parameters())
    assert count == sum(torch.Size(shape).numel() for shape in stored.values())
    assert examples.items() <= stored.items()
    if tensors is not None:
        assert len(stored) == tensors
    if parameters is not None:
        assert count == parameters
    else:
        assert round(count / 1e9, 1) == 102.9


@pytest.mark.parametrize(
    ("family", "config", "ids", "turn_end", "facts"),
    [
        (llada_moe, LLADA_MOE, (156895, 156892, 156892), "<|role_end|>", (False, None, None)),
        (llada2, LLADA2_MINI, (156895, 156892, 156892), "<|role_end|>", (False, 32, 64)),
        (sdar, SDAR_4B, (151669, 151643, 151643), "<|im_end|>", (False, 4, None)),
        (fast_dllm_v2, FAST_7B, (151665, 151645, 151645), "<|im_end|>", (True, 32, None)),
    ],
    ids=["LLaDA-MoE", "LLaDA2", "SDAR", "Fast-dLLM v2"],
)
def test_released_facts(family, config, ids, turn_end, facts):
    spec = family.spec_from_config(config)
    assert (spec.mask_id, spec.eos_id, spec.pad_id) == ids
    assert spec.turn_end == turn_end
    assert (spec.shift_logits, spec.block_size, spec.rotary_dim) == facts
    assert spec.rope_theta == config["rope_theta"]
    assert spec.norm_eps == config["rms_norm_eps"]


def test_llada2_norms_heads_unless_told_otherwise_and_reads_both_spellings_of_rope():
    assert llada2.spec_from_config(LLADA2_MINI).qk_norm
    assert not llada2.spec_from_config(LLADA2_MINI | {"use_qk_norm": False}).qk_norm
    newer = {key: LLADA2_MINI[key] for key in LLADA2_MINI.keys() - {"rope_theta", "rotary_dim"}}
    del newer["partial_rotary_factor"]
    nested = {"rope_theta": 7e5, "partial_rotary_factor": 0.25}
    spec = llada2.spec_from_config(newer | {"rope_parameters": nested})
    assert (spec.rope_theta, spec.rotary_dim) == (7e5, 32)
    assert llada2.spec_from_config(newer).rotary_dim == 64, "their class's factor is a half"
    whole = llada2.spec_from_config(newer | {"partial_rotary_factor": 1.0})
    assert whole.rotary_dim is None


@pytest.mark.parametrize("key", ["delete_token_id", "split_token_id"])
def test_llada2_2_is_told_apart_by_the_tokens_that_edit_and_refused_by_name(key, folder):
    folder("llada2_moe").write(**{key: 900}).refused("LLaDA2.2", key, "900", "LLaDA2.1")
    assert folder("llada2_moe").write(**{key: None}).load()


def test_the_weight_of_llada2s_only_expert_is_not_normalized():
    assert llada2.spec_from_config(LLADA2_MINI).experts.renormalize
    assert not llada2.spec_from_config(LLADA2_MINI | {"num_experts_per_tok": 1}).experts.renormalize


@pytest.mark.parametrize("family", [*FAMILIES, "llada", "dream"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_in_a_mapping_is_read_and_refused_where_it_is_not_the_plain_one(family, key, folder):
    checkpoint = folder(family)
    theta = checkpoint.config["rope_theta"]
    plain = checkpoint.write().load().spec
    nested = {"rope_type": "default", "rope_theta": theta}
    assert checkpoint.write(**{key: nested}).load().spec == plain
    assert checkpoint.write(**{key: {"type": "default"}}).load().spec == plain
    other = checkpoint.write(**{key: nested | {"rope_theta": 7e5}, "rope_theta": ABSENT}).load()
    assert other.spec.rope_theta == 7e5
    checkpoint.write(**{key: {"rope_theta": 7e5}}).refused(f"{key}.rope_theta=700000.0", "agree")
    checkpoint.write(**{key: {"rope_type": "yarn", "factor": 4.0}}).refused(key, "yarn")
    checkpoint.write(**{key: {"type": "linear", "factor": 4.0}}).refused(key, "linear")
    checkpoint.write(**{key: {"mrope_section": [2, 3, 3]}}).refused(key, "mrope_section")
    checkpoint.write(**{key: "default"}).refused(key, "object")
    factor = {"partial_rotary_factor": 0.25}
    checkpoint.write(**{key: nested | factor}).refused(f"{key}.partial_rotary_factor=0.25")


@pytest.mark.parametrize("family", ["llada", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2"])
def test_a_word_where_true_or_false_belongs_is_refused(family, folder):
    key = "weight_tying" if family == "llada" else "tie_word_embeddings"
    folder(family).write(**{key: "false"}).refused(key, "'false'", "true or false")


# the tiny checkpoints, spoiled or stored in another way


class Folder:
    """A writable copy of a parity checkpoint."""

    def __init__(self, path, source):
        self.path, self.tensors = path, load_file(source / "model.safetensors")
        self.config = read_config(source)

    def write(self, **keys):
        config = {k: v for k, v in (self.config | keys).items() if v is not ABSENT}
        (self.path / "config.json").write_text(json.dumps(config))
        save_file(self.tensors, self.path / "model.safetensors")
        return self

    def load(self):
        return load_model(self.path, "float32", "cpu")

    def refused(self, *words):
        with pytest.raises(ModelError) as caught:
            self.load()
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path, parity_folder):
    return lambda family: Folder(tmp_path, parity_folder(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_writes_the_tensors_that_were_loaded(family, tmp_path, parity_folder):
    model = load_model(parity_folder(family), "float32", "cpu")
    path = tmp_path / "model.safetensors"
    save_weights(model, path, FAMILIES[family].NAMES, torch.float32)
    saved, stored = load_file(path), load_file(parity_folder(family) / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], stored[name]) for name in stored)


def stack_experts(tensors, layers, form):
    """The same weights with one tensor for all experts of a layer."""
    out = deepcopy(tensors)
    for layer in layers:
        stacks = {}
        for kind in ("gate", "up", "down"):
            names = [
                name
                for expert in range(99)
                if (name := f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight") in out
            ]
            stacks[kind] = torch.stack([out.pop(name) for name in names])
        mlp = f"model.layers.{layer}.mlp"
        if form == "veomni":
            out |= {f"{mlp}.experts.{kind}_proj": value for kind, value in stacks.items()}
        else:
            out[f"{mlp}.w1"] = torch.cat((stacks["gate"], stacks["up"]), dim=1)
            out[f"{mlp}.w2"] = stacks["down"]
    return out


@pytest.mark.parametrize(
    ("family", "layers", "form"),
    [("llada_moe", range(4), "fused"), ("llada2_moe", range(1, 4), "veomni")],
)
def test_stacked_experts_are_the_same_model(family, layers, form, folder, parity_model):
    checkpoint = folder(family)
    checkpoint.tensors = stack_experts(checkpoint.tensors, layers, form)
    other = checkpoint.write().load()
    for name, value in parity_model(family).named_parameters():
        assert torch.equal(dict(other.named_parameters())[name], value), name


def test_an_expert_that_is_stored_in_two_ways_is_named(folder):
    checkpoint = folder("llada2_moe")
    both = stack_experts(checkpoint.tensors, range(1, 2), "veomni")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    checkpoint.tensors = both | {name: checkpoint.tensors[name]}
    checkpoint.write().refused("stored twice")


def test_a_missing_expert_and_a_missing_fused_tensor_are_named(folder):
    checkpoint = folder("llada2_moe")
    gone = (
        "model.layers.2.mlp.experts.3.up_proj.weight",
        "model.layers.3.attention.query_key_value.weight",
        "model.layers.1.mlp.gate.expert_bias",
    )
    for name in gone:
        del checkpoint.tensors[name]
    checkpoint.write().refused("missing", *gone)


def test_a_fused_tensor_of_another_height_is_named_with_both_shapes(folder):
    checkpoint = folder("llada2_moe")
    name = "model.layers.3.attention.query_key_value.weight"
    checkpoint.tensors[name] = checkpoint.tensors[name][:-1].clone()
    checkpoint.write().refused("misshapen", name, "(255, 128)", "(256, 128)")


@pytest.mark.parametrize("model_type", ["llada", "lladamoe"])
def test_experts_tell_llada_moe_from_llada_where_no_architecture_is_given(model_type, folder):
    assert folder("llada_moe").write(architectures=ABSENT, model_type=model_type).load()
    assert folder("llada_moe").write().load().spec.family == "llada_moe"


QWEN3_MOE = {
    "architectures": ["SDARMoeForCausalLM"],
    "model_type": "sdar_moe",
    "block_size": 8,
    "decoder_sparse_step": 1,
    "head_dim": 8,
    "hidden_size": 32,
    "mask_token_id": 60,
    "mlp_only_layers": [1],
    "moe_intermediate_size": 24,
    "intermediate_size": 48,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "vocab_size": 64,
}


@pytest.mark.parametrize("form", ["each", "transformers 5"])
def test_sdars_experts_are_read_one_by_one_or_stacked(form, tmp_path):
    """Its MoE code was not to be had; `test_oracle_transformers.py` has the maths of Qwen3-MoE."""
    spec = sdar.spec_from_config(QWEN3_MOE)
    assert spec.experts is not None
    assert (spec.experts.dense_layers, spec.experts.renormalize, spec.block_size) == ((1,), True, 8)
    model = Transformer(spec).eval().requires_grad_(False)
    path = tmp_path / "model.safetensors"
    save_weights(model, path, sdar.NAMES, torch.float32)
    tensors = load_file(path)
    assert tensors["model.layers.0.mlp.experts.5.down_proj.weight"].shape == (32, 24)
    if form != "each":
        tensors = stack_experts(tensors, (0, 2), "fused")
        for layer in (0, 2):
            mlp = f"model.layers.{layer}.mlp"
            tensors[f"{mlp}.experts.gate_up_proj"] = tensors.pop(f"{mlp}.w1")
            tensors[f"{mlp}.experts.down_proj"] = tensors.pop(f"{mlp}.w2")
        save_file(tensors, path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_MOE))
    loaded = load_model(tmp_path, "float32", "cpu")
    assert loaded.spec == spec
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_router_enable_expert_bias": True},
        {"shared_expert_intermediate_size": 40},
        {"moe_layer_freq": [0, 1, 1, 0], "dense_intermediate_size": 56},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_llada_moes_options_take_part(changes, tmp_path, parity_folder):
    """No released checkpoint uses them; each adds tensors and changes what is said."""
    config = read_config(parity_folder("llada_moe"))
    spec = llada_moe.spec_from_config(config | changes)
    model = Transformer(spec).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if name.endswith("router.bias"):
            value.copy_(torch.linspace(-1, 1, len(value)))
    save_weights(model, tmp_path / "model.safetensors", llada_moe.NAMES, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    loaded, ids = load_model(tmp_path, "float32", "cpu"), torch.arange(20)[None]
    assert loaded.spec == spec
    assert torch.equal(loaded(ids), model(ids))
    stored = load_file(tmp_path / "model.safetensors").keys()
    wanted = {
        "moe_router_enable_expert_bias": "model.layers.3.mlp.expert_bias",
        "shared_expert_intermediate_size": "model.layers.3.shared_expert.up_proj.weight",
        "moe_layer_freq": "model.layers.3.mlp.up_proj.weight",
    }
    assert wanted[next(iter(changes))] in stored
    for name, value in model.named_parameters():
        if any(part in name for part in ("router.bias", "shared.down", "layers.3.ffn.down")):
            value.zero_()
    assert not torch.equal(loaded(ids), model(ids))


# from a folder as it is released: config, weights and tokenizer

TOKENIZERS = {
    "llada_moe": ("llada2_moe", 1007),
    "llada2_moe": ("llada2_moe", 1007),
    "sdar": ("sdar", 1002),
    "fast_dllm_v2": ("fast_dllm_v2", 1002),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_answers_a_chat_with_its_own_special_ids(family, folder, parity_folder):
    checkpoint, (tokenizer, turn_end) = folder(family), TOKENIZERS[family]
    for path in (parity_folder("").parent / "tokenizers" / tokenizer).iterdir():
        shutil.copy(path, checkpoint.path)
    checkpoint.write()
    llm = LLM(checkpoint.path, device="cpu")
    assert llm.spec.mask_id == 1004, "named by the config (SDAR) or by the tokenizer"
    assert llm.stop_ids == {llm.spec.eos_id, turn_end}
    for cache in ("none", "auto"):
        out = llm.generate("import os", "threshold", cache, gen_length=32, block_length=16)[0]
        assert out.prompt_length > 2
        assert 1004 not in out.canvas_ids


def test_a_mask_id_of_the_config_comes_first(folder):
    checkpoint = folder("llada2_moe")
    checkpoint.config["eos_token_id"] = 1
    tokens = {"added_tokens_decoder": {"1004": {"content": "<|mask|>"}}}
    (checkpoint.path / "tokenizer_config.json").write_text(json.dumps(tokens))
    assert checkpoint.write().load().spec.mask_id == 1004
    with pytest.warns(CheckpointWarning, match="the mask token is 7, although"):
        assert checkpoint.write(mask_token_id=7).load().spec.mask_id == 7
    (checkpoint.path / "tokenizer_config.json").write_text("{}")
    assert checkpoint.write().load().spec.mask_id == 156895
    (checkpoint.path / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 9, "content": "<|mask|>"}]})
    )
    assert checkpoint.load().spec.mask_id == 9
    (checkpoint.path / "tokenizer.json").write_text("{")
    checkpoint.refused("tokenizer.json", "JSON")


def test_diffusion_gemma_is_refused_with_the_reason(tmp_path):
    config = {"architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no mask token"):
        read_spec(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_is_named(family, folder):
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        folder(family).write(**{key: ABSENT}).refused(key)


@pytest.mark.parametrize("key", ["n_group", "topk_group", "routed_scaling_factor", "num_experts"])
def test_a_missing_key_of_llada2s_router_is_named(key, folder):
    folder("llada2_moe").write(**{key: ABSENT}).refused(key)


REFUSED = [
    ("llada_moe", "moe_router_score_function", "sigmoid"),
    ("llada_moe", "router_num_group", 2),
    ("llada_moe", "partial_rotary_factor", 0.5),
    ("llada_moe", "attention_bias", True),
    ("llada_moe", "moe_layer_freq", [1, 0]),
    ("llada_moe", "clip_qkv", 8.0),
    ("llada_moe", "num_experts_per_tok", 9),
    ("llada2_moe", "score_function", "softmax"),
    ("llada2_moe", "norm_topk_prob", False),
    ("llada2_moe", "use_bias", True),
    ("llada2_moe", "layer_types", ["full_attention", "sliding_attention"]),
    ("llada_moe", "layer_types", ["sliding_attention"]),
    ("dream", "layer_types", ["sliding_attention"]),
    ("dream", "partial_rotary_factor", 0.5),
    ("sdar", "partial_rotary_factor", 0.5),
    ("fast_dllm_v2", "rotary_dim", 8),
    ("llada", "partial_rotary_factor", 0.5),
    ("llada", "rope_scaling", {"type": "linear"}),
    ("llada2_moe", "norm_head", True),
    ("llada2_moe", "using_split_qkv_in_self_attention", True),
    ("llada2_moe", "n_group", 3),
    ("llada2_moe", "topk_group", 5),
    ("llada2_moe", "num_experts_per_tok", 9),
    ("llada2_moe", "rotary_dim", 8),
    ("llada2_moe", "rope_scaling", {"type": "yarn"}),
    ("sdar", "attention_bias", True),
    ("sdar", "num_experts", 8),
    ("sdar", "rope_scaling", {"type": "yarn"}),
    ("fast_dllm_v2", "hidden_act", "gelu"),
    ("fast_dllm_v2", "layer_types", ["full_attention", "sliding_attention"]),
    ("fast_dllm_v2", "bd_size", 0),
]


@pytest.mark.parametrize(("family", "key", "value"), REFUSED, ids=lambda v: str(v)[:20])
def test_an_unsupported_setting_is_named(family, key, value, folder):
    folder(family).write(**{key: value}).refused(key, str(value))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def half(:\n", "SyntaxError"),
        ("raise RuntimeError('not ready')\n", "RuntimeError: not ready"),
        ("ARCHITECTURES = ('Mine',)\n", "defines no MODEL_TYPES"),
        (
            "ARCHITECTURES = 'DreamModel'\nMODEL_TYPES, NAMES, MASK = (), (), ''\n"
            "def spec_from_config(config): ...\n",
            "must be a tuple of strings",
        ),
    ],
)
def test_a_broken_family_file_is_reported_and_hurts_no_other(
    source, reason, tmp_path, parity_folder, monkeypatch, caplog
):
    (tmp_path / "broken_family.py").write_text(source)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{families.__name__}.broken_family", raising=False)
    registry._load_families.cache_clear()
    try:
        assert read_spec(parity_folder("dream")).family == "dream"
        with pytest.raises(ModelError, match="Unknown") as raised:
            registry.find_family({"architectures": ["Unknown"]}, tmp_path)
    finally:
        registry._load_families.cache_clear()
        sys.modules.pop(f"{families.__name__}.broken_family", None)
    for text in (str(raised.value), caplog.text):
        assert f"{tmp_path / 'broken_family.py'}" in text
        assert reason in text
