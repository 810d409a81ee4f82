"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def machine(device: Any) -> dict[str, Any]:
    """Versions, processor, threads, the accelerator if `device` is one, and how busy it is now.

    `load_average` is the system's over the last minute, None where there is no such thing: well above
    the bench's own threads, the times say little.
    """
    import torch

    device = torch.device(device)
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "accelerator": None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
    return facts


def processor() -> str:
    """The processor's name as far as the system tells it."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
