"""Keeping one request's exception from the others, and the engine's from those who wait for it."""

from __future__ import annotations

from types import TracebackType


class Fence:
    """Keeps what is raised inside as `error`: nothing is dropped, whoever fenced must deal with it.

    `with Fence() as fence: ...` and then `fence.error`, None when all went well. KeyboardInterrupt and
    SystemExit pass, unless `everything`.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.kept: type[BaseException] = BaseException if everything else Exception
        self.error: BaseException | None = None

    def __enter__(self) -> Fence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.error = error
        return isinstance(error, self.kept)
