"""What a checkpoint is: sizes of the network and the facts that decoding needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One dense masked-diffusion transformer, independent of the family's spelling of it.

    Network: `vocab_size` rows of the embedding (may exceed the tokenizer), `d_model`, `num_layers`,
    `num_heads` / `num_kv_heads` of `head_dim`, SwiGLU of `d_ff`, RMSNorm `norm_eps`, half-rotate RoPE
    `rope_theta`. `rope_fp32` rotates in float32 (LLaDA); otherwise the tables take the model's dtype.
    Decoding: `mask_id`, `eos_id`, `pad_id`, `turn_end` (the text of the token that ends a chat turn),
    `shift_logits` (row i-1 predicts position i), `block_size` (block-causal attention counted from the
    first prompt token; None: every position sees every other), `max_length` in tokens.
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
    shift_logits: bool = False
    block_size: int | None = None
    turn_end: str | None = None
