"""Ops that move integers or choose among them, and compute nothing: their output has their input's format.

Shapes leave the batch out, and so do dimensions: 0 is the first behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass


def as_ints(values: Sequence[int]) -> tuple[int, ...]:
    """As a tuple of Python integers."""
    return tuple(int(value) for value in values)


def as_pairs(values: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """As a tuple of pairs of Python integers."""
    return tuple((int(begin), int(end)) for begin, end in values)


@dataclass(frozen=True)
class Concat:
    """Copies integer tensors behind each other; all, the output too, share scale, bits and signedness.

    Attributes:
        inputs: two or more integer tensors.
        output: an integer tensor.
        axis: dimension, not counting the batch; 0 is the channels.
    """

    inputs: tuple[str, ...]
    output: str
    axis: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))


@dataclass(frozen=True)
class MaxPool:
    """Largest integer of each window; padding never wins. Input and output share scale, bits and signedness.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, *spatial].
        kernel, stride: per spatial dimension.
        padding: (begin, end) per spatial dimension, each smaller than the kernel.
    """

    input: str
    output: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", as_ints(self.kernel))
        object.__setattr__(self, "stride", as_ints(self.stride))
        object.__setattr__(self, "padding", as_pairs(self.padding))


@dataclass(frozen=True)
class Reshape:
    """Same integers in the output tensor's shape; flatten, view, squeeze."""

    input: str
    output: str


@dataclass(frozen=True)
class Pad:
    """Zeros around the spatial dimensions; input and output share scale, bits and signedness.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, *spatial].
        padding: (begin, end) per spatial dimension.
    """

    input: str
    output: str
    padding: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", as_pairs(self.padding))


@dataclass(frozen=True)
class Permute:
    """Dimensions in another order.

    Attributes:
        input: an integer tensor.
        output: of the same integers.
        dims: dimension of the input that each dimension of the output is.
    """

    input: str
    output: str
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", as_ints(self.dims))


@dataclass(frozen=True)
class Slice:
    """Every `step`-th position of a range along one dimension.

    Attributes:
        input: an integer tensor.
        output: of the positions taken.
        axis: the dimension.
        start: first position.
        end: position behind the last.
        step: 1 or more.
    """

    input: str
    output: str
    axis: int
    start: int
    end: int
    step: int = 1


@dataclass(frozen=True)
class Expand:
    """Dimensions of size 1 repeated to the output's shape.

    Attributes:
        input: an integer tensor.
        output: of as many dimensions.
    """

    input: str
    output: str


@dataclass(frozen=True)
class Spread:
    """Zeros between the positions of the spatial dimensions: what a transposed convolution slides over.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, *spatial], of (size - 1) * factor + 1 positions.
        factors: per spatial dimension; 1 adds none.
    """

    input: str
    output: str
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", as_ints(self.factors))


@dataclass(frozen=True)
class Repeat:
    """Every position of the spatial dimensions repeated in place: interpolation to the nearest.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, *spatial].
        factors: per spatial dimension.
    """

    input: str
    output: str
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", as_ints(self.factors))
