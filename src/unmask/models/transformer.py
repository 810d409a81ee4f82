"""The transformer that every family shares.

Letters: B rows, T tokens, Q queries, K keys, D width, H heads, G key/value heads, A head width,
V vocabulary.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.models.experts import feed_forward
from unmask.models.ranks import ALONE, Ranks, part_of
from unmask.models.spec import ModelSpec


class AttentionBackend(Protocol):
    """Storage and attention of one forward pass: `Dense` here, others in `unmask.attention`."""

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Run one residual block; usually just `layer(x, rotary, self)`."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from queries `(..., H, A)` to rotated keys and values `(..., G, A)`: `(..., H, A)`."""
        ...


class Dense:
    """Attention of rows `(B, Q)` to themselves; `visible` bool `(B or 1, 1, Q, Q)`, None: all positions."""

    def __init__(self, visible: Tensor | None = None) -> None:
        self.visible = visible

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Run the block unchanged."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend inside each row."""
        return attention(q, k.transpose(1, 2), v.transpose(1, 2), self.visible)


def attention(
    q_BQHA: Tensor, keys_BGKA: Tensor, values_BGKA: Tensor, visible: Tensor | None
) -> Tensor:
    """Compute grouped-query attention, `(B, Q, H, A)`."""
    out = F.scaled_dot_product_attention(
        q_BQHA.transpose(1, 2),
        keys_BGKA,
        values_BGKA,
        attn_mask=visible,
        enable_gqa=q_BQHA.shape[2] != keys_BGKA.shape[1],
    )
    return out.transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast to the model's dtype, then scaled (most families' order).

    `norm_fp32` of the spec scales before the cast; the two differ in low precision only.
    """

    def __init__(self, width: int, spec: ModelSpec, bias: bool = False) -> None:
        super().__init__()
        self.eps, self.fp32 = spec.norm_eps, spec.norm_fp32
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        y = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        if self.fp32:
            y = (y * self.weight.float()).to(x.dtype)
        else:
            y = y.to(x.dtype) * self.weight
        return y if self.bias is None else y + self.bias


class Rotary:
    """Cosine and sine tables for half-rotate RoPE at given positions `(...)`.

    They are `(..., 1, R)` with R the spec's `rotary_dim`; a head's dimensions after the first R are not
    rotated.
    """

    def __init__(self, position_ids: Tensor, spec: ModelSpec, dtype: torch.dtype) -> None:
        width = spec.rotary_dim or spec.head_dim
        steps = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32)
        frequency = 1.0 / spec.rope_theta ** (steps / width)
        angle = position_ids[..., None, None].float() * frequency
        angle = torch.cat((angle, angle), dim=-1)
        self.dtype = torch.float32 if spec.rope_fp32 else dtype
        self.cos, self.sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def at(self, rows: Tensor) -> Rotary:
        """Return the tables of some rows of a flat list of positions."""
        part = copy(self)
        part.cos, part.sin = self.cos[rows], self.sin[rows]
        return part

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate heads `(..., H, A)`; the result has the input's dtype."""
        width = self.cos.shape[-1]
        part, half = x[..., :width].to(self.dtype), width // 2
        swapped = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
        rotated = (part * self.cos + swapped * self.sin).to(x.dtype)
        return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


