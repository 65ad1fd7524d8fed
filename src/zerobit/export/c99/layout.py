"""Where in memory the values of a tensor lie.

Shapes leave the batch out; there is none in C.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Values of a shape at regular distances, without gaps.

    A reshaped tensor keeps the layout of what it was, so that reshaping costs nothing; `strides_for` says whether the
    places are regular in another shape too.

    Attributes:
        shape: in which the distances are regular.
        strides: places between two neighbours along each dimension.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def in_order(cls, shape: Sequence[int], order: Sequence[int]) -> "Layout":
        """The dimensions in this order, the last one's neighbours next to each other."""
        strides, step = [0] * len(shape), 1
        for dim in reversed(order):
            strides[dim] = step
            step *= shape[dim]
        return cls(tuple(shape), tuple(strides))

    @classmethod
    def row_major(cls, shape: Sequence[int]) -> "Layout":
        """The last dimension's neighbours next to each other."""
        return cls.in_order(shape, range(len(shape)))

    @classmethod
    def channels_last(cls, shape: Sequence[int]) -> "Layout":
        """Of [C, *spatial]: the channels of a position next to each other."""
        return cls.in_order(shape, [*range(1, len(shape)), 0])

    @property
    def size(self) -> int:
        """Number of values, and of bytes."""
        return math.prod(self.shape)

    @cached_property
    def places(self) -> Ints:
        """[size], the place of each value, values in the order of their shape."""
        result = np.zeros((), np.int64)
        for size, stride in zip(self.shape, self.strides, strict=True):
            result = result[..., None] + np.arange(size) * stride
        return result.reshape(-1)

    def same(self, other: "Layout") -> bool:
        """Whether each value has one place in both; the shapes may differ."""
        return np.array_equal(self.places, other.places)

    def strides_for(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Distances along the dimensions of another shape of the same values; None where they are not regular."""
        places = self.places.reshape(tuple(shape))
        corner = (0,) * len(shape)
        strides = [int(places[(*corner[:d], 1, *corner[d + 1 :])]) if size > 1 else 0 for d, size in enumerate(shape)]
        regular = Layout(tuple(shape), tuple(strides))
        return regular.strides if np.array_equal(regular.places, self.places) else None

    def order_for(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The dimensions of another shape from the farthest neighbours to the closest; None as in `strides_for`."""
        strides = self.strides_for(shape)
        if strides is None:
            return None
        return tuple(sorted(range(len(shape)), key=lambda d: -strides[d] if shape[d] > 1 else 1))

    def as_stored(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values [N, *shape of the tensor] as they lie in memory, [N, size]."""
        flat = values.reshape(len(values), -1)
        result = np.empty_like(flat)
        result[:, self.places] = flat
        return result

    def as_tensor(self, stored: NDArray[np.generic], shape: Sequence[int]) -> NDArray[np.generic]:
        """Values [N, size] as they lie in memory as a tensor, [N, *shape]."""
        return stored[:, self.places].reshape(len(stored), *shape)


@dataclass(frozen=True)
class Loop:
    """A dimension that a kernel counts through.

    Attributes:
        size: how far.
        one, other: distances in two tensors.
    """

    size: int
    one: int
    other: int


def loops(shape: Sequence[int], one: Sequence[int], other: Sequence[int]) -> tuple[Loop, ...]:
    """Dimensions of two tensors as few loops as they make; always at least one.

    Args:
        shape: in loop order, outermost first.
        one: distances along it in one tensor.
        other: those in the other.
    """
    result: list[Loop] = []
    for size, a, b in zip(shape, one, other, strict=True):
        if size == 1:
            continue
        if result and (result[-1].one, result[-1].other) == (a * size, b * size):
            result[-1] = Loop(result[-1].size * size, a, b)
        else:
            result.append(Loop(size, a, b))
    return tuple(result) or (Loop(1, 1, 1),)
