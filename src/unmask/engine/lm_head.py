"""From states to proposals: which rows of the LM head each sequence needs, in parts of bounded memory.

Letters: N logit rows, D width, V vocabulary, C columns of a packed result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ask, Ints
from unmask.engine.sampler_state import Candidates
from unmask.engine.sequence import SequenceState
from unmask.models.transformer import Transformer
from unmask.sampling.params import SamplingParams
from unmask.sampling.sampler import STATS, Span, Vocabulary, log_odds, propose
from unmask.sampling.token_frequencies import load_background

HEAD_CHUNK = 1 << 26
"""Logits computed at a time: 256 MB in float32, of which sampling takes an eighth at a time."""
MAX_FREQUENT = 32
"""Vocabularies of frequent tokens that are remembered; clients choose their sizes."""


@dataclass(frozen=True, slots=True)
class LogitRows:
    """One sequence's logit rows: `(rows, shadows)` of the flat states that see the prompt, and that do not.

    `ask.rows` are the positions that `rows` answer; `keys` one uint64 a row.
    """

    sequence: SequenceState
    ask: Ask
    seen: tuple[Ints, Ints]
    blind: tuple[Ints, Ints] | None
    keys: np.ndarray

    @property
    def rule(self) -> SamplingParams:
        """How its tokens are proposed."""
        return self.sequence.request.sampling_params


class LMHead:
    """Applies the LM head of one model."""

    def __init__(self, model: Transformer, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.frequent = lru_cache(MAX_FREQUENT)(partial(_most_frequent, model, vocabulary))
        self._longest: Tensor | None = None

    @property
    def longest_row(self) -> Tensor:
        """The largest Euclidean norm of a row of the LM head; computed once."""
        if self._longest is None:
            self._longest = self.model.head_weight.float().norm(dim=-1).amax()
        return self._longest

    def propose(self, flat: Tensor, parts: list[LogitRows]) -> Tensor:
        """Packed `(N, C)` float64: the proposals of all parts in order, then the shadows of all parts.

        `flat` `(rows, D)` are the forward's states.
        """
        starts = np.cumsum([0, *(len(part.ask.rows) for part in parts)])
        num_shadows = sum(len(part.ask.shadows) for part in parts)
        packed = torch.zeros(
            int(starts[-1]) + num_shadows, 2 + len(STATS), dtype=torch.float64, device=flat.device
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
        """The tokens whose logits a part needs."""
        rule = part.rule
        if rule.vocabulary == "frequency":
            assert rule.frequencies is not None, "checked by Proposal"
            return self.frequent(rule.frequencies, rule.kept_tokens)
        memory = part.sequence.sampler_state
        found = memory.candidates
        if found is None or found.window_end != part.ask.window[1]:
            return self.vocabulary
        return found.vocabulary if memory.missed <= rule.max_missed else self.vocabulary

    def _chunks(
        self, parts: list[LogitRows], members: list[int], vocab_size: int
    ) -> Iterator[list[tuple[int, slice]]]:
        """Pieces `(part, rows of it)` whose logits fit in memory together."""
        warm = any(parts[i].rule.temperature > 0 or parts[i].ask.from_sampling for i in members)
        most = max(1, HEAD_CHUNK // (8 if warm else 1) // vocab_size)
        chunk: list[tuple[int, slice]] = []
        room = most
        for i in members:
            start, total = 0, len(parts[i].ask.rows)
            if room < total <= most and chunk:  # keep together what fits
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
        """Fill the packed rows of these pieces."""
        pieces = [(parts[i], piece) for i, piece in chosen]
        logits = self._guided(flat, pieces, vocabulary, 0)
        missed = self._prune(flat, parts, chosen, vocabulary, logits)
        spans = [self._span(parts[i], piece) for i, piece in chosen]
        keys = np.concatenate([parts[i].keys[piece] for i, piece in chosen])
        values, distributions = propose(logits, spans, keys, vocabulary)
        values[:, 2 + STATS.index("missed")] = missed
        row = 0
        for number, (i, piece) in enumerate(chosen):
            count = piece.stop - piece.start
            at = int(starts[i]) + piece.start
            packed[at : at + count] = values[row : row + count]
            row += count
            if number in distributions:
                self._keep(parts[i], piece, distributions[number])

    def _guided(
        self, flat: Tensor, pieces: list[tuple[LogitRows, slice]], vocabulary: Vocabulary, kind: int
    ) -> Tensor:
        """Return logits of all rows (`kind` 0) or shadows (1), guided where asked."""
        seen = np.concatenate([part.seen[kind][piece] for part, piece in pieces])
        logits = self._logits(flat, seen, vocabulary)
        guided, blind, weights, row = [], [], [], 0
        for part, piece in pieces:
            count = len(part.seen[kind][piece])
            if part.blind is not None:
                guided.append(np.arange(row, row + count))
                blind.append(part.blind[kind][piece])
                weights += [1 + part.rule.cfg_scale] * count
            row += count
        if guided:
            at = torch.from_numpy(np.concatenate(guided)).to(flat.device)
            without = self._logits(flat, np.concatenate(blind), vocabulary)
            weight = torch.tensor(weights, device=flat.device)[:, None]
            logits[at] = without + weight * (logits[at] - without)
        return logits

    def _logits(self, flat: Tensor, rows: Ints, vocabulary: Vocabulary) -> Tensor:
        states = flat[torch.from_numpy(rows).to(flat.device)]
        if vocabulary is self.vocabulary:
            return self.model.head(states).float()
        return self.model.head(states, vocabulary.token_ids).float()

    def _span(self, part: LogitRows, piece: slice) -> Span:
        before = has_before = None
        if "kl" in part.ask.stats:
            uids = part.sequence.canvas.uid[part.ask.rows[piece]]
            size = self.model.spec.vocab_size
            before, has_before = part.sequence.sampler_state.before(uids, size, self.model.device)
        return Span(part.ask.rows[piece], part.rule, part.ask, before, has_before)

    def _keep(self, part: LogitRows, piece: slice, distributions: Tensor) -> None:
        """Remember distributions for the next forward; a piece continues the one before it."""
        memory = part.sequence.sampler_state
        uids = part.sequence.canvas.uid[part.ask.rows[piece]]
        if piece.start == 0:
            memory.next_uids, memory.next_distributions = [], []
        memory.next_uids.append(uids)
        memory.next_distributions.append(distributions)
        if piece.stop == len(part.ask.rows):
            memory.turn_over()

    def _prune(
        self,
        flat: Tensor,
        parts: list[LogitRows],
        chosen: list[tuple[int, slice]],
        vocabulary: Vocabulary,
        logits: Tensor,
    ) -> Tensor:
        """Choose a block's candidates after a full head, bound what a pruned head can miss."""
        missed = torch.zeros(len(logits), dtype=torch.float64, device=flat.device)
        row = 0
        for i, piece in chosen:
            part, count = parts[i], piece.stop - piece.start
            rows = slice(row, row + count)
            row += count
            if part.rule.vocabulary != "union":
                continue
            positions = part.ask.rows[piece]
            states = flat[torch.from_numpy(part.seen[0][piece]).to(flat.device)]
            uids = part.sequence.canvas.uid[positions]
            memory = part.sequence.sampler_state
            if vocabulary is not self.vocabulary:
                assert memory.candidates is not None, "a pruned head has candidates"
                missed[rows] = memory.candidates.missed(
                    logits[rows], states, uids, self.longest_row, self.model.spec.vocab_size
                ).double()
            else:
                chosen_now = Candidates.choose(
                    part.ask.window[1],
                    logits[rows],
                    states,
                    uids,
                    part.rule.kept_tokens,
                    self.vocabulary,
                )
                before = memory.candidates if piece.start > 0 else None
                memory.candidates = (
                    chosen_now if before is None else before.joined(chosen_now, self.vocabulary)
                )
        return missed

    def _shadows(self, flat: Tensor, parts: list[LogitRows], packed: Tensor) -> None:
        """Log-odds of the canvas's token at each shadow whose position is decided; 0 at the others."""
        most = max(1, HEAD_CHUNK // self.model.spec.vocab_size)
        start = 0
        for part in parts:
            canvas, shadows = part.sequence.canvas, part.ask.shadows
            decided = np.flatnonzero(~canvas.open[shadows])
            for first in range(0, len(decided), most):
                chosen = decided[first : first + most]
                only = replace(
                    part,
                    seen=(part.seen[0], part.seen[1][chosen]),
                    blind=None if part.blind is None else (part.blind[0], part.blind[1][chosen]),
                )
                logits = self._guided(flat, [(only, slice(None))], self.vocabulary, 1)
                tokens = torch.from_numpy(canvas.tokens[shadows[chosen]]).to(flat.device)
                at = torch.from_numpy(start + chosen).to(flat.device)
                packed[at, 1] = log_odds(logits, tokens).double()
            start += len(shadows)


def _most_frequent(model: Transformer, whole: Vocabulary, file: str, count: int) -> Vocabulary:
    """The `count` most frequent tokens that may be proposed, and the end tokens."""
    frequency = load_background(file, model.spec.vocab_size).copy()
    ends = [id_ for id_ in (whole.eos_id, whole.turn_end_id) if id_ is not None]
    frequency[[*whole.forbidden.tolist(), *ends]] = -1.0
    ids = np.argsort(-frequency, kind="stable")[: min(count, int((frequency >= 0).sum()))]
    chosen = np.union1d(ids, np.array(ends, dtype=np.int64))
    return whole.part(torch.from_numpy(chosen).to(model.device))
