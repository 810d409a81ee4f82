"""Search for knobs that decode faster without loss of quality; `unmask.tune(...)` runs one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from unmask.engine.llm import LLM
    from unmask.tune.api import Tuned


class _TuneModule(ModuleType):
    """This package, which is also the function `unmask.tune`."""

    def __call__(self, decoder: str, model: str | Path | LLM = "demo", **settings: object) -> Tuned:
        """Search to the end; see `unmask.tune.api.tune`."""
        from unmask.tune.api import tune

        return tune(decoder, model, **settings)  # type: ignore[arg-type]


sys.modules[__name__].__class__ = _TuneModule
