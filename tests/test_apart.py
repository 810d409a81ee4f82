"""Work in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from unmask.engine.threads import run_in_thread


def test_the_result_comes_from_another_thread_that_is_gone():
    worker = run_in_thread(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_is_raised_there_is_raised_here(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        run_in_thread(fail)
    assert caught.value is error
