"""Each op of an `IntegerGraph` as ONNX nodes. Islands are in onnx_islands.py.

Shape legend: O output channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zerobit.errors import ExportError
from zerobit.export.onnx_builder import Builder
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    Feed,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Pad,
    Permute,
    Quantize,
    QuantizeFloat,
    Repeat,
    Rescale,
    Reshape,
    Slice,
    Spread,
    Subtract,
    reads,
)
from zerobit.integer.ops import MOVES, Operation
from zerobit.integer.twins.float32 import zero_point


def write_op(builder: Builder, op: Operation, final: Mapping[str, str]) -> None:
    """Append the nodes of one op.

    Args:
        builder: of the file.
        op: the op; what it reads is there.
        final: graph output -> its name in the file.
    """
    output = op.output
    target = builder.graph.by_name[output]
    match op:
        case Quantize():
            builder.quantize(_normalised(builder, op), op)
        case Feed():
            real = _normalised(builder, op)
            builder.real[output] = builder.node_to("Identity", [real], final[output]) if output in final else real
            if op.mean is None and op.std is None:
                builder.types[output] = helper.np_dtype_to_tensor_dtype(op.dtype)
        case QuantizeFloat():
            builder.quantize(_single_precision(builder, op.input), op)
        case Conv():
            if target.is_float:
                _write_float_conv(builder, op, _float_name(builder, output, final))
            else:
                inputs = [builder.dequantize(op.input), *_float_weights(builder, op)]
                builder.quantize(builder.node("Conv", inputs, f"{output}_conv", **conv_attributes(op)), op)
        case Linear():
            _write_linear(builder, op, final)
        case Add() | Subtract() | Multiply():
            kind = {Add: "Add", Subtract: "Sub", Multiply: "Mul"}[type(op)]
            inputs = [builder.dequantize(op.left), builder.dequantize(op.right)]
            builder.quantize(builder.node(kind, inputs, f"{output}_{kind.lower()}"), op)
        case Mean():
            _write_mean(builder, op)
        case AvgPool():
            attributes = {**window_attributes(op), "count_include_pad": int(op.count_include_pad)}
            inputs = [builder.dequantize(op.input)]
            builder.quantize(builder.node("AveragePool", inputs, f"{output}_pool", **attributes), op)
        case Rescale():
            _write_rescale(builder, op)
        case Lookup():
            _write_lookup(builder, op)
        case _:
            _write_move(builder, op)
    if target.is_float and output not in builder.real:
        name = _float_name(builder, output, final)
        builder.real[output] = builder.keep_apart(name, f"{output}_real") if _is_read(builder, output) else name


def _single_precision(builder: Builder, name: str) -> str:
    """What an island makes, as float32."""
    if builder.types.get(name) == TensorProto.FLOAT:
        return builder.real[name]
    return builder.node("Cast", [builder.real[name]], f"{name}_single", to=TensorProto.FLOAT)


def _float_name(builder: Builder, output: str, final: Mapping[str, str]) -> str:
    """Name of the logits that a layer makes, or of the accumulators that only an island reads."""
    return final.get(output) or builder.logits.setdefault(output, builder.unique(output))


def _is_read(builder: Builder, name: str) -> bool:
    return any(name in reads(op) for op in builder.graph.ops)


def _write_linear(builder: Builder, op: Linear, final: Mapping[str, str]) -> None:
    """A Gemm; of a tensor of higher rank on rows, as only a Gemm is fused with its bias."""
    output, target = op.output, builder.graph.by_name[op.output]
    features, shape = op.weights.values.shape[1], target.shape
    rows = len(shape) > 1
    source = builder.dequantize(op.input)
    if rows:
        flat = _reshaped(builder, builder.stored[op.input], [-1, features], f"{output}_rows")
        source = builder.node(
            "DequantizeLinear", [flat, *builder.grid(builder.graph.by_name[op.input])], f"{output}_in"
        )
    inputs = [source, *_float_weights(builder, op)]
    if not target.is_float:
        builder.quantize(builder.node("Gemm", inputs, f"{output}_gemm", transB=1), op)
        if rows:
            builder.stored[output] = _reshaped(builder, builder.stored[output], [-1, *shape], f"{output}_whole")
    elif rows:
        sums = builder.node("Gemm", inputs, f"{output}_gemm", transB=1)
        _reshaped(builder, sums, [-1, *shape], output, _float_name(builder, output, final))
    else:
        builder.node_to("Gemm", inputs, _float_name(builder, output, final), transB=1)


def _reshaped(builder: Builder, source: str, shape: Sequence[int], name: str, output: str | None = None) -> str:
    wanted = builder.constant(np.array(shape, np.int64), f"{name}_shape")
    return builder.node_to("Reshape", [source, wanted], output or builder.unique(name))


def _normalised(builder: Builder, op: Quantize | Feed) -> str:
    value, name = builder.inputs[op.input], op.output
    shape = (1, -1, *(1,) * (len(builder.graph.by_name[name].shape) - 1))
    if op.mean is not None:
        value = builder.node("Sub", [value, builder.constant(op.mean.reshape(shape), f"{name}_mean")], f"{name}_sub")
    if op.std is not None:
        value = builder.node("Div", [value, builder.constant(op.std.reshape(shape), f"{name}_std")], f"{name}_div")
    return value


def _float_weights(builder: Builder, op: Conv | Linear) -> list[str]:
    """Dequantised weights and bias; the runtime keeps the integers and drops these nodes."""
    weights, layer = op.weights, op.output
    inputs = [builder.weights(weights, layer), builder.constant(weights.scale, f"{layer}_w_scale")]
    step = builder.graph.by_name[op.input].step * weights.scale
    bias = [builder.constant(weights.bias, f"{layer}_b"), builder.constant(step, f"{layer}_b_scale")]
    if isinstance(op, Linear):
        # ONNX Runtime fuses a Gemm only with zero points. It may rewrite them: each layer needs its own.
        inputs.append(builder.initializer(np.zeros(weights.channels, np.int8), f"{layer}_w_zero"))
        bias.append(builder.initializer(np.zeros(weights.channels, np.int32), f"{layer}_b_zero"))
    return [
        builder.node("DequantizeLinear", inputs, f"{layer}_w_f", axis=0),
        builder.node("DequantizeLinear", bias, f"{layer}_b_f", axis=0),
    ]


def _write_float_conv(builder: Builder, op: Conv, output: str) -> None:
    """Compute float(acc + bias) * (s_x * s_w): a Conv without quantised output would not be fused."""
    source, weights, layer = builder.graph.by_name[op.input], op.weights, op.output
    shape = (1, -1, *(1,) * len(op.kernel))
    inputs = [builder.stored[op.input], builder.weights(weights, layer), builder.grid(source)[1]]
    sums = builder.node("ConvInteger", inputs, f"{layer}_acc", **conv_attributes(op))
    bias = builder.constant(weights.bias.reshape(shape), f"{layer}_b")
    real = builder.node(
        "Cast", [builder.node("Add", [sums, bias], f"{layer}_sum")], f"{layer}_real", to=TensorProto.FLOAT
    )
    step = (source.step * weights.scale).reshape(shape)
    builder.node_to("Mul", [real, builder.constant(step, f"{layer}_step")], output)


def _write_mean(builder: Builder, op: Mean) -> None:
    source, target = builder.graph.by_name[op.input], builder.graph.by_name[op.output]
    count = int(np.prod(source.shape[1:]))
    # The limits of ONNX Runtime's kernel, which otherwise throws while it runs.
    ratio = float(source.step) / (float(target.step) * count)
    if not 2.0**-32 <= ratio < 256 or count >= 2**24:
        msg = (
            f"Mean {op.output!r} scales by {ratio:.3g} over {count} values; allowed are 2^-32..256 and below "
            "2^24 values; choose another output scale"
        )
        raise ExportError(msg)
    builder.quantize(builder.node("GlobalAveragePool", [builder.dequantize(op.input)], f"{op.output}_mean"), op)
    if not op.keepdim:
        flat = builder.node("Flatten", [builder.stored[op.output]], f"{op.output}_flat", axis=1)
        builder.stored[op.output] = flat


def _write_rescale(builder: Builder, op: Rescale) -> None:
    """DequantizeLinear, QuantizeLinear, kept apart from other such pairs by a clip that changes nothing.

    ONNX Runtime merges two neighbouring pairs into one with other scales.
    """
    source = builder.graph.by_name[op.input]
    low, high = source.low + zero_point(source), source.high + zero_point(source)
    kept = builder.clip(builder.stored[op.input], low, high, f"{op.output}_in")
    real = builder.node("DequantizeLinear", [kept, *builder.grid(source)], f"{op.output}_real")
    builder.quantize(real, op)


def _write_lookup(builder: Builder, op: Lookup) -> None:
    """Gather from one table of stored integers; with a table for each channel they lie one behind the other."""
    source, target, name = builder.graph.by_name[op.input], builder.graph.by_name[op.output], op.output
    # The file stores signed integers 128 higher, so that its bytes are in another order.
    by_stored = np.roll(op.table, zero_point(source), axis=-1) + zero_point(target)
    table = builder.constant(by_stored.astype(np.uint8).reshape(-1), f"{name}_table")
    index = builder.node("Cast", [builder.stored[op.input]], f"{name}_index", to=TensorProto.INT32)
    if op.axis is not None:
        starts = np.arange(len(op.table), dtype=np.int32).reshape(-1, *(1,) * (len(source.shape) - op.axis - 1)) * 256
        index = builder.node("Add", [index, builder.constant(starts, f"{name}_starts")], f"{name}_entry")
    builder.stored[name] = builder.node("Gather", [table, index], f"{name}_q")


def _write_move(builder: Builder, op: MOVES) -> None:
    """Ops that move integers and compute nothing."""
    name, shape = op.output, builder.graph.by_name[op.output].shape
    sources = [builder.stored[source] for source in reads(op)]

    def made(kind: str, *operands: NDArray[np.generic], **attributes: Any) -> str:
        own = [builder.constant(operand, f"{name}_{i}") for i, operand in enumerate(operands)]
        return builder.node(kind, [*sources, *own], f"{name}_q", **attributes)

    match op:
        case MaxPool():
            stored = made("MaxPool", **window_attributes(op))
        case Concat():
            stored = made("Concat", axis=op.axis + 1)
        case Reshape():
            stored = made("Reshape", np.array([0, *shape], np.int64))
        case Pad():
            zero = np.array(zero_point(builder.graph.by_name[name]), np.uint8)
            stored = made("Pad", np.array(_begins_then_ends(op.padding, lead=2), np.int64), zero)
        case Permute():
            stored = made("Transpose", perm=[0, *(dim + 1 for dim in op.dims)])
        case Slice():
            stored = made("Slice", *(np.array([v], np.int64) for v in (op.start, op.end, op.axis + 1, op.step)))
        case Expand():
            stored = made("Expand", np.array([1, *shape], np.int64))
        case Spread():
            stored = _spread(builder, op, sources[0])
        case Repeat():
            stored = _repeated(builder, op, sources[0])
    builder.stored[name] = stored


def _spread(builder: Builder, op: Spread, source: str) -> str:
    """Each position in a dimension of its own, zeros behind it, joined; what hangs over at the end is cut off."""
    channels, *sizes = builder.graph.by_name[op.input].shape
    apart = [0, channels, *(n for size in sizes for n in (size, 1))]
    split = _reshaped(builder, source, apart, f"{op.output}_apart")
    pads = [(0, 0), (0, 0), *(pair for factor in op.factors for pair in ((0, 0), (0, factor - 1)))]
    zero = builder.grid(builder.graph.by_name[op.output])[1]
    sides = builder.constant(np.array(_begins_then_ends(pads), np.int64), f"{op.output}_pads")
    padded = builder.node("Pad", [split, sides, zero], f"{op.output}_padded")
    joined = [0, channels, *(size * factor for size, factor in zip(sizes, op.factors, strict=True))]
    whole = _reshaped(builder, padded, joined, f"{op.output}_joined")
    axes = list(range(2, len(sizes) + 2))
    limits = ([0] * len(axes), list(builder.graph.by_name[op.output].shape[1:]), axes)
    cuts = [builder.constant(np.array(limit, np.int64), f"{op.output}_cut") for limit in limits]
    return builder.node("Slice", [whole, *cuts], f"{op.output}_q")


def _repeated(builder: Builder, op: Repeat, source: str) -> str:
    """Each position in a dimension of its own, repeated there, and joined again."""
    channels, *sizes = builder.graph.by_name[op.input].shape
    apart = [0, channels, *(n for size in sizes for n in (size, 1))]
    wide = [1, channels, *(n for size, factor in zip(sizes, op.factors, strict=True) for n in (size, factor))]
    split = _reshaped(builder, source, apart, f"{op.output}_apart")
    repeats = builder.constant(np.array(wide, np.int64), f"{op.output}_wide")
    expanded = builder.node("Expand", [split, repeats], f"{op.output}_expanded")
    return _reshaped(builder, expanded, [0, *builder.graph.by_name[op.output].shape], f"{op.output}_q")


def _begins_then_ends(padding: Sequence[tuple[int, int]], lead: int = 0) -> list[int]:
    """ONNX order of paddings: all begins, then all ends; `lead` dimensions without padding come first."""
    zeros = [0] * lead
    return [*zeros, *(begin for begin, _ in padding), *zeros, *(end for _, end in padding)]


def window_attributes(op: Conv | MaxPool | AvgPool) -> dict[str, Any]:
    """ONNX attributes of a sliding window."""
    return {
        "kernel_shape": list(op.kernel),
        "strides": list(op.stride),
        "pads": _begins_then_ends(op.padding),
    }


def conv_attributes(op: Conv) -> dict[str, Any]:
    """ONNX attributes of a convolution."""
    return {**window_attributes(op), "dilations": list(op.dilation), "group": op.groups}
