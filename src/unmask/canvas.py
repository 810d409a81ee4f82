"""The canvas of one sequence, and the edits that change it.

All types here are immutable, belong to one sequence and are kept on the host: `apply_checked(canvas, edit,
step)` returns a new canvas, so a decode *is* its list of edits. Undecided positions are marked by a flag
(`open`), not by the mask id, since a prompt may contain the mask id as ordinary text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from unmask.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Scalar = TypeVar("Scalar", bound=np.generic)

NO_POSITIONS: Ints = np.zeros(0, dtype=np.int64)
NO_SCORES: Floats = np.zeros(0, dtype=np.float64)
NO_TOP: Ints = np.zeros((0, 0), dtype=np.int64)
NO_TOP_LOG_PROBS: Floats = np.zeros((0, 0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The state of a sequence between two forwards. Arrays have one entry per position.

    `tokens`: ids, at open positions the mask id (as input of the network only). `open`: undecided. `fixed`:
    part of the request, never edited. `origin`: the forward that committed the token; -1 for open and fixed
    positions and for the tokens of a draft, -2 for padding. `uid`: identity of the position, unchanged by
    insertions and deletions. `prompt_length`: positions before it are the prompt. `next_uid`: the next
    unused identity. `infilling`: the open positions are blanks in a text, not a continuation of a prompt.
    """

    tokens: Ints
    open: Bools
    fixed: Bools
    origin: Ints
    uid: Ints
    prompt_length: int
    mask_id: int
    next_uid: int
    infilling: bool = False

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.tokens)

    @property
    def num_open(self) -> int:
        """Number of undecided positions."""
        return int(np.count_nonzero(self.open))

    @property
    def drafted(self) -> Bools:
        """A flag per position: it has a token of the request's draft, which the decoder may change."""
        flags: Bools = ~self.open & ~self.fixed & (self.origin == -1)
        return flags

    def open_positions(self, start: int = 0, end: int | None = None) -> Ints:
        """Return the undecided positions in `[start, end)`, ascending."""
        positions: Ints = self.open[start:end].nonzero()[0]
        return positions + start if start else positions

    def with_states(self, tokens: Ints, open_: Bools, origin: Ints) -> Canvas:
        """Return the canvas with these arrays; `replace` would take ten times as long."""
        return Canvas(
            tokens,
            open_,
            self.fixed,
            origin,
            self.uid,
            self.prompt_length,
            self.mask_id,
            self.next_uid,
            self.infilling,
        )


def new_canvas(
    tokens: list[int],
    blanks: list[bool],
    prompt_length: int,
    mask_id: int,
    *,
    infilling: bool = False,
) -> Canvas:
    """Build a canvas whose `blanks` are undecided and whose other tokens are fixed."""
    open_ = np.array(blanks, dtype=np.bool_)
    size = len(tokens)
    return Canvas(
        tokens=np.where(open_, mask_id, np.array(tokens, dtype=np.int64)),
        open=open_,
        fixed=~open_,
        origin=np.full(size, -1, dtype=np.int64),
        uid=np.arange(size, dtype=np.int64),
        prompt_length=prompt_length,
        mask_id=mask_id,
        next_uid=size,
        infilling=infilling,
    )


def pin(canvas: Canvas, tokens: Mapping[int, int], *, is_draft: bool = False) -> Canvas:
    """Return the canvas with these tokens given, by position: decided and, unless `is_draft`, fixed."""
    positions = np.array(sorted(tokens), dtype=np.int64)
    ids, open_, fixed = canvas.tokens.copy(), canvas.open.copy(), canvas.fixed.copy()
    ids[positions] = [tokens[position] for position in positions.tolist()]
    open_[positions], fixed[positions] = False, not is_draft
    return replace(canvas, tokens=ids, open=open_, fixed=fixed)


