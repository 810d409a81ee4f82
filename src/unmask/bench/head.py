"""Time of the LM head and of softmax by vocabulary size.

Source: arXiv:2512.07173 (CadLLM), Fig. 1b, which motivates pruned vocabularies. The weights are random,
since times depend on shapes alone. Rows are the positions read per forward, a block for block decoders.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unmask.errors import ConfigError

SIZES = (64, 256, 1024, 4096, 16384, 50304, 126464)


@dataclass(frozen=True)
class HeadSetting:
    """Shapes to measure: `rows` hidden states of size `width`, vocabulary `sizes`, number of repeats."""

    width: int = 4096
    rows: int = 32
    sizes: tuple[int, ...] = SIZES
    repeat: int = 7
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise ConfigError for a number below 1."""
        for name, value in (("width", self.width), ("rows", self.rows), ("repeat", self.repeat)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not self.sizes or min(self.sizes) < 2:
            raise ConfigError(f"sizes={self.sizes} must be vocabulary sizes of at least 2")


def measure_head(setting: HeadSetting) -> list[dict[str, float]]:
    """Measure head, softmax with argmax, and both: medians in ms after a warm-up, by vocabulary size.

    Raises ConfigError for an unknown dtype and a device that cannot be used.
    """
    import torch

    from unmask.models import DTYPES

    if setting.dtype not in DTYPES:
        raise ConfigError(f"dtype={setting.dtype!r}: allowed are {', '.join(DTYPES)}")
    try:
        device = torch.device(setting.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={setting.device!r} cannot be used: {error}") from None
    dtype = getattr(torch, DTYPES[setting.dtype])
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    states = draw(setting.rows, setting.width)
    results = []
    for size in sorted(setting.sizes):
        weight = draw(size, setting.width)
        logits = states @ weight.T

        def head(weight: torch.Tensor = weight) -> object:
            return states @ weight.T

        def softmax(logits: torch.Tensor = logits) -> object:
            return logits.float().softmax(-1).max(-1)

        def both(weight: torch.Tensor = weight) -> object:
            return (states @ weight.T).float().softmax(-1).max(-1)

        times = _medians((head, softmax, both), setting.repeat, device.type == "cuda")
        names = ("head_ms", "softmax_ms", "both_ms")
        results.append({"vocab_size": float(size)} | dict(zip(names, times, strict=True)))
    return results


def _medians(works: Sequence[Callable[[], object]], repeat: int, is_cuda: bool) -> list[float]:
    import torch

    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        if is_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)

    with torch.inference_mode():
        for work in works:
            timed(work)
        return [statistics.median(timed(work) for _ in range(repeat)) for work in works]
