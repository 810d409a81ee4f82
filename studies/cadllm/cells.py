"""One measured cell: a model, a prompt set, a method and a cache; a line of `results/cells.jsonl`.

A line has the cell's settings and a number for every prompt, so that every table, difference and
interval can be made again without decoding. Cells that are there are not measured again.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

from prompts import SETS, is_invalid

import unmask
from unmask.demo.tasks import Example, check
from unmask.engine.outputs import Output
from unmask.engine.tokenizer import load_tokenizer
from unmask.models import load_model, resolve_model

HERE = Path(__file__).parent
STORE = HERE / "results" / "cells.jsonl"
MODELS = {
    "demo": "demo",
    "dream": str(HERE / "models" / "dream"),
    "blocks": str(HERE / "models" / "blocks"),
}
BINS = 20
BATCH = 64


@dataclass(frozen=True)
class Cell:
    """A prompt set and a method; `sharpness` multiplies the logits (1: the unchanged model)."""

    model: str
    prompts: str
    method: str
    cache: str
    gen_length: int
    n: int
    sharpness: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Return the settings as one line."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass
class Measured:
    """Result of a cell: one number per prompt, and the committed tokens by confidence.

    `bins[i]`: (sum of confidences, right ones, tokens) of the answer's tokens that were committed with a
    confidence in `[i, i + 1) / BINS`. A token is right when it is on a longest common subsequence of the
    answer and the true one (a Sudoku's: when it stands at its place).
    """

    right: list[int]
    invalid: list[int]
    tokens: list[int]
    forwards: list[int]
    queries: list[int]
    logit_rows: list[int]
    bins: list[list[float]] = field(default_factory=list)
    resolved: str = ""
    num_forced: int = 0


@cache
def load(model: str, sharpness: float) -> unmask.LLM:
    """Load a model of the study; `sharpness` scales its LM head, hence all logits."""
    script = HERE.parents[1] / "scripts" / "fixture_weights.py"
    runpy.run_path(str(script))["make"]((HERE / "models",))
    network = load_model(MODELS[model], "float32", "cpu")
    if sharpness != 1:
        network.lm_head.weight.mul_(sharpness)
    return unmask.LLM(network, tokenizer=load_tokenizer(resolve_model(MODELS[model])))


def stored() -> dict[str, Measured]:
    """Read all measured cells by key."""
    if not STORE.exists():
        return {}
    lines = (json.loads(line) for line in STORE.read_text(encoding="utf-8").splitlines())
    return {_key(line): Measured(**line["got"]) for line in lines}


def measure(cell: Cell) -> Measured:
    """Decode the prompts of a cell."""
    llm = load(cell.model, cell.sharpness)
    options = dict(cell.options)
    if "frequencies" in options:  # the cell names the file, so that its key is the same everywhere
        options["frequencies"] = str(STORE.parent / options["frequencies"])
    examples = SETS[cell.prompts](cell.n)
    outs = llm.generate(
        [example.prompt for example in examples],
        cell.method,
        cell.cache,
        gen_length=None if cell.method.startswith("daedal") else cell.gen_length,
        max_batch_size=BATCH,
        return_trace=True,
        **options,
    )
    pairs = list(zip(examples, outs, strict=True))
    return Measured(
        right=[int(check(example, out.text)) for example, out in pairs],
        invalid=[int(is_invalid(example, out.text)) for example, out in pairs],
        tokens=[len(out.token_ids) for out in outs],
        forwards=[out.num_forwards for out in outs],
        queries=[out.num_queries for out in outs],
        logit_rows=[out.num_logit_rows for out in outs],
        bins=confidence_bins(llm, pairs),
        resolved=f"{outs[0].method} / {outs[0].cache}",
        num_forced=sum(out.num_forced for out in outs),
    )


def confidence_bins(llm: unmask.LLM, pairs: list[tuple[Example, Output]]) -> list[list[float]]:
    """Bin the tokens of the answers by the confidence of their last commit: see `Measured`."""
    assert llm.tokenizer is not None, "the study's models have tokenizers"
    sums: Counter[tuple[int, int]] = Counter()
    for example, out in pairs:
        truth = llm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        got = list(out.token_ids)
        if example.task == "sudoku":
            right = {i for i, (a, b) in enumerate(zip(got, truth, strict=False)) if a == b}
        else:
            matcher = SequenceMatcher(None, got, truth, autojunk=False)
            right = {m.a + i for m in matcher.get_matching_blocks() for i in range(m.size)}
        confidences = {
            commit.position - out.prompt_length: commit.confidence
            for step in out.trace or ()
            for commit in step.committed
        }
        for place in range(len(got)):
            if place in confidences:
                confidence = confidences[place]
                index = min(int(confidence * BINS), BINS - 1)
                for column, value in enumerate((confidence, place in right, 1)):
                    sums[index, column] += value
    return [[round(float(sums[i, c]), 4) for c in range(3)] for i in range(BINS)]


def ensure(cells: Iterable[Cell], say: Any) -> None:
    """Measure the cells that are not stored yet, storing each as soon as it is finished."""
    done = stored()
    waiting = [cell for cell in dict.fromkeys(cells) if cell.key not in done]
    for number, cell in enumerate(waiting, 1):
        say(
            f"{number}/{len(waiting)} {cell.model} {cell.prompts} {cell.method} {cell.cache} "
            f"gen {cell.gen_length} n {cell.n} sharpness {cell.sharpness}"
        )
        got = measure(cell)
        line = json.dumps({"cell": asdict(cell), "got": asdict(got)}, separators=(",", ":"))
        with STORE.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def forget(cells: Iterable[Cell]) -> None:
    """Remove cells from the store."""
    gone = {cell.key for cell in cells}
    if STORE.exists():
        lines = STORE.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _key(json.loads(line)) not in gone]
        STORE.write_text("".join(kept), encoding="utf-8")


def _key(line: dict[str, Any]) -> str:
    return json.dumps(line["cell"], sort_keys=True)
