"""Environment of a measurement: machine, versions, source commit and peak memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.version import installed_versions

if TYPE_CHECKING:
    import torch

Environment = dict[str, object]
"""Facts by name, ready for JSON."""
CPU_INFO = Path("/proc/cpuinfo")
STATUS = Path("/proc/self/status")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "lm_eval", "datasets", "accelerate")


def machine(device: torch.device | str) -> Environment:
    """Return versions, processor, threads, load, and the accelerator's name if `device` is one.

    `load_average` is that of the system over the last minute, None where there is none. Times are
    unreliable when it is well above the number of threads of the benchmark.
    """
    import torch

    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def processor() -> str:
    """Return the name of the processor as far as the system reports it."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that has a part in an evaluation."""
    return installed_versions(PACKAGES)


def git_commit() -> str | None:
    """Return the commit of unmask's source tree, "+" appended if it has changes; None for no checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated bytes on an accelerator, else of this process; 0 if not available."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_resident_bytes() -> int | None:
    """Return the peak of this process's resident memory, in bytes; None where Linux's /proc is missing.

    Unlike `peak_memory_bytes`, it does not include the process that this one was forked from.
    """
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peaks[0]) * 1024 if peaks else None
