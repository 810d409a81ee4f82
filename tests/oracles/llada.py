"""LLaDA's sampler and Fast-dLLM's rules and caches, written naively from the papers in float64.

Sources: arXiv:2502.09992, Algorithms 4 and 5; arXiv:2505.22618, Algorithm 1, Theorem 1 and Section 3.1.
Shares nothing with the engine: its own network over the checkpoint's numbers, plain lists, one sequence,
full softmaxes, no batch, no canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Trace = list[list[tuple[int, int]]]


class Network:
    """The transformer in float64, one position at a time in the lists `keys` and `values`."""

    def __init__(self, model) -> None:
        self.spec = model.spec
        self.weights = {name: value.double() for name, value in model.named_parameters()}
        if self.spec.tie_embeddings:
            self.weights["lm_head.weight"] = self.weights["embed.weight"]
        self.forget()

    def forget(self) -> None:
        """Drop all keys and values."""
        self.keys = [{} for _ in range(self.spec.num_layers)]
        self.values = [{} for _ in range(self.spec.num_layers)]

    def linear(self, x, name):
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x, name):
        y = x / torch.sqrt((x * x).mean() + self.spec.norm_eps) * self.weights[f"{name}.weight"]
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def rotate(self, head, position):
        """Half-rotate: pair i with i + half, by the angle position / theta^(2i / width)."""
        half = len(head) // 2
        out = head.clone()
        for i in range(half):
            angle = position / self.spec.rope_theta ** (2 * i / len(head))
            cos, sin = math.cos(angle), math.sin(angle)
            out[i] = head[i] * cos - head[i + half] * sin
            out[i + half] = head[i + half] * cos + head[i] * sin
        return out

    def logits(self, ids: list[int], positions: list[int]) -> dict[int, torch.Tensor]:
        """Rows of `positions`, which alone are computed; other keys and values are the remembered ones."""
        width = self.spec.head_dim
        group = self.spec.num_heads // self.spec.num_kv_heads
        x = {p: self.weights["embed.weight"][ids[p]] for p in positions}
        for layer in range(self.spec.num_layers):
            name = f"layers.{layer}"
            queries = {}
            for p in positions:
                y = self.norm(x[p], f"{name}.attn_norm")
                q = self.linear(y, f"{name}.attn.q").split(width)
                k = self.linear(y, f"{name}.attn.k").split(width)
                queries[p] = [self.rotate(head, p) for head in q]
                self.keys[layer][p] = [self.rotate(head, p) for head in k]
                self.values[layer][p] = self.linear(y, f"{name}.attn.v").split(width)
            for p in positions:
                heads = []
                for h, query in enumerate(queries[p]):
                    keys = torch.stack([self.keys[layer][j][h // group] for j in range(len(ids))])
                    values = torch.stack(
                        [self.values[layer][j][h // group] for j in range(len(ids))]
                    )
                    heads.append(torch.softmax(keys @ query / math.sqrt(width), dim=0) @ values)
                x[p] = x[p] + self.linear(torch.cat(heads), f"{name}.attn.o")
                y = self.norm(x[p], f"{name}.ffn_norm")
                gate = self.linear(y, f"{name}.ffn.gate")
                inner = gate / (1 + torch.exp(-gate)) * self.linear(y, f"{name}.ffn.up")
                x[p] = x[p] + self.linear(inner, f"{name}.ffn.down")
        return {p: self.linear(self.norm(x[p], "norm"), "lm_head") for p in positions}


def keep_quota(k: int):
    """LLaDA: the k surest."""

    def rule(scored):
        return scored[:k]

    return rule


def keep_threshold(tau: float):
    """Fast-dLLM: the surest, and every one with confidence >= tau."""

    def rule(scored):
        return scored[:1] + [item for item in scored[1:] if item[0] >= tau]

    return rule


def keep_factor(phi: float):
    """Fast-dLLM: while (n + 1)(1 - c_n) < phi holds for ranks n = 1, 2...; at least one."""

    def rule(scored):
        kept = scored[:1]
        if 2 * scored[0][3] >= phi:
            return kept
        for n, item in enumerate(scored[1:], start=2):
            if (n + 1) * item[3] >= phi:
                break
            kept.append(item)
        return kept

    return rule


def keep_factor_as_published(phi: float):
    """The published loop: its index stops at the last rank on success and on failure, then adds one."""

    def rule(scored):
        rank = 1
        for rank in range(1, len(scored)):
            if 1 - scored[rank][3] < 1 - phi / (rank + 2):
                break
        else:
            rank = len(scored)
        if rank == len(scored) - 1:
            rank += 1
        return scored[: max(1, rank)]

    return rule


def decode(  # noqa: PLR0913 - the paper's arguments
    network: Network,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    rule_for: Callable[[int, int], Callable],
    forbidden: set[int],
    *,
    cache: str = "none",
    cfg_scale: float = 0.0,
    never: set[int] = frozenset(),
    doubted: set[int] = frozenset(),
    uniform: Callable[[int, int], float] | None = None,
) -> tuple[Trace, list[int]]:
    """The trace and the number of computed positions of each forward.

    `rule_for(num_masks_at_block_start, t)` gives the rule of forward t of a block; it sees tuples (score,
    position, token, 1 - confidence), the surest first. `uniform(forward, position)` replaces confidence
    as the score (random remasking).
    """
    spec, shift = network.spec, network.spec.shift_logits
    length = len(prompt) + gen_length
    ids: list[int] = prompt + [spec.mask_id] * gen_length
    undecided = set(range(len(prompt), length))
    trace: Trace = []
    computed: list[int] = []
    network.forget()
    for start in range(len(prompt), length, block_length):
        end = start + block_length
        t, at_start = 0, sum(p < end for p in undecided)
        while any(start <= p < end for p in undecided):
            candidates = sorted(p for p in undecided if p < end)
            rows = {p: (max(p - 1, 0) if shift else p) for p in candidates}
            if cache == "none" or t == 0:
                positions = list(range(length))
            elif cache == "prefix":
                positions = list(range(min(start, *rows.values()), length))
            else:
                positions = sorted({*range(start, end), *rows.values()})
            seen = network.logits(ids, positions)
            computed.append(len(positions))
            if cfg_scale:
                assert cache == "none"
                hidden = [spec.mask_id] * len(prompt) + ids[len(prompt) :]
                blind = network.logits(hidden, positions)
                seen = {p: blind[p] + (cfg_scale + 1) * (seen[p] - blind[p]) for p in positions}
            scored = []
            for p in candidates:
                row = seen[rows[p]].tolist()
                for token in never:
                    row[token] = -math.inf
                token = max(
                    (v for v in range(len(row)) if v not in forbidden), key=lambda v: (row[v], -v)
                )
                for other in doubted:
                    row[other] = -math.inf
                top = max(row)
                weights = [math.exp(value - top) for value in row]
                confidence = weights[token] / sum(weights)
                doubt = sum(w for v, w in enumerate(weights) if v != token) / sum(weights)
                score = uniform(len(trace), p) if uniform else confidence
                scored.append((score, p, token, doubt))
            scored.sort(key=lambda item: (-item[0], item[1]))
            kept = rule_for(at_start, t)(scored)
            for _, p, token, _ in kept:
                ids[p] = token
                undecided.remove(p)
            trace.append(sorted((p, token) for _, p, token, _ in kept))
            t += 1
    return trace, computed


def quota_rule(num_masks: int, steps: int) -> Callable[[int], Callable]:
    """LLaDA's schedule: `num_masks` over `steps` as evenly as possible, the larger counts first."""
    counts = [num_masks // steps] * steps
    for t in range(num_masks % steps):
        counts[t] += 1
    return lambda t: keep_quota(counts[t])
