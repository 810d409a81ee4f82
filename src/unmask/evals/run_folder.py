"""The run folder: its configuration, and the answers as they are finished.

Each process appends answers to a file of its own (`samples.jsonl`, `samples.1.jsonl`, ...), one per line
and synced to disk (fsync) before the next one begins. Reading merges the files of any number of processes.
A last line that a killed process left incomplete is cut off, and its answer is generated again.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import yaml
from yaml.parser import ParserError
from yaml.reader import ReaderError
from yaml.scanner import ScannerError

from unmask.durable import FolderLock, write_text
from unmask.errors import ConfigError
from unmask.evals.generation import EvalAnswer
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import Counted
from unmask.yaml_text import parse_yaml

CONFIG = "config.yaml"
TASK = "dataset.name"
"""Key of the task in config.yaml: lm-eval takes any YAML file with `task` for one of its tasks."""
SAMPLES = "samples*.jsonl"
SCORES = "scores.jsonl"
OWN_FILES = (SAMPLES, "results.json", "results.md", SCORES, "confidence.json")


def begin_run(settings: EvalSettings) -> FolderLock:
    """Create the folder, or check that it belongs to this run, write config.yaml, and return its lock.

    The lock is taken before anything is removed. Raises ConfigError when another run writes the folder,
    when it has answers of another run (`resume=False` replaces them) or cannot be written.
    """
    folder, path = settings.folder, settings.folder / CONFIG
    with writing(folder):
        lock = FolderLock(folder, "evaluation")
    try:
        with writing(folder):
            if not settings.resume:
                for pattern in OWN_FILES:
                    for old in folder.glob(pattern):
                        old.unlink()
            elif path.exists() and any(folder.glob(SAMPLES)):
                _check_same(path, settings)
            content = {TASK if key == "task" else key: v for key, v in settings.as_dict().items()}
            write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except BaseException:
        lock.release()
        raise
    return lock


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn OSError into a ConfigError that names the run folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"output={str(folder)!r} cannot be written: {error.strerror}; make room or give another "
            f"folder, and give the same command again: finished answers are kept"
        ) from None


def _check_same(path: Path, settings: EvalSettings) -> None:
    """Raise ConfigError if config.yaml is of another run.

    One that a crash left empty or cut is replaced: answers carry the fingerprint of their settings, so
    those of another run are not used.
    """
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"))
    except (ScannerError, ParserError, ReaderError, UnicodeDecodeError):
        before = None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{str(path)!r} is not the settings of a run: {' '.join(str(error).split())[:300]}; delete it "
            f"to go on (answers of these settings are kept), or give another output"
        ) from None
    now = yaml.safe_load(yaml.safe_dump(settings.identity()))
    if isinstance(before, dict) and TASK in before:
        before["task"] = before.pop(TASK)
    if not isinstance(before, dict) or not set(now) <= set(before):
        warnings.warn(
            f"{path} cannot be read and is written anew; answers of these settings are kept",
            RunFolderWarning,
            stacklevel=4,
        )
        return
    changed = [key for key in now if before[key] != now[key]]
    if changed:
        listed = ", ".join(f"{key}={before[key]!r} (now {now[key]!r})" for key in changed)
        raise ConfigError(
            f"output={settings.output!r} holds another run, with {listed}; give another output, or "
            f"resume=False to replace it"
        )


class RunFolderWarning(UserWarning):
    """A run folder that was mended."""


class Sample(TypedDict):
    """lm-eval's record of a document under a filter; the metrics are further keys, named by `metrics`."""

    doc_id: int
    doc: object
    filter: str
    target: object
    filtered_resps: object
    metrics: list[str]


def metric_of(sample: Sample, name: str) -> float:
    """Return a metric of a sample."""
    return float(sample[name])  # type: ignore[literal-required]


def set_misses(sample: Sample) -> None:
    """Set all metrics of a sample to 0."""
    for name in sample["metrics"]:
        sample[name] = 0.0  # type: ignore[literal-required]


def write_scores(
    folder: Path, samples: Sequence[Sample], prompt_of: Callable[[object], object]
) -> None:
    """Write scores.jsonl: per document and filter the prompt, the extracted answer and its metrics.

    `prompt_of` returns the prompt of a document, without worked examples.
    """
    lines = []
    for item in sorted(samples, key=lambda item: (item["doc_id"], item["filter"])):
        record = {"doc": item["doc_id"], "filter": item["filter"], "target": item["target"]}
        record["taken"] = item["filtered_resps"]
        record["prompt"] = str(prompt_of(item["doc"]))
        record |= {name: item[name] for name in item["metrics"]}  # type: ignore[literal-required]
        lines.append(json.dumps(record, ensure_ascii=False, default=str))
    write_text(folder / SCORES, "\n".join(lines) + "\n")


@dataclass(frozen=True)
class StoredAnswer:
    """An answer with the start of the run (`session`, from 1) and the process (`rank`) that wrote it."""

    answer: EvalAnswer
    session: int
    rank: int


def read_all(folder: Path) -> dict[str, StoredAnswer]:
    """Read all stored answers by key. Raises ConfigError for a line that is not an answer."""
    answers: dict[str, StoredAnswer] = {}
    for path in sorted(folder.glob(SAMPLES)):
        # Text after the last line end is incomplete, even where it can be parsed.
        lines = path.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                stored = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ConfigError(
                    f"{str(path)!r} line {number} is no answer of ours ({error}); remove the line, or "
                    f"begin anew with resume=False"
                ) from None
            answers.setdefault(stored.answer.key, stored)
    return answers


def _parse(record: Mapping[str, Any]) -> StoredAnswer:
    names = {field.name for field in fields(EvalAnswer)} - {"counted"}
    rest = {key: value for key, value in record.items() if key in names}
    answer = EvalAnswer(counted=Counted(**record["counted"]), **rest)
    return StoredAnswer(answer, record["session"], record["rank"])


class Journal:
    """Context manager that appends answers to the file of a process, in a folder that the run locked."""

    def __init__(self, folder: Path, rank: int, session: int) -> None:
        self.path = folder / ("samples.jsonl" if rank == 0 else f"samples.{rank}.jsonl")
        self.rank, self.session = rank, session

    def __enter__(self) -> Journal:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        _cut_incomplete_line(self._file)
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)

    def append(self, answer: EvalAnswer) -> None:
        """Write an answer and sync it to disk. Raises ConfigError when it cannot be written."""
        record = asdict(answer) | {"session": self.session, "rank": self.rank}
        record = {key: value for key, value in record.items() if value is not None}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = line.encode()
        with writing(self.path.parent):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)


def _cut_incomplete_line(file: int) -> None:
    """Truncate the file after its last line end and seek to the end."""
    size = os.lseek(file, 0, os.SEEK_END)
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    os.lseek(file, 0, os.SEEK_END)
