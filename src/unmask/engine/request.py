"""A request: one sequence to decode, with its method."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

from unmask.caches.base import AnyCache
from unmask.canvas import Canvas, ModelFacts
from unmask.decoders.base.protocol import AnyDecoder
from unmask.errors import DecoderError
from unmask.grammar.reach import TokenAutomaton
from unmask.method import MethodSpec
from unmask.sampling.params import SamplingParams


def row_seed(seed: int, row: int) -> int:
    """Return the seed of row `row` (from 0) of a call with `seed`.

    The sum, so that a single row can be decoded again alone. The calls of a series that are to be
    independent need seeds that differ by at least their number of rows.
    """
    return seed + row


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode by a method; `stop_ids` end the answer when `stop_at_eos`.

    `constraint` is the automaton that the answer, or each blank of an infill, must be accepted by.
    `num_top` and `named`: return the log-probabilities of so many likeliest tokens and of these token ids
    with each event. `max_edits`: the most positions that may differ from a draft in the canvas, None: all.
    `num_alternatives`: keep so many likeliest tokens of each commit in the trace.
    `adapter`: the name of an adapter of the model, None for the model itself.
    """

    canvas: Canvas
    method: MethodSpec
    seed: int
    stop_ids: frozenset[int]
    stop_at_eos: bool
    facts: ModelFacts
    constraint: TokenAutomaton | None = None
    num_top: int = 0
    named: tuple[int, ...] = ()
    max_edits: int | None = None
    num_alternatives: int = 0
    adapter: str | None = None
    decoder: AnyDecoder = field(init=False, repr=False, compare=False)
    """The method's decoder."""
    cache: AnyCache = field(init=False, repr=False, compare=False)
    """The method's cache policy."""
    sampling_params: SamplingParams = field(init=False, repr=False, compare=False)
    """The method's sampling parameters."""

    def __post_init__(self) -> None:
        """Take the parts of the method, which every forward reads many times."""
        for name in ("decoder", "cache", "sampling_params"):
            object.__setattr__(self, name, getattr(self.method, name))

    @property
    def num_likeliest(self) -> int:
        """The number of likeliest tokens to read at each position."""
        return max(self.num_top, self.num_alternatives)

    @property
    def max_positions(self) -> int:
        """The maximum number of positions of the canvas."""
        size = len(self.canvas)
        count = self.decoder.max_positions(self.canvas, self.facts)
        return checked_count(self.decoder, "max_positions", count, f"{size} or more", size)

    @property
    def max_forwards(self) -> int:
        """The number of forwards after which each further one commits its whole reading."""
        usual = 2 * (self.max_positions - self.canvas.prompt_length) + 64
        count = self.decoder.max_forwards(self.canvas, self.facts)
        return max(usual, checked_count(self.decoder, "max_forwards", count, "0 or more"))


def checked_count(
    decoder: AnyDecoder,
    method: str,
    count: object,
    allowed: str,
    low: int = 0,
    high: int | None = None,
    forward: int | None = None,
) -> int:
    """Return the count that a method of a decoder returned; DecoderError unless it is in [low, high]."""
    number = int(count) if isinstance(count, Integral) else None
    if number is None or number < low or (high is not None and number > high):
        raise DecoderError(f"{method} returned {count}; use {allowed}", decoder.name, forward)
    return number
