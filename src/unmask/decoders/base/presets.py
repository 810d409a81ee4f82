"""Families' own samplers as settings of the decoders here.

Sources: LLaDA2.0, arXiv:2512.15745; LLaDA2.1, arXiv:2602.08676; SDAR, arXiv:2510.06303 and `generate.py` of
JetAstra/SDAR; numbers are the defaults of their published `generate`. Fast-dLLM v2, arXiv:2509.26328: the
threshold is that of its paper and its model card (its function's default, 1, is a token a forward). None of
them lets a confidence equal to the threshold pass. Differs: the temperature is unmask's, 0, unless it is
given (SDAR's default is 1); answers have gen_length tokens (Fast-dLLM v2 counts whole blocks, the prompt's
last one among them).
"""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: dict[str, tuple[str, Mapping[str, object]]] = {
    "llada2": (
        "threshold",
        {
            "threshold": 0.95,
            "comparator": "gt",
            "block_steps": 32,
            "minimal_topk": 1,
            "whole_blocks": True,
        },
    ),
    "llada2_1": (
        "joint_threshold",
        {
            "threshold": 0.95,
            "edit_threshold": 0.9,
            "max_post_edit_steps": 16,
            "whole_blocks": True,
        },
    ),
    "sdar": ("threshold", {"threshold": 0.85, "comparator": "gt", "whole_blocks": True}),
    "fast_dllm_v2": (
        "threshold",
        {
            "block_length": 8,
            "threshold": 0.9,
            "comparator": "gt",
            "first_alone": True,
            "whole_blocks": True,
        },
    ),
}
"""Decoder and knobs by name; a block length that is missing is the model's."""
