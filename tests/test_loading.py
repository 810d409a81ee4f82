"""Loading refuses what it cannot read and says why; real configurations have real sizes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from unmask import LLM
from unmask.errors import ConfigError, ModelError
from unmask.models import load_model, read_spec
from unmask.models.families import dream, llada
from unmask.models.transformer import Transformer
from unmask.models.weight_names import checkpoint_name
from unmask.models.weights import save_weights

WTE = "model.transformer.wte.weight"
HEAD = "model.transformer.ff_out.weight"
GATE = "model.transformer.blocks.1.ff_proj.weight"


def dream_config(spec):
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "hidden_act": "silu",
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ff,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "num_hidden_layers": spec.num_layers,
        "vocab_size": spec.vocab_size,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.max_length,
        "mask_token_id": spec.mask_id,
        "eos_token_id": spec.eos_id,
        "pad_token_id": spec.pad_id,
        "tie_word_embeddings": spec.tie_embeddings,
    }


class Folder:
    """A checkpoint folder to spoil."""

    def __init__(self, path, family="llada", **changes):
        self.path = path
        self.model = tiny_model(family, **changes)
        names = {"llada": llada, "dream": dream}[family].NAMES
        spec = self.model.spec
        config = llada.config_from_spec(spec) if family == "llada" else dream_config(spec)
        self.set_config(config)
        save_weights(self.model, self.weights, names, torch.float32)

    @property
    def weights(self):
        return self.path / "model.safetensors"

    def set_config(self, config):
        self.config = config
        (self.path / "config.json").write_text(json.dumps(config))

    def change(self, **keys):
        self.set_config({k: v for k, v in (self.config | keys).items() if v is not ABSENT})

    def tensors(self, change):
        tensors = load_file(self.weights)
        change(tensors)
        save_file(tensors, self.weights)

    def shard(self, first, second, index=None):
        """Two files; their index lists the second's names last."""
        self.weights.unlink(missing_ok=True)
        save_file(first, self.path / "a.safetensors")
        save_file(second, self.path / "b.safetensors")
        weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
        self.index(json.dumps({"weight_map": weight_map}))

    def index(self, text):
        (self.path / "model.safetensors.index.json").write_text(text)

    def load(self, **options):
        return load_model(self.path, **({"dtype": "float32", "device": "cpu"} | options))

    def refused(self, *names, kind=ModelError):
        with pytest.raises(kind) as caught:
            self.load()
        for name in names:
            assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)


ABSENT = object()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def dream_folder(tmp_path):
    return Folder(tmp_path, "dream")


def test_an_unspoiled_folder_of_each_family_loads(tmp_path):
    for family in ("llada", "dream"):
        (tmp_path / family).mkdir()
        folder = Folder(tmp_path / family, family)
        ids = torch.arange(5)[None]
        loaded = folder.load()
        assert torch.equal(loaded(ids), folder.model(ids))
        assert not loaded.training
        assert not any(value.requires_grad for value in loaded.parameters())


# which model


def test_a_path_that_is_a_file_is_refused(folder):
    with pytest.raises(ModelError, match="is a file"):
        load_model(folder.weights)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ModelError, match="'demmo'.*did you mean 'demo'"):
        load_model("demmo")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such/folder", "a/b/c", ""])
def test_a_folder_that_does_not_exist_is_refused(name):
    with pytest.raises(ModelError):
        load_model(name)


def test_a_hub_id_without_network_is_refused_by_name():
    with pytest.raises(ModelError, match="nobody-at-all/no-such-model"):
        load_model("nobody-at-all/no-such-model")


