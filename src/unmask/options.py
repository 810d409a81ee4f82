"""Dataclasses of options: one field is a flag, a key in a YAML file and a keyword in Python.

    @dataclass(frozen=True, kw_only=True)
    class EngineConfig:
        max_queue: Annotated[int, option("--max-queued-requests", least=1)] = 256
        \"\"\"Maximum number of waiting requests.\"\"\"

The field holds the name, the type, the default and the bounds; the string below it is the help text. The
command line reads all of it (`cli.main`); `check_fields` applies the same types and bounds in Python.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from typing import TYPE_CHECKING

from cyclopts import Parameter

from unmask.errors import ConfigError
from unmask.knobs import convert

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HAS_METAVAR = "metavar" in inspect.signature(Parameter).parameters
"""False for cyclopts 4, the last one for Python 3.10."""
NOT_A_FLAG = Parameter(parse=False)
"""Annotation of a field that only Python sets."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Limits of a number: `least` and `most` are included, `above` is not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None

    def __call__(self, hint: object, value: float | None) -> None:
        """Raise ValueError when a value is out of bounds; None is not checked."""
        if value is None:
            return
        if self.least is not None and not value >= self.least:
            raise ValueError(f"must be at least {self.least:g}")
        if self.above is not None and not self.above < value < math.inf:
            raise ValueError(f"must be a number above {self.above:g}")
        if self.most is not None and not value <= self.most:
            raise ValueError(f"must be at most {self.most:g}")


def option(
    *aliases: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
    env: str | None = None,
    show: bool = True,
) -> Parameter:
    """Return the annotation of a field that has other spellings, bounds, a metavar or a variable.

    One that nearly nobody needs is not shown by the short help.
    """
    bounds = Bounds(least, above, most)
    checks = () if bounds == Bounds() else (bounds,)
    if HAS_METAVAR:
        return Parameter(alias=aliases, validator=checks, env_var=env, show=show, metavar=metavar)
    return Parameter(alias=aliases, validator=checks, env_var=env, show=show)


def check_fields(config: DataclassInstance) -> None:
    """Convert every field to its type and check its bounds. Raises ConfigError with the field's name.

    For `__post_init__` of a frozen dataclass, so that a value from Python is checked like a flag.
    """
    cls = type(config)
    types, hints = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(config):
        value = convert(field.name, types[field.name], getattr(config, field.name))
        object.__setattr__(config, field.name, value)
        for annotation in getattr(hints[field.name], "__metadata__", ()):
            for bounds in annotation.validator:
                try:
                    bounds(None, value)
                except ValueError as error:
                    raise ConfigError(f"{field.name}={value} {error}") from None
