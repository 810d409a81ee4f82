"""Quantized weights: size, peak memory, time per forward, and agreement with the reference.

Every format is loaded in a process of its own, so that its peak memory can be measured. The first format is
the reference: all are compared on its answers with every second position masked again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unmask.bench.decode import decode_all
from unmask.bench.environment import peak_resident_bytes
from unmask.bench.examples import examples_of, judge
from unmask.bench.report import DecodeSetting
from unmask.errors import UnmaskError, unknown_name
from unmask.method import MethodSpec

if TYPE_CHECKING:
    import torch

    from unmask.engine.llm import LLM

FORMATS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("float32", "int8"),
    "int8-bfloat16": ("bfloat16", "int8"),
    "int8-dynamic": ("bfloat16", "int8-dynamic"),
    "int4": ("bfloat16", "int4"),
}
"""Compute dtype and kind of quantization by name."""
MAX_ROWS = 256
"""Maximum number of compared rows of logits, which are sent between processes."""
NUM_FORWARDS = 5
"""Timed forwards per repeat."""


@dataclass(frozen=True)
class FormatResult:
    """Measurements of a format; `problem`: why there are none.

    `num_bytes`: size of the weights. `peak_bytes`: peak memory of loading and one forward above that of a
    process with all imports done, None where the system does not report it. `seconds`: median time of a
    forward over one canvas. `same_top`: share of compared rows with the argmax of the reference.
    `divergence`: mean KL(reference || format) in nats. `right`: correctness of each held-out answer.
    """

    name: str
    problem: str | None = None
    num_bytes: int = 0
    peak_bytes: int | None = None
    seconds: float = 0.0
    same_top: float = 1.0
    divergence: float = 0.0
    num_rows: int = 0
    right: tuple[bool, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right) if self.right else 0.0


@dataclass(frozen=True)
class QuantizeJob:
    """Input of a process; `canvases`: those of the reference, None for the reference itself."""

    model: str
    name: str
    method: MethodSpec
    setting: DecodeSetting
    canvases: list[list[int]] | None


@dataclass(frozen=True)
class QuantizeResult:
    """Output of a process: measurements, canvases, and log-probabilities of N compared rows."""

    result: FormatResult
    canvases: list[list[int]]
    log_probs_NV: NDArray[np.float32]


def check_formats(names: Sequence[str]) -> None:
    """Raise ConfigError for an unknown format."""
    for name in names:
        if name not in FORMATS:
            raise unknown_name("form", name, FORMATS)


def measure_formats(
    model: str,
    names: Sequence[str],
    method: MethodSpec,
    setting: DecodeSetting,
    watch: Callable[[str], object] = lambda name: None,
) -> list[FormatResult]:
    """Measure formats of a model, the first as the reference; `watch` is called at the start of each.

    The error of a format that the model does not support becomes its `problem`. Raises ConfigError for an
    unknown format, and the errors of loading the reference.
    """
    check_formats(names)
    results: list[FormatResult] = []
    reference: QuantizeResult | None = None
    for name in dict.fromkeys(names):
        watch(name)
        canvases = None if reference is None else reference.canvases
        job = QuantizeJob(model, name, method, setting, canvases)
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                output = pool.submit(run, job).result()
        except UnmaskError as error:
            if reference is None:
                raise
            results.append(FormatResult(name, problem=str(error)))
            continue
        reference = reference or output
        results.append(compare_with(output, reference.log_probs_NV))
    return results


def compare_with(output: QuantizeResult, reference_NV: NDArray[np.float32]) -> FormatResult:
    """Return the result of a format with its agreement with the reference's log-probabilities."""
    gap_NV = reference_NV - output.log_probs_NV
    return dataclasses.replace(
        output.result,
        same_top=float((reference_NV.argmax(-1) == output.log_probs_NV.argmax(-1)).mean()),
        divergence=float((np.exp(reference_NV) * gap_NV).sum(-1).mean()),
        num_rows=len(gap_NV),
    )


def run(job: QuantizeJob) -> QuantizeResult:
    """Load a format, time its forwards and decode the held-out prompts, in this process."""
    import torch

    from unmask.engine.llm import LLM
    from unmask.models.quantize import weight_bytes

    dtype, kind = FORMATS[job.name]
    torch.set_grad_enabled(False)
    _import_everything(dtype, kind)
    before = peak_resident_bytes()
    llm = LLM(job.model, device="cpu", dtype=dtype, quantization=kind, pack_weights=False)
    examples = examples_of(job.setting)
    prompts = [llm.prompt_ids(item.prompt) for item in examples]
    canvas = torch.tensor([prompts[0] + [llm.spec.mask_id] * job.setting.gen_length])
    llm.model(canvas)
    after, times = peak_resident_bytes(), []
    for _ in range(NUM_FORWARDS * job.setting.repeat):
        began = time.perf_counter()
        llm.model(canvas)
        times.append(time.perf_counter() - began)
    outputs = decode_all(llm, prompts, job.method, "none", job.setting)
    right = judge(examples, outputs, outputs)
    canvases = job.canvases or [
        [
            token if at < out.prompt_length or at % 2 else llm.spec.mask_id
            for at, token in enumerate(out.canvas_ids)
        ]
        for out in outputs
    ]
    result = FormatResult(
        job.name,
        num_bytes=weight_bytes(llm.model),
        peak_bytes=None if before is None or after is None else after - before,
        seconds=median(times),
        right=right,
    )
    return QuantizeResult(result, canvases, _log_probs(llm, canvases))


def _import_everything(dtype: str, kind: str | None) -> None:
    """Import all modules of a measurement: load a tokenizer, quantize and run a tiny network."""
    import torch

    from unmask.bench.overhead import random_llm
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.models import BUNDLED, torch_dtype
    from unmask.models.quantize import quantize_weights

    load_tokenizer(BUNDLED["demo"])
    small = random_llm(512, 64, 1, torch_dtype(dtype, torch.device("cpu")), head_width=32).model
    if kind is not None:
        quantize_weights(small, kind)
    small(torch.zeros(1, 8, dtype=torch.long))


def _log_probs(llm: LLM, canvases: list[list[int]]) -> NDArray[np.float32]:
    """Return log-probabilities at the masked positions of the first canvases."""
    import torch

    rows: list[torch.Tensor] = []
    for ids in canvases:
        masked = torch.tensor(ids) == llm.spec.mask_id
        if llm.spec.shift_logits:
            masked = masked.roll(-1)
        logits = llm.model(torch.tensor([ids]))[0][masked]
        rows.extend(logits.float().log_softmax(-1))
        if len(rows) >= MAX_ROWS:
            break
    log_probs_NV: NDArray[np.float32] = torch.stack(rows[:MAX_ROWS]).numpy()
    return log_probs_NV
