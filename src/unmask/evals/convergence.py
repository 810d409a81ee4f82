"""When in a decode was the answer already right?

Before every forward of a traced decode, all open positions of its canvas get the token that the model finds
likeliest then, and the answer so completed is judged as the task judges answers. Source: arXiv:2508.19982
(Prophet), Fig. 1, "early answer convergence".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.canvas import Canvas
from unmask.evals.token_counts import cut
from unmask.evals.traces import replay

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

CONFIDENCE = "confidence.json"
POINTS = 21
"""Places on the way from the first forward (0) to the end (1) at which the curve is read."""
Judge = Callable[[int, str], float]
"""The score of a text as the answer to a document."""


def completed(llm: LLM, canvas: Canvas) -> tuple[list[int], dict[int, float]]:
    """The generated part with the likeliest token in every open position, and their probabilities by place.

    One forward without a cache.
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
            places = (positions - canvas.prompt_length).tolist()
            confidence = dict(zip(places, best.tolist(), strict=True))
    found: list[int] = tokens[canvas.prompt_length :].tolist()
    return found, confidence


class ConfidenceMap:
    """Means by forward and place, over documents."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[float]] = {}

    def add(self, forward: int, confidence: dict[int, float]) -> None:
        """What one forward of one document showed."""
        for place, value in confidence.items():
            self._cells.setdefault((forward, place), []).append(value)

    def rows(self) -> list[list[float | None]]:
        """`rows()[k][p]`, with None where there was nothing; empty when nothing was added."""
        if not self._cells:
            return []
        num_rows, width = (1 + max(key[axis] for key in self._cells) for axis in (0, 1))
        found: list[list[float | None]] = [[None] * width for _ in range(num_rows)]
        for (forward, place), values in self._cells.items():
            found[forward][place] = round(sum(values) / len(values), 4)
        return found


def scores(
    llm: LLM,
    trace: dict[str, Any],
    stops: Sequence[str],
    judge: Callable[[str], float],
    seen: ConfidenceMap,
) -> Iterator[float]:
    """The score before each forward, and of the end; adds to `seen` what the forwards show."""
    for number, canvas in enumerate(replay(trace, llm.spec.mask_id)):
        ids, confidence = completed(llm, canvas)
        seen.add(number, confidence)
        end = next((i for i, id_ in enumerate(ids) if id_ in llm.stop_ids), len(ids))
        yield judge(cut(llm, ids[:end], llm.decode(ids[:end]), stops)[0])


def curve(listed: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean score at each of `POINTS` shares of the forwards, over decodes of any lengths."""
    found = []
    for point in range(POINTS):
        share = point / (POINTS - 1)
        found.append(sum(s[round(share * (len(s) - 1))] for s in listed) / len(listed))
    return tuple(found)


def judge_of(task: Any, metric: str, filter_name: str) -> Judge:
    """Judges a text as lm-eval's task would: filtered, then scored."""
    from lm_eval.api.instance import Instance

    docs = task.eval_docs
    filters = [item for item in getattr(task, "_filters", ()) if item.name == filter_name]

    def judge(number: int, text: str) -> float:
        doc = docs[number]
        asked = Instance("generate_until", doc, ("", {}), 0, (task.config.task, number, 1))
        asked.resps.append(text)
        for item in filters:
            item.apply([asked])
        filtered = asked.filtered_resps.get(filter_name, text)
        return float(task.process_results(doc, [filtered])[metric])

    return judge
