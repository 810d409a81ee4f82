"""The table of checks names tests that exist, and marks those that are slow."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)
TEST = re.compile(r"`(\w+)::(\w+)`(\*?)")


def is_slow(file: str, name: str) -> bool:
    """Whether a test runs only when asked for. Raises when there is no such test."""
    path = next(p for p in (HERE / f"{file}.py", HERE.parent / f"{file}.py") if p.exists())
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = [node for node in tree.body if isinstance(node, ast.Assign)]
    whole = any(ast.unparse(node) == "pytestmark = pytest.mark.slow" for node in marks)
    (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return whole or any(ast.unparse(each) == "pytest.mark.slow" for each in found.decorator_list)


def test_every_check_has_a_row_with_tests_that_exist():
    text = (HERE / "README.md").read_text(encoding="utf-8")
    assert [int(number) for number in ROW.findall(text)] == list(range(1, 47))
    for line in text.splitlines():
        if not ROW.match(line):
            continue
        tests = TEST.findall(line)
        assert tests, line
        for file, name, star in tests:
            assert is_slow(file, name) == bool(star), f"{file}::{name}"
        assert not all(star for *_, star in tests), f"only slow tests: {line}"
