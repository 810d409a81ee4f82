"""Proposals from states: the LM head over the rows that each sequence needs, in chunks of bounded memory.

Letters: N logit rows, D width, V vocabulary, C columns of a packed result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.canvas import Ask, Ints
from unmask.engine.sampler_state import Candidates
from unmask.engine.sequence import SequenceState
from unmask.models.transformer import Transformer
from unmask.sampling.params import SamplingParams
from unmask.sampling.sampler import STATS, Span, Vocabulary, log_odds, num_columns, propose
from unmask.sampling.token_frequencies import load_background
from unmask.sampling.transfer import upload

Classes = NDArray[np.int32]
HEAD_CHUNK = 1 << 26
"""Logits computed at a time (256 MB in float32); an eighth of it for rows that are sampled."""
MAX_VOCABULARIES = 32
"""Size of the caches of vocabularies and of classes of tokens; clients choose them."""


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The logit rows of one sequence, as indices `(rows, shadows)` into the forward's flat states.

    `cond_rows` are those of the row with the prompt; `uncond_rows`, for guidance, of the one without.
    The rows answer the positions `ask.rows`; `keys` has one uint64 random key for each.
    """

    sequence: SequenceState
    ask: Ask
    cond_rows: tuple[Ints, Ints]
    uncond_rows: tuple[Ints, Ints] | None
    keys: np.ndarray

    @property
    def params(self) -> SamplingParams:
        """The sequence's sampling parameters."""
        return self.sequence.request.sampling_params


