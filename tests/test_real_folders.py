"""Checkpoint folders as people have them: loaded where that is right, else refused with the cause."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import LLM
from unmask.cli.main import main
from unmask.errors import ConfigError, ContradictionError, ModelError
from unmask.models import load_model, read_spec, resolve_model
from unmask.models.hf_config import ConfigReader

FAMILIES = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")
LIMIT = 1500
COMMIT, OTHER = "1" * 40, "2" * 40


class Home:
    """A copy of a family's tiny checkpoint to spoil, with the logits that it must have."""

    def __init__(self, source, path):
        self.path = path
        path.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(source / name, path / name)
        self.file = path / "model.safetensors"
        self.ids = torch.arange(8)[None]

    def config(self, **changes):
        values = json.loads((self.path / "config.json").read_text()) | changes
        (self.path / "config.json").write_text(json.dumps(values))

    def tensors(self, change):
        tensors = load_file(self.file)
        save_file(change(tensors) or tensors, self.file)

    def rename(self, new):
        self.tensors(lambda old: {new(name): value for name, value in old.items()})

    def logits(self, path=None):
        return load_model(path or self.path, "float32", "cpu")(self.ids)

    def refused(self, *words, path=None):
        """Loading and `inspect` refuse the folder in the same words, short enough."""
        with pytest.raises(ModelError) as caught:
            load_model(path or self.path, "float32", "cpu")
        text = str(caught.value)
        assert len(text) <= LIMIT
        bare = text.replace(str(path or self.path), "")
        for word in words:
            assert word in bare
        return text


@pytest.fixture
def home(parity_folder, tmp_path):
    return lambda family="llada", name="home": Home(parity_folder(family), tmp_path / name)


BUFFERS = {
    "llada": "model.transformer.blocks.0.rotary_emb.",
    "dream": "model.layers.0.self_attn.rotary_emb.",
    "llada_moe": "model.layers.0.self_attn.rotary_emb.",
    "llada2_moe": "model.layers.0.attention.rotary_emb.",
    "sdar": "model.rotary_emb.",
    "fast_dllm_v2": "model.layers.0.self_attn.rotary_emb.",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_are_passed_over_and_told_and_an_adapters_tensors_are_not(family, home, capsys):
    folder = home(family)
    expected = folder.logits()
    place = BUFFERS[family]
    extra = {
        f"{place}inv_freq": torch.ones(8),
        f"{place}cos_cached": torch.ones(8, 4),
        "model.position_ids": torch.arange(9)[None],
        f"{place.rpartition('rotary_emb.')[0]}causal_mask": torch.ones(1, 1, 5, 5),
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 5, 5, dtype=torch.bool),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
        "model.layers.0.self_attn.o_proj.bias": torch.zeros(16),
    }
    folder.tensors(lambda tensors: tensors.update(extra))
    assert torch.equal(folder.logits(), expected)
    assert main(["inspect", str(folder.path), "--json"]) == 0
    assert "7 that change nothing" in json.loads(capsys.readouterr().out)["passed_over"]
    folder.tensors(lambda tensors: tensors.update({f"{place}lora_A.weight": torch.ones(2, 2)}))
    folder.refused("lora_A", "merge")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.0.self_attn.bias", torch.ones(16)),
        ("model.layers.0.self_attn.o_proj.bias", torch.ones(16)),
        ("model.mask", torch.ones(4)),
        ("model.rotary_emb.scale", torch.ones(4)),
    ],
)
def test_a_tensor_that_may_mean_something_is_refused(name, value, home):
    folder = home("dream")
    folder.tensors(lambda tensors: tensors.update({name: value}))
    folder.refused(name)


