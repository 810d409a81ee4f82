"""Random checkpoints of every family, written from transformers' classes and not by our own names.

Each is a network of transformers' own with unusual but legal sizes. Its tensors are stored under the names
that the family's released files have, beside a config with its keys; what we load must say the same.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from unmask.models import load_model

ATOL = 5e-5
LENGTH = 23
VOCAB = 96

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
HIDDEN = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def shared(sizes):
    """The keys that transformers' classes and the files of Qwen-shaped families have in common."""
    return {key: value for key, value in sizes.items() if key in SIZES or key == "head_dim"}


def qwen2(sizes):
    import transformers as hf

    rope = {"rope_type": "default", "rope_theta": sizes["rope_theta"]}
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**shared(sizes), **HIDDEN, rope_parameters=rope))


def qwen3(sizes):
    import transformers as hf

    rope = {"rope_type": "default", "rope_theta": sizes["rope_theta"]}
    values = {"head_dim": 128} | shared(sizes)
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**values, **HIDDEN, rope_parameters=rope))


def llama(sizes):
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=sizes["embedding_size"],
        hidden_size=sizes["d_model"],
        intermediate_size=sizes["mlp_hidden_size"] or int(sizes["mlp_ratio"] * sizes["d_model"]),
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=1 if sizes.get("multi_query_attention") else sizes["n_kv_heads"],
        rms_norm_eps=sizes["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
        tie_word_embeddings=sizes["weight_tying"],
        attention_bias=False,
        **HIDDEN,
    )
    return hf.LlamaForCausalLM(config)


def qwen3_moe(sizes, *, renormalize, width, head_dim):
    import transformers as hf

    return hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(
            **{"head_dim": head_dim, "intermediate_size": 80} | shared(sizes),
            **HIDDEN,
            rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
            num_experts=sizes["num_experts"],
            num_experts_per_tok=sizes["num_experts_per_tok"],
            moe_intermediate_size=width,
            norm_topk_prob=renormalize,
            mlp_only_layers=sizes.get("mlp_only_layers", []),
            decoder_sparse_step=sizes.get("decoder_sparse_step", 1),
            attention_bias=False,
        )
    )


def llada_moe(sizes):
    return qwen3_moe(sizes, renormalize=False, width=sizes["expert_intermediate_size"], head_dim=12)


def sdar_moe(sizes):
    kind = sizes["norm_topk_prob"]
    return qwen3_moe(sizes, renormalize=kind, width=sizes["moe_intermediate_size"], head_dim=128)


def glm4_moe(sizes):
    import transformers as hf

    turned = sizes.get("partial_rotary_factor", 0.5)
    rope = {"rope_type": "default", "rope_theta": sizes["rope_theta"]}
    return hf.Glm4MoeForCausalLM(
        hf.Glm4MoeConfig(
            **{"head_dim": 12} | shared(sizes),
            **HIDDEN,
            rope_parameters=rope | {"partial_rotary_factor": turned},
            use_qk_norm=sizes.get("use_qk_norm", True),
            attention_bias=sizes["use_qkv_bias"],
            n_routed_experts=sizes["num_experts"],
            num_experts_per_tok=sizes["num_experts_per_tok"],
            moe_intermediate_size=sizes["moe_intermediate_size"],
            n_shared_experts=sizes["num_shared_experts"],
            routed_scaling_factor=sizes["routed_scaling_factor"],
            n_group=sizes["n_group"],
            topk_group=sizes["topk_group"],
            first_k_dense_replace=sizes["first_k_dense_replace"],
            norm_topk_prob=sizes["num_experts_per_tok"] > 1,
        )
    )


# transformers' names to the families', as models.md lists them


def plain_names(state):
    return state


def llada_names(state):
    rules = (
        ("model.embed_tokens.weight", "wte.weight"),
        ("model.norm.weight", "ln_f.weight"),
        ("lm_head.weight", "ff_out.weight"),
        (r"model.layers.(\d+).input_layernorm.(\w+)", r"blocks.\1.attn_norm.\2"),
        (r"model.layers.(\d+).post_attention_layernorm.(\w+)", r"blocks.\1.ff_norm.\2"),
        (r"model.layers.(\d+).self_attn.([qkv])_proj.(\w+)", r"blocks.\1.\2_proj.\3"),
        (r"model.layers.(\d+).self_attn.o_proj.(\w+)", r"blocks.\1.attn_out.\2"),
        (r"model.layers.(\d+).mlp.gate_proj.(\w+)", r"blocks.\1.ff_proj.\2"),
        (r"model.layers.(\d+).mlp.up_proj.(\w+)", r"blocks.\1.up_proj.\2"),
        (r"model.layers.(\d+).mlp.down_proj.(\w+)", r"blocks.\1.ff_out.\2"),
    )
    found = {}
    for name, value in state.items():
        [new] = {re.sub(f"^{a}$", b, name) for a, b in rules if re.fullmatch(a, name)}
        found[f"model.transformer.{new}"] = value
    return found


