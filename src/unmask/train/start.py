"""The model that a training starts from: its spec, config and tokenizer, and its weights on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import ConfigError, ModelError
from unmask.models import checkpoint_dtype, read_config, read_spec, resolve_model
from unmask.models.families import a2d, dream, fast_dllm_v2, llada
from unmask.models.hf_config import architecture
from unmask.models.registry import find_family
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer
from unmask.models.weight_names import NameMap
from unmask.models.weights import load_weights, stored_dtypes
from unmask.train.config import ModelConfig, TrainConfig
from unmask.train.recipe import Recipe
from unmask.train.vocabulary import END, MASK, TURN_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COPIED = ("*.jinja", "LICENSE*", "NOTICE*", "generation_config.json")
"""Files of `init` that go into the final folder unchanged."""
CAUSAL_MASK = "<|mask|>"


@dataclass(frozen=True)
class Start:
    """A model before its first step.

    `config` and `names` are those of the checkpoints to be written; `folder` holds the weights of `init`
    (None: a new network) with `stored`, the spec that they fit; `tokenizer_folder` the tokenizer's files.
    """

    spec: ModelSpec
    config: dict[str, object]
    names: NameMap
    tokenizer: PreTrainedTokenizerBase | None
    tokenizer_folder: Path | None
    dtype: torch.dtype
    folder: Path | None = None
    stored: ModelSpec | None = None
    stored_names: NameMap = ()
    """Names of the weights of `init`, where they differ from `names`."""
    embed_std: float = 0.5
    is_causal: bool = False
    added_mask: bool = False
    """The mask token is not in the files of the tokenizer."""

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes of the tensors of `init` by their names, which untouched tensors keep."""
        return {} if self.folder is None else stored_dtypes(self.folder)

    def network(self, seed: int) -> Transformer:
        """Return the network in float32 with the weights of `init`, or freshly initialized."""
        if self.folder is None or self.stored is None:
            return build(self.spec, seed, self.embed_std)
        with torch.device("meta"):
            loaded = Transformer(self.stored)
        names = self.stored_names or self.names
        load_weights(loaded, self.folder, names, torch.float32, torch.device("cpu"))
        if self.stored == self.spec:
            return loaded
        with torch.device("meta"):
            model = Transformer(self.spec)
        model.load_state_dict(_fitted(dict(loaded.named_parameters()), model), assign=True)
        return model


