"""Interface of training data: micro-batches as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from unmask.train.corrupt import Noisy


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `clean_BT` targets, their corruption, and each row's task.

    `segments_BT`: number of the example that a position belongs to, within the batch; positions of other
    numbers, such as -1 for padding, are invisible to it. None: a row is one example, all of it visible.
    `position_ids_BT` count from each example's beginning (None: from the row's). `block_size` overrides
    that of the model (0: no blocks). `reach`: number of visible positions to the right (0: causal).
    """

    tasks: list[str]
    clean_BT: Tensor
    noisy: Noisy
    segments_BT: Tensor | None = None
    position_ids_BT: Tensor | None = None
    block_size: int | None = None
    reach: int | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        if device.type == "cpu":
            return self
        noisy = replace(
            self.noisy,
            ids_BT=self.noisy.ids_BT.to(device),
            weights_BT=self.noisy.weights_BT.to(device),
        )
        segments, positions = self.segments_BT, self.position_ids_BT
        return replace(
            self,
            clean_BT=self.clean_BT.to(device),
            noisy=noisy,
            segments_BT=None if segments is None else segments.to(device),
            position_ids_BT=None if positions is None else positions.to(device),
        )


class Dataset(Protocol):
    """A source of micro-batches, a pure function of the step: a resumed run needs no data state."""

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of optimizer step `step`, corrupted, at least one."""
        ...
