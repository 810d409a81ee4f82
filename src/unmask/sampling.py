"""From logits to proposals: on the device, in float32, one small result a row.

Letters: N rows, V vocabulary.

Randomness is counter-based: a number is a function of (seed, forward, slot identity, token id) alone, so
a sample does not depend on the batch, the cache, the device or the order of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Floats, Ints
from unmask.errors import ConfigError

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Proposal:
    """How a token is proposed at a slot; the same for every decoder.

    `temperature` >= 0: 0 takes the likeliest token, else Gumbel-max in float64. `cfg_scale` >= 0:
    classifier-free guidance `un + (1 + w)(cond - un)`, where `un` sees the prompt masked (LLaDA,
    Eq. 16); 0 is off. `logits_eos_inf`: never propose end-of-text. `confidence_eos_eot_inf`: give a
    proposed end-of-text or end-of-turn no confidence, so that they are committed last; with `compat`
    and temperature > 0 only end-of-turn, as LLaDA's published code does.
    """

    temperature: float = 0.0
    cfg_scale: float = 0.0
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (value >= 0 and np.isfinite(value)):
                raise ConfigError(f"{name}={value} must be a number, not negative")


def _mix_host(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def row_keys(seed: int, forward: int, uids: Ints) -> np.ndarray:
    """One uint64 key a slot."""
    with np.errstate(over="ignore"):
        key = np.full(len(uids), seed & (2**64 - 1), dtype=np.uint64)
        for part in (np.full(len(uids), forward), uids):
            key = _mix_host(key * np.uint64(_GOLDEN) + part.astype(np.uint64) + np.uint64(1))
    return key


def uniform(keys: np.ndarray) -> Floats:
    """One number in [0, 1) a key."""
    bits = _mix_host(keys ^ np.uint64(_GOLDEN)) >> np.uint64(11)
    numbers: Floats = bits.astype(np.float64) * 2.0**-53
    return numbers


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix_device(x: Tensor) -> Tensor:
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1]), (31, None)):
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        if factor is not None:
            x = x * _signed(factor)
    return x


def gumbel(keys_N: Tensor, vocab_size: int) -> Tensor:
    """`(N, V)` float64 Gumbel noise from int64 keys."""
    token = torch.arange(1, vocab_size + 1, device=keys_N.device) * _signed(_GOLDEN)
    bits = (_mix_device(keys_N[:, None] + token) >> 11) & ((1 << 53) - 1)
    u = (bits.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(u))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids with a meaning to the sampler: never proposed, end of text, end of turn (or None)."""

    forbidden: Tensor
    eos_id: int | None
    turn_end_id: int | None


def propose(
    logits_NV: Tensor, rules: list[Proposal], keys: np.ndarray, vocabulary: Vocabulary
) -> Tensor:
    """Token and log-odds of every row, packed as float64 `(N, 2)` on the device.

    One rule and one uint64 key a row. `logits_NV` is overwritten. The probability is normalized over
    the whole vocabulary; ties between tokens go to the lowest id.
    """
    logits = logits_NV.float()
    no_eos = [i for i, rule in enumerate(rules) if rule.logits_eos_inf]
    if no_eos and vocabulary.eos_id is not None:
        logits[no_eos, vocabulary.eos_id] = -torch.inf
    held = logits[:, vocabulary.forbidden]
    logits[:, vocabulary.forbidden] = -torch.inf
    tokens = logits.argmax(dim=-1)
    warm = [i for i, rule in enumerate(rules) if rule.temperature > 0]
    if warm:
        scale = torch.tensor(
            [rules[i].temperature for i in warm], dtype=torch.float64, device=logits.device
        )
        on_device = torch.from_numpy(keys[warm].view(np.int64)).to(logits.device)
        noisy = gumbel(on_device, logits.shape[-1]).mul_(scale[:, None]).add_(logits[warm])
        noisy[:, vocabulary.forbidden] = -torch.inf
        tokens[warm] = noisy.argmax(dim=-1)
    logits[:, vocabulary.forbidden] = held
    for rows, token_id in _suppressed_scores(rules, vocabulary):
        logits[rows, token_id] = -torch.inf
    return torch.stack((tokens.double(), log_odds(logits, tokens).double()), dim=-1)


def _suppressed_scores(
    rules: list[Proposal], vocabulary: Vocabulary
) -> list[tuple[list[int], int]]:
    """(rows, token id) pairs whose probability counts as 0 in the score."""
    rows = [i for i, rule in enumerate(rules) if rule.confidence_eos_eot_inf]
    eos_rows = [i for i in rows if not (rules[i].compat and rules[i].temperature > 0)]
    pairs = ((rows, vocabulary.turn_end_id), (eos_rows, vocabulary.eos_id))
    return [(chosen, id_) for chosen, id_ in pairs if chosen and id_ is not None]


def log_odds(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """ln(p / (1 - p)) of one token a row: its logit less the logsumexp of the others.

    Nothing cancels or underflows, so the order holds at any distance from p = 1. Overwrites the logits.
    """
    own = logits_NV.gather(-1, tokens_N[:, None])[:, 0]
    others = logits_NV.scatter_(-1, tokens_N[:, None], -torch.inf)
    top = others.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(others.dtype).min)
    return own - (others.sub_(top).exp_().sum(dim=-1).log() + top[:, 0])
