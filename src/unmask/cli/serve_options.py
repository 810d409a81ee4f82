"""Options of `unmask serve`, as flags or in a YAML file (`--config`, read by `cli.parsing`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Parameter

from unmask.cli.options import ENGINE, METHOD, MODEL, REPLICAS, SERVER, LoadOptions, flat
from unmask.engine.config import MAX_LORA_RANK, MAX_LORAS, EngineConfig
from unmask.errors import ConfigError
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

    dllm_fdfo: Annotated[bool, Parameter(show=False)] = True
    """SGLang's switch between two schedules of a batch, which decode alike: no effect."""


class LoraKeywords(TypedDict):
    """Keyword arguments of `LLM` for adapters."""

    adapters: dict[str, str] | None
    max_loras: int
    max_lora_rank: int


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Adapters that requests choose by their names."""

    lora_modules: Annotated[
        tuple[str, ...],
        option(metavar="NAME=DIR"),
        Parameter(consume_multiple=True),
    ] = ()
    """Adapters of PEFT that requests choose as `model`."""

    max_loras: Annotated[int, option(least=1)] = MAX_LORAS
    """Maximum number of adapters."""

    max_lora_rank: Annotated[int, option(least=1)] = MAX_LORA_RANK
    """Maximum rank of an adapter."""

    enable_lora: Annotated[bool | None, Parameter(show=False)] = None

    def keywords(self) -> LoraKeywords:
        """Return the options as keyword arguments of `LLM`. Raises ConfigError."""
        folders: dict[str, str] = {}
        for text in self.lora_modules:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise ConfigError(
                    f"--lora-modules {text!r} must be NAME=FOLDER, such as sql=adapters/sql; write the "
                    f"model before it"
                )
            if name in folders:
                raise ConfigError(f"--lora-modules has {name!r} twice; rename one")
            folders[name] = folder
        if self.enable_lora is False and folders:
            raise ConfigError("--no-enable-lora contradicts --lora-modules; leave one out")
        return {
            "adapters": folders or None,
            "max_loras": self.max_loras,
            "max_lora_rank": self.max_lora_rank,
        }


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
    adapters: Annotated[LoraOptions, flat(MODEL)] = LoraOptions()
    server: Annotated[ServerConfig, flat(SERVER)] = ServerConfig()
    engine: Annotated[EngineConfig, flat(ENGINE)] = EngineConfig()
    replicas: Annotated[ReplicaConfig, flat(REPLICAS)] = ReplicaConfig()
    trust_remote_code: Annotated[bool, Parameter(show=False)] = False
    plugin: Annotated[tuple[str, ...], Parameter(show=False)] = ()
