"""Several adapters beside one model: every row of a forward is adapted by its own, or by none.

The low-rank maps of all adapters stand side by side, `(R, in)` and `(out, R)` with R the sum of their
ranks. A forward multiplies by those between the first and the last adapter that its rows use; a row keeps
the numbers of its own adapter and the others are set to zero. So one product serves all rows, whatever
their order, and a row's states do not depend on the adapters of its neighbors.

Source: the batch of unequal adapters is that of Punica, arXiv:2310.18547. Differs: it gathers each row's
matrices in a kernel of its own; here two plain products compute a few numbers too many.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ConfigError, ModelError, unknown_name
from unmask.models.experts import FeedForward
from unmask.models.lora import LowRank, matrices, read_adapters
from unmask.models.transformer import Attention, Transformer
from unmask.models.weight_names import NameMap


@dataclass(frozen=True, slots=True)
class Selection:
    """The adapters of a forward: numbers `first` to `last`; `rows` `(N,)` is -1 for none.

    Without `rows`, all rows use `first`, which is `last`.
    """

    first: int
    last: int
    rows: Tensor | None


class _Current(threading.local):
    """The selection of the forward that this thread runs; None: the plain model."""

    selection: Selection | None = None


class AdaptedLinear(nn.Module):
    """A linear map and the adapters of its matrix; `starts` are their first columns, and the end.

    `like` has the device and the dtype of its inputs.
    """

    def __init__(
        self, base: nn.Module, parts: Sequence[LowRank | None], current: _Current, like: Tensor
    ) -> None:
        super().__init__()
        self.base, self._current = base, current
        ranks = [0 if part is None else len(part.a) for part in parts]
        self.starts = (0, *accumulate(ranks))
        some = [part for part in parts if part is not None]
        device, dtype = like.device, like.dtype
        owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
        for name, value in (
            ("a", torch.cat([part.a for part in some]).to(device, dtype)),
            ("b", torch.cat([part.b * part.scale for part in some], 1).to(device, dtype)),
            ("owner", owner.to(device)),
        ):
            self.register_buffer(name, value, persistent=False)

    a: Tensor
    b: Tensor
    owner: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map, and to each row the adapter that is selected for it."""
        out: Tensor = self.base(x)
        selection = self._current.selection
        if selection is None:
            return out
        columns = slice(self.starts[selection.first], self.starts[selection.last + 1])
        if columns.start == columns.stop:
            return out
        low = F.linear(x, self.a[columns])
        if selection.rows is not None:
            low = low.masked_fill(selection.rows[..., None] != self.owner[columns], 0)
        return out + F.linear(low, self.b[:, columns])


class AdapterBank:
    """The adapters of a model by name, put on it; while none is selected, it is the plain model.

    `folders` are those of PEFT. Raises ConfigError for names and limits, ModelError for adapters that
    cannot be read, do not fit the model or have a larger rank than `max_rank`.
    """

    def __init__(
        self,
        model: Transformer,
        names: NameMap,
        folders: Mapping[str, Path],
        max_rank: int,
    ) -> None:
        self._device, self._current = model.device, _Current()
        self.folders = dict(folders)
        self.names = tuple(folders)
        read = [read_adapters(model, names, folder) for folder in folders.values()]
        for folder, parts in zip(folders.values(), read, strict=True):
            rank = max(len(part.a) for part in parts.values())
            if rank > max_rank:
                raise ModelError(
                    f"{folder}: r={rank} is more than max_lora_rank={max_rank}; raise it, or use a smaller "
                    f"adapter"
                )
        for name, parent, target in list(matrices(model)):
            own = [parts.get(name) for parts in read]
            if any(part is not None for part in own):
                adapted = AdaptedLinear(
                    getattr(parent, target), own, self._current, model.embed.weight
                )
                setattr(parent, target, adapted)
                if isinstance(parent, (Attention, FeedForward)):
                    parent.fused = None  # its packed matrix, of no use now, is given back

    def number(self, name: str) -> int:
        """Return the number of an adapter. Raises ConfigError for an unknown name."""
        if name not in self.names:
            raise unknown_name("adapter", name, self.names)
        return self.names.index(name)

    @contextmanager
    def rows(self, adapters: Sequence[str | None], sizes: Sequence[int]) -> Iterator[None]:
        """Select the adapter of `sizes[i]` packed rows each, for the forwards inside, in this thread."""
        numbers = [-1 if name is None else self.number(name) for name in adapters]
        used = sorted({number for number in numbers if number >= 0})
        if not used:
            selection = None
        elif len(set(numbers)) == 1:
            selection = Selection(used[0], used[0], None)
        else:
            counts = torch.tensor(sizes)
            rows = torch.repeat_interleave(torch.tensor(numbers), counts).to(self._device)
            selection = Selection(used[0], used[-1], rows)
        before, self._current.selection = self._current.selection, selection
        try:
            yield
        finally:
            self._current.selection = before

    def only(self, adapter: str | None) -> AbstractContextManager[None]:
        """Select an adapter, or none, for all rows of the forwards inside."""
        return self.rows([adapter], [1])


def adapter_folders(adapters: Mapping[str, str | Path], max_loras: int) -> dict[str, Path]:
    """Return the folders of adapters by name, checked before a model is loaded. Raises ConfigError."""
    if len(adapters) > max_loras:
        raise ConfigError(
            f"{len(adapters)} adapters are more than max_loras={max_loras}; raise it, or load fewer"
        )
    folders: dict[str, Path] = {}
    for name, folder in adapters.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ConfigError(f"adapter {name!r}: a name is printable text; choose another")
        folders[name] = Path(folder).expanduser()
        if not folders[name].is_dir():
            raise ConfigError(f"adapter {name!r}: {str(folder)!r} is no folder; give one of PEFT")
    return folders
