"""Extraction of a program from an answer.

Source: the post-processing of Dream's and Fast-dLLM's evaluations. Code fences are stripped. Of prompt and
completion, the longest prefix of lines that parses is retained, at most 100 lines; of that prefix, imports,
assignments and the definitions that the entry point uses.
"""

from __future__ import annotations

import ast
import re
import warnings

MAX_LINES = 100
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
STATEMENT = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
FENCE = re.compile(r"```[\w+-]*[^\S\n]*\n(.*?)(?:\n[^\S\n]*```|```|\Z)", re.DOTALL)


def fenced(text: str) -> str | None:
    """Return the first fenced block, even if it is not closed; None without a fence."""
    match = FENCE.search(text)
    return match.group(1) if match else None


def longest_program(text: str) -> str:
    """Return the longest prefix of the first 100 lines that parses; empty if none does."""
    lines = text.splitlines()[:MAX_LINES]
    for end in range(len(lines), 0, -1):
        program = "\n".join(lines[:end])
        if parse(program) is not None:
            return program
    return ""


def parse(program: str) -> ast.Module | None:
    """Return the syntax tree; None for text that is not Python.

    Warnings about the answer's text, such as of an invalid escape, are the model's business: none is shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def definitions(program: str) -> list[str]:
    """Return the names of the functions and classes at the top level."""
    tree = parse(program)
    return [] if tree is None else [node.name for node in tree.body if isinstance(node, DEFINITION)]


def reachable(program: str, roots: list[str]) -> str:
    """Return imports, assignments, and the definitions that `roots` use, directly or indirectly."""
    tree = parse(program)
    if tree is None:
        return program
    by_name = {node.name: node for node in tree.body if isinstance(node, DEFINITION)}
    statements = [node for node in tree.body if isinstance(node, STATEMENT)]
    pending = [*roots, *(name for node in statements for name in _names(node))]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in by_name and name not in seen:
            seen.add(name)
            pending += _names(by_name[name])
    body: list[ast.stmt] = [
        node
        for node in tree.body
        if isinstance(node, STATEMENT) or (isinstance(node, DEFINITION) and node.name in seen)
    ]
    return ast.unparse(ast.Module(body=body, type_ignores=[]))


def _names(node: ast.AST) -> list[str]:
    return [item.id for item in ast.walk(node) if isinstance(item, ast.Name)]


def humaneval_program(prompt: str, completion: str, entry_point: str) -> str:
    """Return the function that an answer to a HumanEval prompt defines.

    Other definitions of the prompt are retained, since a test may use them. A fenced block that defines the
    entry point replaces the prompt from there on.
    """
    roots = [entry_point, *definitions(prompt)]
    before, block = completion.partition("```")[0], fenced(completion)
    continues = before[:1].isspace() and bool(before.strip()) and parse(prompt + before) is not None
    if not continues and block is not None:
        if entry_point in definitions(longest_program(block)):
            head = prompt[: prompt.rfind(f"def {entry_point}")]
            return reachable(longest_program(f"{head}\n{block}"), roots)
        before = before if before.strip() else block
    return reachable(longest_program(prompt + before), roots)


def mbpp_program(completion: str) -> str:
    """Return the code of an answer to an MBPP prompt; the prompt may have opened a fence."""
    before, block = completion.partition("```")[0], fenced(completion)
    is_code = any(not isinstance(node, ast.Expr) for node in getattr(parse(before), "body", ()))
    text = before if is_code or block is None else block
    return longest_program(text.replace("\r\n", "\n").strip("\n"))
