"""`unmask bench cache`: comparison of caches, as a table or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from unmask import caches
from unmask.bench.cache import CacheResult, measure_caches
from unmask.bench.environment import machine
from unmask.bench.examples import examples_of
from unmask.cli.bench_decode import (
    check_json,
    one_decoder,
    prompts_of,
    rule_of,
    setting_of,
    split_list,
    write_json,
)
from unmask.cli.bench_options import BenchModelOptions, SettingOptions
from unmask.cli.decode import load
from unmask.cli.options import DecodeOptions

HEAD = (
    "| cache | | right | same answers | same tokens | KL, nats | same top | forwards | queries | "
    "of none | waste | head rows | seconds | speed-up | bytes a position |\n" + "|---" * 15 + "|"
)
EXPLAINED = (
    "right: answers | same: as without a cache (answers up to the end, positions of the canvas) | KL, same "
    "top: exact against cached distribution of the rows that were read, on the cached run's canvases | of "
    "none: share of its queries | waste: share of the queries right of an end token | seconds: median of "
    "the repeats"
)


def cache(
    names: str,
    decoder: str,
    model: BenchModelOptions,
    options: SettingOptions,
    as_json: str | None,
) -> None:
    """Compare caches and print the result. Options are checked before the model is loaded."""
    setting = setting_of(options)
    method = one_decoder(decoder, "caches")
    check_json(as_json)
    if names != "all":
        for name in split_list(names):
            caches.make_cache(name.strip())
    examples = examples_of(setting)
    setting = dataclasses.replace(setting, limit=len(examples))
    llm, _ = load(DecodeOptions(**dataclasses.asdict(model)))
    chosen = _chosen(names, llm.spec.block_size)
    results = measure_caches(llm, chosen, method, setting, examples, _watch)
    facts = machine(llm.model.device)
    report = {
        "decoder": method.label,
        "model": llm.name,
        "setting": dataclasses.asdict(setting),
        "machine": facts,
        "caches": [dataclasses.asdict(item) for item in results],
    }
    text = json.dumps(report, ensure_ascii=False)
    if as_json == "-":
        print(text, flush=True)
        return
    print("\n".join([HEAD, *(_row(item, results[0]) for item in results)]))
    print(
        f"\ndecoder {method.label} | task {setting.task_name} | {prompts_of(setting)} | model "
        f"{llm.name} | gen_length {setting.gen_length} | block_length {setting.block_length} | batch "
        f"{setting.max_batch_size} | seed {setting.seed} | repeats {setting.repeat} | "
        f"{facts['accelerator'] or facts['processor']}, {facts['num_threads']} threads, torch "
        f"{facts['torch']}"
    )
    print(EXPLAINED.replace("right: ", f"right: {rule_of(setting)}", 1))
    write_json(as_json, text)


def _chosen(names: str, block_size: int | None) -> list[str]:
    """Return the names of the caches to measure; "all" stands for those that the model supports."""
    if names != "all":
        return [name.strip() for name in split_list(names)]
    fitting = [name for name in caches.names() if name not in ("auto", "none")]
    return [name for name in fitting if name != "block_causal" or block_size is not None]


def _row(item: CacheResult, none: CacheResult) -> str:
    return (
        f"| {item.name} | {'exact' if item.is_exact else 'approximate'} | {100 * item.accuracy:.1f} % | "
        f"{100 * item.same_answers:.1f} % | {100 * item.same_tokens:.1f} % | {item.divergence:.2g} | "
        f"{100 * item.same_top:.1f} % | {item.num_forwards} | {item.num_queries} | "
        f"{100 * item.num_queries / none.num_queries:.0f} % | "
        f"{100 * item.num_wasted / item.num_queries:.0f} % | {item.num_logit_rows} | "
        f"{item.median_seconds:.2f} | {none.median_seconds / item.median_seconds:.2f} | "
        f"{item.bytes_per_position:.0f} |"
    )


def matrix(limit: int, gen_length: int) -> None:
    """Run every decoder with every cache on the bundled model and two random ones; print Markdown."""
    from unmask.bench.matrix import matrix, small_llm, table
    from unmask.demo.tasks import held_out_set
    from unmask.docgen.caches import MATRIX_HEAD
    from unmask.engine.llm import LLM

    demo = LLM("demo")
    prompts = [demo.prompt_ids(item.prompt) for item in held_out_set("word_problem", limit)]
    print(MATRIX_HEAD)
    print(
        f"## The bundled model\n\n{limit} held-out word problems, gen_length {gen_length}, blocks of half "
        f"of it, the decoders' defaults.\n"
    )
    print(table(matrix(demo, prompts, gen_length)), flush=True)
    small = [[3, 4, 5, 6, 7], [8] * 9, [9, 1]]
    print("\n## A random model with shifted logits\n\n3 prompts, gen_length 16.\n")
    print(table(matrix(small_llm(shift_logits=True), small, 16)), flush=True)
    print("\n## A random block-causal model, blocks of 4\n\n3 prompts, gen_length 16.\n")
    print(table(matrix(small_llm(block_size=4), small, 16)))


@contextmanager
def _watch(name: str, repeat: int) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if repeat:
        seconds = time.perf_counter() - began
        print(f"{name}: repeat {repeat}, {seconds:.1f} s", file=sys.stderr, flush=True)
