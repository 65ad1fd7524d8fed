"""Write an `IntegerGraph` as ONNX: packed weights, and a graph that ONNX Runtime fuses into 8-bit kernels.

Every activation is one uint8 tensor; a signed one is stored 128 higher, because ONNX Runtime leaves int8
tensors with two readers unfused. Ops that only move integers (Concat, MaxPool, Pad, Reshape) and clamps
below 8 bits run on the uint8 tensors themselves; the others sit between DequantizeLinear and QuantizeLinear,
which the runtime fuses away. A Conv that makes float logits has no fused kernel and is written as
ConvInteger. Nothing is added for a ReLU: it is the saturation of an unsigned tensor at 0.

Weights in the container "packcast", per layer: channels sorted by storage width, one INT2, INT4 and INT8
initializer, each Cast to INT8, Concat, and a Gather back into channel order where that differs. The runtime
folds this once, at load. Values of 3 bits are stored in 4, of 5 to 7 in 8. The container "int8" holds one
INT8 initializer per layer.

Shape legend: O output channels, N batch.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from zerobit.atomic import replacing
from zerobit.errors import ExportError
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    Weights,
    clip_range,
    storage_bits,
)
from zerobit.integer.twins import zero_point

Container = Literal["packcast", "int8"]

_ELEMENT = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}
#: (opset, IR version) that first has the narrowest type used.
_VERSIONS = {2: (25, 13), 4: (21, 10), 8: (13, 8)}


def write_onnx(
    graph: IntegerGraph,
    path: str | os.PathLike[str],
    container: Container = "packcast",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a graph to an ONNX file; nothing is left behind on failure.

    Inputs and outputs are float32 with a free first dimension "batch", in the graph's order. Names are those
    of the graph, with every character but letters, digits and "_" replaced.

    Args:
        graph: validated here.
        path: the file to write; an existing one is replaced in one step.
        container: "packcast" packs weights to 2, 4 and 8 bits (2 needs ONNX Runtime 1.24.4 or newer);
            "int8" stores all in 8 bits, for other and older runtimes.
        metadata: further entries of the file's `metadata_props`.

    Returns:
        The path.

    Raises:
        ZerobitError: the graph is not valid.
        ExportError: `container` is unknown, or ONNX can't hold the graph.
        OSError: the file can't be written.
    """
    model = build_onnx(graph, container, metadata or {})
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        msg = f"`graph` made a file that onnx.checker refuses: {error}; please report this"
        raise ExportError(msg) from error
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return path