def one_by_one(state):
    """Experts each for themselves."""
    found = {}
    for name, value in state.items():
        stem, _, kind = name.partition(".experts.")
        for expert, matrix in enumerate(value if kind else []):
            each = f"{stem}.experts.{expert}"
            if kind == "gate_up_proj":
                gate, up = matrix.chunk(2)
                found |= {f"{each}.gate_proj.weight": gate, f"{each}.up_proj.weight": up}
            else:
                found[f"{each}.down_proj.weight"] = matrix
        if not kind:
            found[name] = value
    return found


def llada2_names(state):
    state = one_by_one(state)
    found = {}
    for name, value in state.items():
        if re.search(r"self_attn\.[kv]_proj", name):
            continue
        new = name.replace("embed_tokens", "word_embeddings").replace("self_attn", "attention")
        new = new.replace("o_proj", "dense").replace("e_score_correction_bias", "expert_bias")
        new = new.replace("q_norm", "query_layernorm").replace("k_norm", "key_layernorm")
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            new, value = new.replace("q_proj", "query_key_value"), torch.cat(parts)
        found[new] = value
    return found


LLADA = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "d_model": 48,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 80,
    "mlp_ratio": 4,
    "vocab_size": VOCAB - 5,
    "embedding_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "weight_tying": False,
    "mask_token_id": 90,
}
QWEN = SIZES | {"hidden_act": "silu", "rope_theta": 1e6}
DREAM = QWEN | {"architectures": ["DreamModel"], "model_type": "Dream", "mask_token_id": 90}
FAST = QWEN | {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "model_type": "Fast_dLLM_Qwen",
    "bd_size": 8,
}
SDAR = QWEN | {
    "architectures": ["SDARForCausalLM"],
    "model_type": "sdar",
    "head_dim": 20,
    "block_size": 4,
    "mask_token_id": 90,
}
SDAR_MOE = SDAR | {
    "architectures": ["SDARMoeForCausalLM"],
    "model_type": "sdar_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 28,
    "norm_topk_prob": True,
}
LLADA_MOE = {key: value for key, value in QWEN.items() if key != "intermediate_size"} | {
    "architectures": ["LLaDAMoEModel"],
    "model_type": "llada",
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "expert_intermediate_size": 28,
    "moe_layer_freq": [1, 1, 1],
    "moe_router_enable_expert_bias": False,
    "qk_layernorm": True,
    "rope_theta": 50000,
}
LLADA2 = QWEN | {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "head_dim": 16,
    "num_experts": 12,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 28,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "use_qkv_bias": False,
    "pad_token_id": 91,
    "block_size": 8,
}
CASES = {
    "llada": (LLADA, llama, llada_names, None),
    "dream": (DREAM, qwen2, plain_names, None),
    "fast_dllm_v2": (FAST, qwen2, plain_names, "bd_size"),
    "sdar": (SDAR, qwen3, plain_names, "block_size"),
    "sdar_moe": (SDAR_MOE, sdar_moe, one_by_one, "block_size"),
    "llada_moe": (LLADA_MOE, llada_moe, one_by_one, None),
    "llada2": (LLADA2, glm4_moe, llada2_names, "block_size"),
}
VARIANTS = [
    ("llada", {}),
    ("llada", {"n_kv_heads": 2, "weight_tying": True}),
    ("llada", {"n_kv_heads": None, "multi_query_attention": True}),
    ("llada", {"mlp_hidden_size": None, "mlp_ratio": 2.5, "rms_norm_eps": 1e-3}),
    ("llada", {"n_heads": 3, "n_kv_heads": 1, "n_layers": 1}),
    ("dream", {}),
    ("dream", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("dream", {"num_attention_heads": 6, "num_key_value_heads": 3, "sliding_window": 8}),
    ("fast_dllm_v2", {}),
    ("fast_dllm_v2", {"bd_size": 5, "tie_word_embeddings": True}),
    ("fast_dllm_v2", {"bd_size": 64, "layer_types": ["full_attention"] * 3}),
    ("sdar", {}),
    ("sdar", {"head_dim": None, "block_size": 16}),
    ("sdar", {"block_size": 1, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("sdar", {"hidden_size": 36, "head_dim": 6, "sliding_window": 4, "max_window_layers": 1}),
    ("sdar_moe", {}),
    ("sdar_moe", {"norm_topk_prob": False, "num_experts": 5, "num_experts_per_tok": 5}),
    ("sdar_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [0], "num_experts_per_tok": 1}),
    ("llada_moe", {}),
    ("llada_moe", {"num_key_value_heads": 2, "norm_topk_prob": True, "num_experts": 5}),
    ("llada_moe", {"num_experts_per_tok": 1, "tie_word_embeddings": True, "moe_layer_freq": 1}),
    ("llada_moe", {"routed_scaling_factor": 3.0, "router_num_group": -2}),
    ("llada2", {}),
    ("llada2", {"num_experts_per_tok": 1, "topk_group": 1}),
    ("llada2", {"n_group": 1, "topk_group": 1, "num_experts": 7, "first_k_dense_replace": 2}),
    ("llada2", {"num_shared_experts": 2, "block_size": 3, "tie_word_embeddings": True}),
    ("llada2", {"first_k_dense_replace": 0, "topk_group": 4, "routed_scaling_factor": 1.0}),
    ("llada2", {"first_k_dense_replace": 3}),
    ("llada2", {"use_qkv_bias": True, "num_key_value_heads": 4}),
    ("llada2", {"use_qk_norm": False, "partial_rotary_factor": 0.25}),
    ("llada2", {"partial_rotary_factor": None, "head_dim": None}),
    ("llada2", {"num_key_value_heads": 1, "num_experts_per_tok": 6, "topk_group": 2}),
]


def network(make, sizes):
    """transformers' network with weights that let every part take part."""
    given = {key: value for key, value in sizes.items() if value is not None}
    other = make(
        given | {key: None for key in ("mlp_hidden_size", "n_kv_heads") if key in sizes} | given
    )
    generator = torch.Generator().manual_seed(3)
    tensors = [*other.named_parameters()]
    tensors += [item for item in other.named_buffers() if "correction_bias" in item[0]]
    with torch.no_grad():
        for name, value in tensors:
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name:
                value.copy_(1 + 0.2 * noise)
            elif value.dim() == 1:
                value.copy_(0.2 * noise)
            else:
                value.copy_(noise * 1.5 / value.shape[-1] ** 0.5)
    return other.eval()


def write(folder, sizes, tensors, *, is_sharded):
    folder.joinpath("config.json").write_text(json.dumps(sizes))
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    if not is_sharded:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file)
    index = {name: file for file, half in halves.items() for name in half}
    text = json.dumps({"metadata": {}, "weight_map": index})
    folder.joinpath("model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=str)
def test_a_random_checkpoint_says_what_transformers_class_says(family, changes, tmp_path):
    base, make, names, block_key = CASES[family]
    sizes = base | changes
    other = network(make, sizes)
    state = other.state_dict()
    if sizes.get("tie_word_embeddings") or sizes.get("weight_tying"):
        del state["lm_head.weight"]
    write(tmp_path, sizes, names(state), is_sharded=len(changes) == 2)
    model = load_model(tmp_path, "float32", "cpu")
    ids = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    block = torch.arange(LENGTH) // (sizes[block_key] if block_key else LENGTH)
    visible = block[:, None] >= block[None, :]
    hidden = torch.finfo(torch.float32).min
    mask = torch.zeros(2, 1, LENGTH, LENGTH).masked_fill(~visible, hidden)
    with torch.no_grad():
        wanted = other(input_ids=ids, attention_mask=mask, use_cache=False).logits
        assert float((model(ids) - wanted).abs().max()) <= ATOL
    assert float(wanted.std()) > 0.3, "the weights say something"


def test_llada_has_one_key_head_or_the_number_that_it_says(tmp_path):
    from unmask.errors import ModelError

    sizes = LLADA | {"multi_query_attention": True, "n_kv_heads": 2}
    write(tmp_path, sizes, {"a": torch.zeros(1)}, is_sharded=False)
    with pytest.raises(ModelError, match="multi_query_attention=True and n_kv_heads=2"):
        load_model(tmp_path, "float32", "cpu")
