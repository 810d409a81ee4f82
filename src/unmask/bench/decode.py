"""Decoders side by side: the same held-out prompts, the same model, quality and speed of each.

Times are of whole passes over the prompts, after a warm-up of every decoder. A repeat is one pass of
each decoder, and each repeat starts with another one, so that a machine that slows down or is
disturbed does so to all alike. Vanilla at one token a forward is always measured along.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from unmask import decoders
from unmask.bench.environment import machine
from unmask.bench.report import BASELINE, DecodeSetting, MethodEntry, Report, ReportRow, Result
from unmask.demo.tasks import Example, check, held_out_set
from unmask.errors import ConfigError
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output


@dataclass(frozen=True)
class Task:
    """A held-out set that takes answers to prompts: usual positions, and blank cells of a Sudoku."""

    gen_length: int
    blanks: int | None = None


TASKS = {"word_problem": Task(64), "sudoku": Task(32, blanks=8), "countdown": Task(32)}


Watch = Callable[[MethodEntry, int], AbstractContextManager[None]]
"""Wraps every pass; told the entry and the repeat, 0 for the warm-up."""


def held_out(setting: DecodeSetting) -> list[Example]:
    """The prompts. Raises ConfigError when the task has fewer."""
    try:
        return held_out_set(setting.task, setting.limit, blanks=TASKS[setting.task].blanks)
    except ValueError as error:
        raise ConfigError(f"limit={setting.limit} is too high: {error}") from None


def options_of(entry: MethodEntry, setting: DecodeSetting) -> dict[str, Any]:
    """What `generate` is told for an entry; a typed knob wins over the setting's `block_length`."""
    options: dict[str, Any] = {}
    if "block_length" in decoders.knob_names(entry.decoder, dict(entry.knobs)):
        options["block_length"] = setting.block_length
    return options | dict(entry.knobs)


def decode_all(
    llm: LLM, prompts: list[list[int]], entry: MethodEntry, cache: str, setting: DecodeSetting
) -> list[Output]:
    """One pass of an entry; it has ended when this returns, on an accelerator too."""
    options = options_of(entry, setting)
    if not decoders.finds_length(entry.decoder):
        options["gen_length"] = setting.gen_length
    outputs = llm.generate(
        prompts,
        entry.decoder,
        cache,
        seed=setting.seed,
        max_batch_size=setting.max_batch_size,
        **options,
    )
    if llm.model.device.type == "cuda":
        import torch

        torch.cuda.synchronize(llm.model.device)
    return outputs


def measure(
    llm: LLM,
    entries: Sequence[MethodEntry],
    setting: DecodeSetting,
    examples: Sequence[Example],
    watch: Watch = lambda entry, repeat: nullcontext(),
) -> Report:
    """Measure the baseline and the entries on the examples.

    An entry that raises ConfigError gets a row without a result. Raises the baseline's ConfigError, and
    PromptError when a prompt does not fit the model.
    """
    assert len(set(entries)) == len(entries), "every entry once"
    facts = machine(llm.model.device)
    bench = _Bench(llm, setting, examples, watch)
    passes = [_Passes(entry) for entry in dict.fromkeys((BASELINE, *entries))]
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
        rows=tuple(item.row(examples) for item in passes),
        machine=facts,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
    )


@dataclass
class _Passes:
    """What is known of an entry so far."""

    entry: MethodEntry
    in_force: dict[str, Any] = dataclasses.field(default_factory=dict)
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

    def row(self, examples: Sequence[Example]) -> ReportRow:
        if self.problem is not None:
            return ReportRow(self.entry, self.in_force, None, self.problem)
        pairs = zip(examples, self.outputs, strict=True)
        result = Result(
            right=tuple(check(example, output.text) for example, output in pairs),
            num_tokens=sum(len(output.token_ids) for output in self.outputs),
            num_forwards=sum(output.num_forwards for output in self.outputs),
            num_queries=sum(output.num_queries for output in self.outputs),
            seconds=tuple(self.seconds),
            is_repeatable=self.is_repeatable,
        )
        return ReportRow(self.entry, self.in_force, result)


class _Bench:
    """Passes over one set of prompts, tokenized beforehand: only decoding is timed."""

    def __init__(
        self, llm: LLM, setting: DecodeSetting, examples: Sequence[Example], watch: Watch
    ) -> None:
        self.llm, self.setting, self.watch = llm, setting, watch
        self.prompts = [llm.prompt_ids(example.prompt) for example in examples]

    def warm_up(self, item: _Passes) -> None:
        """Decode one batch, untimed, and see whether the decoder runs here at all."""
        from unmask.engine.request_builder import configure

        def run() -> None:
            method = configure(item.entry.decoder, options_of(item.entry, self.setting))
            item.in_force = dataclasses.asdict(method.sampling_params) | dataclasses.asdict(
                method.decoder
            )
            self._decode(item.entry, self.prompts[: self.setting.max_batch_size])

        self._watched(item, 0, run)

    def time(self, item: _Passes, repeat: int) -> None:
        """Decode every prompt, unless the decoder does not run here."""

        def run() -> None:
            began = time.perf_counter()
            outputs = self._decode(item.entry, self.prompts)
            item.add(outputs, time.perf_counter() - began)

        if item.problem is None:
            self._watched(item, repeat, run)

    def _watched(self, item: _Passes, repeat: int, run: Callable[[], None]) -> None:
        try:
            with self.watch(item.entry, repeat):
                run()
        except ConfigError as error:
            if item.entry == BASELINE:
                raise
            item.problem = str(error)

    def _decode(self, entry: MethodEntry, prompts: list[list[int]]) -> list[Output]:
        return decode_all(self.llm, prompts, entry, self.setting.cache, self.setting)
