"""Record a decode and save it as GIF, SVG and page: python examples/pictures.py [FOLDER]."""

import sys
from pathlib import Path

import unmask

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
llm = unmask.LLM("demo")
(out,) = llm.generate("Sudoku\n0200\n4302\n3401\n0004", "wino", gen_length=32, return_trace=True)
for name in ("sudoku.gif", "sudoku.svg", "sudoku.html"):
    print(out.save(folder / name, columns=40))
out.plot().savefig(folder / "sudoku.png")
