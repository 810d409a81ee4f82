"""Steps of loading a model: options are checked, an adapter is merged, decoders get their facts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unmask.canvas import Floats, ModelFacts
from unmask.errors import ConfigError
from unmask.models import read_config
from unmask.models.lora import load_adapters, merge_adapters
from unmask.models.registry import find_family
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer
from unmask.sampling.sampler import Vocabulary


def refuse_options(*given: object) -> None:
    """Raise ConfigError for options of loading that are given with a loaded model."""
    if given != (None, None, None, None, None, 1):
        raise ConfigError(
            "revision, dtype, device, lora, adapters and tensor_parallel_size have no effect on a loaded "
            "model; leave them out"
        )


def merge_lora(model: Transformer, folder: Path, adapter: Path) -> None:
    """Add the adapter of a folder of PEFT to the weights of the checkpoint `folder`. Raises ModelError."""
    load_adapters(model, find_family(read_config(folder), folder).names, adapter)
    merge_adapters(model)
    model.requires_grad_(False)


def facts_of(
    spec: ModelSpec, vocabulary: Vocabulary, background: Callable[[], Floats]
) -> ModelFacts:
    """Return the facts of a model that decoders may ask for."""
    return ModelFacts(
        vocab_size=spec.vocab_size,
        eos_id=vocabulary.eos_id,
        turn_end_id=vocabulary.turn_end_id,
        block_size=spec.block_size,
        max_length=spec.max_length,
        background=background,
        end_ids=frozenset(vocabulary.end_ids),
    )
