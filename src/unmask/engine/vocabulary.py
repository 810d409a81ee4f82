"""The vocabulary of a model and its tokenizer: rows that may be proposed, and tokens that end an answer."""

from __future__ import annotations

from typing import Any

import torch

from unmask.engine.tokenizer import known_ids, token_id
from unmask.errors import ModelError
from unmask.models.spec import ModelSpec
from unmask.sampling.sampler import Vocabulary


def vocabulary_of(spec: ModelSpec, tokenizer: Any | None, device: torch.device) -> Vocabulary:
    """Return the vocabulary. Rows without a token are never proposed, those in holes included.

    Raises ModelError for a tokenizer, or a mask, with ids outside the model's rows.
    """
    rows = spec.vocab_size
    tokens = range(rows) if tokenizer is None else known_ids(tokenizer)
    if max(tokens, default=-1) >= rows:
        raise ModelError(
            f"the tokenizer's highest id is {max(tokens)}, but the model has only {rows} rows; use the "
            f"model's own tokenizer"
        )
    if not 0 <= spec.mask_id < rows:
        raise ModelError(f"mask_token_id={spec.mask_id} is outside the {rows} rows")
    is_free = torch.ones(rows, dtype=torch.bool)
    is_free[torch.tensor(sorted(tokens), dtype=torch.int64)] = False
    is_free[spec.mask_id] = True
    own = getattr(tokenizer, "eos_token_id", None)  # also that of another tokenizer
    more = dict.fromkeys((*spec.end_ids, *([own] if isinstance(own, int) else [])))
    turn_end_id = token_id(tokenizer, spec.turn_end)
    others = {spec.mask_id, spec.eos_id, turn_end_id}
    return Vocabulary(
        token_ids=torch.arange(rows, device=device),
        forbidden=is_free.nonzero()[:, 0].to(device),
        eos_id=spec.eos_id if spec.eos_id < rows else None,
        turn_end_id=turn_end_id,
        more_ends=tuple(id_ for id_ in more if 0 <= id_ < rows and id_ not in others),
    )
