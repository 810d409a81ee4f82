"""Presets: the published samplers of model families, and our fast one, as settings of the decoders.

Sources: LLaDA2.0, arXiv:2512.15745; LLaDA2.1, arXiv:2602.08676; SDAR, arXiv:2510.06303 and `generate.py` of
JetAstra/SDAR; numbers are the defaults of their published `generate`. Fast-dLLM v2, arXiv:2509.26328: the
threshold is that of its paper and model card (the default of its function, 1, commits one token per
forward). In all of them a confidence must exceed the threshold. Differs: the temperature defaults to 0 as
elsewhere in unmask (in SDAR to 1); answers have gen_length tokens (Fast-dLLM v2 counts whole blocks,
including the prompt's last one). `fast` is not from a paper: Fast-dLLM's threshold without the positions
right of an end token, which is approximate (docs/explanation/end-of-text.md).
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
    "fast": ("threshold", {"drop_after_eos": True}),
}
"""Decoder and knobs by preset; without a block length, the model's own applies."""
