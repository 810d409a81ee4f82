"""What a run found: one value, the file results.json, and a Markdown table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError

FILE = "results.json"
FORMAT = "unmask-eval"
VERSION = 1


@dataclass(frozen=True)
class Results:
    """Everything of results.json.

    `metrics`: every number by name, as docs/reference/numbers.md defines them; what does not apply to a
    run is absent. `right[i]` is the score of document `docs[i]`. `settings`: the `EvalSettings`.
    `resolved`: what was settled on the way: the method with its knobs, chat, lengths, dtype, device.
    `machine`: processor, versions. `scores`: every metric of the task with its standard error, as
    "metric,filter" and "metric_stderr,filter". `early`: with traces, the mean score when all open positions
    are filled at 0, 5, ... 100 % of the forwards (`evals.early`).
    """

    task: str
    model: str
    method: str
    cache: str
    metrics: dict[str, float]
    docs: tuple[int, ...]
    right: tuple[float, ...]
    settings: dict[str, Any]
    resolved: dict[str, Any]
    machine: dict[str, Any]
    scores: dict[str, float]
    date: str
    version: str
    commit: str | None = None
    early: tuple[float, ...] = field(default=())
    format: str = FORMAT
    format_version: int = VERSION

    def write(self, folder: Path) -> None:
        """Write results.json, whole or not at all."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        temporary = folder / (FILE + ".new")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results of a run folder. Raises ConfigError when there are none that we can read."""
        path = folder / FILE if folder.is_dir() else folder
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be read: {error.strerror}; give a run folder of unmask eval"
            ) from None
        except ValueError:
            raise ConfigError(
                f"{str(path)!r} is no JSON; give a run folder of unmask eval"
            ) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ConfigError(f"{str(path)!r} was not written by unmask eval; give its run folder")
        if found["format_version"] != VERSION:
            raise ConfigError(
                f"{str(path)!r} has format_version={found['format_version']}, this unmask reads {VERSION}"
            )
        for name in ("docs", "right", "early"):
            found[name] = tuple(found[name])
        return cls(**{item.name: found[item.name] for item in fields(cls)})
