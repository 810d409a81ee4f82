"""Where a run was made, with which versions, and how much memory it took."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.bench.environment import machine

if TYPE_CHECKING:
    import torch

    from unmask.engine.llm import LLM

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "lm_eval", "datasets", "accelerate")


def facts(llm: LLM) -> dict[str, Any]:
    """The machine and the versions of what computed the answers."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    attention = "scaled_dot_product_attention"
    return machine(llm.model.device) | {"versions": versions, "attention": attention}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on the accelerator, else resident of this process; 0 if untold."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def git_commit() -> str | None:
    """The commit of unmask's source tree, with "+" when it was changed; None when it is no checkout."""
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
