"""Settings of an evaluation from a composed configuration."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from unmask.config.compose import SCHEMA_DEFAULT, Composed
from unmask.config.method import method_of
from unmask.errors import ConfigError, ModelError
from unmask.evals.catalog import CATALOG
from unmask.evals.settings import OF_OWN_TASKS, EvalSettings
from unmask.method import CACHE_PREFIX, GEN_LENGTH, MethodSpec, split_cache_keys
from unmask.models import with_revision
from unmask.sampling.params import SamplingParams

RUNS = "runs/eval"


def settings_of(composed: Composed, method: MethodSpec | None = None) -> EvalSettings:
    """Return the settings of a configuration. Raises ConfigError if it cannot be evaluated."""
    method = method_of(composed) if method is None else method
    task = composed["dataset.name"]
    if task is None:
        raise ConfigError(
            f"no task; set dataset.name=NAME, one of {', '.join(sorted(CATALOG))}, or a file of your own"
        )
    known = CATALOG.get(task)
    data = composed.values["dataset.path"]
    if data.layer.startswith("environment") and not (known is not None and known.needs_data):
        data = dataclasses.replace(data, value=None)
    settings = EvalSettings(
        task=task,
        model=with_revision(
            composed["model.path"] or composed["model.name"] or "", composed["model.revision"]
        ),
        method=method,
        gen_length=_length(composed, method),
        data=data.value,
        num_fewshot=composed["dataset.n_shot"],
        system_prompt=composed["dataset.system_prompt"],
        **{name: composed[f"dataset.{name}"] for name in OF_OWN_TASKS},
        **{name: composed[name] for name in _SAME if composed[name] is not None},
    )
    output = composed["output"]
    return dataclasses.replace(settings, output=output or str(folder_of(settings, composed)))


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
    """Return the number of positions, without a preset's suggestion if the decoder finds the length."""
    length = composed.values["generation.gen_length"]
    if length.is_soft and method.chooses_length:
        return None
    positions: int | None = length.value
    return positions


def folder_of(settings: EvalSettings, composed: Composed) -> Path:
    """Return a folder named after the settings, so that the same overrides resume an interrupted run."""
    method = settings.method
    words = [settings.task_name, composed["model.name"] or settings.model, method.decoder_name]
    if method.cache_name != "none":
        words.append(method.cache_name)
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(word)).strip("._") for word in words)
    return Path(RUNS) / f"{name}-{settings.fingerprint()}"


def rows(composed: Composed, method: MethodSpec) -> list[tuple[str, Any, str]]:
    """Return (key, value, layer) of all values in force, knobs of decoder and cache included.

    Where None stands for a value that is known without running the model, the value is given.
    """
    inferred = _inferred(composed, method)
    return [
        (key, inferred.get(key) if value is None else value, layer)
        for key, value, layer in _written_rows(composed, method)
    ]


def _inferred(composed: Composed, method: MethodSpec) -> dict[str, object]:
    """Return the values that keys left at None take, as far as they are known before a run."""
    task = CATALOG.get(composed["dataset.name"])
    values: dict[str, object] = {} if task is None else {"dataset.n_shot": task.num_fewshot}
    length = _length(composed, method)
    if length is None:
        length = GEN_LENGTH if task is None else task.gen_length
    if not method.chooses_length:
        values["generation.gen_length"] = length
    knobs = method.sampling_params.defaults()
    sizes = _block_sizes(composed)
    first, *others = (method.decoder.defaults(length, size) for size in sizes)
    knobs |= {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    values |= {f"generation.{key}": value for key, value in knobs.items()}
    return values | {CACHE_PREFIX + key: value for key, value in method.cache.defaults().items()}


def _block_sizes(composed: Composed) -> tuple[int | None, ...]:
    """Return the model's block size if its folder is here, else different ones that it may have."""
    from unmask.models import BUNDLED, read_spec

    model = composed["model.path"] or composed["model.name"] or ""
    if model in BUNDLED or Path(model).is_dir():
        try:
            return (read_spec(model).block_size,)
        except ModelError:  # told when the model is loaded
            pass
    return (None, 1, 2)


def _written_rows(composed: Composed, method: MethodSpec) -> list[tuple[str, Any, str]]:
    """Return (key, value, layer) of all values as they are written or declared."""
    skipped = {f"generation.{key}" for key in composed.group("generation")}
    skipped |= {f"cache.{key}" for key in composed.group("cache")}
    listed = [
        (key, value.value, value.layer)
        for key, value in composed.values.items()
        if key not in skipped
    ]
    if _length(composed, method) != composed["generation.gen_length"]:
        listed = [row for row in listed if row[0] != "generation.gen_length"]
    own = defaults_of(type(method.decoder.core)) | defaults_of(type(method.decoder))
    own |= defaults_of(SamplingParams)
    knobs, _ = split_cache_keys(method.given)
    own |= {key: value for key, value in knobs.items() if key not in own}
    inside = {f"{CACHE_PREFIX}{k}": v for k, v in defaults_of(type(method.cache)).items()}
    written = {CACHE_PREFIX + key: item for key, item in composed.group("cache").items()}
    given = {**method.given, **{key: item.value for key, item in written.items()}}
    origins = {**method.origins, **{key: item.layer for key, item in written.items()}}
    inside |= split_cache_keys(given)[1]
    for prefix, values in (("generation.", own), ("", inside)):
        for name, default in values.items():
            value, layer = given.get(name, default), origins.get(name, SCHEMA_DEFAULT)
            listed.append((prefix + name, value, layer))
    order = {group: i for i, group in enumerate(("", "model", "dataset", "generation", "cache"))}
    return sorted(listed, key=lambda row: order[row[0].rpartition(".")[0]])


def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields by name."""
    return {item.name: item.default for item in dataclasses.fields(cls)}
