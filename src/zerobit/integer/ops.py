"""The closed set of things an integer network computes: one frozen class per op kind.

What is held is in `tensors.py`, ops that only move integers in `moves.py`, those that touch real numbers in
`floats.py`. Shape legend: O output channels, I input channels, F features; shapes leave the batch out.
A ReLU is no op and no flag: it is an *unsigned* output tensor, whose range starts at 0. Where a ReLU result
must live in a signed tensor (a concatenation with signed members), `clip_low=0` says so.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.floats import Feed, Island, Quantize, QuantizeFloat
from zerobit.integer.moves import (
    Concat,
    Expand,
    MaxPool,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Spread,
    as_ints,
    as_pairs,
)
from zerobit.integer.tensors import IntegerTensor, Weights


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution over one or two spatial dimensions, dense, grouped or depthwise; zero padding.

    Attributes:
        input: an integer tensor [I, *spatial].
        output: [O, *spatial]; an integer tensor, or float32 logits.
        weights: values [O, I / groups, *kernel].
        stride, dilation: per spatial dimension.
        padding: (begin, end) per spatial dimension.
        groups: divides I and O.
        clip_low: lowest output integer, or None for the tensor's own.
        clip_high: highest output integer (ReLU6 and the like), or None for the tensor's own.
    """

    input: str
    output: str
    weights: Weights
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    clip_low: int | None = None
    clip_high: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", as_ints(self.stride))
        object.__setattr__(self, "padding", as_pairs(self.padding))
        object.__setattr__(self, "dilation", as_ints(self.dilation))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial dimension."""
        return self.weights.values.shape[2:]


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected layer on the last dimension of a tensor.

    Attributes:
        input: an integer tensor [..., F].
        output: [..., O]; an integer tensor, or float32 logits.
        weights: values [O, F].
        clip_low, clip_high: as in `Conv`.
    """

    input: str
    output: str
    weights: Weights
    clip_low: int | None = None
    clip_high: int | None = None


@dataclass(frozen=True)
class Add:
    """Sum of two integer tensors that broadcast, requantised.

    Attributes:
        left: an integer tensor.
        right: an integer tensor of as many dimensions; may be the same.
        output: an integer tensor.
        clip_low, clip_high: as in `Conv`.
    """

    left: str
    right: str
    output: str
    clip_low: int | None = None
    clip_high: int | None = None


@dataclass(frozen=True)
class Subtract:
    """Difference of two integer tensors that broadcast, requantised.

    Attributes:
        left: an integer tensor.
        right: an integer tensor of as many dimensions.
        output: an integer tensor.
        clip_low, clip_high: as in `Conv`.
    """

    left: str
    right: str
    output: str
    clip_low: int | None = None
    clip_high: int | None = None


@dataclass(frozen=True)
class Multiply:
    """Product of two integer tensors that broadcast, requantised.

    Attributes:
        left: an integer tensor.
        right: an integer tensor of as many dimensions; may be the same.
        output: an integer tensor.
        clip_low, clip_high: as in `Conv`.
    """

    left: str
    right: str
    output: str
    clip_low: int | None = None
    clip_high: int | None = None


@dataclass(frozen=True)
class AvgPool:
    """Mean of each window, requantised.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, *spatial].
        kernel, stride: per spatial dimension.
        padding: (begin, end) per spatial dimension, each smaller than the kernel.
        count_include_pad: divide by the kernel's size everywhere, not by the number of inputs in the window.
    """

    input: str
    output: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", as_ints(self.kernel))
        object.__setattr__(self, "stride", as_ints(self.stride))
        object.__setattr__(self, "padding", as_pairs(self.padding))


@dataclass(frozen=True)
class Mean:
    """Mean over all spatial dimensions, requantised.

    Attributes:
        input: an integer tensor [C, *spatial].
        output: [C, 1, ...] with `keepdim`, else [C].
        keepdim: keep the spatial dimensions at size 1.
    """

    input: str
    output: str
    keepdim: bool = False


@dataclass(frozen=True)
class Rescale:
    """Moves a tensor onto another scale or range: a ReLU of its own, a requantisation before a concatenation.

    Attributes:
        input: an integer tensor.
        output: an integer tensor of the same shape; unsigned for a ReLU.
        clip_low, clip_high: as in `Conv`.
    """

    input: str
    output: str
    clip_low: int | None = None
    clip_high: int | None = None


@dataclass(frozen=True, eq=False)
class Lookup:
    """One function of every value, or one for each channel, as a table: exact in every runtime.

    Attributes:
        input: an integer tensor.
        output: an integer tensor of the same shape.
        table: [256], or [C, 256] along `axis`; integers of the output, in the order of the input's bytes: of a
            signed input 0..127, then -128..-1.
        axis: dimension along which the table varies, 0 the first behind the batch; None for one table.
    """

    input: str
    output: str
    table: NDArray[np.int16]
    axis: int | None = None

    def __post_init__(self) -> None:
        table = np.array(self.table, np.int16)
        table.setflags(write=False)
        object.__setattr__(self, "table", table)


#: Ops that move integers or choose among them.
MOVES = Concat | MaxPool | Reshape | Pad | Permute | Slice | Expand | Repeat | Spread
#: Ops that make one tensor.
Operation = (
    Quantize
    | Feed
    | QuantizeFloat
    | Conv
    | Linear
    | Add
    | Subtract
    | Multiply
    | AvgPool
    | Mean
    | Rescale
    | Lookup
    | MOVES
)
#: The closed set of op kinds. Interpreters match on it, and the type checker finds one that misses a kind.
Op = Operation | Island


def reads(op: Op) -> tuple[str, ...]:
    """Names of the tensors that an op reads; none for one that reads a graph input."""
    match op:
        case Quantize() | Feed():
            return ()
        case Add() | Subtract() | Multiply():
            return (op.left, op.right)
        case Concat() | Island():
            return op.inputs
        case _:
            return (op.input,)


def makes(op: Op) -> tuple[str, ...]:
    """Names of the tensors that an op makes; only an island makes several."""
    return op.outputs if isinstance(op, Island) else (op.output,)


def clip_range(op: Op, tensor: IntegerTensor) -> tuple[int, int]:
    """Lowest and highest integer that `op` leaves in its output `tensor`."""
    if not isinstance(op, Conv | Linear | Add | Subtract | Multiply | Rescale):
        return tensor.low, tensor.high
    low = tensor.low if op.clip_low is None else op.clip_low
    high = tensor.high if op.clip_high is None else op.clip_high
    return low, high
