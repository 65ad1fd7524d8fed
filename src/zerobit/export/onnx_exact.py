"""The container "exact": fixed-point arithmetic spelled out in integer ONNX ops, nothing for a runtime to fuse.

A second executor, independent of numpy and of C compilers, of what `integer/twins/fixed31.py` says. Tensors are
stored as in the other containers: uint8, signed ones 128 higher. Behind the quantisation of the inputs everything
is an integer:

    Conv, AvgPool       ConvInteger (an average with weights of one), int32
    Linear              MatMulInteger, int32
    Mean                ReduceSum, int64
    Add, Subtract, ...  Cast to int64, Sub of the zero point
    then, for all       Mul by the multiplier, Add of half a unit, Mod, Sub, Div: a floor; Add of the zero point,
                        Less and Where: saturation; Cast to uint8

Weights are uint8 too, 128 higher: kernels for uint8 times int8 saturate their 16-bit sums on x86 processors without
VNNI (onnxruntime's documentation of quantisation), those for uint8 times uint8 don't.

Shape legend: C channels, O output channels, F features.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from zerobit.errors import ExportError, FormatError
from zerobit.export.onnx_builder import Builder
from zerobit.export.onnx_ops import conv_attributes, window_attributes, write_op
from zerobit.integer.accumulate import pad_spatial, window_taps
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Conv,
    IntegerGraph,
    Linear,
    Mean,
    Multiply,
    Rescale,
    Subtract,
    Weights,
    clip_range,
)
from zerobit.integer.ops import Operation
from zerobit.integer.twins.fixed31 import FixedPoint, layer_ratio, mean_ratio, product_ratio, sum_ratios
from zerobit.integer.twins.float32 import zero_point

_Computed = Conv | Linear | Add | Subtract | Multiply | AvgPool | Mean | Rescale
#: Where files store the weight 0.
_WEIGHT_ZERO = 128


def check_exact(graph: IntegerGraph) -> None:
    """Refuse what has no fixed-point form.

    Raises:
        ExportError: the graph has islands.
    """
    for island in graph.islands:
        op = island.ops[0].name if island.ops else island.name
        msg = (
            f"`container` is 'exact', but {op!r} is computed in float (island {island.name!r}); exact files hold "
            "integers only; choose 'packcast' or 'int8'"
        )
        raise ExportError(msg)


def write_exact_op(builder: Builder, op: Operation, final: Mapping[str, str]) -> None:
    """Append the nodes of one op.

    Args:
        builder: of the file.
        op: the op; what it reads is there.
        final: graph output -> its name in the file.

    Raises:
        ExportError: scales so far apart that no 31-bit multiplier connects them.
    """
    if not isinstance(op, _Computed):
        write_op(builder, op, final)
        return
    try:
        result = _result(builder, op)
    except FormatError as error:
        msg = f"{type(op).__name__} {op.output!r}: {error}"
        raise ExportError(msg) from error
    if builder.graph.by_name[op.output].is_float:
        builder.types[op.output] = TensorProto.INT32
        builder.real[op.output] = builder.node_to("Cast", [result], final[op.output], to=TensorProto.INT32)
    else:
        _store(builder, result, op)


def hand_out(builder: Builder, name: str, output: str) -> int:
    """A tensor's own integers, int8 or uint8, as an output of the file; returns their ONNX type."""
    tensor = builder.graph.by_name[name]
    if not tensor.signed:
        builder.node_to("Identity", [builder.stored[name]], output)
        return TensorProto.UINT8
    builder.node_to("Cast", [_integers(builder, name, output)], output, to=TensorProto.INT8)
    return TensorProto.INT8


