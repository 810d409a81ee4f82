"""Token counts of an answer: unmask's definition, and those of published evaluations.

docs/reference/numbers.md defines each in words. Sources: the evaluation scripts of Fast-dLLM (which CadLLM
uses unchanged) and of d2Cache, as published.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import ConfigError
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.outputs import Output
    from unmask.engine.sequence import SequenceState


@dataclass(frozen=True)
class Counted:
    """Token counts of one answer.

    `prompt`; `response`: before the first end token or stop text; `committed`: positions committed by
    forwards, less the remasked ones; `fastdllm` and `d2cache`: counts of those evaluations; `canvas`: all
    generated positions, d2Cache's "full".
    """

    prompt: int = 0
    response: int = 0
    committed: int = 0
    fastdllm: int = 0
    d2cache: int = 0
    canvas: int = 0


def count(
    llm: LLM, sequence: SequenceState, output: Output, stops: Seq[str], settings: EvalSettings
) -> tuple[str, Counted]:
    """Return the text of the answer up to the first stop, and its counts."""
    text, num_response = cut(llm, output.token_ids, output.text, stops)
    generated = output.canvas_ids[output.prompt_length :]
    changes = sequence.trace
    committed = sum(len(step.committed) + len(step.appended) for step in changes)
    remasked = sum(len(step.remasked) for step in changes)
    return text, Counted(
        prompt=output.prompt_length,
        response=num_response,
        committed=committed - remasked,
        fastdllm=fastdllm_tokens(llm, output, stops, settings),
        d2cache=d2cache_tokens(generated, llm.spec.eos_id),
        canvas=len(generated),
    )


def cut(llm: LLM, ids: list[int], text: str, stops: Seq[str]) -> tuple[str, int]:
    """Return `text` of `ids` before the first of `stops`, and the number of ids that cover it."""
    end = _first_stop(text, stops)
    if end is None:
        return text, len(ids)
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(llm.decode(ids[:middle])) >= end:
            high = middle
        else:
            low = middle + 1
    return text[:end], low


def _first_stop(text: str, stops: Seq[str]) -> int | None:
    """Return the index of the first stop in a text; None if there is none."""
    return min((at for at in (text.find(stop) for stop in stops if stop) if at >= 0), default=None)


def fastdllm_tokens(llm: LLM, output: Output, stops: Seq[str], settings: EvalSettings) -> int:
    """Return the count of Fast-dLLM and CadLLM: ids that are not the end-of-text token.

    LLaDA: of the generated part, decoded with special tokens, cut at the first stop and tokenized again;
    on HumanEval with the chat template of the whole sequence, prompt included (a mistake according to their
    maintainer, but part of the published rates). Dream: of the generated part unchanged.
    """
    eos, start = llm.spec.eos_id, output.prompt_length
    if llm.tokenizer is None:
        return sum(id_ != eos for id_ in output.canvas_ids[start:])
    if settings.task.startswith("humaneval") and uses_chat(llm, settings):
        return sum(id_ != eos for id_ in output.canvas_ids)
    generated = output.canvas_ids[start:]
    if llm.spec.family != "dream":
        text = str(llm.tokenizer.decode(generated, skip_special_tokens=False))
        generated = llm.prompts.encode(text[: _first_stop(text, stops)], special=False)
    return sum(id_ != eos for id_ in generated)


def d2cache_tokens(generated: list[int], eos_id: int) -> int:
    """Return d2Cache's count: tokens before the first end of text, or all if it is first or missing."""
    at = generated.index(eos_id) if eos_id in generated else 0
    return at or len(generated)


def uses_chat(llm: LLM, settings: EvalSettings) -> bool:
    """Return True if prompts use the chat template. Raises ConfigError if required and missing."""
    has_template = llm.prompts.chat.template() is not None
    if settings.chat and not has_template:
        raise ConfigError(f"chat=True: model {llm.name!r} has no chat template; leave chat out")
    return has_template if settings.chat is None else settings.chat
