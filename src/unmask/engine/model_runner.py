"""One forward of many sequences, each with its own queries.

The runner packs the planned queries, launches the network once, applies the LM head to the requested rows
only, and copies the proposals to the host in a single transfer, for which it waits in `collect`.

Letters: N queries of all rows or logit rows of all sequences, D width, C columns of a reading, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from unmask.ask_rules import ask_fault, pair_fault
from unmask.attention.layered import FeatureRowMeta, FeatureStore, LayeredAttention
from unmask.attention.packed import PackedAttention, RowMeta
from unmask.caches.base import CachePlan, Layers, Observation, answered_rows, plan_fault
from unmask.canvas import (
    NO_POSITIONS,
    NO_TOP,
    NO_TOP_LOG_PROBS,
    Ask,
    Canvas,
    Floats,
    Ints,
    Reading,
    places,
    probability,
)
from unmask.engine.constrained import allowed_tokens
from unmask.engine.kv_dense import Branch, DenseKV
from unmask.engine.kv_paged import PagedKV, fed_tokens
from unmask.engine.lm_head import LMHead, LogitRows
from unmask.engine.sequence import SequenceState
from unmask.engine.static_step import Capture, DenseRows, PagedRows, StaticForwards, captured
from unmask.errors import CacheError, ConfigError, DecoderError, ModelError
from unmask.models.adapters import AdapterBank
from unmask.models.transformer import Transformer
from unmask.sampling.rng import row_keys, uniform
from unmask.sampling.sampler import STATS, Vocabulary, effective_top_v
from unmask.sampling.transfer import Download, upload

NOT_FINITE = (
    "the model's logits are not finite; try dtype=float32 or bfloat16, or a smaller cfg_scale"
)


@dataclass(frozen=True, slots=True)
class ForwardInput:
    """One sequence's part of a forward; `rows` are the logit rows that answer `ask`.

    Asked positions whose row the plan does not compute are missing from the reading. With
    `runs_decoder` False the forward only computes keys and values of a part of the prompt.
    """

    sequence: SequenceState
    ask: Ask
    rows: Ints
    plan: CachePlan
    runs_decoder: bool = True

    def num_queries(self, num_layers: int) -> int:
        """Return the number of positions to compute, with shadow queries; a mean if the layers differ."""
        if self.plan.layers is None:
            return len(self.plan.queries) + len(self.ask.shadows)
        rows = self.plan.layers.num_rows(len(self.plan.queries))
        mean = (len(self.plan.queries) + (num_layers - 1) * rows) / num_layers
        return round(mean) + len(self.ask.shadows)


@dataclass(frozen=True, slots=True)
class Pending:
    """A launched forward: its inputs, their logit rows, and its result on the way to the host.

    `numbers` has the proposals, `shape` `(N, C)`, then 1 if the network's states are finite, else 0, then
    importances; `num_shares` is the number of those by `id` of their sequence.
    """

    inputs: list[ForwardInput]
    parts: list[LogitRows]
    shape: torch.Size
    num_shares: dict[int, int]
    numbers: Download


class ModelRunner:
    """The forwards of one model for up to `max_rows` rows; a guided sequence takes two rows.

    With `store`, or `features` for layer outputs too, a dense store for `max_rows` rows of `max_positions`
    positions is allocated now. Otherwise dense stores grow with the admitted sequences, up to `dense_bytes`
    bytes. `paging` has the pages of sequences with a pageable cache. `adapters` are those of the requests.
    `capture` makes the steps of fixed shapes (`engine.static_step`): CUDA graphs, which other devices do
    without; None: no forward has fixed shapes, as with adapters and on several ranks.
    """

    def __init__(  # noqa: PLR0913 - the parts of a runner
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        max_rows: int,
        max_positions: int = 0,
        *,
        store: bool = False,
        features: bool = False,
        paging: PagedKV | None = None,
        dense_bytes: int | None = None,
        adapters: AdapterBank | None = None,
        capture: Capture | None = captured,
    ) -> None:
        self.adapters = adapters
        if capture is captured and model.device.type != "cuda":
            capture = None
        if adapters is not None or model.ranks.size > 1:
            capture = None
        self.model, self.max_rows, self.paging = model, max_rows, paging
        self.lm_head = LMHead(model, vocabulary)
        self.dense_bytes = dense_bytes
        begin = {False: (max_rows, max_positions) if store and not features else (0, 0)}
        begin[True] = (max_rows, max_positions) if features else (0, 0)
        self.dense = {
            layered: DenseKV(
                model,
                *size,
                layered=layered,
                max_bytes=dense_bytes,
                num_spare=0 if capture is None or layered else 1,
            )
            for layered, size in begin.items()
        }
        """Dense stores by `layered`: with the layers' outputs (True), or of keys and values alone."""
        self.static = list[StaticForwards]()
        """The forwards of fixed shapes by kind of store, where they are used."""
        if capture is not None:
            self.static.append(StaticForwards(model, DenseRows(self.dense[False]), capture))
            if paging is not None:
                self.static.append(StaticForwards(model, PagedRows(paging.store), capture))
        self.metas: list[Branch] = []
        """The rows of all admitted sequences."""

    def is_paged(self, sequence: SequenceState) -> bool:
        """Return whether a sequence's keys and values are stored in pages."""
        return self.paging is not None and self.paging.takes(sequence)

    def _dense(self, sequence: SequenceState) -> DenseKV | None:
        """Return the dense store of a sequence; None if it has pages or no cache."""
        cache = sequence.request.cache
        if not cache.stores or self.is_paged(sequence):
            return None
        return self.dense[cache.layered]

    def has_room(self, sequence: SequenceState, num_extra: int = 0) -> bool:
        """Return whether a sequence can be admitted now, to `max_rows` rows and `num_extra` more."""
        rows, dense = sequence.num_rows, self._dense(sequence)
        if len(self.metas) + rows > self.max_rows + num_extra:
            return False
        if self.paging is not None and self.is_paged(sequence):
            return self.paging.has_room(sequence, rows)
        if dense is None or self.dense_bytes is None:
            return True
        other = self.dense[not dense.layered]
        needed = dense.bytes_with(rows, sequence.request.max_positions) + other.bytes_with(0, 0)
        return needed <= self.dense_bytes

    def check_fit(self, sequence: SequenceState) -> None:
        """Raise ConfigError for a sequence that does not fit even alone."""
        rows, dense, positions = (
            sequence.num_rows,
            self._dense(sequence),
            sequence.request.max_positions,
        )
        if rows > self.max_rows:
            raise ConfigError(
                f"a guided request takes {rows} rows, but the batch has {self.max_rows}; use cfg_scale=0"
            )
        if self.paging is not None and self.is_paged(sequence):
            self.paging.check_fit(sequence, rows)
        elif dense is not None and self.dense_bytes is not None:
            needed = rows * positions * dense.store.bytes_per_position
            if needed > self.dense_bytes:
                raise ConfigError(
                    f"a canvas of {positions} positions takes {needed} bytes of cache, but the engine has "
                    f"{self.dense_bytes} for dense caches; use cache=none, a shorter answer, or more "
                    f"kv_cache_memory_bytes"
                )

    def admit(self, sequence: SequenceState) -> None:
        """Assign rows and memory to a sequence."""
        branches = [(sequence, branch == 0) for branch in range(sequence.num_rows)]
        self.metas.extend(branches)
        dense = self._dense(sequence)
        if dense is not None:
            dense.admit(sequence, branches)
        elif self.paging is not None and self.is_paged(sequence):
            self.paging.admit(sequence, len(branches))

    def release(self, sequence: SequenceState) -> None:
        """Free the rows and the memory of a sequence."""
        self.metas = [meta for meta in self.metas if meta[0] is not sequence]
        dense = self._dense(sequence)
        if dense is not None:
            dense.release(sequence)
        elif self.paging is not None:
            self.paging.release(sequence)

    def follow(self, sequence: SequenceState, before: Canvas) -> None:
        """Move a sequence's stored keys and values with its positions, after an edit.

        In pages nothing moves: moved positions are not final any more.
        """
        after = sequence.canvas
        if before.uid is after.uid:
            return
        dense = self._dense(sequence)
        if dense is None or np.array_equal(before.uid, after.uid[: len(before)]):
            return
        sources = places(before, sequence.canvas)
        targets = np.flatnonzero(sources >= 0)
        dense.move(sequence, sources[targets], targets)

    def cache_bytes(self, sequence: SequenceState) -> int:
        """Return the size of a sequence's cache for its present canvas, in bytes."""
        if not sequence.request.cache.stores:
            return 0
        dense = self._dense(sequence)
        store = self.dense[False].store if dense is None else dense.store
        return store.bytes_per_position * len(sequence.canvas) * sequence.num_rows

    def row_of(self, positions: Ints) -> Ints:
        """Return the position of the logit row that answers each position."""
        answering: Ints = (
            np.maximum(positions - 1, 0) if self.model.spec.shift_logits else positions
        )
        return answering

    def prepare(self, sequence: SequenceState, max_queries: int | None = None) -> ForwardInput:
        """Return a sequence's next input: the decoder's ask and the cache's plan that answers it.

        If the plan exceeds `max_queries` positions and the cache can prefill, the input is a part of the
        prompt instead.
        """
        request, canvas, ask = sequence.request, sequence.canvas, self._ask(sequence)
        limit = sequence.num_useful(self.model.spec.block_size)
        if limit is not None and request.cache.exact:
            ask = replace(ask, optional=ask.optional[ask.optional < limit])
        positions = np.union1d(ask.rows, ask.optional) if len(ask.optional) else ask.rows
        if request.cache.exact and positions is not ask.rows:  # without a cache all are computed
            ask = replace(ask, rows=positions)
        answering = self.row_of(ask.rows)
        answer = request.cache.plan(canvas, ask, answering, sequence.cache_state)
        rule = pair_fault("plan", "a CachePlan", answer)
        if rule is not None:
            raise CacheError(rule, request.cache.name, sequence.num_forwards)
        plan, state = answer
        self._check(sequence, ask, answering, plan)
        if max_queries is not None and len(plan.queries) > max_queries and self.is_paged(sequence):
            ahead = request.cache.prefill(canvas, sequence.cache_state, max_queries)
            if ahead is not None:
                plan, sequence.cache_state = ahead
                nothing = Ask(NO_POSITIONS, ask.window)
                self._check(sequence, nothing, NO_POSITIONS, plan)
                return ForwardInput(sequence, nothing, NO_POSITIONS, plan, runs_decoder=False)
        sequence.cache_state = state
        plan = _up_to(plan, limit)
        rows = answering if positions is ask.rows else self.row_of(positions)
        computed = answered_rows(len(canvas), plan.queries, rows)
        if np.count_nonzero(computed) < len(rows):
            positions, rows = positions[computed], rows[computed]
        allowed = allowed_tokens(request, canvas, sequence.limit, positions)
        top, named = request.num_likeliest, request.named
        if positions is not ask.rows or allowed is not None or top or named:
            ask = replace(ask, rows=positions, allowed=allowed, num_top=top, named=named)
        return ForwardInput(sequence, ask, rows, plan)

    @staticmethod
    def _check(sequence: SequenceState, ask: Ask, rows: Ints, plan: CachePlan) -> None:
        """Raise CacheError for a plan that breaks a rule."""
        cache = sequence.request.cache
        rule = plan_fault(cache, sequence.canvas, ask, rows, plan)
        if rule is not None:
            raise CacheError(rule, cache.name, sequence.num_forwards)

    def _ask(self, sequence: SequenceState) -> Ask:
        """Return the decoder's ask, requested once per decoder step."""
        request, canvas = sequence.request, sequence.canvas
        if sequence.ask is None:
            answer = request.decoder.ask(canvas, sequence.decoder_state)
            rule = pair_fault("ask", "an Ask", answer) or ask_fault(
                canvas, answer[0], self.model.spec.vocab_size
            )
            if rule is not None:
                raise DecoderError(rule, request.decoder.name, sequence.num_forwards)
            sequence.ask, sequence.decoder_state = answer
        ask = sequence.ask
        if request.sampling_params.vocabulary == "adaptive" and ask.top_v is None:
            size = sequence.sampler_state.adaptive_size(canvas)
            ask = replace(ask, top_v=min(size, self.model.spec.vocab_size))
        return ask

    def reserve_pages(self, item: ForwardInput) -> bool:
        """Allocate the pages that an input needs; return False, allocating none, if too few are free."""
        if self.paging is None or not self.is_paged(item.sequence):
            return True
        if self.paging.num_missing(item.sequence, item.plan) > self.paging.store.pool.num_available:
            return False
        self.paging.reserve(item.sequence, item.plan)
        return True

    @torch.inference_mode()
    def launch(self, inputs: list[ForwardInput], ahead: Sequence[ForwardInput] = ()) -> Pending:
        """Start the network once for some admitted sequences; `collect` returns its observations.

        The inputs `ahead` are not admitted: predicted canvases of sequences without a cache. Their
        observations come last.
        """
        by_id = {id(item.sequence): item for item in inputs}
        metas = [
            (by_id[id(sequence)], sees_prompt)
            for sequence, sees_prompt in self.metas
            if id(sequence) in by_id
        ]
        for item in ahead:
            metas += [(item, branch == 0) for branch in range(item.sequence.num_rows)]
        inputs = [*inputs, *ahead]
        flat_ND, starts, importance = self._states(metas)
        states: dict[tuple[int, bool], tuple[Ints, Ints]] = {}
        for (item, sees_prompt), start in zip(metas, starts, strict=True):
            at = item.plan.queries.searchsorted(item.rows) + start
            shadows = NO_POSITIONS
            if len(item.ask.shadows):
                shadows = np.arange(len(item.ask.shadows)) + start + len(item.plan.queries)
            states[id(item.sequence), sees_prompt] = (at, shadows)
        parts = []
        for item, keys in zip(inputs, _keys(inputs), strict=True):
            cond, uncond = (states.get((id(item.sequence), branch)) for branch in (True, False))
            assert cond is not None, "every sequence has a row with its prompt"
            item.sequence.num_logit_rows += (len(item.rows) + len(item.ask.shadows)) * (
                1 if uncond is None else 2
            )
            parts.append(LogitRows(item.sequence, item.ask, cond, uncond, keys))
        packed = self.lm_head.propose(flat_ND, parts)
        importances = [torch.cat(list(importance.values())).double()] if importance else []
        finite = flat_ND.isfinite().all().double()[None]
        numbers = Download(torch.cat((packed.flatten(), finite, *importances)))  # the one transfer
        num_shares = {key: len(shares) for key, shares in importance.items()}
        return Pending(inputs, parts, packed.shape, num_shares, numbers)

    def collect(self, pending: Pending) -> list[Observation]:
        """Wait for a forward that was launched; return one observation per input, in their order.

        Raises ModelError when the network's states are not finite, or the proposals of a sequence without
        temperature, guidance or credit.
        """
        draws = uniform(np.concatenate([part.keys for part in pending.parts]))  # before the wait
        numbers = pending.numbers.wait()
        size = pending.shape.numel()
        if not numbers[size]:
            raise ModelError(NOT_FINITE)
        shares, start = dict[int, Floats](), size + 1
        for key, count in pending.num_shares.items():
            shares[key] = numbers[start : start + count]
            start += count
        readings = self._readings(pending.parts, numbers[:size].reshape(pending.shape), draws)
        for item in pending.inputs:
            if self.paging is not None and self.is_paged(item.sequence):
                self.paging.publish(item.sequence, item.plan)
        return [
            Observation(reading, shares.get(id(item.sequence)))
            for item, reading in zip(pending.inputs, readings, strict=True)
        ]

    def _readings(self, parts: list[LogitRows], values: np.ndarray, draws: Floats) -> list[Reading]:
        """Return the readings; rows of `values`: the proposals of all parts, then the shadows of all.

        `draws` are the random numbers of the proposals.
        """
        readings: list[Reading] = []
        counts = [len(part.ask.rows) for part in parts]
        start, shadow = 0, sum(counts)
        proposals = values[:shadow, 1].copy()
        with np.errstate(invalid="ignore"):  # a request's own knobs may have given no numbers
            shares = (probability(proposals), probability(-proposals))
        confidence, doubt = (_pieces(share, counts) for share in shares)
        shadow_odds = _pieces(values[shadow:, 1].copy(), [len(part.ask.shadows) for part in parts])
        has_nan = bool(np.isnan(values[:shadow, :2]).any())
        tokens = _pieces(values[:shadow, 0].astype(np.int64), counts)
        log_odds = _pieces(proposals, counts)
        numbers = _pieces(draws, counts)
        for i, part in enumerate(parts):
            end = start + counts[i]
            own = values[start:end]
            is_plain = (
                part.params.temperature == part.params.cfg_scale == 0 and part.ask.credit is None
            )
            if has_nan and is_plain and np.isnan(own[:, :2]).any():
                raise ModelError(NOT_FINITE)
            top_tokens, top_log_probs = _top_of(own, part.ask)
            stats = part.ask.stats
            names: list[str] = [name for name in STATS if name in stats] if stats else []
            names += ["eos_top"] if "eos" in names else []
            if part.ask.credit is not None:
                names += ["raw_token", "raw_confidence"]
            if part.sequence.request.sampling_params.vocabulary == "union":
                names.append("missed")
                column = own[:, 2 + STATS.index("missed")]
                part.sequence.sampler_state.missed = float(column.max(initial=0.0))
            readings.append(
                Reading(
                    positions=part.ask.rows,
                    tokens=tokens[i],
                    log_odds=log_odds[i],
                    uniform=numbers[i],
                    top_tokens=top_tokens,
                    top_log_probs=top_log_probs,
                    stats={name: own[:, 2 + STATS.index(name)].copy() for name in names},
                    shadow_log_odds=shadow_odds[i],
                    top_v=effective_top_v(part.sequence.request.sampling_params, part.ask),
                    shares=(confidence[i], doubt[i]),
                )
            )
            start = end
        return readings

    def _states(
        self, metas: list[tuple[ForwardInput, bool]]
    ) -> tuple[Tensor, list[int], dict[int, Tensor]]:
        """Return final states `(N, D)`, the first state of each row, and importances `(T,)` by sequence.

        A row's states are those of its plan's queries, then those of its shadow queries. Rows with a plan
        for their layers, which differs by layer in its queries, go through the network in a forward of
        their own, and there one for each adapter.
        """
        if (fixed := self._static_states(metas)) is not None:
            return *fixed, {}
        starts, states, start = [0] * len(metas), list[Tensor](), 0
        importance: dict[int, Tensor] = {}
        device = self.model.device
        for chosen in _forwards(metas):
            parts = {i: self._row_meta(*metas[i]) for i in chosen}
            chosen.sort(key=lambda i: (parts[i].shape, parts[i].row))  # equal shapes share a group
            row_metas = [parts[i] for i in chosen]
            backend = self._backend(row_metas, [metas[i][0].plan.layers for i in chosen])
            ids = np.concatenate([self._ids(*metas[i]) for i in chosen])
            position_ids = np.concatenate([meta.position_ids for meta in row_metas])
            fed = upload(np.stack((ids, position_ids)), device)
            with self._adapted([metas[i][0] for i in chosen], row_metas):
                states.append(self.model.hidden(fed[0], fed[1], backend=backend))
            shares = backend.importances()
            for i, meta in zip(chosen, row_metas, strict=True):
                starts[i] = start
                start += len(meta.position_ids)
                if meta.needs_weights:
                    importance[id(metas[i][0].sequence)] = shares[meta.row]
        return torch.cat(states) if len(states) > 1 else states[0], starts, importance

    def _static_states(
        self, metas: list[tuple[ForwardInput, bool]]
    ) -> tuple[Tensor, list[int]] | None:
        """Return states and the first one of each row by a forward of fixed shapes; None without one."""
        if not self.static or any(item.plan.layers is not None for item, _ in metas):
            return None
        row_metas = [self._row_meta(*meta) for meta in metas]
        for static in self.static:
            bucket = static.bucket_of(row_metas)
            if bucket is not None:
                return static.run(bucket, row_metas, [self._ids(*meta) for meta in metas])
        return None

    def _adapted(
        self, items: list[ForwardInput], row_metas: list[RowMeta]
    ) -> AbstractContextManager[None]:
        """Select the adapter of each row for a forward of packed rows."""
        if self.adapters is None:
            return nullcontext()
        names = [item.sequence.request.adapter for item in items]
        return self.adapters.rows(names, [len(meta.position_ids) for meta in row_metas])

    def _backend(self, row_metas: list[RowMeta], layers: list[Layers | None]) -> PackedAttention:
        """Return the attention backend of these rows, all with layer plans or none."""
        block_size, device = self.model.spec.block_size, self.model.device
        items = [
            FeatureRowMeta(a, b) for a, b in zip(row_metas, layers, strict=True) if b is not None
        ]
        if not items:
            return PackedAttention(
                row_metas, self.dense[False].store, block_size, device, self.model.ranks
            )
        features = self.dense[True].store
        assert isinstance(features, FeatureStore), "layered plans have their store"
        return LayeredAttention(items, features, block_size, device, self.model.ranks)

    def _row_meta(self, item: ForwardInput, sees_prompt: bool) -> RowMeta:
        plan, shadows, sequence = item.plan, item.ask.shadows, item.sequence
        dense = self._dense(sequence)
        paged = self.paging is not None and self.is_paged(sequence)
        return RowMeta(
            row=0 if dense is None else dense.row(sequence, sees_prompt),
            positions=plan.queries,
            length=len(sequence.canvas) if plan.end is None else plan.end,
            position_ids=np.concatenate((plan.queries, self.row_of(shadows))),
            shadows=shadows,
            shadows_attend=item.ask.shadows_attend,
            is_cached=sequence.request.cache.stores,
            needs_weights=plan.needs_importance and sees_prompt,
            table=self.paging.table(sequence, sees_prompt) if paged and self.paging else None,
            write_from=plan.num_stored,
        )

    def _ids(self, item: ForwardInput, sees_prompt: bool) -> Ints:
        """Return the tokens of a row's queries and shadow queries."""
        tokens = fed_tokens(item.sequence.canvas, sees_prompt)[item.plan.queries]
        masks = np.full(len(item.ask.shadows), self.model.spec.mask_id, dtype=np.int64)
        return np.concatenate((tokens, masks))


