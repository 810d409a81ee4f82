"""Feed-forward layers: SwiGLU, or a mixture of experts (a few of many small SwiGLUs per token).

Only chosen experts are computed, with the tokens sorted by expert. On a GPU three grouped products
(`torch.nn.functional.grouped_mm`) process the tokens of all experts, and the host never learns the choice.
On a CPU each chosen expert is one product after the other, from packed weights if there are any, and so it
is on a GPU where the grouped product is missing or cannot take the matrices; there the host waits for the
choice in every layer.

Source: routers of LLaDA-MoE (arXiv:2509.24389), Qwen3-MoE (arXiv:2505.09388), LLaDA2 (arXiv:2512.15745).

Letters: N tokens, D width, E experts, K experts of a token, P = N K pairs of both, sorted by expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.fused import Fused
from unmask.models.ranks import ALONE, Ranks
from unmask.models.spec import ExpertSpec, ModelSpec

GROUPED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that the grouped product takes."""
GROUPED_ALIGNMENT = 16
"""Bytes of which the length of a row of its matrices must be a multiple."""


def feed_forward(spec: ModelSpec, layer: int, ranks: Ranks = ALONE) -> nn.Module:
    """Build the feed-forward part of block `layer`."""
    if spec.experts is None or layer in spec.experts.dense_layers:
        return FeedForward(spec.d_model, spec.d_ff, spec.linear_bias, ranks)
    return Experts(spec.d_model, spec.experts, ranks)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, d_model: int, d_ff: int, bias: bool = False, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.ranks = ranks
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias and ranks.rank == 0)
        self.fused: Fused | None = None
        """The product for gate and up; see `fuse_products` and `pack_weights`."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute `down(silu(gate) * up)`, summed over the ranks."""
        if torch.is_grad_enabled():
            return self.ranks.sum(self.down(F.silu(self.gate(x)) * self.up(x)))
        if self.fused is not None and self.fused.fits(x, self.gate, self.up):
            gate, up = self.fused(x).chunk(2, dim=-1)
            return self.ranks.sum(self.down(F.silu(gate).mul_(up)))
        # In place, to save a third tensor of this size.
        inner = F.silu(self.gate(x), inplace=True).mul_(self.up(x))
        return self.ranks.sum(self.down(inner))


class Router(nn.Module):
    """Choice of each token's experts and their weights. `torch.topk` decides ties between experts."""

    def __init__(self, d_model: int, spec: ExpertSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.randn(spec.num_experts, d_model) / d_model**0.5)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts)) if spec.router_bias else None

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights, float32, and the experts, both `(N, K)`."""
        spec = self.spec
        if spec.in_fp32:
            logits_NE = F.linear(x_ND.float(), self.weight.float())
        else:
            logits_NE = F.linear(x_ND, self.weight).float()
        score_NE = logits_NE.sigmoid() if spec.score == "sigmoid" else logits_NE.softmax(-1)
        choice_NE = score_NE if self.bias is None else score_NE + self.bias.float()
        if spec.num_chosen_groups < spec.num_groups:
            choice_NE = self._in_best_groups(choice_NE)
        chosen_NK = choice_NE.topk(spec.num_chosen, dim=-1).indices
        weight_NK = (choice_NE if spec.is_bias_weighed else score_NE).gather(-1, chosen_NK)
        if spec.renormalize:
            weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20)
        return weight_NK * spec.scale, chosen_NK

    def _in_best_groups(self, choice_NE: Tensor) -> Tensor:
        """Set scores outside the best groups to -inf; a group's score is the sum of its two best."""
        size = self.spec.num_experts // self.spec.num_groups
        grouped = choice_NE.view(-1, self.spec.num_groups, size)
        scores = grouped.topk(2, dim=-1).values.sum(-1)
        best = scores.topk(self.spec.num_chosen_groups, dim=-1).indices
        out = torch.ones_like(scores, dtype=torch.bool).scatter(-1, best, False)
        return grouped.masked_fill(out[..., None], -torch.inf).flatten(-2)


class Stack(nn.Module):
    """One matrix `(out, in)` of every expert, `(E, out, in)`."""

    def __init__(self, count: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width_out, width_in) / width_in**0.5)

    def times(self, expert: int, x: Tensor) -> Tensor:
        """Compute `x W^T` with one expert's matrix."""
        return F.linear(x, self.weight[expert])


