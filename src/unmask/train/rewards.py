"""Rows with prompts for reinforcement learning, and the rewards of answers to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unmask.data.fields import PROMPTS, RESPONSES
from unmask.data.records import DataRow
from unmask.errors import ConfigError, cut_text
from unmask.own_code import load_function
from unmask.train.config import TrainConfig
from unmask.train.files import find_sources
from unmask.train.prepare import Prepared, row_encoder
from unmask.train.rows import PROMPT, RowEncoder, TokenRow
from unmask.train.store import Account, examples

Row = Mapping[str, object]
Reward = Callable[[Row, str], float]
"""The reward of an answer's text to a row, which has the text `prompt` and mostly `response`."""


def exact_match(row: Row, answer: str) -> float:
    """Return 1.0 for an answer equal to the row's `response`, spaces around it aside, else 0.0."""
    return float(answer.strip() == str(row.get("response")).strip())


@dataclass(frozen=True)
class PromptRow:
    """The tokens before a row's first trained token, and all fields of the row.

    `values` has the texts `prompt` and `response` in any form of row: the fields of these names or their
    synonyms, else the decoded tokens; a row with a prompt alone has no `response`.
    """

    ids: list[int]
    values: Row
    place: str


def find_reward(name: str) -> Reward:
    """Return the function of `rl.reward`. Raises ConfigError, PluginError."""
    if name == "exact_match":
        return exact_match
    if name.startswith("python:"):
        name = f"{name.removeprefix('python:')}:reward"
    if ":" not in name:
        raise ConfigError(
            f"rl.reward={cut_text(name)} is neither exact_match nor FILE.py:NAME nor module:NAME; name a "
            f"function, such as unmask.evals.rewards:countdown"
        )
    return load_function(name)  # type: ignore[return-value]


def checked_reward(reward: Reward, row: PromptRow, answer: str) -> float:
    """Return the reward of an answer. Raises ConfigError when the function fails or returns no number."""
    try:
        value = reward(row.values, answer)
    except Exception as error:  # a user's function raises errors of every kind
        raise ConfigError(
            f"rl.reward failed on {row.place} ({type(error).__name__}: {cut_text(str(error), 200)}); "
            f"correct the function or the row"
        ) from error
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(
            f"rl.reward returned {cut_text(repr(value))} for {row.place}; it must return a finite number"
        )
    return float(value)


def prompt_rows(
    config: TrainConfig, prepared: Prepared, room: int, reward: Reward
) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return the rows of `data`, in the order of the store, and those of `data.eval`.

    All rows are in memory. Raises ConfigError for a row without a prompt, and for a prompt of more than
    `room` tokens, beside which the context does not hold the answer; and for a row without a response
    that `reward` is to compare.
    """
    encoder = row_encoder(config, prepared.start)
    found: list[list[PromptRow]] = [[], []]
    paths = (config.data.path, () if config.data.eval is None else (config.data.eval,))
    for rows, each in zip(found, paths, strict=True):
        if not each:
            continue
        sources = find_sources(each, config.data.split)
        for _, row, example in examples(sources, encoder, prepared.reading, Account()):
            ids = example.ids[: example.loss.index(True)]
            if not ids:
                raise row.error(
                    " has no prompt, which objective=diffu_grpo answers; give prompt and response, or "
                    "messages"
                )
            if len(ids) > room:
                raise row.error(
                    f": its prompt has {len(ids)} tokens, and with rl.gen_length={config.rl.gen_length} "
                    f"the context holds {room}; lower rl.gen_length, or shorten the prompt"
                )
            if example.form == PROMPT and reward is exact_match:
                raise row.error(
                    " has no response, which rl.reward=exact_match compares with the answer; add it, or "
                    "name a function in rl.reward"
                )
            place = f"{row.path}, {row.place}"
            rows.append(PromptRow(ids, _values(row, example, ids, encoder), place))
    assert len(found[0]) == len(prepared.store), "the store holds these rows"
    return found[0], found[1]


def _values(row: DataRow, example: TokenRow, ids: list[int], encoder: RowEncoder) -> Row:
    if example.form == PROMPT:
        named = row.has(*PROMPTS) and not row.has("messages")
        if named or encoder.tokenizer is None:
            return {**row.values, "prompt": row.text(*PROMPTS)}
        return {
            **row.values,
            "prompt": str(encoder.tokenizer.decode(ids, skip_special_tokens=True)),
        }
    if example.form == "prompt_response":
        return {**row.values, "prompt": row.text(*PROMPTS), "response": row.text(*RESPONSES)}
    if encoder.tokenizer is None:
        return {**row.values, "prompt": "", "response": ""}
    answer = [token for token, flag in zip(example.ids, example.loss, strict=True) if flag]
    prompt, response = (
        str(encoder.tokenizer.decode(each, skip_special_tokens=True)) for each in (ids, answer)
    )
    return {**row.values, "prompt": prompt, "response": response}