@pytest.mark.parametrize("name", ["bad id/with space", "own er/../x"])
def test_a_malformed_hub_id_is_refused(name):
    with pytest.raises(ModelError):
        load_model(name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


def test_a_folder_without_weights_is_refused(folder):
    folder.weights.unlink()
    folder.refused("no model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "x.ckpt"])
def test_pickled_weights_are_not_unpickled(folder, name):
    marker = folder.path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    folder.weights.unlink()
    torch.save(Bomb(), folder.path / name)
    folder.refused(name, "safetensors")
    assert not marker.exists()


def test_a_pickle_that_calls_itself_safetensors_is_not_unpickled(folder):
    marker = folder.path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save(Bomb(), folder.weights)
    folder.refused("model.safetensors")
    assert not marker.exists()


def test_pickles_beside_safetensors_are_left_alone(folder):
    (folder.path / "pytorch_model.bin").write_bytes(b"not a pickle")
    folder.load()


# which family


def test_remote_code_is_never_run(folder):
    marker = folder.path / "ran"
    code = f"open({str(marker)!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    for name in ("modeling_other.py", "configuration_other.py"):
        (folder.path / name).write_text(code)
    auto_map = {"AutoConfig": "configuration_other.Config", "AutoModel": "modeling_other.Model"}
    folder.change(architectures=["OtherModel"], model_type="other", auto_map=auto_map)
    folder.refused("OtherModel", "auto_map", "never run", "LLaDAModelLM", "DreamModel")
    assert not marker.exists()
    folder.change(architectures=["LLaDAModelLM"])
    folder.load()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("architectures", "model_type"),
    [
        (["LLaDA3Model"], "llada3"),
        (["LlamaForCausalLM"], "llama"),
        ([], "gpt2"),
        (None, None),
    ],
)
def test_an_unsupported_architecture_is_named(folder, architectures, model_type):
    folder.change(architectures=architectures, model_type=model_type)
    folder.refused(repr(architectures or []), repr(model_type))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_model_type_decides_where_no_architecture_is_given(tmp_path, family):
    folder = Folder(tmp_path, family)
    folder.change(architectures=ABSENT)
    assert folder.load().spec.family == family


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", "[]", '"text"', "null"],
    ids=["empty", "cut", "word", "list", "text", "null"],
)
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder.path / "config.json").write_text(text)
    folder.refused("config.json")


def test_a_config_that_is_no_text_is_refused(folder):
    (folder.path / "config.json").write_bytes(b"\xff\xfe\x00{}")
    folder.refused("config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("rope", False),
        ("scale_logits", True),
        ("block_group_size", 2),
        ("block_type", "sequential"),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("activation_type", "gelu"),
        ("clip_qkv", 8.0),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_an_unsupported_llada_setting_is_named(folder, key, value):
    folder.change(**{key: value})
    folder.refused(key, repr(value), "supported")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("use_sliding_window", True),
        ("use_mrope", True),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}),
    ],
)
def test_an_unsupported_dream_setting_is_named(dream_folder, key, value):
    dream_folder.change(**{key: value})
    dream_folder.refused(key, "supported")


def test_dream_reads_the_newer_spelling_of_rope_theta(dream_folder):
    theta = {"rope_type": "default", "rope_theta": 4321.0}
    dream_folder.change(rope_theta=ABSENT, rope_parameters=theta)
    assert read_spec(dream_folder.path).rope_theta == 4321.0


@pytest.mark.parametrize("key", ["d_model", "n_heads", "n_layers", "vocab_size"])
def test_a_missing_llada_key_is_named(folder, key):
    folder.change(**{key: ABSENT})
    folder.refused(key)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size"],
)
def test_a_missing_dream_key_is_named(dream_folder, key):
    dream_folder.change(**{key: ABSENT})
    dream_folder.refused(key)


@pytest.mark.parametrize("value", ["32", 3.5, -32, True, [32], {}])
@pytest.mark.parametrize("key", ["d_model", "n_layers", "mlp_hidden_size", "max_sequence_length"])
def test_a_config_number_of_the_wrong_kind_is_named(folder, key, value):
    folder.change(**{key: value})
    folder.refused(key, repr(value))


@pytest.mark.parametrize("key", ["d_model", "n_layers", "vocab_size", "n_heads"])
def test_a_network_of_size_zero_is_refused(folder, key):
    folder.change(**({key: 0} | ({"embedding_size": 0} if key == "vocab_size" else {})))
    with pytest.raises(ModelError):
        folder.load()


@pytest.mark.parametrize("value", [0, -1.0, "x", None])
def test_a_rope_base_out_of_range_is_named(folder, value):
    folder.change(rope_theta=value)
    if value is None:
        assert read_spec(folder.path).rope_theta == 10000.0
    else:
        folder.refused("rope_theta")


@pytest.mark.parametrize(("heads", "kv"), [(3, 3), (4, 3), (0, 0)])
def test_heads_that_do_not_divide_are_refused(folder, heads, kv):
    folder.change(n_heads=heads, n_kv_heads=kv)
    folder.refused("heads")


def test_a_mask_id_outside_the_vocabulary_is_refused(folder):
    folder.change(mask_token_id=64)
    with pytest.raises(ModelError, match="mask_token_id=64"):
        LLM(folder.path, device="cpu")


# which tensors


