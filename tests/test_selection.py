"""The selectors at their boundaries (m = candidates, scores as probabilities for reading)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.selection import factor, quota, quota_schedule, ranking, threshold

PROBABILITIES = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12)


def log_odds(p):
    p = np.array(p, dtype=np.float64)
    return np.log(p) - np.log1p(-p)


def by_threshold(p, tau):
    return threshold(log_odds(p), np.array(p), tau).tolist()


def by_factor(p, phi, compat=False):
    return sorted(factor(log_odds(p), 1 - np.array(p), phi, compat=compat).tolist())


@pytest.mark.parametrize(
    ("num_open", "steps", "expected"),
    [
        (8, 8, (1,) * 8),
        (8, 3, (3, 3, 2)),
        (7, 2, (4, 3)),
        (5, 1, (5,)),
        (3, 5, (1, 1, 1, 0, 0)),
        (0, 2, (0, 0)),
        (32, 12, (3,) * 8 + (2,) * 4),
    ],
)
def test_the_quota_schedule_is_even_with_the_larger_first(num_open, steps, expected):
    assert quota_schedule(num_open, steps) == expected


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_quota_schedule_commits_everything(num_open, steps):
    schedule = quota_schedule(num_open, steps)
    assert len(schedule) == steps
    assert sum(schedule) == num_open
    assert max(schedule) - min(schedule) <= 1
    assert list(schedule) == sorted(schedule, reverse=True)


@pytest.mark.parametrize(
    ("p", "k", "expected"),
    [
        ([0.5], 1, [0]),
        ([0.5], 9, [0]),
        ([0.2, 0.7], 1, [1]),
        ([0.2, 0.7], 2, [1, 0]),
        ([0.4, 0.4, 0.4], 2, [0, 1]),
        ([0.1, 0.4, 0.4, 0.9], 2, [3, 1]),
        ([0.2, 0.7, 0.1], 0, [1]),
    ],
)
def test_quota_takes_the_surest_and_ties_go_to_the_lowest_position(p, k, expected):
    assert quota(log_odds(p), k).tolist() == expected


@pytest.mark.parametrize("size", [8, 32, 256])
def test_ties_are_positional_where_topk_is_not(size):
    assert ranking(np.ones(size)).tolist() == list(range(size))


def test_ranking_keeps_order_among_certain_tokens_and_puts_suppressed_ones_last():
    scores = np.array([36.0, 36.5, -math.inf, math.inf, -40.0])
    assert ranking(scores).tolist() == [3, 1, 0, 4, 2]


@pytest.mark.parametrize(
    ("p", "tau", "expected"),
    [
        ([0.95], 0.9, [0]),
        ([0.1], 0.9, [0]),  # m = 1, below: progress all the same
        ([0.95, 0.1], 0.9, [0]),
        ([0.1, 0.2], 0.9, [1]),  # all below: the surest
        ([0.2, 0.2, 0.2], 0.9, [0]),  # all equal and below: the lowest position
        ([0.95, 0.95, 0.95], 0.9, [0, 1, 2]),
        ([0.9, 0.5, 0.9], 0.9, [0, 2]),  # exactly tau passes
        ([0.9, math.nextafter(0.9, 0.0), 0.5], 0.9, [0]),
        ([0.5, 0.6, 0.7], 0.0, [0, 1, 2]),
        ([0.5, 0.6, 0.7], 1.0, [2]),
    ],
)
def test_threshold_takes_all_that_reach_it_and_at_least_one(p, tau, expected):
    assert by_threshold(p, tau) == expected


@pytest.mark.parametrize(
    ("p", "phi", "expected", "as_published"),
    [
        ([0.9], 1.0, [0], [0]),
        ([0.1], 1.0, [0], [0]),  # rank 1 always
        ([0.9, 0.1], 1.0, [0], [0, 1]),  # m = 2: the published loop always takes both
        ([0.1, 0.9], 1.0, [1], [0, 1]),
        ([0.9, 0.7], 1.0, [0, 1], [0, 1]),  # 3 * 0.3 < 1
        ([0.9, 0.8, 0.1], 1.0, [0, 1], [0, 1, 2]),  # only the last fails
        ([0.9, 0.2, 0.1], 1.0, [0], [0]),  # the last two fail
        ([0.99, 0.9, 0.9, 0.7, 0.2], 1.0, [0, 1, 2], [0, 1, 2]),
        ([0.9, 0.9, 0.9, 0.9], 0.0, [0], [0]),
        ([0.2, 0.3, 0.1, 0.5], 100.0, [0, 1, 2, 3], [0, 1, 2, 3]),
        ([0.5, 0.5, 0.5], 1.6, [0, 1], [0, 1, 2]),  # equal scores: 3 * 0.5 < 1.6 <= 4 * 0.5
        ([0.5, 0.5, 0.5, 0.5], 1.6, [0, 1], [0, 1]),
    ],
)
def test_factor_at_its_boundaries(p, phi, expected, as_published):
    assert by_factor(p, phi) == expected
    assert by_factor(p, phi, compat=True) == as_published


def test_factor_is_strict_where_a_rank_meets_the_bound_exactly():
    doubt = np.array([0.125, 0.25, 0.25])  # rank 2: 3 * 0.25 = 0.75; rank 3: 4 * 0.25 = 1
    scores = -doubt
    assert factor(scores, doubt, 1.0).tolist() == [0, 1]
    assert factor(scores, doubt, 0.75).tolist() == [0]
    assert factor(scores, doubt, 1.0 + 1e-12).tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", range(1, 8))
def test_factor_passes_exactly_n_ranks_when_the_bound_lies_between_two(n):
    doubt = np.full(8, 0.1)
    phi = (n + 1.5) * 0.1
    assert len(factor(-doubt, doubt, phi)) == n
    assert len(factor(-doubt, doubt, phi, compat=True)) == (8 if n == 7 else n)


@given(PROBABILITIES, st.floats(0, 1), st.floats(0, 20), st.integers(1, 20))
def test_every_rule_chooses_a_nonempty_set_of_candidates(p, tau, phi, k):
    scores, values = log_odds(p), np.array(p)
    for chosen in (
        quota(scores, k),
        threshold(scores, values, tau),
        factor(scores, 1 - values, phi),
        factor(scores, 1 - values, phi, compat=True),
    ):
        assert 1 <= len(chosen) <= len(p)
        assert len(set(chosen.tolist())) == len(chosen)
        assert int(np.argmax(scores)) in chosen.tolist()


@given(PROBABILITIES, st.floats(0, 20))
def test_factor_is_the_largest_prefix_that_the_bound_allows(p, phi):
    order = sorted(range(len(p)), key=lambda i: (-log_odds(p)[i], i))
    best = max(
        n
        for n in range(1, len(p) + 1)
        if n == 1 or all((r + 1) * (1 - p[order[r - 1]]) < phi for r in range(1, n + 1))
    )
    assert by_factor(p, phi) == sorted(order[:best])
