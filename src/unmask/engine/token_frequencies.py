"""Background frequencies of tokens: counted in texts, or estimated with the model.

Letters: B canvases of a batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.errors import ConfigError, ModelError, PromptError
from unmask.knobs import whole
from unmask.models.transformer import Transformer, topology
from unmask.sampling.token_frequencies import MIN_FREQUENCY

HEAD_CHUNK = 1 << 24
"""Logits computed at a time: 64 MB in float32, and as much again for the probabilities."""
MAX_POSITIONS = 1 << 12
"""Maximum number of positions of a forward, unless a single canvas is longer."""


def count(tokenizer: Any, texts: Iterable[str]) -> dict[int, int]:
    """Count how often each token id occurs in texts, in the order of the ids; no special tokens are added.

    Texts are read one at a time. Raises PromptError for half a character (a lone surrogate).
    """
    counts: Counter[int] = Counter()
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError(
                f"the text {text[:40]!r} contains half a character (a lone surrogate); correct or remove it"
            ) from None
        counts.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {int(id_): counts[id_] for id_ in sorted(counts)}


def estimate(
    model: Transformer,
    tokenizer: Any | None,
    num_canvases: int = 64,
    length: int = 64,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the relative frequencies `(V,)` of tokens in the model's output on empty canvases, >= 1e-9.

    They are the mean probabilities over all positions of canvases of masks, after a begin token if the
    tokenizer has one. The `num_canvases` lengths are drawn from `length / 2` (rounded up) to `length`,
    inclusive, by a CPU generator with `seed`, since the model's output depends on the length. Each position
    has the same weight; equal lengths are computed once. Choose a `length` near that of the texts to
    decode: long canvases are mostly end-of-text.

    Probabilities are float32 over the whole vocabulary, as in sampling, their sum float64. Lower values are
    raised to 1e-9, so that the sum may exceed 1 by V * 1e-9. Raises ConfigError, and ModelError for logits
    that are not finite.
    """
    num_canvases, length = whole("num_canvases", num_canvases, 1), whole("length", length, 1)
    generator = torch.Generator().manual_seed(whole("seed", seed) % 2**64)
    begin = _begin(tokenizer)
    room = model.spec.max_length - len(begin)
    if length > room:
        raise ConfigError(
            f"length={length} does not fit the model's context of {model.spec.max_length}; use {room} or "
            "less"
        )
    least = (length + 1) // 2
    drawn = torch.randint(least, length + 1, (num_canvases,), generator=generator)
    weights = Counter(drawn.tolist())
    lengths = sorted(weights)
    batch = max(1, MAX_POSITIONS // (len(begin) + length))
    total = np.zeros(model.spec.vocab_size)
    for start in range(0, len(lengths), batch):
        chosen = lengths[start : start + batch]
        total += _summed(model, begin, chosen, [weights[item] for item in chosen])
    positions = sum(item * weight for item, weight in weights.items())
    frequencies: NDArray[np.float64] = np.maximum(total / positions, MIN_FREQUENCY)
    return frequencies


def _begin(tokenizer: Any | None) -> list[int]:
    id_ = getattr(tokenizer, "bos_token_id", None)
    return [] if id_ is None else [int(id_)]


@torch.inference_mode()
def _summed(
    model: Transformer, begin: list[int], lengths: list[int], weights: list[int]
) -> NDArray[np.float64]:
    """Return probabilities `(V,)`, summed over the masks of one canvas per length, times its weight."""
    spec, device = model.spec, model.device
    first, width = len(begin), len(begin) + max(lengths)
    ids = torch.full((len(lengths), width), spec.mask_id, device=device)
    ids[:, :first] = torch.tensor(begin, dtype=ids.dtype, device=device)
    position_ids = torch.arange(width, device=device).expand(len(lengths), width)
    ends = first + torch.tensor(lengths, device=device)
    real = position_ids < ends[:, None] if min(lengths) < max(lengths) else None
    states_BTD = model.hidden(ids, position_ids, topology(spec, position_ids, real))
    shift = 1 if spec.shift_logits else 0
    chunk = max(1, HEAD_CHUNK // spec.vocab_size)
    total = torch.zeros(spec.vocab_size, dtype=torch.float64)
    for meta, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        positions = torch.arange(first, first + length, device=device)
        states = states_BTD[meta, (positions - shift).clamp(min=0)]
        for start in range(0, length, chunk):
            probabilities = model.head(states[start : start + chunk]).float().softmax(dim=-1)
            total += weight * probabilities.sum(dim=0, dtype=torch.float64).cpu()
    if not torch.isfinite(total).all():
        raise ModelError("the model's logits are not finite; try dtype=float32 or bfloat16")
    result: NDArray[np.float64] = total.numpy()
    return result
