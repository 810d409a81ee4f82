"""Decode a prompt with three methods and compare their forwards."""

import unmask

PROMPT = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"

llm = unmask.LLM("demo")
for decoder in ("vanilla", "threshold", "wino"):
    (out,) = llm.generate(PROMPT, decoder, gen_length=64)
    print(f"{decoder}: {out.num_forwards} forwards, answer {out.text.split()[-1]}")
