"""Run the notebooks of examples/ and store their outputs: `python scripts/run_notebooks.py [FILE ...]`.

The cells run in this process, in one namespace; a cell's output is what it prints, and the value of its
last expression. That is all that the examples need, and takes no Jupyter.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_cell(source: str, names: dict[str, Any]) -> tuple[str, object]:
    """Run a cell; return what it printed, and the value of its last expression (None: there is none)."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


def outputs_of(printed: str, value: object, count: int) -> list[dict[str, Any]]:
    """Return the outputs of a cell in the notebook format."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed)})
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        show = getattr(value, "_repr_html_", None)
        if show is not None:
            data["text/html"] = lines(show())
        outputs.append(
            {
                "output_type": "execute_result",
                "execution_count": count,
                "metadata": {},
                "data": data,
            }
        )
    return outputs


def lines(text: str) -> list[str]:
    """Return a text as the notebook format has it."""
    return text.splitlines(keepends=True)


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with the outputs of its cells."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            printed, value = run_cell("".join(cell["source"]), names)
            outputs = outputs_of(printed, value, count)
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(map(str, EXAMPLES.glob("*.ipynb")))):
        text = json.dumps(
            executed(json.loads(path.read_text("utf-8"))), indent=1, ensure_ascii=False
        )
        path.write_text(text + "\n", encoding="utf-8")
