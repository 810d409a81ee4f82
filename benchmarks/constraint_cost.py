"""Cost of a constraint: compiling it, and its share of a step.

    python benchmarks/constraint_cost.py            (about 3 minutes on 2 cores; --quick: fewer layers)

A schema of 20 fields on a vocabulary of 126,464 tokens, made of random pieces of JSON-like text. Timed are
the compilation (vocabulary, automaton, and again cached), the host's work per step (allowed sets and
checked edits), and whole steps with and without the constraint, in turns, of a random model with LLaDA's
width and a few of its 32 layers; the share is given for these layers and, by their time, for all 32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

import unmask
from unmask import LLM
from unmask.bench.environment import machine
from unmask.engine import model_runner, scheduler
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer

VOCABULARY, NUM_FIELDS, GEN_LENGTH, BLOCK, LAYERS = 126_464, 20, 256, 32, 32
MASK, EOS = VOCABULARY - 1, VOCABULARY - 2
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:{}[]\"'\n"


class SyntheticTokenizer:
    """All bytes of ASCII, and random pieces of 2 to 9 characters."""

    chat_template = None

    def __init__(self) -> None:
        rng = random.Random(0)
        pieces = dict.fromkeys(chr(code) for code in range(128))
        while len(pieces) < VOCABULARY - 2:
            pieces[
                rng.choice(" ,:") * (rng.random() < 0.5)
                + "".join(rng.choices(ALPHABET, k=rng.randint(2, 8)))
            ] = None
        self.pieces = [*pieces, "", ""]

    def __len__(self) -> int:
        return VOCABULARY

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token by a name."""
        return {str(id_): id_ for id_ in range(VOCABULARY)}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Return the text of tokens."""
        return "".join(self.pieces[id_] for id_ in ids)


def schema() -> dict[str, object]:
    """Return a schema of 20 required fields of six kinds."""
    kinds: list[dict[str, object]] = [
        {"type": "string", "maxLength": 40},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"enum": ["red", "green", "blue"]},
        {"type": "array", "items": {"type": "string"}},
    ]
    fields = {f"field_{number}": kinds[number % len(kinds)] for number in range(NUM_FIELDS)}
    return {"type": "object", "properties": fields, "required": list(fields)}


def random_model(num_layers: int) -> Transformer:
    """Return a random model of LLaDA's shape with fewer layers."""
    spec = ModelSpec(
        family="llada", vocab_size=VOCABULARY, d_model=4096, num_layers=num_layers, num_heads=32,
        num_kv_heads=32, head_dim=128, d_ff=12288, rope_theta=500000.0, norm_eps=1e-5, max_length=4096,
        mask_id=MASK, eos_id=EOS, pad_id=EOS, rope_fp32=True, turn_end=None,
    )  # fmt: skip
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = Transformer(spec).to(dtype)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.02)
    return model.eval().requires_grad_(False)


class Timed:
    """A function that adds up the seconds of its calls."""

    def __init__(self, function):  # type: ignore[no-untyped-def]
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *args):  # type: ignore[no-untyped-def]
        """Call the function."""
        began = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return result


def steps_of(llm: LLM, constraint: unmask.TextConstraint | None, num_steps: int) -> list[float]:
    """Return the seconds of the first steps of a decode, after one to warm up."""
    canvas, seconds = llm.prompt_canvas([5] * 64, GEN_LENGTH), list[float]()
    events = llm.stream(canvas, "vanilla", constraint=constraint, block_length=BLOCK)
    next(events)
    for _ in range(num_steps):
        began = time.perf_counter()
        next(events)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="one layer, 4 steps")
    args = parser.parse_args()
    num_layers, num_steps = (1, 4) if args.quick else (args.layers, args.steps)
    print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    llm = LLM(random_model(num_layers), tokenizer=SyntheticTokenizer(), pack_weights=False)
    constraint = unmask.json_schema(schema())
    compiler = llm.requests.constraints
    began = time.perf_counter()
    assert compiler.tries
    print(f"vocabulary, once per model: {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    automaton = compiler.automaton(constraint, llm.stop_ids)
    print(
        f"compile: {time.perf_counter() - began:.2f} s; {automaton.num_states} states, "
        f"{automaton.num_classes} classes of tokens"
    )
    began = time.perf_counter()
    compiler.automaton(constraint, llm.stop_ids)
    print(f"compile, cached: {1e3 * (time.perf_counter() - began):.3f} ms")
    allowed, restrict = Timed(model_runner.allowed_tokens), Timed(scheduler.restrict)
    model_runner.allowed_tokens, scheduler.restrict = allowed, restrict
    plain, constrained = list[float](), list[float]()
    for _ in range(5):
        plain += steps_of(llm, None, num_steps)
        allowed.seconds = restrict.seconds = allowed.calls = 0
        constrained += steps_of(llm, constraint, num_steps)
    host = (allowed.seconds + restrict.seconds) / max(1, allowed.calls)
    free, bound = statistics.median(plain), statistics.median(constrained)
    whole = free * LAYERS / num_layers
    print(f"host work per step: {1e3 * host:.2f} ms")
    print(
        f"step of {num_layers} layers: {1e3 * free:.1f} ms, {1e3 * bound:.1f} ms with the constraint"
    )
    share, of_all = (bound - free) / free, (bound - free) / whole
    print(f"share: {share:+.1%} of a step of {num_layers} layers, {of_all:+.1%} of {LAYERS}")


if __name__ == "__main__":
    main()
