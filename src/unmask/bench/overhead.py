"""Overhead of a decoder: all time of a decode that is neither network nor LM head."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from unmask import decoders
from unmask.engine.llm import LLM
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer
from unmask.own_code import Reference

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Overhead:
    """Time of one decode in seconds: of all its forwards, and everything else."""

    decoder: str
    num_forwards: int
    forward_s: float
    added_s: float

    @property
    def share(self) -> float:
        """Added time over forward time."""
        return self.added_s / self.forward_s


def random_llm(
    vocab_size: int, width: int, layers: int, dtype: torch.dtype, head_width: int = 128
) -> LLM:
    """Return a LLaDA of random weights; fewer layers than a real model overstate a decoder's share."""
    heads = max(1, width // head_width)
    spec = ModelSpec(
        family="llada",
        vocab_size=vocab_size,
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=3 * width,
        rope_theta=500000.0,
        norm_eps=1e-5,
        max_length=4096,
        mask_id=vocab_size - 128,
        eos_id=vocab_size - 383,
        pad_id=vocab_size - 383,
        rope_fp32=True,
    )
    with torch.device("meta"):
        model = Transformer(spec)
    model = model.to_empty(device="cpu").to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            scale = parameter.shape[1] ** -0.5
            parameter.uniform_(-2 * scale, 2 * scale, generator=generator)
    return LLM(model)


class Stopwatch(Generic[P, T]):
    """A function that adds the duration of its calls to `seconds`."""

    def __init__(self, function: Callable[P, T]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: P.args, **options: P.kwargs) -> T:
        """Call the function and return its result."""
        began = time.perf_counter()
        result = self.function(*args, **options)
        self.seconds += time.perf_counter() - began
        return result


def length_options(
    decoder: str, gen_length: int, initial_gen_length: int, block_length: int
) -> dict[str, Any]:
    """Return the options of `LLM.generate` that set the length of the answer, and of its blocks if any."""
    options: dict[str, Any] = {"gen_length": gen_length}
    if decoders.finds_length(decoder):
        options = {"initial_gen_length": initial_gen_length, "max_gen_length": gen_length}
    if "block_length" in decoders.knob_names(decoder):
        options["block_length"] = block_length
    return options


def measure(
    llm: LLM, name: str, gen_length: int, prompt_length: int, repeat: int, batch: int = 1
) -> Overhead:
    """Return the median of `repeat` decodes after a warm-up, on the CPU, where calls do not overlap.

    `batch` prompts share the forwards. The network, and the LM head on the rows that the decoder asks for,
    count as forward time.
    """
    lengths = length_options(name, gen_length, gen_length, min(32, gen_length))
    prompts = [list(range(10 + row, 10 + row + prompt_length)) for row in range(batch)]
    runs: list[Overhead] = []
    hidden, head = llm.model.hidden, llm.model.head
    for _ in range(repeat + 1):
        network, lm_head = Stopwatch(hidden), Stopwatch(head)
        llm.model.hidden, llm.model.head = network, lm_head  # type: ignore[method-assign]
        try:
            began = time.perf_counter()
            out = llm.generate(
                prompts, Reference(name), stop_at_eos=False, progress=False, **lengths
            )[0]
            total = time.perf_counter() - began
        finally:
            llm.model.hidden, llm.model.head = hidden, head  # type: ignore[method-assign]
        forward = network.seconds + lm_head.seconds
        runs.append(Overhead(name, out.num_forwards, forward, total - forward))
    middle = median(run.share for run in runs[1:])
    return min(runs[1:], key=lambda run: abs(run.share - middle))
