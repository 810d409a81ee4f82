"""The bodies of replies: OpenAI's, with forwards in the usage and how it was decoded in `unmask`."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from unmask.engine.outputs import Step
from unmask.engine.token_text import TokenTexts
from unmask.server.generation import Answer
from unmask.version import __version__

Route = Literal["chat", "completion", "infill"]
PREFIX: dict[Route, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "infill": "infill-"}
OBJECT: dict[Route, str] = {
    "chat": "chat.completion",
    "completion": "text_completion",
    "infill": "infill",
}


@dataclass(frozen=True)
class Reply:
    """The parts that all bodies of one reply share."""

    route: Route
    model: str
    pieces: TokenTexts
    wants_logprobs: bool = False
    wants_trace: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    @classmethod
    def new(cls, route: Route, model: str, pieces: TokenTexts, **wants: bool) -> Reply:
        """A reply with an id of its own."""
        return cls(route, model, pieces, **wants, id=PREFIX[route] + secrets.token_hex(12))

    def head(self, *, is_chunk: bool = False) -> dict[str, Any]:
        """The outermost fields."""
        kind = OBJECT[self.route]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if is_chunk and self.route != "completion" else kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"unmask-{__version__}",
        }

    def full(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The reply without a stream."""
        choices = []
        for answer in answers:
            choice: dict[str, Any] = {"index": answer.index}
            if self.route == "chat":
                message = {"role": "assistant", "content": answer.text, "refusal": None}
                choice["message"] = message
            else:
                choice["text"] = answer.text
            choices.append(choice | self.ending(answer, 0))
        return self.head() | {
            "choices": choices,
            "usage": usage(answers),
            "unmask": answers[0].method(),
        }

    def ending(self, answer: Answer, told: int) -> dict[str, Any]:
        """What the last word on an answer says; the log-probabilities of its first `told` were said."""
        found: dict[str, Any] = {
            "finish_reason": answer.reason,
            "logprobs": self.logprobs(answer, told) if self.wants_logprobs else None,
        }
        if self.route == "infill":
            found["blanks"] = answer.blanks()
        if self.wants_trace:
            steps = answer.output.trace if answer.output is not None else None
            found["trace"] = [self.step(step) for step in steps or ()]
        return found

    def piece(self, answer: Answer, text: str, *, is_first: bool, told: int) -> dict[str, Any]:
        """A chunk of new text; `told` tokens of the answer had their log-probabilities told."""
        choice: dict[str, Any] = {"index": answer.index}
        if self.route == "chat":
            choice["delta"] = ({"role": "assistant"} if is_first else {}) | {"content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = None
        if self.wants_logprobs:
            choice["logprobs"] = self.logprobs(answer, told)
        return self.head(is_chunk=True) | {"choices": [choice | {"finish_reason": None}]}

    def canvas(self, answer: Answer, frame: dict[str, Any], *, is_first: bool) -> dict[str, Any]:
        """A chunk with a whole canvas, whose text stands in for all before it."""
        chunk = self.piece(answer, frame["text"], is_first=is_first, told=0)
        chunk["choices"][0] |= {"logprobs": None, "canvas": frame}
        return chunk

    def opening(self, answer: Answer) -> dict[str, Any]:
        """The first chunk of a chat's answer that has no text: the role alone."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": answer.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self.head(is_chunk=True) | {"choices": [choice]}

    def last(self, answer: Answer, text: str, told: int, *, is_first: bool) -> dict[str, Any]:
        """The chunk that ends an answer, with its last text."""
        choice: dict[str, Any] = {"index": answer.index}
        if self.route == "chat":
            delta = {"role": "assistant"} if is_first else {}
            # vLLM's client takes an answer without any content for a broken one
            choice["delta"] = delta | ({"content": text} if text or not answer.text else {})
        else:
            choice["text"] = text
        choice |= self.ending(answer, told)
        return self.head(is_chunk=True) | {"choices": [choice], "unmask": answer.method()}

    def usage_chunk(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk behind the last, which has no choices."""
        return self.head(is_chunk=True) | {"choices": [], "usage": usage(answers)}

    def logprobs(self, answer: Answer, told: int) -> dict[str, Any]:
        """Log-probabilities as the route spells them, but for the first `told` tokens' of the answer.

        Null where a token's is not known.
        """
        tokens = answer.probabilities()
        pieces = [self.pieces.text(item.token) for item in tokens]
        texts, values = pieces[told:], [item.logprob for item in tokens[told:]]
        if self.route == "chat":
            content = [
                {
                    "token": text,
                    "logprob": value,
                    "bytes": list(text.encode()) if "\ufffd" not in text else None,
                    "top_logprobs": [],
                }
                for text, value in zip(texts, values, strict=True)
            ]
            return {"content": content, "refusal": None}
        ends = list(accumulate(map(len, pieces), initial=0))
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": None,
            "text_offset": ends[told:-1],
        }

    def step(self, step: Step) -> dict[str, Any]:
        """What one forward changed; commits are `[position, token, confidence, text]`."""
        found = dataclasses.asdict(step)
        for key in ("committed", "replaced"):
            found[key] = [[*item, self.pieces.text(item[1])] for item in getattr(step, key)]
        return found


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens, forwards and computed positions of all answers; a prompt counts once however many answers it
    has.

    How much of it was cached is told of its first answer: the others may find what that one computed.
    """
    prompts = {answer.plan.prompt: answer.plan.num_prompt for answer in answers}
    cached = {answer.plan.prompt: answer.num_cached for answer in reversed(answers)}
    num_prompt = sum(prompts.values())
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_forwards = sum(answer.num_forwards for answer in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt + num_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        "num_forwards": num_forwards,
        "tokens_per_forward": round(num_tokens / num_forwards, 4) if num_forwards else 0.0,
        "num_queries": sum(answer.num_queries for answer in answers),
        "num_wasted": sum(answer.num_wasted for answer in answers),
    }
