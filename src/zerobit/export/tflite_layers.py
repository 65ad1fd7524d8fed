"""Layers and window means of an `IntegerGraph` as TFLite operators.

Padding that is TFLite's SAME is left to the kernel; any other is a PAD in front. Layers of one spatial dimension have a
height of 1. Shape legend: O output channels, I input channels, F features.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zerobit.export.packing import pack_bits
from zerobit.export.tflite_clamp import clamped
from zerobit.export.tflite_layout import Network, refused
from zerobit.export.tflite_model import schema
from zerobit.export.tflite_moves import concatenated
from zerobit.integer.ir import AvgPool, Conv, IntegerTensor, Linear, MaxPool, Weights
from zerobit.integer.twins.gemmlowp import layer_multiplier, window_inputs, window_multiplier, window_scale

Pairs = Sequence[tuple[int, int]]
Padding = Literal["SAME", "VALID"]


def write_conv(network: Network, op: Conv) -> None:
    """A CONV_2D, which holds groups too, or a DEPTHWISE_CONV_2D.

    Raises:
        ExportError: it has three spatial dimensions.
        FormatError: an accumulator could overflow in the kernel; names it.
    """
    check_windows(network, op)
    source, target = network.tensors[op.input], network.tensors[op.output]
    layer_multiplier(op, source, target)
    stride, dilation = _planar(op.stride, 1), _planar(op.dilation, 1)
    kernel = _planar(op.kernel, 1)
    values_OhwI = op.weights.values.reshape(*op.weights.values.shape[:2], *kernel).transpose(0, 2, 3, 1)
    depthwise = op.groups > 1 and op.groups == source.shape[0]
    values = values_OhwI.transpose(3, 1, 2, 0) if depthwise else values_OhwI
    inputs, padding = padded(network, op.input, _planar(op.padding, (0, 0)), kernel, stride, dilation)
    operands, bits = _weights(network, op.output, values, 3 if depthwise else 0, op.weights, source)
    options = _window(padding, stride, dilation)
    if depthwise:
        options["depthMultiplier"] = op.weights.channels // source.shape[0]

    def emit(output: int, activation: int) -> None:
        fields = {**options, "fusedActivationFunction": activation}
        kind, table = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if depthwise else ("CONV_2D", "Conv2D")
        network.model.operator(kind, [inputs, *operands], output, table, bits=bits, **fields)

    clamped(network, op, "last", emit)


def write_linear(network: Network, op: Linear) -> None:
    """A FULLY_CONNECTED on the last dimension.

    A CONV_2D on as many rows where the weights have 4 bits: the FULLY_CONNECTED kernel takes a scale for each output
    with 8-bit weights only.

    Raises:
        FormatError: an accumulator could overflow in the kernel; names it.
    """
    source, target = network.tensors[op.input], network.tensors[op.output]
    layer_multiplier(op, source, target)
    inputs = network.read(op.input, "first")
    *rows, features = source.shape
    outputs = op.weights.channels
    as_conv = _is_int4(network, op.weights)
    values = op.weights.values.reshape(outputs, 1, 1, features) if as_conv else op.weights.values
    operands, bits = _weights(network, op.output, values, 0, op.weights, source)
    if as_conv:
        inputs = network.reshaped(inputs, op.input, (1, math.prod(rows), 1, features))

    def emit(output: int, activation: int) -> None:
        if not as_conv:
            fields = {"fusedActivationFunction": activation, "keepNumDims": True}
            network.model.operator("FULLY_CONNECTED", [inputs, *operands], output, "FullyConnected", **fields)
            return
        shape = (1, math.prod(rows), 1, outputs)
        direct = network.model.shape(output) == shape
        between = output if direct else network.helper(op.output, "rows", shape)
        fields = {**_window("VALID", (1, 1), (1, 1)), "fusedActivationFunction": activation}
        network.model.operator("CONV_2D", [inputs, *operands], between, "Conv2D", bits=bits, **fields)
        if not direct:
            network.reshape(between, output)

    clamped(network, op, "first", emit)


def write_max_pool(network: Network, op: MaxPool) -> None:
    """A MAX_POOL_2D; in front of it the lowest integer as padding.

    Raises:
        ExportError: it has three spatial dimensions.
    """
    check_windows(network, op)
    kernel, stride = _planar(op.kernel, 1), _planar(op.stride, 1)
    sides = _planar(op.padding, (0, 0))
    inputs, padding = padded(network, op.input, sides, kernel, stride, (1, 1), lowest=True)
    fields = {**_stride(stride), "padding": getattr(schema.Padding, padding)}
    fields |= {"filterHeight": kernel[0], "filterWidth": kernel[1]}
    network.model.operator("MAX_POOL_2D", [inputs], network.make(op.output, "last"), "Pool2D", **fields)


def write_avg_pool(network: Network, op: AvgPool) -> None:
    """A DEPTHWISE_CONV_2D of ones, whose scale is 1 / count; windows that count otherwise are apart and joined.

    Raises:
        ExportError: it has three spatial dimensions.
        FormatError: a sum could overflow in the kernel; names it.
    """
    check_windows(network, op)
    source, target = network.tensors[op.input], network.tensors[op.output]
    counts = window_inputs(op, source.shape[1:])
    window_multiplier(counts, source, target)
    if counts.ndim == 0:
        sides, kernel, stride = _planar(op.padding, (0, 0)), _planar(op.kernel, 1), _planar(op.stride, 1)
        inputs, padding = padded(network, op.input, sides, kernel, stride, (1, 1))
        clamped(network, op, "last", lambda output, act: _ones(network, op, inputs, padding, int(counts), output, act))
        return
    table = counts.reshape(_planar(counts.shape[2:], 1))
    clamped(network, op, "last", lambda output, act: _regions(network, op, table, output, act))


def _regions(network: Network, op: AvgPool, counts: NDArray[np.int64], output: int, activation: int) -> None:
    """One mean for each part of the output whose windows hold as many inputs."""
    kernel, stride = _planar(op.kernel, 1), _planar(op.stride, 1)
    whole, _ = padded(network, op.input, _planar(op.padding, (0, 0)), kernel, stride, (1, 1), explicit=True)
    channels = network.tensors[op.input].shape[0]
    bands: list[int] = []
    for top, bottom in _runs(counts[:, 0]):
        parts: list[int] = []
        for left, right in _runs(counts[0]):
            start = (0, top * stride[0], left * stride[1], 0)
            end = (1, (bottom - 1) * stride[0] + kernel[0], (right - 1) * stride[1] + kernel[1], channels)
            part = network.helper(op.input, "part", [stop - begin for begin, stop in zip(start, end, strict=True)])
            cuts = [network.model.integers(limits, "limits") for limits in (start, end, (1, 1, 1, 1))]
            network.model.operator("STRIDED_SLICE", [whole, *cuts], part, "StridedSlice")
            result = network.helper(op.output, "part", (1, bottom - top, right - left, channels))
            _ones(network, op, part, "VALID", int(counts[top, left]), result, activation)
            parts.append(result)
        band = network.helper(op.output, "band", (1, bottom - top, counts.shape[1], channels))
        bands.append(concatenated(network, op.output, parts, 2, band))
    concatenated(network, op.output, bands, 1, output)


def _runs(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of equal neighbours."""
    cuts = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
    return list(pairwise(cuts))


