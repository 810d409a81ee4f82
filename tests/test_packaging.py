"""The wheel as a stranger gets it: built, weighed, installed in a clean environment, started."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unmask"
MAX_WHEEL_BYTES = 25_000_000


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, run offline and blind to this checkout."""
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the installed hatchling (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    _run(sys.executable, *build, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; our dependencies are in reach, the checkout is not.

    A .pth file appends the test interpreter's site-packages. Python does not read .pth files of a
    folder that it was sent to by one, so the editable install of `unmask` there stays out of sight.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = _script(folder, "python")
    pip = ("-m", "pip", "--python", python, "--disable-pip-version-check", "install")
    _run(sys.executable, *pip, "--no-deps", "--no-index", wheel, cwd=folder.parent)
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(_run(python, "-c", find, cwd=folder.parent).strip())
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(ours)), encoding="utf-8")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working folder from which nothing of the checkout is importable."""
    folder = tmp_path / "else where"
    folder.mkdir()
    return folder


def _script(venv: Path, name: str) -> Path:
    return venv / ("Scripts" if sys.platform == "win32" else "bin") / name


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size
    assert size < MAX_WHEEL_BYTES, f"{size} bytes"


def test_the_wheel_holds_types_and_the_bundled_model(wheel: Path) -> None:
    model = {"model.safetensors", "config.json", "tokenizer.json"}
    wanted = {"unmask/py.typed"} | {f"unmask/demo/model/{name}" for name in model}
    assert wanted <= _names(wheel), f"missing: {sorted(wanted - _names(wheel))}"


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    sources = {
        f"unmask/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and not _is_cache(path)
    }
    packed = {name for name in _names(wheel) if ".dist-info/" not in name}
    assert packed == sources


def _is_cache(path: Path) -> bool:
    inside = PurePosixPath(path.relative_to(PACKAGE).as_posix()).parts
    return any(part == "__pycache__" or part.startswith(".") for part in inside)


def test_the_wheel_carries_the_license(wheel: Path) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in _names(wheel))


def test_the_installed_package_is_the_one_from_the_wheel(clean: Path, elsewhere: Path) -> None:
    code = "import unmask; print(unmask.__file__)"
    file = Path(_run(_script(clean, "python"), "-c", code, cwd=elsewhere).strip())
    assert file.resolve().is_relative_to(clean.resolve())


def test_the_installed_command_answers_a_question(clean: Path, elsewhere: Path) -> None:
    prompt = "Tom has 3 pens. He buys 5 more pens. How many pens does he have?"
    answer = _run(_script(clean, "unmask"), "generate", prompt, "--gen-length", "48", cwd=elsewhere)
    assert answer.split()[-1] == "8"


@pytest.mark.parametrize("argument", ["--help", "models"])
def test_the_installed_command_answers_in_any_folder(
    argument: str, clean: Path, elsewhere: Path
) -> None:
    assert _run(_script(clean, "unmask"), argument, cwd=elsewhere).strip()
