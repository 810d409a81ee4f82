"""Measure the source tree: size, imports, types and language, as a Markdown table.

    python scripts/house_figures.py                    the working tree
    python scripts/house_figures.py --rev REV [--rev REV]   revisions, one column each
    python scripts/house_figures.py --rev REV --help-lines  also runs `--help` (needs the dependencies)

Standard library only. `tests/test_house.py` asserts on the same functions.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
Tree = Mapping[PurePosixPath, str]
"""Source text by path below `src/unmask`."""

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "version",
        "durable",
        "yaml_text",
        "json_text",
        "plain_text",
        "regular_files",
        "progress",
    ),
    ("knobs", "plugins", "own_code"),
    ("options", "data"),
    ("canvas", "ask_rules", "edit_rules", "selection", "grammar"),
    ("pictures",),
    ("sampling", "proposal", "randomness", "background"),  # the last three: before the redraw
    ("decoders", "caches"),
    ("models",),
    ("kv",),
    ("attention",),
    ("distributed",),
    ("method",),
    ("engine", "decisions"),
    ("train", "objectives"),
    ("demo",),
    ("bench",),
    ("evals",),
    ("config",),
    ("tune",),
    ("server", "view"),
    ("docgen",),
    ("cli",),
    ("", "__main__"),  # the package itself
)
"""Modules and folders of `unmask`, lowest first; a file imports from its own floor or a lower one."""

FREE_OF = {"train": ("demo", "view"), "server": ("demo", "view")}
"""Folders that never import certain others, whatever their floors."""

BANNED_OPENINGS = frozenset({"what", "who", "whose", "whether", "where", "how", "which", "when"})
PRIVATE_WORDS = re.findall(
    r"\w+",
    "told found wanted slot slots held kept way lane twins fence mixing apart maker",
)
PROVENANCE = re.compile(
    r"founding document|\bdocument 0\d\d\b|\bledger #|spec/[a-z_-]+\.md", re.IGNORECASE
)
LONG_FILES = (400, 600)
HELP_COMMANDS = ("generate", "serve", "eval", "chat")

IMPERATIVES = frozenset(
    re.findall(
        r"\w+",
        """abort absorb accept accumulate acquire activate adapt add adjust admit advance aggregate
    align allocate allow annotate answer append apply approximate arrange ask assemble assert assign
    attach attend authenticate average await balance begin bind block bound branch break broadcast
    build cache calculate call cancel cap capture cast change charge check choose claim clamp
    classify clean clear clip close coerce collect combine commit compare compile complete compose
    compute concatenate configure confirm connect consume continue convert copy correct corrupt
    count cover create cut deal decide declare decode decrease decrement define delete deliver
    dequantize derive describe detach detect determine disable discard discover dispatch display
    distribute divide do document download draft drain draw drive drop dump echo emit enable encode
    end enforce enqueue ensure enter enumerate escape estimate evaluate evict exclude execute
    exercise exit expand expect explain export express extend extract fail fall feed fetch fill
    filter find finish fit fix flag flatten flush fold follow force forget fork format forward free
    freeze gather generate get give grade grant group grow guard guess handle hash have help hide
    hold identify ignore implement import include increase increment index infer infill inform
    initialize insert inspect install instantiate intercept interleave interpolate interpret
    invalidate invert invoke issue iterate join judge keep kill label launch lay leave lengthen let
    limit link list listen load locate lock log look loop lower make map mark mask match measure
    meet merge mix mock move multiply name narrow normalize note notify number observe obtain offer
    omit open order organize override own pack pad parse partition pass patch pause pay perform
    permute pick place plan play plot point poll pop predict prefer prepare prepend preserve prevent
    print probe process produce project propose protect provide prune publish pull push put quantize
    query queue quote raise rank react read rebuild receive recompute record recover redraw reduce
    refer refill refresh refuse register reject release reload remap remask remember remove rename
    render reorder repeat replace replay reply report represent request require resample rescale
    reserve reset reshape resolve respond restart restore restrict resume retain retrieve retry
    return reuse reveal reverse revert revise revoke rewrite roll rotate round route run sample save
    say scale scan scatter schedule score search see seed select send separate serialize serve set
    settle shape shard share shift shorten show shrink shuffle shut sign signal silence simulate
    skip sleep slice snapshot sort speculate spell spend split spread stack start state stop store
    stream stretch strip submit substitute subtract sum summarize supply suppress swap sweep switch
    synchronize tag take talk tally teach tell terminate test throw tile time tokenize total touch
    trace track train transfer transform translate transpose traverse treat trim truncate try tune
    turn type undo unfold uninstall unmask unpack unwrap update upload use validate verify view
    visit wait walk warm warn watch weigh widen wipe withdraw wrap write yield zip""",
    )
)
"""Verbs that open an imperative first line."""


# --- reading a tree


@cache
def parse(source: str) -> ast.Module:
    """Parse a file's text, once for all figures."""
    return ast.parse(source)


