"""Specification of a checkpoint: the sizes of its network and the ids and rules of its decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unmask.errors import ModelError

MAX_EXPERTS = 1 << 16
"""Maximum number of experts in all layers, several times that of any release."""


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """A mixture of `num_experts` SwiGLUs of width `d_ff`, of which each token uses `num_chosen`.

    The router scores every expert (`score`: softmax over all, or sigmoid of each), adds a constant per
    expert with `router_bias`, and chooses the best inside the best `num_chosen_groups` of `num_groups`
    equal groups; a group's score is the sum of its two best experts. The weight of a chosen expert is its
    score, with the constant if `is_bias_weighed`, divided by the sum over the chosen if `renormalize`,
    times `scale`. `in_fp32` scores and sums in float32, otherwise logits and sum have the model's dtype.
    `d_shared`: width of a further SwiGLU for all tokens (0: none). `dense_layers` have one SwiGLU of the
    model's `d_ff` instead.
    """

    num_experts: int
    num_chosen: int
    d_ff: int
    score: Literal["softmax", "sigmoid"]
    renormalize: bool
    scale: float = 1.0
    num_groups: int = 1
    num_chosen_groups: int = 1
    router_bias: bool = False
    is_bias_weighed: bool = False
    in_fp32: bool = False
    d_shared: int = 0
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One masked-diffusion transformer, independent of the family's config.

    Network: `vocab_size` rows of the embedding (may exceed the tokenizer), `d_model`, `num_layers`,
    `num_heads` / `num_kv_heads` of `head_dim`, SwiGLU of `d_ff` (or `experts`), RMSNorm `norm_eps`,
    half-rotate RoPE `rope_theta` on a head's first `rotary_dim` dimensions (None: all). `qk_norm` norms
    each head of queries and keys before RoPE. `rope_fp32` rotates in float32 (LLaDA); otherwise the tables
    take the model's dtype. `norm_fp32` scales norms in float32 (SDAR); otherwise in the model's dtype.
    Decoding: `mask_id`, `eos_id`, `pad_id`, `turn_end` (the text of the token that ends a chat turn),
    `shift_logits` (row i-1 predicts position i), `block_size` (block-causal attention counted from the
    first prompt token; None: bidirectional attention), `max_length` in tokens. `end_ids` are
    further tokens that end an answer, without the end of a turn; `bos_id`: the begin token, or None.
    `notes` are sentences on special ids that disagree between the checkpoint's files or are left out,
    `minor_notes` on those that decoding does not use.
    """

    family: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float
    norm_eps: float
    max_length: int
    mask_id: int
    eos_id: int
    pad_id: int
    qkv_bias: bool = False
    linear_bias: bool = False
    norm_bias: bool = False
    tie_embeddings: bool = False
    rope_fp32: bool = False
    norm_fp32: bool = False
    qk_norm: bool = False
    rotary_dim: int | None = None
    experts: ExpertSpec | None = None
    shift_logits: bool = False
    block_size: int | None = None
    turn_end: str | None = None
    end_ids: tuple[int, ...] = ()
    bos_id: int | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    minor_notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Raise ModelError for more experts than a loader can name one by one."""
        num_experts = 0 if self.experts is None else self.experts.num_experts * self.num_layers
        if num_experts > MAX_EXPERTS:
            raise ModelError(
                f"config.json: {self.num_layers} layers of experts have {num_experts} together, and at "
                f"most {MAX_EXPERTS} are read; download config.json again"
            )
