"""How two shapes of equal size are split into the smallest blocks of equal size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerobit.graph.rules.reshape import blocks

Blocks = list[tuple[list[int], list[int]]]


@st.composite
def pairs_of_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two ways to multiply the same primes, with ones strewn in."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), max_size=6))
    return draw(_shape(primes)), draw(_shape(primes))


@st.composite
def _shape(draw: st.DrawFn, primes: list[int]) -> list[int]:
    order = draw(st.permutations(primes))
    shape = [1]
    for prime in order:
        if draw(st.booleans()):
            shape.append(1)
        shape[-1] *= prime
    return shape + [1] * draw(st.integers(0, 2))


def _cuts(shape: list[int]) -> set[int]:
    """Sizes of all leading runs of dimensions."""
    return {math.prod(shape[:i]) for i in range(len(shape) + 1)}


@given(pairs_of_shapes())
def test_blocks_cover_both_shapes_in_order(shapes: tuple[list[int], list[int]]) -> None:
    before, after = shapes
    result = blocks(before, after)
    assert [d for source, _ in result for d in source] == list(range(len(before)))
    assert [d for _, target in result for d in target] == list(range(len(after)))


@given(pairs_of_shapes())
def test_blocks_are_of_equal_size(shapes: tuple[list[int], list[int]]) -> None:
    before, after = shapes
    for source, target in blocks(before, after):
        assert math.prod(before[d] for d in source) == math.prod(after[d] for d in target)


@given(pairs_of_shapes())
def test_blocks_are_the_smallest(shapes: tuple[list[int], list[int]]) -> None:
    """There is a border between blocks wherever both shapes have one; ones may lie on either side."""
    before, after = shapes
    borders = {1}
    for source, _ in blocks(before, after):
        borders.add(max(borders) * math.prod(before[d] for d in source))
    assert borders == _cuts(before) & _cuts(after)


@given(pairs_of_shapes())
def test_a_shape_is_its_own_blocks(shapes: tuple[list[int], list[int]]) -> None:
    shape, _ = shapes
    assert blocks(shape, shape) == [([d], [d]) for d in range(len(shape))]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 16, 4, 4), (1, 256), [([0], [0]), ([1, 2, 3], [1])]),
        ((1, 256), (1, 16, 4, 4), [([0], [0]), ([1], [1, 2, 3])]),
        ((1, 6, 4), (1, 4, 6), [([0], [0]), ([1, 2], [1, 2])]),
        ((1, 5, 1, 1), (1, 5), [([0], [0]), ([1], [1]), ([2, 3], [])]),
        ((1, 1, 8), (1, 8), [([0], [0]), ([1, 2], [1])]),
        ((1, 3, 4), (3, 4), [([0, 1], [0]), ([2], [1])]),
        ((), (), []),
    ],
    ids=str,
)
def test_examples(before: tuple[int, ...], after: tuple[int, ...], expected: Blocks) -> None:
    assert blocks(before, after) == expected
