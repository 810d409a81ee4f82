"""`unmask inspect`: facts of a checkpoint, from its configuration and the headers of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask import decoders
from unmask.caches.registry import bind, describe, make_cache
from unmask.cli.fit import gigabytes
from unmask.cli.fit_options import FitOptions
from unmask.decoders.base.presets import PRESETS
from unmask.models import read_config, read_spec, resolve_model
from unmask.models.folder_files import listing
from unmask.models.hf_config import architecture
from unmask.models.spec import ModelSpec
from unmask.plain_text import one_line


def facts(model: str) -> dict[str, object]:
    """Return the facts of a checkpoint, by name, in the order of display. Raises ModelError."""
    folder = resolve_model(model, weights=False)
    spec = read_spec(folder)
    total, active = parameters(spec)
    facts: dict[str, object] = {
        "model": model,
        "folder": str(folder),
        "family": spec.family,
        "architecture": architecture(read_config(folder)),
        "parameters": total,
        "active_parameters": active,
        "layers": spec.num_layers,
        "width": spec.d_model,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_width": spec.head_dim,
        "feed_forward": feed_forward(spec),
        "vocabulary_rows": spec.vocab_size,
        "context": spec.max_length,
        "rope": rope(spec),
        "attention": attention(spec),
        "logits": "shifted: row i-1 says position i" if spec.shift_logits else "in place",
        "mask_id": spec.mask_id,
        "eos_id": spec.eos_id,
        "pad_id": spec.pad_id,
        "bos_id": spec.bos_id,
    }
    facts |= from_tokenizer(folder, spec)
    facts["id_notes"] = [*spec.notes, *spec.minor_notes] or None
    facts["own_sampler"] = own_sampler(spec)
    cache = bind(make_cache("auto"), spec.block_size)
    facts["cache_auto"] = describe(cache) + (" (exact)" if cache.exact else "")
    facts |= weights(folder, spec)
    return facts


def parameters(spec: ModelSpec) -> tuple[int, int]:
    """Return the number of parameters, in total and active for one token."""
    import torch

    from unmask.models.transformer import Transformer

    with torch.device("meta"):
        sizes = {name: value.numel() for name, value in Transformer(spec).named_parameters()}
    total = sum(sizes.values())
    if spec.experts is None:
        return total, total
    stacked = sum(size for name, size in sizes.items() if ".ffn.experts." in name)
    used = stacked * spec.experts.num_chosen // spec.experts.num_experts
    return total, total - stacked + used


def feed_forward(spec: ModelSpec) -> str:
    """Describe the widths of the feed-forward layers."""
    experts = spec.experts
    if experts is None:
        return str(spec.d_ff)
    text = f"{experts.num_experts} experts of {experts.d_ff}, {experts.num_chosen} a token"
    if experts.d_shared:
        text += f", {experts.d_shared} shared"
    if experts.dense_layers:
        text += f"; {len(experts.dense_layers)} dense layers of {spec.d_ff}"
    return text


def attention(spec: ModelSpec) -> str:
    """Describe the attention pattern."""
    if spec.block_size is None:
        return "full: every position sees every other"
    return f"block-causal: blocks of {spec.block_size}, from the first prompt token"


def rope(spec: ModelSpec) -> str:
    """Describe RoPE: its base, and the rotated part of a head."""
    part = (
        "" if spec.rotary_dim in (None, spec.head_dim) else f", first {spec.rotary_dim} of a head"
    )
    return f"base {spec.rope_theta:g}{part}"


def own_sampler(spec: ModelSpec) -> str:
    """Return the settings that reproduce the family's published sampler."""
    presets = [name for name in PRESETS if f"{name}_".startswith(f"{spec.family}_")]
    if presets:
        return "preset=" + " or ".join(presets)
    return f"decoder={spec.family if spec.family in decoders.names() else 'vanilla'}"


def from_tokenizer(folder: Path, spec: ModelSpec) -> dict[str, object]:
    """Return the tokenizer's facts (tokens, mask, end of a turn, chat template); None if it is missing."""
    from unmask.engine.tokenizer import known_ids, load_tokenizer, token_id

    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        names = ("tokens", "highest_id", "mask", "ends", "turn_end", "chat_template")
        return dict.fromkeys(names)
    known = known_ids(tokenizer)
    turn_end = token_id(tokenizer, spec.turn_end)
    ends = {spec.eos_id, *spec.end_ids, *(() if turn_end is None else (turn_end,))} & known
    return {
        "tokens": len(known),
        "highest_id": max(known, default=None),
        "mask": tokenizer.convert_ids_to_tokens(spec.mask_id),
        "ends": ", ".join(
            f"{id_} ({tokenizer.convert_ids_to_tokens(id_)})" for id_ in sorted(ends)
        ),
        "turn_end": None if turn_end is None else f"{spec.turn_end} ({turn_end})",
        "chat_template": tokenizer.chat_template is not None,
    }


def weights(folder: Path, spec: ModelSpec) -> dict[str, object]:
    """Describe the weight files by number, size and dtypes, and tensors that loading passes over.

    Reads headers only. Raises ModelError, as loading does, for weights that do not fit the config.
    """
    from unmask.models.safetensors_files import NoWeightsError, shard_files, tensors_of
    from unmask.models.weights import passed_over

    try:
        files = shard_files(folder)
    except NoWeightsError:
        return {"weights": "not here", "passed_over": None}
    kinds = sorted({tensor.kind for path in files for tensor in tensors_of(path)})
    size = sum(path.stat().st_size for path in files)
    plural = "file" if len(files) == 1 else "files"
    names = passed_over(folder, spec)
    return {
        "weights": f"{len(files)} {plural}, {size / 1e6:.1f} MB, {', '.join(kinds)}",
        "passed_over": f"{len(names)} that change nothing: {listing(names)}" if names else None,
    }


def show(model: str, as_json: bool, fit: FitOptions = FitOptions()) -> None:
    """Print the facts, with `fit` those of the memory of a decode too."""
    fit.check()
    entries = facts(model)
    if fit.fit:
        from unmask.cli.fit import facts_of_fit

        entries |= facts_of_fit(read_spec(model), fit)
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    console = Console(highlight=False)
    shown = {key.replace("_", " "): one_line(_text(key, value)) for key, value in entries.items()}
    if not console.is_terminal:
        for key, text in shown.items():
            print(f"{key}\t{text}")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, text in shown.items():
        table.add_row(key, Text(text))
    console.print(table)


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if key.startswith("memory_") and isinstance(value, int):
        return gigabytes(value)
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return f"{value:,}" if key.endswith("parameters") else str(value)
