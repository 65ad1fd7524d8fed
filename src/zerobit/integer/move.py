"""What ops that only move integers do, in numpy; the same in every runtime."""

from collections.abc import Sequence

import numpy as np

from zerobit.integer.accumulate import Array, pad_spatial, window_taps
from zerobit.integer.moves import Concat, Expand, MaxPool, Pad, Permute, Repeat, Reshape, Slice, Spread
from zerobit.integer.ops import MOVES
from zerobit.integer.tensors import IntegerTensor


def moved(x: Sequence[Array], op: MOVES, target: IntegerTensor) -> Array:
    """The result of an op on arrays [N, *shape].

    Args:
        x: the inputs.
        op: a move.
        target: the tensor it makes.
    """
    (first, *_), batch = x, len(x[0])
    match op:
        case Concat():
            return np.concatenate(x, axis=op.axis + 1)
        case MaxPool():
            return _max_pool(first, op, signed=target.signed)
        case Reshape():
            return first.reshape(batch, *target.shape)
        case Pad():
            return pad_spatial(first, op.padding)
        case Permute():
            return np.ascontiguousarray(first.transpose(0, *(dim + 1 for dim in op.dims)))
        case Slice():
            cuts = [slice(None)] * first.ndim
            cuts[op.axis + 1] = slice(op.start, op.end, op.step)
            return np.ascontiguousarray(first[tuple(cuts)])
        case Expand():
            return np.ascontiguousarray(np.broadcast_to(first, (batch, *target.shape)))
        case Spread():
            wide = np.zeros((batch, *target.shape), first.dtype)
            wide[(slice(None), slice(None), *(slice(None, None, f) for f in op.factors))] = first
            return wide
        case Repeat():
            for dim, factor in enumerate(op.factors):
                first = first.repeat(factor, axis=dim + 2)
            return first


def _max_pool(x: Array, op: MaxPool, *, signed: bool) -> Array:
    padded = pad_spatial(x, op.padding, fill=-128 if signed else 0)
    largest: Array | None = None
    for _, view in window_taps(padded, op.kernel, op.stride, (1,) * len(op.kernel)):
        largest = view if largest is None else np.maximum(largest, view)
    assert largest is not None  # a kernel has at least one position
    return np.ascontiguousarray(largest)