def build_onnx(graph: IntegerGraph, container: Container, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model of `write_onnx`, in memory and unchecked."""
    if container not in ("packcast", "int8"):
        msg = f"`container` is {container!r}; allowed are 'packcast' and 'int8'"
        raise ExportError(msg)
    graph.validate()
    builder = _Builder(graph, packed=container == "packcast")
    inputs = [
        helper.make_tensor_value_info(builder.float_input(name), TensorProto.FLOAT, ["batch", *shape])
        for name, shape in graph.inputs.items()
    ]
    # Reserved before any inner name, so that outputs keep theirs.
    final = {name: builder.unique(name) for name in graph.outputs}
    for op in graph.ops:
        _write_op(builder, op, final)
    for name in graph.outputs:
        if not graph.by_name[name].is_float:
            builder.dequantize(name, output=final[name])
    outputs = [
        helper.make_tensor_value_info(final[name], TensorProto.FLOAT, ["batch", *graph.by_name[name].shape])
        for name in graph.outputs
    ]
    proto = helper.make_graph(builder.nodes, "zerobit", inputs, outputs, builder.initializers)
    opset, ir_version = _VERSIONS[builder.narrowest]
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(proto, producer_name="zerobit", opset_imports=opsets, ir_version=ir_version)
    helper.set_model_props(model, dict(sorted(metadata.items())))
    return model


@dataclass
class _Builder:
    """Nodes and initializers of one file, and which ONNX name holds which tensor."""

    graph: IntegerGraph
    packed: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    narrowest: int = 8
    inputs: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[str, bytes, tuple[int, ...]], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def unique(self, name: str) -> str:
        """An ONNX name like `name` that nothing else has."""
        base = re.sub(r"[^A-Za-z0-9_]", "_", name) or "tensor"
        base = f"_{base}" if base[0].isdigit() else base
        result, count = base, 1
        while result in self.taken:
            count += 1
            result = f"{base}_{count}"
        self.taken.add(result)
        return result

    def float_input(self, name: str) -> str:
        """ONNX name of a graph input."""
        if name not in self.inputs:
            self.inputs[name] = self.unique(name)
        return self.inputs[name]

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node and return its output, named like `name`."""
        return self.node_to(kind, inputs, self.unique(name), **attributes)

    def node_to(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with exactly this output name."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def constant(self, values: NDArray[np.generic], name: str) -> str:
        """Name of an initializer; equal ones are stored once."""
        key = (values.dtype.str, values.tobytes(), values.shape)
        if key not in self.constants:
            self.constants[key] = self.initializer(values, name)
        return self.constants[key]

    def initializer(self, values: NDArray[np.generic], name: str) -> str:
        """Name of an initializer of its own."""
        result = self.unique(name)
        self.initializers.append(numpy_helper.from_array(values, result))
        return result

    def grid(self, tensor: IntegerTensor) -> list[str]:
        """Scale and zero point of a tensor."""
        zero = zero_point(tensor)
        return [
            self.constant(np.array(tensor.step), f"{tensor.name}_scale"),
            self.constant(np.array(zero, np.uint8), f"zero_{zero}"),
        ]

    def quantize(self, source: str, op: Op) -> None:
        """Float values to the stored integers of the op's output, clamped to its range."""
        tensor = self.graph.by_name[op.output]
        stored = self.node("QuantizeLinear", [source, *self.grid(tensor)], f"{tensor.name}_q")
        low, high = (limit + zero_point(tensor) for limit in clip_range(op, tensor))
        # On the integers, after quantisation: a float clip before it would keep the layer unfused.
        if (low, high) != (0, 255):
            stored = self.clip(stored, low, high, f"{tensor.name}_c")
        self.stored[tensor.name] = stored

    def clip(self, stored: str, low: int, high: int, name: str) -> str:
        """Clamp stored integers."""
        limits = [self.constant(np.array(limit, np.uint8), f"byte_{limit}") for limit in (low, high)]
        return self.node("Clip", [stored, *limits], name)

    def dequantize(self, name: str, output: str | None = None) -> str:
        """Float values of a tensor; its readers share one node, a graph output has its own."""
        tensor = self.graph.by_name[name]
        inputs = [self.stored[name], *self.grid(tensor)]
        if output is not None:
            return self.node_to("DequantizeLinear", inputs, output)
        if name not in self.floats:
            self.floats[name] = self.node("DequantizeLinear", inputs, f"{name}_f")
        return self.floats[name]

    def weights(self, weights: Weights, layer: str) -> str:
        """Name of the int8 weights, in channel order."""
        if not self.packed:
            return self.raw(weights.values, 8, f"{layer}_w")
        widths = storage_bits(weights.bits)
        order = np.argsort(widths, kind="stable")
        parts: list[str] = []
        for bits in np.unique(widths).tolist():
            part = self.raw(weights.values[widths == bits], bits, f"{layer}_w{bits}")
            parts.append(part if bits == 8 else self.node("Cast", [part], f"{part}_i8", to=TensorProto.INT8))
        whole = parts[0] if len(parts) == 1 else self.node("Concat", parts, f"{layer}_w", axis=0)
        if np.array_equal(order, np.arange(len(order))):
            return whole
        table = self.constant(np.argsort(order), f"{layer}_order")
        return self.node("Gather", [whole, table], f"{layer}_w_ordered", axis=0)

    def raw(self, values: NDArray[np.int8], bits: int, name: str) -> str:
        """Name of an initializer that packs integers of 2, 4 or 8 bits, low bits first."""
        self.narrowest = min(self.narrowest, bits)
        tensor = TensorProto(name=self.unique(name), data_type=_ELEMENT[bits], dims=values.shape)
        tensor.raw_data = pack_bits(values, bits)
        self.initializers.append(tensor)
        return tensor.name


def pack_bits(values: NDArray[np.int8], bits: int) -> bytes:
    """Two's complement fields of 2, 4 or 8 bits, low bits of a byte first; zeros fill the last byte."""
    per_byte = 8 // bits
    flat = values.reshape(-1).view(np.uint8) & np.uint8((1 << bits) - 1)
    fields = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8).tobytes()


def _write_op(builder: _Builder, op: Op, final: Mapping[str, str]) -> None:
    """Append the nodes of one op."""
    output = op.output
    target = builder.graph.by_name[output]
    match op:
        case Quantize():
            _write_input(builder, op)
        case Conv():
            if target.is_float:
                _write_float_conv(builder, op, final[output])
            else:
                inputs = [builder.dequantize(op.input), *_float_weights(builder, op)]
                builder.quantize(builder.node("Conv", inputs, f"{output}_conv", **_conv_attributes(op)), op)
        case Linear():
            inputs = [builder.dequantize(op.input), *_float_weights(builder, op)]
            if target.is_float:
                builder.node_to("Gemm", inputs, final[output], transB=1)
            else:
                builder.quantize(builder.node("Gemm", inputs, f"{output}_gemm", transB=1), op)
        case Add():
            inputs = [builder.dequantize(op.left), builder.dequantize(op.right)]
            builder.quantize(builder.node("Add", inputs, f"{output}_add"), op)
        case Mean():
            _write_mean(builder, op)
        case AvgPool():
            attributes = {**_window_attributes(op), "count_include_pad": int(op.count_include_pad)}
            inputs = [builder.dequantize(op.input)]
            builder.quantize(builder.node("AveragePool", inputs, f"{output}_pool", **attributes), op)
        case Rescale():
            _write_rescale(builder, op)
        case MaxPool() | Concat() | Reshape() | Pad():
            _write_copy(builder, op)


def _write_input(builder: _Builder, op: Quantize) -> None:
    value, name = builder.float_input(op.input), op.output
    shape = (1, -1, *(1,) * (len(builder.graph.by_name[name].shape) - 1))
    if op.mean is not None:
        value = builder.node("Sub", [value, builder.constant(op.mean.reshape(shape), f"{name}_mean")], f"{name}_sub")
    if op.std is not None:
        value = builder.node("Div", [value, builder.constant(op.std.reshape(shape), f"{name}_std")], f"{name}_div")
    builder.quantize(value, op)


def _float_weights(builder: _Builder, op: Conv | Linear) -> list[str]:
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


def _write_float_conv(builder: _Builder, op: Conv, output: str) -> None:
    """Compute float(acc + bias) * (s_x * s_w): a Conv without quantised output would not be fused."""
    source, weights, layer = builder.graph.by_name[op.input], op.weights, op.output
    shape = (1, -1, *(1,) * len(op.kernel))
    inputs = [builder.stored[op.input], builder.weights(weights, layer), builder.grid(source)[1]]
    sums = builder.node("ConvInteger", inputs, f"{layer}_acc", **_conv_attributes(op))
    bias = builder.constant(weights.bias.reshape(shape), f"{layer}_b")
    real = builder.node(
        "Cast", [builder.node("Add", [sums, bias], f"{layer}_sum")], f"{layer}_real", to=TensorProto.FLOAT
    )
    step = (source.step * weights.scale).reshape(shape)
    builder.node_to("Mul", [real, builder.constant(step, f"{layer}_step")], output)


def _write_mean(builder: _Builder, op: Mean) -> None:
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


def _write_rescale(builder: _Builder, op: Rescale) -> None:
    """DequantizeLinear, QuantizeLinear, kept apart from other such pairs by a clip that changes nothing.

    ONNX Runtime merges two neighbouring pairs into one with other scales.
    """
    source = builder.graph.by_name[op.input]
    low, high = source.low + zero_point(source), source.high + zero_point(source)
    kept = builder.clip(builder.stored[op.input], low, high, f"{op.output}_in")
    real = builder.node("DequantizeLinear", [kept, *builder.grid(source)], f"{op.output}_real")
    builder.quantize(real, op)


def _write_copy(builder: _Builder, op: MaxPool | Concat | Reshape | Pad) -> None:
    """Ops that move integers and compute nothing."""
    name = op.output
    match op:
        case MaxPool():
            stored = builder.node("MaxPool", [builder.stored[op.input]], f"{name}_q", **_window_attributes(op))
        case Concat():
            inputs = [builder.stored[source] for source in op.inputs]
            stored = builder.node("Concat", inputs, f"{name}_q", axis=op.axis + 1)
        case Reshape():
            shape = builder.constant(np.array([0, *builder.graph.by_name[name].shape], np.int64), f"{name}_shape")
            stored = builder.node("Reshape", [builder.stored[op.input], shape], f"{name}_q")
        case Pad():
            sides = np.array(_begins_then_ends(op.padding, lead=2), np.int64)
            zero = builder.grid(builder.graph.by_name[name])[1]
            pads = builder.constant(sides, f"{name}_pads")
            stored = builder.node("Pad", [builder.stored[op.input], pads, zero], f"{name}_q")
    builder.stored[name] = stored


def _begins_then_ends(padding: Sequence[tuple[int, int]], lead: int = 0) -> list[int]:
    """ONNX order of paddings: all begins, then all ends; `lead` dimensions without padding come first."""
    zeros = [0] * lead
    return [*zeros, *(begin for begin, _ in padding), *zeros, *(end for _, end in padding)]


def _window_attributes(op: Conv | MaxPool | AvgPool) -> dict[str, Any]:
    return {
        "kernel_shape": list(op.kernel),
        "strides": list(op.stride),
        "pads": _begins_then_ends(op.padding),
    }


def _conv_attributes(op: Conv) -> dict[str, Any]:
    return {**_window_attributes(op), "dilations": list(op.dilation), "group": op.groups}
