"""Compare answers by their likelihood."""

import unmask

PROMPT = "Tom has 3 pens. He buys 5 more pens. How many pens does he have?"
ANSWERS = ["3+5=8\n#### 8", "3+5=9\n#### 9"]

llm = unmask.LLM("demo")
scores = llm.loglikelihood([PROMPT] * len(ANSWERS), ANSWERS, mc_num=16)
for answer, score in sorted(zip(ANSWERS, scores, strict=True), key=lambda pair: -pair[1].log_prob):
    print(f"{score.log_prob:8.2f} nats  {answer!r}")
