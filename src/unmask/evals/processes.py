"""One evaluation in several processes, started by torchrun or accelerate launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from unmask.errors import DependencyError

PATIENCE = timedelta(days=30)
"""How long one process waits for the slowest."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; `wait` returns when all of them have called it."""

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], Any] = lambda: None


def processes() -> Processes:
    """The launcher's processes, or this one alone. Raises DependencyError without accelerate.

    `device` is this process's accelerator, None on a machine without.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise DependencyError(
            "several processes need accelerate, which is not installed; pip install 'unmask[eval]'"
        ) from None
    on_cpu = not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Processes(
        rank=state.process_index,
        count=state.num_processes,
        device=None if on_cpu else str(state.device),
        wait=state.wait_for_everyone,
    )