class Bank(nn.Module):
    """The experts' matrices."""

    def __init__(self, d_model: int, spec: ExpertSpec) -> None:
        super().__init__()
        self.gate = Stack(spec.num_experts, d_model, spec.d_ff)
        self.up = Stack(spec.num_experts, d_model, spec.d_ff)
        self.down = Stack(spec.num_experts, spec.d_ff, d_model)

    def apply_to(self, expert: int, x_ND: Tensor) -> Tensor:
        """Compute the SwiGLU of one expert."""
        inner = F.silu(self.gate.times(expert, x_ND)) * self.up.times(expert, x_ND)
        return self.down.times(expert, inner)

    def can_group(self, x: Tensor) -> bool:
        """Return True if the grouped product exists and takes the matrices and inputs of this dtype."""
        weight = self.gate.weight
        widths = (weight.shape[1], weight.shape[2])
        return (
            hasattr(F, "grouped_mm")
            and x.dtype == weight.dtype
            and x.dtype in GROUPED_DTYPES
            and all(width * x.element_size() % GROUPED_ALIGNMENT == 0 for width in widths)
        )

    def grouped(self, x_PD: Tensor, ends_E: Tensor) -> Tensor:
        """Compute the SwiGLUs of all experts, `(P, D)`; expert e has the rows up to int32 `ends[e]`."""
        gate, up, down = (each.weight.transpose(1, 2) for each in (self.gate, self.up, self.down))
        inner = F.silu(F.grouped_mm(x_PD, gate, offs=ends_E))
        inner = inner * F.grouped_mm(x_PD, up, offs=ends_E)
        return F.grouped_mm(inner, down, offs=ends_E)


class Experts(nn.Module):
    """Weighted sum of a token's experts, plus the shared one if there is one.

    Every rank routes every token and holds a part of each expert's width, so that all ranks do equal work.
    """

    def __init__(self, d_model: int, spec: ExpertSpec, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.in_fp32, self.ranks = spec.in_fp32, ranks
        self.router = Router(d_model, spec)
        self.experts = Bank(d_model, spec)
        self.shared = FeedForward(d_model, spec.d_shared) if spec.d_shared else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `(..., D)`; the sum over the experts is in float32 or in the model's dtype."""
        x_ND = x.reshape(-1, x.shape[-1])
        weight_NK, chosen_NK = self.router(x_ND)
        is_grouped = x.device.type != "cpu" and self.experts.can_group(x)
        mix = self.mix_grouped if is_grouped else self.mix_in_turn
        kind = torch.float32 if self.in_fp32 else x.dtype
        result = mix(x_ND, weight_NK.to(kind), chosen_NK).to(x.dtype).view(x.shape)
        return self.ranks.sum(result if self.shared is None else result + self.shared(x))

    def mix_in_turn(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Return the weighted sums `(N, D)` in the weights' dtype, with a product for each chosen expert.

        They run over ascending experts. The host reads the choice.
        """
        num_chosen = chosen_NK.shape[1]
        order = chosen_NK.flatten().argsort(stable=True)
        counts = chosen_NK.flatten().bincount(minlength=len(self.router.weight)).tolist()
        total_ND = torch.zeros(x_ND.shape, dtype=weight_NK.dtype, device=x_ND.device)
        weights = weight_NK.flatten()
        start = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            pairs = order[start : start + count]
            tokens = pairs // num_chosen
            output = self.experts.apply_to(expert, x_ND[tokens])
            total_ND.index_add_(0, tokens, output.to(total_ND.dtype) * weights[pairs, None])
            start += count
        return total_ND

    def mix_grouped(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Return the same sums with grouped products, over the experts in the order of the choice.

        The number of operations does not depend on the tokens, and the host reads nothing.
        """
        experts_P, order_P = chosen_NK.flatten().sort(stable=True)
        all_E = torch.arange(len(self.router.weight), device=x_ND.device)
        ends_E = torch.searchsorted(experts_P, all_E, right=True, out_int32=True)
        sorted_PD = self.experts.grouped(x_ND[order_P // chosen_NK.shape[1]], ends_E)
        output_PD = torch.empty_like(sorted_PD).index_copy_(0, order_P, sorted_PD)
        output_NKD = output_PD.view(*chosen_NK.shape, x_ND.shape[-1])
        return (output_NKD * weight_NK[..., None]).sum(dim=1)
