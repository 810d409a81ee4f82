"""Python's collector of reference cycles while a command starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pause the collector while packages are imported and a model is loaded.

    The import of torch makes objects by the hundred thousand, which live as long as the process; each full
    collection visits all of them again. The first pause of a process that ends well also sets what there is
    then aside, so that no later collection visits it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if was_enabled and gc.get_freeze_count() == 0:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