def _result(builder: Builder, op: _Computed) -> str:
    """int64 output integers, not yet saturated; of logits, accumulators on one scale."""
    tensors = builder.graph.by_name
    target = tensors[op.output]
    match op:
        case Conv():
            ratio = layer_ratio(op, tensors[op.input], target).reshape(-1, *(1,) * len(op.kernel))
            return _scaled(builder, _convolved(builder, op), ratio, op.output)
        case Linear():
            return _scaled(builder, _multiplied(builder, op), layer_ratio(op, tensors[op.input], target), op.output)
        case Add() | Subtract():
            return _paired(builder, op)
        case Multiply():
            product = builder.node("Mul", _operands(builder, op), f"{op.output}_product")
            return _scaled(builder, product, product_ratio(tensors[op.left], tensors[op.right], target), op.output)
        case AvgPool():
            ratio = mean_ratio(_counts(builder, op), tensors[op.input], target)
            return _scaled(builder, _window_sums(builder, op), ratio, op.output)
        case Mean():
            count = math.prod(tensors[op.input].shape[1:])
            return _scaled(builder, _spatial_sums(builder, op), mean_ratio(count, tensors[op.input], target), op.output)
        case Rescale():
            x = _integers(builder, op.input, op.output)
            return _scaled(builder, x, mean_ratio(1, tensors[op.input], target), op.output)


def _integers(builder: Builder, tensor: str, name: str) -> str:
    """int64 integers of a tensor, as the twin has them."""
    wide = _wide(builder, builder.stored[tensor], f"{name}_in")
    zero = _constant(builder, zero_point(builder.graph.by_name[tensor]), f"{name}_in_zero")
    return builder.node("Sub", [wide, zero], f"{name}_in_q")


def _operands(builder: Builder, op: Add | Subtract | Multiply) -> list[str]:
    return [_integers(builder, op.left, f"{op.output}_left"), _integers(builder, op.right, f"{op.output}_right")]


def _paired(builder: Builder, op: Add | Subtract) -> str:
    """Two ratios on one shift, one rounding; |q * multiplier| < 2^39, so the sum is far from the end of int64."""
    tensors, name = builder.graph.by_name, op.output
    *multipliers, shift = sum_ratios(tensors[op.left], tensors[op.right], tensors[name])
    parts = [
        builder.node("Mul", [x, _constant(builder, multiplier, f"{name}_ratio")], f"{name}_part")
        for x, multiplier in zip(_operands(builder, op), multipliers, strict=True)
    ]
    total = builder.node("Add" if isinstance(op, Add) else "Sub", parts, f"{name}_total")
    return _rounded(builder, total, np.asarray(shift, np.int64), name)


def _convolved(builder: Builder, op: Conv) -> str:
    """int64 accumulators with bias, [N, O, *windows]; exact in int32, as the graph was proven to be."""
    zero = builder.grid(builder.graph.by_name[op.input])[1]
    weights = _weights(builder, op.weights.values, op.output)
    sums = builder.node(
        "ConvInteger",
        [builder.stored[op.input], weights, zero, _zero(builder)],
        f"{op.output}_acc",
        **conv_attributes(op),
    )
    return _with_bias(builder, sums, op.weights, (-1, *(1,) * len(op.kernel)), op.output)


def _multiplied(builder: Builder, op: Linear) -> str:
    """int64 accumulators with bias, [N, ..., O]."""
    zero = builder.grid(builder.graph.by_name[op.input])[1]
    weights_FO = _weights(builder, op.weights.values.T, op.output)
    sums = builder.node(
        "MatMulInteger", [builder.stored[op.input], weights_FO, zero, _zero(builder)], f"{op.output}_acc"
    )
    return _with_bias(builder, sums, op.weights, (-1,), op.output)


def _weights(builder: Builder, values: NDArray[np.int8], layer: str) -> str:
    stored = (values.astype(np.int16) + _WEIGHT_ZERO).astype(np.uint8)
    return builder.initializer(np.ascontiguousarray(stored), f"{layer}_w")


def _zero(builder: Builder) -> str:
    return builder.constant(np.array(_WEIGHT_ZERO, np.uint8), f"zero_{_WEIGHT_ZERO}")


def _with_bias(builder: Builder, sums: str, weights: Weights, shape: tuple[int, ...], name: str) -> str:
    bias = builder.constant(weights.bias.reshape(shape), f"{name}_b")
    return _wide(builder, builder.node("Add", [sums, bias], f"{name}_sum"), name)


