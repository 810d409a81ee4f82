"""When the tokens of an answer were certain, in blocks as `unmask bench serve` counts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

BLOCK_LENGTH = 32
"""Tokens of a block, whatever the decoder takes for one; that of `unmask bench serve`."""


@dataclass
class Pace:
    """Times in seconds since the request arrived.

    A block has come when its last token is certain: `BLOCK_LENGTH` tokens, or the answer's end. `first_s`
    and `last_s`: when tokens were certain for the first time and when for the last (None: not yet).
    """

    num_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    blocks_s: list[float] = field(default_factory=list)

    def take(self, now_s: float, num_tokens: int, *, is_last: bool) -> None:
        """`num_tokens` of the answer are certain now."""
        if num_tokens > self.num_tokens:
            self.first_s = now_s if self.first_s is None else self.first_s
            self.num_tokens, self.last_s = num_tokens, now_s
        num_new = num_tokens // BLOCK_LENGTH - len(self.blocks_s)
        self.blocks_s.extend([now_s] * num_new)
        if is_last and self.last_s is not None and num_tokens > len(self.blocks_s) * BLOCK_LENGTH:
            self.blocks_s.append(self.last_s)

    @property
    def between_s(self) -> list[float]:
        """From each block to the next."""
        return [later - sooner for sooner, later in pairwise(self.blocks_s)]

    @property
    def per_token_s(self) -> float | None:
        """Of a token after the first ones, on average; None for fewer than two."""
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)
