"""What an integer network holds: activations on a grid, and weights with a width per channel.

Shape legend: O output channels, F features; shapes leave the batch out.
"""

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
