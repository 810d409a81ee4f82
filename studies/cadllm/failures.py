"""CadLLM outside of its ranges: part `failures`.

The failure signatures that are described for it: collapse of the accuracy (V_t and tau_min too small),
degenerate loops (against which f_rep widens V_t) and no progress (tau too high, or too few steps).
Loops are looked for in essays: held-out sentences that are continued without an end, where the model is
far from its training.
"""

from __future__ import annotations

import json
from typing import Any

from cells import BATCH, HERE, load
from parts import CADLLM, THRESHOLD
from prompts import SETS, is_invalid

from unmask.demo.sentences import split_sentences
from unmask.demo.tasks import check, held_out_set
from unmask.engine.outputs import Output

PATH = HERE / "results" / "failures.json"
N, NUM_SLOW, NUM_ESSAYS, ESSAY_LENGTH = 64, 32, 8, 256
MIN_REPEATS = 4
"""Repetitions in a row of 1 to 4 tokens that count as a loop."""


def vocabulary(size: int) -> str:
    """Return the knobs of a constant V_t."""
    return f"min_vocab_size={size}, max_vocab_size={size}"


COLLAPSE = {
    "published ranges": CADLLM,
    "V_t = 18": f"cadllm({vocabulary(18)})",
    "V_t = 4": f"cadllm({vocabulary(4)})",
    "V_t = 2": f"cadllm({vocabulary(2)})",
    "V_t = 1": f"cadllm({vocabulary(1)})",
    "tau_min 0.3": "cadllm(tau_min=0.3)",
    "tau_min 0.3, reached in 4 forwards": "cadllm(tau_min=0.3, initial_steps=4, max_steps=4)",
    "tau_min 0, reached in 4 forwards": "cadllm(tau_min=0, initial_steps=4, max_steps=4)",
    "tau_min 0.3, V_t = 18": f"cadllm(tau_min=0.3, {vocabulary(18)})",
    "tau = 0.3 throughout": "cadllm(tau_base=0.3, tau_min=0.3)",
    "tau = 0.3 throughout, V_t = 18": f"cadllm(tau_base=0.3, tau_min=0.3, {vocabulary(18)})",
    "tau = 0": "cadllm(tau_base=0, tau_min=0)",
}
OFF = "adaptive_repetition=false"
NARROW = "min_vocab_size=2, initial_vocab_size=2"
LOOPS = {
    "threshold 0.9": THRESHOLD,
    "published ranges, f_rep on": CADLLM,
    "published ranges, f_rep off": f"cadllm({OFF})",
    "V_t from 2, f_rep on": f"cadllm({NARROW})",
    "V_t from 2, f_rep off": f"cadllm({NARROW}, {OFF})",
    "V_t from 2, tau = 0.3, f_rep on": f"cadllm({NARROW}, tau_base=0.3, tau_min=0.3)",
    "V_t from 2, tau = 0.3, f_rep off": f"cadllm({NARROW}, tau_base=0.3, tau_min=0.3, {OFF})",
}
STALLS = {
    "published ranges": CADLLM,
    "tau = 1": "cadllm(tau_base=1, tau_min=1)",
    "tau = 1, S = 2": "cadllm(tau_base=1, tau_min=1, initial_steps=2, max_steps=2)",
    "paper, published ranges": "cadllm(variant=paper)",
    "paper, tau = 1": "cadllm(variant=paper, tau_base=1, tau_min=1)",
    "paper, tau = 1, S = 2": (
        "cadllm(variant=paper, tau_base=1, tau_min=1, initial_steps=2, max_steps=2)"
    ),
    "paper, S = 2": "cadllm(variant=paper, initial_steps=2, max_steps=2)",
}
CASES = [
    *(("word", N, method) for method in COLLAPSE.values()),
    *(("essay", NUM_ESSAYS, method) for method in LOOPS.values()),
    *(("word", NUM_SLOW, method) for method in STALLS.values()),
    *(("sudoku", N, method) for method in COLLAPSE.values()),
]


def ensure(say: Any) -> None:
    """Decode the cases that are not stored yet."""
    found: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    for prompts, n, method in CASES:
        label = f"{prompts} {n} {method}"
        if label not in found:
            say(label)
            found[label] = essays(method) if prompts == "essay" else answers(prompts, n, method)
            PATH.write_text(json.dumps(found) + "\n", encoding="utf-8")


def answers(prompts: str, n: int, method: str) -> dict[str, Any]:
    """Answer prompts of a task."""
    examples = SETS[prompts](n)
    outs = load("demo", 1.0).generate(
        [example.prompt for example in examples],
        method,
        "dual",
        gen_length=64,
        max_batch_size=BATCH,
        return_trace=True,
    )
    pairs = list(zip(examples, outs, strict=True))
    return facts(outs, [list(out.token_ids) for out in outs]) | {
        "right": [int(check(example, out.text)) for example, out in pairs],
        "invalid": sum(is_invalid(example, out.text) for example, out in pairs),
    }


def essays(method: str) -> dict[str, Any]:
    """Continue held-out sentences to a length that was never trained."""
    starts = [split_sentences(e.answer)[0] for e in held_out_set("sentence", NUM_ESSAYS)]
    outs = load("demo", 1.0).generate(
        starts,
        method,
        "dual",
        gen_length=ESSAY_LENGTH,
        raw=True,
        logits_eos_inf=True,
        stop_at_eos=False,
        return_trace=True,
    )
    return facts(outs, [list(out.canvas_ids[out.prompt_length :]) for out in outs])


def facts(outs: list[Output], texts: list[list[int]]) -> dict[str, Any]:
    """Return the counts of decodes; `in_loops` is the share of positions that repeat."""
    sizes = [step.notes.get("vocab_size", 0.0) for out in outs for step in out.trace or ()]
    return {
        "tokens": sum(map(len, texts)),
        "forwards": sum(out.num_forwards for out in outs),
        "forced": sum(out.num_forced for out in outs),
        "vocab_size": sum(sizes) / len(sizes),
        "loops": sum(looping(text) > 0 for text in texts),
        "in_loops": sum(map(looping, texts)) / max(1, sum(map(len, texts))),
    }


def looping(ids: list[int]) -> int:
    """Return the number of positions in loops: 1 to 4 tokens, at least MIN_REPEATS times in a row."""
    inside: set[int] = set()
    for n in range(1, 5):
        same = 0
        for i in range(n, len(ids) + 1):
            if i < len(ids) and ids[i] == ids[i - n]:
                same += 1
                continue
            if same >= n * (MIN_REPEATS - 1):
                inside.update(range(i - same - n, i))
            same = 0
    return len(inside)
