"""`unmask tune decisions`: fit the calibration of a model's decisions to labelled questions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from unmask.cli.options import PRINT_JSON, ModelOptions
from unmask.errors import ConfigError
from unmask.options import option


@dataclass(frozen=True, kw_only=True)
class DecisionFitOptions:
    """The way in which the questions are asked, and the output."""

    output: Annotated[Path, option("-o", metavar="FILE")] = Path("calibration.json")
    """File to write, for `calibration=` and `serve --calibration`."""

    independent: bool = False
    """Read every question alone."""

    orders: Annotated[int, option(least=1, most=16)] = 1
    """Orders of the listed options to average."""

    layout: Literal["listed", "cloze"] = "listed"
    """listed: a label is read; cloze: the option itself, behind the instructions."""

    estimator: Literal["slots", "likelihood"] = "slots"
    """Of options of several tokens: slots, or likelihood (a canvas per token)."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print the numbers as JSON."""


def run(rows: Path, options: DecisionFitOptions, model: ModelOptions) -> None:
    """Fit, write the calibration, and print what it changes."""
    from unmask.decisions.canvases import DecisionOptions
    from unmask.decisions.labelled import fit, read_labelled
    from unmask.engine.llm import LLM
    from unmask.models.digests import weights_digest

    asked = DecisionOptions(
        independent=options.independent,
        orders=options.orders,
        layout=options.layout,
        estimator=options.estimator,
    )
    labelled = read_labelled(rows)
    if options.output.exists():
        raise ConfigError(f"--output {options.output} exists; choose another file, or remove it")
    llm = LLM(model.model, **model.keywords())
    found = fit(
        labelled,
        lambda content, questions: llm.decide(content, questions, **asdict(asked)),
        weights_digest(llm.weights_folder),
    )
    found.calibration.save(options.output)
    if options.as_json:
        print(json.dumps({**asdict(found), "output": str(options.output)}))
        return
    count = found.calibration.num_questions
    print(f"{count} questions, accuracy {found.accuracy:.3f}")
    print(f"temperature {found.calibration.temperature:.3f}, written to {options.output}")
    print(f"calibration error {found.error_before:.4f} -> {found.error_after:.4f}")
    print(f"log loss {found.loss_before:.4f} -> {found.loss_after:.4f} nats")
