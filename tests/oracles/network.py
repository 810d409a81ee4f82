"""The transformer in float64, whole rows at a time, for the oracles; and the reading of one row of logits.

The same arithmetic as `llada.Network`, with tensors in place of lists, so that the golden 6 M-parameter
model answers in a fraction of a second. Rows are raw: with `spec.shift_logits`, row i - 1 answers position
i.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

LogitsFn = Callable[[list[int]], torch.Tensor]


def read(row: torch.Tensor, forbidden: set[int]) -> tuple[int, float]:
    """The best token that is not forbidden, the lowest id of equals, and its probability among all."""
    allowed = row.clone()
    allowed[sorted(forbidden)] = -math.inf
    token = int((allowed == allowed.max()).nonzero()[0])
    return token, float(torch.softmax(row, dim=0)[token])


def surest_first(scores: dict[int, float]) -> list[int]:
    """Positions by falling score; of equals, the lowest position first."""
    return sorted(scores, key=lambda p: (-scores[p], p))


class Network:
    """Forwards over one sequence; `keys[layer]` and `values[layer]` hold what each position had last."""

    def __init__(self, model) -> None:
        self.spec = model.spec
        self.weights = {name: value.double() for name, value in model.named_parameters()}
        if self.spec.tie_embeddings:
            self.weights["lm_head.weight"] = self.weights["embed.weight"]
        self.forget()

    def forget(self) -> None:
        """Drop all keys and values."""
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def linear(self, x, name):
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x, name):
        scale = torch.sqrt((x * x).mean(dim=-1, keepdim=True) + self.spec.norm_eps)
        y = x / scale * self.weights[f"{name}.weight"]
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def heads(self, x, name):
        return self.linear(x, name).unflatten(-1, (-1, self.spec.head_dim))

    def rotate(self, x, places):
        """Half-rotate: pair i with i + half, by the angle place / theta^(2i / width)."""
        half = self.spec.head_dim // 2
        steps = torch.arange(half, dtype=torch.float64) / half
        angles = torch.tensor(places, dtype=torch.float64)[:, None] / self.spec.rope_theta**steps
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        low, high = x[..., :half], x[..., half:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    @torch.no_grad()
    def forward(self, tokens, places, visible=None, stored=None):
        """Logits (T, V) of `tokens` at `places`.

        `visible` (T, T), if given, says which token each token reads. `stored` = (positions, length): the
        tokens' keys and values replace those of `positions` in the store, and all of the store is read.
        """
        group = self.spec.num_heads // self.spec.num_kv_heads
        x = self.weights["embed.weight"][tokens]
        for layer in range(self.spec.num_layers):
            name = f"layers.{layer}"
            y = self.norm(x, f"{name}.attn_norm")
            queries = self.rotate(self.heads(y, f"{name}.attn.q"), places)
            keys = self.rotate(self.heads(y, f"{name}.attn.k"), places)
            values = self.heads(y, f"{name}.attn.v")
            if stored is not None:
                keys, values = self.remember(layer, keys, values, *stored)
            keys = keys.repeat_interleave(group, dim=1)
            values = values.repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(self.spec.head_dim)
            if visible is not None:
                scores = scores.masked_fill(~visible, -math.inf)
            mixed = torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), values)
            x = x + self.linear(mixed.flatten(1), f"{name}.attn.o")
            y = self.norm(x, f"{name}.ffn_norm")
            gate = self.linear(y, f"{name}.ffn.gate")
            inner = gate / (1 + torch.exp(-gate)) * self.linear(y, f"{name}.ffn.up")
            x = x + self.linear(inner, f"{name}.ffn.down")
        return self.linear(self.norm(x, "norm"), "lm_head")

    def remember(self, layer, keys, values, positions, length):
        """The store of a layer after `positions` were written; never-computed positions are NaN."""
        if layer == len(self.keys):
            self.keys.append(keys.new_full((length, *keys.shape[1:]), math.nan))
            self.values.append(values.new_full((length, *values.shape[1:]), math.nan))
        self.keys[layer][positions] = keys
        self.values[layer][positions] = values
        assert len(self.keys[layer]) == length, "the store is of another canvas: forget() it first"
        return self.keys[layer], self.values[layer]

    def logits(self, ids: list[int], positions: list[int]) -> dict[int, torch.Tensor]:
        """Rows of `positions`, which alone are computed; other keys and values are the remembered ones."""
        tokens = [ids[p] for p in positions]
        rows = self.forward(tokens, positions, stored=(positions, len(ids)))
        assert not rows.isnan().any(), "a position was never computed"
        return dict(zip(positions, rows, strict=True))

    def uncached(self, ids: list[int]) -> torch.Tensor:
        """Logits (L, V) of the whole canvas, row i answering position i."""
        rows = self.forward(ids, list(range(len(ids))))
        return torch.cat([rows[:1], rows[:-1]]) if self.spec.shift_logits else rows
