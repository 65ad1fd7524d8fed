"""Ops of an `IntegerGraph` that only move integers, as TFLite operators."""

import math
from collections.abc import Sequence

import numpy as np

from zerobit.export.tflite_layout import (
    BROADCAST_RANK,
    CONCAT_INPUTS,
    SLICE_RANK,
    Network,
    file_axis,
    file_shape,
    memory_order,
    refused,
)
from zerobit.integer.ir import Concat, Expand, Pad, Permute, Repeat, Reshape, Slice, Spread

Move = Concat | Expand | Pad | Permute | Repeat | Reshape | Slice | Spread


def write_move(network: Network, op: Move) -> None:
    """Append the operators of an op that moves integers.

    Raises:
        ExportError: no kernel holds it; names the op.
    """
    match op:
        case Concat():
            _write_concat(network, op)
        case Reshape():
            _write_reshape(network, op)
        case Permute():
            _write_permute(network, op)
        case Slice():
            _write_slice(network, op)
        case Expand():
            _write_expand(network, op)
        case Pad():
            _check_planar(network, op)
            sides = [(0, 0), *((0, 0),) * (2 - len(op.padding)), *op.padding, (0, 0)]
            operands = [network.read(op.input, "last"), network.model.integers(sides, "padding")]
            network.model.operator("PAD", operands, network.make(op.output, "last"), "Pad")
        case Repeat():
            _write_repeat(network, op)
        case Spread():
            _write_spread(network, op)


def concatenated(network: Network, name: str, parts: Sequence[int], axis: int, output: int) -> int:
    """Tensors behind each other, in several steps where there are more than the kernel takes.

    Args:
        network: the file.
        name: activation whose grid it is.
        parts: the tensors.
        axis: dimension in the file.
        output: the tensor to write.
    """
    given = list(parts)
    while len(given) > CONCAT_INPUTS:
        first, given = given[:CONCAT_INPUTS], given[CONCAT_INPUTS:]
        shape = list(network.model.shape(first[0]))
        shape[axis] = sum(network.model.shape(part)[axis] for part in first)
        joined = network.model.operator(
            "CONCATENATION", first, network.helper(name, "joined", shape), "Concatenation", axis=axis
        )
        given.insert(0, joined)
    if len(given) == 1:
        return network.reshape(given[0], output)
    return network.model.operator("CONCATENATION", given, output, "Concatenation", axis=axis)


def _write_concat(network: Network, op: Concat) -> None:
    layout = network.shared_layout(op.inputs)
    axis = file_axis(op.axis, len(network.tensors[op.output].shape), layout)
    parts = [network.read(name, layout) for name in op.inputs]
    concatenated(network, op.output, parts, axis, network.make(op.output, layout))


def _write_reshape(network: Network, op: Reshape) -> None:
    """A RESHAPE of channels last where channels stay what they are, as in front of tokens; else channels first."""
    before, after = network.tensors[op.input].shape, network.tensors[op.output].shape
    keeps = network.layout(op.input) == "last" and len(after) in (2, 3) and before[0] == after[0]
    layout = "last" if keeps else "first"
    source = network.read(op.input, layout) if keeps else network.channels_first(op.input)
    network.reshape(source, network.make(op.output, layout))


def _write_permute(network: Network, op: Permute) -> None:
    shape, layout = network.tensors[op.input].shape, network.layout(op.input)
    before = memory_order(len(shape), layout)
    sizes, order = [shape[dim] for dim in before], [before.index(dim) for dim in op.dims]
    source = network.held[op.input][layout]
    network.transpose(source, sizes, order, network.make(op.output, "first"), op.input)


def _write_slice(network: Network, op: Slice) -> None:
    layout = network.layout(op.input)
    source, output = network.read(op.input, layout), network.make(op.output, layout)
    axis = file_axis(op.axis, len(network.tensors[op.input].shape), layout)
    shape = network.model.shape(source)
    if len(shape) <= SLICE_RANK:
        _sliced(network, source, axis, op, output)
        return
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    flat = network.reshaped(source, op.input, (outer, shape[axis], inner))
    part = network.helper(op.output, "flat", (outer, network.model.shape(output)[axis], inner))
    network.reshape(_sliced(network, flat, 1, op, part), output)


def _sliced(network: Network, source: int, axis: int, op: Slice, output: int) -> int:
    shape = network.model.shape(source)
    start, end, step = np.zeros(len(shape), int), np.array(shape), np.ones(len(shape), int)
    start[axis], end[axis], step[axis] = op.start, op.end, op.step
    operands = [source, *(network.model.integers(limits, "limits") for limits in (start, end, step))]
    return network.model.operator("STRIDED_SLICE", operands, output, "StridedSlice")


def _write_expand(network: Network, op: Expand) -> None:
    layout = network.layout(op.input)
    shape = file_shape(network.tensors[op.output].shape, layout)
    if len(shape) > BROADCAST_RANK:
        raise refused(op, f"BROADCAST_TO holds {BROADCAST_RANK} dimensions with the batch, this has {len(shape)}")
    operands = [network.read(op.input, layout), network.model.integers(shape, "shape")]
    network.model.operator("BROADCAST_TO", operands, network.make(op.output, layout), "BroadcastTo")


def _write_repeat(network: Network, op: Repeat) -> None:
    """RESIZE_NEAREST_NEIGHBOR; from the centres of pixels, so that float32 never meets an edge between two."""
    _check_planar(network, op)
    source, output = network.read(op.input, "last"), network.make(op.output, "last")
    size = network.model.integers(network.model.shape(output)[1:3], "size")
    fields = {"halfPixelCenters": True}
    network.model.operator("RESIZE_NEAREST_NEIGHBOR", [source, size], output, "ResizeNearestNeighbor", **fields)


def _write_spread(network: Network, op: Spread) -> None:
    """Along each dimension in turn: each position on its own, zeros behind it, joined; the last zeros cut off."""
    _check_planar(network, op)
    factors = (*(1,) * (2 - len(op.factors)), *op.factors)
    current, output = network.read(op.input, "last"), network.make(op.output, "last")
    for axis, factor in enumerate(factors, 1):
        if factor > 1:
            shape = list(network.model.shape(current))
            sizes = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), factor)
            shape[axis] = network.model.shape(output)[axis]
            current = network.reshaped(_spread_axis(network, op.output, current, sizes), op.output, shape)
    network.reshape(current, output)


def _spread_axis(network: Network, name: str, source: int, sizes: tuple[int, int, int, int]) -> int:
    """[outer, size * factor - (factor - 1), inner], from as many positions without the zeros."""
    outer, size, inner, factor = sizes
    apart = network.reshaped(source, name, (outer, size, 1, inner))
    sides = network.model.integers([(0, 0), (0, 0), (0, factor - 1), (0, 0)], "padding")
    wide = network.model.operator(
        "PAD", [apart, sides], network.helper(name, "apart", (outer, size, factor, inner)), "Pad"
    )
    joined = network.reshaped(wide, name, (outer, size * factor, inner))
    length = (size - 1) * factor + 1
    limits = [network.model.integers(limit, "limits") for limit in ((0, 0, 0), (outer, length, inner), (1, 1, 1))]
    output = network.helper(name, "spread", (outer, length, inner))
    return network.model.operator("STRIDED_SLICE", [joined, *limits], output, "StridedSlice")


def _check_planar(network: Network, op: Pad | Repeat | Spread) -> None:
    if len(network.tensors[op.input].shape) > 3:
        raise refused(op, "it has no kernel for three spatial dimensions")
