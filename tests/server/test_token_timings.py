"""The server's blocks are those that `unmask bench serve` sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.bench import latency
from unmask.bench.endpoint import Arrival, EndpointReply
from unmask.server.generation import BLOCK_LENGTH, TokenTimings


def times_of(pieces):
    """The timings, and the reply that a client sees, of pieces that come a second after each other."""
    timings, arrivals, so_far = TokenTimings(), [], 0
    for number, size in enumerate(pieces, 1):
        so_far += size
        timings.add(float(number), so_far, is_complete=False)
        if size:
            arrivals.append(Arrival(float(number), "", so_far))
    timings.add(len(pieces) + 1.0, so_far, is_complete=True)
    return timings, EndpointReply(0.0, len(pieces) + 1.0, tuple(arrivals), so_far)


@given(st.lists(st.integers(0, 80), max_size=12))
def test_blocks_come_when_the_benchmark_says(pieces):
    timings, reply = times_of(pieces)
    assert BLOCK_LENGTH == latency.BLOCK_LENGTH
    assert timings.blocks_s == latency.block_times(reply, len, BLOCK_LENGTH)


def test_the_time_a_token_is_that_after_the_first():
    timings, _ = times_of([1, 0, 10, 10])
    assert timings.per_token_s == pytest.approx(3 / 20)
    assert times_of([1])[0].per_token_s is None
    assert times_of([])[0].per_token_s is None


def test_an_answer_that_is_given_up_has_no_last_block():
    timings = TokenTimings()
    timings.add(1.0, 40, is_complete=False)
    assert timings.blocks_s == [1.0]
