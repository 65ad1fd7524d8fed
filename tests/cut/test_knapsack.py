"""The knapsack against all combinations; it is silent and repeatable."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerobit.cut.knapsack import Options, dual_prices, solve


def _random(seed: int, items: int, limits: int, share: float, *, whole: bool) -> Options:
    """Options whose room is a share of the way from the cheapest choice to the dearest."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, items)
    item = np.repeat(np.arange(items), sizes)
    value, cost = rng.uniform(0, 10, len(item)), rng.uniform(0, 1, (limits, len(item)))
    if whole:  # equal values and costs abound
        value, cost = np.round(value / 3), np.round(cost * 4) / 4
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    least = np.minimum.reduceat(cost, starts, axis=1).sum(1)
    most = np.maximum.reduceat(cost, starts, axis=1).sum(1)
    return Options(item, value, cost, least + share * (most - least))


def _best(options: Options) -> float | None:
    """The most value of all combinations within the room."""
    values = []
    for chosen in itertools.product(*(range(a, b) for a, b in zip(options.starts, options.ends, strict=True))):
        index = np.array(chosen)
        if (options.slack(index) >= 0).all():
            values.append(float(options.value[index].sum()))
    return max(values, default=None)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 6),
    limits=st.integers(1, 3),
    share=st.floats(-0.1, 1.0),
    whole=st.booleans(),
)
def test_it_finds_the_best_of_all_combinations(seed: int, items: int, limits: int, share: float, whole: bool) -> None:
    options = _random(seed, items, limits, share, whole=whole)
    chosen, best = solve(options), _best(options)
    assert (chosen is None) == (best is None)
    if chosen is not None:
        assert options.item[chosen].tolist() == list(range(items))
        assert (options.slack(chosen) >= 0).all()
        assert options.value[chosen].sum() == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("limits", [1, 2, 3])
def test_a_large_one_is_close_to_the_bound_and_keeps_the_limits(limits: int) -> None:
    """No choice is worth more than the prices of one limit allow, whichever they are."""
    options = _random(5, 2000, limits, 0.4, whole=False)
    chosen = solve(options)
    assert chosen is not None
    assert (options.slack(chosen) >= 0).all()
    bounds = []
    for prices in itertools.product(np.geomspace(0.1, 100, 60 if limits == 1 else 24), repeat=limits):
        reduced = options.value - np.array(prices) @ options.cost
        bounds.append(np.maximum.reduceat(reduced, options.starts).sum() + np.array(prices) @ options.room)
    assert options.value[chosen].sum() >= 0.99 * min(bounds)


@pytest.mark.parametrize("share", [-0.1, 0.0, 0.2, 0.5, 0.99, 1.2])
@pytest.mark.parametrize("items", [1, 3, 200])
@pytest.mark.parametrize("whole", [False, True])
def test_the_price_of_one_limit_is_that_of_the_linear_program(items: int, share: float, whole: bool) -> None:
    """Which solves it where there is a second limit, here one that nothing costs."""
    one = _random(7, items, 1, share, whole=whole)
    two = Options(one.item, one.value, np.vstack([one.cost, np.zeros_like(one.cost)]), np.append(one.room, 1.0))
    bounds = []
    for options in (one, two):
        prices = dual_prices(options)
        reduced = options.value - prices @ options.cost
        bounds.append(prices @ options.room + np.maximum.reduceat(reduced, options.starts).sum())
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-8)


def test_nothing_to_choose_and_no_way_to_choose() -> None:
    none = Options(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((1, 0)), np.zeros(1))
    assert solve(none) is not None
    item = np.array([0, 0])
    assert solve(Options(item, np.array([1.0, 2.0]), np.array([[2.0, 3.0]]), np.array([1.0]))) is None
    crossed = Options(item, np.ones(2), np.array([[0.0, 2.0], [2.0, 0.0]]), np.ones(2))
    assert solve(crossed) is None, "each limit alone can be kept, both together can't"


def test_it_is_silent_and_gives_the_same_answer_twice(capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(12):
        options = _random(seed, 300, 1 + seed % 3, 0.45 + 0.05 * seed, whole=seed % 2 == 0)
        first, second = solve(options), solve(options)
        assert first is not None
        assert second is not None
        assert first.tolist() == second.tolist()
    assert capfd.readouterr() == ("", "")
