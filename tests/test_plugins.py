"""Files in `decoders/` and `caches/` that cannot be used: reported by file, harmless to all others."""

from __future__ import annotations

import pytest

from unmask import caches, decoders
from unmask.cli.methods import all_knobs
from unmask.docgen import caches as cache_page
from unmask.docgen import decoders as decoder_page
from unmask.errors import ConfigError, PluginError

HEAD = """from dataclasses import dataclass
from unmask.caches import CachePolicy
from unmask.decoders import Blockwise, Decoder
"""
FILES = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "import": ("import no_such_module\n", "no_such_module"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "raises": ("raise RuntimeError('half-written')\n", "half-written"),
    "empty": ("", "defines no {attribute}"),
    "missing": ("class Other:\n    pass\n", "defines no {attribute}"),
    "no_class": ("{attribute} = 3\n", "{attribute}=3 must be a subclass of {base}"),
    "wrong_type": (
        "class Other:\n    pass\n\n\n{attribute} = Other\n",
        "must be a subclass of {base}",
    ),
    "half": (
        HEAD + "class Half({base}):\n    def start(self, canvas, facts):\n        return None\n\n\n"
        "{attribute} = Half\n",
        "Half defines no",
    ),
}
DECODER_FILES = {
    "statistic": (
        HEAD + "@dataclass(frozen=True)\nclass Odd(Blockwise):\n"
        "    @property\n    def stats(self):\n        return frozenset({'entropi'})\n\n\nDECODER = Odd\n",
        "unknown statistic 'entropi'",
    ),
    "helpless": (
        HEAD
        + "@dataclass(frozen=True)\nclass Odd(Blockwise):\n    size: int = 3\n\n\nDECODER = Odd\n",
        "size of Odd has no help text",
    ),
    "unbuildable": (
        HEAD + "@dataclass(frozen=True)\nclass Odd(Blockwise):\n    def __post_init__(self):\n"
        "        raise ValueError('no default')\n\n\nDECODER = Odd\n",
        "no default",
    ),
}
KINDS = {
    "decoders": (decoders, decoders.decoder_class, "DECODER", "Decoder"),
    "caches": (caches, caches.cache_class, "CACHE", "CachePolicy"),
}
CASES = [
    *((kind, name, *FILES[name]) for kind in KINDS for name in FILES),
    *(("decoders", name, *DECODER_FILES[name]) for name in DECODER_FILES),
]


@pytest.mark.parametrize(("kind", "case", "text", "reason"), CASES, ids=lambda v: str(v)[:12])
def test_a_file_that_cannot_be_used_is_reported_and_hurts_nothing_else(
    kind, case, text, reason, tmp_path, monkeypatch
):
    package, load, attribute, base = KINDS[kind]
    usable, name = package.names(), f"broken_{kind}_{case}"
    path = tmp_path / f"{name}.py"
    path.write_text(
        text.replace("{attribute}", attribute).replace("{base}", base), encoding="utf-8"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    reason = reason.format(attribute=attribute, base=base)
    with pytest.raises(PluginError) as caught:
        load(name)
    assert isinstance(caught.value, ConfigError)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert package.names() == usable
    assert list(package.broken()) == [name]
    pages = [all_knobs()]
    pages += [(decoder_page if kind == "decoders" else cache_page).markdown()]
    for page in pages:
        lines = [line for line in page.splitlines() if line.startswith("Not usable")]
        assert len(lines) == 1
        assert name in lines[0]
        assert str(path) in lines[0]
    with pytest.raises(ConfigError, match="unknown") as caught:
        load("no_such_name")
    assert name not in str(caught.value)
    decoders.make_decoder("threshold", {})
    caches.make_cache("dual")


def test_all_files_of_the_package_can_be_used():
    assert not decoders.broken()
    assert not caches.broken()
