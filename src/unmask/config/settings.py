"""From a composed configuration to the settings that `unmask.evals.run.evaluate` takes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from unmask.config.compose import SCHEMA_DEFAULT, Composed
from unmask.config.method import method_of
from unmask.errors import ConfigError
from unmask.evals.catalog import CATALOG
from unmask.evals.settings import EvalSettings
from unmask.method import CACHE_PREFIX, MethodSpec
from unmask.sampling.params import SamplingParams

RUNS = "runs/eval"


def settings_of(composed: Composed, method: MethodSpec | None = None) -> EvalSettings:
    """The settings of a configuration. Raises ConfigError for what cannot be evaluated."""
    method = method_of(composed) if method is None else method
    task = composed["dataset.name"]
    if task is None:
        raise ConfigError(f"no task; say dataset.name=NAME, one of {', '.join(sorted(CATALOG))}")
    known = CATALOG.get(task)
    data = composed.values["dataset.path"]
    if data.layer.startswith("environment") and known is not None and not known.needs_data:
        data = dataclasses.replace(data, value=None)
    found = EvalSettings(
        task=task,
        model=composed["model.path"] or composed["model.name"] or "",
        method=method,
        gen_length=_length(composed, method),
        data=data.value,
        num_fewshot=composed["dataset.n_shot"],
        system_prompt=composed["dataset.system_prompt"],
        **{name: composed[name] for name in _SAME if composed[name] is not None},
    )
    output = composed["output"]
    return dataclasses.replace(found, output=output or str(folder_of(found, composed)))


_SAME = (
    "limit",
    "offset",
    "batch_size",
    "seed",
    "dtype",
    "device",
    "chat",
    "resume",
    "confirm_run_unsafe_code",
    "mc_num",
    "trace",
)


def _length(composed: Composed, method: MethodSpec) -> int | None:
    """Positions of the answer; what a preset says is not for a decoder that finds the length itself."""
    length = composed.values["generation.gen_length"]
    if length.is_soft and method.chooses_length:
        return None
    found: int | None = length.value
    return found


def folder_of(settings: EvalSettings, composed: Composed) -> Path:
    """A folder named after the run: the same words name the same one, so that a killed run goes on."""
    method = settings.method
    words = [settings.task, composed["model.name"] or settings.model, method.decoder_name]
    if method.cache_name != "none":
        words.append(method.cache_name)
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(word)).strip("._") for word in words)
    return Path(RUNS) / f"{name}-{settings.fingerprint()}"


def rows(composed: Composed, method: MethodSpec) -> list[tuple[str, Any, str]]:
    """(key, value, layer) of everything in force, knobs of decoder and cache included."""
    skipped = {f"generation.{key}" for key in composed.group("generation")}
    skipped |= {f"cache.{key}" for key in composed.group("cache")}
    found = [
        (key, value.value, value.layer)
        for key, value in composed.values.items()
        if key not in skipped
    ]
    if _length(composed, method) != composed["generation.gen_length"]:
        found = [row for row in found if row[0] != "generation.gen_length"]
    own = defaults_of(type(method.decoder)) | defaults_of(SamplingParams)
    knobs = {k: v for k, v in method.given.items() if not k.startswith(CACHE_PREFIX)}
    own |= {key: value for key, value in knobs.items() if key not in own}
    inside = {f"{CACHE_PREFIX}{k}": v for k, v in defaults_of(type(method.cache)).items()}
    inside |= {key: value for key, value in method.given.items() if key not in knobs}
    for prefix, values in (("generation.", own), ("", inside)):
        for name, default in values.items():
            value = method.given.get(name, default)
            found.append((prefix + name, value, method.origins.get(name, SCHEMA_DEFAULT)))
    order = {group: i for i, group in enumerate(("", "model", "dataset", "generation", "cache"))}
    return sorted(found, key=lambda row: order[row[0].rpartition(".")[0]])


def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields by name."""
    return {item.name: item.default for item in dataclasses.fields(cls)}
