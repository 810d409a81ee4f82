"""Training objectives as functions, for one's own loop.

    model = unmask.load_model("demo").train().requires_grad_(True)
    loss = unmask.objectives.sft_loss(model, ids, response, generator=generator)
    loss.backward()

`ids` are clean token ids, int64 `(B, T)`; masks are bool `(B, T)`; `generator` (of the CPU) is the only
source of randomness. Every loss is a float32 scalar with a gradient. The LM head runs at masked positions
only, in chunks. Models with shifted logits predict a position from the row before it and never mask
position 0; models with blocks run on `[noisy | clean]`, each block after the clean ones before it.

Letters: B rows, T positions, N masked tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import ConfigError
from unmask.models.transformer import Transformer
from unmask.train.config import NoiseConfig
from unmask.train.corrupt import Noisy
from unmask.train.dataset import Batch
from unmask.train.head import MAX_LOGITS, weighted_loss
from unmask.train.noise import Draw, Layout, corrupt_rows
from unmask.train.predict import masked_states

__all__ = [
    "block_diffusion_loss",
    "causal_loss",
    "confidence_loss",
    "diffu_grpo_loss",
    "dream_loss",
    "llada_loss",
    "masked_loss",
    "one_step_log_probs",
    "sft_loss",
    "trajectory_loss",
]


def llada_loss(
    model: Transformer,
    ids: Tensor,
    maskable: Tensor | None = None,
    *,
    generator: torch.Generator,
    noise: NoiseConfig | None = None,
) -> Tensor:
    """Return LLaDA's pre-training loss: `1/(B T)` times the sum of cross-entropy over `p_mask`.

    One level per row, `p = 1e-3 + (1 - 1e-3) t`; `maskable` (default: everything) limits the masks. Source:
    arXiv:2502.09992, Algorithm 1. Levels are stratified over the batch, unless `noise` says otherwise.
    """
    return _diffusion(model, ids, maskable, generator, noise, "llada", "batch")


def sft_loss(
    model: Transformer,
    ids: Tensor,
    response: Tensor,
    *,
    generator: torch.Generator,
    noise: NoiseConfig | None = None,
) -> Tensor:
    """Return LLaDA's fine-tuning loss: each row's sum over p and over its response's length, then the mean.

    `response` is True for the answer with its end-of-text padding; nothing else is masked. Source:
    arXiv:2502.09992, Algorithm 2.
    """
    return _diffusion(model, ids, response, generator, noise, "llada", "sequence")


def dream_loss(
    model: Transformer,
    ids: Tensor,
    response: Tensor | None = None,
    *,
    generator: torch.Generator,
    noise: NoiseConfig | None = None,
) -> Tensor:
    """Return Dream's loss: CART's weight of each masked token (`cart_weights`) instead of 1/p.

    Source: arXiv:2508.15487, Sec. 3.2. Normalized by all trainable tokens of the batch.
    """
    return _diffusion(model, ids, response, generator, noise, "dream", "tokens")


def block_diffusion_loss(
    model: Transformer,
    ids: Tensor,
    response: Tensor | None = None,
    *,
    block_size: int | None = None,
    generator: torch.Generator,
    noise: NoiseConfig | None = None,
) -> Tensor:
    """Return the loss of block diffusion: one level per block, weight 1/p, over all trainable tokens.

    `block_size` (default: the model's) counts from each row's first position; `noise.complementary` trains
    every token once per pair of rows (arXiv:2509.26328), `noise.low` and `noise.high` clip the levels.
    Source: arXiv:2503.09573, Sec. 3. Raises ConfigError without a block size.
    """
    size = block_size or model.spec.block_size
    if not size:
        raise ConfigError("block_size is not set, and the model has no blocks; give one, e.g. 32")
    return _diffusion(model, ids, response, generator, noise, "block_diffusion", "tokens", size)


def causal_loss(model: Transformer, ids: Tensor, response: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the next token, with causal attention.

    Raises ConfigError for a model whose logits are not shifted, as its rows do not predict the next token.
    """
    if not model.spec.shift_logits:
        raise ConfigError(
            "causal_loss needs a model with shifted logits; use one of shift_logits=True"
        )
    flags = _maskable(model, ids, response)
    batch = Batch(["row"] * len(ids), ids, Noisy(ids, flags / flags.sum().clamp(min=1)))
    return masked_loss(model, replace(batch, block_size=0, reach=0))


def _maskable(model: Transformer, ids: Tensor, maskable: Tensor | None) -> Tensor:
    """Return the flags of the positions that may be masked. Raises ConfigError for other shapes."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ConfigError(f"ids of {ids.dtype} {tuple(ids.shape)} must be int64 (batch, length)")
    if maskable is None:
        maskable = torch.ones_like(ids, dtype=torch.bool)
    if maskable.shape != ids.shape or maskable.dtype != torch.bool:
        raise ConfigError(
            f"a mask of {maskable.dtype} {tuple(maskable.shape)} must be bool {tuple(ids.shape)}"
        )
    if model.spec.shift_logits:
        maskable = maskable.clone()
        maskable[:, 0] = False
    return maskable


def _diffusion(
    model: Transformer,
    ids: Tensor,
    maskable: Tensor | None,
    generator: torch.Generator,
    noise: NoiseConfig | None,
    objective: str,
    denominator: str,
    block_size: int = 0,
) -> Tensor:
    noise = NoiseConfig() if noise is None else noise
    if noise.denominator == "auto":
        noise = replace(noise, denominator=denominator)  # type: ignore[arg-type]
    flags, device = _maskable(model, ids, maskable), ids.device
    rows, length = ids.shape
    layout = Layout(
        ids.cpu(),
        flags.cpu(),
        torch.arange(rows)[:, None].expand(rows, length),
        torch.arange(length).expand(rows, length),
        is_text=False,
        is_packed=False,
    )
    seed = int(torch.randint(2**62, (), generator=generator))
    draw = Draw(seed, rows, int(flags.sum()), block_size or model.spec.block_size or 0)
    noisy = corrupt_rows(layout, noise, draw, objective, model.spec.mask_id)
    clean = layout.ids_BT if len(noisy.ids_BT) == rows else torch.cat((layout.ids_BT,) * 2)
    batch = Batch(["row"] * len(clean), clean, noisy, block_size=block_size or None)
    return masked_loss(model, batch.to(device)) / rows


def masked_loss(model: Transformer, batch: Batch) -> Tensor:
    """Return the sum of weight times cross-entropy of a corrupted batch."""
    masked = batch.noisy.masked_BT
    states = masked_states(model, model.hidden, batch)
    weights = batch.noisy.weights_BT[masked]
    return weighted_loss(model, states, batch.clean_BT[masked], weights)[0]


def confidence_loss(model: Transformer, states_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the predictions whose most likely token is the target.

    Adding it makes the model surer where it is right, so that more tokens pass a threshold at once
    (LLaDA2.0's confidence-aware parallel training, arXiv:2512.15745). 0 if no prediction is right.
    """
    step = max(1, MAX_LOGITS // model.spec.vocab_size)
    total, count = states_ND.new_zeros((), dtype=torch.float32), 0
    for start in range(0, len(targets_N), step):
        rows = slice(start, start + step)
        with torch.no_grad():
            is_right = model.head(states_ND[rows]).argmax(-1) == targets_N[rows]
        if bool(is_right.any()):
            log_p = F.log_softmax(model.head(states_ND[rows][is_right]).float(), -1)
            total = total - (log_p.exp() * log_p).sum()
            count += int(is_right.sum())
    return total / max(1, count)


def trajectory_loss(
    model: Transformer,
    ids: Tensor,
    forwards: Tensor,
    *,
    generator: torch.Generator,
    span: int = 1,
) -> Tensor:
    """Return the loss of distilling a decode: what `span` forwards decided is predicted in one.

    `forwards` int64 `(B, T)` is the number of the forward that decided a position, counted from 0; -1 for
    the prompt. Per row a forward is drawn; everything decided from then on is masked, and the tokens that
    the next `span` forwards decide are the targets, each row with weight 1/B. Source: trajectory
    distillation of d3LLM (arXiv:2601.07568). Raises ConfigError for a row that decides nothing.
    """
    last = forwards.max(1).values
    if forwards.shape != ids.shape or bool((last < 0).any()) or span < 1:
        raise ConfigError(
            "forwards must have the shape of ids and decide a position in every row; span is at least 1"
        )
    u = torch.rand(len(ids), generator=generator).to(ids.device)
    cut = (u * (last + 1)).long()[:, None]
    masked = forwards >= cut
    targets = masked & (forwards < cut + span)
    if model.spec.shift_logits:
        targets = targets.clone()
        targets[:, 0] = False
    weights = targets / targets.sum(1, keepdim=True).clamp(min=1) / len(ids)
    noisy = Noisy(torch.where(masked, model.spec.mask_id, ids), weights)
    return masked_loss(model, Batch(["row"] * len(ids), ids, noisy))


@dataclass(frozen=True)
class Clipped:
    """A policy's loss, and the share of tokens whose ratio was clipped."""

    loss: Tensor
    clipped_share: float


def one_step_log_probs(
    model: Transformer,
    ids: Tensor,
    response: Tensor,
    *,
    seed: int,
    prompt_mask: float = 0.15,
    canvas: Tensor | None = None,
    inside: Tensor | None = None,
    hidden: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return each response token's log-probability `(B, T)`, 0 elsewhere, from one forward.

    The response is masked entirely and each prompt token with probability `prompt_mask`; the same `seed`
    masks the same tokens for the old, the new and the reference policy. `canvas`, bool `(B, T)`, are
    further masked positions, such as those after the end of an answer; positions that are not `inside`
    (default: all are) are padding, invisible to the others. `hidden`: the model's method, perhaps compiled.
    Source: d1, arXiv:2504.12216, Sec. 3.1.
    """
    flags = _maskable(model, ids, response)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(ids.shape, generator=generator).to(ids.device) < prompt_mask
    is_masked = response | drawn if canvas is None else response | canvas | drawn
    noisy = Noisy(torch.where(is_masked, model.spec.mask_id, ids), flags.float())
    segments = None
    if inside is not None and not bool(inside.all()):
        segments = torch.where(inside, torch.arange(len(ids), device=ids.device)[:, None], -1)
    batch = Batch(["row"] * len(ids), ids, noisy, segments_BT=segments)
    states = masked_states(model, model.hidden if hidden is None else hidden, batch)
    logits = model.head(states).float()
    found = logits.log_softmax(-1).gather(1, ids[flags][:, None])[:, 0]
    result = torch.zeros(ids.shape, device=ids.device)
    return result.masked_scatter(flags, found)


def diffu_grpo_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    response: Tensor,
    *,
    clip: float = 0.5,
    beta: float = 0.04,
) -> Clipped:
    """Return diffu-GRPO's loss of log-probabilities `(B, T)` and advantages `(B,)`.

    The clipped ratio of PPO per token and the estimate `exp(d) - d - 1` of the divergence from the
    reference, d = reference - new, averaged over each response and then over rows. Source:
    arXiv:2504.12216, Eq. 5.
    """
    ratio = (new - old.detach()).exp()
    gain = advantages[:, None]
    bounded = ratio.clamp(1 - clip, 1 + clip)
    per_token = -torch.minimum(ratio * gain, bounded * gain)
    if reference is not None and beta:
        d = reference.detach() - new
        per_token = per_token + beta * (d.exp() - d - 1)
    flags = response.float()
    count = flags.sum(1).clamp(min=1)
    loss = ((per_token * flags).sum(1) / count).mean()
    share = ((ratio != bounded).float() * flags).sum() / flags.sum().clamp(min=1)
    return Clipped(loss, float(share))
