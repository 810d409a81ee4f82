"""Model families: those of this package, found by file name in `models/families`, and those of users."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

from unmask.errors import ConfigError, ModelError, PluginError, UnmaskError, cut_text
from unmask.models.folder_files import shortened
from unmask.models.hf_config import Config, architecture
from unmask.models.spec import ModelSpec
from unmask.models.weight_names import NameMap
from unmask.own_code import load_module, load_point, points_of
from unmask.plugins import load_plugin, module_names

PACKAGE, GROUP = "unmask.models.families", "unmask.families"
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
    """The definitions of one file of `models/families`, or of a user's module.

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


def own_family(module: object, place: str) -> Family:
    """Return the family of a user's module. Raises PluginError, which begins with `place`.

    Errors of its `spec_from_config` other than ours become PluginError.
    """
    if not isinstance(module, ModuleType):
        raise PluginError(
            f"{place}: {cut_text(repr(module))} is no module; name one that defines a family"
        )
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        raise PluginError(
            f"{place}: defines no {', '.join(missing)}; a family needs {', '.join(REQUIRED)}"
        )
    family = family_of(module)
    is_names = isinstance(family.names, tuple) and all(
        isinstance(pair, tuple) and [type(each) for each in pair] == [str, str]
        for pair in family.names
    )
    for name, is_right, form in (
        ("MASK", isinstance(family.mask, str), "the text of the mask token"),
        ("NAMES", is_names, "a tuple of pairs (name in the checkpoint, name in the transformer)"),
        ("spec_from_config", callable(family.spec_from_config), "a function of the config"),
    ):
        if not is_right:
            raise PluginError(f"{place}: {name} must be {form}; see docs/how-to/add-a-family.md")

    def spec_from_config(config: Config) -> ModelSpec:
        try:
            spec: object = family.spec_from_config(config)
        except UnmaskError:
            raise
        except Exception as error:
            raise PluginError(
                f"{place}: spec_from_config fails ({type(error).__name__}: {cut_text(str(error))}); mend it"
            ) from error
        if not isinstance(spec, ModelSpec):
            raise PluginError(
                f"{place}: spec_from_config returned {cut_text(repr(spec))}; return a ModelSpec"
            )
        return spec

    return replace(family, spec_from_config=spec_from_config)


@dataclass(frozen=True)
class OwnFamilies:
    """Families of users by the file or module that they were added from in this process."""

    added: dict[str, Family] = field(default_factory=dict)

    def add(self, module: ModuleType) -> Family:
        """Add a module with the definitions of a file of `models/families`, and return its family.

        Raises PluginError for definitions that cannot be used, ConfigError for classes of another family.
        """
        place = str(module.__file__ or module.__name__)
        family = own_family(module, place)
        others = [each for other, each in self.added.items() if other != place]
        for other in (*_load_families()[0], *others):
            both = set(family.architectures) & set(other.architectures)
            if both:
                raise ConfigError(
                    f"{place}: ARCHITECTURES has {min(both)!r}, which another family reads already; give "
                    f"the classes of your checkpoint's config.json"
                )
        self.added[place] = family
        return family


OWN = OwnFamilies()


def add_family(reference: str | Path | ModuleType) -> None:
    """Add a model family from a file, a module or its name, so that its checkpoints can be loaded.

    The module defines what a file of `models/families` does (docs/how-to/add-a-family.md). Its code is run.
    Families of installed packages, entry points of the group `unmask.families`, need no call. Raises
    ConfigError, and PluginError for code that cannot be used.
    """
    OWN.add(reference if isinstance(reference, ModuleType) else load_module(str(reference)))


def _installed() -> tuple[list[Family], list[str]]:
    """Return the families of installed packages' entry points, and the errors of the unusable ones."""
    families, errors = [], []
    for point in points_of(GROUP):
        try:
            families.append(
                own_family(load_point(point), f"entry point {point.name}={point.value}")
            )
        except PluginError as error:
            errors.append(str(error))
    return families, errors


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
    kind = config.get("model_type")
    if kind == "llada" and config.get("num_experts"):
        kind = "llada_moe"  # its released files have the dense model's type
    is_hidden = not architectures or architecture(config) in WRAPPERS
    known: list[Family] = []
    reasons: list[str] = []
    # an installed package is imported only for a checkpoint of no other family
    for load in (_load_families, lambda: (list(OWN.added.values()), []), _installed):
        families, errors = load()
        known += families
        reasons += errors
        for family in families:
            if architecture(config) in family.architectures:
                return family
        for family in families:
            if is_hidden and kind in family.model_types:
                return family
    raise ModelError(
        f"{folder}: architectures={shortened(repr(architectures))} "
        f"model_type={shortened(repr(config.get('model_type')))} is not supported; "
        f"{'; '.join(_advice(config, known, reasons))}"
    )


def _advice(config: Config, families: list[Family], errors: list[str]) -> Iterator[str]:
    known = (name for family in families for name in family.architectures)
    yield f"supported architectures: {', '.join(known)}"
    if config.get("auto_map"):
        yield "the checkpoint's own Python code (auto_map) is never run"
    if errors:
        yield f"skipped files: {'; '.join(errors)}"
