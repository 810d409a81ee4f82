"""The demo model's tokenizer: byte-level BPE trained on samples of the tasks.

Digits and newlines are always tokens of their own, so that arithmetic is done on digits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from unmask.demo.tasks import TASKS, sample

ORDINARY = 2040
MASK, TURN_END = "<|mdm_mask|>", "<|eot_id|>"
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|startoftext|>",
    "<|endoftext|>",
    MASK,
    "<|start_header_id|>",
    "<|end_header_id|>",
    TURN_END,
)
VOCABULARY = ORDINARY + len(SPECIAL_TOKENS)

# Pieces that merges never cross: a digit, a line end, ": " and "#### " of the worked
# solutions, a word with the space before it, other spaces, other signs.
PIECES = r"\d|\n|: |#### | ?\p{L}+| +|[^\s\d\p{L}]|\s"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}"
    "{{ message['content'] | trim }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "<|eot_id|>{% endfor %}"
)


def _texts(seed: int, per_task: int = 12_000) -> Iterator[str]:
    """Yield the text the merges are learned from."""
    for task in TASKS:
        rng = random.Random(f"tokenizer {task} {seed}")
        count = per_task if task in ("word_problem", "sentence") else 50
        for _ in range(count):
            example = sample(task, rng, level=3)
            if example.prompt:
                yield example.prompt
            yield example.answer


def build_tokenizer(folder: Path, seed: int = 0) -> None:
    """Train the tokenizer and save it where ``AutoTokenizer`` can load it.

    Args:
        folder: directory to write tokenizer.json and tokenizer_config.json into.
        seed: of the sampled text; the same seed gives the same tokenizer.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    missing = ORDINARY - tokenizer.get_vocab_size()
    names = [f"<|reserved_token_{k}|>" for k in range(missing)] + list(SPECIAL_TOKENS)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    if tokenizer.token_to_id(SPECIAL_TOKENS[0]) != ORDINARY:
        raise RuntimeError("the special tokens did not land at their ids")
    bos = (SPECIAL_TOKENS[0], ORDINARY)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "pad_token": SPECIAL_TOKENS[1],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
