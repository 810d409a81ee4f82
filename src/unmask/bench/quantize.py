"""A model's weights in fewer bits: bytes, peak of memory, time of a forward, and how far it says the same.

Every form is loaded in a process of its own, so that its peak of memory is its own. The first form is the
reference: its answers, with every second position masked again, are the canvases on which all are compared.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.bench.decode import decode_all, held_out
from unmask.bench.report import DecodeSetting
from unmask.demo.tasks import check
from unmask.errors import UnmaskError, unknown_name
from unmask.method import MethodSpec

FORMS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("float32", "int8"),
    "int8-bfloat16": ("bfloat16", "int8"),
    "int4": ("bfloat16", "int4"),
}
"""Dtype that is computed in, and kind of quantization, by name."""
MAX_ROWS = 256
"""Compared rows of logits; they travel between processes."""
NUM_FORWARDS = 5
"""Timed forwards in each repeat."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class FormResult:
    """What was measured of a form; `problem` says why nothing was.

    `num_bytes` of the weights; `peak_bytes`: the most memory that loading and one forward took over a
    process that has imported everything, None where the system does not tell; `seconds` of a forward over
    one canvas, median; `same_top`: share of compared rows with the reference's likeliest token;
    `divergence`: mean KL(reference || form) of them in nats; `right`: which held-out answers were.
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
class Job:
    """What a process is told; `canvases` are the reference's, None for itself."""

    model: str
    name: str
    method: MethodSpec
    setting: DecodeSetting
    canvases: list[list[int]] | None


@dataclass(frozen=True)
class QuantizeResult:
    """What a process tells: numbers, its canvases, and log-probabilities of the compared rows."""

    result: FormResult
    canvases: list[list[int]]
    said_NV: NDArray[np.float32]


def check_forms(names: Sequence[str]) -> None:
    """Raise ConfigError for a form that there is not."""
    for name in names:
        if name not in FORMS:
            raise unknown_name("form", name, FORMS)


def measure_forms(
    model: str,
    names: Sequence[str],
    method: MethodSpec,
    setting: DecodeSetting,
    watch: Callable[[str], Any] = lambda name: None,
) -> list[FormResult]:
    """Each form of a model, the first being the reference; `watch` is told which one begins.

    A form that the model cannot take gets its problem. Raises ConfigError for an unknown form and what
    loading the reference raises.
    """
    check_forms(names)
    results: list[FormResult] = []
    reference: QuantizeResult | None = None
    for name in dict.fromkeys(names):
        watch(name)
        canvases = None if reference is None else reference.canvases
        job = Job(model, name, method, setting, canvases)
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(run, job).result()
        except UnmaskError as error:
            if reference is None:
                raise
            results.append(FormResult(name, problem=str(error)))
            continue
        reference = reference or found
        results.append(compared(found, reference.said_NV))
    return results


def compared(found: QuantizeResult, reference_NV: NDArray[np.float32]) -> FormResult:
    """A form's numbers with its agreement."""
    gap = reference_NV - found.said_NV
    return dataclasses.replace(
        found.result,
        same_top=float((reference_NV.argmax(-1) == found.said_NV.argmax(-1)).mean()),
        divergence=float((np.exp(reference_NV) * gap).sum(-1).mean()),
        num_rows=len(gap),
    )


def run(job: Job) -> QuantizeResult:
    """Load a form, forward, decode: one process's work."""
    import torch

    from unmask.engine.llm import LLM
    from unmask.models.quantize import weight_bytes

    dtype, kind = FORMS[job.name]
    torch.set_grad_enabled(False)
    _import_everything(dtype, kind)
    before = peak()
    llm = LLM(job.model, device="cpu", dtype=dtype, quantize=kind, pack_weights=False)
    examples = held_out(job.setting)
    prompts = [llm.prompt_ids(item.prompt) for item in examples]
    canvas = torch.tensor([prompts[0] + [llm.spec.mask_id] * job.setting.gen_length])
    llm.model(canvas)
    after, times = peak(), []
    for _ in range(NUM_FORWARDS * job.setting.repeat):
        began = time.perf_counter()
        llm.model(canvas)
        times.append(time.perf_counter() - began)
    outputs = decode_all(llm, prompts, job.method, "none", job.setting)
    right = [check(item, out.text) for item, out in zip(examples, outputs, strict=True)]
    canvases = job.canvases or [
        [token if at < out.prompt_length or at % 2 else llm.spec.mask_id for at, token in found]
        for out in outputs
        for found in [list(enumerate(out.canvas_ids))]
    ]
    result = FormResult(
        job.name,
        num_bytes=weight_bytes(llm.model),
        peak_bytes=None if before is None or after is None else after - before,
        seconds=median(times),
        right=tuple(right),
    )
    return QuantizeResult(result, canvases, _said(llm, canvases))


def _import_everything(dtype: str, kind: str | None) -> None:
    """Do what a form does with a network of no size, and read a tokenizer."""
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


def _said(llm: Any, canvases: list[list[int]]) -> NDArray[np.float32]:
    """Log-probabilities of the masked positions' rows, from the first canvases on."""
    import torch

    rows: list[Any] = []
    for ids in canvases:
        masked = torch.tensor(ids) == llm.spec.mask_id
        if llm.spec.shift_logits:
            masked = masked.roll(-1)
        logits = llm.model(torch.tensor([ids]))[0][masked]
        rows.extend(logits.float().log_softmax(-1))
        if len(rows) >= MAX_ROWS:
            break
    said: NDArray[np.float32] = torch.stack(rows[:MAX_ROWS]).numpy()
    return said


def peak() -> int | None:
    """The most memory that this process has had, in bytes; None where the system does not tell."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 if found else None
