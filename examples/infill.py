"""Fill blanks inside a text; numbers are counts of tokens."""

import unmask

llm = unmask.LLM("demo")
out = llm.infill(["The ", 2, " sat on the mat."])
print(out.text)
print("blanks:", list(out.blanks))
