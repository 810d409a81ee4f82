"""Models that are served once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from served import Live, serving

from unmask import LLM
from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings


@pytest.fixture(scope="session")
def demo_llm() -> LLM:
    return LLM("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def client(demo_llm: LLM) -> Iterator[TestClient]:
    """The demo model, with everything at its default."""
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(models=("demo", "other-name")))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="session")
def live(demo_llm: LLM) -> Iterator[Live]:
    with serving(demo_llm, max_num_seqs=4, max_queue=3) as found:
        yield found
