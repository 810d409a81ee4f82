"""unmask: load, decode and train masked diffusion language models.

`unmask.LLM(model).generate(prompts, ...)` is the front door. Heavy imports happen on first use, so
`import unmask` is quick and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.errors import ConfigError, DependencyError, ModelError, PromptError, UnmaskError
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask import decisions, objectives
    from unmask.engine.async_llm import AsyncLLM
    from unmask.engine.likelihood import Likelihood
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output
    from unmask.evals.api import evaluate, report
    from unmask.grammar.constraint import (
        TextConstraint,
        choice,
        ebnf,
        json_object,
        json_schema,
        regex,
    )
    from unmask.models import load_model
    from unmask.models.registry import add_family
    from unmask.own_code import Reference
    from unmask.pictures.film import Film
    from unmask.train.api import train
    from unmask.tune.api import tune
    from unmask.view.trace import read_film

__all__ = [
    "LLM",
    "AsyncLLM",
    "ConfigError",
    "DependencyError",
    "Film",
    "Likelihood",
    "ModelError",
    "Output",
    "PromptError",
    "Reference",
    "TextConstraint",
    "UnmaskError",
    "__version__",
    "add_family",
    "choice",
    "decisions",
    "ebnf",
    "evaluate",
    "json_object",
    "json_schema",
    "load_model",
    "objectives",
    "read_film",
    "regex",
    "report",
    "train",
    "tune",
]
_LAZY = {
    "AsyncLLM": "unmask.engine.async_llm",
    "LLM": "unmask.engine.llm",
    "Film": "unmask.pictures.film",
    "Likelihood": "unmask.engine.likelihood",
    "Output": "unmask.engine.outputs",
    "add_family": "unmask.models.registry",
    "evaluate": "unmask.evals.api",
    "load_model": "unmask.models",
    "Reference": "unmask.own_code",
    "report": "unmask.evals.api",
    "read_film": "unmask.view.trace",
    "TextConstraint": "unmask.grammar.constraint",
    "choice": "unmask.grammar.constraint",
    "ebnf": "unmask.grammar.constraint",
    "json_object": "unmask.grammar.constraint",
    "json_schema": "unmask.grammar.constraint",
    "regex": "unmask.grammar.constraint",
}
_SUBMODULES = ("decisions", "objectives", "train", "tune")


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        from importlib import import_module

        return import_module(f"unmask.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_SUBMODULES])
