"""From an answer to a program: what of the text is code, and what of the code is kept.

Source: the post-processing of Dream's and Fast-dLLM's evaluations. Fences are stripped; of the prompt and
the completion the longest prefix of lines that parses is kept, at most 100 lines; of that, imports, names
and the definitions that the entry point reaches.
"""

from __future__ import annotations

import ast
import re

MAX_LINES = 100
FENCE = re.compile(r"```[\w+-]*[^\S\n]*\n(.*?)(?:\n[^\S\n]*```|```|\Z)", re.DOTALL)


def fenced(text: str) -> str | None:
    """The first fenced block, also one that is not closed; None without a fence."""
    found = FENCE.search(text)
    return found.group(1) if found else None


def longest_program(text: str) -> str:
    """The longest prefix of the first 100 lines that parses; empty when none does."""
    lines = text.splitlines()[:MAX_LINES]
    for end in range(len(lines), 0, -1):
        program = "\n".join(lines[:end])
        if parse(program) is not None:
            return program
    return ""


def parse(program: str) -> ast.Module | None:
    """Its syntax tree; None when it is not Python."""
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def definitions(program: str) -> list[str]:
    """Names of the functions and classes of its top level."""
    tree = parse(program)
    named = [] if tree is None else [getattr(node, "name", None) for node in tree.body]
    return [name for name in named if name is not None]


def reachable(program: str, roots: list[str]) -> str:
    """Imports, assignments, and the definitions `roots` and what they use, directly or not."""
    tree = parse(program)
    if tree is None:
        return program
    made = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    rest = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    kept = [node for node in tree.body if isinstance(node, rest)]
    wanted = [*roots, *(name for node in kept for name in _names(node))]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in made and name not in seen:
            seen.add(name)
            wanted += _names(made[name])
    chosen = [
        node for node in tree.body if isinstance(node, rest) or getattr(node, "name", None) in seen
    ]
    return ast.unparse(ast.Module(body=chosen, type_ignores=[]))


def _names(node: ast.AST) -> list[str]:
    return [item.id for item in ast.walk(node) if isinstance(item, ast.Name)]


def humaneval_program(prompt: str, completion: str, entry_point: str) -> str:
    """The function that an answer to a HumanEval prompt defines.

    What the prompt defines beside it stays, since a test may use it. A fenced block that defines the
    entry point is taken instead of a continuation.
    """
    roots = [entry_point, *definitions(prompt)]
    before, block = completion.partition("```")[0], fenced(completion)
    goes_on = before[:1].isspace() and bool(before.strip()) and parse(prompt + before) is not None
    if not goes_on and block is not None:
        if entry_point in definitions(longest_program(block)):
            head = prompt[: prompt.rfind(f"def {entry_point}")]
            return reachable(longest_program(f"{head}\n{block}"), roots)
        before = before if before.strip() else block
    return reachable(longest_program(prompt + before), roots)


def mbpp_program(completion: str) -> str:
    """The code of an answer to an MBPP prompt, which may have opened a fence already."""
    before, block = completion.partition("```")[0], fenced(completion)
    is_code = any(not isinstance(node, ast.Expr) for node in getattr(parse(before), "body", ()))
    text = before if is_code or block is None else block
    return longest_program(text.replace("\r\n", "\n").strip("\n"))
