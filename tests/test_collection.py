"""The collector of cycles pauses while a command starts, and runs again whatever happens."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from unmask.cli.collection import paused_collection


class Node:
    """An object that refers to itself."""

    def __init__(self):
        self.own = self


def test_it_pauses_and_runs_again_also_after_an_error():
    assert gc.isenabled()
    with paused_collection():
        assert not gc.isenabled()
        with paused_collection():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the inner pause leaves the outer one"
    assert gc.isenabled()
    with pytest.raises(KeyError), paused_collection():
        raise KeyError
    assert gc.isenabled()


def test_cycles_made_after_the_start_are_collected():
    with paused_collection():
        pass
    before = gc.get_freeze_count()
    with paused_collection():
        node = Node()
    assert gc.get_freeze_count() <= before, "only the first pause sets objects aside"
    found = weakref.ref(node)
    del node
    gc.collect()
    assert found() is None


def test_the_first_pause_of_a_process_sets_objects_aside_unless_it_fails():
    code = """
import gc
from contextlib import suppress
from unmask.cli.collection import paused_collection
with suppress(KeyError), paused_collection():
    raise KeyError
print(gc.get_freeze_count() > 0)
with paused_collection():
    pass
print(gc.get_freeze_count() > 1000, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True", "True"], done.stderr