def read_tree(root: Path) -> dict[PurePosixPath, str]:
    """Return the Python files below `root/src/unmask`."""
    package = root / "src" / "unmask"
    return {
        PurePosixPath(path.relative_to(package).as_posix()): path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
    }


def extract_revision(revision: str, folder: Path) -> None:
    """Write `src` as of a revision into `folder`."""
    archive = subprocess.run(
        ["git", "archive", revision, "src"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        if sys.version_info >= (3, 12):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)


# --- imports

Kind = Literal["top", "deferred", "typing"]


@dataclass(frozen=True)
class Import:
    """One import of a module of the package: `name` is None for `import module`."""

    line: int
    module: str
    name: str | None
    kind: Kind


def module_name(path: PurePosixPath) -> str:
    """Return the dotted name below `unmask`; the package's own `__init__` is the empty name."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: PurePosixPath, source: str, modules: frozenset[str]) -> list[Import]:
    """Return the imports of `unmask` modules in a file, with submodules told from their names."""
    result: list[Import] = []
    for node, kind in _import_nodes(parse(source), "top"):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "unmask":
                    module = alias.name.removeprefix("unmask").removeprefix(".")
                    result.append(Import(node.lineno, module, None, kind))
            continue
        base = _absolute(path, node)
        if base is None:
            continue
        for alias in node.names:
            submodule = f"{base}.{alias.name}".removeprefix(".")
            is_module = submodule in modules
            module, name = (submodule, None) if is_module else (base, alias.name)
            result.append(Import(node.lineno, module, name, kind))
    return result


def _absolute(path: PurePosixPath, node: ast.ImportFrom) -> str | None:
    """Return the imported module's name below `unmask`; None for another package's."""
    if not node.level:
        head, _, rest = (node.module or "").partition(".")
        return rest if head == "unmask" else None
    package = path.parts[:-1]
    base = package[: len(package) + 1 - node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def _import_nodes(node: ast.AST, kind: Kind) -> Iterator[tuple[ast.Import | ast.ImportFrom, Kind]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for inner in child.body:
                yield from _import_nodes(ast.Module([inner], []), "typing")
            for inner in child.orelse:
                yield from _import_nodes(ast.Module([inner], []), kind)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _import_nodes(child, "deferred" if kind == "top" else kind)
        else:
            yield from _import_nodes(child, kind)


def import_table(tree: Tree) -> dict[PurePosixPath, list[Import]]:
    """Return every file's imports of the package's own modules."""
    modules = frozenset(module_name(path) for path in tree)
    return {path: imports_of(path, source, modules) for path, source in tree.items()}


def circles(tree: Tree, kinds: Iterable[Kind] = ("top", "deferred", "typing")) -> list[list[str]]:
    """Return the import circles (strongly connected components) over imports of these kinds."""
    kinds = set(kinds)
    edges: dict[str, set[str]] = {module_name(path): set() for path in tree}
    for path, imports in import_table(tree).items():
        own = module_name(path)
        edges[own] |= {
            entry.module
            for entry in imports
            if entry.kind in kinds and entry.module in edges and entry.module != own
        }
    return _components(edges)


def _components(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of two or more nodes."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for target in edges[pending.pop()] - seen:
                seen.add(target)
                pending.append(target)
        return seen

    reached = {node: reach(node) for node in edges}
    result = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in edges
        if node in reached[node]
    }
    return [list(component) for component in sorted(result)]


def folder_of(module: str) -> str:
    """Return the top-level folder or module of a dotted name below `unmask`."""
    return module.partition(".")[0]


def floor_of(module: str) -> int | None:
    """Return the index of a module's floor in `FLOORS`; None when it has none."""
    top = folder_of(module)
    return next((i for i, floor in enumerate(FLOORS) if top in floor), None)


def upward_imports(tree: Tree) -> list[tuple[PurePosixPath, int, str]]:
    """Return (file, line, module) of each import from a higher floor, or from or to none."""
    result = []
    for path, imports in import_table(tree).items():
        own = floor_of(module_name(path))
        for entry in imports:
            other = floor_of(entry.module)
            if own is None or other is None or other > own:
                result.append((path, entry.line, entry.module or "unmask"))
    return result


def forbidden_imports(tree: Tree) -> list[tuple[PurePosixPath, int, str]]:
    """Return (file, line, module) of each import that `FREE_OF` rules out."""
    return [
        (path, entry.line, entry.module)
        for path, imports in import_table(tree).items()
        for entry in imports
        if folder_of(entry.module) in FREE_OF.get(folder_of(module_name(path)), ())
    ]


def private_imports(tree: Tree) -> list[tuple[PurePosixPath, int, str]]:
    """Return (file, line, name) of each import of a `_module` or `_name` of another package."""
    result: dict[tuple[PurePosixPath, int], str] = {}
    for path, imports in import_table(tree).items():
        own = folder_of(module_name(path))
        for entry in imports:
            parts = [*entry.module.split("."), *([entry.name] if entry.name else [])]
            is_private = any(re.match(r"_(?!_)", part) for part in parts)
            if is_private and folder_of(entry.module) != own:
                result[path, entry.line] = ".".join(parts)
    return [(path, line, names) for (path, line), names in result.items()]


# --- types and classes


def code_lines(tree: Tree) -> int:
    """Return the number of lines with code, docstrings left out."""
    skipped = {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    }
    count = 0
    for source in tree.values():
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in skipped:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(parse(source)):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if is_text and isinstance(node.value.value, str):
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        count += len(lines)
    return count


def any_count(source: str) -> int:
    """Return how often a file uses `Any`, imports not counted."""
    return sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(parse(source)))


