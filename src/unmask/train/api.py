"""`unmask.train(...)`: a training from Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.durable import write_text
from unmask.errors import ConfigError
from unmask.train.config import GROUPS, TrainConfig, from_values

if TYPE_CHECKING:
    from unmask.train.loop import StepLog
    from unmask.train.rewards import Reward
    from unmask.train.run import Scorer

Data = str | Path | Sequence[str | Path] | Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Trained:
    """A finished run: the folder of the model, the last loss, the held-out loss if there are such rows."""

    folder: Path
    steps: int
    loss: float | None
    eval_loss: float | None


def train(
    data: Data,
    /,
    *,
    report: Callable[[StepLog], None] | None = None,
    reward: Reward | None = None,
    score: Scorer | None = None,
    **settings: object,
) -> Trained:
    """Train to the end and return the final folder; an interrupted run in `output` goes on.

    `data`: files, or rows as mappings. `settings` are the keys of `unmask train`: a group is a mapping,
    `lora={"rank": 16}`, or a dotted key, `**{"lora.rank": 16}`. `report` is called after each step.
    `reward`, of a row and an answer's text, is for objective="diffu_grpo", instead of the name `rl.reward`.
    `score` returns numbers of the model, which are logged every `watch.task_every` steps. Raises
    ConfigError, ModelError.
    """
    from unmask.train.run import FileTrainer

    config = settings_of(data, settings)
    if reward is not None and config.objective != "diffu_grpo":
        raise ConfigError(
            f"reward has no effect with objective={config.objective!r}; give objective='diffu_grpo', or "
            f"leave it out"
        )
    trainer = FileTrainer(config, reward, score)
    entry = None
    for entry in trainer:
        if report is not None:
            report(entry)
    held_out = trainer.evaluations[-1][1] if trainer.evaluations else None
    loss = None if entry is None else entry.loss
    return Trained(trainer.output / "final", trainer.step, loss, held_out)


def settings_of(data: Data, settings: Mapping[str, object]) -> TrainConfig:
    """Return the settings of a call; rows are written to `rows.jsonl` in the output folder."""
    values: dict[str, object] = {}
    for key, value in settings.items():
        if key in GROUPS and isinstance(value, Mapping):
            values |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            values[key] = str(value) if isinstance(value, Path) else value
    if "data.path" in values:
        raise ConfigError(
            "data is given twice, as the first argument and as data.path; leave one out"
        )
    items = [data] if isinstance(data, (str, Path)) else list(data)
    rows = [item for item in items if isinstance(item, Mapping)]
    if not items:
        raise ConfigError("data is empty; give a file, or at least one row")
    if rows and len(rows) < len(items):
        raise ConfigError("data mixes files and rows; give one of them")
    if not rows:
        return from_values({**values, "data.path": [str(item) for item in items]})
    config = from_values(values)
    folder = Path(config.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text = "".join(json.dumps(dict(row)) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"data: a row is not JSON ({error}); give texts, numbers and lists"
        ) from None
    write_text(folder / "rows.jsonl", text)
    return from_values({**values, "data.path": [str(folder / "rows.jsonl")]})
