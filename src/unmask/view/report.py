"""Report of a finished decode: one line for people, one JSON object for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unmask.engine.outputs import Output


@dataclass(frozen=True)
class DecodeRun:
    """A finished decode with its settings; `seconds` is the time spent decoding."""

    output: Output
    seconds: float
    model: str
    decoder: str
    knobs: Mapping[str, object]
    seed: int

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the answer, end token excluded, per forward."""
        return len(self.output.token_ids) / max(1, self.output.num_forwards)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the answer per second."""
        return len(self.output.token_ids) / max(1e-9, self.seconds)

    def line(self) -> str:
        """Return the statistics as one line of text."""
        out = self.output
        cache = f"cache {out.cache} ({'exact' if out.cache_exact else 'approximate'})"
        parts = [
            _forwards(out),
            _count(len(out.token_ids), "token"),
            f"{self.tokens_per_forward:.2f} tokens per forward",
            f"{self.tokens_per_s:.1f} tokens/s",
            f"{out.num_queries} queries, {100 * out.waste:.0f} % right of the end",
            f"finish: {out.finish_reason}",
            f"decoder {self.decoder}",
            cache,
        ]
        return " | ".join(parts)

    def as_json(self) -> dict[str, object]:
        """Return text, ids, statistics and settings, ready for JSON."""
        out = self.output
        record: dict[str, object] = {
            "text": out.text,
            "token_ids": out.token_ids,
            "canvas_ids": out.canvas_ids,
            "prompt_length": out.prompt_length,
            "finish_reason": out.finish_reason,
            "num_forwards": out.num_forwards,
            "num_queries": out.num_queries,
            "num_draft_forwards": out.num_draft_forwards,
            "num_draft_queries": out.num_draft_queries,
            "num_logit_rows": out.num_logit_rows,
            "seconds": self.seconds,
            "tokens_per_forward": self.tokens_per_forward,
            "model": self.model,
            "decoder": self.decoder,
            "method": out.method,
            "num_forced": out.num_forced,
            "cache": out.cache,
            "cache_exact": out.cache_exact,
            "cache_bytes": out.cache_bytes,
            "knobs": dict(self.knobs),
            "seed": self.seed,
        }
        return record | ({"blanks": list(out.blanks)} if out.blanks else {})


def _forwards(out: Output) -> str:
    """Return the number of forwards, and how many of them were a smaller model's."""
    text = _count(out.num_forwards, "forward")
    return f"{text} ({out.num_draft_forwards} by the drafter)" if out.num_draft_forwards else text


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
