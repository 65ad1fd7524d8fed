"""Ranges narrower than a byte in TFLite: a fused activation where one has exactly that range, else a clamp behind."""

import math
from collections.abc import Callable

import numpy as np

from zerobit.export.tflite_layout import Layout, Network, file_shape
from zerobit.export.tflite_model import schema, zero_point
from zerobit.integer.ir import IntegerTensor, Op, clip_range, makes

#: Writes the operator; given the tensor and the fused activation.
Emit = Callable[[int, int], object]


def clamped(network: Network, op: Op, layout: Layout, emit: Emit, *, fuses: bool = True) -> None:
    """Write an op whose result is clamped to what it leaves in its output.

    Args:
        network: the file.
        op: the op.
        layout: of its result.
        emit: writes its operator.
        fuses: whether its operator takes an activation.
    """
    (name,) = makes(op)
    tensor = network.tensors[name]
    low, high = clip_range(op, tensor)
    kind, left, right = _fused(tensor, low, high) if fuses else ("NONE", *_ranges(tensor)["NONE"])
    clamps = [(each, limit) for each, limit, at in (("MINIMUM", high, right), ("MAXIMUM", low, left)) if limit != at]
    activation = getattr(schema.ActivationFunctionType, kind)
    if not clamps:
        emit(network.make(name, layout), activation)
        return
    index = network.helper(name, "unclamped", file_shape(tensor.shape, layout))
    emit(index, activation)
    for number, (each, limit) in enumerate(clamps, 1):
        bound = network.model.stored(np.array([limit + zero_point(tensor)], np.int8), tensor, f"{name}/{each.lower()}")
        last = number == len(clamps)
        output = (
            network.make(name, layout) if last else network.helper(name, "clamped", file_shape(tensor.shape, layout))
        )
        index = network.model.operator(each, [index, bound], output, "MaximumMinimum")


def _fused(tensor: IntegerTensor, low: int, high: int) -> tuple[str, int, int]:
    """The activation that leaves the least to do, with its range of integers."""
    ranges = _ranges(tensor)
    for kind, (left, right) in ranges.items():
        if (left, right) == (low, high):
            return kind, left, right
    kind = "RELU" if ranges["RELU"][0] == low else "NONE"
    return kind, *ranges[kind]


def _ranges(tensor: IntegerTensor) -> dict[str, tuple[int, int]]:
    """Lowest and highest integer of each fused activation: CalculateActivationRangeQuantized, zero points left out."""
    lowest, highest = -128 - zero_point(tensor), 127 - zero_point(tensor)
    six, one = (math.floor(float(np.float32(limit) / tensor.step) + 0.5) for limit in (6, 1))
    return {
        "NONE": (lowest, highest),
        "RELU": (max(lowest, 0), highest),
        "RELU6": (max(lowest, 0), min(highest, six)),
        "RELU_N1_TO_1": (max(lowest, -one), min(highest, one)),
    }
