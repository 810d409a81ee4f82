"""Muon for the matrices, AdamW for the rest, one trapezoid schedule for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from unmask.errors import DependencyError
from unmask.train.config import OptimConfig, TrainConfig
from unmask.train.recipe import Recipe


def _muon() -> Callable[..., torch.optim.Optimizer]:
    """Return the class Muon. Raises DependencyError with a torch that has none."""
    muon: Callable[..., torch.optim.Optimizer] | None = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise DependencyError(
            f"torch {torch.__version__} has no torch.optim.Muon; training needs torch 2.9 or newer: "
            f"pip install -U torch"
        )
    return muon


def optimizers(model: nn.Module, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """Return the two optimizers by name; `param_groups[0]["peak"]` stores each peak rate."""
    muon_class = _muon()
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and name.startswith("layers.")
        (matrices if is_matrix else rest).append(parameter)
    result: dict[str, torch.optim.Optimizer] = {
        "muon": muon_class(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        "adam": torch.optim.AdamW(
            rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=False
        ),
    }
    for optimizer in result.values():
        optimizer.param_groups[0]["peak"] = optimizer.param_groups[0]["lr"]
    return result


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig
) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a run on data files by name; each group's "peak" is its peak rate.

    Matrices decay, everything else does not. Raises DependencyError for Muon without torch 2.9.
    """
    optim = config.optim
    lr = optim.lr or (1e-3 if config.lora.rank else 3e-4) / (
        30 if config.objective == "diffu_grpo" else 1
    )
    matrices = [value for value in parameters.values() if value.dim() >= 2]
    rest = [value for value in parameters.values() if value.dim() < 2]
    result: dict[str, torch.optim.Optimizer] = {}
    if optim.name == "muon":
        layers = [v for k, v in parameters.items() if v.dim() == 2 and k.startswith("layers.")]
        chosen = {id(value) for value in layers}
        matrices = [value for value in matrices if id(value) not in chosen]
        result["muon"] = _muon()(layers, lr=optim.muon_lr, weight_decay=optim.weight_decay)
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    if used:
        result["adam"] = torch.optim.AdamW(used, lr=lr, betas=(0.9, 0.95))
    for optimizer in result.values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return result


def trapezoid(step: int, steps: int, optim: OptimConfig) -> float:
    """Return the multiple of the peak rate at a step: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1.0, optim.warmup * steps))
    left = min(1.0, (steps - step) / max(1.0, optim.decay * steps))
    return warm * (optim.final + (1 - optim.final) * left)


def rate(step: int, recipe: Recipe) -> float:
    """Return the multiple of the peak rate at a step: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    left = (recipe.steps - step) / max(1, recipe.decay_steps)
    return warm * (recipe.final_lr + (1 - recipe.final_lr) * min(1.0, left))
