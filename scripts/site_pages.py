"""MkDocs hook: pages outside `docs/`, and links written for GitHub.

A page links to other files by their path in the repository, so that the links work where the repository is
browsed. In the site `docs/` is the root and `README.md` the home page; every other file keeps its path.
Files that pages link to (scripts, pictures) are copied into the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = "README.md"
PAGES = (
    HOME,
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "CONVENTIONS.md",
    "SECURITY.md",
    "benchmarks/clients.md",
    "benchmarks/serve_demo.md",
    "benchmarks/train_speed.md",
    "src/unmask/demo/model/README.md",
    "studies/cadllm/README.md",
    "studies/cadllm/models/README.md",
)
"""Pages of the site that are not below `docs/`."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def in_site(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix("docs/")


def in_repository(path: str) -> str:
    """Return the path in the repository of a file of the site."""
    if path == "index.md":
        return HOME
    return f"docs/{path}" if (ROOT / "docs" / path).exists() else path


def without_code(text: str) -> str:
    """Return the text with fenced blocks and code spans blanked, at the same offsets."""
    code = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    return code.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def links(text: str) -> list[re.Match[str]]:
    """Return the links of a page to other files, code left out."""
    return list(LINK.finditer(without_code(text)))


def target(page: str, path: str) -> str:
    """Return the repository path of a link `path` on `page`, which is a repository path too."""
    return normpath(join(dirname(page), path))


def rewritten(page: str, text: str, place: Callable[[str], str] = in_site) -> str:
    """Return a page's text with its links relative to its path in the site."""
    parts, end = [], 0
    for link in links(text):
        goal = relpath(place(target(page, link["path"])), dirname(place(page)) or ".")
        parts += [text[end : link.start()], goal, link["anchor"] or ""]
        end = link.end()
    return "".join([*parts, text[end:]])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside `docs/` and every file outside it that a page links to."""
    from mkdocs.structure.files import File

    pages = [*PAGES, *(f"docs/{page.src_uri}" for page in files.documentation_pages())]
    found = set(PAGES)
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        goals = {target(page, link["path"]) for link in links(text)}
        found |= {
            goal for goal in goals if (ROOT / goal).is_file() and not goal.startswith("docs/")
        }
    for path in sorted(found):
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    return rewritten(in_repository(page.file.src_uri), markdown)
