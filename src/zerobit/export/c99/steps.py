"""What the generated code consists of: buffers, and calls of kernels with their constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerobit.export.c99.layout import Layout

#: Largest number of dimensions that a kernel counts through: ZB_MAX_DIMS.
MAX_DIMS = 8


@dataclass(frozen=True, eq=False)
class Constants:
    """An array in flash.

    Attributes:
        type: of its entries, in C.
        values: integers that the type holds.
    """

    type: str
    values: NDArray[np.generic]


#: A field of a struct: a number, numbers in the struct itself, a struct, an array beside it, or None for NULL.
Field = int | tuple[int, ...] | Mapping[str, Any] | Constants | None


@dataclass(frozen=True, eq=False)
class Step:
    """A call of a kernel.

    Attributes:
        kernel: name of the function.
        struct: type of its constants.
        fields: of the struct.
        reads: names of buffers.
        writes: name of a buffer.
        scratch: bytes that it needs besides; None if the kernel takes no such buffer.
        in_place: those of `reads` that it may overwrite with the result.
        completes: whether the tensor in `writes` is whole after it.
    """

    kernel: str
    struct: str
    fields: Mapping[str, Field]
    reads: tuple[str, ...]
    writes: str
    scratch: int | None = None
    in_place: tuple[str, ...] = ()
    completes: bool = True


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        buffer: name of its buffer.
        layout: of its values there.
    """

    buffer: str
    layout: Layout


@dataclass(frozen=True)
class Program:
    """A network as calls of kernels.

    Attributes:
        steps: in the order in which they run.
        buffers: name -> bytes, of all that lie in the arena.
        places: tensor -> where it is, of all tensors that are ever whole.
        inputs: tensors that come from outside, in the order of the graph's inputs.
        outputs: tensor -> where it is when it goes out, in order; its values lie at regular distances.
    """

    steps: tuple[Step, ...]
    buffers: Mapping[str, int]
    places: Mapping[str, Place]
    inputs: tuple[str, ...]
    outputs: Mapping[str, Place]
