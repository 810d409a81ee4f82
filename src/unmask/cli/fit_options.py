"""Options of `unmask inspect --fit`, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unmask.cli.options import DeviceOptions
from unmask.errors import ConfigError
from unmask.options import option


@dataclass(frozen=True, kw_only=True)
class FitOptions(DeviceOptions):
    """The decode whose memory is computed."""

    fit: bool = False
    """Compute the memory of a decode from the config, and whether it fits here."""

    batch: Annotated[int | None, option(least=1, metavar="N")] = None
    """Rows in a forward pass. Default: 1."""

    prompt_length: Annotated[int | None, option(least=1, metavar="N")] = None
    """Positions of the prompt. Default: 256."""

    gen_length: Annotated[int | None, option(least=1, metavar="N")] = None
    """Positions of the answer. Default: 128."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache policy; all but none store keys and values. Default: none."""

    def check(self) -> None:
        """Raise ConfigError for options that have no effect without --fit."""
        if not self.fit and self != type(self)():
            raise ConfigError(
                "--batch, --prompt-length, --gen-length, --cache, --dtype and --device are for --fit; "
                "add it or leave them out"
            )
