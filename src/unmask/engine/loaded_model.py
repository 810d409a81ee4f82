"""A model that is loaded already: options of loading that come too late."""

from __future__ import annotations

from unmask.errors import ConfigError


def refuse_options(*given: object) -> None:
    """Raise ConfigError for options of loading that are given with a loaded model."""
    if given != (None, None, None, None, None, 1):
        raise ConfigError(
            "revision, dtype, device, lora, adapters and tensor_parallel_size have no effect on a loaded "
            "model; leave them out"
        )