def _window_sums(builder: Builder, op: AvgPool) -> str:
    """int64 sums of each window: a depthwise convolution with ones, whose padding is the integer 0."""
    source = builder.graph.by_name[op.input]
    channels = source.shape[0]
    ones = builder.constant(np.ones((channels, 1, *op.kernel), np.uint8), f"{op.output}_ones")
    inputs = [builder.stored[op.input], ones, builder.grid(source)[1]]
    sums = builder.node("ConvInteger", inputs, f"{op.output}_acc", group=channels, **window_attributes(op))
    return _wide(builder, sums, op.output)


def _counts(builder: Builder, op: AvgPool) -> NDArray[np.int64]:
    """How many values each window averages, [] or [1, 1, *windows]."""
    if op.count_include_pad:
        return np.asarray(math.prod(op.kernel), np.int64)
    inside = pad_spatial(np.ones((1, 1, *builder.graph.by_name[op.input].shape[1:]), np.int64), op.padding)
    views = [view for _, view in window_taps(inside, op.kernel, op.stride, (1,) * len(op.kernel))]
    return np.maximum(np.sum(views, axis=0), 1)


def _spatial_sums(builder: Builder, op: Mean) -> str:
    """int64 sums over all spatial dimensions."""
    axes = np.arange(2, len(builder.graph.by_name[op.input].shape) + 1)
    inputs = [_integers(builder, op.input, op.output), builder.constant(axes, f"{op.output}_axes")]
    return builder.node("ReduceSum", inputs, f"{op.output}_sum", keepdims=int(op.keepdim))


def _scaled(builder: Builder, x: str, ratio: FixedPoint, name: str) -> str:
    """int64 integers times a ratio, rounded half up."""
    product = builder.node("Mul", [x, builder.constant(ratio.multiplier, f"{name}_multiplier")], f"{name}_scaled")
    return _rounded(builder, product, ratio.shift, name)


def _rounded(builder: Builder, product: str, shift: NDArray[np.int64], name: str) -> str:
    """floor((product + 2^(shift - 1)) / 2^shift).

    Div truncates and there is no shift of signed integers, so the remainder is taken off first; Mod gives it the sign
    of the divisor. Nothing leaves int64: an accumulator is below 2^31 in magnitude and a multiplier below 2^31, the
    product is below 2^62; with half a unit, at most 2^61 as shifts are at most 62, it is below 2^62 + 2^61; and without
    its remainder, which is below 2^62, it is above -2^62 - 2^62 = -2^63.
    """
    half = builder.constant(np.asarray(np.int64(1) << (shift - 1), np.int64), f"{name}_half")
    unit = builder.constant(np.asarray(np.int64(1) << shift, np.int64), f"{name}_unit")
    raised = builder.node("Add", [product, half], f"{name}_raised")
    rest = builder.node("Mod", [raised, unit], f"{name}_rest")
    whole = builder.node("Sub", [raised, rest], f"{name}_whole")
    return builder.node("Div", [whole, unit], f"{name}_rounded")


def _store(builder: Builder, result: str, op: _Computed) -> None:
    """int64 output integers to the stored bytes, saturated to the op's range."""
    tensor, name = builder.graph.by_name[op.output], op.output
    zero = zero_point(tensor)
    low, high = (_constant(builder, limit + zero, f"limit_{limit + zero}") for limit in clip_range(op, tensor))
    moved = builder.node("Add", [result, _constant(builder, zero, f"{name}_zero")], f"{name}_moved")
    # No Clip, Min or Max: those of ONNX Runtime are wrong for int64 of 2^31 to 2^32 - 1 on x86, by a defect in Eigen
    # (microsoft/onnxruntime, pull request 25280); comparisons are right.
    above = builder.node("Where", [builder.node("Less", [moved, low], f"{name}_low"), low, moved], f"{name}_above")
    within = builder.node("Where", [builder.node("Less", [high, above], f"{name}_high"), high, above], f"{name}_within")
    builder.stored[name] = builder.node("Cast", [within], f"{name}_q", to=TensorProto.UINT8)


def _wide(builder: Builder, source: str, name: str) -> str:
    return builder.node("Cast", [source], f"{name}_wide", to=TensorProto.INT64)


def _constant(builder: Builder, value: int, name: str) -> str:
    return builder.constant(np.array(value, np.int64), name)
