"""Print text as soon as it can no longer change, then watch the canvas itself."""

import unmask

PROMPT = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"

llm = unmask.LLM("demo")
for piece in llm.stream(PROMPT, "threshold", gen_length=64, block_length=8):
    print(piece, end="", flush=True)
print()
for canvas in llm.stream(PROMPT, "threshold", gen_length=32, mode="canvas"):
    print(f"{canvas.num_open} positions are open")
