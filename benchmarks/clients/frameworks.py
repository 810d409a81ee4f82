"""LangChain, LlamaIndex and litellm against a running server, with checks of every reply.

    python frameworks.py NAME URL RESULT   writes {"requests": N, "failed": M} to RESULT

NAME is langchain, llama-index, litellm or instructor, of which one needs to be installed. Each is tried for
a chat, its stream, a conversation with the client's own reply sent back, completions where it has them, and
answers as instances of a pydantic class. LangChain also runs an agent.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import openai
from sdk import QUESTION, Count, same

MODEL = "demo"
LENGTH = 48
SECOND = "And how many are 2 more?"
PROMPT = QUESTION + "\n"
ROOM = 160
"""Positions for JSON: as many as the longest call may need."""
MAX_CALLS = 3
"""Calls of the agent's calculator, after which it has to answer."""
Checks = dict[str, Callable[[], int]]
"""Checks by name; each returns the number of requests that it sent."""


def langchain_checks(url: str) -> Checks:
    """Return the checks of LangChain."""
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI, OpenAI

    options = {"model": MODEL, "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    turn = [HumanMessage(QUESTION)]

    def chat(*, use_responses_api: bool) -> int:
        llm = ChatOpenAI(
            **options, max_tokens=LENGTH, use_responses_api=use_responses_api, stream_usage=True
        )
        whole = llm.invoke(turn)
        same("stream", "".join(chunk.text for chunk in llm.stream(turn)), whole.text)
        again = llm.invoke([*turn, whole, HumanMessage(SECOND)])
        used = [reply.usage_metadata["input_tokens"] for reply in (whole, again)]
        same("longer prompt", used[1] > used[0] + whole.usage_metadata["output_tokens"] - 1, True)
        return 3

    def complete() -> int:
        llm = OpenAI(**options, max_tokens=LENGTH, temperature=0)
        same("stream", "".join(llm.stream(PROMPT)), llm.invoke(PROMPT))
        return 2

    def structured() -> int:
        """Every method of `with_structured_output`, at a high temperature."""
        methods = ("json_schema", "function_calling")
        for method in methods:
            llm = ChatOpenAI(**options, max_tokens=ROOM, temperature=1.5)
            found = llm.with_structured_output(Count, method=method).invoke(turn)
            same(method, type(found), Count)
        found = ChatOpenAI(**options, max_tokens=ROOM).with_structured_output(
            None, method="json_mode"
        )
        same("json_mode", type(found.invoke(turn)), dict)
        return len(methods) + 1

    return {
        "structured output": structured,
        "agent": lambda: langchain_agent(options),
        "chat": lambda: chat(use_responses_api=False),
        "responses": lambda: chat(use_responses_api=True),
        "completions": complete,
    }


def langchain_agent(options: dict[str, object]) -> int:
    """Run an agent with a calculator and a structured answer to its end; return its model calls.

    LangChain asks for a tool in every call (`required`); once the calculator was called `MAX_CALLS` times,
    the answer's tool is asked for by its name. The arguments always parse, or the check fails.
    """
    from langchain.agents import create_agent
    from langchain.agents.middleware import wrap_model_call
    from langchain.agents.structured_output import ToolStrategy
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    sums: list[int] = []

    @tool
    def add(left: int, right: int) -> int:
        """Return the sum of two numbers."""
        sums.append(left + right)
        return left + right

    @wrap_model_call
    def then_answer(request: object, handler: Callable[[object], object]) -> object:
        """Ask for the answer after the last call of the calculator."""
        if len(sums) >= MAX_CALLS:
            request = request.override(tools=[])  # type: ignore[attr-defined]
        return handler(request)

    llm = ChatOpenAI(**options, max_tokens=ROOM, temperature=1.0, seed=1)
    agent = create_agent(
        llm, tools=[add], response_format=ToolStrategy(Count), middleware=[then_answer]
    )
    found = agent.invoke({"messages": [HumanMessage(QUESTION)]}, {"recursion_limit": 40})
    said = [each for each in found["messages"] if isinstance(each, AIMessage)]
    same("invalid calls", [call for each in said for call in each.invalid_tool_calls], [])
    same("calls of each turn", [len(each.tool_calls) for each in said], [1] * len(said))
    same("answer", type(found["structured_response"]), Count)
    return len(said)


def llama_index_checks(url: str) -> Checks:
    """Return the checks of LlamaIndex."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    def model(*, is_chat_model: bool) -> OpenAILike:
        return OpenAILike(
            model=MODEL,
            api_base=f"{url}/v1",
            api_key="none",
            is_chat_model=is_chat_model,
            max_tokens=LENGTH,
            temperature=0,
            max_retries=0,
        )

    def chat() -> int:
        llm, turn = model(is_chat_model=True), [ChatMessage(role="user", content=QUESTION)]
        whole = llm.chat(turn)
        pieces = [chunk.delta or "" for chunk in llm.stream_chat(turn)]
        same("stream", "".join(pieces), whole.message.content)
        again = llm.chat([*turn, whole.message, ChatMessage(role="user", content=SECOND)])
        used = [reply.raw.usage.prompt_tokens for reply in (whole, again)]
        same("longer prompt", used[1] > used[0] + whole.raw.usage.completion_tokens - 1, True)
        return 3

    def complete() -> int:
        llm = model(is_chat_model=False)
        pieces = [chunk.delta or "" for chunk in llm.stream_complete(PROMPT)]
        same("stream", "".join(pieces), llm.complete(PROMPT).text)
        return 2

    def structured() -> int:
        llm = OpenAILike(
            model=MODEL,
            api_base=f"{url}/v1",
            api_key="none",
            is_chat_model=True,
            is_function_calling_model=True,
            should_use_structured_outputs=True,
            max_tokens=ROOM,
            temperature=1.0,
            max_retries=0,
        )
        found = llm.as_structured_llm(Count).complete(QUESTION)
        same("type", type(found.raw), Count)
        return 1

    return {"chat": chat, "completions": complete, "structured output": structured}


def litellm_checks(url: str) -> Checks:
    """Return the checks of litellm."""
    import litellm

    options = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    turn = [{"role": "user", "content": QUESTION}]
    common = {**options, "model": f"openai/{MODEL}", "max_tokens": LENGTH, "temperature": 0}

    def chat() -> int:
        whole = litellm.completion(**common, messages=turn)
        message = whole.choices[0].message
        chunks = litellm.completion(**common, messages=turn, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        same("stream", "".join(pieces), message.content)
        history = [*turn, message.model_dump(), {"role": "user", "content": SECOND}]
        again = litellm.completion(**common, messages=history)
        used = [reply.usage.prompt_tokens for reply in (whole, again)]
        same("longer prompt", used[1] > used[0] + whole.usage.completion_tokens - 1, True)
        return 3

    def complete() -> int:
        named = {**common, "model": f"text-completion-openai/{MODEL}", "prompt": PROMPT}
        whole = litellm.text_completion(**named)
        chunks = litellm.text_completion(**named, stream=True)
        text = "".join(chunk.choices[0].text or "" for chunk in chunks)
        same("stream", text, whole.choices[0].text)
        return 2

    def respond() -> int:
        named = {**options, "model": f"openai/{MODEL}", "max_output_tokens": LENGTH}
        whole = litellm.responses(**named, input=QUESTION)
        events = list(litellm.responses(**named, input=QUESTION, stream=True))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        same("stream", "".join(deltas), whole.output[0].content[0].text)
        return 2

    return {"chat": chat, "completions": complete, "responses": respond}


def instructor_checks(url: str) -> Checks:
    """Return the checks of instructor: every mode in which it asks for a class."""
    import instructor

    turn = [{"role": "user", "content": QUESTION}]

    def ask(mode: instructor.Mode) -> int:
        client = instructor.from_openai(
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode
        )
        found = client.chat.completions.create(
            model=MODEL,
            messages=turn,
            response_model=Count,
            max_tokens=ROOM,
            max_retries=0,
            temperature=1.0,
        )
        same("type", isinstance(found, Count), True)
        return 1

    modes = {"tools": instructor.Mode.TOOLS, "json schema": instructor.Mode.JSON_SCHEMA}
    return {name: lambda mode=mode: ask(mode) for name, mode in modes.items()}


CLIENTS = {
    "instructor": instructor_checks,
    "langchain": langchain_checks,
    "llama-index": llama_index_checks,
    "litellm": litellm_checks,
}


def main(name: str, url: str, result: str) -> int:
    """Run every check of a client; return 1 if one fails."""
    sent = failed = 0
    for title, check in CLIENTS[name](url).items():
        said = "ok"
        try:
            sent += check()
        except (openai.OpenAIError, ValueError, AttributeError, TypeError, KeyError):
            traceback.print_exc()
            said = "failed"
            failed += 1
        print(f"{title}: {said}", flush=True)
    Path(result).write_text(json.dumps({"requests": sent, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
