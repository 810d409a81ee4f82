"""The contract between a decoder and the engine, and decoders that wrap another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading, Stat
from unmask.errors import ConfigError
from unmask.sampling.params import SamplingParams

State = TypeVar("State")


@dataclass(frozen=True)
class Decoder(ABC, Generic[State]):
    """A decoding method: pure functions of one sequence.

    An instance holds knobs only and is shared by all requests; everything that changes from forward to
    forward lives in the `State` that `start`, `ask` and `step` return. A method must define `start`, `ask`
    and `step`; everything else has a default that fits a method with a canvas of constant length whose
    decided positions stay as they are.

    The engine checks every `Ask` and `Edit` (their docstrings have the rules) and raises `DecoderError`
    for one that breaks a rule; only the sequence at fault ends.
    """

    chooses_length: ClassVar[bool] = False
    """True if the method chooses the length of the answer; `gen_length` is refused then."""
    length_knob: ClassVar[str] = "gen_length"
    """The knob to lower when the prompt and the first canvas exceed the model's context."""
    reads_sampling: ClassVar[bool] = False
    """True if scores are of the distribution that is sampled from (temperature, top_p and top_k applied):
    top_p and top_k take effect at temperature 0 as well."""

    @abstractmethod
    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """Return the state before the first forward, for the request's canvas (before `first_canvas`).

        Raises ConfigError when the knobs do not fit the canvas or the model.
        """

    @abstractmethod
    def ask(self, canvas: Canvas, state: State) -> tuple[Ask, State]:
        """Return the positions to read in the next forward; called while a position may still change.

        Moves on from a full block first.
        """

    @abstractmethod
    def step(self, canvas: Canvas, state: State, reading: Reading) -> tuple[Edit, State]:
        """Return the edit that a reading of the asked positions leads to.

        An empty edit is replaced by the commit of the most confident position that was read.
        """

    @property
    def name(self) -> str:
        """The decoder's name: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def core(self) -> AnyDecoder:
        """The decoder itself, or the innermost one that it wraps."""
        return self

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics that the method reads; `Ask.stats` requests them forward by forward."""
        return frozenset()

    @property
    def effective_score(self) -> str:
        """Name of the score that ranks positions, e.g. "confidence" or "margin"."""
        return "confidence"

    @property
    def whole_blocks(self) -> bool:
        """True if `first_canvas` appends positions beyond the answer, which are cut off at its end."""
        return False

    @property
    def grows(self) -> bool:
        """True if edits of this method insert or append positions."""
        return self.chooses_length

    @property
    def draft_model(self) -> str | None:
        """Name or folder of a smaller model that `ModelFacts.draft` must be made from; None: none."""
        return None

    def check_sampling(self, params: SamplingParams) -> None:
        """Raise ConfigError for sampling parameters that have no effect with this decoder.

        That is: top_p and top_k without sampling (see `reads_sampling`); a vocabulary that changes between
        forwards under a method that compares their distributions; vocabulary=static under a score that is
        not a probability; frequencies that nothing reads.
        """
        if params.temperature == 0 and not self.reads_sampling:
            for key, value in (("top_p", params.top_p), ("top_k", params.top_k)):
                if value is not None:
                    raise ConfigError(
                        f"{key}={value} has no effect at temperature=0; set a temperature"
                    )
        if "kl" in self.stats and params.vocabulary in ("frequency", "union"):
            raise ConfigError(
                f"vocabulary={params.vocabulary} changes which tokens there are from forward to forward; "
                f"decoder {self.name} compares whole distributions: use static or none"
            )
        if params.vocabulary == "static" and self.effective_score not in ("confidence", "pc"):
            raise ConfigError(
                f"vocabulary=static has no effect on score={self.effective_score}; use another vocabulary"
            )
        reads = params.vocabulary == "frequency" or self.effective_score == "pc"
        if params.frequencies is not None and not reads:
            raise ConfigError(
                f"frequencies={params.frequencies} has no effect here; use score=pc, decoder pc_sampler "
                f"or vocabulary=frequency, or leave it out"
            )

    def first_length(self) -> int:
        """Return the number of positions to begin with, of a decoder that chooses the length."""
        raise NotImplementedError(
            f"decoder {self.name!r} chooses the length and defines no first_length"
        )

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return the canvas to begin with, from the request's (whose answer is wholly open).

        Default: that one. Raises ConfigError for a canvas that the method cannot decode.
        """
        return canvas

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the most positions that the canvas may have; bounds memory and the loop.

        Default: those it has.
        """
        return len(canvas)

    def max_forwards(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return how many forwards the method may need, where the engine's own bound is too low.

        That one is twice the positions of the answer, and 64. Default: 0.
        """
        return 0

    def num_settled(self, canvas: Canvas, state: State) -> int:
        """Return how many positions from the left stay as they are once they are decided.

        Default: all. A method that revises returns fewer, and all when it is done.
        """
        return len(canvas)

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int | None:
        """Return how many forwards the method's schedule has; None (the default): it has no schedule."""
        return None

    def extend(self, canvas: Canvas, state: State, edit: Edit) -> Edit:
        """Complete an edit that a wrapper added commits to.

        `state` is that before the edit. Default: the edit as it is; a canvas that grows by blocks gets its
        next one when the edit fills it.
        """
        return edit


AnyDecoder: TypeAlias = Decoder[Any]
"""A decoder whatever its state, as the engine holds it."""


class WrapperState(Protocol):
    """State of a wrapper: at least the wrapped decoder's."""

    @property
    def inner(self) -> object:
        """State of the wrapped decoder."""


Wrapped = TypeVar("Wrapped", bound=WrapperState)


@dataclass(frozen=True)
class Wrapper(Decoder[Wrapped], Generic[Wrapped]):
    """A decoder around another one, `inner`; whatever it does not define is the wrapped decoder's."""

    inner: AnyDecoder

    @classmethod
    def default_inner(cls) -> str:
        """Return the name of the decoder that is wrapped by default."""
        return next(str(field.default) for field in fields(cls) if field.name == "inner")

    @property
    def core(self) -> AnyDecoder:
        """The innermost decoder."""
        return self.inner.core

    @property
    def stats(self) -> frozenset[Stat]:
        """Forward to the wrapped decoder."""
        return self.inner.stats

    @property
    def effective_score(self) -> str:
        """Forward to the wrapped decoder."""
        return self.inner.effective_score

    @property
    def whole_blocks(self) -> bool:
        """Forward to the wrapped decoder."""
        return self.inner.whole_blocks

    @property
    def grows(self) -> bool:
        """Forward to the wrapped decoder."""
        return self.inner.grows

    @property
    def draft_model(self) -> str | None:
        """Forward to the wrapped decoder."""
        return self.inner.draft_model

    def check_sampling(self, params: SamplingParams) -> None:
        """Forward to the wrapped decoder."""
        self.inner.check_sampling(params)

    def first_length(self) -> int:
        """Forward to the wrapped decoder."""
        return self.inner.first_length()

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Forward to the wrapped decoder."""
        return self.inner.first_canvas(canvas, facts)

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Forward to the wrapped decoder."""
        return self.inner.max_positions(canvas, facts)

    def max_forwards(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Forward to the wrapped decoder."""
        return self.inner.max_forwards(canvas, facts)

    def num_settled(self, canvas: Canvas, state: Wrapped) -> int:
        """Forward to the wrapped decoder."""
        return self.inner.num_settled(canvas, state.inner)

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int | None:
        """Forward to the wrapped decoder."""
        return self.inner.planned_steps(canvas, facts)

    def extend(self, canvas: Canvas, state: Wrapped, edit: Edit) -> Edit:
        """Forward to the wrapped decoder."""
        return self.inner.extend(canvas, state.inner, edit)
