"""Measure the bundled model on its held-out sets and write the tables of its model card.

`python -m unmask.demo.evaluate [--model FOLDER] [--limit N] [--write]` (`make card`). Everything is
deterministic: the sets, the decoding, the masks of the reliability diagram.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.demo.sentences import check_sentence
from unmask.demo.tasks import check, held_out_set
from unmask.models import BUNDLED
from unmask.own_code import Reference

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class CardSetting:
    """One line of the table: a held-out set and its decoding method.

    `is_aim` marks the tasks that the model is trained for; the others use two fifths of the examples.
    """

    label: str
    task: str
    decoder: str
    cache: str
    gen_length: int
    block_length: int
    knobs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    is_aim: bool = False


def settings() -> list[CardSetting]:
    """Return the card's settings; vanilla commits one token a forward."""
    rows = [
        CardSetting("word problems", "word_problem", "vanilla", "none", 64, 8, is_aim=True),
        CardSetting("word problems", "word_problem", "vanilla", "none", 64, 32),
        CardSetting(
            "word problems", "word_problem", "threshold", "none", 64, 32, {"threshold": 0.9}
        ),
        CardSetting(
            "word problems", "word_problem", "threshold", "dual", 64, 32, {"threshold": 0.9}
        ),
        CardSetting("word problems", "word_problem", "factor", "prefix", 64, 32, {"factor": 1.0}),
        CardSetting("word problems", "word_problem", "eb_sampler", "none", 64, 32, {"gamma": 0.1}),
        CardSetting("word problems", "word_problem", "vanilla", "none", 64, 32, {"steps": 16}),
    ]
    for blanks, block_length in ((6, 8), (8, 8), (8, 32), (10, 8)):
        rows.append(_sudoku(blanks, "vanilla", block_length))
    rows.append(_sudoku(8, "threshold", 8, {"threshold": 0.9}))
    rows.append(CardSetting("Countdown, 3 numbers", "countdown", "vanilla", "none", 32, 32))
    return rows


def _sudoku(
    blanks: int, decoder: str, block_length: int, knobs: dict[str, Any] | None = None
) -> CardSetting:
    return CardSetting(
        f"4x4 Sudoku, {blanks} blanks",
        "sudoku",
        decoder,
        "none",
        32,
        block_length,
        knobs or {},
        {"blanks": blanks},
        is_aim=blanks == 8 and decoder == "vanilla",
    )


def accuracy(llm: LLM, setting: CardSetting, limit: int) -> dict[str, float]:
    """Measure a setting: share right with its standard error, forwards, tokens per forward, seconds."""
    examples = held_out_set(setting.task, limit, **setting.options)
    began = time.perf_counter()
    outs = llm.generate(
        [example.prompt for example in examples],
        Reference(setting.decoder),
        Reference(setting.cache),
        gen_length=setting.gen_length,
        block_length=setting.block_length,
        max_batch_size=64,
        progress=False,
        **setting.knobs,
    )
    seconds = time.perf_counter() - began
    right = sum(check(example, out.text) for example, out in zip(examples, outs, strict=True))
    share = right / len(examples)
    forwards = sum(out.num_forwards for out in outs)
    committed = sum(len(out.token_ids) for out in outs)
    return {
        "n": len(examples),
        "right": share,
        "error": math.sqrt(share * (1 - share) / len(examples)),
        "forwards": forwards / len(outs),
        "tokens_per_forward": committed / forwards,
        "waste": sum(out.num_wasted for out in outs) / sum(out.num_queries for out in outs),
        "seconds": seconds,
    }


