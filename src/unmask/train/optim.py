"""Muon for the matrices, AdamW for the rest, one trapezoid schedule for both."""

from __future__ import annotations

import torch
from torch import nn

from unmask.errors import DependencyError
from unmask.train.recipe import Recipe


def optimizers(model: nn.Module, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """Return the two optimizers by name; `param_groups[0]["peak"]` stores each peak rate."""
    muon_class = getattr(torch.optim, "Muon", None)
    if muon_class is None:
        raise DependencyError(
            f"torch {torch.__version__} has no torch.optim.Muon; training needs torch 2.9 or newer: "
            f"pip install -U torch"
        )
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


def rate(step: int, recipe: Recipe) -> float:
    """Return the multiple of the peak rate at a step: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    left = (recipe.steps - step) / max(1, recipe.decay_steps)
    return warm * (recipe.final_lr + (1 - recipe.final_lr) * min(1.0, left))
