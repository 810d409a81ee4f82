"""DiffusionGemma: recognized and refused.

Its canvas starts as random tokens instead of masks and every token stays revisable; a causal encoder of its
own fills the keys and values; the decoder reads its own last logits. None of this is masked diffusion.
"""

from __future__ import annotations

from typing import NoReturn

from unmask.errors import ModelError
from unmask.models.hf_config import Config

ARCHITECTURES = ("DiffusionGemmaForBlockDiffusion",)
MODEL_TYPES = ("diffusion_gemma",)
MASK = ""
NAMES: tuple[tuple[str, str], ...] = ()


def spec_from_config(config: Config) -> NoReturn:
    """Raise ModelError: the model is not supported."""
    raise ModelError(
        "DiffusionGemma is not supported: it has no mask token (its canvas starts as random tokens), and "
        "unmask decodes masked diffusion only; use transformers' DiffusionGemmaForBlockDiffusion"
    )
