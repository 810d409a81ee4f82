"""Comparison of caches: staleness and savings of each.

Each cache decodes the same held-out prompts. Timed passes measure speed and answers. One more pass runs the
network without a cache on the same canvas after every forward and compares the distributions of the rows
that the decoder reads: staleness is separated from the consequences of a different choice of tokens.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unmask.bench.decode import decode_all
from unmask.bench.examples import BenchExample, judge
from unmask.bench.report import DecodeSetting
from unmask.caches.registry import bind, make_cache
from unmask.engine.model_runner import ForwardInput, ModelRunner
from unmask.method import MethodSpec
from unmask.models.transformer import topology

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output

LOGITS_AT_ONCE = 1 << 24
"""Maximum number of logits compared at a time."""


@dataclass
class Staleness:
    """Sums over the rows read by a decoder: divergence in nats, rows with the same argmax, rows."""

    divergence: float = 0.0
    num_equal: int = 0
    num_rows: int = 0

    def add(self, exact_NV: Tensor, cached_NV: Tensor) -> None:
        """Add the comparison of the logits of N rows."""
        exact, cached = exact_NV.log_softmax(dim=-1), cached_NV.log_softmax(dim=-1)
        self.divergence += float((exact.exp() * (exact - cached)).sum())
        self.num_equal += int((exact.argmax(dim=-1) == cached.argmax(dim=-1)).sum())
        self.num_rows += len(exact)


class Probe(ModelRunner):
    """Model runner that repeats every forward without a cache and adds the difference to `staleness`."""

    staleness: Staleness

    def _states(
        self, rows: list[tuple[ForwardInput, bool]]
    ) -> tuple[Tensor, list[int], dict[int, Tensor]]:
        states_ND, starts, importance = super()._states(rows)
        for (item, sees_prompt), start in zip(rows, starts, strict=True):
            if sees_prompt and len(item.rows):
                at = np.searchsorted(item.plan.queries, item.rows) + start
                self._compare(item, states_ND[torch.from_numpy(at).to(states_ND.device)])
        return states_ND, starts, importance

    def _compare(self, item: ForwardInput, cached_ND: Tensor) -> None:
        device = self.model.device
        ids = torch.from_numpy(item.sequence.canvas.tokens)[None].to(device)
        positions = torch.arange(ids.shape[1], device=device)[None]
        visible = topology(self.model.spec, positions, None)
        exact_TD = self.model.hidden(ids, positions, visible)[0]
        rows = torch.from_numpy(item.rows).to(device)
        chunk = max(1, LOGITS_AT_ONCE // self.model.spec.vocab_size)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            self.staleness.add(
                self.model.head(exact_TD[rows[part]]).float(),
                self.model.head(cached_ND[part]).float(),
            )


@dataclass(frozen=True)
class CacheResult:
    """Passes of one cache over all prompts.

    `same_answers`, `same_tokens`: share of answers and of generated positions equal to those of cache
    `none`. `divergence`: mean KL(exact || cached) in nats per row read. `same_top`: share of rows read with
    the same argmax as the exact row. `num_wasted`: queries right of an end token. `bytes_per_position`:
    cache memory per position, of all layers.
    """

    name: str
    is_exact: bool
    right: tuple[bool, ...]
    same_answers: float
    same_tokens: float
    divergence: float
    same_top: float
    num_forwards: int
    num_queries: int
    num_wasted: int
    num_logit_rows: int
    seconds: tuple[float, ...]
    bytes_per_position: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def median_seconds(self) -> float:
        """Median duration of the repeats."""
        return float(np.median(self.seconds))


@dataclass
class _Pass:
    name: str
    outputs: list[Output] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    staleness: Staleness = field(default_factory=Staleness)


def measure_caches(
    llm: LLM,
    names: Sequence[str],
    method: MethodSpec,
    setting: DecodeSetting,
    examples: Sequence[BenchExample],
    watch: Callable[[str, int], AbstractContextManager[None]] = lambda name, repeat: nullcontext(),
) -> list[CacheResult]:
    """Measure cache `none`, then each of `names`. Raises ConfigError for a cache that the model refuses."""
    prompts = [llm.prompt_ids(item.prompt) for item in examples]
    passes = [_Pass(name) for name in dict.fromkeys(("none", *names))]
    for item in passes:
        with watch(item.name, 0):
            decode_all(llm, prompts[: setting.max_batch_size], method, item.name, setting)
    for repeat in range(setting.repeat):
        for item in (*passes[repeat % len(passes) :], *passes[: repeat % len(passes)]):
            with watch(item.name, repeat + 1):
                began = time.perf_counter()
                outputs = decode_all(llm, prompts, method, item.name, setting)
                item.seconds.append(time.perf_counter() - began)
                item.outputs = item.outputs or outputs
    for item in passes[1:]:
        probed = copy.copy(llm)
        probed.make_runner = type("Probe", (Probe,), {"staleness": item.staleness})
        decode_all(probed, prompts, method, item.name, setting)
    return [_result(llm, item, passes[0].outputs, examples) for item in passes]


def _result(
    llm: LLM, item: _Pass, exact: list[Output], examples: Sequence[BenchExample]
) -> CacheResult:
    outputs, staleness = item.outputs, item.staleness
    pairs = list(zip(outputs, exact, strict=True))
    answers = [(o.canvas_ids[o.prompt_length :], e.canvas_ids[e.prompt_length :]) for o, e in pairs]
    equal = sum(sum(a == b for a, b in zip(*both, strict=False)) for both in answers)
    total = sum(max(len(a), len(b)) for a, b in answers)
    rows = staleness.num_rows
    divergence = 0.0 if item.name == "none" else math.nan
    return CacheResult(
        name=item.name,
        is_exact=bind(make_cache(item.name), llm.spec.block_size).exact,
        right=judge(examples, outputs, exact),
        same_answers=sum(o.token_ids == e.token_ids for o, e in pairs) / len(pairs),
        same_tokens=equal / total,
        divergence=staleness.divergence / rows if rows else divergence,
        same_top=staleness.num_equal / rows if rows else 1.0,
        num_forwards=sum(o.num_forwards for o in outputs),
        num_queries=sum(o.num_queries for o in outputs),
        num_wasted=sum(o.num_wasted for o in outputs),
        num_logit_rows=sum(o.num_logit_rows for o in outputs),
        seconds=tuple(item.seconds),
        bytes_per_position=max(o.cache_bytes / len(o.canvas_ids) for o in outputs),
    )
