"""Comparison of decoders on the same held-out prompts and model: quality and speed of each.

Times are those of whole passes over the prompts, after a warm-up of every decoder. A repeat is one pass of
each decoder, and each repeat starts with another decoder, so that disturbances of the machine affect all of
them. Vanilla with one token per forward is always measured as the baseline.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from unmask.bench.environment import machine
from unmask.bench.examples import BenchExample, judge
from unmask.bench.report import BASELINE, DecodeSetting, Report, ReportRow, Result
from unmask.errors import ConfigError
from unmask.method import MethodSpec, Source
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output


Watch = Callable[[MethodSpec, int], AbstractContextManager[None]]
"""Function that returns the context of a pass, from the method and the repeat (0: warm-up)."""


def method_in(setting: DecodeSetting, method: MethodSpec, cache: str) -> MethodSpec:
    """Return a method with a cache, and with the setting's `block_length` unless it has its own."""
    shared = {"block_length": setting.block_length}
    return MethodSpec.parse(
        Source({"cache": cache}),
        method.source(is_default=True),
        Source(shared, is_default=True, is_soft=True),
    )


def decode_all(
    llm: LLM, prompts: list[list[int]], method: MethodSpec, cache: str, setting: DecodeSetting
) -> list[Output]:
    """Decode all prompts by a method and synchronize with the device."""
    method = method_in(setting, method, cache)
    outputs = llm.generate(
        prompts,
        method,
        gen_length=None if method.chooses_length else setting.gen_length,
        seed=setting.seed,
        max_batch_size=setting.max_batch_size,
        progress=False,
    )
    if llm.model.device.type == "cuda":
        import torch

        torch.cuda.synchronize(llm.model.device)
    return outputs


def measure(
    llm: LLM,
    entries: Sequence[MethodSpec],
    setting: DecodeSetting,
    examples: Sequence[BenchExample],
    watch: Watch = lambda method, repeat: nullcontext(),
) -> Report:
    """Measure the baseline and the methods `entries` on the examples.

    A method that raises ConfigError gets a row without a result. Raises the baseline's ConfigError, and
    PromptError when a prompt does not fit the model.
    """
    assert len({entry.label for entry in entries}) == len(entries), "every method once"
    facts = machine(llm.model.device)
    bench = _Bench(llm, setting, examples, watch)
    by_label = {method.label: method for method in (MethodSpec.parse(), *entries)}
    passes = [_Passes(method) for method in by_label.values()]
    for item in passes:
        bench.warm_up(item)
    for repeat in range(setting.repeat):
        first = repeat % len(passes)
        for item in (*passes[first:], *passes[:first]):
            bench.time(item, repeat + 1)
    return Report(
        model=llm.name,
        dtype=str(next(llm.model.parameters()).dtype).removeprefix("torch."),
        device=str(llm.model.device),
        setting=setting,
        rows=tuple(item.row(examples, passes[0]) for item in passes),
        machine=facts,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
    )


@dataclass
class _Passes:
    method: MethodSpec
    in_force: dict[str, object] = dataclasses.field(default_factory=dict)
    outputs: list[Output] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    is_repeatable: bool = True
    problem: str | None = None

    def add(self, outputs: list[Output], seconds: float) -> None:
        if not self.outputs:
            self.outputs = outputs
        pairs = zip(self.outputs, outputs, strict=True)
        self.is_repeatable &= all(a.token_ids == b.token_ids for a, b in pairs)
        self.seconds.append(seconds)

    def row(self, examples: Sequence[BenchExample], baseline: _Passes) -> ReportRow:
        knobs = {key: str(value) for key, value in self.method.given.items()}
        row = ReportRow(
            self.method.label, self.method.decoder_name, knobs, self.in_force, None, self.problem
        )
        if self.problem is not None:
            return row
        result = Result(
            right=judge(examples, self.outputs, baseline.outputs),
            num_tokens=sum(len(output.token_ids) for output in self.outputs),
            num_forwards=sum(output.num_forwards for output in self.outputs),
            num_queries=sum(output.num_queries for output in self.outputs),
            num_wasted=sum(output.num_wasted for output in self.outputs),
            seconds=tuple(self.seconds),
            is_repeatable=self.is_repeatable,
        )
        return dataclasses.replace(row, result=result)


class _Bench:
    """Passes over one set of prompts, tokenized beforehand: only decoding is timed."""

    def __init__(
        self, llm: LLM, setting: DecodeSetting, examples: Sequence[BenchExample], watch: Watch
    ) -> None:
        self.llm, self.setting, self.watch = llm, setting, watch
        self.prompts = [llm.prompt_ids(example.prompt) for example in examples]

    def warm_up(self, item: _Passes) -> None:
        """Decode one batch without timing; records the problem of a decoder that is refused."""

        def run() -> None:
            item.in_force = method_in(self.setting, item.method, self.setting.cache).knobs()
            self._decode(item.method, self.prompts[: self.setting.max_batch_size])

        self._watched(item, 0, run)

    def time(self, item: _Passes, repeat: int) -> None:
        """Decode and time all prompts, unless the decoder was refused."""

        def run() -> None:
            began = time.perf_counter()
            outputs = self._decode(item.method, self.prompts)
            item.add(outputs, time.perf_counter() - began)

        if item.problem is None:
            self._watched(item, repeat, run)

    def _watched(self, item: _Passes, repeat: int, run: Callable[[], None]) -> None:
        try:
            with self.watch(item.method, repeat):
                run()
        except ConfigError as error:
            if item.method.label == BASELINE:
                raise
            item.problem = str(error)

    def _decode(self, method: MethodSpec, prompts: list[list[int]]) -> list[Output]:
        return decode_all(self.llm, prompts, method, self.setting.cache, self.setting)
