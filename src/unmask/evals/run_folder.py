"""The run folder: is it this run's, and what is written to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from unmask.errors import ConfigError
from unmask.evals.journal import PATTERN
from unmask.evals.settings import EvalSettings

CONFIG = "config.yaml"
OWN_FILES = (PATTERN, "results.json", "results.md", "scores.jsonl", "confidence.json")


def begin_run(settings: EvalSettings) -> None:
    """Make the folder or check that it holds this run, and write config.yaml.

    Raises ConfigError when it holds answers of another run (`resume=False` replaces them) or cannot be
    written.
    """
    folder, path = settings.folder, settings.folder / CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.resume:
            for pattern in OWN_FILES:
                for old in folder.glob(pattern):
                    old.unlink()
        elif path.exists() and any(folder.glob(PATTERN)):
            _check_same(yaml.safe_load(path.read_text(encoding="utf-8")), settings)
        text = yaml.safe_dump(settings.as_dict(), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"output={str(folder)!r} cannot be written: {error.strerror}; give another folder"
        ) from None


def _check_same(before: Any, settings: EvalSettings) -> None:
    now = yaml.safe_load(yaml.safe_dump(settings.identity()))
    before = before if isinstance(before, dict) else {}
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        told = ", ".join(f"{key}={before.get(key)!r} (now {now[key]!r})" for key in changed)
        raise ConfigError(
            f"output={settings.output!r} holds another run, with {told}; give another output, or "
            f"resume=False to replace it"
        )


def write_scores(folder: Path, samples: list[dict[str, Any]]) -> None:
    """scores.jsonl: a line a document and filter, with what was taken from the answer and its metrics."""
    lines = []
    for item in sorted(samples, key=lambda item: (item["doc_id"], item["filter"])):
        kept = {"doc": item["doc_id"], "filter": item["filter"], "target": item["target"]}
        kept["taken"] = item["filtered_resps"]
        kept |= {name: item[name] for name in item["metrics"]}
        lines.append(json.dumps(kept, ensure_ascii=False, default=str))
    (folder / "scores.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
