"""`unmask convert SOURCE TARGET --to FORM`: the same weights in other tensors."""

from __future__ import annotations

import sys

from unmask.models import convert_checkpoint
from unmask.view.loading import LoadingView


def run(source: str, target: str, form: str) -> None:
    """Convert, and say what was written on standard error."""
    with LoadingView(source, verb="converting") as progress:
        done = convert_checkpoint(source, target, form, progress)
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    print(
        f"{target}: {done.num_tensors} tensors, {done.size_bytes / 1e6:.1f} MB, {files}",
        file=sys.stderr,
    )
