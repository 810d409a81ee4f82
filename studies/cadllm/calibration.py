"""Calibration of the model's top proposal by confidence: part `reliability`.

Teacher-forced: the true answer of every prompt with each token masked with a probability drawn
uniformly per prompt; a proposal is right when it is the true token. Intervals: bootstrap over prompts.
Sharpened logits use the same states.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from cells import HERE, load
from parts import SHARPNESS, SHIFTED, SOME
from prompts import SETS
from stats import resamples

from unmask.demo.tasks import Example

PATH = HERE / "results" / "reliability.json"
BINS = 10
SURE = 0.9


def ensure(say: Any) -> None:
    """Measure every shifted set, and word problems under every sharpness."""
    found: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    wanted = {name: (name, 1.0) for name in SHIFTED}
    wanted |= {f"sharpness {s:g}": ("word", s) for s in SHARPNESS}
    for label, (name, sharpness) in wanted.items():
        if label not in found:
            say(f"reliability of {label}")
            found[label] = reliability(SETS[name](SOME), sharpness)
            PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def reliability(examples: list[Example], sharpness: float) -> dict[str, Any]:
    """Return the diagram, the expected calibration error, and the error rate of sure proposals."""
    table = np.stack([_bins(*proposals(e, i, sharpness)) for i, e in enumerate(examples)])
    n = len(table)
    drawn = np.tensordot(resamples(n), table, axes=1)
    total = table.sum(0)
    return {
        "n": n,
        "bins": total.round(4).tolist(),
        "ece": _with_interval(_ece(total), _ece(drawn)),
        "sure_and_wrong": _with_interval(_wrong(total), _wrong(drawn)),
        "right": _with_interval(_right(total), _right(drawn)),
    }


def proposals(example: Example, index: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (confidence, is right) of the top proposal at every masked token of one true answer."""
    llm = load("demo", 1.0)
    assert llm.tokenizer is not None, "the bundled model has a tokenizer"
    prompt = llm.prompt_ids(example.prompt)
    answer = llm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt, *answer, *[llm.spec.eos_id] * 4]])
    generator = torch.Generator().manual_seed(index)
    level = torch.rand((), generator=generator)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    chosen = torch.rand(len(answer), generator=generator) < level
    masked[0, len(prompt) : len(prompt) + len(answer)] = chosen
    with torch.inference_mode():
        logits = llm.model(torch.where(masked, llm.spec.mask_id, ids))[masked].double()
    confidence, token = (logits * sharpness).softmax(-1).max(-1)
    return confidence.numpy(), (token == ids[masked]).numpy()


def _bins(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (sum of confidences, right ones, tokens) by bin; the last row is those above SURE."""
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = np.zeros((BINS + 1, 3))
    values = np.stack((confidence, right, np.ones_like(confidence)), 1)
    np.add.at(sums, index, values)
    sums[BINS] = values[confidence >= SURE].sum(0)
    return sums


def _ece(sums: np.ndarray) -> np.ndarray:
    inside = sums[..., :BINS, :]
    return np.abs(inside[..., 0] - inside[..., 1]).sum(-1) / inside[..., 2].sum(-1)


def _wrong(sums: np.ndarray) -> np.ndarray:
    return 1 - sums[..., BINS, 1] / np.maximum(sums[..., BINS, 2], 1)


def _right(sums: np.ndarray) -> np.ndarray:
    return sums[..., :BINS, 1].sum(-1) / sums[..., :BINS, 2].sum(-1)


def _with_interval(value: Any, drawn: np.ndarray) -> list[float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [round(float(number), 4) for number in (value, low, high)]
