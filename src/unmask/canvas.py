"""The canvas of one sequence, and the edits that change it.

Everything here lives on the host, is per sequence and is a value: `apply(canvas, edit, step)` returns a new
canvas, so a decode *is* its list of edits. Whether a position is undecided is a flag (`open`), never a
comparison with the mask id: a prompt may contain the mask's id as ordinary text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NO_POSITIONS: Ints = np.zeros(0, dtype=np.int64)
NO_SCORES: Floats = np.zeros(0, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Canvas:
    """All that is true of a sequence between two forwards; every array has one entry a position.

    `tokens` (the mask id where open, for the network's input only), `open` (undecided), `fixed` (given,
    never edited), `origin` (the forward that committed the token, -1 for given or open ones), `uid` (a
    position's identity, which survives insertion and deletion), `prompt_length` (positions before it are
    the prompt), `mask_id`, `next_uid` (identities are never given twice), `infilling` (blanks in a given
    text, not a continuation).
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
        """Number of positions."""
        return len(self.tokens)

    @property
    def num_open(self) -> int:
        """Number of undecided positions."""
        return int(self.open.sum())

    def open_positions(self, start: int = 0, end: int | None = None) -> Ints:
        """Undecided positions in `[start, end)`, ascending."""
        return np.flatnonzero(self.open[start:end]) + start


def new_canvas(
    tokens: list[int],
    blanks: list[bool],
    prompt_length: int,
    mask_id: int,
    *,
    infilling: bool = False,
) -> Canvas:
    """A canvas whose `blanks` are undecided and whose other tokens are given."""
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


@dataclass(frozen=True, slots=True)
class Edit:
    """What one step decided, in positions of the canvas it saw, applied in the order of the fields.

    `commit` open positions get `tokens` (with `confidence` in [0, 1]); `replace` decided positions get
    `replace_tokens`; `remask` decided positions become undecided; `delete` positions disappear; `insert`
    lists `(position, count)`: `count` open positions before `position` (`position == len(canvas)` appends);
    `append` are tokens that become decided positions at the end. `notes`: numbers the method chose, for the
    trace only.
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
    def is_empty(self) -> bool:
        """Whether applying it changes nothing."""
        changes = (self.commit, self.replace, self.remask, self.delete, self.append)
        return not self.insert and all(len(positions) == 0 for positions in changes)


def apply(canvas: Canvas, edit: Edit, step: int) -> Canvas:
    """The canvas after an edit made by forward `step`.

    An edit that breaks the rules (commit on a decided position, touching a given one, writing the mask id)
    is a decoder's bug and raises AssertionError.
    """
    assert canvas.open[edit.commit].all(), "commit on a decided position"
    assert (edit.tokens != canvas.mask_id).all(), "the mask id was committed"
    assert (edit.replace_tokens != canvas.mask_id).all(), "the mask id was written"
    assert (edit.append != canvas.mask_id).all(), "the mask id was appended"
    assert len(np.unique(edit.commit)) == len(edit.commit), "a position was committed twice"
    assert len(edit.tokens) == len(edit.commit), "not one token a committed position"
    for positions in (edit.replace, edit.remask, edit.delete):
        assert not canvas.fixed[positions].any(), "a given token was edited"
    for positions in (edit.replace, edit.remask):
        decided_now = np.isin(positions, edit.commit) | ~canvas.open[positions]
        assert decided_now.all(), "replace or remask on an undecided position"
    tokens, open_, origin = canvas.tokens.copy(), canvas.open.copy(), canvas.origin.copy()
    tokens[edit.commit], open_[edit.commit], origin[edit.commit] = edit.tokens, False, step
    tokens[edit.replace], origin[edit.replace] = edit.replace_tokens, step
    tokens[edit.remask], open_[edit.remask], origin[edit.remask] = canvas.mask_id, True, -1
    changed = replace(canvas, tokens=tokens, open=open_, origin=origin)
    if len(edit.delete) or edit.insert:
        changed = _restructure(changed, edit)
    if len(edit.append):
        changed = _append(changed, edit.append, step)
    return changed


def truncate(canvas: Canvas, size: int) -> Canvas:
    """The first `size` positions of a canvas."""
    kept = {
        name: getattr(canvas, name)[:size] for name in ("tokens", "open", "fixed", "origin", "uid")
    }
    return replace(canvas, **kept)


def _append(canvas: Canvas, tokens: Ints, step: int) -> Canvas:
    """Decided positions at the end."""
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
    """Delete and insert positions; identities of the others are kept."""
    size = len(canvas)
    order: list[Ints] = []
    inserts = dict(edit.insert)
    assert len(inserts) == len(edit.insert), "two insertions before one position"
    assert all(canvas.prompt_length <= position <= size for position in inserts), (
        "insertion in the prompt"
    )
    kept = ~np.isin(np.arange(size), edit.delete)
    for position in range(size + 1):
        if position in inserts:
            order.append(np.full(inserts[position], -1, dtype=np.int64))
        if position < size and kept[position]:
            order.append(np.array([position], dtype=np.int64))
    source = np.concatenate(order) if order else NO_POSITIONS
    new = source < 0
    count = int(new.sum())

    def gather(values: Any, fill: Any) -> Any:
        out = np.full(len(source), fill, dtype=values.dtype)
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
class ModelFacts:
    """What a decoder may know of the model.

    `block_size` of block-causal attention or None; special ids; `max_length` of the context;
    `background()`: how frequent each token is in the model's own output (`(V,)`, measured once, when first
    called); `draft(canvas)`: a cheap guess at the open positions, one token a position and -1 for none.
    """

    vocab_size: int
    eos_id: int | None
    turn_end_id: int | None
    block_size: int | None
    max_length: int = 1 << 30
    background: Callable[[], Floats] | None = None
    draft: Callable[[Canvas], Ints] | None = None


Stat = Literal["entropy", "margin", "gap", "eos", "kl", "top_v_entropy"]
"""What a reading may tell of a row beside its proposal.

