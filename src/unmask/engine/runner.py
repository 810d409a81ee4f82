"""One forward for many sequences, each with its own queries.

The runner packs the planned queries, runs the network once, applies the LM head to the asked rows only,
and brings the proposals to the host in a single transfer.

Rows of a batch that query different numbers of slots are padded to the widest; `num_queries` counts what
was planned, without that padding.

Letters: B rows of the batch, Q queries, E extra ones, K keys, N logit rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unmask.caches import Plan
from unmask.caches.store import Store, StoreView
from unmask.canvas import Ask, Ints, Reading
from unmask.engine.heads import Heads, Part
from unmask.engine.request import Sequence
from unmask.errors import ModelError
from unmask.models._transformer import Transformer
from unmask.randomness import row_keys, uniform
from unmask.sampling import STATS, Vocabulary, effective_top_v


@dataclass(frozen=True, slots=True)
class Turn:
    """One sequence's part of a forward; `rows` are the logit rows that answer `ask`.

    Asked slots whose row the plan does not compute are left out: the decoder never sees them.
    """

    sequence: Sequence
    ask: Ask
    rows: Ints
    plan: Plan

    @property
    def num_queries(self) -> int:
        """Slots that the forward computes for it, twins included."""
        return len(self.plan.queries) + len(self.ask.twins)


class Runner:
    """Runs forwards of one model for the sequences that were admitted.

    `max_rows` sequences of at most `max_slots` slots; guided sequences take two rows.
    """

    def __init__(
        self, model: Transformer, vocabulary: Vocabulary, max_rows: int, max_slots: int, store: bool
    ) -> None:
        self.model, self.max_rows = model, max_rows
        self.heads = Heads(model, vocabulary)
        self.store = (
            Store(model.spec, max_rows, max_slots, model.dtype, model.device) if store else None
        )
        self.lanes: list[tuple[Sequence, bool]] = []
        """(sequence, sees the prompt) of each row of the batch, in the store's order."""

    @staticmethod
    def rows_of(sequence: Sequence) -> int:
        """Rows of the batch that a sequence takes."""
        return 2 if sequence.request.proposal.cfg_scale > 0 else 1

    def has_room(self, sequence: Sequence) -> bool:
        """Whether it can be admitted now."""
        return len(self.lanes) + self.rows_of(sequence) <= self.max_rows

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence its rows."""
        self.lanes.extend((sequence, branch == 0) for branch in range(self.rows_of(sequence)))

    def release(self, sequence: Sequence) -> None:
        """Take a finished sequence's rows back; the last rows move into the gap."""
        for lane in range(len(self.lanes) - 1, -1, -1):
            if self.lanes[lane][0] is sequence:
                last = self.lanes.pop()
                if lane < len(self.lanes):
                    self.lanes[lane] = last
                    if self.store is not None:
                        self.store.move_row(len(self.lanes), lane)

    def row_of(self, slots: Ints) -> Ints:
        """The slot whose row answers each slot."""
        answering: Ints = np.maximum(slots - 1, 0) if self.model.spec.shift_logits else slots
        return answering

    def turn(self, sequence: Sequence) -> Turn:
        """Ask the decoder, then let the cache plan the forward that answers it."""
        request = sequence.request
        ask, sequence.decoder_state = request.decoder.ask(sequence.canvas, sequence.decoder_state)
        if request.proposal.vocabulary == "adaptive" and ask.top_v is None:
            size = sequence.memory.adaptive_size(sequence.canvas)
            ask = replace(ask, top_v=min(size, self.model.spec.vocab_size))
        plan, sequence.cache_state = request.cache.plan(
            sequence.canvas, ask, np.unique(self.row_of(ask.rows)), sequence.cache_state
        )
        slots = np.union1d(ask.rows, ask.optional) if len(ask.optional) else ask.rows
        rows = self.row_of(slots)
        computed = np.isin(rows, plan.queries)
        return Turn(sequence, replace(ask, rows=slots[computed]), rows[computed], plan)

    @torch.inference_mode()
    def forward(self, turns: list[Turn]) -> list[Reading]:
        """Run the network once for all admitted sequences; one reading a turn."""
        by_id = {id(turn.sequence): turn for turn in turns}
        lanes = [(by_id[id(sequence)], sees_prompt) for sequence, sees_prompt in self.lanes]
        states_BQD, width = self._states(lanes)
        flat = states_BQD.reshape(-1, states_BQD.shape[-1])
        stride = states_BQD.shape[1]
        places: dict[tuple[int, bool], tuple[Ints, Ints]] = {}
        for lane, (turn, sees_prompt) in enumerate(lanes):
            at = np.searchsorted(turn.plan.queries, turn.rows) + lane * stride
            twins = np.arange(len(turn.ask.twins)) + lane * stride + width
            places[id(turn.sequence), sees_prompt] = (at, twins)
        parts = []
        for turn in turns:
            seen, blind = (places.get((id(turn.sequence), branch)) for branch in (True, False))
            assert seen is not None, "every sequence has a row that sees its prompt"
            turn.sequence.num_logit_rows += (len(turn.rows) + len(turn.ask.twins)) * (
                1 if blind is None else 2
            )
            parts.append(Part(turn.sequence, turn.ask, seen, blind, self._keys(turn)))
        values = self.heads.propose(flat, parts).cpu().numpy()
        if np.isnan(values).any():
            raise ModelError(
                "the model's logits are not finite; try dtype=float32 or bfloat16, or a smaller cfg_scale"
            )
        return self._readings(parts, values)

    def _readings(self, parts: list[Part], values: np.ndarray) -> list[Reading]:
        """Rows of `values`: the proposals of all parts, then the twins of all parts."""
        readings: list[Reading] = []
        start, twin = 0, sum(len(part.ask.rows) for part in parts)
        for part in parts:
            end, twin_end = start + len(part.ask.rows), twin + len(part.ask.twins)
            own = values[start:end]
            told: list[str] = [name for name in STATS if name in part.ask.stats]
            told += ["eos_top"] if "eos" in told else []
            if part.ask.credit is not None:
                told += ["raw_token", "raw_confidence"]
            if part.sequence.request.proposal.vocabulary == "union":
                told.append("missed")
                column = own[:, 2 + STATS.index("missed")]
                part.sequence.memory.missed = float(column.max(initial=0.0))
            readings.append(
                Reading(
                    slots=part.ask.rows,
                    tokens=own[:, 0].astype(np.int64),
                    log_odds=own[:, 1].copy(),
                    uniform=uniform(part.keys),
                    stats={name: own[:, 2 + STATS.index(name)].copy() for name in told},
                    twin_log_odds=values[twin:twin_end, 1].copy(),
                    top_v=effective_top_v(part.sequence.request.proposal, part.ask),
                )
            )
            start, twin = end, twin_end
        return readings

    def _keys(self, turn: Turn) -> np.ndarray:
        sequence = turn.sequence
        uids = sequence.canvas.uid[turn.ask.rows]
        return row_keys(sequence.request.seed, sequence.num_forwards, uids)

    def _states(self, lanes: list[tuple[Turn, bool]]) -> tuple[Tensor, int]:
        """Final states `(B, Q + E, D)` and Q; rows with fewer queries or twins are padded."""
        spec, device = self.model.spec, self.model.device
        lengths = np.array([len(turn.sequence.canvas) for turn, _ in lanes])
        counts = np.array([len(turn.plan.queries) for turn, _ in lanes])
        extra = max(len(turn.ask.twins) for turn, _ in lanes)
        width, key_length = int(counts.max()), int(lengths.max())
        scratch = self.store.slots if self.store is not None else 0
        slots = np.full((len(lanes), width + extra), scratch, dtype=np.int64)
        ids = np.zeros((len(lanes), width + extra), dtype=np.int64)
        for lane, (turn, sees_prompt) in enumerate(lanes):
            canvas, queries, twins = turn.sequence.canvas, turn.plan.queries, turn.ask.twins
            tokens = (
                canvas.tokens
                if sees_prompt
                else np.where(canvas.fixed, spec.mask_id, canvas.tokens)
            )
            slots[lane, : counts[lane]] = queries
            ids[lane, : counts[lane]] = tokens[queries]
            slots[lane, width : width + len(twins)] = self.row_of(twins)
            ids[lane, width : width + len(twins)] = spec.mask_id
        slots_BQ = torch.from_numpy(slots).to(device)
        visible = self._visible(slots_BQ[:, :width], lengths, key_length)
        if extra:
            visible = self._twin_visible(visible, slots_BQ[:, width:], lanes, lengths, key_length)
        view = None
        if self.store is not None:
            view = StoreView(
                self.store,
                slots_BQ[:, :width],
                key_length,
                _contiguous(slots[:, :width], counts),
            )
        ids_BQ = torch.from_numpy(ids).to(device)
        return self.model.hidden(ids_BQ, slots_BQ, visible, view), width

    def _visible(self, slots_BQ: Tensor, lengths: Ints, key_length: int) -> Tensor | None:
        """Who sees whom, `(B, 1, Q, K)`; None when everyone sees everyone."""
        block_size = self.model.spec.block_size
        if block_size is None and (lengths == key_length).all():
            return None
        keys = torch.arange(key_length, device=slots_BQ.device)
        real = keys[None, :] < torch.from_numpy(lengths).to(slots_BQ.device)[:, None]
        visible = real[:, None, None, :].expand(-1, 1, slots_BQ.shape[1], -1)
        if block_size is not None:
            seen = keys[None, None, :] // block_size <= slots_BQ[:, :, None] // block_size
            visible = visible & seen[:, None]
        return visible

    def _twin_visible(
        self,
        canvas: Tensor | None,
        twin_slots_BE: Tensor,
        lanes: list[tuple[Turn, bool]],
        lengths: Ints,
        key_length: int,
    ) -> Tensor:
        """`(B, 1, Q + E, K + E)`: nobody sees a twin but twins; a twin does not see its own slot."""
        rows, extra = twin_slots_BE.shape
        if canvas is None:
            queries = max(len(turn.plan.queries) for turn, _ in lanes)
            canvas = torch.ones(
                rows, 1, queries, key_length, dtype=torch.bool, device=twin_slots_BE.device
            )
        above = torch.nn.functional.pad(canvas, (0, extra))
        own = self._visible(twin_slots_BE, lengths, key_length)
        below = canvas.new_ones(rows, 1, extra, key_length) if own is None else own.clone()
        meet = torch.eye(extra, dtype=torch.bool, device=canvas.device).repeat(rows, 1, 1, 1)
        for lane, (turn, _) in enumerate(lanes):
            twins = turn.ask.twins
            below[lane, 0, np.arange(len(twins)), twins] = False
            if turn.ask.twins_meet:
                meet[lane, 0, : len(twins), : len(twins)] = True
        return torch.cat((above, torch.cat((below, meet), dim=-1)), dim=2)


def _contiguous(slots: Ints, counts: Ints) -> slice | None:
    """The slots as one slice, when every row queries the same contiguous range."""
    first, last = int(slots[0, 0]), int(slots[0, -1])
    same = (counts == slots.shape[1]).all() and (slots == slots[0]).all()
    return slice(first, last + 1) if same and last - first + 1 == slots.shape[1] else None