def _keys(inputs: list[ForwardInput]) -> list[np.ndarray]:
    """Return the random keys of each input's rows, all computed together."""
    counts = [len(item.ask.rows) for item in inputs]
    seeds = [item.sequence.request.seed & (2**64 - 1) for item in inputs]
    numbers = [item.sequence.num_forwards for item in inputs]
    keys = row_keys(
        np.repeat(np.array(seeds, dtype=np.uint64), counts),
        np.repeat(np.array(numbers, dtype=np.int64), counts),
        np.concatenate([item.sequence.canvas.uid[item.ask.rows] for item in inputs]),
    )
    return _pieces(keys, counts)


def _pieces(values: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """Cut an array into adjacent pieces of these lengths."""
    ends = list(accumulate(counts))
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _forwards(metas: list[tuple[ForwardInput, bool]]) -> Iterator[list[int]]:
    """Yield the rows of each forward of the network; see `ModelRunner._states`."""
    groups: dict[tuple[bool, str | None], list[int]] = {}
    for i, (item, _) in enumerate(metas):
        is_layered = item.plan.layers is not None
        adapter = item.sequence.request.adapter if is_layered else None
        groups.setdefault((is_layered, adapter), []).append(i)
    yield from (groups[key] for key in sorted(groups, key=lambda key: (key[0], key[1] or "")))


def _top_of(values: np.ndarray, ask: Ask) -> tuple[Ints, Floats]:
    """Return the likeliest and named tokens of packed rows and their log-probabilities, `(n, k)`."""
    first = 2 + len(STATS)
    half, count = (values.shape[1] - first) // 2, ask.num_top + len(ask.named)
    if not count:
        return NO_TOP, NO_TOP_LOG_PROBS
    tokens = values[:, first : first + count].astype(np.int64)
    return tokens, values[:, first + half : first + half + count].copy()


def _up_to(plan: CachePlan, limit: int | None) -> CachePlan:
    """Return a plan without positions from `limit` on; unchanged if it has layers or needs importances."""
    if limit is None or plan.layers is not None or plan.needs_importance:
        return plan
    end = limit if plan.end is None else min(plan.end, limit)
    return replace(plan, queries=plan.queries[plan.queries < limit], end=end)
