"""Names of the fields in which rows of users hold a prompt and its answer, by which they are found."""

from __future__ import annotations

PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("response", "output", "answer")
TARGETS = ("answer", "target", "label", *RESPONSES[:-1])
"""Fields of an expected answer, which is compared, not trained."""
CHOICES = ("choices", "options")
