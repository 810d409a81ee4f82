"""The largest values in two stages are those of `topk` and `argmax`, ties and NaN included."""

from __future__ import annotations

import pytest
import torch

from unmask.sampling.largest import ARGMAX_GROUP, GROUP, LEAST_GROUPS, first_largest, largest_values

NAN, INF = float("nan"), float("inf")
WIDTHS = (1, 3, GROUP * LEAST_GROUPS, 1000, 2 * ARGMAX_GROUP, 2 * ARGMAX_GROUP + 1, 5000)


def rows_of(width, kind):
    generator = torch.Generator().manual_seed(width)
    if kind == "ties":
        return torch.randint(0, 3, (6, width), generator=generator).float()
    values = torch.randn(6, width, generator=generator)
    if kind == "infinite":
        values[torch.rand(6, width, generator=generator) < 0.5] = -INF
        values[0], values[1, width // 2] = -INF, INF
    if kind == "nan":
        values[torch.rand(6, width, generator=generator) < 0.01] = NAN
        values[0] = NAN
    return values.double() if kind == "double" else values


@pytest.mark.parametrize("kind", ["random", "ties", "infinite", "nan", "double"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_largest_values_are_those_of_topk(width, kind):
    values = rows_of(width, kind)
    for count in {1, 2, min(width, 7), width // 80, width // 20, width} - {0}:
        if count <= width:
            found, wanted = largest_values(values, count), values.topk(count, dim=-1).values
            assert torch.equal(found.nan_to_num(1e9), wanted.nan_to_num(1e9)), count


@pytest.mark.parametrize("kind", ["random", "ties", "infinite", "nan", "double"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_largest_column_is_the_lowest_of_equal_ones(width, kind):
    values = rows_of(width, kind)
    best = values.nan_to_num(1e9, posinf=1e8)
    wanted = [row.index(max(row)) for row in best.tolist()]
    assert first_largest(values).tolist() == wanted == values.argmax(dim=-1).tolist()


def test_the_largest_value_may_be_in_any_column():
    for width in (2 * ARGMAX_GROUP + 5, 3 * ARGMAX_GROUP):
        values = torch.eye(width)
        assert first_largest(values).tolist() == list(range(width))
        assert torch.equal(largest_values(values, 2), torch.tensor([[1.0, 0.0]]).expand(width, -1))


def test_rows_of_other_strides_and_no_rows_are_taken():
    values = torch.randn(3000, 4).t()
    assert torch.equal(largest_values(values, 5), values.topk(5, dim=-1).values)
    assert torch.equal(first_largest(values), values.argmax(dim=-1))
    assert largest_values(values[:0], 5).shape == (0, 5)
    assert first_largest(values[:0]).shape == (0,)
