"""CadLLM's controller along answers of up to 900 tokens: part `dynamics`.

The bundled model's answers are short, so two ways of filling a long canvas are looked at, both far from
training: `padding` decodes word problems without stopping at their end (what the published harness does
and counts), `essay` goes on with a held-out sentence and may not propose the end (no long text was ever
trained). Numbers are means over the forwards whose block begins in a tenth of the answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
from cells import HERE, load
from parts import CADLLM, PAPER, THRESHOLD
from prompts import word

from unmask.demo.sentences import check_sentence, split_sentences
from unmask.demo.tasks import held_out_set
from unmask.engine.outputs import Output

PATH = HERE / "results" / "dynamics.json"
N = 8
WIDE = {
    length: f"threshold(threshold=0.9, block_length={n})" for length, n in ((512, 64), (900, 60))
}
CASES = [
    *(
        ("padding", length, m)
        for length in (512, 900)
        for m in (THRESHOLD, WIDE[length], CADLLM, PAPER)
    ),
    *(("essay", 512, m) for m in (THRESHOLD, CADLLM)),
]
NOTES = ("block_length", "steps", "vocab_size", "threshold", "mean_confidence")
PARTS = 10


def ensure(say: Any) -> None:
    """Decode the canvases that are not stored yet."""
    found: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    for kind, length, method in CASES:
        label = f"{kind} {length} {method}"
        if label not in found:
            say(label)
            found[label] = decode(kind, length, method)
            PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def decode(kind: str, length: int, method: str) -> dict[str, Any]:
    """Fill canvases of one length and aggregate them."""
    llm = load("demo", 1.0)
    if kind == "padding":
        prompts = [example.prompt for example in word(N)]
        outs = llm.generate(
            prompts, method, "dual", gen_length=length, stop_at_eos=False, return_trace=True
        )
    else:
        starts = [split_sentences(e.answer)[0] for e in held_out_set("sentence", N)]
        outs = llm.generate(
            starts,
            method,
            "dual",
            gen_length=length,
            raw=True,
            logits_eos_inf=True,
            stop_at_eos=False,
            return_trace=True,
        )
    forwards = sum(out.num_forwards for out in outs)
    result: dict[str, Any] = {
        "forwards": forwards / N,
        "tokens_per_forward": N * length / forwards,
        "queries_per_token": sum(out.num_queries for out in outs) / (N * length),
        "parts": along(outs, length),
    }
    if kind == "essay":
        result["in_grammar"] = [in_grammar(llm, outs, half, length) for half in range(2)]
    return result


def along(outs: list[Output], length: int) -> list[dict[str, float]]:
    """Return tokens per forward and the controller's numbers in each tenth of the answer."""
    sums: list[dict[str, list[float]]] = [defaultdict(list) for _ in range(PARTS)]
    for out in outs:
        for step in out.trace or ():
            first = min((c.position for c in step.committed), default=out.prompt_length)
            part = sums[min(PARTS * (first - out.prompt_length) // length, PARTS - 1)]
            part["committed"].append(len(step.committed))
            for name in NOTES:
                if name in step.notes:
                    part[name].append(step.notes[name])
    return [{name: float(np.mean(values)) for name, values in part.items()} for part in sums]


def in_grammar(llm: Any, outs: list[Output], half: int, length: int) -> float:
    """Return the share of sentences in one half of the answers that belong to the model's grammar."""
    right: list[bool] = []
    for out in outs:
        start = out.prompt_length + half * length // 2
        text = llm.decode(out.canvas_ids[start : start + length // 2])
        right += [check_sentence(sentence) for sentence in split_sentences(text)[1:-1]]
    return float(np.mean(right)) if right else 0.0
