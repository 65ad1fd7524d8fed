"""The closed set of things an integer network is made of: tensors, weights and one frozen class per op kind.

Shape legend: O output channels, I input channels, F features, K kernel positions; shapes leave the batch out.
A ReLU is no op and no flag: it is an *unsigned* output tensor, whose range starts at 0. Where a ReLU result
must live in a signed tensor (a concatenation with signed members), `clip_low=0` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zerobit.errors import FormatError

#: Widths in which weights are stored; a value takes the smallest that fits.
STORAGE_BITS: tuple[int, ...] = (2, 4, 8)


def storage_bits(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits that weights of these widths take in a file: the next of 2, 4 and 8."""
    return np.asarray(STORAGE_BITS, np.int64)[np.searchsorted(STORAGE_BITS, bits)]


@dataclass(frozen=True)
class IntegerTensor:
    """One activation: a real value is `scale * q` with an integer q; the zero point is always 0.

    Attributes:
        name: any non-empty string, unique in the graph.
        shape: without the batch; channels first.
        scale: float32 step, or None for float32 logits (only a graph output can be float).
        bits: 2..8; unsigned q is 0..2^bits - 1, signed q is -2^(bits-1)..2^(bits-1) - 1.
        signed: whether q can be negative.
    """

    name: str
    shape: tuple[int, ...]
    scale: np.float32 | None
    bits: int = 8
    signed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.scale is not None:
            object.__setattr__(self, "scale", np.float32(self.scale))
        object.__setattr__(self, "bits", int(self.bits))

    @property
    def is_float(self) -> bool:
        """Whether this is a float32 tensor (logits) and not an integer one."""
        return self.scale is None

    @property
    def step(self) -> np.float32:
        """The scale of a tensor that is known to be an integer one."""
        assert self.scale is not None, self.name
        return self.scale

    @property
    def low(self) -> int:
        """Lowest integer."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Highest integer."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Numpy type that the twins hold this tensor in: int8, uint8 or float32."""
        if self.is_float:
            return np.dtype(np.float32)
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)


@dataclass(frozen=True, eq=False)
class Weights:
    """Integer weights of a convolution or linear layer, with a width, a scale and a bias per output channel.

    Arrays are copied and made read-only; a conversion that would change a value is refused.

    Attributes:
        values: int8 [O, ...].
        bits: int64 [O], each 2..8. Values must fit -2^(b-1)..2^(b-1) - 1; a symmetric grid lacks the first.
        scale: float32 [O], positive.
        bias: int32 [O], in units of input scale times weight scale.

    Raises:
        FormatError: an array has the wrong length, or values that its type can't hold.
    """

    values: NDArray[np.int8]
    bits: NDArray[np.int64]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in (("values", np.int8), ("bits", np.int64), ("bias", np.int32)):
            object.__setattr__(self, name, _frozen_integers(name, getattr(self, name), np.dtype(dtype)))
        scale = np.array(self.scale, np.float32)
        scale.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        if self.values.ndim < 2:
            msg = f"`values` has shape {self.values.shape}; weights have at least two dimensions, [O, F]"
            raise FormatError(msg)
        for name in ("bits", "scale", "bias"):
            shape = getattr(self, name).shape
            if shape != (self.channels,):
                msg = (
                    f"`{name}` has shape {shape}, but the weights have {self.channels} output channels; "
                    f"give one entry per channel, shape ({self.channels},)"
                )
                raise FormatError(msg)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.values.shape[0]

    @property
    def packed_bits(self) -> int:
        """Bits of all weights at their own widths; biases and scales not counted."""
        return int(self.bits.sum()) * int(np.prod(self.values.shape[1:], dtype=np.int64))


def _frozen_integers(name: str, given: ArrayLike, dtype: np.dtype[np.signedinteger]) -> NDArray[np.signedinteger]:
    """A read-only copy in `dtype`; refuses values that it can't hold instead of wrapping them around."""
    source = np.asarray(given)
    with np.errstate(invalid="ignore"):
        copy = source.astype(dtype)
    if not np.array_equal(copy, source):
        wrong = source[copy != source].flat[0]
        info = np.iinfo(dtype)
        msg = f"`{name}` holds {wrong}; it must hold integers in {info.min}..{info.max} ({dtype})"
        raise FormatError(msg)
    copy.setflags(write=False)
    return copy


def _optional_floats(values: ArrayLike | None) -> NDArray[np.float32] | None:
    if values is None:
        return None
    copy = np.array(values, np.float32)
    copy.setflags(write=False)
    return copy


def _ints(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _pairs(values: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(begin), int(end)) for begin, end in values)


@dataclass(frozen=True, eq=False)
class Quantize:
    """Turns a float32 graph input into integers: rint(((x - mean) / std) / scale), saturated.

    Attributes:
        input: name of the graph input; not an `IntegerTensor`. Its shape is the output's.
        output: an integer tensor.
        mean: float32 [C] or None; subtracted first.
        std: float32 [C] or None; divided by second.
    """

    input: str
    output: str
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _optional_floats(self.mean))
        object.__setattr__(self, "std", _optional_floats(self.std))


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
        object.__setattr__(self, "stride", _ints(self.stride))
        object.__setattr__(self, "padding", _pairs(self.padding))
        object.__setattr__(self, "dilation", _ints(self.dilation))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial dimension."""
        return self.weights.values.shape[2:]


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected layer on a flat tensor.

    Attributes:
        input: an integer tensor [F].
        output: [O]; an integer tensor, or float32 logits.
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
    """Sum of two integer tensors of one shape, requantised.

    Attributes:
        left: an integer tensor.
        right: an integer tensor; may be the same.
        output: an integer tensor.
        clip_low, clip_high: as in `Conv`.
    """

    left: str
    right: str
    output: str
    clip_low: int | None = None
    clip_high: int | None = None


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
        object.__setattr__(self, "kernel", _ints(self.kernel))
        object.__setattr__(self, "stride", _ints(self.stride))
        object.__setattr__(self, "padding", _pairs(self.padding))


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
        object.__setattr__(self, "kernel", _ints(self.kernel))
        object.__setattr__(self, "stride", _ints(self.stride))
        object.__setattr__(self, "padding", _pairs(self.padding))


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
        object.__setattr__(self, "padding", _pairs(self.padding))


#: The closed set of op kinds. Interpreters match on it, and the type checker finds one that misses a kind.
Op = Quantize | Conv | Linear | Add | Concat | MaxPool | AvgPool | Mean | Rescale | Reshape | Pad


def reads(op: Op) -> tuple[str, ...]:
    """Names of the tensors that an op reads; none for one that reads a graph input."""
    match op:
        case Quantize():
            return ()
        case Add():
            return (op.left, op.right)
        case Concat():
            return op.inputs
        case _:
            return (op.input,)


def clip_range(op: Op, tensor: IntegerTensor) -> tuple[int, int]:
    """Lowest and highest integer that `op` leaves in its output `tensor`."""
    if not isinstance(op, Conv | Linear | Add | Rescale):
        return tensor.low, tensor.high
    low = tensor.low if op.clip_low is None else op.clip_low
    high = tensor.high if op.clip_high is None else op.clip_high
    return low, high
