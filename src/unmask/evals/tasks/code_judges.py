"""Whether code answers pass their tests: the `process_results` of HumanEval and MBPP."""

from __future__ import annotations

from typing import Any

from unmask.evals.code import humaneval_program, mbpp_program
from unmask.evals.sandbox import run_program


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The answer's function passes the problem's check."""
    program = humaneval_program(doc["prompt"], results[0], doc["entry_point"])
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(run_program(f"{program}\n\n{tests}").passed)}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The answer's code passes all of the problem's assertions."""
    program = mbpp_program(results[0])
    tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
    return {"pass_at_1": float(run_program(f"{program}\n\n{tests}\n").passed)}
