"""Interface of training data: micro-batches as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unmask.train.corrupt import Noisy


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `clean_BT` targets, their corruption, and each row's task."""

    tasks: list[str]
    clean_BT: Tensor
    noisy: Noisy


class Dataset(Protocol):
    """A source of micro-batches, a pure function of the step: a resumed run needs no data state."""

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of optimizer step `step`, corrupted, at least one."""
        ...
