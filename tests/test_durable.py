"""Files and folders that survive a crash, and YAML that is bounded before it is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unmask.durable import FolderLock, digests, first_damage, new_folder, publish_folder, write_text
from unmask.errors import ConfigError
from unmask.yaml_text import parse_yaml


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_what_is_renamed_was_synced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def noting(name: str) -> None:
        events.append(name)

    monkeypatch.setattr(os, "fsync", lambda number: (noting("fsync"), fsync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (noting("rename"), replace(a, b))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (noting("rename"), rename(a, b))[1])
    write_text(tmp_path / "file", "text")
    assert events == ["fsync", "rename", "fsync"]
    events.clear()
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "file").touch()
    publish_folder(tmp_path / "partial", tmp_path / "final")
    assert events == ["fsync", "fsync", "rename", "fsync"]


def test_a_published_folder_replaces_the_one_before(tmp_path: Path) -> None:
    for text in ("old", "new"):
        (tmp_path / "partial").mkdir()
        (tmp_path / "partial" / text).write_text(text)
        publish_folder(tmp_path / "partial", tmp_path / "final")
    assert [item.name for item in tmp_path.iterdir()] == ["final"]
    assert [item.name for item in (tmp_path / "final").iterdir()] == ["new"]


def test_a_folder_appears_when_it_is_whole_and_after_an_error_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "final"

    def interrupted() -> None:
        with new_folder(final) as partial:
            (partial / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(final.parent.iterdir())
    (final.parent / ".final.partial").mkdir()
    (final.parent / ".final.partial" / "of a crash").touch()
    with new_folder(final) as partial:
        (partial / "file").touch()
        assert not final.exists()
    assert [path.name for path in final.parent.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["file"]


def test_damage_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("2")
    expected = digests(tmp_path)
    assert sorted(expected) == ["a", "sub/b"]
    assert first_damage(tmp_path, expected) is None
    (tmp_path / "a").write_text("3")
    assert first_damage(tmp_path, expected) == "a is damaged"
    (tmp_path / "a").unlink()
    assert first_damage(tmp_path, expected) == "a is missing"


def test_a_folder_has_one_writer_whose_death_frees_it(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from unmask.durable import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]), 'run')\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=rf"another run \(process {other.pid}\); wait for it"):
            FolderLock(tmp_path, "run")
        other.kill()
        other.wait()
        FolderLock(tmp_path, "run").release()


NESTED = "[" * 200 + "]" * 200
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 100000 values"),
        (NESTED, "nested more than 50 deep"),
        ("- " * 200, "nested more than 50 deep"),
        ("a: &a [*a]" + " " * 100, "inside the value"),
        ("x" * (2 << 20), "at most 1048576"),
        ("2024-13-45", "month"),
        ("a: 2024-13-45 # " + "x" * 100, "month"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/object/apply:os.system ['true'] # " + "x" * 100, "could not determine"),
        ("1" * 5000, "limit"),
    ],
)
def test_hostile_yaml_is_an_error_of_yaml(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)


@pytest.mark.parametrize("end", ["", " # " + "x" * 100])
@pytest.mark.parametrize(
    "text", ["", "1", "a: [1, 2.5, null, true, 2024-01-02]", "a: &x {b: 1}\nc: *x"]
)
def test_other_yaml_means_what_it_means(text: str, end: str) -> None:
    assert parse_yaml(text + end) == yaml.safe_load(text)
