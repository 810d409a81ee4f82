"""Answer many prompts at once from coroutines; the engine decodes them in shared forwards."""

import asyncio

import unmask

PROMPTS = [
    f"Tom has {n} pens. He buys 5 more pens. How many pens does he have?" for n in range(2, 10)
]


async def main() -> None:
    """Ask all prompts and print the last lines of the answers."""
    async with unmask.AsyncLLM("demo") as llm:
        calls = (llm.generate(prompt, "threshold", gen_length=48) for prompt in PROMPTS)
        for out in await asyncio.gather(*calls):
            print(out.text.splitlines()[-1], f"({out.num_forwards} forwards)")


asyncio.run(main())
