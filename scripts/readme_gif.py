"""Make the picture at the top of README: `python scripts/readme_gif.py` writes docs/assets/decode.gif."""

from __future__ import annotations

import sys
from pathlib import Path

import unmask

TARGET = Path(__file__).resolve().parents[1] / "docs" / "assets" / "decode.gif"
PROMPT = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"


def film() -> unmask.Film:
    """Return the film of the bundled model's answer, two tokens per forward."""
    (out,) = unmask.LLM("demo").generate(
        PROMPT, gen_length=40, steps=20, stop_at_eos=False, return_trace=True
    )
    return out.film()


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    film().save(path, columns=56, fps=4, hold_s=3)
