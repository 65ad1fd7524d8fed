"""Exact integer accumulators, shared by all twins; rounding is not done here.

Matrix products run in floating-point BLAS and are still exact: every product and partial sum is an integer
up to 2^24 (float32) or 2^53 (float64), as `accumulator_bound` proves per layer.

Shape legend: N batch, C channels, G groups, O output channels per group,
K weights per output channel, P positions over all images.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.check import accumulator_bound
from zerobit.integer.ops import Conv, Linear
from zerobit.integer.tensors import IntegerTensor, Weights

Array = NDArray[np.generic]
_FLOAT32_EXACT = 2**24


def pad_spatial(x: Array, padding: Sequence[tuple[int, int]], fill: int = 0) -> Array:
    """Surround the spatial dimensions of [N, C, *spatial] with a constant."""
    if not any(side for pair in padding for side in pair):
        return x
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=fill)


def window_taps(
    x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield (kernel position, view [N, C, *windows] of the padded `x`) in row-major order over the kernel."""
    spans = [(width - 1) * step + 1 for width, step in zip(kernel, dilation, strict=True)]
    for position in product(*(range(width) for width in kernel)):
        starts = [at * step for at, step in zip(position, dilation, strict=True)]
        cuts = (
            slice(start, size - span + start + 1, jump)
            for start, size, span, jump in zip(starts, x.shape[2:], spans, stride, strict=True)
        )
        yield position, x[(slice(None), slice(None), *cuts)]


def conv_accumulators(x: Array, op: Conv, source: IntegerTensor) -> NDArray[np.int32]:
    """int32 [N, G*O, *windows]: convolution plus bias, exact."""
    x = pad_spatial(x, op.padding)
    weights = op.weights
    if weights.values.shape[1] == 1 and op.groups > 1:
        return _depthwise(x, op)
    # One large product per group instead of one per image: threads of the BLAS meet less often.
    columns, windows = _columns(x.astype(_exact_float(weights, source)), op)
    kernel_GOK = weights.values.reshape(op.groups, weights.channels // op.groups, -1).astype(columns.dtype)
    sums_GOP = np.matmul(kernel_GOK, columns.reshape(op.groups, kernel_GOK.shape[2], -1))
    sums = sums_GOP.reshape(weights.channels, len(x), *windows).swapaxes(0, 1).astype(np.int32, order="C")
    sums += weights.bias.reshape(-1, *(1,) * len(op.kernel))
    return sums


def linear_accumulators(x: Array, op: Linear, source: IntegerTensor) -> NDArray[np.int32]:
    """int32 [N, ..., O]: matrix product plus bias, exact."""
    dtype = _exact_float(op.weights, source)
    sums = (x.astype(dtype) @ op.weights.values.astype(dtype).T).astype(np.int32)
    sums += op.weights.bias
    return sums


def spatial_sums(x: Array) -> NDArray[np.int32]:
    """int32 [N, C]: sums over all spatial dimensions, exact."""
    return x.sum(axis=tuple(range(2, x.ndim)), dtype=np.int32)


def _exact_float(weights: Weights, source: IntegerTensor) -> np.dtype[np.floating]:
    """The fastest float type in which every partial sum of this layer is exact."""
    small = accumulator_bound(weights, source).max() <= _FLOAT32_EXACT
    return np.dtype(np.float32) if small else np.dtype(np.float64)


def _columns(x: Array, op: Conv) -> tuple[Array, tuple[int, ...]]:
    """im2col: [C, K, N, *windows], and the number of windows per dimension."""
    taps = [view.swapaxes(0, 1) for _, view in window_taps(x, op.kernel, op.stride, op.dilation)]
    return np.stack(taps, axis=1), taps[0].shape[2:]


def _depthwise(x: Array, op: Conv) -> NDArray[np.int32]:
    """One input channel per output channel: sums of shifted copies are faster than tiny matrix products."""
    weights, ones = op.weights, (1,) * len(op.kernel)
    wide = np.repeat(x.astype(np.int32), weights.channels // x.shape[1], axis=1)
    values = weights.values[:, 0].astype(np.int32)
    sums: NDArray[np.int32] | None = None
    for position, view in window_taps(wide, op.kernel, op.stride, op.dilation):
        term = view.astype(np.int32) * values[(slice(None), *position)].reshape(-1, *ones)
        sums = term if sums is None else np.add(sums, term, out=sums)
    assert sums is not None  # a kernel has at least one position
    sums += weights.bias.reshape(-1, *ones)
    return sums
