"""Cost of a constraint: compiling it, and its share of a step.

    python benchmarks/constraint_cost.py            (about 2 minutes of one core; 5 GB)

A schema of 20 fields on a vocabulary of 126,464 tokens, made of random pieces of JSON-like text. Timed are
the compilation (vocabulary, automaton, and again cached), and steps of a narrow random model with and
without the constraint, in turns: their difference is what the constraint costs, on the host (allowed sets,
checked edits) and in the sampler, neither of which depends on the network's width. It is compared with a
step of LLaDA-8B's shape: 32 times one of its layers on all positions, and its head on a block. All are
seconds of one thread's processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

import unmask
from unmask import LLM
from unmask.bench.environment import machine
from unmask.engine import model_runner, scheduler
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer, topology

VOCABULARY, NUM_FIELDS, NUM_PROMPT, GEN_LENGTH, BLOCK = 126_464, 20, 64, 256, 32
LAYERS, WIDTH = 32, 4096
REPEATS = 5
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


def shape(num_layers: int, vocab_size: int, width: int) -> ModelSpec:
    """Return the sizes of a model of LLaDA's kind; width 4096 is LLaDA-8B's."""
    heads = width // 128
    return ModelSpec(
        family="llada", vocab_size=vocab_size, d_model=width, num_layers=num_layers, num_heads=heads,
        num_kv_heads=heads, head_dim=128, d_ff=3 * width, rope_theta=500000.0, norm_eps=1e-5,
        max_length=4096,
        mask_id=vocab_size - 1, eos_id=vocab_size - 2, pad_id=vocab_size - 2, rope_fp32=True, turn_end=None,
    )  # fmt: skip


def random_model(spec: ModelSpec) -> Transformer:
    """Return a random model in float32 on the CPU."""
    torch.manual_seed(0)
    model = Transformer(spec)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.02)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def llada_step(num_positions: int, num_rows: int) -> tuple[float, float]:
    """Return the seconds of LLaDA-8B's layers on so many positions, and of its head on so many rows."""
    spec = shape(1, 64, WIDTH)
    model = random_model(spec)
    ids, at = torch.zeros(1, num_positions, dtype=torch.int64), torch.arange(num_positions)[None]
    layer = timed(lambda: model.hidden(ids, at, topology(spec, at, None)))
    weight, states = torch.full((VOCABULARY, WIDTH), 0.02), torch.ones(num_rows, WIDTH)
    return LAYERS * layer, timed(lambda: torch.nn.functional.linear(states, weight))


def timed(run: Callable[[], object]) -> float:
    """Return the median seconds of three calls, after one to warm up."""
    seconds = []
    for _ in range(4):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])


class Timed:
    """A function that adds up the seconds of its calls."""

    def __init__(self, function):  # type: ignore[no-untyped-def]
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *args):  # type: ignore[no-untyped-def]
        """Call the function."""
        began = time.process_time()
        result = self.function(*args)
        self.seconds += time.process_time() - began
        self.calls += 1
        return result


def steps_of(llm: LLM, constraint: unmask.TextConstraint | None, num_steps: int) -> list[float]:
    """Return the seconds of the first steps of a decode, after one to warm up."""
    canvas, seconds = llm.prompt_canvas([5] * NUM_PROMPT, GEN_LENGTH), list[float]()
    events = llm.stream(canvas, "vanilla", constraint=constraint, block_length=BLOCK)
    next(events)
    for _ in range(num_steps):
        began = time.process_time()
        next(events)
        seconds.append(time.process_time() - began)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each decode")
    num_steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    llm = LLM(
        random_model(shape(1, VOCABULARY, 128)), tokenizer=SyntheticTokenizer(), pack_weights=False
    )
    constraint = unmask.json_schema(schema())
    compiler = llm.requests.constraints
    began = time.process_time()
    assert compiler.tries
    print(f"vocabulary, once per model: {time.process_time() - began:.2f} s")
    began = time.process_time()
    automaton = compiler.automaton(constraint, llm.stop_ids)
    print(
        f"compile: {time.process_time() - began:.2f} s; {automaton.num_states} states, "
        f"{automaton.num_classes} classes of tokens"
    )
    began = time.process_time()
    compiler.automaton(constraint, llm.stop_ids)
    print(f"compile, cached: {1e3 * (time.process_time() - began):.3f} ms")
    allowed, restrict = Timed(model_runner.allowed_tokens), Timed(scheduler.restrict)
    model_runner.allowed_tokens, scheduler.restrict = allowed, restrict
    plain, constrained = list[float](), list[float]()
    for _ in range(REPEATS):
        plain += steps_of(llm, None, num_steps)
        allowed.seconds = restrict.seconds = allowed.calls = 0
        constrained += steps_of(llm, constraint, num_steps)
    calls = max(1, allowed.calls)
    host = 1e3 * allowed.seconds / calls, 1e3 * restrict.seconds / calls
    free, bound = statistics.median(plain), statistics.median(constrained)
    print(f"host work per step: allowed sets {host[0]:.2f} ms, checked edits {host[1]:.2f} ms")
    print(
        f"step of the narrow model: {1e3 * free:.1f} ms, {1e3 * bound:.1f} ms with the constraint"
    )
    layers, head = llada_step(NUM_PROMPT + GEN_LENGTH, BLOCK)
    print(f"step of LLaDA-8B's shape: {LAYERS} layers {layers:.2f} s, head {head:.2f} s")
    share = (bound - free) / (layers + head)
    print(f"share of the constraint: {share:.2%}")


if __name__ == "__main__":
    main()
