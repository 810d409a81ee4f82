"""Weighted cross-entropy through the LM head, without the logits of more than a few positions in memory.

Letters: N masked positions, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.transformer import Transformer

MAX_LOGITS = 1 << 25
"""Maximum number of logits that are computed at once."""


class _Chunked(torch.autograd.Function):
    """Weighted sum of cross-entropies; the gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        states_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum and the losses `(N,)`, both float32."""
        needs = [states_ND.requires_grad, weight_VD.requires_grad]
        needs.append(bias_V is not None and bias_V.requires_grad)
        d_states = torch.empty_like(states_ND) if needs[0] else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs[1] else None
        d_bias = torch.zeros(len(weight_VD), device=states_ND.device) if needs[2] else None
        losses_N = torch.empty(len(states_ND), device=states_ND.device)
        step = max(1, MAX_LOGITS // len(weight_VD))
        for start in range(0, len(states_ND), step):
            rows = slice(start, start + step)
            logits = F.linear(states_ND[rows], weight_VD, bias_V).float()
            targets = targets_N[rows, None]
            log_sum = logits.logsumexp(-1, keepdim=True)
            losses_N[rows] = (log_sum - logits.gather(1, targets))[:, 0]
            gradient = logits.sub_(log_sum).exp_()
            gradient.scatter_add_(1, targets, -torch.ones_like(log_sum))
            gradient *= weights_N[rows, None]
            if d_bias is not None:
                d_bias += gradient.sum(0)
            gradient = gradient.to(weight_VD.dtype)
            if d_states is not None:
                d_states[rows] = (gradient @ weight_VD).to(d_states.dtype)
            if d_weight is not None:
                d_weight += gradient.T @ states_ND[rows].to(gradient.dtype)
        saved = [None if d is None else d for d in (d_states, d_weight, d_bias)]
        ctx.gradients = saved  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, outer: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients."""
        scaled = [None if d is None else d * outer.to(d.dtype) for d in ctx.gradients]  # type: ignore[attr-defined]
        return (*scaled, None, None)


def weighted_loss(
    model: Transformer, states_ND: Tensor, targets_N: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum of weight times cross-entropy, and the cross-entropies `(N,)` without a gradient.

    Float32 in any dtype of the model. Vocabulary times positions up to `MAX_LOGITS` are computed at once;
    beyond it in chunks, whose gradients are computed at once too, so that no logits are stored.
    """
    if len(states_ND) * model.spec.vocab_size <= MAX_LOGITS:
        logits = model.head(states_ND)
        losses = F.cross_entropy(logits.float(), targets_N, reduction="none")
        return (losses * weights_N).sum(), losses.detach()
    bias = None if model.spec.tie_embeddings else model.lm_head.bias
    total, losses = _Chunked.apply(states_ND, model.head_weight, bias, targets_N, weights_N)  # type: ignore[no-untyped-call]
    return total, losses
