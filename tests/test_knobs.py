"""Knobs: text or values as a dataclass field's type, and an error that names the field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from unmask import caches, decoders
from unmask.errors import ConfigError
from unmask.knobs import field_names, set_field


@dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    name: str = ""
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    ratio: float | None = None
    pair: tuple[float, ...] = (1.0,)
    sizes: tuple[int, ...] | None = None


def typed(value):
    return type(value), value


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("count", 3, 3),
        ("count", "3", 3),
        ("count", 3.0, 3),
        ("count", "-3", -3),
        ("rate", 2, 2.0),
        ("rate", "2", 2.0),
        ("rate", "0.25", 0.25),
        ("rate", "3e-3", 0.003),
        ("rate", "1e5", 1e5),
        ("flag", True, True),
        ("flag", "true", True),
        ("flag", "false", False),
        ("name", "text", "text"),
        ("name", "3", "3"),
        ("name", "true", "true"),
        ("mode", "slow", "slow"),
        ("limit", None, None),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("limit", 7, 7),
        ("ratio", "0.5", 0.5),
        ("ratio", 1, 1.0),
        ("pair", [1, 2.5], (1.0, 2.5)),
        ("pair", "[1, 2.5]", (1.0, 2.5)),
        ("sizes", "[1, 2]", (1, 2)),
        ("sizes", "null", None),
        ("sizes", (3,), (3,)),
    ],
)
def test_a_value_or_its_text_becomes_the_fields_type(name, given, expected):
    assert typed(set_field(Settings, name, given)) == typed(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("count", "three"),
        ("count", 2.5),
        ("count", "2.5"),
        ("count", True),
        ("count", "true"),
        ("count", None),
        ("count", "null"),
        ("count", [1]),
        ("rate", "fast"),
        ("rate", True),
        ("rate", None),
        ("rate", "[1"),
        ("flag", 1),
        ("flag", "maybe"),
        ("flag", "1"),
        ("name", 3),
        ("mode", "medium"),
        ("mode", 3),
        ("mode", None),
        ("limit", "many"),
        ("limit", 1.5),
        ("pair", 3),
        ("pair", "3"),
        ("pair", ["x"]),
        ("sizes", [1.5]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(name, given):
    with pytest.raises(ConfigError, match=name):
        set_field(Settings, name, given)


def test_field_names_are_those_of_the_dataclass():
    assert field_names(Settings) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", decoders.names())
def test_every_knob_of_a_decoder_is_explained_and_reads_its_default_back(name):
    cls = decoders.decoder_class(name)
    for field in dataclasses.fields(cls):
        assert len(field.metadata["help"]) > 20, field.name
        assert set_field(cls, field.name, field.default) == field.default


@pytest.mark.parametrize("name", decoders.names())
def test_a_decoder_is_a_value_without_state(name):
    first, second = decoders.make_decoder(name, {}), decoders.make_decoder(name, {})
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.compat = True


def test_decoders_and_caches_are_found_by_their_files():
    assert {"vanilla", "threshold", "factor"} <= set(decoders.names())
    assert {"none", "prefix", "dual"} <= set(caches.names())
    assert "store" not in caches.names()


@pytest.mark.parametrize("name", ["Vanilla", "vanila", "", None, "__init__", "os"])
def test_a_name_that_is_no_decoder_is_refused(name):
    with pytest.raises(ConfigError, match="unknown decoder"):
        decoders.decoder_class(name)


def test_optional_text_stays_as_written_and_null_is_none():
    @dataclasses.dataclass
    class Settings:
        folder: str | None = None

    assert set_field(Settings, "folder", "2026") == "2026"
    assert set_field(Settings, "folder", "true") == "true"
    assert set_field(Settings, "folder", "null") is None
    assert set_field(Settings, "folder", None) is None
    with pytest.raises(ConfigError, match="folder=7 must be text"):
        set_field(Settings, "folder", 7)
