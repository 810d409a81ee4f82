"""The documentation site: every page is in the navigation and every link between pages leads somewhere."""

from __future__ import annotations

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
    assert sorted(listed) == sorted(site_pages.in_site(page) for page in PAGES)


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
