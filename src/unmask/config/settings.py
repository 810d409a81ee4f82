"""Settings of an evaluation from a composed configuration."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from unmask import decoders
from unmask.config.compose import Composed
from unmask.config.method import Method, method_of
from unmask.errors import ConfigError
from unmask.evals.catalog import CATALOG
from unmask.evals.settings import EvalSettings

RUNS = "runs/eval"


def settings_of(composed: Composed, method: Method | None = None) -> EvalSettings:
    """Return the settings of a configuration. Raises ConfigError if it cannot be evaluated."""
    method = method_of(composed) if method is None else method
    task = composed["dataset.name"]
    if task is None:
        raise ConfigError(f"no task; say dataset.name=NAME, one of {', '.join(sorted(CATALOG))}")
    known = CATALOG.get(task)
    data = composed.values["dataset.path"]
    if data.layer.startswith("environment") and known is not None and not known.needs_data:
        data = dataclasses.replace(data, value=None)
    settings = EvalSettings(
        task=task,
        model=composed["model.path"] or composed["model.name"] or "",
        decoder=method.decoder,
        cache=method.cache,
        knobs=method.knobs | {f"cache.{key}": value for key, value in method.cache_knobs.items()},
        gen_length=_length(composed, method),
        data=data.value,
        num_fewshot=composed["dataset.n_shot"],
        system_prompt=composed["dataset.system_prompt"],
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


def _length(composed: Composed, method: Method) -> int | None:
    """Return the number of positions, without a preset's suggestion if the decoder finds the length."""
    length = composed.values["generation.gen_length"]
    if length.is_soft and decoders.finds_length(method.decoder):
        return None
    positions: int | None = length.value
    return positions


def folder_of(settings: EvalSettings, composed: Composed) -> Path:
    """Return a folder named after the settings, so that the same overrides resume an interrupted run."""
    words = [settings.task, composed["model.name"] or settings.model, settings.decoder]
    if settings.cache != "none":
        words.append(settings.cache)
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(word)).strip("._") for word in words)
    return Path(RUNS) / f"{name}-{settings.fingerprint()}"


def rows(composed: Composed, method: Method) -> list[tuple[str, Any, str]]:
    """Return (key, value, layer) of all values in force, knobs of decoder and cache included."""
    from unmask import caches
    from unmask.config.compose import SCHEMA_DEFAULT
    from unmask.knobs import field_names
    from unmask.sampling.params import SamplingParams

    skipped = {f"generation.{key}" for key in composed.group("generation")}
    skipped |= {f"cache.{key}" for key in composed.group("cache")}
    listed = [
        (key, value.value, value.layer)
        for key, value in composed.values.items()
        if key not in skipped
    ]
    if _length(composed, method) != composed["generation.gen_length"]:
        listed = [row for row in listed if row[0] != "generation.gen_length"]
    decoder = decoders.decoder_class(method.decoder)
    own = {item.name: item.default for item in dataclasses.fields(decoder)}
    own |= {item.name: item.default for item in dataclasses.fields(SamplingParams)}
    own |= {key: value for key, value in method.knobs.items() if key not in own}
    for name in own:
        value, layer = method.knobs.get(name, own[name]), method.layers.get(name, SCHEMA_DEFAULT)
        listed.append((f"generation.{name}", value, layer))
    cache = caches.cache_class(method.cache)
    names = [item.name for item in dataclasses.fields(cache)]
    names += [key for key in method.cache_knobs if key not in field_names(cache)]
    defaults = {item.name: item.default for item in dataclasses.fields(cache)}
    for name in names:
        value = method.cache_knobs.get(name, defaults.get(name))
        listed.append((f"cache.{name}", value, method.layers.get(f"cache.{name}", SCHEMA_DEFAULT)))
    order = {group: i for i, group in enumerate(("", "model", "dataset", "generation", "cache"))}
    return sorted(listed, key=lambda row: order[row[0].rpartition(".")[0]])