class LMHead:
    """The LM head of one model, and the sampling of its logits."""

    def __init__(self, model: Transformer, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.frequency_vocabulary = lru_cache(MAX_VOCABULARIES)(
            partial(_frequency_vocabulary, model, vocabulary)
        )
        self._longest: Tensor | None = None
        self._on_device: dict[int, tuple[Classes, Tensor]] = {}

    @property
    def longest_row(self) -> Tensor:
        """The largest Euclidean norm of a row of the LM head, computed once."""
        if self._longest is None:
            self._longest = self.model.head_weight.float().norm(dim=-1).amax()
        return self._longest

    def propose(self, flat: Tensor, parts: list[LogitRows]) -> Tensor:
        """Return the proposals of all parts in order, then the shadows of all parts: float64 `(N, C)`.

        `flat` `(rows, D)` are the forward's states.
        """
        starts = np.cumsum([0, *(len(part.ask.rows) for part in parts)])
        num_shadows = sum(len(part.ask.shadows) for part in parts)
        packed = torch.zeros(
            int(starts[-1]) + num_shadows,
            num_columns([part.ask for part in parts]),
            dtype=torch.float64,
            device=flat.device,
        )
        groups: dict[int, tuple[Vocabulary, list[int]]] = {}
        for i, part in enumerate(parts):
            vocabulary = self._vocabulary(part)
            groups.setdefault(id(vocabulary), (vocabulary, []))[1].append(i)
        for vocabulary, members in groups.values():
            for chosen in self._chunks(parts, members, len(vocabulary.token_ids)):
                self._propose(flat, parts, chosen, vocabulary, packed, starts)
        if num_shadows:
            self._shadows(flat, parts, packed[int(starts[-1]) :])
        return packed

    def _vocabulary(self, part: LogitRows) -> Vocabulary:
        """Return the vocabulary of the logits that a part needs."""
        params = part.params
        if params.vocabulary == "frequency":
            assert params.frequencies is not None, "checked by SamplingParams"
            return self.frequency_vocabulary(params.frequencies, params.num_tokens)
        state = part.sequence.sampler_state
        candidates = state.candidates
        if candidates is None or candidates.window_end != part.ask.window[1]:
            return self.vocabulary
        return candidates.vocabulary if state.missed <= params.max_missed else self.vocabulary

    def _chunks(
        self, parts: list[LogitRows], members: list[int], vocab_size: int
    ) -> Iterator[list[tuple[int, slice]]]:
        """Yield lists of pieces `(part, rows of it)` with logits that fit in memory together."""
        is_sampled = any(
            parts[i].params.temperature > 0 or parts[i].ask.from_sampling for i in members
        )
        most = max(1, HEAD_CHUNK // (8 if is_sampled else 1) // vocab_size)
        chunk: list[tuple[int, slice]] = []
        room = most
        for i in members:
            start, total = 0, len(parts[i].ask.rows)
            if room < total <= most and chunk:  # pieces that fit stay together
                yield chunk
                chunk, room = [], most
            while start < total:
                end = min(total, start + room)
                chunk.append((i, slice(start, end)))
                room -= end - start
                start = end
                if room == 0:
                    yield chunk
                    chunk, room = [], most
        if chunk:
            yield chunk

    def _propose(
        self,
        flat: Tensor,
        parts: list[LogitRows],
        chosen: list[tuple[int, slice]],
        vocabulary: Vocabulary,
        packed: Tensor,
        starts: np.ndarray,
    ) -> None:
        """Fill in the packed rows of the chosen pieces."""
        pieces = [(parts[i], piece) for i, piece in chosen]
        logits = self._guided(flat, pieces, vocabulary, 0)
        missed = self._prune(flat, parts, chosen, vocabulary, logits)
        spans = [self._span(parts[i], piece) for i, piece in chosen]
        keys = np.concatenate([parts[i].keys[piece] for i, piece in chosen])
        values, distributions = propose(logits, spans, keys, vocabulary)
        values[:, 2 + STATS.index("missed")] = missed
        places = [slice(starts[i] + piece.start, starts[i] + piece.stop) for i, piece in chosen]
        row = 0
        for start, end in _joined(places):
            _copy_rows(packed[start:end], values[row : row + end - start])
            row += end - start
        for number, distribution in distributions.items():
            i, piece = chosen[number]
            self._keep(parts[i], piece, distribution)

    def _guided(
        self, flat: Tensor, pieces: list[tuple[LogitRows, slice]], vocabulary: Vocabulary, kind: int
    ) -> Tensor:
        """Return the logits of all rows (`kind` 0) or shadows (1), with guidance where requested."""
        cond_rows = np.concatenate([part.cond_rows[kind][piece] for part, piece in pieces])
        logits = self._logits(flat, cond_rows, vocabulary)
        guided, uncond_rows, weights, row = [], [], [], 0
        for part, piece in pieces:
            count = len(part.cond_rows[kind][piece])
            if part.uncond_rows is not None:
                guided.append(np.arange(row, row + count))
                uncond_rows.append(part.uncond_rows[kind][piece])
                weights += [1 + part.params.cfg_scale] * count
            row += count
        if guided:
            at = upload(np.concatenate(guided), flat.device)
            uncond = self._logits(flat, np.concatenate(uncond_rows), vocabulary)
            with np.errstate(over="ignore"):  # a scale beyond float32 is infinite, as in torch
                scales = np.array(weights, dtype=np.float32)
            weight = upload(scales, flat.device)[:, None]
            logits[at] = uncond + weight * (logits[at] - uncond)
        return logits

    def _logits(self, flat: Tensor, rows: Ints, vocabulary: Vocabulary) -> Tensor:
        states = flat[upload(rows, flat.device)]
        if vocabulary is self.vocabulary:
            return self.model.head(states).float()
        return self.model.head(states, vocabulary.token_ids).float()

    def _span(self, part: LogitRows, piece: slice) -> Span:
        previous = has_previous = None
        if "kl" in part.ask.stats:
            uids = part.sequence.canvas.uid[part.ask.rows[piece]]
            size = self.model.spec.vocab_size
            previous, has_previous = part.sequence.sampler_state.previous(
                uids, size, self.model.device
            )
        allowed = classes = None
        if part.ask.allowed is not None:
            allowed = upload(part.ask.allowed.sets[piece], self.model.device)
            classes = self._classes(part.ask.allowed.classes)
        return Span(
            part.ask.rows[piece], part.params, part.ask, previous, has_previous, allowed, classes
        )

    def _classes(self, classes: Classes) -> Tensor:
        """Return the class of each token on the device; those of recent requests stay there."""
        found = self._on_device.pop(id(classes), None)
        if found is None:
            found = classes, upload(classes, self.model.device).long()
        self._on_device[id(classes)] = found
        if len(self._on_device) > MAX_VOCABULARIES:
            del self._on_device[next(iter(self._on_device))]
        return found[1]

    def _keep(self, part: LogitRows, piece: slice, distributions: Tensor) -> None:
        """Store distributions for the next forward; a part's pieces arrive in order."""
        state = part.sequence.sampler_state
        uids = part.sequence.canvas.uid[part.ask.rows[piece]]
        if piece.start == 0:
            state.next_uids, state.next_distributions = [], []
        state.next_uids.append(uids)
        state.next_distributions.append(distributions)
        if piece.stop == len(part.ask.rows):
            state.end_forward()

    def _prune(
        self,
        flat: Tensor,
        parts: list[LogitRows],
        chosen: list[tuple[int, slice]],
        vocabulary: Vocabulary,
        logits: Tensor,
    ) -> Tensor:
        """Choose a block's candidates from whole logits; return the bounds `(N,)` on what others miss."""
        missed = torch.zeros(len(logits), dtype=torch.float64, device=flat.device)
        row = 0
        for i, piece in chosen:
            part, count = parts[i], piece.stop - piece.start
            rows = slice(row, row + count)
            row += count
            if part.params.vocabulary != "union":
                continue
            positions = part.ask.rows[piece]
            states = flat[upload(part.cond_rows[0][piece], flat.device)]
            uids = part.sequence.canvas.uid[positions]
            state = part.sequence.sampler_state
            if vocabulary is not self.vocabulary:
                assert state.candidates is not None, "a pruned head has candidates"
                missed[rows] = state.candidates.missed(
                    logits[rows], states, uids, self.longest_row, self.model.spec.vocab_size
                ).double()
            else:
                candidates = Candidates.choose(
                    part.ask.window[1],
                    logits[rows],
                    states,
                    uids,
                    part.params.num_tokens,
                    self.vocabulary,
                )
                first = state.candidates if piece.start > 0 else None
                state.candidates = (
                    candidates if first is None else first.merge(candidates, self.vocabulary)
                )
        return missed

    def _shadows(self, flat: Tensor, parts: list[LogitRows], packed: Tensor) -> None:
        """Fill in the log-odds of the canvas's token at each shadow of a decided position; 0 elsewhere."""
        most = max(1, HEAD_CHUNK // self.model.spec.vocab_size)
        start = 0
        for part in parts:
            canvas, shadows = part.sequence.canvas, part.ask.shadows
            decided = np.flatnonzero(~canvas.open[shadows])
            for first in range(0, len(decided), most):
                chosen = decided[first : first + most]
                only = replace(
                    part,
                    cond_rows=(part.cond_rows[0], part.cond_rows[1][chosen]),
                    uncond_rows=None
                    if part.uncond_rows is None
                    else (part.uncond_rows[0], part.uncond_rows[1][chosen]),
                )
                logits = self._guided(flat, [(only, slice(None))], self.vocabulary, 1)
                tokens = upload(canvas.tokens[shadows[chosen]], flat.device)
                at = upload(start + chosen, flat.device)
                packed[at, 1] = log_odds(logits, tokens).double()
            start += len(shadows)


def _joined(places: list[slice]) -> list[tuple[int, int]]:
    """Return the runs `(start, end)` of places, each with those that follow it immediately."""
    runs: list[tuple[int, int]] = []
    for place in places:
        start, end = int(place.start), int(place.stop)
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


def _copy_rows(target: Tensor, values: Tensor) -> None:
    """Copy packed rows into wider ones, in place: the likeliest tokens, then their log-probabilities."""
    first = 2 + len(STATS)
    own, half = (values.shape[1] - first) // 2, (target.shape[1] - first) // 2
    target[:, : first + own] = values[:, : first + own]
    if half:
        target[:, first + own : first + half] = -1.0
        target[:, first + half : first + half + own] = values[:, first + own :]


def _frequency_vocabulary(
    model: Transformer, whole: Vocabulary, file: str, count: int
) -> Vocabulary:
    """Return the vocabulary of the `count` most frequent proposable tokens and the end tokens."""
    frequency = load_background(file, model.spec.vocab_size).copy()
    ends = whole.end_ids
    frequency[[*whole.forbidden.tolist(), *ends]] = -1.0
    ids = np.argsort(-frequency, kind="stable")[: min(count, int((frequency >= 0).sum()))]
    chosen = np.union1d(ids, np.array(ends, dtype=np.int64))
    return whole.subset(torch.from_numpy(chosen).to(model.device))
