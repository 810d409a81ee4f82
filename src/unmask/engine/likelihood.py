"""Log-likelihoods of answers given their prompts.

Letters: C masked copies of an example, L answer tokens, S samples, B rows of a batch, T positions, D width.

`monte_carlo`: the mean of `(L / n) * sum of ln p(token | the rest)` over samples in which n of the L
answer tokens, chosen without replacement, are masked. Its expectation is the model's bound on the log
likelihood: the mean over all orders in which the answer can be decoded one token at a time.
Source: arXiv:2502.09992, Eq. 6 and Algorithm 3 (LLaDA), with the counts of `get_log_likelihood.py`,
spread evenly over 1..L from a random phase. Differs:
- The counts are spread over all samples, not over every batch anew, so that neither `mc_num` nor the
  result depends on the batch size.
- Halves round up. Rounding to even makes some counts more frequent than others, which biases the estimate.
- Masked positions are marked instead of recognized by their id: prompts and answers may contain the mask
  token.
- Log-probabilities are float32 for any dtype of the model (there: the model's dtype), their sums float64.
- Equal masks are computed once, which reduces the cost only.

`chain_rule`: the exact value for the order from left to right; all later tokens are masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Bools, Floats, Ints
from unmask.engine.prompts import Prompt, PromptEncoder, prompt_list
from unmask.errors import ConfigError, ModelError, PromptError, unknown_name
from unmask.knobs import check_flags, whole
from unmask.models.transformer import Transformer, topology
from unmask.progress import CallProgress, ProgressLike

Method = Literal["monte_carlo", "chain_rule"]
METHODS = ("monte_carlo", "chain_rule")
DEFAULT_MC_NUM = 128
HEAD_CHUNK = 1 << 24
"""Logits computed at a time: 64 MB in float32, and up to three more tensors of that size."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-likelihood of one answer.

    `log_prob`: that of the whole answer given the prompt, in nats. `num_tokens`: tokens of the answer.
    `num_forwards`: number of different masked copies of the example that were computed, in batches of any
    size; a guided copy counts once, although it takes two rows. `standard_error`: that of `log_prob` in
    nats; 0 if it is exact (chain rule, a single token), None for a single sample.
    """

    log_prob: float
    num_tokens: int
    num_forwards: int
    standard_error: float | None


class _Example(NamedTuple):
    """The token ids of prompt and answer; the answer begins at `start`."""

    ids: Ints
    start: int

    @property
    def num_tokens(self) -> int:
        return len(self.ids) - self.start


class _Copies(NamedTuple):
    """The copies of an example to compute: the tokens to mask and those to score, both bool `(C, L)`.

    `samples[s]` is the copy of sample s, `counts[s]` its number of masks; None if the scores of the copies
    are summed instead.
    """

    masked: Bools
    scored: Bools
    samples: Ints | None = None
    counts: Ints | None = None


class _Row(NamedTuple):
    """One copy of the example at index `number`."""

    number: int
    example: _Example
    masked: Bools
    scored: Bools


def loglikelihood(  # noqa: PLR0913 - the call's options are the interface
    model: Transformer,
    encoder: PromptEncoder,
    prompt: Prompt | Sequence[Prompt],
    answer: Prompt | Sequence[Prompt],
    *,
    mc_num: int = DEFAULT_MC_NUM,
    method: Method = "monte_carlo",
    cfg_scale: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    raw: bool = False,
    progress: ProgressLike = None,
) -> Likelihood | list[Likelihood]:
    """Return the log-likelihood of an answer, or those of a list of answers to a list of prompts.

    `prompt` is as in `generate`; `answer` is ids, or text encoded without special tokens. `mc_num` is
    the number of samples: 1 is exact for an answer of one token and very rough for others, LLaDA's results
    use 128; the cost grows with it up to the number of different masks. `cfg_scale` is guidance as in
    `generate`, 0 for none. The masks of each example are drawn by a CPU generator of its own, seeded with
    `seed`: apart from the rounding of different matrix shapes, the result does not depend on the other
    examples or on `batch_size`, the number of copies in a forward. Probabilities are over the model's whole
    vocabulary. `chain_rule` draws nothing and computes one copy per token. `progress` as in `generate`, of
    finished answers.

    Raises PromptError (empty, too long, ids outside the vocabulary), ConfigError (any other value that
    is not allowed) and ModelError (logits that are not finite).
    """
    mc_num, seed = _samples(mc_num, method), whole("seed", seed)
    batch_size = whole("batch_size", batch_size, 1)
    weight = _guidance(cfg_scale)
    check_flags(raw=raw)
    prompts, answers, is_single = _pairs(prompt, answer)
    examples = [_example(encoder, *pair, raw) for pair in zip(prompts, answers, strict=True)]

    copies: dict[int, _Copies] = {}
    scores: dict[int, list[float]] = {}
    likelihoods: dict[int, Likelihood] = {}

    def rows() -> Iterator[_Row]:
        # the longest first: little padding, and a batch that does not fit fails at once
        for index in sorted(range(len(examples)), key=lambda i: -len(examples[i].ids)):
            length = examples[index].num_tokens
            is_exact = method == "chain_rule"
            copies[index] = _chain_rule(length) if is_exact else _monte_carlo(length, mc_num, seed)
            scores[index] = []
            for masked, scored in zip(copies[index].masked, copies[index].scored, strict=True):
                yield _Row(index, examples[index], masked, scored)

    waiting = rows()
    with CallProgress(progress, "scoring", "answers") as report:
        while batch := list(islice(waiting, batch_size)):
            for row, score in zip(batch, _score(model, batch, weight).tolist(), strict=True):
                number = row.number
                scores[number].append(score)
                if len(scores[number]) == len(copies[number].masked):
                    likelihoods[number] = _result(copies.pop(number), scores.pop(number))
            report(len(likelihoods), len(examples))
    results = [likelihoods[index] for index in range(len(examples))]
    return results[0] if is_single else results


def _samples(mc_num: int, method: Method) -> int:
    """Return the number of samples. Raises ConfigError for an unknown method or a number without effect."""
    if method not in METHODS:
        raise unknown_name("method", str(method), METHODS)
    mc_num = whole("mc_num", mc_num, 1)
    if method == "chain_rule" and mc_num != DEFAULT_MC_NUM:
        raise ConfigError(f"mc_num={mc_num} has no effect with method='chain_rule'; leave it out")
    return mc_num


def _guidance(cfg_scale: float) -> float:
    is_number = isinstance(cfg_scale, Real) and not isinstance(cfg_scale, bool)
    if not (is_number and math.isfinite(cfg_scale) and cfg_scale >= 0):
        raise ConfigError(f"cfg_scale={cfg_scale!r} must be a number, not negative; 0 is off")
    return float(cfg_scale)


def _pairs(
    prompt: Prompt | Sequence[Prompt], answer: Prompt | Sequence[Prompt]
) -> tuple[list[Prompt], list[Prompt], bool]:
    """Return equally many prompts and answers, and whether they are single ones instead of lists."""
    is_single = _is_one(prompt)
    empty_answer = isinstance(answer, Sequence) and not len(answer)
    if is_single and (_is_one(answer) or empty_answer):
        return [prompt], [answer], True  # type: ignore[list-item]
    prompts, answers = prompt_list(prompt), _answer_list(answer)
    if is_single or _is_one(answer):
        raise ConfigError(
            f"{_number(prompts, is_single, 'prompt')} and {_number(answers, not is_single, 'answer')}: "
            "give one of each, or two lists of the same length"
        )
    if len(prompts) != len(answers):
        raise ConfigError(
            f"{len(prompts)} prompts and {len(answers)} answers; give one answer for each prompt"
        )
    return prompts, answers, False


def _is_one(value: object) -> bool:
    """Return True for one text or one list of ids, False for a list of them."""
    if isinstance(value, (str, bytes)):
        return True
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Integral)


def _number(items: list[Prompt], is_single: bool, name: str) -> str:
    return f"one {name}" if is_single else f"a list of {len(items)} {name}s"


def _answer_list(answer: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if not isinstance(answer, Sequence):
        raise PromptError(
            f"answers of type {type(answer).__name__}: give a string, a list of strings, or a list of "
            "lists of token ids"
        )
    return prompt_list(answer)


def _example(encoder: PromptEncoder, prompt: Prompt, answer: Prompt, raw: bool) -> _Example:
    before = encoder.prompt_ids(prompt, raw=raw)
    if isinstance(answer, str):
        after = encoder.encode(answer, special=False)
    elif isinstance(answer, bytes) or not isinstance(answer, Sequence):
        raise PromptError(f"answer {answer!r} must be a string or a list of token ids")
    else:
        after = encoder.prompt_ids(answer) if len(answer) else []
    if not after:
        raise PromptError(f"the answer {answer!r} is empty; give at least one token")
    total, most = len(before) + len(after), encoder.spec.max_length
    if total > most:
        raise PromptError(
            f"prompt of {len(before)} tokens + answer of {len(after)} = {total}, but the model's context "
            f"is {most}; shorten them by {total - most}"
        )
    return _Example(np.array([*before, *after], dtype=np.int64), len(before))


def stratified_counts(length: int, mc_num: int, phase: int) -> Ints:
    """Return numbers of masked tokens `(S,)` in 1..L, evenly spread from `phase` in 1..L on.

    With a uniform phase each count alone is uniform, which makes the estimate unbiased.
    """
    steps = np.arange(mc_num, dtype=np.int64)
    counts: Ints = (phase - 1 + (2 * steps * length + mc_num) // (2 * mc_num)) % length + 1
    return counts


def _monte_carlo(length: int, mc_num: int, seed: int) -> _Copies:
    generator = torch.Generator().manual_seed(seed % 2**64)
    phase = int(torch.randint(1, length + 1, (), generator=generator))
    counts = stratified_counts(length, mc_num, phase)
    masked = np.zeros((mc_num, length), dtype=np.bool_)
    for row, count in zip(masked, counts.tolist(), strict=True):
        row[torch.randperm(length, generator=generator)[:count].numpy()] = True
    place: dict[bytes, int] = {}
    samples = np.array([place.setdefault(row.tobytes(), len(place)) for row in masked])
    first = np.unique(samples, return_index=True)[1]
    return _Copies(masked[first], masked[first], samples, counts)


def _chain_rule(length: int) -> _Copies:
    masked = np.triu(np.ones((length, length), dtype=np.bool_))
    return _Copies(masked, np.eye(length, dtype=np.bool_))


def _result(copies: _Copies, scores: list[float]) -> Likelihood:
    num_copies, length = copies.masked.shape
    sums = np.array(scores, dtype=np.float64)
    if copies.samples is None or copies.counts is None:
        return Likelihood(float(sums.sum()), length, num_copies, 0.0)
    values = length / copies.counts * sums[copies.samples]
    order = np.argsort(copies.counts, kind="stable")
    error = 0.0 if length == 1 else _standard_error(values[order])
    return Likelihood(float(values.mean()), length, num_copies, error)


def _standard_error(values: Floats) -> float | None:
    """Return the standard error of the mean of samples in the order of their counts; None for one sample.

    It is estimated from the differences of neighbors: the counts are stratified, so the variance that they
    explain is no error of the mean.
    """
    if len(values) < 2:
        return None
    variance = np.square(np.diff(values)).mean() / 2
    return float(np.sqrt(variance / len(values)))


@torch.inference_mode()
def _score(model: Transformer, batch: list[_Row], weight: float) -> Floats:
    """Return the summed log-probabilities of the tokens to score in each row, `(B,)`."""
    spec, device = model.spec, model.device
    lengths = np.array([len(row.example.ids) for row in batch])
    width = int(lengths.max())
    ids = np.zeros((len(batch), width), dtype=np.int64)
    blind = np.zeros((len(batch), width), dtype=np.int64)
    rows, targets, owners = [], [], []
    for meta, row in enumerate(batch):
        example = row.example
        answer = example.ids[example.start :]
        end = len(example.ids)
        ids[meta, : example.start] = example.ids[: example.start]
        ids[meta, example.start : end] = np.where(row.masked, spec.mask_id, answer)
        blind[meta, :end] = ids[meta, :end]
        blind[meta, : example.start] = spec.mask_id
        positions = example.start + np.flatnonzero(row.scored)
        # a prompt is never empty, so the row before the answer exists
        rows.append(meta * width + positions - (1 if spec.shift_logits else 0))
        targets.append(answer[row.scored])
        owners.append(np.full(len(positions), meta))
    if weight > 0:
        ids, lengths = np.concatenate((ids, blind)), np.concatenate((lengths, lengths))
    position_ids = torch.arange(width, device=device).expand(len(ids), width)
    real = None
    if (lengths < width).any():
        real = position_ids < torch.from_numpy(lengths).to(device)[:, None]
    states_BTD = model.hidden(
        torch.from_numpy(ids).to(device), position_ids, topology(spec, position_ids, real)
    )
    half = states_BTD[: len(batch)].flatten(0, 1)
    without = states_BTD[len(batch) :].flatten(0, 1) if weight > 0 else None
    log_probs = _log_probs(
        model, (half, without), np.concatenate(rows), np.concatenate(targets), weight
    )
    sums = np.bincount(np.concatenate(owners), weights=log_probs, minlength=len(batch))
    return sums.astype(np.float64)


def _log_probs(
    model: Transformer,
    states: tuple[Tensor, Tensor | None],
    rows: Ints,
    targets: Ints,
    weight: float,
) -> Floats:
    """Return `ln p` of the target of each of `rows` of `states`, in chunks of bounded memory."""
    seeing, blind = states
    indices, ids = (torch.from_numpy(item).to(seeing.device) for item in (rows, targets))
    chunk = max(1, HEAD_CHUNK // model.spec.vocab_size)
    parts = []
    for start in range(0, len(rows), chunk):
        at, target = indices[start : start + chunk], ids[start : start + chunk]
        logits = model.head(seeing[at]).float()
        if blind is not None:
            without = model.head(blind[at]).float()
            logits = without + (1 + weight) * (logits - without)
        parts.append(logits.log_softmax(dim=-1).gather(-1, target[:, None])[:, 0])
    log_probs: Floats = torch.cat(parts).double().cpu().numpy()
    if np.isnan(log_probs).any():
        raise ModelError(
            "the model's logits are not finite; try dtype=float32 or bfloat16, or a smaller cfg_scale"
        )
    return log_probs
