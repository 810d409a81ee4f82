"""The house rules that no linter knows, as small checks over the text and syntax of `src/unmask`.

A check of a file takes its path below `src/unmask` and its source, and yields `(line, problem)`. A check
of the tree takes all files and yields problems. The figures come from `scripts/house_figures.py`, whose
`FLOORS` lists the layers, lowest first.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

Files = dict[PurePosixPath, str]
Problem = tuple[int, str]
Check = Callable[[PurePosixPath, str], Iterator[Problem]]
TreeCheck = Callable[[Files], Iterator[str]]

ROOT = Path(__file__).parents[1]


def _house_figures() -> ModuleType:
    """Import the script by its path: it is no package."""
    spec = importlib.util.spec_from_file_location(
        "house_figures", ROOT / "scripts/house_figures.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = _house_figures()
FILES: Files = house.read_tree(ROOT)

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_ANY_PER_1000_LINES = 5.0
MIN_IMPERATIVE_SHARE = 0.60
DECODERS_MAY_IMPORT = {
    "unmask.sampling.params",
    "unmask.sampling.token_frequencies",
    "unmask.canvas",
    "unmask.decoders",
    "unmask.errors",
    "unmask.knobs",
    "unmask.own_code",
    "unmask.plugins",
    "unmask.selection",
}
FRAME = {"__init__.py", "base.py", "protocol.py", "registry.py"}
CITES_SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|\bSource\b", re.IGNORECASE)


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
    if path.is_relative_to(
        "evals/sandbox/inside"
    ):  # where an exception of foreign code is the result
        return
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or _is_name(kind, "Exception", "BaseException") for kind in caught)
        if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield node.lineno, "catches everything and does not raise again"


def environment_only_in_cli(path: PurePosixPath, source: str) -> Iterator[Problem]:
    insists = path == PurePosixPath(
        "evals/sandbox/__init__.py"
    )  # a variable, for every way to evaluate
    if path.parts[0] == "cli" or insists:
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


def docstring_opens_with_no_question(path: PurePosixPath, source: str) -> Iterator[Problem]:
    for _, line, word in house.banned_openings({path: source}):
        yield line, f"a docstring opens with {word!r}: state what it is or does"


def sources_can_be_followed(path: PurePosixPath, source: str) -> Iterator[Problem]:
    for _, line in house.provenance({path: source}):
        yield line, "cites what a reader cannot open: cite a paper or a file of this repository"


def no_import_circles(files: Files) -> Iterator[str]:
    for circle in house.circles(files):
        yield f"import circle (deferred and typing imports count): {' <-> '.join(circle)}"


def no_upward_imports(files: Files) -> Iterator[str]:
    for path, line, module in house.upward_imports(files):
        yield f"src/unmask/{path}:{line}: imports {module} of a higher floor, or of none in FLOORS"


def train_and_server_stand_alone(files: Files) -> Iterator[str]:
    for path, line, module in house.forbidden_imports(files):
        yield f"src/unmask/{path}:{line}: imports {module}"


def no_private_imports(files: Files) -> Iterator[str]:
    for path, line, name in house.private_imports(files):
        yield f"src/unmask/{path}:{line}: imports the private {name} of another package"


def class_names_are_unique(files: Files) -> Iterator[str]:
    for name, homes in house.repeated_classes(files).items():
        yield f"class {name} occurs in {', '.join(homes)}"


def any_is_rare(files: Files) -> Iterator[str]:
    density = house.any_density(files)
    if density >= MAX_ANY_PER_1000_LINES:
        yield f"{density:.2f} uses of Any per 1,000 lines, below {MAX_ANY_PER_1000_LINES} allowed"


def function_docstrings_are_imperative(files: Files) -> Iterator[str]:
    share = house.imperative_share(files)
    if share < MIN_IMPERATIVE_SHARE:
        yield (
            f"{share:.1%} of function docstrings open with a verb of IMPERATIVES, at least "
            f"{MIN_IMPERATIVE_SHARE:.0%} should"
        )


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
    docstring_opens_with_no_question,
    sources_can_be_followed,
]
TREE_CHECKS: list[TreeCheck] = [
    no_import_circles,
    no_upward_imports,
    train_and_server_stand_alone,
    no_private_imports,
    class_names_are_unique,
    any_is_rare,
    function_docstrings_are_imperative,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_file_of_the_package_follows_the_rule(check: Check) -> None:
    problems = [
        f"src/unmask/{path}:{line}: {text}"
        for path, source in FILES.items()
        for line, text in check(path, source)
    ]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("check", TREE_CHECKS, ids=lambda check: check.__name__)
def test_the_package_as_a_whole_follows_the_rule(check: TreeCheck) -> None:
    problems = list(check(FILES))
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
    (docstring_opens_with_no_question, "engine/a.py", '"""What a step says."""\n'),
    (docstring_opens_with_no_question, "engine/a.py", 'def f():\n    """Whether it is."""\n'),
    (docstring_opens_with_no_question, "engine/a.py", 'class A:\n    """Who fits."""\n'),
    (sources_can_be_followed, "engine/a.py", "# as document " + "000 prints it\n"),
    (sources_can_be_followed, "engine/a.py", '"""See `spec/decoders.md` §2."""\n'),
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
    (docstring_opens_with_no_question, "engine/a.py", '"""Whatever fits is admitted."""\n'),
    (docstring_opens_with_no_question, "engine/a.py", "# What a comment says.\n"),
    (sources_can_be_followed, "engine/a.py", '"""See arXiv:2505.24857 and docs/usage.md."""\n'),
]


@pytest.mark.parametrize(("check", "path", "source"), INNOCENTS)
def test_no_check_accuses_the_innocent(check: Check, path: str, source: str) -> None:
    assert not list(check(PurePosixPath(path), source))


TREE_OFFENDERS: list[tuple[TreeCheck, dict[str, str]]] = [
    (
        no_import_circles,
        {
            "engine/a.py": "from unmask.engine import b\n",
            "engine/b.py": "from unmask.engine.a import x\n",
        },
    ),
    (
        no_import_circles,
        {
            "engine/a.py": "from .b import x\n",
            "engine/b.py": "def f():\n    from unmask.engine.c import y\n",
            "engine/c.py": "if TYPE_CHECKING:\n    from unmask.engine import a\n",
        },
    ),
    (no_upward_imports, {"models/a.py": "import unmask.engine.b\n", "engine/b.py": ""}),
    (
        no_upward_imports,
        {"errors.py": "def f():\n    from .canvas import x\n", "canvas.py": ""},
    ),
    (
        no_upward_imports,
        {"cli/a.py": "from unmask.attic import x\n", "attic/__init__.py": ""},
    ),
    (
        train_and_server_stand_alone,
        {"server/a.py": "from unmask.view import x\n", "view/__init__.py": ""},
    ),
    (
        train_and_server_stand_alone,
        {"train/a.py": "if TYPE_CHECKING:\n    import unmask.demo.b\n", "demo/b.py": ""},
    ),
    (
        no_private_imports,
        {"engine/a.py": "from unmask.models.b import _x\n", "models/b.py": ""},
    ),
    (
        no_private_imports,
        {"engine/a.py": "from unmask.models import _b\n", "models/_b.py": ""},
    ),
    (
        class_names_are_unique,
        {"engine/a.py": "class Plan: ...\n", "server/b.py": "def f():\n    class Plan: ...\n"},
    ),
    (any_is_rare, {"engine/a.py": "from typing import Any\nx: list[Any] = []\n"}),
    (
        function_docstrings_are_imperative,
        {"engine/a.py": 'def f():\n    """The answer."""\n'},
    ),
]


@pytest.mark.parametrize(("check", "files"), TREE_OFFENDERS)
def test_each_check_of_the_tree_catches_an_offender(
    check: TreeCheck, files: dict[str, str]
) -> None:
    assert list(check({PurePosixPath(path): source for path, source in files.items()}))


TREE_INNOCENTS: list[tuple[TreeCheck, dict[str, str]]] = [
    (
        no_import_circles,
        {
            "engine/__init__.py": "",
            "engine/a.py": "from unmask.engine import b\nfrom . import b\n",
            "engine/b.py": "import ast\nfrom unmask.models import a\n",
            "models/a.py": "",
        },
    ),
    (
        no_upward_imports,
        {
            "engine/a.py": "from unmask.models import b\nfrom . import c\n",
            "engine/c.py": "from unmask.errors import ConfigError\n",
            "models/b.py": "import numpy\n",
            "errors.py": "",
        },
    ),
    (
        train_and_server_stand_alone,
        {"demo/a.py": "from unmask.train import b\n", "train/b.py": ""},
    ),
    (
        no_private_imports,
        {
            "engine/a.py": "from unmask.engine._b import _x\nfrom unmask import __version__\n",
            "engine/_b.py": "from os import _exit\n",
            "__init__.py": "",
        },
    ),
    (
        class_names_are_unique,
        {"engine/a.py": "class Plan: ...\n", "server/b.py": "class CachePlan: ...\n"},
    ),
    (any_is_rare, {"engine/a.py": '"""Any of them."""\nfrom typing import Any\n'}),
    (
        function_docstrings_are_imperative,
        {
            "engine/a.py": 'def f():\n    """Return the answer."""\n',
            "engine/b.py": '@property\ndef f():\n    """The answer."""\n',
        },
    ),
]


@pytest.mark.parametrize(("check", "files"), TREE_INNOCENTS)
def test_no_check_of_the_tree_accuses_the_innocent(check: TreeCheck, files: dict[str, str]) -> None:
    assert not list(check({PurePosixPath(path): source for path, source in files.items()}))


@pytest.mark.slow
def test_the_table_of_figures_has_a_column_a_tree(tmp_path, capsys):
    package = tmp_path / "src" / "unmask"
    package.mkdir(parents=True)
    (package / "errors.py").write_text('"""Who told: it was found."""\n', encoding="utf-8")
    rows = house.measure(tmp_path, with_help=False)
    assert rows["lines of src"] == rows["files of src"] == rows["*told*"] == "1"
    assert (
        rows["files over 600 lines"] == rows["import circles at run time (modules in them)"] == "0"
    )
    lines = house.table({"before": rows, "after": rows}).splitlines()
    assert lines[:2] == ["| figure | before | after |", "| --- | ---: | ---: |"]
    assert "| *found* | 1 | 1 |" in lines
    house.main([])
    assert f"| files of src | {len(FILES)} |" in capsys.readouterr().out
