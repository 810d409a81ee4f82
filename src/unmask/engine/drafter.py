"""A smaller model as the drafter of `speculative`."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from unmask.canvas import Canvas, Draft
from unmask.engine.request import Request
from unmask.engine.request_builder import Drafter, RequestBuilder, parse_method
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError
from unmask.models.spec import ModelSpec


class DraftModel(Protocol):
    """The part of an `LLM` that drafts."""

    name: str
    requests: RequestBuilder

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    def run(self, requests: list[Request], max_batch_size: int) -> list[SequenceState]:
        """Decode requests and return their finished sequences in order."""
        ...


def draft_by(small: DraftModel) -> Drafter:
    """Return a function that proposes tokens for all open positions, decoded with the smaller model."""
    method = parse_method("threshold", knobs={"threshold": 0.7})
    template = small.requests.template(method, stop_at_eos=False)

    def draft(canvas: Canvas) -> Draft:
        if len(canvas) > small.spec.max_length:
            raise ConfigError(
                f"drafter={small.name!r} has a context of {small.spec.max_length}, but the canvas "
                f"has {len(canvas)} positions; use a shorter gen_length or another drafter"
            )
        own = replace(
            canvas,
            tokens=np.where(canvas.open, small.spec.mask_id, canvas.tokens),
            mask_id=small.spec.mask_id,
            infilling=True,
        )
        done = small.run([template(own)], 1)[0]
        tokens = np.where(canvas.open, done.canvas.tokens, -1)
        return Draft(tokens, done.num_forwards, done.num_queries)

    return draft
