"""The house rules that no linter knows, as small checks over the text and syntax of `src/unmask`.

A check takes a file's path below `src/unmask` and its source, and yields `(line, what is wrong)`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unmask"
FILES = {
    PurePosixPath(path.relative_to(PACKAGE).as_posix()): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
DECODERS_MAY_IMPORT = {
    "unmask.sampling.params",
    "unmask.sampling.token_frequencies",
    "unmask.canvas",
    "unmask.decoders",
    "unmask.errors",
    "unmask.knobs",
    "unmask.selection",
}
FRAME = {"__init__.py", "base.py", "protocol.py", "registry.py"}
CITES_SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|\bSource\b", re.IGNORECASE)

Problem = tuple[int, str]
Check = Callable[[PurePosixPath, str], Iterator[Problem]]


def short_file(path: PurePosixPath, source: str) -> Iterator[Problem]:
    count = len(source.splitlines())
    if count > MAX_FILE_LINES:
        yield count, f"{count} lines, at most {MAX_FILE_LINES}"


def short_functions(path: PurePosixPath, source: str) -> Iterator[Problem]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name}: {count} lines, at most {MAX_FUNCTION_LINES}"


def broad_except_reraises(path: PurePosixPath, source: str) -> Iterator[Problem]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or _is_name(kind, "Exception", "BaseException") for kind in caught)
        if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield node.lineno, "catches everything and does not raise again"


def environment_only_in_cli(path: PurePosixPath, source: str) -> Iterator[Problem]:
    if path.parts[0] == "cli":
        return
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(ast.parse(source)):
        through_os = (
            isinstance(node, ast.Attribute) and node.attr in names and _is_name(node.value, "os")
        )
        imported = (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        if through_os or imported:
            yield node.lineno, "touches the environment outside cli/"


def print_only_in_cli_and_view(path: PurePosixPath, source: str) -> Iterator[Problem]:
    if path.parts[0] in {"cli", "view"}:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_name(node.func, "print"):
            yield node.lineno, "prints outside cli/ and view/"


def nothing_left_to_do(path: PurePosixPath, source: str) -> Iterator[Problem]:
    for number, line in enumerate(source.splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield number, "a note to self; do it or open an issue"


def decoder_imports(path: PurePosixPath, source: str) -> Iterator[Problem]:
    if path.parts[0] != "decoders":
        return
    for line, module in _imported_modules(path, source):
        top = module.partition(".")[0]
        ours = any(module == name or module.startswith(f"{name}.") for name in DECODERS_MAY_IMPORT)
        if not ours and top != "numpy" and top not in sys.stdlib_module_names:
            yield (
                line,
                f"imports {module}; allowed: {', '.join(sorted(DECODERS_MAY_IMPORT))}, numpy",
            )


def method_cites_its_source(path: PurePosixPath, source: str) -> Iterator[Problem]:
    if path.parts[0] not in {"decoders", "caches"} or path.name in FRAME:
        return
    if not CITES_SOURCE.search(ast.get_docstring(ast.parse(source)) or ""):
        yield 1, "the module docstring names no arXiv id and no Source"


def _is_name(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _imported_modules(path: PurePosixPath, source: str) -> Iterator[Problem]:
    """Absolute names of what a file imports; `from unmask import x` counts as `unmask.x`."""
    package = ("unmask", *path.parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"unmask.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in (names if module == "unmask" else [module]))


CHECKS: list[Check] = [
    short_file,
    short_functions,
    broad_except_reraises,
    environment_only_in_cli,
    print_only_in_cli_and_view,
    nothing_left_to_do,
    decoder_imports,
    method_cites_its_source,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_file_of_the_package_follows_the_rule(check: Check) -> None:
    problems = [
        f"src/unmask/{path}:{line}: {text}"
        for path, source in FILES.items()
        for line, text in check(path, source)
    ]
    assert not problems, "\n" + "\n".join(problems)


OFFENDERS = [
    (short_file, "engine/a.py", "x = 1\n" * 601),
    (short_functions, "engine/a.py", "def f():\n" + "    x = 1\n" * 60),
    (broad_except_reraises, "cli/a.py", "try:\n    f()\nexcept Exception:\n    pass\n"),
    (broad_except_reraises, "cli/a.py", "try:\n    f()\nexcept:\n    pass\n"),
    (broad_except_reraises, "cli/a.py", "try:\n    f()\nexcept (OSError, Exception):\n    g()\n"),
    (environment_only_in_cli, "engine/a.py", "import os\nos.environ['A'] = 'b'\n"),
    (environment_only_in_cli, "engine/a.py", "from os import getenv\n"),
    (print_only_in_cli_and_view, "engine/a.py", "print(1)\n"),
    (nothing_left_to_do, "engine/a.py", "# TO" + "DO: later\n"),
    (decoder_imports, "decoders/a.py", "import torch\n"),
    (decoder_imports, "decoders/a.py", "from ..engine import loop\n"),
    (decoder_imports, "decoders/a.py", "from unmask import models\n"),
    (method_cites_its_source, "decoders/a.py", '"""A method."""\n'),
    (method_cites_its_source, "caches/a.py", "x = 1\n"),
]


@pytest.mark.parametrize(("check", "path", "source"), OFFENDERS)
def test_each_check_catches_an_offender(check: Check, path: str, source: str) -> None:
    assert list(check(PurePosixPath(path), source))


INNOCENTS = [
    (
        broad_except_reraises,
        "cli/a.py",
        "try:\n    f()\nexcept Exception:\n    raise\n",
    ),
    (environment_only_in_cli, "cli/a.py", "import os\nos.environ['A'] = 'b'\n"),
    (print_only_in_cli_and_view, "view/a.py", "print(1)\n"),
    (print_only_in_cli_and_view, "engine/a.py", '"""We never print(x)."""\n'),
    (decoder_imports, "decoders/a.py", "import math\nimport numpy as np\nfrom . import Base\n"),
    (
        decoder_imports,
        "decoders/a.py",
        "from unmask import selection\nfrom ..canvas import Edit\n",
    ),
    (method_cites_its_source, "decoders/a.py", '"""A method. Source: arXiv:2502.09992."""\n'),
    (method_cites_its_source, "decoders/__init__.py", "x = 1\n"),
]


@pytest.mark.parametrize(("check", "path", "source"), INNOCENTS)
def test_no_check_accuses_the_innocent(check: Check, path: str, source: str) -> None:
    assert not list(check(PurePosixPath(path), source))