def any_density(tree: Tree) -> float:
    """Return uses of `Any` per 1,000 lines."""
    lines = sum(len(source.splitlines()) for source in tree.values())
    return 1000 * sum(map(any_count, tree.values())) / max(1, lines)


def repeated_classes(tree: Tree) -> dict[str, list[str]]:
    """Return the files of each class name that occurs more than once."""
    homes: dict[str, list[str]] = {}
    for path, source in tree.items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path))
    return {name: files for name, files in sorted(homes.items()) if len(files) > 1}


def probes(tree: Tree) -> list[tuple[PurePosixPath, int]]:
    """Return (file, line) of each `getattr` or `hasattr` on a decoder or a cache."""
    result = []
    for path, source in tree.items():
        for node in ast.walk(parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"getattr", "hasattr"}
                and node.args
                and re.search(r"(decoder|cache|policy)\b", ast.unparse(node.args[0]))
            ):
                result.append((path, node.lineno))
    return result


# --- language


@dataclass(frozen=True)
class Docstring:
    """One docstring; `is_function` is True for functions and methods that are no properties."""

    line: int
    text: str
    is_function: bool

    @property
    def opening(self) -> str:
        """The first word in lower case, markup removed; empty where none is a word."""
        match = re.match(r"[A-Za-z'-]+", self.text.lstrip())
        return match.group().lower() if match else ""

    @property
    def is_imperative(self) -> bool:
        """True when the first word is the base form of a verb of `IMPERATIVES`."""
        return self.opening in IMPERATIVES


def docstrings(source: str) -> list[Docstring]:
    """Return a file's docstrings in order of their nodes."""
    result = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            line = node.body[0].lineno
            result.append(Docstring(line, text, is_function and not _is_property(node)))
    return result


def _is_property(node: ast.AST) -> bool:
    decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    return any("property" in each or each.endswith((".setter", "overload")) for each in decorators)


def imperative_share(tree: Tree) -> float:
    """Return the share of function docstrings with an imperative first word, 0 to 1."""
    of_functions = [d for source in tree.values() for d in docstrings(source) if d.is_function]
    return sum(d.is_imperative for d in of_functions) / max(1, len(of_functions))


def banned_openings(tree: Tree) -> list[tuple[PurePosixPath, int, str]]:
    """Return (file, line, first word) of docstrings that open with a question word."""
    return [
        (path, each.line, each.opening)
        for path, source in tree.items()
        for each in docstrings(source)
        if each.opening in BANNED_OPENINGS
    ]


def word_counts(tree: Tree) -> Counter[str]:
    """Return how often each of `PRIVATE_WORDS` occurs as a whole word."""
    pattern = re.compile(rf"\b({'|'.join(PRIVATE_WORDS)})\b")
    return Counter(word for source in tree.values() for word in pattern.findall(source))


