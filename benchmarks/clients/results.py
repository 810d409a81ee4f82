"""Reader of the results of the clients.

python results.py counts KIND FILE       "REQUESTS FAILED", from the client's own result
python results.py refused URL            how many questions the server has refused so far
python results.py compare THEIRS OURS    rows that SGLang's client and ours should agree on
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

EQUAL_ROWS = (
    "completed",
    "total_input_tokens",
    "total_output_tokens",
    "total_output_tokens_retokenized",
)
"""Of the same load; all others are times or made of them."""
ROUTES = re.compile(
    r'unmask:http_requests_total\{route="(/v1/.*completions|/generate)",status="(\d+)"\} (.*)'
)


def last_line(path: Path) -> dict:
    """Return the last JSON of a file that runs append to."""
    return json.loads(path.read_text().strip().splitlines()[-1])


def of_sdk(path: Path) -> tuple[int, int]:
    """Read the result of `sdk.py`."""
    found = json.loads(path.read_text())
    return found["requests"], found["failed"]


def of_sglang(path: Path) -> tuple[int, int]:
    """Read an `--output-file` with `--output-details`."""
    found = last_line(path)
    asked = len(found["errors"])
    return asked, asked - found["completed"]


def of_vllm(path: Path) -> tuple[int, int]:
    """Read a `--save-result`."""
    found = json.loads(path.read_text())
    return found["num_prompts"], found["num_prompts"] - found["completed"]


def of_guidellm(path: Path) -> tuple[int, int]:
    """Read guidellm's JSON output."""
    totals = [
        each["metrics"]["request_totals"] for each in json.loads(path.read_text())["benchmarks"]
    ]
    asked = sum(each["total"] for each in totals)
    return asked, asked - sum(each["successful"] for each in totals)


def of_lm_eval(path: Path) -> tuple[int, int]:
    """Count answers in lm-eval's log of samples; a request that fails for good ends lm-eval itself."""
    (file,) = path.rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return len(samples), sum(not each["resps"] for each in samples)


def of_unmask(path: Path) -> tuple[int, int]:
    """Read an `--output-file` of `bench serve`, or the `--json` of a task."""
    found = last_line(path)
    asked = found["num_prompts"] if "num_prompts" in found else found["num_questions"]
    return asked, found["failed"]


KINDS: dict[str, Callable[[Path], tuple[int, int]]] = {
    "sdk": of_sdk,
    "sglang": of_sglang,
    "vllm": of_vllm,
    "guidellm": of_guidellm,
    "lm-eval": of_lm_eval,
    "unmask": of_unmask,
}


def counts(kind: str, path: str) -> str:
    """Return the numbers of requests sent and failed."""
    asked, failed = KINDS[kind](Path(path))
    return f"{asked} {failed}"


def refused(url: str) -> str:
    """Return the server's own count; clients also look for routes that not every server has."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
        text = page.read().decode()
    found = [(status, float(value)) for _, status, value in ROUTES.findall(text)]
    return str(int(sum(value for status, value in found if status != "200")))


def compare(theirs: str, ours: str) -> str:
    """Return the lines of a Markdown table."""
    one, two = last_line(Path(theirs)), last_line(Path(ours))
    return "\n".join(
        f"| {one['backend']} | {row} | {one[row]} | {two[row]} | "
        f"{'equal' if one[row] == two[row] else 'DIFFERENT'} |"
        for row in EQUAL_ROWS
    )


if __name__ == "__main__":
    print({"counts": counts, "refused": refused, "compare": compare}[sys.argv[1]](*sys.argv[2:]))
