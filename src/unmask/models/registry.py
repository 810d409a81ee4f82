"""Model families, found by file name in `models/families`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from unmask.errors import ModelError, PluginError
from unmask.models.folder_files import shortened
from unmask.models.hf_config import Config, architecture
from unmask.models.spec import ModelSpec
from unmask.models.weight_names import NameMap
from unmask.plugins import load_plugin, module_names

PACKAGE = "unmask.models.families"
WRAPPERS = {  # saved from a wrapped model, whose class they hide
    "AutoModel",
    "AutoModelForCausalLM",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "PeftModel",
    "PeftModelForCausalLM",
}
REQUIRED = ("ARCHITECTURES", "MODEL_TYPES", "MASK", "NAMES", "spec_from_config")


@dataclass(frozen=True)
class Family:
    """The definitions of one file of `models/families`.

    `architectures` and `model_types` are the values of a config's keys that select the family, `mask` the
    text of its mask token, `names` the checkpoint's names of the parameters; `forms` are name lists of
    other layouts in which released files exist. `unsupported_tokens` are texts of added tokens with the
    features that they stand for, which are refused.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    mask: str
    names: NameMap
    spec_from_config: Callable[[Config], ModelSpec]
    forms: Mapping[str, NameMap] = field(default_factory=dict)
    unsupported_tokens: Mapping[str, str] = field(default_factory=dict)


def family_of(module: ModuleType) -> Family:
    """Return a family module's definitions. Raises PluginError for a definition of the wrong type."""
    for name in ("ARCHITECTURES", "MODEL_TYPES"):
        value = getattr(module, name)
        if not (isinstance(value, tuple) and all(isinstance(each, str) for each in value)):
            raise PluginError(f"{module.__file__}: {name}={value!r} must be a tuple of strings")
    return Family(
        architectures=module.ARCHITECTURES,
        model_types=module.MODEL_TYPES,
        mask=module.MASK,
        names=module.NAMES,
        spec_from_config=module.spec_from_config,
        forms=getattr(module, "FORMS", {}),
        unsupported_tokens=getattr(module, "UNSUPPORTED_TOKENS", {}),
    )


@cache
def _load_families() -> tuple[list[Family], list[str]]:
    """Return the usable families and the errors of the other files, which are logged once."""
    families, errors = [], []
    for name in module_names(PACKAGE):
        try:
            families.append(family_of(load_plugin(PACKAGE, name, REQUIRED)))
        except PluginError as error:
            errors.append(str(error))
            logging.getLogger(__name__).warning("model family skipped: %s", error)
    return families, errors


def find_family(config: Config, folder: Path) -> Family:
    """Return the family of a parsed `config.json`. Raises ModelError if there is none."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelError(
            f"{folder}: architectures={shortened(repr(architectures))} must be a list of class names"
        )
    families, errors = _load_families()
    for family in families:
        if architecture(config) in family.architectures:
            return family
    kind = config.get("model_type")
    if kind == "llada" and config.get("num_experts"):
        kind = "llada_moe"  # its released files have the dense model's type
    if not architectures or architecture(config) in WRAPPERS:
        for family in families:
            if kind in family.model_types:
                return family
    raise ModelError(
        f"{folder}: architectures={shortened(repr(architectures))} "
        f"model_type={shortened(repr(config.get('model_type')))} is not supported; "
        f"{'; '.join(_advice(config, families, errors))}"
    )


def _advice(config: Config, families: list[Family], errors: list[str]) -> Iterator[str]:
    known = (name for family in families for name in family.architectures)
    yield f"supported architectures: {', '.join(known)}"
    if config.get("auto_map"):
        yield "the checkpoint's own Python code (auto_map) is never run"
    if errors:
        yield f"skipped files: {'; '.join(errors)}"