@dataclass(frozen=True, slots=True)
class Edit:
    """The changes of one step, in positions of the canvas before it, applied in the order of the fields.

    `commit`: open positions that get `tokens`, with `confidence` in [0, 1]. `replace`: decided positions
    that get `replace_tokens`. `remask`: decided positions that become open. `delete`: positions to remove.
    `insert`: pairs `(position, count)`, for `count` open positions before `position` (`len(canvas)`: at the
    end). `append`: tokens of new decided positions at the end. `notes`: numbers for the trace only.

    Rules (see `edit_rules.edit_fault`): arrays have one dimension and the types below; positions ascend,
    are unique and lie within the canvas; each has one token (and confidence); the mask id is never written;
    fixed positions do not change; nothing is inserted into the prompt, at most one pair names a position.
    """

    commit: Ints = field(default_factory=lambda: NO_POSITIONS)
    tokens: Ints = field(default_factory=lambda: NO_POSITIONS)
    confidence: Floats = field(default_factory=lambda: NO_SCORES)
    replace: Ints = field(default_factory=lambda: NO_POSITIONS)
    replace_tokens: Ints = field(default_factory=lambda: NO_POSITIONS)
    remask: Ints = field(default_factory=lambda: NO_POSITIONS)
    delete: Ints = field(default_factory=lambda: NO_POSITIONS)
    insert: tuple[tuple[int, int], ...] = ()
    append: Ints = field(default_factory=lambda: NO_POSITIONS)
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def only_commits(self) -> bool:
        """True if all fields but commits and notes are at their defaults."""
        return (
            self.replace is NO_POSITIONS
            and self.replace_tokens is NO_POSITIONS
            and self.remask is NO_POSITIONS
            and self.delete is NO_POSITIONS
            and self.append is NO_POSITIONS
            and isinstance(self.insert, tuple)
            and not self.insert
        )

    @property
    def is_empty(self) -> bool:
        """True if the edit changes nothing."""
        if len(self.commit):
            return False
        changes = (self.replace, self.remask, self.delete, self.append)
        return not self.insert and all(len(positions) == 0 for positions in changes)


def apply_checked(canvas: Canvas, edit: Edit, step: int) -> Canvas:
    """Return the canvas after an edit by forward `step` that is known to break no rule."""
    tokens, open_, origin = canvas.tokens.copy(), canvas.open.copy(), canvas.origin.copy()
    tokens[edit.commit], open_[edit.commit], origin[edit.commit] = edit.tokens, False, step
    if len(edit.replace):
        tokens[edit.replace], origin[edit.replace] = edit.replace_tokens, step
    if len(edit.remask):
        tokens[edit.remask], open_[edit.remask], origin[edit.remask] = canvas.mask_id, True, -1
    changed = canvas.with_states(tokens, open_, origin)
    if len(edit.delete) or edit.insert:
        changed = _restructure(changed, edit)
    if len(edit.append):
        changed = _append(changed, edit.append, step)
    return changed


def truncate(canvas: Canvas, size: int) -> Canvas:
    """Return the first `size` positions of a canvas."""
    return replace(
        canvas,
        tokens=canvas.tokens[:size],
        open=canvas.open[:size],
        fixed=canvas.fixed[:size],
        origin=canvas.origin[:size],
        uid=canvas.uid[:size],
    )


def _append(canvas: Canvas, tokens: Ints, step: int) -> Canvas:
    """Append decided positions at the end."""
    count = len(tokens)
    return replace(
        canvas,
        tokens=np.concatenate((canvas.tokens, tokens)),
        open=np.concatenate((canvas.open, np.zeros(count, dtype=np.bool_))),
        fixed=np.concatenate((canvas.fixed, np.zeros(count, dtype=np.bool_))),
        origin=np.concatenate((canvas.origin, np.full(count, step, dtype=np.int64))),
        uid=np.concatenate((canvas.uid, canvas.next_uid + np.arange(count))),
        next_uid=canvas.next_uid + count,
    )


