"""The interface between a decoder and the engine, and decoders that wrap another one."""

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

    An instance holds only knobs and is shared by all requests; everything that changes between forwards is
    in the `State` that `start`, `ask` and `step` return. A method must define these three; all other
    defaults suit a method that keeps the length of the canvas and never revises decided positions.

    The engine checks every `Ask` and `Edit` against the rules in their docstrings and raises `DecoderError`
    for one that breaks a rule; this ends only the sequence concerned.
    """

    chooses_length: ClassVar[bool] = False
    """True if the method chooses the length of the answer; `gen_length` is then rejected."""
    length_knob: ClassVar[str] = "gen_length"
    """The knob to lower when the prompt and the first canvas exceed the model's context."""
    revises: ClassVar[bool] = False
    """True if the method may replace or remask decided tokens.

    Its first canvas may then hold a draft, from a few tokens (`Canvas.drafted`) to the whole answer; the
    method has to look at each of them, in an ask and a step, before it counts it as settled.
    """
    compares_forwards: ClassVar[bool] = False
    """True if a step depends on readings of earlier forwards, so that one cannot predict its edits."""
    reads_sampling: ClassVar[bool] = False
    """True if scores are computed from the sampling distribution, after temperature, top_p, top_k and
    min_p; then these three have an effect at temperature 0 too."""

    @abstractmethod
    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """Return the initial state for the request's canvas, as it is before `first_canvas`.

        Raises ConfigError when the knobs do not fit the canvas or the model.
        """

    @abstractmethod
    def ask(self, canvas: Canvas, state: State) -> tuple[Ask, State]:
        """Return the request to the next forward, after moving on from full blocks.

        Called as long as a position may still change.
        """

    @abstractmethod
    def step(self, canvas: Canvas, state: State, reading: Reading) -> tuple[Edit, State]:
        """Return the edit that follows from the reading of the requested positions.

        An empty edit is replaced by a commit of the most confident position in the reading.
        """

    def predict(self, canvas: Canvas, state: State) -> tuple[Edit, ...]:
        """Return the edits that the next steps will probably make, each of the canvas after the one before.

        Called after `ask`. The canvases behind them are read along with the present one, and the readings
        are used where the edits come true (`engine.lookahead`); a wrong prediction changes no token.
        Default: none.
        """
        return ()

    @property
    def name(self) -> str:
        """The decoder's name: that of its file, or that of `own_code` for a user's."""
        own: str = vars(type(self)).get("reference", "")
        return own or type(self).__module__.rpartition(".")[2]

    @property
    def core(self) -> AnyDecoder:
        """The innermost wrapped decoder, or the decoder itself."""
        return self

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics that the method reads; each forward they are requested by `Ask.stats`."""
        return frozenset()

    @property
    def effective_score(self) -> str:
        """Name of the score that ranks positions, e.g. "confidence" or "margin"."""
        return "confidence"

    @property
    def whole_blocks(self) -> bool:
        """True if `first_canvas` appends positions beyond the answer, which are removed in the end."""
        return False

    @property
    def grows(self) -> bool:
        """True if edits of this method insert or append positions."""
        return self.chooses_length

    @property
    def draft_model(self) -> str | None:
        """Name or folder of the smaller model behind `ModelFacts.draft`; None if there is none."""
        return None

    def check_sampling(self, params: SamplingParams) -> None:
        """Raise ConfigError for sampling parameters that have no effect with this decoder.

        These are: a vocabulary that changes between forwards, with a method that compares their
        distributions; vocabulary=static with a score that is not a probability; frequencies that are not
        used. Values that provably change nothing, such as top_p of a greedy request, are accepted.
        """
        if "kl" in self.stats and params.vocabulary in ("frequency", "union"):
            raise ConfigError(
                f"vocabulary={params.vocabulary} changes the set of tokens between forwards, but decoder "
                f"{self.name} compares distributions over all tokens; use static or none"
            )
        if params.vocabulary == "static" and self.effective_score not in ("confidence", "pc"):
            raise ConfigError(
                f"vocabulary=static has no effect on score={self.effective_score}; use another vocabulary"
            )
        reads = params.vocabulary == "frequency" or self.effective_score == "pc"
        if params.frequencies is not None and not reads:
            error = ConfigError(
                f"frequencies={params.frequencies} has no effect here; use score=pc, decoder pc_sampler "
                f"or vocabulary=frequency, or leave it out"
            )
            error.key = "frequencies"
            raise error

    def check_cache(self, *, stores: bool) -> None:
        """Raise ConfigError for a cache that does not suit; `stores`: it keeps keys and values."""

    def first_length(self) -> int:
        """Return the initial number of positions of the answer, for a decoder that chooses the length."""
        raise NotImplementedError(
            f"decoder {self.name!r} chooses the length and defines no first_length"
        )

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return the initial canvas, made from the request's, where the whole answer is open.

        Default: the request's canvas. Raises ConfigError for a canvas that the method cannot decode.
        """
        return canvas

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the maximum length of the canvas, which bounds memory and the number of forwards.

        Default: its present length.
        """
        return len(canvas)

    def max_forwards(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the maximum number of forwards, where the engine's own bound is too low.

        The engine allows twice the positions of the answer, plus 64. Default: 0.
        """
        return 0

    def num_settled(self, canvas: Canvas, state: State) -> int:
        """Return the number of leading positions that no longer change once they are decided.

        Default: all. A method that revises tokens returns fewer, and all when it has finished.
        """
        return len(canvas)

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the values in force of knobs that are None, for an answer of this length.

        `block_size` is the model's (see `ModelFacts`). Default: none, so that None means what it says.
        """
        return {}

    def num_relevant(self, canvas: Canvas, state: State, end: int) -> int:
        """Return the number of leading positions whose readings matter to an answer that ends at `end`.

        Position `end` has an end token that will not change any more, and a position left of it is open.
        In this and all later forwards, no reading at or beyond the number may change an edit of a position
        up to `end`; the engine then leaves out what only such readings need. Called after `ask`. Default:
        all, so that nothing is left out.
        """
        return len(canvas)

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int | None:
        """Return the number of forwards in the schedule; None (the default) if there is no schedule."""
        return None

    def planned_step(self, canvas: Canvas, state: State) -> int | None:
        """Return the number of the schedule's forwards before the next one, skipped ones included.

        None (the default): as many as were made.
        """
        return None

    def extend(self, canvas: Canvas, state: State, edit: Edit) -> Edit:
        """Complete an edit to which a wrapper has added commits.

        `state` is the state before the edit. Default: the edit unchanged; a decoder that grows by blocks
        inserts the next block when the edit fills the canvas.
        """
        return edit


AnyDecoder: TypeAlias = Decoder[Any]
"""A decoder with any type of state."""


class WrapperState(Protocol):
    """State of a wrapper, which contains the state of the wrapped decoder."""

    @property
    def inner(self) -> object:
        """State of the wrapped decoder."""


Wrapped = TypeVar("Wrapped", bound=WrapperState)


@dataclass(frozen=True)
class Wrapper(Decoder[Wrapped], Generic[Wrapped]):
    """A decoder around another one, `inner`; by default every method forwards to it."""

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

    def predict(self, canvas: Canvas, state: Wrapped) -> tuple[Edit, ...]:
        """Forward to the wrapped decoder."""
        return self.inner.predict(canvas, state.inner)

    def check_sampling(self, params: SamplingParams) -> None:
        """Forward to the wrapped decoder."""
        self.inner.check_sampling(params)

    def check_cache(self, *, stores: bool) -> None:
        """Forward to the wrapped decoder."""
        self.inner.check_cache(stores=stores)

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

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Forward to the wrapped decoder."""
        return self.inner.defaults(gen_length, block_size)

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int | None:
        """Forward to the wrapped decoder."""
        return self.inner.planned_steps(canvas, facts)

    def planned_step(self, canvas: Canvas, state: Wrapped) -> int | None:
        """Forward to the wrapped decoder."""
        return self.inner.planned_step(canvas, state.inner)

    def extend(self, canvas: Canvas, state: Wrapped, edit: Edit) -> Edit:
        """Forward to the wrapped decoder."""
        return self.inner.extend(canvas, state.inner, edit)
