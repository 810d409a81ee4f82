"""Options of `unmask serve`; a YAML file may hold them too (`--config`, read by `cli.parsing`)."""

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
    """Decoder of requests that choose none. Default: vanilla."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache of such requests. Default: block_causal where the model is, else none."""

    dllm_algorithm: Annotated[str | None, option(metavar="A")] = None
    """The decoder by its name in SGLang."""

    dllm_algorithm_config: Annotated[Path | None, option(metavar="FILE")] = None
    """YAML file of that algorithm's knobs."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `unmask serve`."""

    words: Annotated[tuple[str, ...], NOT_A_FLAG] = ()

    config: Annotated[Path | None, option(metavar="FILE")] = None
    """YAML file of these options, and `knobs`; flags win."""

    method: Annotated[ServedMethodOptions, flat(METHOD)] = ServedMethodOptions()

    model: Annotated[
        str | None, option("-m", "--model-path", metavar="M"), Parameter(group=MODEL)
    ] = None
    """The model, instead of as a word."""

    load: Annotated[LoadOptions, flat(MODEL)] = LoadOptions()
    server: Annotated[ServerConfig, flat(SERVER)] = ServerConfig()
    engine: Annotated[EngineConfig, flat(ENGINE)] = EngineConfig()
    replicas: Annotated[ReplicaConfig, flat(REPLICAS)] = ReplicaConfig()
    trust_remote_code: Annotated[bool, Parameter(show=False)] = False
