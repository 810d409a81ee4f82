"""Early answer convergence: scores of the answer completed before every forward of a decode.

Before every forward of a traced decode, all open positions of its canvas are filled with the argmax of the
model's logits, and this answer is scored as the task scores answers. Source: arXiv:2508.19982 (Prophet),
Fig. 1, "early answer convergence".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Canvas
from unmask.evals.token_counts import cut
from unmask.evals.traces import AnswerTrace, replay

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from unmask.engine.llm import LLM

CONFIDENCE = "confidence.json"
POINTS = 21
"""Number of evenly spaced points of the curve, from the first forward to the end."""
Judge = Callable[[int, str], float]
"""Function that returns the score of a text as the answer to a document."""


def complete(llm: LLM, canvas: Canvas) -> tuple[list[int], dict[int, float]]:
    """Return the answer with open positions filled in by argmax, and the confidence in each of them.

    The confidence is by position in the answer. Runs one forward without a cache.
    """
    import torch

    tokens = canvas.tokens.copy()
    positions = canvas.open_positions()
    confidence: dict[int, float] = {}
    if len(positions):
        rows = np.maximum(positions - 1, 0) if llm.spec.shift_logits else positions
        with torch.inference_mode():
            ids = torch.from_numpy(canvas.tokens)[None].to(llm.model.device)
            logits = llm.model(ids)[0, torch.from_numpy(rows).to(llm.model.device)].float()
            logits[:, llm.vocabulary.forbidden] = -math.inf
            best, chosen = logits.softmax(-1).max(-1)
            tokens[positions] = chosen.cpu().numpy()
            offsets = (positions - canvas.prompt_length).tolist()
            confidence = dict(zip(offsets, best.tolist(), strict=True))
    answer: list[int] = tokens[canvas.prompt_length :].tolist()
    return answer, confidence


class ConfidenceMap:
    """Mean confidence over documents, by forward and position in the answer."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[float]] = {}

    def add(self, forward: int, confidence: dict[int, float]) -> None:
        """Add the confidence at one forward of one document."""
        for position, value in confidence.items():
            self._cells.setdefault((forward, position), []).append(value)

    def rows(self) -> list[list[float | None]]:
        """Return the mean of each forward and position, None where there is no value."""
        if not self._cells:
            return []
        num_rows, width = (1 + max(key[axis] for key in self._cells) for axis in (0, 1))
        rows: list[list[float | None]] = [[None] * width for _ in range(num_rows)]
        for (forward, position), values in self._cells.items():
            rows[forward][position] = round(sum(values) / len(values), 4)
        return rows


def scores(
    llm: LLM,
    trace: AnswerTrace,
    stops: Sequence[str],
    judge: Callable[[str], float],
    confidences: ConfidenceMap,
) -> Iterator[float]:
    """Yield the score before each forward and at the end; adds the confidences to `confidences`."""
    for number, canvas in enumerate(replay(trace, llm.spec.mask_id)):
        ids, confidence = complete(llm, canvas)
        confidences.add(number, confidence)
        end = next((i for i, id_ in enumerate(ids) if id_ in llm.stop_ids), len(ids))
        yield judge(cut(llm, ids[:end], llm.decode(ids[:end]), stops)[0])


def curve(listed: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean score at each of `POINTS` shares of the forwards, over decodes of any length."""
    shares = [point / (POINTS - 1) for point in range(POINTS)]
    return tuple(
        sum(s[round(share * (len(s) - 1))] for s in listed) / len(listed) for share in shares
    )


def judge_of(task: ConfigurableTask, metric: str, filter_name: str) -> Judge:
    """Return a function that filters and scores a text as lm-eval's task does."""
    from lm_eval.api.instance import Instance

    docs = task.eval_docs
    filters = [item for item in getattr(task, "_filters", ()) if item.name == filter_name]

    def judge(number: int, text: str) -> float:
        doc = docs[number]
        instance = Instance("generate_until", doc, ("", {}), 0, (task.config.task, number, 1))
        instance.resps.append(text)
        for item in filters:
            item.apply([instance])
        filtered = instance.filtered_resps.get(filter_name, text)
        return float(task.process_results(doc, [filtered])[metric])

    return judge
