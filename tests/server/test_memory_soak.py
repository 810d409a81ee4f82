"""A server's memory is level: it does not grow with the number of lengths that it has met."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "memory_soak.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_level_over_1500_mixed_requests_of_random_lengths():
    """At most 60 MB over its value after 50 requests; one layer, since products of equal shapes share."""
    words = ["--requests", "1500", "--layers", "1", "--longest", "100"]
    run = subprocess.run(
        [sys.executable, str(SOAK), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