def infilling(llm: LLM, limit: int) -> dict[str, float]:
    """Infill held-out sentences with a third of the tokens blanked; return the share in the grammar."""
    import random

    examples = held_out_set("sentence", limit)
    right = forwards = 0
    for index, example in enumerate(examples):
        rng = random.Random(index)
        ids = answer_ids(llm, example.answer)
        count = max(1, len(ids) // 3)
        start = rng.randrange(len(ids) - count + 1)
        parts: list[str | int] = [llm.decode(ids[:start]), count, llm.decode(ids[start + count :])]
        out = llm.infill([part for part in parts if part != ""])
        right += check_sentence(out.text)
        forwards += out.num_forwards
    share = right / len(examples)
    error = math.sqrt(share * (1 - share) / len(examples))
    return {
        "n": len(examples),
        "right": share,
        "error": error,
        "forwards": forwards / len(examples),
    }


def answer_ids(llm: LLM, text: str) -> list[int]:
    """Return the token ids of a text without special tokens."""
    assert llm.tokenizer is not None, "the demo model has a tokenizer"
    return list(llm.tokenizer(text, add_special_tokens=False)["input_ids"])


def reliability(llm: LLM, limit: int, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean confidence, share right, count) of the top proposal per confidence bin.

    Teacher-forced on held-out word problems: the true answer with each token masked with a probability
    drawn uniformly per example; a proposal is right when it is the true token. Padding is not counted.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    for example in held_out_set("word_problem", limit):
        prompt = llm.prompt_ids(example.prompt)
        answer = answer_ids(llm, example.answer)
        ids = torch.tensor([[*prompt, *answer, *[llm.spec.eos_id] * 4]])
        masked = torch.zeros_like(ids, dtype=torch.bool)
        chosen = torch.rand(len(answer), generator=generator) < torch.rand((), generator=generator)
        masked[0, len(prompt) : len(prompt) + len(answer)] = chosen
        with torch.inference_mode():
            logits = llm.model(torch.where(masked, llm.spec.mask_id, ids))[masked].double()
        confidence, token = logits.softmax(-1).max(-1)
        index = (confidence * bins).long().clamp(max=bins - 1)
        hit = (token == ids[masked]).double()
        for column, values in enumerate((confidence, hit, torch.ones_like(hit))):
            sums[:, column].index_add_(0, index, values)
    return [(float(c / max(n, 1)), float(h / max(n, 1)), int(n)) for c, h, n in sums.tolist()]


def calibration_error(rows: Sequence[tuple[float, float, int]]) -> float:
    """Return the expected calibration error of a reliability diagram."""
    total = sum(count for _, _, count in rows)
    return sum(abs(c - right) * count for c, right, count in rows) / max(1, total)


def table(llm: LLM, limit: int) -> str:
    """Measure everything and return the measured part of the card as Markdown."""
    lines = [
        "| held-out set | decoder | cache | gen / block | n | exact | forwards "
        "| answer tokens per forward | waste |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings():
        score = accuracy(llm, setting, limit if setting.is_aim else max(1, 2 * limit // 5))
        knobs = "".join(f" {key}={value}" for key, value in setting.knobs.items())
        lines.append(
            f"| {setting.label} | {setting.decoder}{knobs} | {setting.cache} | {setting.gen_length} / "
            f"{setting.block_length} | {score['n']:.0f} | {100 * score['right']:.1f} ± "
            f"{100 * score['error']:.1f} % | {score['forwards']:.1f} | {score['tokens_per_forward']:.2f} | "
            f"{100 * score['waste']:.0f} % |"
        )
        say(f"{lines[-1]}  ({score['seconds']:.0f} s)")
    score = infilling(llm, max(1, 2 * limit // 5))
    lines.append(
        f"| infill: a third of a sentence, result in the grammar | vanilla | none | - | {score['n']:.0f}"
        f" | {100 * score['right']:.1f} ± {100 * score['error']:.1f} % | {score['forwards']:.1f} "
        f"| 1.00 | - |"
    )
    say(lines[-1])
    rows = reliability(llm, limit)
    lines += ["", "Reliability (held-out word problems, masked at random rates, top proposal):", ""]
    lines += ["```", "confidence      right    tokens"]
    for low, (mean, right, count) in enumerate(rows):
        bar = "#" * round(30 * right)
        lines.append(
            f"{low / 10:.1f}-{low / 10 + 0.1:.1f}  {mean:.3f}  {right:.3f}  {count:7d}  {bar}"
        )
    lines += ["```", "", f"Expected calibration error: {calibration_error(rows):.3f}."]
    return "\n".join(lines)


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> None:
    """Measure; show the tables, or write them into the card."""
    from unmask.engine.llm import LLM

    parser = argparse.ArgumentParser(prog="python -m unmask.demo.evaluate", description=__doc__)
    parser.add_argument("--model", default="demo", help="bundled name or folder (default: demo)")
    parser.add_argument("--limit", type=int, default=500, help="examples per set (default: 500)")
    parser.add_argument("--write", action="store_true", help="rewrite the bundled model's card")
    options = parser.parse_args(arguments)
    text = table(LLM(options.model, dtype="float32", device="cpu"), options.limit)
    card = BUNDLED["demo"] / "README.md"
    if options.write:
        head, rest = card.read_text(encoding="utf-8").split(BEGIN)
        tail = rest.split(END)[1]
        card.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
        say(f"wrote {Path(card)}")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
