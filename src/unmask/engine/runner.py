"""One forward for many sequences, each with its own queries.

The runner packs the planned queries, runs the network once, applies the LM head to the asked rows only,
and brings the proposals to the host in a single transfer.

Rows of a batch that query different numbers of slots are padded to the widest; `num_queries` counts what
was planned, without that padding.

Letters: B rows of the batch, Q queries, K keys, N logit rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unmask.caches import Plan
from unmask.caches.store import Store, StoreView
from unmask.canvas import Ask, Ints, Reading
from unmask.engine.request import Sequence
from unmask.errors import ModelError
from unmask.models._transformer import Transformer
from unmask.sampling import Proposal, Vocabulary, propose, row_keys, uniform

HEAD_CHUNK = 1 << 26
"""Logits computed at a time: 256 MB in float32, of which sampling takes an eighth at a time."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One sequence's part of a forward; `rows` are the logit rows that answer `ask`.

    Asked slots whose row the plan does not compute are left out: the decoder never sees them.
    """

    sequence: Sequence
    ask: Ask
    rows: Ints
    plan: Plan


class Runner:
    """Runs forwards of one model for the sequences that were admitted.

    `max_rows` sequences of at most `max_slots` slots; guided sequences take two rows.
    """

    def __init__(
        self, model: Transformer, vocabulary: Vocabulary, max_rows: int, max_slots: int, store: bool
    ) -> None:
        self.model, self.vocabulary, self.max_rows = model, vocabulary, max_rows
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

    def turn(self, sequence: Sequence) -> Turn:
        """Ask the decoder, then let the cache plan the forward that answers it."""
        request = sequence.request
        ask, sequence.decoder_state = request.decoder.ask(sequence.canvas, sequence.decoder_state)
        rows = np.maximum(ask.rows - 1, 0) if self.model.spec.shift_logits else ask.rows
        plan, sequence.cache_state = request.cache.plan(
            sequence.canvas, ask, np.unique(rows), sequence.cache_state
        )
        computed = np.isin(rows, plan.queries)
        return Turn(sequence, replace(ask, rows=ask.rows[computed]), rows[computed], plan)

    @torch.inference_mode()
    def forward(self, turns: list[Turn]) -> list[Reading]:
        """Run the network once for all admitted sequences; one reading a turn."""
        by_id = {id(turn.sequence): turn for turn in turns}
        lanes = [(by_id[id(sequence)], sees_prompt) for sequence, sees_prompt in self.lanes]
        states_BQD = self._states(lanes)
        flat = states_BQD.reshape(-1, states_BQD.shape[-1])
        width = states_BQD.shape[1]
        rows: dict[tuple[int, bool], Ints] = {}
        for lane, (turn, sees_prompt) in enumerate(lanes):
            at = np.searchsorted(turn.plan.queries, turn.rows)
            rows[id(turn.sequence), sees_prompt] = at + lane * width
        keys = [self._keys(turn) for turn in turns]
        values = self._propose(flat, turns, rows, np.concatenate(keys)).cpu().numpy()
        if np.isnan(values).any():
            raise ModelError(
                "the model's logits are not finite; try dtype=float32 or bfloat16, or a smaller cfg_scale"
            )
        readings, start = [], 0
        for turn, own_keys in zip(turns, keys, strict=True):
            end = start + len(turn.rows)
            readings.append(self._reading(turn, values[start:end], own_keys))
            start = end
        return readings

    @staticmethod
    def _reading(turn: Turn, values: np.ndarray, keys: np.ndarray) -> Reading:
        return Reading(
            slots=turn.ask.rows,
            tokens=values[:, 0].astype(np.int64),
            log_odds=values[:, 1].copy(),
            uniform=uniform(keys),
        )

    def _keys(self, turn: Turn) -> np.ndarray:
        sequence = turn.sequence
        uids = sequence.canvas.uid[turn.ask.rows]
        return row_keys(sequence.request.seed, sequence.num_forwards, uids)

    def _states(self, lanes: list[tuple[Turn, bool]]) -> Tensor:
        """Final states `(B, Q, D)`; rows with fewer queries are padded on the right."""
        spec, device = self.model.spec, self.model.device
        lengths = np.array([len(turn.sequence.canvas) for turn, _ in lanes])
        counts = np.array([len(turn.plan.queries) for turn, _ in lanes])
        width, key_length = int(counts.max()), int(lengths.max())
        scratch = self.store.slots if self.store is not None else 0
        slots = np.full((len(lanes), width), scratch, dtype=np.int64)
        ids = np.zeros((len(lanes), width), dtype=np.int64)
        for lane, (turn, sees_prompt) in enumerate(lanes):
            canvas, queries = turn.sequence.canvas, turn.plan.queries
            tokens = (
                canvas.tokens
                if sees_prompt
                else np.where(canvas.fixed, spec.mask_id, canvas.tokens)
            )
            slots[lane, : counts[lane]] = queries
            ids[lane, : counts[lane]] = tokens[queries]
        slots_BQ = torch.from_numpy(slots).to(device)
        visible = self._visible(slots_BQ, lengths, key_length)
        view = None
        if self.store is not None:
            view = StoreView(self.store, slots_BQ, key_length, _contiguous(slots, counts))
        return self.model.hidden(torch.from_numpy(ids).to(device), slots_BQ, visible, view)

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

    def _propose(
        self,
        flat: Tensor,
        turns: list[Turn],
        rows: dict[tuple[int, bool], Ints],
        keys: np.ndarray,
    ) -> Tensor:
        """Proposals `(N, 2)` of all turns, the head applied to their rows in bounded chunks."""
        rules: list[Proposal] = []
        for turn in turns:
            rules.extend([turn.sequence.request.proposal] * len(turn.rows))
            turn.sequence.num_logit_rows += len(turn.rows) * self.rows_of(turn.sequence)
        seen = np.concatenate([rows[id(turn.sequence), True] for turn in turns])
        blind = np.concatenate(
            [rows.get((id(turn.sequence), False), np.full(len(turn.rows), -1)) for turn in turns]
        )
        share = 8 if any(rule.temperature > 0 for rule in rules) else 1
        chunk = max(1, HEAD_CHUNK // share // self.model.spec.vocab_size)
        parts = []
        for start in range(0, len(seen), chunk):
            part = slice(start, start + chunk)
            logits = self._logits(flat, seen[part])
            guided = np.flatnonzero(blind[part] >= 0)
            if len(guided):
                weight = torch.tensor(
                    [rules[start + i].cfg_scale for i in guided], device=flat.device
                )
                without = self._logits(flat, blind[part][guided])
                at = torch.from_numpy(guided).to(flat.device)
                logits[at] = without + (1 + weight[:, None]) * (logits[at] - without)
            parts.append(propose(logits, rules[part], keys[part], self.vocabulary))
        return torch.cat(parts)

    def _logits(self, flat: Tensor, rows: Ints) -> Tensor:
        return self.model.head(flat[torch.from_numpy(rows).to(flat.device)]).float()


def _contiguous(slots: Ints, counts: Ints) -> slice | None:
    """The slots as one slice, when every row queries the same contiguous range."""
    first, last = int(slots[0, 0]), int(slots[0, -1])
    same = (counts == slots.shape[1]).all() and (slots == slots[0]).all()
    return slice(first, last + 1) if same and last - first + 1 == slots.shape[1] else None