def _restructure(canvas: Canvas, edit: Edit) -> Canvas:
    """Delete and insert positions; the others retain their identities."""
    size = len(canvas)
    remains = np.ones(size, dtype=np.bool_)
    remains[edit.delete] = False
    source: Ints = np.flatnonzero(remains)
    if edit.insert:
        befores, counts = np.array(sorted(edit.insert), dtype=np.int64).T
        source = np.insert(source, np.repeat(np.searchsorted(source, befores), counts), -1)
    new = source < 0
    count = int(new.sum())

    def gather(values: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        out: NDArray[Scalar] = np.full(len(source), fill, dtype=values.dtype)
        out[~new] = values[source[~new]]
        return out

    uid = gather(canvas.uid, -1)
    uid[new] = canvas.next_uid + np.arange(count)
    return replace(
        canvas,
        tokens=gather(canvas.tokens, canvas.mask_id),
        open=gather(canvas.open, True),
        fixed=gather(canvas.fixed, False),
        origin=gather(canvas.origin, -1),
        uid=uid,
        next_uid=canvas.next_uid + count,
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A smaller model's predictions: one token per position, -1 for none, and the work that they took.

    `num_forwards` and `num_queries` are the smaller model's forwards and the positions computed in them.
    """

    tokens: Ints
    num_forwards: int = 0
    num_queries: int = 0


@dataclass(slots=True)
class DraftMeter:
    """A drafter that counts the work of its drafts, for one request."""

    draft: Callable[[Canvas], Draft]
    num_forwards: int = 0
    num_queries: int = 0

    def __call__(self, canvas: Canvas) -> Draft:
        """Return the draft of a canvas, counted."""
        made = self.draft(canvas)
        self.num_forwards += made.num_forwards
        self.num_queries += made.num_queries
        return made


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the model and of the request that decoders may use.

    `end_ids`: all tokens that end an answer, `eos_id` and `turn_end_id` included.
    `block_size`: of block-causal attention, None for full attention. `max_length`: of the context.
    `background()`: the frequency of each token in the model's own output, `(V,)`, measured at the first
    call. `draft(canvas)`: cheap predictions of the open positions.
    `adaptable`: the knobs that nobody wrote for this request; see `MethodSpec.adaptable`.
    """

    vocab_size: int
    eos_id: int | None
    turn_end_id: int | None
    block_size: int | None
    max_length: int = 1 << 30
    background: Callable[[], Floats] | None = None
    draft: Callable[[Canvas], Draft] | None = None
    adaptable: frozenset[str] = frozenset()
    end_ids: frozenset[int] = frozenset()


Stat = Literal["entropy", "margin", "gap", "eos", "kl", "top_v_entropy"]
"""A statistic of a position, in addition to its proposal.

`entropy`: of the distribution, in nats. `margin`: ln(1 - (p1 - p2)), which keeps the order of near-certain
positions. `gap`: difference of the two largest logits. `eos`: probability of end-of-text (with `eos_top`: 1
where it is the likeliest token before sampling). `kl`: divergence in nats from the position's distribution
in the previous forward, +inf where it was not read. `top_v_entropy`: entropy in nats over the `top_v`
largest logits.
"""
STATISTICS: frozenset[str] = frozenset(get_args(Stat))


def check_statistics(owner: str, stats: frozenset[str]) -> None:
    """Raise ConfigError for an unknown statistic; `owner` is the name of the set, for the message."""
    unknown = sorted(stats - STATISTICS)
    if unknown:
        raise ConfigError(
            f"{owner} names the unknown statistic {unknown[0]!r}; allowed: "
            f"{', '.join(sorted(STATISTICS))}; to add one see docs/how-to/add-a-statistic.md"
        )


@dataclass(frozen=True, slots=True)
class Bias:
    """Additions to logits: `values[i]` for token `tokens[i]` at position `positions[i]`."""

    positions: Ints
    tokens: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class Credit:
    """Credit from earlier forwards: `amounts[i]` for `tokens[i]` at `positions[i]`; see `decoders.credit`.

    The forward adds `p ** gamma` to the credit of its likeliest token, then `alpha * ln(1 + amount)` to the
    logits.
    """

    positions: Ints
    tokens: Ints
    amounts: Floats
    alpha: float
    gamma: float


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """Allowed tokens per position: token t at `positions[i]` if `sets[i, classes[t]]`.

    `positions` `(n,)` ascend; `sets` `(n, C)` has a flag per class of tokens, `classes` `(V,)` the class of
    each token id, the same array for all positions and forwards of a request.
    """

    positions: Ints
    sets: Bools
    classes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ask:
    """A decoder's request to the next forward.

    `rows`: positions to read, open or decided, at least one. `window` `[start, end)`: the running block;
    caches refresh when it moves. `needed`: those of `rows` that must be computed; of the others, a cache
    may compute only some. `optional`: further positions, read if an approximate cache computes them anyway,
    and always without a cache or with an exact one. `stats`: statistics to return with the proposals.
    `top_v`: compute the confidence over this many largest logits only, at least 1. `from_sampling`: compute
    confidence and statistics from the sampling distribution, after temperature, top_p and top_k, instead of
    the model's own. `shadows`: positions to predict as if they were open, by shadow queries, which attend
    to every position but their own and, with `shadows_attend`, to each other. `allowed`: the tokens that
    the request's constraint allows at `rows`; the engine sets it, a decoder leaves it None. `num_top` and
    `named`: return the log-probabilities of so many likeliest tokens and of these token ids.

    Positions ascend, are unique and lie within the canvas (see `ask_fault`). Raises ConfigError for an
    unknown statistic.
    """

    rows: Ints
    window: tuple[int, int]
    needed: Ints = field(default_factory=lambda: NO_POSITIONS)
    optional: Ints = field(default_factory=lambda: NO_POSITIONS)
    stats: frozenset[Stat] = frozenset()
    top_v: int | None = None
    from_sampling: bool = False
    shadows: Ints = field(default_factory=lambda: NO_POSITIONS)
    shadows_attend: bool = True
    bias: Bias | None = None
    credit: Credit | None = None
    allowed: Allowed | None = None
    num_top: int = 0
    named: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the names of the statistics."""
        if not self.stats <= STATISTICS:
            check_statistics("Ask.stats", self.stats)


@dataclass(frozen=True, slots=True)
class Reading:
    """Predictions of a forward, on the host, for the requested positions that were computed.

    `positions` ascend. `tokens`: proposed ids, never the mask or a padded row of the vocabulary.
    `log_odds`: ln(p / (1 - p)) for the probability p of the proposal, so that near-certain tokens keep
    their order; -inf where the score is suppressed. `uniform`: a random number in [0, 1) per position, a
    function of (seed, forward, position identity). `stats`: the requested statistics; with `Credit` also
    the model's likeliest token without it (`raw_token`, `raw_confidence`). `shadow_log_odds`: of the
    canvas's token at each shadow. `top_v`: number of tokens over which the confidence was computed, None
    for all. `top_tokens` and `top_log_probs` `(n, k)`: the likeliest tokens and the named ones, in nats.
    """

    positions: Ints
    tokens: Ints
    log_odds: Floats
    uniform: Floats
    stats: Mapping[str, Floats] = field(default_factory=dict)
    shadow_log_odds: Floats = field(default_factory=lambda: NO_SCORES)
    top_v: int | None = None
    top_tokens: Ints = field(default_factory=lambda: NO_TOP)
    top_log_probs: Floats = field(default_factory=lambda: NO_TOP_LOG_PROBS)
    shares: tuple[Floats, Floats] | None = None
    """`confidence` and `doubt`, if they are computed already (for all sequences of a forward at once)."""

    @property
    def confidence(self) -> Floats:
        """Probability p of each proposal, in [0, 1]."""
        return probability(self.log_odds) if self.shares is None else self.shares[0]

    @property
    def doubt(self) -> Floats:
        """1 - p of each proposal, accurate where p rounds to 1."""
        return probability(-self.log_odds) if self.shares is None else self.shares[1]

    def only(self, selected: Bools) -> Reading:
        """Return the part of the reading where `selected`, a flag per position, is True."""
        if np.count_nonzero(selected) == len(selected):
            return self
        has_top, shares = self.top_tokens.size, self.shares
        return Reading(
            self.positions[selected],
            self.tokens[selected],
            self.log_odds[selected],
            self.uniform[selected],
            {name: values[selected] for name, values in self.stats.items()},
            self.shadow_log_odds,
            self.top_v,
            self.top_tokens[selected] if has_top else self.top_tokens,
            self.top_log_probs[selected] if has_top else self.top_log_probs,
            None if shares is None else (shares[0][selected], shares[1][selected]),
        )

    def undecided(self, canvas: Canvas, start: int = 0, end: int | None = None) -> Reading:
        """Return the part of the reading for open positions in `[start, end)`."""
        selected = canvas.open[self.positions]
        if start > 0:
            selected &= self.positions >= start
        if end is not None and end < len(canvas):
            selected &= self.positions < end
        return self.only(selected)

    def commit(self, chosen: Ints, notes: Mapping[str, float] | None = None) -> Edit:
        """Return the edit that commits the proposals at these indices of the reading."""
        if len(chosen) > 1:
            chosen = np.sort(chosen)
        return Edit(
            commit=self.positions[chosen],
            tokens=self.tokens[chosen],
            confidence=self.confidence[chosen],
            notes=notes or {},
        )


def probability(log_odds: Floats) -> Floats:
    """Return p for log-odds ln(p / (1 - p))."""
    p: Floats = np.exp(-np.logaddexp(0.0, -log_odds))
    return p


def places(before: Canvas, after: Canvas) -> Ints:
    """Return the index in `before` of each position of `after`, or -1 for a new position."""
    if has_same_positions(before, after):
        return np.arange(len(after))
    order = np.argsort(before.uid, kind="stable")
    at = np.minimum(np.searchsorted(before.uid, after.uid, sorter=order), len(before) - 1)
    indices: Ints = np.where(before.uid[order[at]] == after.uid, order[at], -1)
    return indices


def has_same_positions(before: Canvas, after: Canvas) -> bool:
    """Return whether the canvases have the same positions, so that indices in one hold in the other."""
    return before.uid is after.uid or np.array_equal(before.uid, after.uid)


def edited(before: Canvas, after: Canvas) -> Bools:
    """Return a flag per position of `after`: True if it is new, or its token or state has changed."""
    if has_same_positions(before, after):
        touched: Bools = (before.tokens != after.tokens) | (before.open != after.open)
        return touched
    at = places(before, after)
    changed: Bools = (
        (at < 0) | (before.tokens[at] != after.tokens) | (before.open[at] != after.open)
    )
    return changed
