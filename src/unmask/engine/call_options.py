"""The options of `LLM`'s methods that pass them on, for type checkers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unmask.engine.drafts import DraftLike, Pins
from unmask.engine.knob_types import Knobs
from unmask.engine.request_builder import CacheLike
from unmask.grammar.constraint import TextConstraint
from unmask.progress import ProgressLike


class RequestOptions(Knobs, total=False):
    """Options of `LLM.request` besides content, decoder and cache."""

    cache_args: Mapping[str, object] | None
    gen_length: int | None
    seed: int
    stop_at_eos: bool
    stop_token_ids: Iterable[int]
    raw: bool
    constraint: TextConstraint | None
    draft: DraftLike
    pinned: Pins | None
    max_edits: int | None
    trace_alternatives: int
    adapter: str | None


class ConversationOptions(RequestOptions, total=False):
    """Options of `LLM.chat` besides messages, decoder and n: those of `generate` and of `chat_ids`."""

    cache: CacheLike
    return_trace: bool
    max_batch_size: int
    progress: ProgressLike
    chat_template: str | Path | None
    chat_template_kwargs: Mapping[str, object] | None
    add_generation_prompt: bool | None
    continue_final_message: bool
    tools: Sequence[Mapping[str, object]] | None
