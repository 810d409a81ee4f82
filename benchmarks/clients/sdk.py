"""The `openai` SDK against a running server, with checks of every reply.

    python sdk.py URL RESULT   writes {"requests": N, "failed": M} to RESULT

A check has failed when the SDK raises, or when an answer breaks a promise of docs/reference/http.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import openai
from pydantic import BaseModel

QUESTION = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"
MESSAGES = [{"role": "user", "content": QUESTION}]
USAGE = {"include_usage": True}
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Return left sign right.",
        "parameters": {
            "type": "object",
            "properties": {
                "left": {"type": "integer"},
                "sign": {"enum": ["+", "-"]},
                "right": {"type": "integer"},
            },
            "required": ["left", "sign", "right"],
            "additionalProperties": False,
        },
    },
}


class Count(BaseModel):
    """A number of things."""

    thing: Literal["eggs", "pens", "boxes"]
    number: int


class Checks:
    """Checks of one client and model, one method per kind of call."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/v1"
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)
        (self.model,) = [item.id for item in self.client.models.list()]
        self.sent = 0

    def chat(self, **more: object) -> Any:
        """Request a chat completion, or its stream."""
        self.sent += 1
        asked = {"model": self.model, "messages": MESSAGES, "max_tokens": 48, "seed": 0}
        return self.client.chat.completions.create(**(asked | more))

    def complete(self, **more: object) -> Any:
        """Request a completion, or its stream."""
        self.sent += 1
        asked = {"model": self.model, "prompt": QUESTION + "\n", "max_tokens": 48, "seed": 0}
        return self.client.completions.create(**(asked | more))

    def _check_that_a_chat_stream_is_the_reply_in_pieces(self) -> None:
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options=USAGE))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        same("text", "".join(pieces), whole.choices[0].message.content)
        same("usage", chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        same("role", chunks[0].choices[0].delta.role, "assistant")
        same("total", whole.usage.total_tokens, chunks[-1].usage.total_tokens)
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        same("end", ends[-1], whole.choices[0].finish_reason)
        same("ends before the last", [end for end in ends[:-1] if end], [])

    def _check_that_a_completion_stream_is_the_reply_in_pieces(self) -> None:
        whole = self.complete()
        chunks = list(self.complete(stream=True, stream_options=USAGE))
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        same("text", text, whole.choices[0].text)
        same("usage", chunks[-1].usage, whole.usage)

    def _check_that_a_response_is_the_chat_and_goes_back_as_history(self) -> None:
        chat = self.chat()
        asked = {"model": self.model, "input": QUESTION, "max_output_tokens": 48}
        whole = self.client.responses.create(**asked)
        same("text", whole.output_text, chat.choices[0].message.content)
        with self.client.responses.stream(**asked) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            final = stream.get_final_response()
        same("streamed text", text, final.output_text)
        own = [item.to_dict() for item in final.output]
        asked["input"] = [*MESSAGES, *own, {"role": "user", "content": "And 2 more?"}]
        self.client.responses.create(**asked)
        self.sent += 3

    def _check_that_several_answers_are_as_many_choices(self) -> None:
        found = self.chat(n=3, temperature=0.8)
        same("indexes", [choice.index for choice in found.choices], [0, 1, 2])
        again = self.chat(n=3, temperature=0.8)
        texts = [[choice.message.content for choice in one.choices] for one in (found, again)]
        same("texts of one seed", *texts)
        both = self.complete(prompt=[QUESTION + "\n", "Tom has 2 pens.\n"], n=2, temperature=0.5)
        same("indexes", [choice.index for choice in both.choices], [0, 1, 2, 3])
        streamed = {0: "", 1: "", 2: ""}
        for chunk in self.chat(n=3, temperature=0.8, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        same("streamed texts", list(streamed.values()), texts[0])

    def _check_that_logprobs_are_one_a_token(self) -> None:
        found = self.chat(logprobs=True)
        told = found.choices[0].logprobs.content
        same(
            "text of the tokens",
            "".join(one.token for one in told),
            found.choices[0].message.content,
        )
        same("number", len(told), found.usage.completion_tokens)
        same("above 0", [one.logprob for one in told if one.logprob > 0], [])
        texts = self.complete(logprobs=0)
        same("number", len(texts.choices[0].logprobs.tokens), texts.usage.completion_tokens)

    def _check_that_a_stop_ends_the_answer_and_is_cut_off(self) -> None:
        whole = self.chat().choices[0].message.content
        stop = whole[len(whole) // 2 :][:3]
        found = self.chat(stop=[stop, "@@@"])
        same("text", found.choices[0].message.content, whole[: whole.index(stop)])
        same("end", found.choices[0].finish_reason, "stop")
        chunks = list(self.chat(stop=stop, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        same("streamed text", text, whole[: whole.index(stop)])

    def _check_that_a_suffix_is_an_infill(self) -> None:
        found = self.complete(prompt="The cat ", suffix=" on the mat.", max_tokens=3)
        same("tokens asked for", found.usage.completion_tokens <= 3, True)

    def _check_that_parse_returns_an_instance_of_a_pydantic_class(self) -> None:
        asked = {"model": self.model, "messages": MESSAGES, "max_tokens": 96}
        for seed in range(3):
            found = self.client.chat.completions.parse(
                **asked, seed=seed, temperature=1.0, response_format=Count
            )
            same("type", type(found.choices[0].message.parsed), Count)
        with self.client.chat.completions.stream(**asked, response_format=Count) as stream:
            final = stream.get_final_completion()
        same("type", type(final.choices[0].message.parsed), Count)
        answer = self.client.responses.parse(
            model=self.model, input=QUESTION, max_output_tokens=96, text_format=Count
        )
        same("type", type(answer.output_parsed), Count)
        self.sent += 5

    def _check_that_a_call_is_the_same_in_a_stream_and_parses(self) -> None:
        asked = {"tools": [TOOL], "max_tokens": 96, "tool_choice": "required"}
        whole = self.chat(**asked)
        (call,) = whole.choices[0].message.tool_calls
        given = json.loads(call.function.arguments)
        same("arguments", sorted(given), ["left", "right", "sign"])
        name, text = "", ""
        for chunk in self.chat(**asked, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                name += part.function.name or ""
                text += part.function.arguments or ""
        same("streamed call", (name, json.loads(text)), (call.function.name, given))
        same("end", chunk.choices[0].finish_reason, "tool_calls")
        history = [
            *MESSAGES,
            whole.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "12"},
        ]
        found = self.client.chat.completions.parse(
            model=self.model,
            messages=history,
            max_tokens=96,
            tools=[openai.pydantic_function_tool(Count)],
            tool_choice={"type": "function", "function": {"name": "Count"}},
        )
        (parsed,) = found.choices[0].message.tool_calls
        same("type", type(parsed.function.parsed_arguments), Count)
        self.sent += 1

    def _check_that_our_own_fields_pass_through(self) -> None:
        found = self.chat(extra_body={"decoder": "klass", "cache": "dual"})
        same("decoder", found.unmask["decoder"].startswith("klass"), True)
        same("forwards", found.usage.num_forwards > 0, True)

    def _check_that_answers_together_are_those_alone(self) -> None:
        async def ask() -> list[str]:
            async with openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0) as many:
                asked = {"model": self.model, "messages": MESSAGES, "max_tokens": 48}
                found = await asyncio.gather(
                    *(many.chat.completions.create(**asked, seed=seed) for seed in range(6))
                )
            return [one.choices[0].message.content for one in found]

        self.sent += 6
        same("texts", set(asyncio.run(ask())), {self.chat().choices[0].message.content})


def same(what: str, found: object, wanted: object) -> None:
    """Raise ValueError unless both are equal."""
    if found != wanted:
        raise ValueError(f"{what}: {found!r} instead of {wanted!r}")


def main(url: str, result: str) -> int:
    """Run every check; return 1 if one fails."""
    checks = Checks(url)
    names = [name for name in vars(Checks) if name.startswith("_check_")]
    failed = 0
    for name in names:
        check: Callable[[], None] = getattr(checks, name)
        said = "ok"
        try:
            check()
        except (openai.OpenAIError, ValueError, AttributeError, TypeError, KeyError):
            traceback.print_exc()
            said = "failed"
            failed += 1
        print(f"{name.removeprefix('_check_that_').replace('_', ' ')}: {said}", flush=True)
    Path(result).write_text(json.dumps({"requests": checks.sent, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