def _ones(
    network: Network, op: AvgPool, inputs: int, padding: Padding, count: int, output: int, activation: int
) -> None:
    model, source = network.model, network.tensors[op.input]
    channels, scale = source.shape[0], window_scale(count)
    ones = np.ones((1, *_planar(op.kernel, 1), channels), np.int8)
    # A scale for each channel, although they are equal: TFLite's specification of the op has no other form.
    scales = np.full(channels, scale)
    weights = model.tensor(f"{op.output}/ones", ones.shape, scale=scales, axis=3, data=ones.tobytes())
    zeros = np.zeros(channels, np.int32)
    bias = model.tensor(f"{op.output}/bias", zeros.shape, "INT32", scale=source.step * scales, data=zeros.tobytes())
    fields = {**_window(padding, _planar(op.stride, 1), (1, 1)), "fusedActivationFunction": activation}
    model.operator("DEPTHWISE_CONV_2D", [inputs, weights, bias], output, "DepthwiseConv2D", depthMultiplier=1, **fields)


def padded(
    network: Network,
    name: str,
    sides: Pairs,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *,
    lowest: bool = False,
    explicit: bool = False,
) -> tuple[int, Padding]:
    """What a window op reads, channels last, and the padding that is left to its kernel.

    Args:
        network: the file.
        name: the activation.
        sides: (begin, end) of height and width, as are the next.
        kernel: size of the window.
        stride: its step.
        dilation: step within it.
        lowest: pad with the lowest integer, not with zero.
        explicit: leave nothing to the kernel.
    """
    inputs, tensor = network.read(name, "last"), network.tensors[name]
    sides = tuple((int(begin), int(end)) for begin, end in sides)
    if not any(side for pair in sides for side in pair):
        return inputs, "VALID"
    height, width = network.model.shape(inputs)[1:3]
    same = tuple(map(_same_padding, (height, width), kernel, stride, dilation))
    if sides == same and not explicit:
        return inputs, "SAME"
    shape = (1, height + sum(sides[0]), width + sum(sides[1]), tensor.shape[0])
    output = network.helper(name, "padded", shape)
    operands = [inputs, network.model.integers([(0, 0), *sides, (0, 0)], "padding")]
    if lowest:
        operands.append(network.model.stored(np.array([-128], np.int8), tensor, f"{name}/lowest"))
    return network.model.operator("PADV2" if lowest else "PAD", operands, output, "PadV2" if lowest else "Pad"), "VALID"


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What TFLite's SAME pads along one dimension."""
    span = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def check_windows(network: Network, op: Conv | AvgPool | MaxPool) -> None:
    """Refuse three spatial dimensions.

    Raises:
        ExportError: there are three.
    """
    if len(network.tensors[op.input].shape) > 3:
        raise refused(op, "it has no kernel for three spatial dimensions")


def _planar(values: Sequence[Any], missing: Any) -> tuple[Any, ...]:
    """Height and width, of one or two spatial dimensions."""
    return (*(missing,) * (2 - len(values)), *values)


def _stride(stride: Sequence[int]) -> dict[str, Any]:
    return {"strideH": stride[0], "strideW": stride[1]}


def _window(padding: Padding, stride: Sequence[int], dilation: Sequence[int]) -> dict[str, Any]:
    steps = {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    return {"padding": getattr(schema.Padding, padding), **_stride(stride), **steps}


def _is_int4(network: Network, weights: Weights) -> bool:
    return network.weights == "int4" and int(weights.bits.max()) <= 4


def _weights(
    network: Network, name: str, values: NDArray[np.int8], axis: int, weights: Weights, source: IntegerTensor
) -> tuple[list[int], int]:
    """Weights and bias of a layer, and the bits of its weights."""
    bits = 4 if _is_int4(network, weights) else 8
    stored = network.model.tensor(
        f"{name}/weights", values.shape, f"INT{bits}", scale=weights.scale, axis=axis, data=pack_bits(values, bits)
    )
    scale = source.step * weights.scale
    bias = network.model.tensor(
        f"{name}/bias", weights.bias.shape, "INT32", scale=scale, data=weights.bias.astype(np.int32).tobytes()
    )
    return [stored, bias], bits