def test_a_missing_tensor_is_named(folder):
    folder.tensors(lambda tensors: tensors.pop(GATE))
    assert "missing" in folder.refused(GATE)


def test_an_unmapped_tensor_is_named(folder):
    extra = "model.transformer.blocks.0.q_norm.weight"
    folder.tensors(lambda tensors: tensors.update({extra: torch.ones(8)}))
    assert "unmapped" in folder.refused(extra)


def test_a_tensor_of_a_layer_too_many_is_named(folder):
    extra = "model.transformer.blocks.2.q_proj.weight"
    folder.tensors(lambda tensors: tensors.update({extra: torch.ones(32, 32)}))
    folder.refused(extra)


def test_a_bias_that_the_config_does_not_know_is_named(folder):
    extra = "model.transformer.blocks.0.q_proj.bias"
    folder.tensors(lambda tensors: tensors.update({extra: torch.ones(32)}))
    folder.refused(extra)


@pytest.mark.parametrize("shape", [(48, 33), (32, 48), (48,), (48, 32, 1)])
def test_a_misshapen_tensor_is_named_with_both_shapes(folder, shape):
    folder.tensors(lambda tensors: tensors.update({GATE: torch.zeros(shape)}))
    assert "missing" not in folder.refused(GATE, str(shape), "(48, 32)")


def test_every_problem_is_named_at_once(folder):
    def spoil(tensors):
        del tensors[HEAD]
        tensors[GATE] = torch.zeros(3, 3)
        tensors["stray.weight"] = torch.zeros(1)

    folder.tensors(spoil)
    folder.refused(HEAD, GATE, "stray.weight")


def test_a_tensor_stored_twice_is_named(folder):
    tensors = load_file(folder.weights)
    folder.shard(tensors, {GATE: tensors[GATE]})
    folder.load()
    folder.shard(tensors, {GATE: tensors[GATE] + 1})
    assert "twice" in folder.refused(GATE)


def test_another_familys_tensors_are_refused(folder):
    other = tiny_model("dream")
    save_weights(other, folder.weights, dream.NAMES, torch.float32)
    folder.refused(
        "unmapped",
        "missing",
        "lm_head.weight",
        "blocks.0.attn_norm.weight",
        "different models or families",
    )


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(tmp_path):
    folder = Folder(tmp_path, tie_embeddings=True)
    folder.tensors(lambda tensors: tensors.update({HEAD: tensors[WTE].clone()}))
    folder.load()
    folder.tensors(lambda tensors: tensors.update({HEAD: tensors[WTE] + 1}))
    folder.refused(HEAD)
    folder.tensors(lambda tensors: tensors.update({HEAD: torch.zeros(3, 3)}))
    folder.refused(HEAD)


def test_integers_are_not_taken_for_weights(folder):
    folder.tensors(lambda tensors: tensors.update({GATE: torch.zeros(48, 32, dtype=torch.int64)}))
    folder.refused(GATE)


# which files


@pytest.mark.parametrize("keep", [0, 4, 200, -100])
def test_a_truncated_file_is_refused_by_name(folder, keep):
    folder.weights.write_bytes(folder.weights.read_bytes()[:keep])
    folder.refused("model.safetensors")


def test_a_missing_shard_is_named(folder):
    tensors = load_file(folder.weights)
    folder.shard({GATE: tensors.pop(GATE)}, tensors)
    (folder.path / "a.safetensors").unlink()
    folder.refused("a.safetensors")


def test_a_truncated_shard_is_named(folder):
    tensors = load_file(folder.weights)
    folder.shard({GATE: tensors.pop(GATE)}, tensors)
    shard = folder.path / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-64])
    folder.refused("b.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": "x"}',
        '{"weight_map": {"a": 1}}',
        "null",
    ],
)
def test_an_index_that_is_none_is_refused(folder, text):
    folder.weights.rename(folder.path / "model-00001-of-00001.safetensors")
    folder.index(text)
    folder.refused("model.safetensors.index.json")


def test_a_tensor_that_only_the_index_has_is_named(folder):
    tensors = load_file(folder.weights)
    gate = tensors.pop(GATE)
    folder.shard(tensors, {GATE: gate})
    save_file({"stray": gate}, folder.path / "b.safetensors")
    folder.refused(GATE, "stray")


