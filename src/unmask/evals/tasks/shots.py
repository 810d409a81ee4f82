"""Few-shot examples and instructions of prompts."""

from __future__ import annotations

from importlib import resources

SUDOKU_SHOTS = (
    ("2013\n0304\n4002\n0241", "2413\n1324\n4132\n3241"),
    ("0340\n4103\n1030\n0412", "2341\n4123\n1234\n3412"),
)
COUNTDOWN_SHOTS = (
    ("8,5,30,43", "8+5=13,13+30=43"),
    ("60,4,9,24", "60/4=15,15+9=24"),
    ("7,70,6,57", "70-7=63,63-6=57"),
)


def sudoku(puzzle: str) -> str:
    """Return the prompt of a puzzle: instruction, two solved puzzles, and this one."""
    instruction = (
        "Fill in the 4x4 Sudoku. 0 is an empty cell. Every row, every column and every 2x2 box has 1, 2, "
        "3 and 4 once. Answer with the four rows."
    )
    parts = [f"Sudoku:\n{before}\nSolution:\n{after}" for before, after in SUDOKU_SHOTS]
    return "\n\n".join([instruction, *parts, f"Sudoku:\n{puzzle}\nSolution:\n"])


def countdown(numbers: str) -> str:
    """Return the prompt of a puzzle, whose last number is the target, after three solved ones."""
    instruction = (
        "Reach the last number with +, -, * and / from the others. Use each of them once, and every result "
        "once. Answer with the equations, with commas between them."
    )
    parts = [f"Numbers: {before}\nEquations: {after}" for before, after in COUNTDOWN_SHOTS]
    return "\n\n".join([instruction, *parts, f"Numbers: {numbers}\nEquations: "])


def gsm8k_cot() -> list[dict[str, str]]:
    """Return the eight worked examples of arXiv:2201.11903, from lm-eval's own task file."""
    import yaml

    path = resources.files("lm_eval").joinpath("tasks/gsm8k/gsm8k-cot.yaml")
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    samples: list[dict[str, str]] = task["fewshot_config"]["samples"]
    return samples


def math500() -> list[dict[str, str]]:
    """Return four worked examples, written for unmask in the style of the set."""
    return [
        {
            "problem": "What is the remainder when $7^{10}$ is divided by $5$?",
            "solution": "Since $7 \\equiv 2 \\pmod 5$ and $2^4 \\equiv 1 \\pmod 5$, we have "
            "$7^{10} \\equiv 2^{10} = 2^4 \\cdot 2^4 \\cdot 2^2 \\equiv 4 \\pmod 5$. The remainder is "
            "$\\boxed{4}$.",
            "few_shot": "1",
        },
        {
            "problem": "Simplify $\\sqrt{50} + \\sqrt{18}$.",
            "solution": "We have $\\sqrt{50} = 5\\sqrt{2}$ and $\\sqrt{18} = 3\\sqrt{2}$. The sum is "
            "$\\boxed{8\\sqrt{2}}$.",
            "few_shot": "1",
        },
        {
            "problem": "A fair coin is tossed three times. What is the probability of exactly two heads? "
            "Express your answer as a common fraction.",
            "solution": "Of the $2^3 = 8$ equally likely outcomes, $\\binom{3}{2} = 3$ have exactly two "
            "heads. The probability is $\\boxed{\\frac{3}{8}}$.",
            "few_shot": "1",
        },
        {
            "problem": "For which values of $x$ is $x^2 - 5x + 6 < 0$? Express your answer in interval "
            "notation.",
            "solution": "We factor $x^2 - 5x + 6 = (x - 2)(x - 3)$. The product is negative exactly when "
            "one factor is, which is between the roots: $\\boxed{(2,3)}$.",
            "few_shot": "1",
        },
    ]
