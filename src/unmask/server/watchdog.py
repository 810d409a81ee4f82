"""The watchdog: the reasons for which a server that runs would not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.server.planning import MAX_PLAN_S, MAX_PLANNING, Planning

if TYPE_CHECKING:
    from unmask.engine.engine import Engine

MAX_PLANNING_STALL_S = 2 * MAX_PLAN_S
"""Maximum time without a plan that ends while all places are taken; templates and tokenizers end before."""


class Watchdog:
    """Compares the last signs of life of the engine's loop and of planning with `limit_s` seconds.

    A sign of the engine is the begin of a forward or of the wait for requests. One forward may take long:
    the first of a large model, or one that is compiled.
    """

    def __init__(self, engine: Engine, planning: Planning, limit_s: float) -> None:
        self.engine, self.planning, self.limit_s = engine, planning, limit_s

    def stall(self) -> str | None:
        """Return the reason why requests are not answered now; None if nothing is known to hang."""
        engine_s, planning_s = self.engine.stalled_s, self.planning.stalled_s
        if engine_s > self.limit_s:
            return (
                f"the engine has been in one forward for {engine_s:.0f} s, longer than "
                f"--watchdog-timeout {self.limit_s:g}"
            )
        limit_s = min(self.limit_s, MAX_PLANNING_STALL_S)
        if planning_s > limit_s:
            return (
                f"all {MAX_PLANNING} threads that read prompts have been busy for {planning_s:.0f} s with "
                f"the same requests, longer than {limit_s:g}"
            )
        return None
