"""Evaluate two decoders and print their table: python examples/evaluate.py [FOLDER] (extra `eval`)."""

import sys
from pathlib import Path

import unmask

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
llm = unmask.LLM("demo")
runs = [
    unmask.evaluate("word_problem", llm, decoder, limit=16, batch_size=16, output=folder / decoder)
    for decoder in ("vanilla", "threshold")
]
print(unmask.report(runs))
