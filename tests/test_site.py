"""The documentation site: every page is in the navigation and every link between pages leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
if not (ROOT / "mkdocs.yml").exists():
    pytest.skip("the source distribution has no docs", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
site_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site_pages)

DOCS = sorted(
    f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in ROOT.glob("docs/**/*.md")
)
PAGES = [*site_pages.PAGES, *DOCS]


def entries(nav):
    """Every path of a navigation tree."""
    for item in nav:
        value = next(iter(item.values())) if isinstance(item, dict) else item
        yield from entries(value) if isinstance(value, list) else [value]


def anchors(path):
    """Ids of a page's headings, as GitHub and MkDocs make them (without the numbers of repeated ones)."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_page_is_once_in_the_navigation_and_every_entry_is_a_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(entries(config["nav"]))
    pages = [site_pages.in_site(page) for page in PAGES]
    assert sorted(listed) == sorted(pages), "list every page once under `nav` in mkdocs.yml"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in site_pages.links(text):
        goal = ROOT / site_pages.target(page, link["path"])
        assert goal.exists(), f"{page}: {link['path']}"
        if goal.suffix == ".md":
            assert goal.relative_to(ROOT).as_posix() in PAGES, f"{page}: {link['path']} is no page"
        if link["anchor"]:
            assert link["anchor"][1:] in anchors(goal), f"{page}: {link['path']}{link['anchor']}"
    own = re.findall(r"\]\(#([^)\s]+)\)", site_pages.without_code(text))
    assert set(own) <= anchors(ROOT / page), page


def test_links_are_rewritten_for_the_site():
    text = "[a](docs/how-to/tune.md#search), [b](CONTRIBUTING.md), `[c](docs/d.md)`, [e](https://f.org)"
    assert site_pages.rewritten("README.md", text) == (
        "[a](how-to/tune.md#search), [b](CONTRIBUTING.md), `[c](docs/d.md)`, [e](https://f.org)"
    )
    assert (
        site_pages.rewritten("docs/how-to/tune.md", "[a](../../README.md) [b](deploy.md)")
        == "[a](../index.md) [b](deploy.md)"
    )


NAMING_FILES = [
    page for page in PAGES if not page.startswith(("docs/how-to/", "docs/log", "benchmarks/"))
]


@pytest.mark.parametrize("page", NAMING_FILES)
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w-]+/)*[a-z_-]+\.(?:py|sh|toml))`", text))
    places = (ROOT, ROOT / "src/unmask", (ROOT / page).parent, ROOT / "src/unmask/decoders")
    missing = {name for name in named if not any((place / name).exists() for place in places)}
    assert not missing, page


def test_the_architecture_page_has_eight_steps_and_every_folder_on_a_floor():
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d)\. \*\*", text, re.MULTILINE) == list("12345678")
    layers = text[text.index("## Layers") : text.index("## Glossary")]
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", layers, re.MULTILINE))))
    package = ROOT / "src" / "unmask"
    parts = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert listed == parts - {"__init__", "__pycache__", "py", "version"}


IMPORT = re.compile(r"^\s*(?:>>> )?from (unmask[\w.]*) import \(?([\w, ]+)", re.MULTILINE)


def test_every_import_of_the_package_names_something_that_exists():
    """Also in programs that stand in texts and pages, which no checker of types reads."""
    folders = ("tests", "scripts", "benchmarks", "docs", "studies")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths = [path for path in paths if path.suffix in {".py", ".sh", ".md"}]
    assert len(paths) > 100
    wrong = []
    for path in [*paths, ROOT / "README.md"]:
        for module, names in IMPORT.findall(path.read_text(encoding="utf-8")):
            for name in filter(None, (item.split(" as ")[0].strip() for item in names.split(","))):
                try:
                    found = hasattr(importlib.import_module(module), name)
                    found = found or importlib.util.find_spec(f"{module}.{name}") is not None
                except ModuleNotFoundError:
                    found = False
                if not found:
                    wrong.append(f"{path.relative_to(ROOT)}: {module}.{name}")
    written_there = "docs/how-to/add-a-family.md: unmask.models.families.orchid"
    assert set(wrong) <= {written_there}, "found only where somebody followed the page"


def test_the_promises_of_security_name_tests_that_exist():
    text = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!promise|---)(.*) \|$", text, re.MULTILINE)
    assert rows
    for row in rows:
        promise, mechanism, tests = row.split(" | ")
        names = re.findall(r"`([\w/]+)::(\w+)`", tests)
        assert promise, row
        assert mechanism, row
        assert names, row
        for file, name in names:
            source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}::{name}"
