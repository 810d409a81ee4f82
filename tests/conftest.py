"""What all tests share: no network, a bounded number of threads, checkpoints loaded once."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

FIXTURES = Path(__file__).parent / "fixtures"
THINNED = {
    "test_caches",
    "test_drop_after_eos",
    "test_extremes",
    "test_oracles",
    "test_oracles_methods",
    "test_properties",
}
"""Modules of which the short run takes only some cases: see `thin`."""
WIDE = THINNED | {
    "test_constrained",
    "test_end_of_text",
    "test_engine_mixtures",
    "test_golden",
    "test_oracles_golden",
    "test_oracles_golden_b",
}
"""Modules whose slow tests measure neither time nor memory, so they may run in parallel."""
MANY_CASES = 24

pytest.register_assert_rewrite("directions")
settings.register_profile("unmask", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("unmask")


def pytest_configure():
    """Make the checkpoints that are tracked in a smaller form: a few seconds, the first time."""
    script = FIXTURES.parents[1] / "scripts" / "fixture_weights.py"
    runpy.run_path(str(script))["make"]((FIXTURES,))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Thin the modules of `THINNED` for the short run, and mark slow tests of `WIDE` as wide."""
    cases = {}
    for item in items:
        call = getattr(item, "callspec", None)
        if item.path.stem in THINNED and call is not None and "family" in call.params:
            rest = tuple(f"{key}={value}" for key, value in call.params.items() if key != "family")
            cases.setdefault(item.function, {}).setdefault(rest, []).append(item)
    for turn, groups in enumerate(cases.values()):
        thin(list(groups.values()), turn)
    for item in items:
        if item.path.stem in WIDE and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.wide)


def thin(groups, turn):
    """Mark as slow all but one family of each case of a test, and of many cases two of three.

    A group has the families of one case. Families and cases alternate with the case and with `turn`, the
    number of the test, so in the short run every decoder meets every cache in a third of the tests that
    have both, and both families.
    """
    step = 3 if len(groups) >= MANY_CASES else 1
    for number, group in enumerate(groups):
        kept = (number // step + turn) % len(group) if (number + turn) % step == 0 else None
        for place, item in enumerate(group):
            if place != kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """The models are small: more threads only wait for each other, and their number is not a result."""
    import torch

    torch.set_num_threads(min(2, max(1, int(os.environ.get("OMP_NUM_THREADS", "2")))))


@pytest.fixture(scope="module", autouse=True)
def own_methods_leave():
    """Decoders, caches and families that a module registers are not there in the next one."""
    from unmask import caches, decoders
    from unmask.models.registry import OWN

    owns = [*(each.WORKSHOP.registry.own for each in (decoders, caches)), OWN.added]
    before = [dict(own) for own in owns]
    yield
    for own, was in zip(owns, before, strict=True):
        own.clear()
        own.update(was)


@pytest.fixture(scope="session")
def parity_folder():
    """Folder of a parity checkpoint: `config.json`, `model.safetensors` and reference values."""
    return lambda family: FIXTURES / "parity" / family


@pytest.fixture(scope="session")
def parity_model():
    """A loaded parity checkpoint in float32 on the CPU, by family."""
    from unmask.models import load_model

    loaded = {}

    def get(family):
        if family not in loaded:
            loaded[family] = load_model(FIXTURES / "parity" / family, "float32", "cpu")
        return loaded[family]

    return get


@pytest.fixture(scope="session")
def golden_llm():
    """The really trained 6 M-parameter LLaDA of the golden decodes."""
    from unmask import LLM

    return LLM(FIXTURES / "golden" / "tiny-llada", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny():
    """`tiny(family, **changes)`: an `LLM` over random weights that answers in milliseconds."""
    from functools import lru_cache

    import tiny as module

    return lru_cache(maxsize=None)(module.tiny_llm)


@pytest.fixture(scope="session")
def demo_llm():
    """The bundled model."""
    from unmask import LLM

    return LLM("demo", dtype="float32", device="cpu")
