"""Generated pages are up to date. `test_howtos.py` follows the how-tos, `test_site.py` the links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from unmask import decoders
from unmask.bench import matrix
from unmask.docgen.caches import markdown as cache_page
from unmask.docgen.decoders import markdown

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_of_the_decoders_is_what_the_code_says():
    if not DOCS.exists():
        pytest.skip("the source distribution has no docs")
    page = (DOCS / "reference" / "decoders.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: unmask decoders > docs/reference/decoders.md"


def test_the_reference_names_every_decoder_its_paper_and_its_knobs():
    page = markdown()
    for name in decoders.names():
        row = re.search(rf"^\| \[`{name}`\].*$", page, re.MULTILINE)
        assert row, name
        assert re.search(r"arXiv:\d{4}\.\d{5}|our own", row[0]), name


def test_the_reference_of_the_caches_is_what_the_code_says():
    if not DOCS.exists():
        pytest.skip("the source distribution has no docs")
    page = (DOCS / "reference" / "caches.md").read_text(encoding="utf-8")
    assert page == cache_page(), "run: unmask caches > docs/reference/caches.md"


def cells_of(table):
    """(decoder, cache) -> what the cell says."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {
        (row[0].strip("`"), cache): cell
        for row in lines[2:]
        for cache, cell in zip(lines[0][1:], row[1:], strict=True)
    }


def test_the_matrix_page_has_every_decoder_and_cache():
    if not DOCS.exists():
        pytest.skip("the source distribution has no docs")
    page = (DOCS / "reference" / "cache-matrix.md").read_text(encoding="utf-8")
    for text in re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]:
        cells = cells_of(text)
        assert {name for name, _ in cells} == set(decoders.names())
        assert len(cells) == len(decoders.names()) * len({cache for _, cache in cells})


@pytest.mark.slow
def test_the_matrix_page_has_every_cell_as_it_runs():
    """Shares are measurements; what runs, what is refused and what is exact must be so now."""
    if not DOCS.exists():
        pytest.skip("the source distribution has no docs")
    page = (DOCS / "reference" / "cache-matrix.md").read_text(encoding="utf-8")
    demo, shifted, causal = re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]
    made = ((shifted, {"shift_logits": True}), (causal, {"block_size": 4}))
    for text, facts in made:
        now = {
            (cell.decoder, cell.cache): cell
            for cell in matrix.matrix(matrix.small_llm(**facts), [[3, 4, 5, 6, 7], [9, 1]], 16)
        }
        written = cells_of(text)
        assert set(written) == set(now)
        for key, cell in now.items():
            assert (written[key] == "no") == (cell.problem is not None), key
            if key[1] == "block_causal" and cell.problem is None:
                assert cell.same == 1, key
                assert written[key].endswith("= 100 %"), key
    refused = {key for key, cell in cells_of(demo).items() if cell == "no"}
    assert refused == {(name, "block_causal") for name in decoders.names()}


def test_the_picture_of_the_rule_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location(
        "rule_picture", DOCS.parent / "scripts/rule_picture.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text(encoding="utf-8") == module.picture()