WRAPPERS = {
    "ddp": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "nested": lambda name: f"model.{name}",
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        ".0.", ".0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "all": lambda name: f"module.base_model.model._orig_mod.model.{name}",
    "lora_layer": lambda name: name.replace("q_proj.", "q_proj.base_layer."),
    "inner": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefixes_of_wrappers_and_inner_classes_change_nothing(family, wrapper, home):
    folder = home(family)
    expected = folder.logits()
    folder.rename(WRAPPERS[wrapper])
    assert torch.equal(folder.logits(), expected)


def test_a_prefix_that_nobody_knows_is_refused_in_short(home):
    folder = home()
    folder.rename(lambda name: f"student.{name}")
    folder.refused("unmapped", "student.", "more", "missing")


INNER = {
    "llada": "LLaDAModel",
    "dream": "DreamBaseModel",
    "llada_moe": "LLaDAMoEModel",
    "llada2_moe": "LLaDA2MoeModel",
    "sdar": "SDARModel",
    "fast_dllm_v2": "Fast_dLLM_QwenModel",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_name_of_an_inner_or_wrapped_class_is_that_of_the_model_if_its_head_is_there(
    family, home
):
    folder = home(family)
    expected = folder.logits()
    for name in (INNER[family], f"FSDP{INNER[family]}"):
        folder.config(architectures=[name])
        assert torch.equal(folder.logits(), expected)
    head = "model.transformer.ff_out.weight" if family == "llada" else "lm_head.weight"
    folder.tensors(lambda tensors: tensors.pop(head) is None)
    folder.refused(head, "head", "true in config.json")


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_of_a_tied_pair_either_one_or_both_may_be_stored(family, home):
    folder = home(family)
    table, head = {
        "llada": ("model.transformer.wte.weight", "model.transformer.ff_out.weight"),
    }.get(family, ("model.embed_tokens.weight", "lm_head.weight"))
    folder.config(**{"weight_tying" if family == "llada" else "tie_word_embeddings": True})
    folder.refused(head, "differs")
    folder.tensors(lambda tensors: tensors.update({head: tensors[table].clone()}))
    expected = folder.logits()
    folder.tensors(lambda tensors: tensors.pop(table) is None)
    assert torch.equal(folder.logits(), expected)
    folder.rename(lambda name: table if name == head else name)
    assert torch.equal(folder.logits(), expected)


def test_equal_copies_of_a_tensor_are_one_and_different_ones_are_refused(home):
    folder = home("dream")
    expected = folder.logits()
    folder.tensors(lambda t: t.update({"module.lm_head.weight": t["lm_head.weight"].clone()}))
    assert torch.equal(folder.logits(), expected)
    folder.tensors(lambda t: t.update({"module.lm_head.weight": t["lm_head.weight"] + 1}))
    folder.refused("stored twice", "lm_head.weight")


def test_types_may_differ_between_tensors(home):
    folder = home("dream")
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    folder.tensors(
        lambda t: {name: v.to(kinds[n % 4]) for n, (name, v) in enumerate(sorted(t.items()))}
    )
    assert folder.logits().isfinite().all()


def split(folder, names=("a.safetensors", "b.safetensors"), index=True):
    tensors = sorted(load_file(folder.file).items())
    parts = [dict(tensors[::2]), dict(tensors[1::2])]
    table = {}
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder.path / name)
        table |= dict.fromkeys(part, name)
    if index:
        text = json.dumps({"weight_map": table})
        (folder.path / "model.safetensors.index.json").write_text(text)


def test_an_index_that_is_left_over_beside_the_whole_file_changes_nothing(home):
    folder = home()
    expected = folder.logits()
    split(folder)
    assert torch.equal(folder.logits(), expected)
    (folder.path / "b.safetensors").unlink()
    assert torch.equal(folder.logits(), expected)
    (folder.path / "model.safetensors.index.json").write_text("{")
    assert torch.equal(folder.logits(), expected)


def test_a_whole_file_and_shards_that_differ_are_refused(home):
    folder = home()
    split(folder)
    folder.tensors(lambda tensors: {name: value + 1 for name, value in tensors.items()})
    folder.refused("different weights", "model.safetensors.index.json")


def test_numbered_shards_need_no_index_but_all_of_them(home):
    folder = home()
    expected = folder.logits()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    split(folder, names, index=False)
    folder.file.unlink()
    assert torch.equal(folder.logits(), expected)
    (folder.path / names[0]).unlink()
    (folder.path / "x.incomplete").write_text("")
    folder.refused(names[0], "missing", "unfinished")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_git_lfs_pointer_is_called_one(name, home):
    folder = home()
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (folder.path / name).write_text(text)
    folder.refused("LFS", name, "git lfs pull")


def test_an_adapter_is_refused_with_its_base_alone_and_beside_a_model(home):
    folder = home()
    config = {"peft_type": "LORA", "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct"}
    (folder.path / "adapter_config.json").write_text(json.dumps(config))
    folder.refused("LORA", "GSAI-ML/LLaDA-8B-Instruct", "merge_and_unload")
    (folder.path / "config.json").unlink()
    folder.file.rename(folder.path / "adapter_model.safetensors")
    folder.refused("LORA", "GSAI-ML/LLaDA-8B-Instruct", "merge_and_unload")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "x": ["y" * 999] * 99}),
        ("quantization_config", {"quant_method": "awq"}),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantization", {"group_size": 64, "bits": 4}),
    ],
)
def test_quantized_weights_are_refused_by_their_method(key, value, home, capsys):
    folder = home()
    folder.config(**{key: value})
    text = folder.refused(key, str(value.get("quant_method", "quantized")))
    assert len(text) < 400
    assert main(["inspect", str(folder.path)]) == 2
    assert text in capsys.readouterr().err


