"""Re-make the study: `python studies/cadllm/run.py [PART...]`, parts in `parts.py`; `make study`.

Without a part, everything that no clock is needed for, then tables and pictures. What is in `results/`
already is not measured again (`--again` forgets the parts' results first), so an interrupted run goes
on where it was.
`timing` is a part of its own: its numbers mean something on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
import time

import calibration
import dynamics
import failures
import frequencies
import parts
import pictures
import tables
import timing
from cells import ensure, forget

EXTRA = {"reliability": calibration, "dynamics": dynamics, "failures": failures, "timing": timing}
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print progress with the time since the start to stderr."""
    sys.stderr.write(f"[{time.monotonic() - BEGAN:6.0f} s] {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Measure the missing cells, then write tables and plots."""
    cells = parts.cells()
    known = [*cells, *EXTRA, "report"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(known))
    parser.add_argument("--again", action="store_true", help="measure from scratch")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(known))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = options.parts or [name for name in known if name != "timing"]
    if options.again:
        forget(cell for name in chosen for cell in cells.get(name, ()))
        for name in chosen:
            if name in EXTRA:
                EXTRA[name].PATH.unlink(missing_ok=True)
    frequencies.ensure(say)
    for name in chosen:
        say(f"part {name}")
        if name in cells:
            ensure(cells[name], say)
        elif name in EXTRA:
            EXTRA[name].ensure(say)
    tables.write()
    pictures.draw()
    say("README and pictures written")


if __name__ == "__main__":
    main()
