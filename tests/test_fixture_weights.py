"""Checkpoints that are tracked in a smaller form come out bit for bit."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
WEIGHTS = runpy.run_path(str(ROOT / "scripts" / "fixture_weights.py"))
RECIPES = sorted((ROOT / "tests" / "fixtures").rglob("drawn.json"))
MAX_TRACKED_BYTES = 64 << 20


def test_a_packed_file_is_unpacked_bit_for_bit(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.randn(7, 5),
        "b": torch.randn(3).bfloat16(),
        "c": torch.tensor([1, -(2**40)]),
        "d": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "e": torch.tensor(float("nan")),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    wanted = path.read_bytes()
    assert WEIGHTS["unpack"](WEIGHTS["pack"](path)) == wanted


def test_what_is_missing_is_made_and_what_is_there_is_left_alone(tmp_path):
    path = tmp_path / "a" / "model.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.ones(4)}, path)
    WEIGHTS["pack"](path)
    assert WEIGHTS["make"]((tmp_path,)) == []
    wanted = path.read_bytes()
    path.unlink()
    assert WEIGHTS["make"]((tmp_path,)) == [path]
    assert path.read_bytes() == wanted
    assert {each.name for each in path.parent.iterdir()} == {path.name, path.name + ".xz"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_weights_are_drawn_as_the_reference_values_were_made(recipe):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.randn rounds otherwise on this processor")
    digest = json.loads(recipe.read_text(encoding="utf-8"))["sha256"]
    assert hashlib.sha256(WEIGHTS["draw"](recipe)).hexdigest() == digest


def test_the_repository_stays_small():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    names = subprocess.run(
        ("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in names if name]
    assert sum(path.lstat().st_size for path in paths if path.exists()) < MAX_TRACKED_BYTES
