"""Options and annotations that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from unmask.options import option

PRINT_JSON = Parameter(name="--json")
"""Annotation of `as_json`."""
METHOD, MODEL, ENGINE, SERVER, REPLICAS, OUTPUT, DATA, LOAD, SEARCH = (
    Group(name, sort_key=number)
    for number, name in enumerate(
        ("Method", "Model", "Engine", "Server", "Replicas", "Output", "Data", "Load", "Search"), 1
    )
)
"""Sections of a help page, in the order in which they are printed."""


def flat(section: Group | None = None) -> Parameter:
    """Return the annotation of a nested dataclass: its fields are flags without a prefix."""
    return Parameter(name="*") if section is None else Parameter(name="*", group=section)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The kind and the place of a model's numbers."""

    dtype: Annotated[str | None, option(metavar="T")] = None
    """float32, bfloat16 or float16. Default: float32 on a CPU, else bfloat16."""

    device: Annotated[str | None, option(metavar="X")] = None
    """cpu, cuda or cuda:N. Default: cuda if available."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(DeviceOptions):
    """Keywords of `LLM` beside the model's name."""

    quantization: Annotated[str | None, option("--quantize", metavar="Q")] = None
    """int8, or int4 (CPU, bfloat16); extra `quantize`."""

    tensor_parallel_size: Annotated[int, option("--tp-size", least=1)] = 1
    """Number of processes (GPUs) that hold a part of the model each."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Presentation of a decode."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print one JSON object instead of the text."""

    trace: Annotated[Path | None, option(metavar="FILE")] = None
    """Write the changes of every forward pass as JSON lines."""

    live: bool | None = None
    """Draw the canvas while it is decoded. Default: on a terminal."""

    fps: Annotated[float | None, option(metavar="N")] = None
    """Maximum number of frames per second of the live canvas. Default: one per forward pass."""