def provenance(tree: Tree) -> list[tuple[PurePosixPath, int]]:
    """Return (file, line) of mentions of papers that a reader of the repository cannot follow."""
    return [
        (path, number)
        for path, source in tree.items()
        for number, line in enumerate(source.splitlines(), start=1)
        if PROVENANCE.search(line)
    ]


# --- the table


def figures(tree: Tree) -> dict[str, str]:
    """Return the table's rows: a label and its value for this tree."""
    sizes = [len(source.splitlines()) for source in tree.values()]
    words = word_counts(tree)
    every = [each for source in tree.values() for each in docstrings(source)]
    functions = [each for each in every if each.is_function]
    imperative = sum(each.is_imperative for each in functions)
    joined = "\n".join(tree.values())
    runtime = circles(tree, ("top",))
    deferred = circles(tree, ("top", "deferred"))
    everything = circles(tree)
    rows = {
        "files of src": f"{len(sizes):,}",
        "lines of src": f"{sum(sizes):,}",
        "… of code, without docstrings, comments and blank lines": f"{code_lines(tree):,}",
        "import circles at run time (modules in them)": _circle_text(runtime),
        "… deferred imports included": _circle_text(deferred),
        "… TYPE_CHECKING imports included": _circle_text(everything),
        "imports from a lower floor to a higher one": f"{len(upward_imports(tree)):,}",
        "private modules or names imported across packages": f"{len(private_imports(tree)):,}",
        "imports of demo or view by train or server": f"{len(forbidden_imports(tree)):,}",
        "`Any` per 1,000 lines": f"{any_density(tree):.1f}",
        "`getattr`/`hasattr` on a decoder or a cache": f"{len(probes(tree)):,}",
        "class names used more than once": f"{len(repeated_classes(tree)):,}",
        "docstrings that open with What/Who/Whether/Where/How/Which/When": (
            f"{len(banned_openings(tree)):,} of {len(every):,}"
        ),
        "imperative function docstrings": (
            f"{imperative / max(1, len(functions)):.0%} ({imperative:,} of {len(functions):,})"
        ),
        "lines with provenance that a reader cannot follow": f"{len(provenance(tree)):,}",
        'occurrences of "contradict"': f"{joined.lower().count('contradict'):,}",
    }
    for limit in LONG_FILES:
        rows[f"files over {limit} lines"] = f"{sum(size > limit for size in sizes):,}"
    private = {word.removesuffix("s") if word == "slots" else word for word in PRIVATE_WORDS}
    for word in sorted(private, key=PRIVATE_WORDS.index):
        rows[f"*{word}*"] = f"{words[word] + (words['slots'] if word == 'slot' else 0):,}"
    return rows


def _circle_text(found: list[list[str]]) -> str:
    return f"{len(found)} ({sum(map(len, found))})" if found else "0"


def help_lines(root: Path) -> dict[str, str]:
    """Return the number of lines of `--help` for several commands of the tree at `root`."""
    result = {}
    for command in HELP_COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "unmask.cli.main", command, "--help"],
            env={**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "80", "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = len(done.stdout.splitlines())
        result[f"lines of `unmask {command} --help`"] = str(lines) if not done.returncode else "-"
    return result


def measure(root: Path, with_help: bool) -> dict[str, str]:
    """Return all rows for the tree at `root`."""
    return {**figures(read_tree(root)), **(help_lines(root) if with_help else {})}


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Render a Markdown table: a row a figure, a column a tree."""
    first = next(iter(columns.values()))
    lines = [f"| figure | {' | '.join(columns)} |", f"| --- {'| ---: ' * len(columns)}|"]
    lines += [
        f"| {label} | {' | '.join(rows[label] for rows in columns.values())} |" for label in first
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table for the revisions on the command line, or for the working tree."""
    parser = argparse.ArgumentParser(description="Figures of the source tree as a Markdown table.")
    parser.add_argument(
        "--rev",
        action="append",
        default=[],
        help="git revision, one column each; default: the working tree (also: --rev .)",
    )
    parser.add_argument("--help-lines", action="store_true", help="also run --help of commands")
    options = parser.parse_args(arguments)
    columns = {}
    for revision in options.rev or ["."]:
        if revision == ".":
            columns["working tree"] = measure(REPOSITORY, options.help_lines)
            continue
        with tempfile.TemporaryDirectory() as folder:
            extract_revision(revision, Path(folder))
            columns[revision] = measure(Path(folder), options.help_lines)
    print(table(columns))


if __name__ == "__main__":
    main()
