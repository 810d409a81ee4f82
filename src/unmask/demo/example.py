"""The record every synthetic task produces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One generated text with its exact answer.

    Attributes:
        task: name of its task, one of ``tasks.TASKS``.
        prompt: the user turn; empty for plain text (sentence, drill).
        answer: the assistant turn, or the plain text itself.
        key: identifier of the content for the train/held-out split.
        maskable: character spans of ``answer`` that training may mask; ``None`` means all.
    """

    task: str
    prompt: str
    answer: str
    key: str
    maskable: tuple[tuple[int, int], ...] | None = None