def test_a_quantization_that_is_off_changes_nothing(home):
    folder = home()
    for value in (None, {}, {"quant_method": "bitsandbytes", "load_in_8bit": False}):
        folder.config(quantization_config=value)
        folder.logits()


def cache(path, home, *commits, main_commit=None):
    """A repository in the hub's cache."""
    for commit in commits:
        home("llada", path.name + "/snapshots/" + commit)
    if main_commit:
        (path / "refs").mkdir()
        (path / "refs" / "main").write_text(main_commit)
    return path


def test_a_hub_cache_stands_for_the_snapshot_of_main_or_of_the_revision(home, tmp_path):
    path = cache(tmp_path / "models--acme--tiny", home, COMMIT, OTHER, main_commit=OTHER)
    assert resolve_model(path).name == OTHER
    assert resolve_model(path / "snapshots").name == OTHER
    assert resolve_model(path, COMMIT[:8]).name == COMMIT
    assert LLM(path, revision=COMMIT, device="cpu").spec.family == "llada"
    with pytest.raises(ModelError, match=f"'nope'.*main, {COMMIT}"):
        resolve_model(path, "nope")
    (path / "refs" / "main").unlink()
    with pytest.raises(ModelError, match=f"{COMMIT}, {OTHER}"):
        resolve_model(path)
    shutil.rmtree(path / "snapshots" / COMMIT)
    assert resolve_model(path).name == OTHER


def test_a_revision_of_a_hub_id_is_found_offline(home, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = cache(tmp_path / "models--acme--tiny", home, COMMIT, OTHER, main_commit=OTHER)
    (path / "refs" / "v1").write_text(COMMIT)
    found = {
        name: resolve_model(*name).name
        for name in (
            ("acme/tiny",),
            ("acme/tiny@v1",),
            ("acme/tiny", "v1"),
            ("acme/tiny@v1", "v1"),
            ("acme/tiny", COMMIT[:9]),
        )
    }
    assert list(found.values()) == [OTHER, COMMIT, COMMIT, COMMIT, COMMIT]
    with pytest.raises(ModelError, match=r"acme/tiny@v2.*main, v1"):
        resolve_model("acme/tiny@v2")
    with pytest.raises(ContradictionError):
        resolve_model("acme/tiny@v1", "main")


@pytest.mark.parametrize("name", ["demo", "."])
def test_a_revision_of_what_has_none_is_refused(name):
    with pytest.raises(ConfigError, match="revision='v1' has no effect"):
        resolve_model(name, "v1")


def test_a_folder_of_folders_is_refused_with_those_that_are_meant(home, tmp_path):
    folder = home("llada", "run/checkpoint-500")
    folder.refused("checkpoint-500", path=tmp_path / "run")
    (tmp_path / "hub" / "models--acme--tiny").mkdir(parents=True)
    folder.refused("acme/tiny", path=tmp_path / "hub")
    folder.refused("give the folder", str(folder.path), path=folder.file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "other.safetensors"])
