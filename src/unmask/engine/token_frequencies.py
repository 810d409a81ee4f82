"""Background frequencies of tokens: counted in texts, or asked of the model itself.

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
"""Positions of a forward, as long as that holds a canvas at all."""


def count(tokenizer: Any, texts: Iterable[str]) -> dict[int, int]:
    """Count how often each token id occurs in texts, in the order of the ids; no special tokens are added.

    Texts are taken one at a time. Raises PromptError for half a character (a lone surrogate).
    """
    counts: Counter[int] = Counter()
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError(
                f"the text {text[:40]!r} holds half a character (a lone surrogate); mend or drop it"
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

    The mean probability of each token over all positions of canvases that are all masks, behind a begin
    token if the tokenizer has one. Canvases of equal length are equal, so `num_canvases` lengths are
    drawn from `length / 2 ..= length` (rounded up; by a CPU generator of `seed`): a single canvas
    gives what the model says of texts of one length, many average over how its answer changes with
    the length. Each drawn position weighs the same; equal lengths are computed once. A `length` near that
    of the texts to be decoded fits best: long canvases are mostly end-of-text.

    Probabilities are float32 over the whole vocabulary, as in sampling, their sum float64. What is
    below 1e-9 is set to it, so that the sum may exceed 1 by V * 1e-9. Raises ConfigError, and ModelError
    for logits that are no numbers.
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
    found: NDArray[np.float64] = np.maximum(total / positions, MIN_FREQUENCY)
    return found


def _begin(tokenizer: Any | None) -> list[int]:
    id_ = getattr(tokenizer, "bos_token_id", None)
    return [] if id_ is None else [int(id_)]


@torch.inference_mode()
def _summed(
    model: Transformer, begin: list[int], lengths: list[int], weights: list[int]
) -> NDArray[np.float64]:
    """Probabilities `(V,)` summed over the masks of one canvas a length, each times its weight."""
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