class Attention(nn.Module):
    """Projections of grouped-query attention; the backend attends and stores keys and values."""

    def __init__(self, spec: ModelSpec, layer: int, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.layer, self.head_dim, self.ranks = layer, spec.head_dim, ranks
        q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q = nn.Linear(spec.d_model, q_width, bias=spec.qkv_bias)
        self.k = nn.Linear(spec.d_model, kv_width, bias=spec.qkv_bias)
        self.v = nn.Linear(spec.d_model, kv_width, bias=spec.qkv_bias)
        self.o = nn.Linear(q_width, spec.d_model, bias=spec.linear_bias and ranks.rank == 0)
        self.q_norm = RMSNorm(spec.head_dim, spec) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec) if spec.qk_norm else None

    def queries(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Project to queries `(..., H, A)`, normalized if the family does so, then rotated."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim))
        return rotary(q if self.q_norm is None else self.q_norm(q))

    def keys(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Project to keys `(..., G, A)`, normalized if the family does so, then rotated."""
        k = self.k(x).unflatten(-1, (-1, self.head_dim))
        return rotary(k if self.k_norm is None else self.k_norm(k))

    def values(self, x: Tensor) -> Tensor:
        """Project to values `(..., G, A)`."""
        result: Tensor = self.v(x).unflatten(-1, (-1, self.head_dim))
        return result

    def forward(self, x: Tensor, rotary: Rotary, backend: AttentionBackend) -> Tensor:
        """Attend from the queries to the keys and values that the backend provides."""
        q, k, v = self.queries(x, rotary), self.keys(x, rotary), self.values(x)
        return self.output(backend.attend(self.layer, q, k, v))

    def output(self, heads: Tensor) -> Tensor:
        """Project the heads' results `(..., H, A)` to `(..., D)` and sum over the ranks."""
        return self.ranks.sum(self.o(heads.flatten(-2)))


class Layer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, spec: ModelSpec, layer: int, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(spec.d_model, spec, spec.norm_bias)
        self.attn = Attention(spec, layer, ranks)
        self.ffn_norm = RMSNorm(spec.d_model, spec, spec.norm_bias)
        self.ffn = feed_forward(spec, layer, ranks)

    def forward(self, x: Tensor, rotary: Rotary, backend: AttentionBackend) -> Tensor:
        """Run the block."""
        x = x + self.attn(self.attn_norm(x), rotary, backend)
        result: Tensor = x + self.ffn(self.ffn_norm(x))
        return result


class Transformer(nn.Module):
    """A masked-diffusion language model of the sizes in `spec`.

    One of several `ranks` holds `part` of it: a share of the heads and of every feed-forward's width, and
    all other parameters whole, except for the LM head and the blocks' output biases, which only rank 0 has.
    """

    def __init__(self, spec: ModelSpec, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.spec, self.ranks, self.part = spec, ranks, part_of(spec, ranks.size)
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.layers = nn.ModuleList(Layer(self.part, i, ranks) for i in range(spec.num_layers))
        self.norm = RMSNorm(spec.d_model, spec, spec.norm_bias)
        if not spec.tie_embeddings and ranks.rank == 0:
            self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=spec.linear_bias)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embed.weight.dtype

    def hidden(
        self,
        ids: Tensor,
        position_ids: Tensor,
        visible: Tensor | None = None,
        backend: AttentionBackend | None = None,
        each: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the final normed states `(..., D)` of tokens `ids` at `position_ids` (of equal shapes).

        Without `backend` both are `(B, T)`, rows attend to themselves and `visible` is a bool
        `(B or 1, 1, T, T)`, None for full attention. With a backend, both have the shape that it requires.
        `each` collects the input of every block and then the result.
        """
        backend = Dense(visible) if backend is None else backend
        x = self.embed(ids)
        rotary = Rotary(position_ids, self.spec, x.dtype)
        for layer in self.layers:
            if each is not None:
                each.append(x)
            assert isinstance(layer, Layer), "built as Layer in __init__"
            x = backend.layer(layer, x, rotary)
        x = self.norm(x)
        if each is not None:
            each.append(x)
        result: Tensor = x
        return result

    @property
    def head_weight(self) -> Tensor:
        """The `(V, D)` matrix of the LM head."""
        weight: Tensor = self.embed.weight if self.spec.tie_embeddings else self.lm_head.weight
        return weight

    def head(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Compute logits `(..., V)` of rows of `hidden`; with `ids`, of these tokens only."""
        if ids is None and not self.spec.tie_embeddings:
            logits: Tensor = self.lm_head(hidden)
            return logits
        weight = self.head_weight
        bias: Tensor | None = None if self.spec.tie_embeddings else self.lm_head.bias
        if ids is not None:
            weight, bias = weight[ids], None if bias is None else bias[ids]
        return F.linear(hidden, weight, bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Compute raw logits `(B, T, V)`, never shifted: row i is the network's output at position i.

        `attention_mask`: None (the family's own topology over the whole input), 2-D bool or 0/1
        `(B, T)` (True for real positions; either side may be padded) or 4-D bool `(B or 1, 1, T, T)`
        (True where a query attends to a key). `position_ids` `(B, T)` default to the count of real tokens
        before each one. Rows of padded positions are undefined. `hidden_states` collects `num_layers + 1`
        states. Raises ConfigError for a mask of another rank or shape.
        """
        if input_ids.dim() != 2:
            raise ConfigError(f"input_ids of shape {tuple(input_ids.shape)}: use (batch, length)")
        batch, length = input_ids.shape
        real: Tensor | None = None
        visible: Tensor | None = None
        if attention_mask is not None and attention_mask.dim() == 4:
            if attention_mask.dtype != torch.bool:
                raise ConfigError(
                    f"a 4-D attention_mask must be bool (True = attends), not {attention_mask.dtype}"
                )
            if tuple(attention_mask.shape) not in {(n, 1, length, length) for n in (1, batch)}:
                raise ConfigError(
                    f"attention_mask of shape {tuple(attention_mask.shape)}: a 4-D mask must be (batch "
                    f"or 1, 1, length, length), here length = {length}"
                )
            visible = attention_mask
        elif attention_mask is not None:
            if tuple(attention_mask.shape) != (batch, length):
                raise ConfigError(
                    f"attention_mask of shape {tuple(attention_mask.shape)}: use (batch, length) = "
                    f"{(batch, length)}, or a bool mask (batch or 1, 1, length, length)"
                )
            real = attention_mask.bool()
        if position_ids is None:
            if real is None:
                position_ids = torch.arange(length, device=input_ids.device).expand(batch, length)
            else:
                position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)
        if visible is None:
            visible = topology(self.spec, position_ids, real)
        states = self.hidden(input_ids, position_ids, visible, each=hidden_states)
        return self.head(states)


def topology(spec: ModelSpec, position_ids_BT: Tensor, real_BT: Tensor | None) -> Tensor | None:
    """Return the attention mask of a whole input: bool `(B, 1, T, T)`, or None for full attention.

    A padded query still attends to the real keys, so that its (unused) row is finite.
    """
    visible = None if real_BT is None else real_BT[:, None, None, :]
    if spec.block_size is not None:
        block = position_ids_BT // spec.block_size
        causal = (block[:, :, None] >= block[:, None, :])[:, None]
        visible = causal if visible is None else causal & visible
    if visible is None:
        return None
    return visible.expand(-1, 1, position_ids_BT.shape[1], -1)
