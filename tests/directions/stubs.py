"""Models whose numbers are known, and decodes of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from tiny import (
    EOS,
    MASK,
    TURN_END,
    VOCAB,
    StubTokenizer,
    TableModel,
    tiny_llm,
    tiny_spec,
    trace_of,
)

from unmask import LLM

PROMPT = [7, 8, 9]
LENGTH = 16
POSITIONS = list(range(len(PROMPT), len(PROMPT) + LENGTH))
ENDS = (EOS, TURN_END)


@functools.cache
def random_llm(seed: int = 0, sure: float = 1.5, block_size: int | None = None) -> LLM:
    return tiny_llm("llada", seed, sure, block_size=block_size)


@functools.cache
def table(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    """Logits by position: no end token and no token that cannot be proposed is likely."""
    rows = torch.randn(129, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale
    rows[:, [*ENDS, MASK, 62, 63]] = -30.0
    return rows


def table_llm(rows: torch.Tensor) -> LLM:
    return LLM(TableModel(tiny_spec(), rows), tokenizer=StubTokenizer())


def probabilities(rows: torch.Tensor) -> np.ndarray:
    return rows[POSITIONS].double().softmax(-1).numpy()


def ranking(rows: torch.Tensor, score: str = "confidence", counts: dict | None = None) -> list[int]:
    """The generated positions by descending score, computed here."""
    p = probabilities(rows)
    top = np.sort(p, axis=-1)
    if score == "confidence":
        value = top[:, -1]
    elif score == "margin":
        value = top[:, -1] - top[:, -2]
    elif score == "entropy":
        value = (p * np.log(np.maximum(p, 1e-300))).sum(-1)
    else:
        assert counts is not None
        value = top[:, -1] * surprisal(rows, counts)
    return [POSITIONS[i] for i in np.argsort(-value, kind="stable")]


def surprisal(rows: torch.Tensor, counts: dict) -> np.ndarray:
    total = sum(counts.values())
    best = probabilities(rows).argmax(-1)
    return np.array([-np.log(counts.get(int(token), 1) / total + 1e-9) for token in best])


def counts_file(folder: Path, counts: dict[int, int]) -> str:
    path = folder / "counts.json"
    table = {str(key): value for key, value in counts.items()}
    path.write_text(json.dumps({"num_token": sum(counts.values()), "p_baseline_dict": table}))
    return str(path)


SLOW: dict[str, dict[str, object]] = {
    "ar": {},
    "block_diffusion": {"block_length": LENGTH},
    "cadllm": {"adaptive_threshold": False, "threshold": 1.0, "initial_block_length": LENGTH},
    "credit": {"threshold": 1.0, "credit_alpha": 0.0, "block_length": LENGTH},
    "daedal": {
        "threshold": 1.0,
        "initial_gen_length": LENGTH,
        "max_gen_length": LENGTH,
        "block_length": LENGTH,
    },
    "dream": {"schedule": "even", "alg": "maskgit_plus"},
    "eb_sampler": {"gamma": 0.0, "score": "confidence", "block_length": LENGTH},
    "factor": {"factor": 0.0, "block_length": LENGTH},
    "hierarchy": {"threshold": 1.0, "low_threshold": 1.0, "block_length": LENGTH},
    "joint_threshold": {"threshold": 1.0, "max_post_edit_steps": 0, "block_length": LENGTH},
    "klass": {"kl_threshold": 1e-300, "block_length": LENGTH},
    "pc_sampler": {"lambd": 0.0, "debias": False, "block_length": LENGTH},
    "threshold": {"threshold": 1.0, "block_length": LENGTH},
    "vanilla": {"block_length": LENGTH},
    "wino": {"wide_in_thres": 1.0, "block_length": LENGTH},
}
"""Knobs with which each decoder commits one token per forward, of a single block."""


def decode(llm: LLM, decoder: str, cache: str = "none", **knobs: object):
    """Decode; a knob of None stands as the default."""
    knobs = {"gen_length": LENGTH, "stop_at_eos": False} | knobs
    if decoder == "daedal":
        del knobs["gen_length"]
    return llm.generate([PROMPT], decoder, cache, return_trace=True, **knobs)[0]


def slowly(llm: LLM, decoder: str, **knobs: object):
    return decode(llm, decoder, **(SLOW[decoder] | knobs))


def order(output: object) -> list[int]:
    return [position for step in trace_of(output) for position, _ in step]


def tokens(output: object) -> list[int]:
    return output.canvas_ids[len(PROMPT) :]


def notes(output: object, name: str) -> list[float]:
    return [step.notes[name] for step in output.trace]


def inversions(positions: list[int]) -> int:
    return sum(a > b for i, a in enumerate(positions) for b in positions[i:])
