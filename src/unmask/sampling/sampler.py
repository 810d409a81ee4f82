"""Proposals from logits: a token, its log-odds and statistics per row, on the device and in float32.

Letters: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ask, Floats, Ints
from unmask.sampling.largest import first_largest, largest_values
from unmask.sampling.params import SamplingParams
from unmask.sampling.rng import gumbel
from unmask.sampling.transfer import upload, upload_index

STATS: tuple[str, ...] = (
    "entropy",
    "margin",
    "gap",
    "eos",
    "eos_top",
    "kl",
    "top_v_entropy",
    "raw_token",
    "raw_confidence",
    "missed",
)
"""Columns of a packed result after the token and its log-odds; 0 in rows that do not request them."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The columns of the logits: `token_ids` (ascending), and the columns that are treated specially.

    `forbidden` columns are never proposed; `eos_id` and `turn_end_id` are columns or None,
    `more_ends` the columns of further tokens that end an answer. With `is_whole`, every token has a column,
    and ids equal columns.
    """

    token_ids: Tensor
    forbidden: Tensor
    eos_id: int | None
    turn_end_id: int | None
    is_whole: bool = True
    more_ends: tuple[int, ...] = ()

    @property
    def text_ends(self) -> list[int]:
        """The columns of the tokens that end a text: all ends but that of a turn."""
        return [id_ for id_ in (self.eos_id, *self.more_ends) if id_ is not None]

    @property
    def end_ids(self) -> list[int]:
        """The columns of all tokens that end an answer."""
        return self.text_ends if self.turn_end_id is None else [*self.text_ends, self.turn_end_id]

    def subset(self, ids: Tensor) -> Vocabulary:
        """Return the vocabulary of logits with columns for the tokens `ids` (ascending) only."""

        def column(id_: int | None) -> int | None:
            if id_ is None:
                return None
            at = int(torch.searchsorted(ids, id_))
            return at if at < len(ids) and int(ids[at]) == id_ else None

        forbidden = torch.isin(ids, self.forbidden).nonzero()[:, 0]
        eos, turn_end = column(self.eos_id), column(self.turn_end_id)
        more = tuple(at for id_ in self.more_ends if (at := column(id_)) is not None)
        return Vocabulary(ids, forbidden, eos, turn_end, is_whole=False, more_ends=more)


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of logits of one sequence: `positions`, their sampling parameters and their ask.

    `previous` `(n, V)` are the distributions at these positions in the previous forward, where bool
    `has_previous` `(n,)`. With a constraint, token t is allowed in row i if `allowed[i, classes[t]]`: bool
    `(n, C)` and int64 `(V,)`.
    """

    positions: Ints
    params: SamplingParams
    ask: Ask
    previous: Tensor | None = None
    has_previous: Tensor | None = None
    allowed: Tensor | None = None
    classes: Tensor | None = None


def _rows(spans: list[Span], test: Callable[[Span], object]) -> list[int]:
    """Return the rows of the spans for which the test is true."""
    rows: list[int] = []
    start = 0
    for span in spans:
        end = start + len(span.positions)
        if test(span):
            rows.extend(range(start, end))
        start = end
    return rows


def _per_row(spans: list[Span], rows: list[int], value: Callable[[Span], float]) -> list[float]:
    values = [value(span) for span in spans for _ in range(len(span.positions))]
    return [values[row] for row in rows]


