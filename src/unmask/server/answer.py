"""One answer on its way: what its updates have told so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from unmask.caches import describe as describe_cache
from unmask.canvas import Canvas
from unmask.decoders import describe
from unmask.engine.request import Output
from unmask.server.frames import Confidences, frame
from unmask.server.plans import Plan
from unmask.server.stream import TextStream

if TYPE_CHECKING:
    from unmask.engine.answers import Text
    from unmask.engine.service import Update
    from unmask.view.terminal import Pieces


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token of the answer and its log-probability in nats when it was committed (None: not known)."""

    token: int
    logprob: float | None


class Answer:
    """Fed with the engine's updates in their order.

    `reason` is None until the answer is over. `text` is what has been released, all of it then.
    """

    def __init__(self, plan: Plan, decode: Text) -> None:
        self.plan = plan
        has_given = plan.request.canvas.infilling and plan.start == 0  # they are answered too
        given = plan.request.canvas.fixed if has_given else None
        self.stream = TextStream(partial(decode, given=given), plan.ends, plan.start, plan.size)
        self.confidences = Confidences()
        self.canvas: Canvas = plan.request.canvas
        self.num_forwards, self.num_queries, self.num_settled, self.num_cached = 0, 0, 0, 0
        self.reason: str | None = None
        self.output: Output | None = None

    @property
    def index(self) -> int:
        """The choice's number."""
        return self.plan.index

    @property
    def text(self) -> str:
        """The released text."""
        return self.stream.text

    @property
    def is_infill(self) -> bool:
        """Whether the answer is a given text with its blanks filled, not the middle of one."""
        return self.plan.request.canvas.infilling and self.plan.size is None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer that are certain, without its end; of an infill the filled ones."""
        if self.is_infill:
            return int((~self.canvas.fixed[: self.num_settled]).sum())
        return self.stream.num_tokens

    @property
    def num_wasted(self) -> int:
        """Slots that were computed right of the end token, of `num_queries`; 0 until the answer is over."""
        return 0 if self.output is None else self.output.num_wasted

    @property
    def found_stop(self) -> bool:
        """Whether the text is over although the engine may not know it: a stop string was found."""
        return self.stream.ended is not None

    def take(self, update: Update) -> str:
        """The text that an update makes certain."""
        if update.kind == "step":
            self.confidences.follow(update.before, update.edit)
        self.canvas = update.canvas
        self.num_forwards, self.num_queries = update.num_forwards, update.num_queries
        self.num_settled = update.num_settled
        self.num_cached = min(update.num_cached, self.plan.num_prompt)
        is_last = update.kind == "done"
        if is_last:
            self.output = update.output
            if self.canvas.num_open == 0:
                self.num_settled = len(self.canvas)
        new = self.stream.feed(self.canvas, self.num_settled, is_last=is_last)
        if is_last:
            self.reason = self._finish_reason(update.output)
        return new

    def _finish_reason(self, output: Output | None) -> str:
        if self.stream.ended is not None:
            return self.stream.ended
        if output is None or not self.plan.ends.stop_ids:
            return "length"
        return output.finish_reason

    def blanks(self) -> list[str]:
        """The filled texts of an infill, when it is over."""
        return [] if self.output is None else list(self.output.blanks)

    def probabilities(self) -> list[TokenProbability]:
        """The answer's certain tokens."""
        if self.is_infill:
            slots = [i for i in range(self.num_settled) if not self.canvas.fixed[i]]
        else:
            slots = list(range(self.plan.start, self.plan.start + self.stream.num_tokens))
        return [
            TokenProbability(
                int(self.canvas.tokens[slot]),
                self.confidences.log_probability(int(self.canvas.uid[slot])),
            )
            for slot in slots
        ]

    def first_frame(self, update: Update, pieces: Pieces) -> dict[str, Any]:
        """The canvas before the first forward, of the first update."""
        return frame(update.before, None, Confidences(), pieces, forward=0, num_settled=0)

    def frame(self, update: Update, pieces: Pieces) -> dict[str, Any]:
        """The canvas after an update that was taken."""
        changed = (update.before, update.edit) if update.kind == "step" else None
        return frame(
            self.canvas,
            changed,
            self.confidences,
            pieces,
            forward=self.num_forwards,
            num_settled=self.num_settled,
            end_ids=self.plan.request.stop_ids,
        )

    def method(self) -> dict[str, Any]:
        """How it was decoded, with what is needed to repeat it."""
        request = self.plan.request
        return {
            "decoder": describe(request.decoder),
            "cache": describe_cache(request.cache),
            "cache_exact": bool(request.cache.exact),
            "seed": request.seed,
        }
