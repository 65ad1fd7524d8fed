"""Each op of an `IntegerGraph` as TFLite operators. Layers are in tflite_layers.py, moves in tflite_moves.py."""

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.tflite_clamp import clamped
from zerobit.export.tflite_layers import write_avg_pool, write_conv, write_linear, write_max_pool
from zerobit.export.tflite_layout import Network, file_axis, file_shape, refused
from zerobit.export.tflite_model import schema, zero_point
from zerobit.export.tflite_moves import write_move
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    Feed,
    IntegerTensor,
    Island,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Op,
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
    makes,
    reads,
)
from zerobit.integer.twins.gemmlowp import mean_multiplier, product_multiplier, rescale_multiplier, sum_multipliers

_WINDOWS = Conv | MaxPool | AvgPool | Mean | Pad | Repeat | Spread


def write_op(network: Network, op: Op) -> None:
    """Append the operators of one op; what it reads is there.

    Raises:
        ExportError: no kernel of TFLite Micro holds it; names the op and why.
        FormatError: its scales would make the kernel overflow; names the tensor.
    """
    _check_integer(network, op)
    match op:
        case Quantize():
            layout = "last" if _meets_windows(network, op.output) else "first"
            network.entries.append(network.make(op.output, layout))
        case Feed() | QuantizeFloat() | Island():
            raise needs_float(op)
        case Conv():
            write_conv(network, op)
        case Linear():
            write_linear(network, op)
        case Add() | Subtract() | Multiply():
            _write_pairwise(network, op)
        case AvgPool():
            write_avg_pool(network, op)
        case MaxPool():
            write_max_pool(network, op)
        case Mean():
            _write_mean(network, op)
        case Rescale():
            _write_rescale(network, op)
        case Lookup():
            _write_lookup(network, op)
        case Concat() | Expand() | Pad() | Permute() | Repeat() | Reshape() | Slice() | Spread():
            write_move(network, op)


def _check_integer(network: Network, op: Op) -> None:
    for name in makes(op):
        if isinstance(op, Conv | Linear) and network.tensors[name].is_float:
            msg = f"{name!r} is float32, but TFLite files have int8 logits; call `integer_logits` on the graph first"
            raise ExportError(msg)


def needs_float(op: Feed | QuantizeFloat | Island) -> ExportError:
    """The error for what is computed in floating point, with the reasons."""
    if not isinstance(op, Island):
        return refused(op, "islands of floating-point ops stand on it")
    reasons = "; ".join(f"{part.name} ({part.target}): {part.reason}" for part in op.ops)
    msg = f"island {op.name!r} can't be written for TFLite Micro, which computes in integers: {reasons}; "
    return ExportError(msg + "the ONNX format holds it")


def _meets_windows(network: Network, name: str) -> bool:
    """Whether an input is read channels last: by an op with windows, also behind ops that don't care."""
    rank = len(network.tensors[name].shape)
    if rank not in (2, 3):
        return False
    for op in network.graph.ops:
        if name in reads(op):
            passes = isinstance(op, Rescale | Lookup | Add | Subtract | Multiply | Concat | Slice | Expand)
            if isinstance(op, _WINDOWS) or (passes and _meets_windows(network, op.output)):
                return True
    return False


def _write_pairwise(network: Network, op: Add | Subtract | Multiply) -> None:
    left, right, target = (network.tensors[name] for name in (op.left, op.right, op.output))
    if isinstance(op, Multiply):
        product_multiplier(left, right, target)
    else:
        sum_multipliers(left, right, target)
    kind, table = {Add: ("ADD", "Add"), Subtract: ("SUB", "Sub"), Multiply: ("MUL", "Mul")}[type(op)]
    layout = network.shared_layout((op.left, op.right))
    inputs = [network.read(op.left, layout), network.read(op.right, layout)]

    def emit(output: int, activation: int) -> None:
        network.model.operator(kind, inputs, output, table, fusedActivationFunction=activation)

    clamped(network, op, layout, emit)


def _write_mean(network: Network, op: Mean) -> None:
    """A MEAN over height and width."""
    source, target = network.tensors[op.input], network.tensors[op.output]
    if len(source.shape) > 3:
        raise refused(op, "it has no kernel for three spatial dimensions")
    mean_multiplier(int(np.prod(source.shape[1:])), source, target)
    operands = [network.read(op.input, "last"), network.model.integers([1, 2], "axes")]

    def emit(output: int, activation: int) -> None:
        del activation  # the operator has none
        network.model.operator("MEAN", operands, output, "Reducer", keepDims=op.keepdim)

    clamped(network, op, "last" if op.keepdim else "first", emit, fuses=False)


def _write_rescale(network: Network, op: Rescale) -> None:
    rescale_multiplier(network.tensors[op.input], network.tensors[op.output])
    layout = network.layout(op.input)
    source = network.read(op.input, layout)

    def emit(output: int, activation: int) -> None:
        del activation  # the operator has none
        network.model.operator("QUANTIZE", [source], output, "Quantize")

    clamped(network, op, layout, emit, fuses=False)


def _write_lookup(network: Network, op: Lookup) -> None:
    """A GATHER in the table, of int32 indices that a CAST and an ADD make of the bytes; 4 bytes each meanwhile."""
    model, target = network.model, network.tensors[op.output]
    layout = network.layout(op.input)
    source = network.read(op.input, layout)
    shape = model.shape(source)
    wide = model.tensor(f"{op.output}/wide", shape, "INT32")
    types = {"inDataType": schema.TensorType.INT8, "outDataType": schema.TensorType.INT32}
    model.operator("CAST", [source], wide, "Cast", **types)
    starts = model.integers(_table_starts(op, target, layout == "last", len(shape)), "starts")
    index = model.operator("ADD", [wide, starts], model.tensor(f"{op.output}/index", shape, "INT32"), "Add")
    table = model.stored(_stored_table(network, op), target, f"{op.output}/table")
    output = network.make(op.output, layout)
    assert model.shape(output) == file_shape(target.shape, layout)
    model.operator("GATHER", [table, index], output, "Gather", axis=0)


def _table_starts(op: Lookup, target: IntegerTensor, last: bool, rank: int) -> NDArray[np.int64]:
    """What is added to a stored integer to find it in the table: 128, and 256 for each table before."""
    if op.axis is None:
        return np.array([128])
    shape = [1] * rank
    shape[file_axis(op.axis, len(target.shape), "last" if last else "first")] = len(op.table)
    return (np.arange(len(op.table)) * 256 + 128).reshape(shape)


def _stored_table(network: Network, op: Lookup) -> NDArray[np.int8]:
    """[256 or C * 256], stored integers of the output in the order of those of the input, from -128 on."""
    source, target = network.tensors[op.input], network.tensors[op.output]
    codes = (np.arange(-128, 128) - zero_point(source)) & 0xFF
    return (op.table[..., codes] + zero_point(target)).astype(np.int8).reshape(-1)