def propose(
    logits_NV: Tensor, spans: list[Span], keys: np.ndarray, vocabulary: Vocabulary
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return token, log-odds and statistics of every row, packed as float64 `(N, 2 + len(STATS))`.

    `keys` are the random keys of `row_keys`, one uint64 per row. `logits_NV` is overwritten. Probabilities
    are normalized over all columns; the lowest id wins a tie. The second result has the distributions
    `(n, V)` of each span (by index) that requests "kl".

    A row whose proposal its constraint allows is as without a constraint; in others, the logits of all
    forbidden tokens count as -inf, for the proposal, its log-odds and all statistics but "gap".
    """
    logits = logits_NV.float()
    width = num_columns([span.ask for span in spans])
    packed = torch.zeros(len(logits), width, dtype=torch.float64, device=logits.device)
    _add_biases(logits, spans, vocabulary)
    _add_credit(logits, spans, vocabulary, packed)
    no_eos = _rows(spans, lambda span: span.params.logits_eos_inf)
    if no_eos and vocabulary.text_ends:
        at = upload_index(no_eos, logits.device)
        for column in vocabulary.text_ends:
            logits[:, column].index_fill_(0, at, -torch.inf)
    _top_two(logits, spans, packed)
    forbidden = logits[:, vocabulary.forbidden]
    logits[:, vocabulary.forbidden] = -torch.inf
    tokens = first_largest(logits)
    _constrain(logits, tokens, forbidden, spans, keys, vocabulary)
    _end_is_top(tokens, spans, vocabulary, packed)
    _sample(logits, tokens, forbidden, spans, keys, vocabulary)
    _likeliest(logits, spans, vocabulary, packed)
    for rows, column in _suppressed_scores(spans, vocabulary):
        logits[:, column].index_fill_(0, upload_index(rows, logits.device), -torch.inf)
    distributions = _divergence(logits, spans, packed)
    top_v = _top_v_odds(logits, tokens, spans, packed)
    packed[:, 0] = vocabulary.token_ids[tokens].double()
    packed[:, 1] = _statistics(logits, tokens, spans, vocabulary, packed).double()
    if top_v is not None:
        packed[top_v[0], 1] = top_v[1].double()
    return packed, distributions


def num_columns(asks: list[Ask]) -> int:
    """Return the number of columns of a packed result: the token, its log-odds, statistics, and pairs.

    The pairs are the likeliest and the named tokens and their log-probabilities: all tokens come first.
    """
    return 2 + len(STATS) + 2 * max((ask.num_top + len(ask.named) for ask in asks), default=0)


def _likeliest(logits: Tensor, spans: list[Span], vocabulary: Vocabulary, packed: Tensor) -> None:
    """Fill in the likeliest tokens, fewer than asked for in a small vocabulary, and the named ones.

    Columns beyond them have the token -1. A named token without a column has the log-probability -inf.
    """
    start, first = 0, 2 + len(STATS)
    half = (packed.shape[1] - first) // 2
    for span in spans:
        end = start + len(span.positions)
        ask, rows = span.ask, slice(start, end)
        if (ask.num_top or ask.named) and end > start:
            shares = logits[rows].log_softmax(dim=-1)
            packed[rows, first : first + half] = -1.0
            count = min(ask.num_top, shares.shape[-1])
            top = shares.index_fill(1, vocabulary.forbidden, -torch.inf).topk(count, dim=-1)
            packed[rows, first : first + count] = vocabulary.token_ids[top.indices].double()
            packed[rows, first + half : first + half + count] = top.values.double()
            named = torch.tensor(ask.named, dtype=torch.int64, device=logits.device)
            ids = vocabulary.token_ids
            at = torch.searchsorted(ids, named).clamp(max=len(ids) - 1)
            values = shares[:, at].double().masked_fill(ids[at] != named, -torch.inf)
            last = first + count + len(ask.named)
            packed[rows, first + count : last] = named.double()
            packed[rows, first + half + count : last + half] = values
        start = end


def _of_rows(logits: Tensor, rows: list[int]) -> Tensor:
    """Return these rows, ascending, of the logits; all of them are not copied."""
    if len(rows) == len(logits):
        return logits
    return logits[upload_index(rows, logits.device)]


def _column(name: str) -> int:
    return 2 + STATS.index(name)


def _add_at(
    target: Tensor, rows: Ints, token_ids: Ints, values: Floats, vocabulary: Vocabulary
) -> None:
    """Add values at (row, token) in place; tokens without a column are left out."""
    device = target.device
    at, columns = upload(rows, device), upload(token_ids, device)
    added = upload(values, device).float()
    if not vocabulary.is_whole:
        ids = vocabulary.token_ids
        nearest = torch.searchsorted(ids, columns).clamp(max=len(ids) - 1)
        added = torch.where(ids[nearest] == columns, added, torch.zeros_like(added))
        columns = nearest
    target.index_put_((at, columns), added, accumulate=True)


def _add_biases(logits: Tensor, spans: list[Span], vocabulary: Vocabulary) -> None:
    start = 0
    for span in spans:
        bias = span.ask.bias
        if bias is not None:
            at = np.searchsorted(span.positions, bias.positions).clip(
                max=max(0, len(span.positions) - 1)
            )
            here = (
                span.positions[at] == bias.positions
                if len(span.positions)
                else np.zeros(0, dtype=bool)
            )
            _add_at(logits, at[here] + start, bias.tokens[here], bias.values[here], vocabulary)
        start += len(span.positions)


def _add_credit(logits: Tensor, spans: list[Span], vocabulary: Vocabulary, packed: Tensor) -> None:
    """Add dInfer's credit to the logits, see `decoders.credit`."""
    start = 0
    for span in spans:
        end = start + len(span.positions)
        credit = span.ask.credit
        if credit is not None and len(span.positions):
            part = logits[start:end]
            raw = part.index_fill(1, vocabulary.forbidden, -torch.inf).argmax(dim=-1)
            own = part.gather(1, raw[:, None])[:, 0]
            p = torch.exp(own - part.logsumexp(dim=-1))
            packed[start:end, _column("raw_token")] = vocabulary.token_ids[raw].double()
            packed[start:end, _column("raw_confidence")] = p.double()
            at = np.searchsorted(span.positions, credit.positions).clip(max=len(span.positions) - 1)
            here = span.positions[at] == credit.positions
            amounts = torch.zeros_like(part)
            _add_at(amounts, at[here], credit.tokens[here], credit.amounts[here], vocabulary)
            amounts.scatter_add_(1, raw[:, None], (p**credit.gamma)[:, None])
            part += credit.alpha * torch.log1p(amounts)
        start = end


def _top_two(logits: Tensor, spans: list[Span], packed: Tensor) -> None:
    """Fill in "gap", the difference of the two largest logits."""
    rows = _rows(spans, lambda span: "gap" in span.ask.stats)
    if rows:
        at = upload_index(rows, logits.device)
        top = largest_values(_of_rows(logits, rows), min(2, logits.shape[-1]))
        packed[at, _column("gap")] = (top[:, 0] - top[:, -1]).double()


def _end_is_top(tokens: Tensor, spans: list[Span], vocabulary: Vocabulary, packed: Tensor) -> None:
    """Fill in "eos_top": 1 where the likeliest token, before sampling, is end-of-text."""
    rows = _rows(spans, lambda span: "eos" in span.ask.stats)
    if rows and vocabulary.eos_id is not None:
        at = upload_index(rows, tokens.device)
        packed[at, _column("eos_top")] = (tokens[at] == vocabulary.eos_id).double()


def _sample(
    logits: Tensor,
    tokens: Tensor,
    forbidden: Tensor,
    spans: list[Span],
    keys: np.ndarray,
    vocabulary: Vocabulary,
) -> None:
    """Sample the tokens of rows with a temperature, and restore the `forbidden` logits, -inf until then.

    Rows with statistics of the sampling distribution get its logits.
    """
    sampled = _rows(spans, lambda span: span.params.temperature > 0)
    if sampled:
        tokens[upload_index(sampled, tokens.device)] = _draw(
            logits, sampled, spans, keys, vocabulary
        )
    logits[:, vocabulary.forbidden] = forbidden
    tempered_rows = _rows(spans, lambda span: span.ask.from_sampling)
    if tempered_rows:
        tempered = _tempered(logits, tempered_rows, spans)
        at = upload_index(tempered_rows, tokens.device)
        own = tokens[at][:, None]
        scale = _temperatures(logits, tempered_rows, spans)
        unfiltered = logits[at].gather(1, own).double() / scale
        logits[at] = tempered.scatter_(1, own, unfiltered).float()


def _draw(
    logits: Tensor, rows: list[int], spans: list[Span], keys: np.ndarray, vocabulary: Vocabulary
) -> Tensor:
    """Return a token drawn from the sampling distribution of each of these rows."""
    tempered = _tempered(logits, rows, spans)
    on_device = upload(keys[rows].view(np.int64), logits.device)
    noisy = gumbel(on_device, vocabulary.token_ids).add_(tempered)
    return noisy.argmax(dim=-1)


def _constrain(
    logits: Tensor,
    tokens: Tensor,
    forbidden: Tensor,
    spans: list[Span],
    keys: np.ndarray,
    vocabulary: Vocabulary,
) -> None:
    """Set the logits that a constraint forbids to -inf, in rows whose proposal it forbids.

    `tokens` has the likeliest tokens, and those of these rows afterwards. The draws that `_sample` makes
    later are the same where they are allowed: they have the same noise.
    """
    first = 0
    for span in spans:
        last = first + len(span.positions)
        if span.allowed is not None and span.classes is not None and last > first:
            proposals = tokens[first:last]
            if span.params.temperature > 0:
                proposals = _draw(logits, list(range(first, last)), spans, keys, vocabulary)
            is_allowed = span.allowed.gather(1, span.classes[proposals][:, None])
            part = logits[first:last]
            part.masked_fill_(~(span.allowed[:, span.classes] | is_allowed), -torch.inf)
            forbidden[first:last].masked_fill_(~is_allowed, -torch.inf)
            tokens[first:last] = part.argmax(dim=-1)
        first = last


def _temperatures(logits: Tensor, rows: list[int], spans: list[Span]) -> Tensor:
    values = _per_row(spans, rows, lambda span: span.params.temperature or 1.0)
    return upload(np.array(values, dtype=np.float64), logits.device)[:, None]


def _tempered(logits: Tensor, rows: list[int], spans: list[Span]) -> Tensor:
    """Return float64 logits of the sampling distribution: temperature, top-p, top-k, then min-p."""
    at = upload_index(rows, logits.device)
    tempered = logits[at].double() / _temperatures(logits, rows, spans)
    _filter(tempered, rows, spans)
    return tempered


def _filter(tempered: Tensor, rows: list[int], spans: list[Span]) -> None:
    """Set the logits outside top-p, top-k and min-p to -inf, in place; ties with the k-th stay."""
    top_p = _per_row(
        spans, rows, lambda span: 1.0 if span.params.top_p is None else span.params.top_p
    )
    cut = [i for i, p in enumerate(top_p) if p < 1]
    if cut:
        at = upload_index(cut, tempered.device)
        ordered, order = tempered[at].sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0
        limit = upload(np.array([top_p[i] for i in cut], dtype=np.float32), tempered.device)[
            :, None
        ]
        ordered.masked_fill_(before > limit, -torch.inf)
        tempered[at] = torch.empty_like(ordered).scatter_(-1, order, ordered)
    top_k = [int(k) for k in _per_row(spans, rows, lambda span: span.params.top_k or 0)]
    cut = [i for i, k in enumerate(top_k) if 0 < k < tempered.shape[-1]]
    if cut:
        at = upload_index(cut, tempered.device)
        sizes = upload_index([top_k[i] for i in cut], tempered.device)
        largest = largest_values(tempered[at], max(top_k[i] for i in cut))
        least = largest.gather(1, sizes[:, None] - 1)
        chosen = tempered[at]
        tempered[at] = chosen.masked_fill(chosen < least, -torch.inf)
    min_p = _per_row(spans, rows, lambda span: span.params.min_p)
    cut = [i for i, p in enumerate(min_p) if p > 0]
    if cut:
        at = upload_index(cut, tempered.device)
        shares = upload(np.array([min_p[i] for i in cut], dtype=np.float64), tempered.device)
        least = tempered[at].max(dim=-1, keepdim=True).values + shares.log()[:, None]
        chosen = tempered[at]
        tempered[at] = chosen.masked_fill(chosen < least, -torch.inf)


def _suppressed_scores(spans: list[Span], vocabulary: Vocabulary) -> list[tuple[list[int], int]]:
    """Return pairs (rows, column) of tokens that get confidence 0."""
    rows = _rows(spans, lambda span: span.params.confidence_eos_eot_inf)
    eos_rows = _rows(
        spans,
        lambda span: (
            span.params.confidence_eos_eot_inf
            and not (span.params.compat and span.params.temperature > 0)
        ),
    )
    pairs = [(rows, vocabulary.turn_end_id), *((eos_rows, id_) for id_ in vocabulary.text_ends)]
    return [(chosen, column) for chosen, column in pairs if chosen and column is not None]


def _divergence(logits: Tensor, spans: list[Span], packed: Tensor) -> dict[int, Tensor]:
    """Fill in "kl", the divergence from the previous forward (KLASS, arXiv:2511.05664).

    Returns the new distributions by span.
    """
    distributions: dict[int, Tensor] = {}
    start, tiny = 0, 1e-12
    for index, span in enumerate(spans):
        end = start + len(span.positions)
        if "kl" in span.ask.stats:
            now = logits[start:end].softmax(dim=-1)
            distributions[index] = now
            divergence = torch.full((end - start,), torch.inf, device=logits.device)
            if span.previous is not None and span.has_previous is not None:
                ratio = torch.log(now + tiny) - torch.log(span.previous + tiny)
                known = (now * ratio).sum(dim=-1)
                divergence = torch.where(span.has_previous, known, divergence)
            packed[start:end, _column("kl")] = divergence.double()
        start = end
    return distributions


def effective_top_v(params: SamplingParams, ask: Ask) -> int | None:
    """Return the number of largest logits that count in a row (None: all).

    The sampling parameters take precedence over the decoder's ask.
    """
    if params.vocabulary in (None, "adaptive"):
        return ask.top_v
    return params.num_tokens if params.vocabulary == "static" else None


def _top_v(span: Span) -> int | None:
    top_v = effective_top_v(span.params, span.ask)
    return 1 << 30 if top_v is None and "top_v_entropy" in span.ask.stats else top_v


def _top_v_odds(
    logits: Tensor, tokens: Tensor, spans: list[Span], packed: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the rows restricted to their V largest logits, with log-odds, -inf for tokens outside."""
    rows = _rows(spans, lambda span: _top_v(span) is not None)
    if not rows:
        return None
    sizes = [int(v) for v in _per_row(spans, rows, lambda span: _top_v(span) or 1)]
    width = min(max(sizes), logits.shape[-1])
    at = upload_index(rows, logits.device)
    top = largest_values(_of_rows(logits, rows), width)
    limit = upload_index(sizes, logits.device)[:, None]
    top = top.masked_fill(torch.arange(width, device=logits.device) >= limit, -torch.inf)
    own = logits[at, tokens[at]]
    same = top == own[:, None]
    others = top.masked_fill(same & (same.cumsum(dim=-1) == 1), -torch.inf)
    odds = own - others.logsumexp(dim=-1)
    if any("top_v_entropy" in span.ask.stats for span in spans):
        shares = top.softmax(dim=-1)
        packed[at, _column("top_v_entropy")] = torch.special.entr(shares).sum(dim=-1).double()
    outside = ~same.any(dim=-1) & ~own.isnan()
    return at, odds.masked_fill(outside, -torch.inf)


def _statistics(
    logits: Tensor, tokens: Tensor, spans: list[Span], vocabulary: Vocabulary, packed: Tensor
) -> Tensor:
    """Return the tokens' log-odds, ln(p / (1 - p)); fill in entropy, margin and p(end-of-text).

    The probability against a token is summed over the other tokens: nothing cancels or underflows, so the
    order of confidences is exact at any distance from p = 1. Overwrites the logits.
    """
    own = logits.gather(-1, tokens[:, None])[:, 0]
    device = logits.device
    has_eos = _rows(spans, lambda span: "eos" in span.ask.stats)
    eos, eos_logit = upload_index(has_eos, device) if has_eos else None, None
    if eos is not None and vocabulary.eos_id is not None:
        eos_logit = logits[eos, vocabulary.eos_id]
    has_margin = _rows(spans, lambda span: "margin" in span.ask.stats)
    margin = upload_index(has_margin, device) if has_margin else None
    largest = own
    if margin is not None:
        largest = largest_values(_of_rows(logits, has_margin), min(2, logits.shape[-1]))
    others = logits.scatter_(-1, tokens[:, None], -torch.inf)
    top = others.amax(dim=-1).clamp(min=torch.finfo(others.dtype).min)
    shifted = others.sub_(top[:, None])
    has_entropy = _rows(spans, lambda span: "entropy" in span.ask.stats)
    entropy = upload_index(has_entropy, device) if has_entropy else None
    first_moment = None
    if entropy is not None:
        finite = shifted[entropy].clamp(min=-1e30)
        first_moment = (finite.exp() * finite).sum(dim=-1)
    total = shifted.exp_().sum(dim=-1)
    odds: Tensor = own - (total.log() + top)
    if entropy is not None and first_moment is not None:
        sub = total[entropy].clamp(min=torch.finfo(total.dtype).tiny)
        lse = torch.logaddexp(own[entropy], total[entropy].log() + top[entropy])
        rest = torch.sigmoid(-odds[entropy]) * (lse - top[entropy] - first_moment / sub)
        first = torch.sigmoid(odds[entropy]) * torch.nn.functional.softplus(-odds[entropy])
        first = first.masked_fill(odds[entropy] == -torch.inf, 0.0)  # 0 ln 0
        packed[entropy, _column("entropy")] = (first + rest).clamp(min=0).double()
    if margin is not None:
        lse = torch.logaddexp(own[margin], total[margin].log() + top[margin])
        is_first = own[margin] >= largest[:, 0]
        other_doubt = torch.log1p(-torch.exp((largest[:, 0] - lse).clamp(max=-1e-7)))
        log_doubt = torch.where(
            is_first, torch.nn.functional.logsigmoid(-odds[margin]), other_doubt
        )
        log_second = largest[:, -1] - lse
        packed[margin, _column("margin")] = torch.logaddexp(log_doubt, log_second).double()
    if eos is not None and eos_logit is not None:
        lse = torch.logaddexp(own[eos], total[eos].log() + top[eos])
        packed[eos, _column("eos")] = torch.exp(eos_logit - lse).double()
    return odds


def log_odds(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Return ln(p / (1 - p)) of one token per row. Overwrites the logits."""
    own = logits_NV.gather(-1, tokens_N[:, None])[:, 0]
    others = logits_NV.scatter_(-1, tokens_N[:, None], -torch.inf)
    return own - others.logsumexp(dim=-1)