# dtype and device


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float64),
        (None, torch.float32),
    ],
)
def test_a_dtype_is_taken_by_name_or_as_it_is(folder, dtype, kind):
    model = folder.load(dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {kind}


@pytest.mark.parametrize("dtype", ["flaot32", "int8", "", torch.int32])
def test_a_dtype_that_is_none_is_refused_by_name(folder, dtype):
    with pytest.raises(ConfigError, match=re.escape(str(dtype) or "''")):
        folder.load(dtype=dtype)


def test_the_nearest_dtype_is_offered(folder):
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        folder.load(dtype="flaot32")


@pytest.mark.parametrize("device", ["cpuu", "gpu", "", "cuda:x"])
def test_a_device_that_is_none_is_refused_by_name(folder, device):
    with pytest.raises(ConfigError, match=re.escape(repr(device))):
        folder.load(device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_on_a_machine_without_it_is_refused(folder, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        folder.load(device=device)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_an_unsupported_device_is_refused_by_name(folder, device):
    with pytest.raises(ConfigError, match=device):
        folder.load(device=device)


# real sizes

LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
DREAM_7B = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


@pytest.mark.parametrize(
    ("family", "config", "parameters", "tensors", "examples"),
    [
        (
            llada,
            LLADA_8B,
            8_015_581_184,
            291,
            {
                "model.transformer.wte.weight": (126464, 4096),
                "model.transformer.ff_out.weight": (126464, 4096),
                "model.transformer.ln_f.weight": (4096,),
                "model.transformer.blocks.31.ff_proj.weight": (12288, 4096),
                "model.transformer.blocks.31.up_proj.weight": (12288, 4096),
                "model.transformer.blocks.31.ff_out.weight": (4096, 12288),
                "model.transformer.blocks.0.attn_out.weight": (4096, 4096),
                "model.transformer.blocks.0.attn_norm.weight": (4096,),
                "model.transformer.blocks.0.ff_norm.weight": (4096,),
            },
        ),
        (
            dream,
            DREAM_7B,
            7_615_616_512,
            339,
            {
                "model.embed_tokens.weight": (152064, 3584),
                "lm_head.weight": (152064, 3584),
                "model.norm.weight": (3584,),
                "model.layers.27.self_attn.k_proj.weight": (512, 3584),
                "model.layers.27.self_attn.k_proj.bias": (512,),
                "model.layers.27.self_attn.o_proj.weight": (3584, 3584),
                "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
                "model.layers.0.mlp.down_proj.weight": (3584, 18944),
                "model.layers.0.input_layernorm.weight": (3584,),
                "model.layers.0.post_attention_layernorm.weight": (3584,),
            },
        ),
    ],
    ids=["LLaDA-8B", "Dream-7B"],
)
def test_a_released_config_has_the_released_tensors(family, config, parameters, tensors, examples):
    with torch.device("meta"):
        model = Transformer(family.spec_from_config(config))
    shapes = {
        checkpoint_name(name, family.NAMES): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert len(shapes) == len(list(model.named_parameters())) == tensors
    assert examples.items() <= shapes.items()


def test_released_facts_of_llada_8b():
    spec = llada.spec_from_config(LLADA_8B)
    assert (spec.mask_id, spec.eos_id, spec.pad_id) == (126336, 126081, 126081)
    assert (spec.max_length, spec.rope_theta, spec.norm_eps) == (4096, 5e5, 1e-5)
    assert (spec.shift_logits, spec.qkv_bias, spec.rope_fp32, spec.block_size) == (
        False,
        False,
        True,
        None,
    )
    assert spec.turn_end == "<|eot_id|>"


def test_released_facts_of_dream_7b():
    spec = dream.spec_from_config(DREAM_7B)
    assert (spec.mask_id, spec.eos_id, spec.pad_id) == (151666, 151643, 151643)
    assert (spec.max_length, spec.rope_theta, spec.norm_eps) == (131072, 1e6, 1e-6)
    assert (spec.shift_logits, spec.qkv_bias, spec.rope_fp32, spec.block_size) == (
        True,
        True,
        False,
        None,
    )
    assert spec.turn_end == "<|im_end|>"


def test_llada_falls_back_from_mlp_hidden_size_to_the_ratio():
    assert llada.spec_from_config(LLADA_8B | {"mlp_hidden_size": None}).d_ff == 4 * 4096


def test_llada_may_share_one_key_value_head():
    config = LLADA_8B | {"n_kv_heads": None, "multi_query_attention": True}
    assert llada.spec_from_config(config).num_kv_heads == 1
    config = LLADA_8B | {"n_kv_heads": None, "multi_query_attention": None}
    assert llada.spec_from_config(config).num_kv_heads == 32
