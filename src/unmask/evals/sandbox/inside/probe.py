"""Probe of a wall: enter the sandbox and write `inside` if a given file of the machine is out of sight.

Arguments: the rights as JSON, and the path of the file.
"""

from __future__ import annotations

import json
import os
import sys

from . import kernel


def main() -> None:
    """Probe."""
    kernel.enter(json.loads(sys.argv[1]))
    if os.getpid() < 10 and not os.listdir(".") and not os.path.exists(sys.argv[2]):
        sys.stdout.write("inside\n")
