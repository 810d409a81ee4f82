"""The transformer that every family shares.

Letters: B rows, T tokens, Q queries, K keys, D width, H heads, G key/value heads, A head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.models.experts import FeedForward, feed_forward
from unmask.models.fused import Fused, FusedLinear, can_fuse
from unmask.models.ranks import ALONE, Ranks, part_of
from unmask.models.spec import ModelSpec

MASK_ALIGNMENT = 8
"""Numbers of which the rows of a prepared mask are a multiple: 16 bytes in bfloat16."""
CPU_QUERIES = 32
"""Queries that the CPU's attention kernel takes at a time."""


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
    """Compute grouped-query attention, `(B, Q, H, A)`.

    `visible` is a bool mask `(B or 1, 1, Q, K)`, or what `prepare_mask` made of one. Off the CPU, the H / G
    queries of a key are further rows of its head, since no fast kernel takes both a mask and groups
    (torch 2.6 to 2.12).
    """
    num_shared = q_BQHA.shape[2] // keys_BGKA.shape[1]
    if _leaves_one(q_BQHA):
        q_BQHA = torch.cat((q_BQHA, q_BQHA[:, -1:]), dim=1)
        if visible is not None and visible.shape[-2] > 1:
            visible = torch.cat((visible, visible[..., -1:, :]), dim=-2)
        return attention(q_BQHA, keys_BGKA, values_BGKA, visible)[:, :-1]
    if visible is None or num_shared == 1 or not _folds(q_BQHA):
        out = F.scaled_dot_product_attention(
            q_BQHA.transpose(1, 2),
            keys_BGKA,
            values_BGKA,
            attn_mask=visible,
            enable_gqa=num_shared > 1,
        )
        return out.transpose(1, 2)
    if visible.shape[-2] == q_BQHA.shape[1]:
        visible = prepare_mask(visible, num_shared, q_BQHA)
    out = F.scaled_dot_product_attention(
        fold_groups(q_BQHA, num_shared), keys_BGKA, values_BGKA, attn_mask=visible
    )
    batch, queries, heads, width = q_BQHA.shape
    split = out.reshape(batch, heads // num_shared, num_shared, queries, width)
    return split.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _leaves_one(q_BQHA: Tensor) -> bool:
    """Return whether a bfloat16 kernel of the CPU is left with one query, for three times the time of two.

    It is with one position, and with a block and one row more where the logits are shifted.
    """
    is_slow = q_BQHA.dtype == torch.bfloat16 and q_BQHA.device.type == "cpu"
    return is_slow and q_BQHA.shape[1] % CPU_QUERIES == 1


def fold_groups(q_BQHA: Tensor, num_shared: int) -> Tensor:
    """Return queries `(B, G, num_shared * Q, A)`: those that share a key's head follow each other there."""
    batch, queries, heads, width = q_BQHA.shape
    split = q_BQHA.reshape(batch, queries, heads // num_shared, num_shared, width)
    return split.permute(0, 2, 3, 1, 4).flatten(2, 3)


def prepare_mask(visible: Tensor, num_shared: int, queries: Tensor) -> Tensor:
    """Return a bool mask `(B, 1, Q, K)` in the form in which `attention` need not convert it again.

    On the CPU it is the mask itself. Elsewhere it is 0 or -inf in the dtype of `queries`, with rows that
    start at multiples of 16 bytes as the fast kernels require, `(B, 1, num_shared * Q, K)`.
    """
    if not _folds(queries):
        return visible
    num_keys = visible.shape[-1]
    width = -(-num_keys // MASK_ALIGNMENT) * MASK_ALIGNMENT
    shape = (visible.shape[0], 1, num_shared, visible.shape[2], width)
    bias = torch.full(shape, -torch.inf, dtype=queries.dtype, device=queries.device)
    bias[..., :num_keys].masked_fill_(visible[:, :, None], 0.0)
    return bias.flatten(2, 3)[..., :num_keys]


def _folds(queries: Tensor) -> bool:
    return queries.device.type != "cpu"


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
        # `rms_norm` computes in float32, whatever the dtype, and rounds to the dtype of its input. In
        # float32 there is no cast between norm and scale, so that their order makes no difference.
        shape, dtype, weight = (x.shape[-1],), x.dtype, self.weight
        if self.fp32 or dtype == weight.dtype == torch.float32:
            y = F.rms_norm(x, shape, weight.to(dtype), self.eps).to(dtype)
        else:
            y = F.rms_norm(x, shape, eps=self.eps).to(dtype) * weight
        return y if self.bias is None else y + self.bias


class Rotary:
    """Cosine and sine tables for half-rotate RoPE at given positions `(...)`.

    They are `(..., 1, R)` with R the spec's `rotary_dim`; a head's dimensions after the first R are not
    rotated. The first half of the sines is negative: rotating the dimensions `(a, b)` gives
    `(a cos - b sin, b cos + a sin)`.
    """

    def __init__(self, position_ids: Tensor, spec: ModelSpec, dtype: torch.dtype) -> None:
        width = spec.rotary_dim or spec.head_dim
        steps = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32)
        frequency = 1.0 / spec.rope_theta ** (steps / width)
        angle = position_ids[..., None, None].float() * frequency
        self.dtype = torch.float32 if spec.rope_fp32 else dtype
        cos, sin = angle.cos(), angle.sin()
        self.cos = torch.cat((cos, cos), dim=-1).to(self.dtype)
        self.sin = torch.cat((-sin, sin), dim=-1).to(self.dtype)

    def at(self, rows: Tensor) -> Rotary:
        """Return the tables of some rows of a flat list of positions."""
        part = copy(self)
        part.cos, part.sin = self.cos[rows], self.sin[rows]
        return part

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate heads `(..., H, A)`; the result has the input's dtype."""
        width = self.cos.shape[-1]
        part = x[..., :width]
        if part.element_size() > self.dtype.itemsize:
            part = part.to(self.dtype)
        along, rolled = part * self.cos, part.roll(width // 2, dims=-1)
        if torch.is_grad_enabled():
            rotated = (along + rolled * self.sin).to(x.dtype)
        else:  # in one pass, rounded once
            out = torch.empty_like(part, dtype=x.dtype)
            if x.dtype == torch.float32:  # a fused product and sum has other bits
                rotated = torch.add(along, rolled * self.sin, out=out)
            else:
                rotated = torch.addcmul(along, rolled, self.sin, out=out)
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
        self.fused: Fused | None = None
        """The product for queries, keys and values; see `fuse_products` and `pack_weights`."""

    def queries_and_keys(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Project to rotated queries `(..., H, A)` and keys `(..., G, A)`, normed if the family does so."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim))
        k = self.k(x).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        both = rotary(torch.cat((q, k), dim=-2))
        return both[..., : q.shape[-2], :], both[..., q.shape[-2] :, :]

    def values(self, x: Tensor) -> Tensor:
        """Project to values `(..., G, A)`."""
        result: Tensor = self.v(x).unflatten(-1, (-1, self.head_dim))
        return result

    def forward(self, x: Tensor, rotary: Rotary, backend: AttentionBackend) -> Tensor:
        """Attend from the queries to the keys and values that the backend provides."""
        if self.fused is None or not self.fused.fits(x, self.q, self.k, self.v):
            q, k = self.queries_and_keys(x, rotary)
            return self.output(backend.attend(self.layer, q, k, self.values(x)))
        heads = self.fused(x).view(*x.shape[:-1], -1, self.head_dim)
        num_keys = self.k.out_features // self.head_dim
        num_queries = heads.shape[-2] - 2 * num_keys
        q, k, v = torch.split(heads, [num_queries, num_keys, num_keys], dim=-2)
        if self.q_norm is not None and self.k_norm is not None:
            both = rotary(torch.cat((self.q_norm(q), self.k_norm(k)), dim=-2))
        else:
            both = rotary(heads[..., : num_queries + num_keys, :])
        q, k = both[..., :num_queries, :], both[..., num_queries:, :]
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


def embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding with PyTorch's initial values, without any on the meta device.

    There, drawing them imports `torch._dynamo`, which takes longer than everything else of a start.
    """
    if torch.get_default_device().type == "meta":
        return nn.Embedding(rows, width, _weight=torch.empty(rows, width))
    return nn.Embedding(rows, width)


class Transformer(nn.Module):
    """A masked-diffusion language model of the sizes in `spec`.

    One of several `ranks` holds `part` of it: a share of the heads and of every feed-forward's width, and
    all other parameters whole, except for the LM head and the blocks' output biases, which only rank 0 has.
    """

    def __init__(self, spec: ModelSpec, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.spec, self.ranks, self.part = spec, ranks, part_of(spec, ranks.size)
        self.embed = embedding(spec.vocab_size, spec.d_model)
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


def products_of_one_input(
    model: nn.Module,
) -> Iterator[tuple[Attention | FeedForward, dict[str, nn.Module]]]:
    """Yield each module whose `fused` may be one product, with the layers of it by name."""
    for module in model.modules():
        if isinstance(module, Attention):
            yield module, {"q": module.q, "k": module.k, "v": module.v}
        elif isinstance(module, FeedForward):
            yield module, {"gate": module.gate, "up": module.up}


def fuse_products(model: Transformer) -> int:
    """Make one product of query, key and value and one of gate and up, in every layer; return their number.

    No memory is added. Layers that are quantized or have an adapter stay as they are. The parameters become
    others, of which an optimizer of the old ones does not know.
    """
    count = 0
    for module, layers in products_of_one_input(model):
        plain = [layer for layer in layers.values() if type(layer) is nn.Linear]
        if len(plain) == len(layers) and can_fuse(plain):
            module.fused = FusedLinear(plain)
            count += 1
    return count
