"""Training batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from unmask.train.corrupt import Noisy

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `clean_BT` targets, their corruption, and each row's task."""

    tasks: list[str]
    clean_BT: Tensor
    noisy: Noisy
