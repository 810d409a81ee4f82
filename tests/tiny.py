"""Random models of 64 tokens and two layers, for properties that must hold whatever the weights say.

Ids: 0..57 ordinary, 58 end of turn, 59 end of text, 60 mask, 61 ordinary; 62 and 63 are rows of the
embedding that no token of the tokenizer uses.
"""

from __future__ import annotations

from typing import Any

import torch

from unmask import LLM
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer

VOCAB, KNOWN, MASK, EOS, TURN_END = 64, 62, 60, 59, 58
FAMILIES = ("llada", "dream")


class StubTokenizer:
    """Numbers as text: token 7 is "7"."""

    chat_template = None

    def __len__(self) -> int:
        return KNOWN

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(KNOWN)} | {"<|eot_id|>": TURN_END}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        hidden = {MASK, EOS, TURN_END} if skip_special_tokens else set()
        return " ".join(str(id_) for id_ in ids if id_ not in hidden)


def tiny_spec(family: str = "llada", **changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": VOCAB,
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 8,
        "d_ff": 48,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "max_length": 128,
        "mask_id": MASK,
        "eos_id": EOS,
        "pad_id": EOS,
        "rope_fp32": True,
        "turn_end": "<|eot_id|>",
    }
    if family == "dream":
        values |= {"num_kv_heads": 2, "qkv_bias": True, "shift_logits": True, "rope_fp32": False}
    return ModelSpec(**(values | changes))


def tiny_model(
    family: str = "llada", seed: int = 0, sure: float = 1.5, **changes: Any
) -> Transformer:
    """Seeded random weights; `sure` scales the head: at 1.5, confidences spread over 0.1 to 1."""
    model = Transformer(tiny_spec(family, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight"):
                value.copy_(1 + 0.2 * noise)
            elif value.dim() == 1:
                value.copy_(0.2 * noise)
            elif name == "embed.weight":
                value.copy_(noise)
            else:
                scale = sure if name == "lm_head.weight" else 1.5
                value.copy_(noise * scale / value.shape[1] ** 0.5)
    return model.eval().requires_grad_(False)


def tiny_llm(family: str = "llada", seed: int = 0, sure: float = 1.5, **changes: Any) -> LLM:
    return LLM(tiny_model(family, seed, sure, **changes), tokenizer=StubTokenizer())


def want(llm: LLM, *token_ids: int, by: float = 30.0) -> LLM:
    """The same model, made to prefer `token_ids` over everything, whatever it reads."""
    model = Transformer(llm.spec)
    model.load_state_dict(llm.model.state_dict())
    model.eval().requires_grad_(False)
    plain = model.head

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden).clone()
        logits[..., list(token_ids)] += by
        return logits

    model.head = head  # type: ignore[method-assign]
    return LLM(model, tokenizer=llm.tokenizer)


class TableModel(Transformer):
    """Says `table[position]` at every position, whatever the tokens: exact order and counts by hand.

    `seen` collects what each forward was asked: (ids, positions, mixing).
    """

    def __init__(self, spec: ModelSpec, table: torch.Tensor) -> None:
        super().__init__(spec)
        self.table, self.seen = table, []

    def hidden(self, ids, positions, visible=None, backend=None, each=None):  # type: ignore[no-untyped-def]
        self.seen.append((ids.clone(), positions.clone(), backend))
        return torch.nn.functional.one_hot(positions, self.spec.max_length + 1).float()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., : len(self.table)] @ self.table


def trace_of(output: Any) -> list[list[tuple[int, int]]]:
    """Which (position, token) each forward committed."""
    return [[(commit.position, commit.token) for commit in step.committed] for step in output.trace]


def confidences_of(output: Any) -> list[float]:
    return [commit.confidence for step in output.trace for commit in step.committed]