def test_weights_in_other_files_are_named_with_and_without_a_config(name, home):
    folder = home()
    folder.file.rename(folder.path / name)
    folder.refused(name)
    (folder.path / "config.json").unlink()
    folder.refused(name, "no config.json")


@pytest.mark.parametrize("text", ["~nobody-here/x", "a\0b", "x" * 5000])
def test_a_text_that_cannot_be_a_path_is_an_unknown_model(text):
    with pytest.raises(ModelError) as caught:
        resolve_model(text)
    assert len(str(caught.value)) <= LIMIT


NEUTRAL_ROPE = [
    None,
    {},
    {"type": "default"},
    {"rope_type": "default"},
    {"type": "linear", "factor": 1.0},
    {"rope_type": "dynamic", "factor": 1},
    {"rope_type": "yarn", "factor": 1.0, "beta_fast": 32, "attention_factor": None},
    {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
]
REAL_ROPE = [
    {"type": "linear", "factor": 2.0},
    {"type": "linear"},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4},
    {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.2},
    {"rope_type": "longrope", "factor": 1.0, "short_factor": [2.0]},
    {"rope_type": ["yarn"], "factor": 1.0},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_rope_that_is_scaled_by_1_is_plain_and_other_scaling_is_refused(family, home):
    folder = home(family)
    expected = read_spec(folder.path)
    for value in NEUTRAL_ROPE:
        folder.config(rope_scaling=value)
        assert read_spec(folder.path) == expected, value
    for value in REAL_ROPE:
        folder.config(rope_scaling=value)
        folder.refused("rope_scaling", "supported")


LACKING = {
    "expert_capacity": 48,
    "delete_token_id": 7,
    "split_token_id": 7,
    "expand_token_id": 7,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.2,
    "parallel_attn": True,
    "norm_after": True,
    "position_embedding_type": "absolute",
    "rope_interleave": True,
    "is_causal": True,
}
INERT = {
    "expert_capacity": None,
    "expand_token_id": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "norm_after": False,
    "attention_dropout": 0.5,
    "use_cache": True,
    "my_own_key": {"a": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_changes_the_logits_is_refused_by_name_and_an_inert_value_is_not(family, home):
    folder = home(family)
    expected = read_spec(folder.path)
    for key, value in LACKING.items():
        folder.config(**{key: value})
        folder.refused(f"{key}={value!r}")
        folder.config(**{key: None})
    folder.config(**INERT)
    assert read_spec(folder.path) == expected


def test_dreamon_is_refused_by_the_token_of_its_tokenizer(home):
    folder = home("dream")
    tokens = {"added_tokens_decoder": {"1005": {"content": "<|expand|>"}}}
    (folder.path / "tokenizer_config.json").write_text(json.dumps(tokens))
    folder.refused("<|expand|>", "DreamOn")


@pytest.mark.parametrize(
    ("changes", "is_inert"),
    [
        ({"sliding_window": None}, True),
        ({"sliding_window": 4096, "max_window_layers": 4}, True),
        ({"sliding_window": 4096, "max_position_embeddings": 512}, True),
        ({"sliding_window": 64, "max_window_layers": 0}, False),
        ({"max_window_layers": 0}, False),
    ],
)
def test_a_sliding_window_is_refused_where_it_narrows_a_layer(changes, is_inert):
    config = {"use_sliding_window": True, "num_hidden_layers": 4, **changes}
    if is_inert:
        ConfigReader(config, "Dream").refuse_window()
        return
    with pytest.raises(ModelError, match="use_sliding_window=True"):
        ConfigReader(config, "Dream").refuse_window()


def test_fp8_weights_without_a_word_in_the_config_are_called_quantized(home):
    folder = home("dream")
    kind = torch.float8_e4m3fn
    folder.tensors(lambda tensors: {name: value.to(kind) for name, value in tensors.items()})
    assert "ill-typed: 5" in folder.refused("F8_E4M3", "quantized")


def test_gptq_weights_without_a_word_in_the_config_are_called_quantized(home):
    folder = home("sdar")
    folder.rename(lambda name: name.replace("proj.weight", "proj.qweight"))
    folder.refused("qweight", "GPTQ", "more")


def test_block_routing_of_llada2_is_refused_by_its_name(home):
    folder = home("llada2_moe")
    folder.config(expert_capacity=48)
    folder.refused("expert_capacity=48", "block routing")


def test_a_message_that_repeats_a_long_value_keeps_its_cause_and_its_remedy():
    text = str(ModelError(f"config.json: key={'x' * 9000}; supported: None"))
    assert len(text) <= LIMIT
    assert text.startswith("config.json: key=xxx")
    assert text.endswith("supported: None")


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "torch.bfloat16", torch.bfloat16),
        ("auto", "float16", torch.float32),
        ("auto", None, torch.float32),
        ("half", "bfloat16", torch.float16),
        ("float", "bfloat16", torch.float32),
    ],
)
def test_auto_is_the_checkpoints_dtype_and_half_float16(dtype, stored, expected, home):
    folder = home("dream")
    folder.config(torch_dtype=stored)
    assert load_model(folder.path, dtype, "cpu").dtype == expected
    folder.config(torch_dtype=None, dtype=stored)
    assert load_model(folder.path, dtype, "cpu").dtype == expected


