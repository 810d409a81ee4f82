"""The network of a run on data files: parameters that are trained, checkpoints of them, final folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.models.frozen_linear import FrozenLinear
from unmask.models.lora import add_adapters, merge_adapters, quantize_bases, save_adapters
from unmask.models.registry import find_family
from unmask.models.transformer import Dense, Layer, Rotary, Transformer
from unmask.models.weights import save_weights
from unmask.train.checkpoint import OPTIMIZER, Optimizers, load_optimizers, optimizer_tensors
from unmask.train.config import TrainConfig
from unmask.train.ranks import shard, whole
from unmask.train.start import COPIED, Start, write_config

WEIGHTS = "weights.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
)


class Recompute(Dense):
    """Attention of whole rows whose layers are computed again in the backward pass."""

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Run the block and keep its input only."""
        from torch.utils.checkpoint import checkpoint

        result: Tensor = checkpoint(layer, x, rotary, self, use_reentrant=False)
        return result


class Network:
    """A model in training: `masters` are the parameters that the optimizer changes, by name.

    They are the model's own, or with precision=bf16 float32 copies of them.
    """

    def __init__(self, config: TrainConfig, start: Start, device: torch.device) -> None:
        self.config, self.start, self.device = config, start, device
        self.model: Transformer = start.network(config.seed).to(device).train()
        self.model.requires_grad_(True)
        lora = config.lora
        if lora.rank:
            alpha = lora.alpha or 2.0 * lora.rank
            add_adapters(self.model, lora.rank, alpha, lora.targets, lora.dropout, config.seed)
        self.is_sharded = config.parallel == "fsdp"
        self.has_copies = config.precision == "bf16" and not self.is_sharded
        if self.is_sharded:
            shard(self.model, config)
        trained = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
        self.masters: dict[str, nn.Parameter] = trained
        if self.has_copies:
            self.masters = {k: nn.Parameter(v.detach().clone()) for k, v in trained.items()}
            self.model.to(torch.bfloat16)
        if lora.base != "float":
            quantize_bases(self.model, lora.base)
        self.trained = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
        self.hidden = self._hidden()

    def _hidden(self) -> Callable[..., Tensor]:
        hidden: Callable[..., Tensor] = self.model.hidden
        if self.config.compile:
            hidden = torch.compile(hidden, dynamic=True)
        if not self.config.checkpoint_activations:
            return hidden

        def recomputing(ids: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
            return hidden(ids, positions, visible, backend=Recompute(visible))

        return recomputing

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Numbers of all and of trained parameters."""
        trained = sum(value.numel() for value in self.trained.values())
        rounded = sum(each.num_weights for each in self._frozen())
        return sum(value.numel() for value in self.model.parameters()) + rounded, trained

    @property
    def weights_bytes(self) -> int:
        """Bytes of the model's weights, and of float32 copies of them."""
        plain = {id(v): v for v in (*self.model.parameters(), *self.masters.values())}
        return sum(v.nbytes for v in plain.values()) + sum(m.size_bytes for m in self._frozen())

    def _frozen(self) -> list[FrozenLinear]:
        return [each for each in self.model.modules() if isinstance(each, FrozenLinear)]

    def take_gradients(self) -> None:
        """Move the model's gradients to the masters."""
        if not self.has_copies:
            return
        for name, value in self.trained.items():
            self.masters[name].grad = None if value.grad is None else value.grad.float()
            value.grad = None

    def give_weights(self) -> None:
        """Copy the masters into the model after a step, rounded."""
        if self.has_copies:
            with torch.no_grad():
                for name, value in self.trained.items():
                    value.copy_(self.masters[name])

    def clear_gradients(self) -> None:
        """Drop all gradients."""
        for value in (*self.masters.values(), *self.trained.values()):
            value.grad = None

    def write(self, folder: Path, optimizers: Optimizers) -> None:
        """Write the trained parameters and the optimizers' state."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.masters.items()}
        save_file(tensors, folder / WEIGHTS)
        save_file(optimizer_tensors(optimizers), folder / OPTIMIZER)

    def read(self, folder: Path, optimizers: Optimizers) -> None:
        """Load what `write` wrote. Raises ConfigError when other parameters are trained now."""
        tensors = load_file(folder / WEIGHTS)
        shapes = {name: tuple(value.shape) for name, value in self.masters.items()}
        if shapes != {name: tuple(value.shape) for name, value in tensors.items()}:
            raise ConfigError(
                f"{folder} holds other parameters than this run trains; use the settings of that run, or "
                f"another output folder"
            )
        with torch.no_grad():
            for name, value in self.masters.items():
                value.copy_(tensors[name])
        self.give_weights()
        load_optimizers(optimizers, folder / OPTIMIZER)

    def gathered(self) -> Network:
        """Return a whole network on the CPU with the weights of all processes; call it on every process."""
        tensors = {name: whole(value.detach()).cpu() for name, value in self.masters.items()}
        result = Network(replace(self.config, parallel="none"), self.start, torch.device("cpu"))
        with torch.no_grad():
            for name, value in result.masters.items():
                value.copy_(tensors[name])
        result.give_weights()
        return result

    def export(self, folder: Path) -> None:
        """Write a checkpoint of the family's format with tokenizer; adapters also by themselves.

        The adapters are merged into the model, which cannot be trained any further.
        """
        start, config = self.start, self.config
        dtype = start.dtype if config.dtype == "checkpoint" else getattr(torch, config.dtype)
        if self.has_copies:
            self.model.float()
            with torch.no_grad():
                for name, value in self.trained.items():
                    value.copy_(self.masters[name])
        if config.lora.rank:
            save_adapters(self.model, start.names, folder / "adapter", str(config.init))
            merge_adapters(self.model)
        write_config(start.config, dtype, folder / "config.json")
        kinds = start.dtypes if config.dtype == "checkpoint" else None
        save_weights(self.model, folder / "model.safetensors", start.names, dtype, kinds)
        self._write_tokenizer(folder)

    def _write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer; the token that ends a turn has the text that the family expects."""
        start = self.start
        source = start.tokenizer_folder
        if source is None:
            return
        if start.added_mask and start.tokenizer is not None:
            start.tokenizer.save_pretrained(str(folder))
        else:
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        for pattern in COPIED:
            for path in sorted(source.glob(pattern)):
                if path.is_file() and not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)
        self._rename_turn_end(folder)

    def _rename_turn_end(self, folder: Path) -> None:
        start = self.start
        if start.is_causal:
            return
        old = start.spec.turn_end if start.stored is None else start.stored.turn_end
        new = find_family(start.config, folder).spec_from_config(start.config).turn_end
        known = {} if start.tokenizer is None else start.tokenizer.get_vocab()
        if old is None or new is None or old == new or new in known or old not in known:
            return
        for path in (*folder.glob("*.json"), *folder.glob("*.jinja")):
            if path.name not in ("config.json", "generation_config.json"):
                text = path.read_text(encoding="utf-8")
                path.write_text(text.replace(old, new), encoding="utf-8")