def build(spec: ModelSpec, seed: int, embed_std: float) -> Transformer:
    """Return a freshly initialized model: normal weights, residual outputs scaled by depth, zero biases."""
    model = Transformer(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            if parameter.dim() < 2:
                continue
            std = embed_std if name == "embed.weight" else 0.5 / math.sqrt(parameter.shape[1])
            if name.endswith((".o.weight", ".down.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            parameter.normal_(0.0, std, generator=generator)
    return model


def _fitted(weights: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """Return weights of the model's shapes: new rows of the vocabulary are the mean, new biases zero."""
    result: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = weights.get(name)
        if value is None:
            assert name.endswith(".bias"), "only biases are added"
            value = torch.zeros(parameter.shape)
        more = parameter.shape[0] - value.shape[0]
        if more:
            value = torch.cat((value, value.mean(0, keepdim=True).expand(more, *value.shape[1:])))
        result[name] = value.detach().clone()
    return result


def find_start(config: TrainConfig, learned: Path | None = None) -> Start:
    """Return the start of a run. `learned`: folder of the tokenizer that was learned for `init=null`.

    Raises ModelError for a model that cannot be read, and ConfigError for settings that do not fit it.
    """
    if config.init is None:
        return _new(config, learned)
    if config.tokenizer is not None:
        raise ConfigError(
            f"tokenizer={config.tokenizer} has no effect on init={config.init}, which has its own; leave "
            f"it out"
        )
    folder = resolve_model(config.init)
    stored_config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    dtype = getattr(torch, checkpoint_dtype(stored_config, folder, torch.device("cpu")))
    if architecture(stored_config) in a2d.CAUSAL:
        start = _causal(folder, stored_config, tokenizer, dtype)
    else:
        stored = read_spec(folder)
        names = find_family(stored_config, folder).names
        written = {**stored_config, "mask_token_id": stored.mask_id}
        start = Start(
            stored, written, names, tokenizer, folder, dtype, folder=folder, stored=stored
        )
    if not 0 <= start.spec.mask_id < start.spec.vocab_size:
        raise ModelError(
            f"{folder}: mask_token_id={start.spec.mask_id} is outside the model's {start.spec.vocab_size} "
            f"rows; correct it in config.json"
        )
    return _check_causal(config, _reshaped(start, config.model))


def _check_causal(config: TrainConfig, start: Start) -> Start:
    if config.objective != "causal":
        return start
    raise ConfigError(
        f"objective=causal trains new networks only (init=null), not init={config.init}; leave one out"
    )


def _causal(
    folder: Path,
    config: Mapping[str, object],
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
) -> Start:
    """Return a causal checkpoint as an A2D model, with a mask token."""
    if tokenizer is None:
        raise ModelError(
            f"{folder}: a causal model needs its tokenizer, to which a mask token is added"
        )
    written = a2d.adapted_config(config)
    plain = a2d.spec_from_config({**written, "mask_token_id": 0})
    known = tokenizer.get_vocab()
    mask_id = known.get(CAUSAL_MASK, known.get(MASK))
    is_added = mask_id is None
    if mask_id is None:
        mask_id = max(known.values()) + 1
        tokenizer.add_special_tokens({"mask_token": CAUSAL_MASK})
        mask_id = tokenizer.get_vocab()[CAUSAL_MASK]
    rows = max(plain.vocab_size, mask_id + 1)
    written |= {"mask_token_id": mask_id, "vocab_size": rows}
    return Start(
        a2d.spec_from_config(written),
        written,
        a2d.NAMES,
        tokenizer,
        folder,
        dtype,
        folder=folder,
        stored=replace(a2d.spec_from_config({**written, "vocab_size": plain.vocab_size})),
        is_causal=True,
        added_mask=is_added,
    )


def _reshaped(start: Start, model: ModelConfig) -> Start:
    """Return the start with the blocks and the shift of `model.*`. Raises ConfigError where impossible."""
    spec, config = start.spec, dict(start.config)
    shift = spec.shift_logits if model.shift_logits is None else model.shift_logits
    blocks = spec.block_size if model.block_size is None else model.block_size
    if (shift, blocks) == (spec.shift_logits, spec.block_size):
        return start
    family, names = spec.family, start.names
    if family == "a2d":
        config |= {"shift_logits": shift, "block_size": blocks}
        new = a2d.spec_from_config(config)
    elif family == "llada" and not shift:
        config["block_size"] = blocks
        new = replace(spec, block_size=blocks)
    elif shift and family in ("llada", "dream", "fast_dllm_v2") and not spec.linear_bias:
        new = replace(
            spec,
            family="dream",
            qkv_bias=True,
            rope_fp32=False,
            shift_logits=True,
            block_size=None,
            turn_end=dream.TURN_END,
        )
        if family == "llada":
            config = dream.config_from_spec(new, str(start.dtype).removeprefix("torch."))
        names = dream.NAMES
        if blocks is not None:
            config |= {
                "architectures": ["Fast_dLLM_QwenForCausalLM"],
                "model_type": "Fast_dLLM_Qwen",
                "bd_size": blocks,
            }
            new = fast_dllm_v2.spec_from_config(config)
    elif blocks is not None and family in ("sdar", "llada2") and not shift:
        config["block_size"] = blocks
        new = replace(spec, block_size=blocks)
    else:
        raise ConfigError(
            f"model.shift_logits={str(shift).lower()} and model.block_size={blocks}: no format of family "
            f"{family} has these; leave them out, or start from a causal model or LLaDA"
        )
    return replace(start, spec=new, config=config, names=names, stored_names=start.names)


def _new(config: TrainConfig, learned: Path | None) -> Start:
    """Return a new network of `model.*` over the given or learned tokenizer."""
    sizes = config.model
    if sizes.d_model % sizes.num_heads or (sizes.d_model // sizes.num_heads) % 2:
        raise ConfigError(
            f"model.num_heads={sizes.num_heads} must divide model.d_model={sizes.d_model} into even widths"
        )
    folder = Path(config.tokenizer).expanduser() if config.tokenizer is not None else learned
    assert folder is not None, "a tokenizer was given or learned"
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ConfigError(f"tokenizer={folder} has no tokenizer.json; give a folder with one")
    known = tokenizer.get_vocab()
    mask_id = next((known[text] for text in (MASK, CAUSAL_MASK) if text in known), None)
    is_added = mask_id is None
    if mask_id is None:
        tokenizer.add_special_tokens({"mask_token": CAUSAL_MASK})
        mask_id = tokenizer.get_vocab()[CAUSAL_MASK]
    eos_id = tokenizer.eos_token_id
    eos_id = known.get(END) if eos_id is None else eos_id
    if eos_id is None:
        raise ConfigError(f"tokenizer={folder} has no end-of-text token (eos_token); set one")
    is_causal = config.objective == "causal"
    shift = bool(sizes.shift_logits) or is_causal
    tokens = SpecialTokens(len(tokenizer), mask_id, int(eos_id), TURN_END)
    spec = network_spec(sizes, tokens, shift=shift)
    written = dream.config_from_spec(spec) if shift else llada.config_from_spec(spec)
    if is_causal:
        if sizes.block_size is not None:
            raise ConfigError(
                f"model.block_size={sizes.block_size} has no effect with objective=causal; leave it out"
            )
        written |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    start = Start(
        spec,
        written,
        dream.NAMES if shift else llada.NAMES,
        tokenizer,
        folder,
        torch.float32,
        embed_std=sizes.embed_std,
        is_causal=is_causal,
        added_mask=is_added,
    )
    return start if is_causal else _reshaped(start, replace(sizes, shift_logits=shift))


@dataclass(frozen=True)
class SpecialTokens:
    """The facts of a tokenizer that a network's spec needs; `turn_end` is the text of a token."""

    vocab_size: int
    mask_id: int
    eos_id: int
    turn_end: str


def network_spec(
    sizes: Recipe | ModelConfig,
    tokens: SpecialTokens,
    *,
    shift: bool,
    block_size: int | None = None,
) -> ModelSpec:
    """Return the spec of a new network: LLaDA's, block-causal with `block_size`, or with `shift` Dream's.

    The embedding has two rows more than the tokenizer has tokens, as LLaDA pads.
    """
    return ModelSpec(
        family="dream" if shift else "llada",
        vocab_size=tokens.vocab_size + 2,
        d_model=sizes.d_model,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_heads,
        head_dim=sizes.d_model // sizes.num_heads,
        d_ff=sizes.d_ff,
        rope_theta=sizes.rope_theta,
        norm_eps=1e-5,
        max_length=sizes.max_length,
        mask_id=tokens.mask_id,
        eos_id=tokens.eos_id,
        pad_id=tokens.eos_id,
        qkv_bias=shift,
        rope_fp32=not shift,
        shift_logits=shift,
        block_size=block_size,
        turn_end=tokens.turn_end,
    )


def write_config(config: Mapping[str, object], dtype: torch.dtype, path: Path) -> None:
    """Write `config.json` with the type of the weights."""
    key = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"
    content = {**config, key: str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
