"""Products of few rows with plain weights and with packed ones (`unmask.models.packed_weights`).

    python benchmarks/packed_weights.py         (about a minute)

The matrices are those of `cache_speed.py`: the LM head and the projections of width 1024. Seconds are the
best of seven.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from unmask.bench.environment import machine
from unmask.models.packed_weights import PackedLinear

SHAPES = ((126464, 1024), (3072, 1024), (1024, 3072), (1024, 1024))
ROWS = (1, 2, 8, 17, 32, 64, 128, 384)


def best(run: Callable[[], object]) -> float:
    """Return the shortest of seven runs in milliseconds, after a warm-up."""
    run()
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    where = machine("cpu")
    print(
        f"{where['processor']}, {where['num_threads']} threads, load {where['load_average']}, torch "
        f"{where['torch']}; milliseconds, plain / packed\n"
    )
    print(f"| matrix | {' | '.join(f'{rows} rows' for rows in ROWS)} |")
    print("|---" * (len(ROWS) + 1) + "|")
    for width_out, width_in in SHAPES:
        with torch.inference_mode(mode=False):
            plain = nn.Linear(width_in, width_out, bias=False).requires_grad_(False)
            packed = PackedLinear(plain)
        cells = []
        for rows in ROWS:
            x = torch.randn(rows, width_in)
            cells.append(f"{best(lambda: plain(x)):.2f} / {best(lambda: packed(x)):.2f}")  # noqa: B023
        print(f"| {width_out} x {width_in} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
