"""Launcher of the ranks of a sharded model, or of an evaluation, as processes of this machine.

`torchrun` does the same, on several machines too; this is for when it was not used. Its ranks talk over the
loopback interface only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from unmask.errors import ConfigError

if TYPE_CHECKING:
    from unmask.cli.options import LoadKeywords

POLL_S = 0.05
FAILED_GRACE_S = 5.0
"""Seconds that rank 0 has to exit with its own error after another rank has failed."""
GRACE_S = 20.0
"""Seconds that the other ranks have to exit after rank 0 has."""
FAILED_STATUS = 1


def is_started() -> bool:
    """Return True if this process is a rank already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def size() -> int:
    """Return the number of ranks that were started; 1 for a process that is none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if is_started() else 1


def is_follower() -> bool:
    """Return True if this process is a rank other than 0."""
    return is_started() and os.environ["RANK"] != "0"


def is_alone_under_accelerate() -> bool:
    """Return True if `accelerate launch` was asked for several processes and started this one only.

    It then passes on the address at which they would have met, and no rank.
    """
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    return is_launched and not is_started()


def check_size(size: int, flag: str) -> None:
    """Raise ConfigError in a rank of another launcher with another number of ranks."""
    there = os.environ.get("WORLD_SIZE", "1")
    if is_started() and there != str(size):
        raise ConfigError(
            f"{flag} {size}: a launcher has started {there} process(es) of this command already; leave "
            f"{flag} out, or the launcher"
        )


def take(size: int, model: str, loading: LoadKeywords) -> None:
    """Start the ranks of a model of `size` ranks; return in rank 0 only.

    Outside a rank, start all ranks and raise SystemExit with the status of rank 0. The other ranks load
    their part (`loading`: keyword arguments of `LLM`), follow, and end by SystemExit. Raises ConfigError.
    """
    if size > 1 and not is_started():
        raise SystemExit(start(size))
    if size > 1 and is_follower():
        from unmask.engine.llm import LLM

        LLM(model, **loading)


def start(size: int, arguments: Sequence[str] | None = None) -> int:
    """Run this command again as `size` ranks; return its exit status."""
    typed = sys.argv[1:] if arguments is None else arguments
    return run([sys.executable, "-m", "unmask.cli.main", *typed], size)


def run(command: Sequence[str], size: int) -> int:
    """Run `size` ranks of a command; return rank 0's status, or 1 when another failed before it.

    SIGTERM goes to rank 0, which ends the others. A failed rank ends all; one that does not end is killed.
    """
    shared = environment(size)
    ranks = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=None if rank == 0 else subprocess.DEVNULL,
            stdout=None if rank == 0 else 2,
        )
        for rank in range(size)
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        _send(ranks[0], signal.SIGTERM)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    # A terminal sends SIGINT to every process itself.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _watch(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(size: int) -> dict[str, str]:
    """Return the environment that all ranks of one machine share, this process's included."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    own = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "unmask",  # by which torch.distributed knows a launcher's process
    }
    usual = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size))}
    if sys.platform == "linux":
        usual["GLOO_SOCKET_IFNAME"] = "lo"
    return {**usual, **os.environ, **own}


def _watch(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    first, others = ranks[0], ranks[1:]
    while first.poll() is None and not any(rank.poll() for rank in others):
        time.sleep(POLL_S)
    _wait([first], FAILED_GRACE_S)
    status = first.poll()
    if status != 0:
        for rank in ranks:
            _send(rank, signal.SIGTERM)
    _wait(ranks, GRACE_S)
    if status is None:
        return FAILED_STATUS
    return 128 - status if status < 0 else status


def _wait(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, until - time.monotonic()))


def _send(rank: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        rank.send_signal(number)
