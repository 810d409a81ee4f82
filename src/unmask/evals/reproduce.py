"""Reproduction of a run from its results.json, and what of it came out the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError
from unmask.evals.results import FILE, Results
from unmask.evals.run_folder import read_all
from unmask.evals.scoring import digest_of, load_task
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

COUNTS = ("accuracy", "num_docs", "response_tokens", "committed_tokens", "num_forwards")
"""Metrics that do not depend on the machine's speed."""
MAY_CHANGE = ("output", "model", "data", "device", "batch_size", "confirm_run_unsafe_code")
"""Settings that a reproduction may have of its own: places, and permission."""


@dataclass(frozen=True)
class Reproduction:
    """A run next to the one that it repeats.

    `docs`: documents whose answers or scores differ; `counts`: metrics of `COUNTS` that differ, before and
    now; `environment`: versions and devices that differ, before and now. `has_texts`: the earlier answers
    are there, so that texts were compared, not scores alone.
    """

    before: Results
    now: Results
    docs: tuple[int, ...]
    counts: Mapping[str, tuple[object, object]]
    environment: Mapping[str, tuple[object, object]]
    has_texts: bool

    @property
    def is_same(self) -> bool:
        """True if nothing but the environment differs."""
        return not self.docs and not self.counts


def settings_again(path: Path, before: Results, changes: Mapping[str, object]) -> EvalSettings:
    """Return the settings of a reproduction; `changes` are of `MAY_CHANGE`. Raises ConfigError.

    Leave to run programs that a model wrote is not taken from the file.
    """
    folder = path if path.is_dir() else path.parent
    output = folder.resolve().parent / f"{folder.resolve().name}-again"
    own = {"output": str(output), "confirm_run_unsafe_code": False, "resume": True, **changes}
    settings = EvalSettings.from_dict({**before.settings, **own})
    if settings.folder.resolve() == folder.resolve():
        raise ConfigError(f"output={settings.output!r} is the run itself; give another folder")
    _need_same(
        "the documents", before.resolved.get("documents"), digest_of(load_task(settings)), path
    )
    return settings


def check_model(path: Path, before: Results, llm: LLM) -> None:
    """Raise ConfigError if the model's files are not those of the run."""
    earlier = before.resolved.get("checkpoint")
    if not isinstance(earlier, Mapping) or llm.folder is None:
        return
    now: Mapping[str, object] = {**llm.origin()}
    for part in ("weights", "tokenizer", "config", "adapter", "chat_template"):
        name = f"the model's {part.replace('_', ' ')}"
        _need_same(name, earlier.get(part), now[part], path)


def _need_same(name: str, before: object, now: object, path: Path) -> None:
    if before is not None and before != now:
        raise ConfigError(
            f"{name} of {str(path)!r} had the digest {before}, here it is {now}; give the same files "
            f"(model=, model.revision=, dataset.path=)"
        )


def compare(path: Path, before: Results, now: Results) -> Reproduction:
    """Compare a finished reproduction with the run."""
    folder = path if path.is_dir() else path.parent
    earlier, later = _texts(folder), _texts(Path(str(now.settings["output"])))
    has_texts = path.name in (FILE, folder.name) and set(before.docs) <= {doc for doc, _ in earlier}
    scores = dict(zip(now.docs, now.right, strict=True)) if now.is_judged else {}
    old_scores = dict(zip(before.docs, before.right, strict=True)) if before.is_judged else {}
    docs = {doc for doc in old_scores if old_scores[doc] != scores.get(doc)}
    docs |= set(before.docs) ^ set(now.docs)
    if has_texts:
        kept = set(before.docs)
        differ = {key for key in {*earlier, *later} if earlier.get(key) != later.get(key)}
        docs |= {doc for doc, _ in differ if doc in kept}
    counts = {
        name: (before.metrics.get(name), now.metrics.get(name))
        for name in COUNTS
        if before.metrics.get(name) != now.metrics.get(name)
    }
    return Reproduction(
        before, now, tuple(sorted(docs)), counts, _environment(before, now), has_texts
    )


def _texts(folder: Path) -> dict[tuple[int, int], object]:
    """Return text and log-likelihood of each stored answer by document and part."""
    answers = (item.answer for item in read_all(folder).values())
    return {(each.doc, each.part): (each.text, each.log_prob) for each in answers}


def _environment(before: Results, now: Results) -> dict[str, tuple[object, object]]:
    pairs: dict[str, tuple[object, object]] = {
        "unmask": (before.version, now.version),
        "commit": (before.commit, now.commit),
        "device": (before.resolved.get("device"), now.resolved.get("device")),
        "dtype": (before.resolved.get("dtype"), now.resolved.get("dtype")),
    }
    for name in ("python", "processor", "accelerator", "num_threads"):
        pairs[name] = before.machine.get(name), now.machine.get(name)
    older, newer = before.machine.get("versions"), now.machine.get("versions")
    if isinstance(older, Mapping) and isinstance(newer, Mapping):
        pairs |= {name: (older.get(name), newer.get(name)) for name in {**older, **newer}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def reproduction_of(path: Path, changes: Mapping[str, object]) -> tuple[Results, EvalSettings]:
    """Read a run and return it with the settings that repeat it. Raises ConfigError."""
    before = Results.read(path)
    unknown = sorted(set(changes) - set(MAY_CHANGE))
    if unknown:
        raise ConfigError(
            f"{unknown[0]}={changes[unknown[0]]!r} would make another run of it; beside --reproduce only "
            f"{', '.join(MAY_CHANGE)} are possible"
        )
    return before, dataclasses.replace(settings_again(path, before, changes))
