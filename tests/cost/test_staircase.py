"""Staircases: the exact value for whole and fractional counts, the average slope behind it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerobit.cost.staircase import any_of, ceil_div, floor_div, soft_maximum, with_slope


def _value_and_slope(result: torch.Tensor, count: torch.Tensor) -> tuple[list[float], list[float]]:
    (slope,) = torch.autograd.grad(result.sum(), [count])
    return result.detach().tolist(), slope.tolist()


def _counts(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_tiles_that_hold_a_count() -> None:
    count = _counts(0, 1e-9, 0.01, 0.5, 1, 15.5, 16, 16 + 1e-9, 16.5, 17, 32, 33)
    values, slopes = _value_and_slope(ceil_div(count, 16), count)
    assert values == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    assert slopes == [1 / 16] * 12


def test_tiles_that_a_count_fills() -> None:
    count = _counts(0, 0.5, 3.9, 4 - 1e-9, 4, 7.5, 8)
    values, slopes = _value_and_slope(floor_div(count, 4), count)
    assert values == [0, 0, 0, 1, 1, 1, 2]
    assert slopes == [1 / 4] * 7


def test_what_is_paid_once_is_shared_by_one_tile() -> None:
    count = _counts(0, 1e-9, 0.5, 1, 15, 17, 100)
    values, slopes = _value_and_slope(any_of(count, 16), count)
    assert values == [0, 0, 1, 1, 1, 1, 1]
    assert slopes == [1 / 16] * 5 + [0, 0]


@given(st.integers(0, 10**6), st.integers(1, 4096))
def test_whole_counts_are_those_of_integers(count: int, tile: int) -> None:
    x = torch.tensor(float(count), dtype=torch.float64)
    assert ceil_div(x, tile).item() == -(-count // tile)
    assert floor_div(x, tile).item() == count // tile


@given(st.integers(0, 1000), st.integers(1, 64))
def test_the_slope_over_a_tile_is_the_next_tile(count: int, tile: int) -> None:
    x = torch.tensor(float(count), dtype=torch.float64, requires_grad=True)
    for staircase in (ceil_div, floor_div):
        (slope,) = torch.autograd.grad(staircase(x, tile), [x])
        step = staircase(x + tile, tile) - staircase(x, tile)
        assert slope.item() * tile == pytest.approx(step.item(), rel=1e-14)


def test_a_value_with_another_slope_is_the_value_to_the_last_bit() -> None:
    exact, count = torch.tensor(0.1, dtype=torch.float64), _counts(1 / 3)
    assert with_slope(exact, count, 7).item() == 0.1
    assert with_slope(exact, count.detach(), 7) is exact


def test_soft_maximum_is_the_maximum() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand(50, 3, 7, generator=random, dtype=torch.float64, requires_grad=True)
    for sharpness in (1.0, 20.0, 1e4):
        assert torch.equal(soft_maximum(values, sharpness).detach(), values.detach().amax(-1))
    assert torch.equal(soft_maximum(values.detach()), values.detach().amax(-1))


def test_soft_maximum_shows_its_slope_to_all_that_are_close() -> None:
    values = _counts(100, 90, 50, 0)
    _, slopes = _value_and_slope(soft_maximum(values, 20.0), values)
    weights = [math.exp(-20 * d) for d in (0, 0.1, 0.5, 1)]
    assert slopes == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)
    _, larger = _value_and_slope(soft_maximum(values * 1e6, 20.0), values)
    assert larger == pytest.approx([1e6 * s for s in slopes], rel=1e-12), "whatever the unit"


def test_soft_maximum_of_nothing_but_zeros() -> None:
    values = _counts(0, 0)
    assert soft_maximum(values).item() == 0
    (slopes,) = torch.autograd.grad(soft_maximum(values), [values])
    assert slopes.tolist() == [0.5, 0.5]
