"""`unmask bench head`: what a vocabulary costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError


def head(setting: dict[str, Any], as_json: bool, plot: Path | None) -> None:
    """Measure, and print a Markdown table or JSON."""
    from unmask.bench.head import HeadSetting, measure_head
    from unmask.bench.machine import machine

    if plot is not None:
        from unmask.bench.picture import check_possible

        check_possible(plot)
    chosen = HeadSetting(**setting)
    rows = measure_head(chosen)
    facts = machine(chosen.device)
    where = (
        f"{chosen.rows} rows of width {chosen.width}, {chosen.dtype} on "
        f"{facts['accelerator'] or facts['processor']}, {facts['num_threads']} thread(s)"
    )
    if as_json:
        told = {"setting": dataclasses.asdict(chosen), "machine": facts, "rows": rows}
        print(json.dumps(told, ensure_ascii=False))
    else:
        print("| vocabulary | LM head ms | softmax ms | both ms |\n|---:|---:|---:|---:|")
        for row in rows:
            cells = (row[name] for name in ("head_ms", "softmax_ms", "both_ms"))
            print(
                f"| {row['vocab_size']:.0f} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
            )
        print(
            f"\n{where}, median of {chosen.repeat}, torch {facts['torch']}, load {facts['load_average']}"
        )
    if plot is not None:
        from unmask.evals.pictures import draw_head

        try:
            draw_head(rows, where, plot)
        except OSError as error:
            raise ConfigError(f"{str(plot)!r} cannot be written: {error.strerror}") from None
