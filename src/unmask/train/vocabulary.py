"""A tokenizer learned from the rows: byte-level BPE with the special tokens of a diffusion model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from unmask.data.fields import PROMPTS, RESPONSES
from unmask.data.records import DataRow
from unmask.durable import new_folder
from unmask.errors import ConfigError
from unmask.train.files import RowSource

END, MASK, TURN_END, BEGIN = "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>", "<|startoftext|>"
SPECIAL_TOKENS = (BEGIN, END, MASK, TURN_END)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|eot_id|>{% endfor %}"
)
MAX_CHARACTERS = 50_000_000
"""Maximum number of characters of the rows from which merges are learned; later rows are not read."""


def texts_of_rows(rows: Iterable[DataRow | ConfigError]) -> Iterator[str]:
    """Yield the texts of rows of any form; rows that cannot be read, and token ids, have none."""
    count = 0
    for row in rows:
        if isinstance(row, ConfigError):
            continue
        found = [row.values.get(name) for name in ("text", *PROMPTS, "input", *RESPONSES)]
        messages = row.values.get("messages")
        if isinstance(messages, list):
            found += [item.get("content") for item in messages if isinstance(item, dict)]
        for text in found:
            if isinstance(text, str) and text:
                count += len(text)
                yield text.encode("utf-8", "replace").decode()
        if count > MAX_CHARACTERS:
            return


def learn_tokenizer(sources: Iterable[RowSource], vocab_size: int, folder: Path) -> None:
    """Write a tokenizer of at most `vocab_size` tokens, learned from the rows, into the new `folder`.

    The same rows give the same tokenizer. Raises ConfigError when the rows have no text.
    """
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for source in sources:
            for text in texts_of_rows(source.rows()):
                count += 1
                yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not count:
        raise ConfigError(
            "init=null learns a tokenizer from texts, and the rows have none; give tokenizer=FOLDER"
        )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        tokenizer.save(str(partial / "tokenizer.json"))
        text = json.dumps(config, indent=2) + "\n"
        (partial / "tokenizer_config.json").write_text(text, encoding="utf-8")
