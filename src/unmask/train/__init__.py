"""Training masked diffusion models: objectives, a seeded loop, one's own data; `unmask.train(...)` runs
one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.train.api import Data, Trained


class _CallableModule(ModuleType):
    """This package, which is also the function `unmask.train`."""

    def __call__(self, data: Data, /, **settings: object) -> Trained:
        """Train to the end; see `unmask.train.api.train`."""
        from unmask.train.api import train

        return train(data, **settings)  # type: ignore[arg-type]


sys.modules[__name__].__class__ = _CallableModule
