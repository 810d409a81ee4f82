"""One forward for many sequences, each with its own queries.

The runner packs the planned queries, runs the network once, applies the LM head to the asked rows only,
and brings the proposals to the host in a single transfer.

Letters: N queries of all rows or logit rows of all sequences, D width, C columns of a reading, T slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unmask.caches import Layers, Plan, Seen
from unmask.caches._features import FeatureLane, Features, Layered
from unmask.caches._packed import Lane, Packed
from unmask.caches._rollout import rollout
from unmask.caches._slots import places
from unmask.caches.store import Store
from unmask.canvas import Ask, Canvas, Floats, Ints, Reading
from unmask.engine.heads import Heads, Part
from unmask.engine.parallel import new_store
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

    def num_queries(self, num_layers: int) -> int:
        """Slots that the forward computes for it, twins included; the layers' mean if they differ."""
        if self.plan.layers is None:
            return len(self.plan.queries) + len(self.ask.twins)
        rows = self.plan.layers.num_rows(len(self.plan.queries))
        mean = (len(self.plan.queries) + (num_layers - 1) * rows) / num_layers
        return round(mean) + len(self.ask.twins)


class Runner:
    """Runs forwards of one model for the sequences that were admitted.

    `max_rows` sequences of at most `max_slots` slots; guided sequences take two rows.
    """

    def __init__(
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        max_rows: int,
        max_slots: int,
        *,
        store: bool,
        features: bool = False,
    ) -> None:
        self.model, self.max_rows = model, max_rows
        self.heads = Heads(model, vocabulary)
        self.store: Store | None = None
        if store or features:
            self.store = new_store(model, max_rows, max_slots, features)
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

    def follow(self, sequence: Sequence, before: Canvas) -> None:
        """Move what is kept of a sequence along with its slots, after an edit."""
        size = len(before)
        if self.store is None or np.array_equal(before.uid, sequence.canvas.uid[:size]):
            return
        sources = places(before, sequence.canvas)
        targets = np.flatnonzero(sources >= 0)
        self.store.reserve(len(sequence.canvas))
        for lane, (other, _) in enumerate(self.lanes):
            if other is sequence:
                self.store.move_slots(lane, sources[targets], targets)

    def cache_bytes(self, sequence: Sequence) -> int:
        """Bytes that a sequence's cache needs for its canvas as it is."""
        if self.store is None or not sequence.request.cache.stores:
            return 0
        layered = getattr(sequence.request.cache, "layered", False)
        per_slot = self.store.bytes_per_slot if layered else self.store.bytes_of_keys
        return per_slot * len(sequence.canvas) * self.rows_of(sequence)

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
        slots = np.union1d(ask.rows, ask.optional) if len(ask.optional) else ask.rows
        if request.cache.exact:  # without a cache all of them are there
            ask = replace(ask, rows=slots)
        plan, sequence.cache_state = request.cache.plan(
            sequence.canvas, ask, self.row_of(ask.rows), sequence.cache_state
        )
        rows = self.row_of(slots)
        computed = np.isin(rows, plan.queries)
        return Turn(sequence, replace(ask, rows=slots[computed]), rows[computed], plan)

    @torch.inference_mode()
    def forward(self, turns: list[Turn]) -> list[Seen]:
        """Run the network once for all admitted sequences; what was seen, a turn each."""
        by_id = {id(turn.sequence): turn for turn in turns}
        lanes = [(by_id[id(sequence)], sees_prompt) for sequence, sees_prompt in self.lanes]
        flat_ND, starts, importance = self._states(lanes)
        states: dict[tuple[int, bool], tuple[Ints, Ints]] = {}
        for (turn, sees_prompt), start in zip(lanes, starts, strict=True):
            at = np.searchsorted(turn.plan.queries, turn.rows) + start
            twins = np.arange(len(turn.ask.twins)) + start + len(turn.plan.queries)
            states[id(turn.sequence), sees_prompt] = (at, twins)
        parts = []
        for turn in turns:
            seen, blind = (states.get((id(turn.sequence), branch)) for branch in (True, False))
            assert seen is not None, "every sequence has a row that sees its prompt"
            turn.sequence.num_logit_rows += (len(turn.rows) + len(turn.ask.twins)) * (
                1 if blind is None else 2
            )
            parts.append(Part(turn.sequence, turn.ask, seen, blind, self._keys(turn)))
        packed = self.heads.propose(flat_ND, parts)
        told = [tensor.double() for tensor in importance.values()]
        numbers = torch.cat((packed.flatten(), *told)).cpu().numpy()  # the forward's one transfer
        values = numbers[: packed.numel()].reshape(packed.shape)
        if np.isnan(values).any():
            raise ModelError(
                "the model's logits are not finite; try dtype=float32 or bfloat16, or a smaller cfg_scale"
            )
        shares, start = dict[int, Floats](), packed.numel()
        for key, tensor in importance.items():
            shares[key] = numbers[start : start + len(tensor)]
            start += len(tensor)
        readings = self._readings(parts, values)
        return [
            Seen(reading, shares.get(id(turn.sequence)))
            for turn, reading in zip(turns, readings, strict=True)
        ]

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

    def _states(
        self, lanes: list[tuple[Turn, bool]]
    ) -> tuple[Tensor, list[int], dict[int, Tensor]]:
        """Final states `(N, D)`, where each lane's begin, and `(T,)` importances of watched sequences.

        A lane's states are those of its plan's queries, then those of its twins. Lanes whose layers
        differ in what they compute go through the network apart.
        """
        starts, states, start = [0] * len(lanes), list[Tensor](), 0
        importance: dict[int, Tensor] = {}
        device = self.model.device
        for is_layered in (False, True):
            chosen = [
                i for i, (t, _) in enumerate(lanes) if (t.plan.layers is not None) == is_layered
            ]
            if not chosen:
                continue
            made = [self._lane(i, *lanes[i]) for i in chosen]
            mixing = self._mixing(made, [lanes[i][0].plan.layers for i in chosen])
            ids = np.concatenate([self._ids(*lanes[i]) for i in chosen])
            positions = np.concatenate([lane.positions for lane in made])
            states.append(
                self.model.hidden(
                    torch.from_numpy(ids).to(device),
                    torch.from_numpy(positions).to(device),
                    mixing=mixing,
                )
            )
            for i, lane in zip(chosen, made, strict=True):
                starts[i] = start
                start += len(lane.positions)
                if lane.watched:
                    queries = torch.from_numpy(lane.slots).to(device)
                    shares = rollout(mixing.maps[lane.row], queries, lane.length)
                    importance[id(lanes[i][0].sequence)] = shares
        return torch.cat(states) if len(states) > 1 else states[0], starts, importance

    def _mixing(self, made: list[Lane], layers: list[Layers | None]) -> Packed:
        """How the queries of these lanes, all layered or none, meet keys and values."""
        block_size, device = self.model.spec.block_size, self.model.device
        items = [FeatureLane(a, b) for a, b in zip(made, layers, strict=True) if b is not None]
        if not items:
            return Packed(made, self.store, block_size, device, self.model.ranks)
        assert isinstance(self.store, Features), "layered plans have their store"
        return Layered(items, self.store, block_size, device, self.model.ranks)

    def _lane(self, row: int, turn: Turn, sees_prompt: bool) -> Lane:
        plan, twins = turn.plan, turn.ask.twins
        return Lane(
            row=row,
            slots=plan.queries,
            length=len(turn.sequence.canvas),
            positions=np.concatenate((plan.queries, self.row_of(twins))),
            twins=twins,
            twins_meet=turn.ask.twins_meet,
            kept=turn.sequence.request.cache.stores,
            watched=plan.watched and sees_prompt,
        )

    def _ids(self, turn: Turn, sees_prompt: bool) -> Ints:
        """The tokens of a lane's queries and twins."""
        canvas, mask_id = turn.sequence.canvas, self.model.spec.mask_id
        tokens = canvas.tokens[turn.plan.queries]
        if not sees_prompt:
            tokens = np.where(canvas.fixed[turn.plan.queries], mask_id, tokens)
        masks = np.full(len(turn.ask.twins), mask_id, dtype=np.int64)
        return np.concatenate((tokens, masks))
