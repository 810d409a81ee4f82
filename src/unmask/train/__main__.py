"""`torchrun --nproc-per-node N -m unmask.train data=...`: the command `unmask train`."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    runpy.run_module("unmask.cli.main", run_name="__main__")
