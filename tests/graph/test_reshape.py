"""Common factors of two shapes, and what they make of channels."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerobit.graph.ir import Shape
from zerobit.graph.rules.reshape import Factors, factorise

sizes = st.integers(1, 5)


@st.composite
def _grouped(draw: st.DrawFn, factors: Sequence[int]) -> Shape:
    """The factors multiplied together in runs, with ones in between."""
    shape = [1]
    for factor in factors:
        if draw(st.booleans()):
            shape.append(1)
        shape[-1] *= factor
    return tuple(shape)


@st.composite
def _two_shapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    factors = draw(st.lists(sizes, max_size=6))
    return draw(_grouped(factors)), draw(_grouped(factors))


def _products(factors: Factors, spans: Sequence[Sequence[int]]) -> Shape:
    return tuple(math.prod(factors.sizes[i] for i in span) for span in spans)


@given(_two_shapes())
def test_factors_give_both_shapes(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    factors = factorise(before, after)
    assert factors is not None
    assert 1 not in factors.sizes
    assert _products(factors, factors.source) == before
    assert _products(factors, factors.target) == after
    # Each factor lies in one dimension of either shape, in row-major order.
    for spans in (factors.source, factors.target):
        assert [i for span in spans for i in span] == list(range(len(factors.sizes)))


@given(_two_shapes())
def test_factors_are_as_coarse_as_can_be(shapes: tuple[Shape, Shape]) -> None:
    """Between two factors, one of the shapes has an edge."""
    factors = factorise(*shapes)
    assert factors is not None
    edges = {span[0] for spans in (factors.source, factors.target) for span in spans if span}
    assert edges == set(range(len(factors.sizes)))


@given(st.lists(sizes, min_size=1, max_size=5), st.lists(sizes, min_size=1, max_size=5))
def test_none_only_where_dimensions_cut_across_each_other(before: list[int], after: list[int]) -> None:
    """Brute force: with common factors each dimension is a block of strides that nest in those of the other."""
    if math.prod(before) != math.prod(after):
        after = [*before[::-1]]
    edges = sorted({math.prod(shape[:i]) for shape in (before, after) for i in range(len(shape) + 1)})
    nested = all(large % small == 0 for i, small in enumerate(edges) for large in edges[i + 1 :])
    assert (factorise(tuple(before), tuple(after)) is not None) is nested


@given(_two_shapes())
def test_an_element_has_the_same_place_in_both(shapes: tuple[Shape, Shape]) -> None:
    factors = factorise(*shapes)
    assert factors is not None
    places = np.indices(factors.sizes).reshape(len(factors.sizes), math.prod(factors.sizes))
    for shape, spans in zip(shapes, (factors.source, factors.target), strict=True):
        for dim, span in enumerate(spans):
            own = np.zeros(places.shape[1], np.int64)
            for i in span:
                own = own * factors.sizes[i] + places[i]
            expected = np.indices(shape)[dim].reshape(-1)
            assert np.array_equal(own, expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 12, 5), (1, 3, 4, 5), Factors((3, 4, 5), ((), (0, 1), (2,)), ((), (0,), (1,), (2,)))),
        ((1, 6), (6, 1, 1), Factors((6,), ((), (0,)), ((0,), (), ()))),
        ((1, 1), (1,), Factors((), ((), ()), ((),))),
        ((2, 3), (3, 2), None),
        ((4, 6), (6, 4), None),
        ((0, 3), (3, 0), None),
        ((1, 0, 4), (1, 0), None),
    ],
)
def test_by_hand(before: Shape, after: Shape, expected: Factors | None) -> None:
    assert factorise(before, after) == expected
    assert torch.zeros(before).reshape(after).shape == after
