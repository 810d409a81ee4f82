"""Options of `unmask serve`, as flags or in a YAML file (`--config`, read by `cli.parsing`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unmask.cli.options import ENGINE, METHOD, MODEL, REPLICAS, SERVER, LoadOptions, flat
from unmask.engine.config import EngineConfig
from unmask.options import NOT_A_FLAG, option
from unmask.server.settings import ReplicaConfig, ServerConfig


@dataclass(frozen=True, kw_only=True)
class ServedMethodOptions:
    """The decoding method of requests that do not choose one."""

    decoder: Annotated[str | None, option("-d", metavar="D")] = None
    """Default decoder of requests. Default: vanilla."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Default cache of requests. Default: block_causal for block-causal models, else none."""

    dllm_algorithm: Annotated[str | None, option(metavar="A")] = None
    """SGLang's name of the default decoder."""

    dllm_algorithm_config: Annotated[Path | None, option(metavar="FILE")] = None
    """YAML file with the knobs of --dllm-algorithm."""

    dllm_fdfo: bool = True
    """SGLang's switch between two schedules of a batch, which decode alike: no effect."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `unmask serve`."""

    words: Annotated[tuple[str, ...], NOT_A_FLAG] = ()

    config: Annotated[Path | None, option(metavar="FILE")] = None
    """YAML file of options and `knobs`; flags take precedence."""

    method: Annotated[ServedMethodOptions, flat(METHOD)] = ServedMethodOptions()

    model: Annotated[
        str | None, option("-m", "--model-path", metavar="M"), Parameter(group=MODEL)
    ] = None
    """The model, as a flag instead of a word."""

    load: Annotated[LoadOptions, flat(MODEL)] = LoadOptions()
    server: Annotated[ServerConfig, flat(SERVER)] = ServerConfig()
    engine: Annotated[EngineConfig, flat(ENGINE)] = EngineConfig()
    replicas: Annotated[ReplicaConfig, flat(REPLICAS)] = ReplicaConfig()
    trust_remote_code: Annotated[bool, Parameter(show=False)] = False
    plugin: Annotated[tuple[str, ...], Parameter(show=False)] = ()
