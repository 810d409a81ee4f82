"""How many tokens an answer has, by our definition and by the published ones.

docs/reference/numbers.md says each in words. Sources: the evaluation scripts of Fast-dLLM (which CadLLM
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
    """Numbers of tokens of one answer.

    `prompt`; `response`: before the first end token or stop text; `committed`: positions decided by
    forwards, less those taken back; `fastdllm` and `d2cache`: what those harnesses count; `canvas`: all
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
    """The answer's text up to the first stop, and its counts."""
    text, num_response = cut(llm, output.token_ids, output.text, stops)
    generated = output.canvas_ids[output.prompt_length :]
    changes = sequence.trace
    committed = sum(len(step.committed) + len(step.appended) for step in changes)
    taken_back = sum(len(step.remasked) for step in changes)
    return text, Counted(
        prompt=output.prompt_length,
        response=num_response,
        committed=committed - taken_back,
        fastdllm=fastdllm_tokens(llm, output, stops, settings),
        d2cache=d2cache_tokens(generated, llm.spec.eos_id),
        canvas=len(generated),
    )


def cut(llm: LLM, ids: list[int], text: str, stops: Seq[str]) -> tuple[str, int]:
    """`text` of `ids` before the first of `stops`, and how many tokens it takes to write it."""
    ends = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not ends:
        return text, len(ids)
    end = min(ends)
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(llm.decode(ids[:middle])) >= end:
            high = middle
        else:
            low = middle + 1
    return text[:end], low


def fastdllm_tokens(llm: LLM, output: Output, stops: Seq[str], settings: EvalSettings) -> int:
    """Fast-dLLM's and CadLLM's count: ids that are not the end-of-text token.

    LLaDA: of the generated part, decoded with special tokens, cut at the first stop and tokenized again;
    on HumanEval with the chat template the whole sequence, the prompt too (their maintainer calls it a
    mistake; the published rates contain it). Dream: of the generated part as it is.
    """
    eos, start = llm.spec.eos_id, output.prompt_length
    if llm.tokenizer is None:
        return sum(id_ != eos for id_ in output.canvas_ids[start:])
    if settings.task.startswith("humaneval") and uses_chat(llm, settings):
        return sum(id_ != eos for id_ in output.canvas_ids)
    generated = output.canvas_ids[start:]
    if llm.spec.family != "dream":
        text = str(llm.tokenizer.decode(generated, skip_special_tokens=False))
        ends = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
        generated = llm.prompts.encode(text[: min(ends, default=len(text))], special=False)
    return sum(id_ != eos for id_ in generated)


def d2cache_tokens(generated: list[int], eos_id: int) -> int:
    """d2Cache's count: tokens before the first end-of-text token, all when it comes first or never."""
    at = generated.index(eos_id) if eos_id in generated else 0
    return at or len(generated)


def uses_chat(llm: LLM, settings: EvalSettings) -> bool:
    """Whether prompts go through the chat template. Raises ConfigError where there is none."""
    has_template = getattr(llm.tokenizer, "chat_template", None) is not None
    if settings.chat and not has_template:
        raise ConfigError(f"chat=True: model {llm.name!r} has no chat template; leave chat out")
    return has_template if settings.chat is None else settings.chat