def test_auto_refuses_a_dtype_that_is_none(home):
    folder = home()
    folder.config(torch_dtype="bfloat61")
    with pytest.raises(ModelError, match=r"torch_dtype='bfloat61'.*did you mean 'bfloat16'"):
        load_model(folder.path, "auto", "cpu")
    with pytest.raises(ConfigError, match="did you mean 'auto'"):
        load_model(folder.path, "atuo", "cpu")


def test_every_command_that_takes_a_model_takes_its_revision(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(cache(tmp_path / "models--acme--tiny", home, COMMIT, OTHER, main_commit=OTHER))
    assert main(["inspect", path, "--revision", COMMIT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"].endswith(COMMIT)
    text = "'nope'"
    for words in (
        ["inspect", path],
        ["convert", path, "there", "--to", "unmask"],
        ["generate", "-m", path, "x"],
        ["infill", "-m", path, "x {4} y"],
        ["chat", "-m", path],
        ["demo", "-m", path],
        ["serve", path],
        ["bench", "decode", "-m", path],
        ["bench", "quantize", "-m", path],
        ["frequencies", "-m", path, "--estimate", "--out", "x.json"],
        ["eval", "--model", path, "--task", "word_problem", "--limit", "1"],
        ["tune", "--model", path, "--task", "word_problem", "-d", "threshold"],
    ):
        assert main([*words, "--revision", "nope"]) == 2, words
        assert text in capsys.readouterr().err, words


@pytest.mark.parametrize("name", ["PeftModelForCausalLM", "OptimizedModule"])
def test_the_class_of_a_wrapper_is_passed_over_for_the_model_type(name, home):
    folder = home("dream")
    folder.config(architectures=[name])
    assert read_spec(folder.path).family == "dream"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_link_is_called_one(name, home):
    folder = home()
    (folder.path / name).unlink()
    (folder.path / name).symlink_to("../blobs/gone")
    folder.refused(name, "a link to a file that is not there")


def test_a_capacity_of_all_experts_without_groups_is_plain_routing(home):
    folder = home("llada2_moe")
    folder.config(topk_group=4)
    expected = read_spec(folder.path)
    folder.config(expert_capacity=16)
    assert read_spec(folder.path) == expected
    folder.config(topk_group=2)
    folder.refused("expert_capacity=16")


@pytest.mark.parametrize("value", ["", 5])
def test_a_revision_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="revision="):
        resolve_model("acme/tiny", value)
