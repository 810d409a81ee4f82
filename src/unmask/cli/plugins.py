"""`--plugin`: decoders, caches and model families of users, in every command."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.errors import ConfigError, PluginError

FLAG = "--plugin"
FAMILY_NAMES = ("ARCHITECTURES", "spec_from_config")
"""Definitions by which a module is a model family."""


def split_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--plugin X` and `--plugin=X` before `--`, and the values of these.

    Raises ConfigError for the flag without a value.
    """
    rest: list[str] = []
    values: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*rest, word, *words], values
        flag, equals, value = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        given = value if equals else next(words, "")
        if not given:
            raise ConfigError(f"{FLAG} needs a file (./mine.py) or a module")
        values.append(given)
    return rest, values


def add_plugin(reference: str) -> str | None:
    """Register a user's decoder, cache or family; return the name for requests, None for a family.

    A file or module that defines a family's names is one. Raises ConfigError and PluginError.
    """
    from unmask import caches, decoders
    from unmask.models.registry import OWN
    from unmask.own_code import load_module

    if reference.endswith(".py") or ":" not in reference:
        module = load_module(reference)
        if all(name in vars(module) for name in FAMILY_NAMES):
            OWN.add(module)
            return None
    try:
        return decoders.WORKSHOP.add_named(reference)
    except PluginError as error:
        try:
            return caches.WORKSHOP.add_named(reference)
        except PluginError:
            raise error from None


def refuse_own_code() -> None:
    """Raise ConfigError for plug-ins beside --replicas, whose processes would not have them."""
    from unmask import caches, decoders
    from unmask.models.registry import OWN

    own = [*decoders.WORKSHOP.registry.own, *caches.WORKSHOP.registry.own, *OWN.added]
    if own:
        raise ConfigError(
            f"{own[0]!r} is not in the package, and --replicas starts processes that do not have it; "
            f"leave --replicas out, or install it in src/unmask"
        )
