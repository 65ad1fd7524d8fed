"""Nodes and initializers of an ONNX file while it is written.

Shape legend: O output channels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from zerobit.export.packing import pack_bits
from zerobit.export.pixels import PIXEL_STEP
from zerobit.integer.ir import IntegerGraph, IntegerTensor, Weights, clip_range, storage_bits
from zerobit.integer.ops import Operation
from zerobit.integer.twins.float32 import zero_point

_ELEMENT = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


@dataclass
class Builder:
    """Nodes and initializers of one file, and which ONNX name holds which tensor."""

    graph: IntegerGraph
    packed: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    #: graph input -> name of its real values
    inputs: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[str, bytes, tuple[int, ...]], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    #: float tensor -> its name; those that islands read or make
    real: dict[str, str] = field(default_factory=dict)
    #: type of what islands make
    types: dict[str, int] = field(default_factory=dict)
    #: accumulators that only islands read -> name
    logits: dict[str, str] = field(default_factory=dict)

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

    def take_pixels(self, name: str) -> None:
        """Let a graph input be bytes in the file, which become real values in float32."""
        real = self.node("Cast", [self.inputs[name]], f"{name}_float", to=TensorProto.FLOAT)
        step = self.constant(np.array(PIXEL_STEP), f"{name}_pixel_step")
        self.inputs[name] = self.node("Mul", [real, step], f"{name}_pixels")

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

    def quantize(self, source: str, op: Operation) -> None:
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

    def real_values(self, name: str) -> str:
        """What an island reads of a tensor: real values, behind a node that keeps the island apart."""
        if name not in self.real:
            tensor = self.graph.by_name[name]
            inputs = [self.stored[name], *self.grid(tensor)]
            self.real[name] = self.keep_apart(self.node("DequantizeLinear", inputs, f"{name}_f"), f"{name}_real")
        return self.real[name]

    def keep_apart(self, source: str, name: str, output: str | None = None) -> str:
        """A sum of one float tensor: it changes nothing, and ONNX Runtime fuses nothing across it.

        Without it the runtime would turn floating-point ops between DequantizeLinear and QuantizeLinear into
        integer kernels that compute something else.
        """
        return self.node_to("Sum", [source], self.unique(name) if output is None else output)

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
        tensor = TensorProto(name=self.unique(name), data_type=_ELEMENT[bits], dims=values.shape)
        tensor.raw_data = pack_bits(values, bits)
        self.initializers.append(tensor)
        return tensor.name
