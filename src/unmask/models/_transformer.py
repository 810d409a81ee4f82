"""The one transformer under every family, and the only caller of a key/value store.

Letters: B rows, Q queries, K keys, D width, H heads, G key/value heads, A head width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.models.spec import ModelSpec


class KeyValueHook(Protocol):
    """Where a layer leaves its new keys and values and gets all the visible ones."""

    def update(self, layer: int, k_BQGA: Tensor, v_BQGA: Tensor) -> tuple[Tensor, Tensor]:
        """Take the (already rotated) keys and values; give `(B, G, K, A)` keys and values."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast down, then scaled (the order of the released files)."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        y = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight
        return y if self.bias is None else y + self.bias


class Rotary:
    """Cosine and sine tables `(B, Q, 1, A)` for half-rotate RoPE at given positions."""

    def __init__(self, positions_BQ: Tensor, spec: ModelSpec, dtype: torch.dtype) -> None:
        steps = torch.arange(0, spec.head_dim, 2, device=positions_BQ.device, dtype=torch.float32)
        frequency = 1.0 / spec.rope_theta ** (steps / spec.head_dim)
        angle = positions_BQ[:, :, None, None].float() * frequency
        angle = torch.cat((angle, angle), dim=-1)
        self.dtype = torch.float32 if spec.rope_fp32 else dtype
        self.cos, self.sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def __call__(self, x_BQHA: Tensor) -> Tensor:
        """Rotate heads; the result has the input's dtype."""
        x = x_BQHA.to(self.dtype)
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return (x * self.cos + turned * self.sin).to(x_BQHA.dtype)


class Attention(nn.Module):
    """Grouped-query attention whose keys may come from a store."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, spec.head_dim
        self.grouped = spec.num_heads != spec.num_kv_heads
        q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q = nn.Linear(spec.d_model, q_width, bias=spec.qkv_bias)
        self.k = nn.Linear(spec.d_model, kv_width, bias=spec.qkv_bias)
        self.v = nn.Linear(spec.d_model, kv_width, bias=spec.qkv_bias)
        self.o = nn.Linear(q_width, spec.d_model, bias=spec.linear_bias)

    def forward(
        self, x_BQD: Tensor, rotary: Rotary, visible: Tensor | None, store: KeyValueHook | None
    ) -> Tensor:
        """Attend from the queries to every visible key."""
        rows, queries, _ = x_BQD.shape
        heads = (rows, queries, -1, self.head_dim)
        q, k = rotary(self.q(x_BQD).view(heads)), rotary(self.k(x_BQD).view(heads))
        v = self.v(x_BQD).view(heads)
        if store is None:
            keys, values = k.transpose(1, 2), v.transpose(1, 2)
        else:
            keys, values = store.update(self.layer, k, v)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=self.grouped
        )
        result: Tensor = self.o(out.transpose(1, 2).reshape(rows, queries, -1))
        return result


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.d_model, spec.d_ff, bias=spec.linear_bias)
        self.up = nn.Linear(spec.d_model, spec.d_ff, bias=spec.linear_bias)
        self.down = nn.Linear(spec.d_ff, spec.d_model, bias=spec.linear_bias)

    def forward(self, x: Tensor) -> Tensor:
        """`down(silu(gate) * up)`."""
        result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Layer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(spec.d_model, spec.norm_eps, spec.norm_bias)
        self.attn = Attention(spec, layer)
        self.ffn_norm = RMSNorm(spec.d_model, spec.norm_eps, spec.norm_bias)
        self.ffn = FeedForward(spec)

    def forward(
        self, x: Tensor, rotary: Rotary, visible: Tensor | None, store: KeyValueHook | None
    ) -> Tensor:
        """One block."""
        x = x + self.attn(self.attn_norm(x), rotary, visible, store)
        result: Tensor = x + self.ffn(self.ffn_norm(x))
        return result


class Transformer(nn.Module):
    """A masked-diffusion language model; `spec` says which."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.layers = nn.ModuleList(Layer(spec, i) for i in range(spec.num_layers))
        self.norm = RMSNorm(spec.d_model, spec.norm_eps, spec.norm_bias)
        if not spec.tie_embeddings:
            self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=spec.linear_bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.embed.weight.dtype

    def hidden(
        self,
        ids_BQ: Tensor,
        positions_BQ: Tensor,
        visible: Tensor | None = None,
        store: KeyValueHook | None = None,
        each: list[Tensor] | None = None,
    ) -> Tensor:
        """Final normed states `(B, Q, D)` of the queried positions.

        `visible`: bool `(B or 1, 1, Q, K)`, None when every query sees every key. `each` collects the
        input of every block and then the result.
        """
        x = self.embed(ids_BQ)
        rotary = Rotary(positions_BQ, self.spec, x.dtype)
        for layer in self.layers:
            if each is not None:
                each.append(x)
            x = layer(x, rotary, visible, store)
        x = self.norm(x)
        if each is not None:
            each.append(x)
        result: Tensor = x
        return result

    @property
    def head_weight(self) -> Tensor:
        """The `(V, D)` matrix that turns states into logits."""
        weight: Tensor = self.embed.weight if self.spec.tie_embeddings else self.lm_head.weight
        return weight

    def head(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Logits `(..., V)` of any rows of `hidden`; of the tokens `ids` alone when they are given."""
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
        """Raw logits `(B, T, V)`, never shifted: row i is what the network says at position i.

        `attention_mask`: None (the family's own topology over the whole input), 2-D bool or 0/1
        `(B, T)` (which positions are real; either side may be padded) or 4-D bool `(B or 1, 1, T, T)`
        (who sees whom). `position_ids` `(B, T)` default to the count of real tokens before each one.
        Rows of padded positions are undefined. `hidden_states` collects `num_layers + 1` states.
        Raises ConfigError for a mask of another rank or shape.
        """
        if input_ids.dim() != 2:
            raise ConfigError(f"input_ids of shape {tuple(input_ids.shape)}: use (batch, length)")
        batch, length = input_ids.shape
        real: Tensor | None = None
        visible: Tensor | None = None
        if attention_mask is not None and attention_mask.dim() == 4:
            if attention_mask.dtype != torch.bool:
                raise ConfigError(
                    f"a 4-D attention_mask must be bool (True = sees), not {attention_mask.dtype}"
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


def topology(spec: ModelSpec, positions_BT: Tensor, real_BT: Tensor | None) -> Tensor | None:
    """Who sees whom over a whole input: bool `(B, 1, T, T)`, or None when everyone sees everyone.

    A padded query still sees the real keys, so that its (unused) row is finite.
    """
    visible = None if real_BT is None else real_BT[:, None, None, :]
    if spec.block_size is not None:
        block = positions_BT // spec.block_size
        causal = (block[:, :, None] >= block[:, None, :])[:, None]
        visible = causal if visible is None else causal & visible
    if visible is None:
        return None
    return visible.expand(-1, 1, positions_BT.shape[1], -1)
