"""Weights and bias of a layer as integers that its accumulators can hold."""

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.check import INT32_MAX, largest
from zerobit.integer.tensors import IntegerTensor, Weights


def weights_with_bias(
    values: NDArray[np.int8],
    bits: NDArray[np.int64],
    step: NDArray[np.float32],
    bias: NDArray[np.float64],
    source: IntegerTensor,
) -> Weights:
    """Round biases to the unit of their accumulators.

    A bias can be so large in units of its channel's weights that 32 bits don't hold it: next to it these weights
    count for nothing, or are zero. Such a channel gets a larger step, by a power of two. One whose weights alone are
    more than 32 bits hold stays as it is, for the check of the graph to refuse.

    Args:
        values: integers [O, ...].
        bits: [O].
        step: [O], of the weights.
        bias: [O], real values.
        source: what the layer reads.
    """
    channels = values.reshape(len(values), -1).astype(np.int64)
    room = INT32_MAX - np.abs(channels).sum(1) * largest(source)
    unit = np.float64(source.step) * step.astype(np.float64)
    excess = np.maximum(np.abs(bias) / unit / np.where(room > 0, room, np.inf), 1.0)
    factor = np.exp2(np.ceil(np.log2(excess)))
    coarser = np.rint(channels / factor[:, None]).astype(np.int8).reshape(values.shape)
    return Weights(coarser, bits, (step * factor).astype(np.float32), np.rint(bias / (unit * factor)).astype(np.int32))