`entropy` of the distribution in nats. `margin`: ln of 1 - (p1 - p2), so that near-certain rows keep their
order. `gap`: difference of the two largest logits. `eos`: probability of end-of-text (and `eos_top`: 1
where it is the likeliest, before sampling). `kl`: divergence in nats from the same position's distribution
of the forward before, +inf where that was not read. `top_v_entropy`: in nats, over the `top_v` largest
logits.
"""


@dataclass(frozen=True, slots=True)
class Bias:
    """Numbers added to logits: at `positions`, of `tokens`, by `values` (equal lengths)."""

    positions: Ints
    tokens: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class Credit:
    """Evidence from earlier forwards: `amounts` at (`positions`, `tokens`); see `decoders.credit`.

    The forward first adds `p ** gamma` for its own likeliest token, then `alpha * ln(1 + amount)` to the
    logits.
    """

    positions: Ints
    tokens: Ints
    amounts: Floats
    alpha: float
    gamma: float


@dataclass(frozen=True, slots=True)
class Ask:
    """What a decoder wants from the next forward.

    `rows`: positions whose prediction it reads, ascending, open or decided. `window` `[start, end)`: the
    running block; caches refresh when it moves. `needed`: positions of `rows` that must be read, where a
    cache may else choose among the window's open ones. `optional`: further positions, read if an
    approximate cache computes them anyway, and always without one or with an exact one. `stats`: what to
    tell beside the proposal. `top_v`: confidence over that many largest logits only. `from_sampling`: tell
    all of the distribution that is sampled from (temperature, top_p and top_k applied) instead of the
    model's own. `shadows`: decided positions to be predicted as if they were open, by extra queries that
    see every position but their own; `shadows_attend`: and see each other.
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What the forward said about the asked positions, on the host; positions that were not computed are
    absent.

    `positions` ascending; `tokens` the proposed ids (never the mask or a padded row of the vocabulary);
    `log_odds` = ln(p / (1 - p)) of the proposal's probability p in float32 resolution near 1 too, so
    that near-certain tokens keep their order; -inf where the score was suppressed. `uniform` holds one
    number in [0, 1) per position, drawn from (seed, forward, position identity). `stats`: what was asked
    for. With `Credit`, `stats` also has the model's own choice before it (`raw_token`, `raw_confidence`).
    `shadow_log_odds`: of the canvas's token at each shadow. `top_v`: how many tokens shared the confidence,
    None for all.
    """

    positions: Ints
    tokens: Ints
    log_odds: Floats
    uniform: Floats
    stats: Mapping[str, Floats] = field(default_factory=dict)
    shadow_log_odds: Floats = field(default_factory=lambda: NO_SCORES)
    top_v: int | None = None

    @property
    def confidence(self) -> Floats:
        """p of each proposal, in [0, 1]."""
        return probability(self.log_odds)

    @property
    def doubt(self) -> Floats:
        """1 - p of each proposal, exact where p rounds to 1."""
        return probability(-self.log_odds)

    def only(self, kept: Bools) -> Reading:
        """The part of the reading where `kept` (one flag a position of the reading)."""
        if kept.all():
            return self
        return replace(
            self,
            positions=self.positions[kept],
            tokens=self.tokens[kept],
            log_odds=self.log_odds[kept],
            uniform=self.uniform[kept],
            stats={name: values[kept] for name, values in self.stats.items()},
        )

    def undecided(self, canvas: Canvas, start: int = 0, end: int | None = None) -> Reading:
        """The part about open positions in `[start, end)`."""
        limit = len(canvas) if end is None else end
        return self.only(
            canvas.open[self.positions] & (self.positions >= start) & (self.positions < limit)
        )

    def commit(self, chosen: Ints, notes: Mapping[str, float] | None = None) -> Edit:
        """The edit that commits the proposals at these indices of the reading."""
        chosen = np.sort(chosen)
        return Edit(
            commit=self.positions[chosen],
            tokens=self.tokens[chosen],
            confidence=self.confidence[chosen],
            notes=notes or {},
        )


def probability(log_odds: Floats) -> Floats:
    """p of ln(p / (1 - p))."""
    shown: Floats = np.exp(-np.logaddexp(0.0, -log_odds))
    return shown


def places(before: Canvas, after: Canvas) -> Ints:
    """For each position of `after`, its place in `before`, or -1 for a new one."""
    if len(before) == len(after) and np.array_equal(before.uid, after.uid):
        return np.arange(len(after))
    order = np.argsort(before.uid, kind="stable")
    at = np.minimum(np.searchsorted(before.uid, after.uid, sorter=order), len(before) - 1)
    found: Ints = np.where(before.uid[order[at]] == after.uid, order[at], -1)
    return found


def edited(before: Canvas, after: Canvas) -> Bools:
    """For each position of `after`, whether it is new or holds another token than in `before`."""
    at = places(before, after)
    changed: Bools = (
        (at < 0) | (before.tokens[at] != after.tokens) | (before.open[at] != after.open)
    )
    return changed
