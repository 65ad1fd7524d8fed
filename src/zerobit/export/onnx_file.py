"""Write an `IntegerGraph` as ONNX: packed weights, and a graph that ONNX Runtime fuses into 8-bit kernels.

Every activation is one uint8 tensor; a signed one is stored 128 higher, because ONNX Runtime leaves int8
tensors with two readers unfused. Ops that only move integers (Concat, MaxPool, Pad, Reshape) and clamps
below 8 bits run on the uint8 tensors themselves; the others sit between DequantizeLinear and QuantizeLinear,
which the runtime fuses away. A Conv that makes float logits has no fused kernel and is written as
ConvInteger. Nothing is added for a ReLU: it is the saturation of an unsigned tensor at 0.

Ops without an integer form are islands: torch writes them in float32, all in one go, between a DequantizeLinear
and a QuantizeLinear that the runtime is kept from fusing with them. The file's metadata name them.

Weights in the container "packcast", per layer: channels sorted by storage width, one INT2, INT4 and INT8
initializer, each Cast to INT8, Concat, and a Gather back into channel order where that differs. The runtime
folds this once, at load. Values of 3 bits are stored in 4, of 5 to 7 in 8. The container "int8" holds one
INT8 initializer per layer.

Shape legend: O output channels, N batch.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper

from zerobit.atomic import replacing
from zerobit.errors import ExportError
from zerobit.export.onnx_builder import Builder
from zerobit.export.onnx_islands import ISLANDS, IslandWriter, describe_islands
from zerobit.export.onnx_ops import write_op
from zerobit.integer.ir import Conv, IntegerGraph, Island, Linear, storage_bits

Container = Literal["packcast", "int8"]

#: (opset, IR version) that first has the narrowest type used.
_VERSIONS = {2: (25, 13), 4: (21, 10), 8: (13, 8)}
#: That has the ops that torch writes islands with.
_FOR_ISLANDS = (20, 9)


def write_onnx(
    graph: IntegerGraph,
    path: str | os.PathLike[str],
    container: Container = "packcast",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a graph to an ONNX file; nothing is left behind on failure.

    Inputs and outputs are float32 with a free first dimension "batch", in the graph's order; what only islands read
    or make keeps its type. Names are those
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
    packed = container == "packcast"
    opset, ir_version = _versions(graph, packed=packed)
    builder = Builder(graph, packed=packed)
    inputs = [_input_info(graph, name, builder.float_input(name)) for name in graph.inputs]
    # Reserved before any inner name, so that outputs keep theirs.
    final = {name: builder.unique(name) for name in graph.outputs}
    islands = IslandWriter(builder, opset, final) if graph.islands else None
    for op in graph.ops:
        if isinstance(op, Island):
            assert islands is not None
            islands.write(op)
        else:
            write_op(builder, op, final)
    for name in graph.outputs:
        if not graph.by_name[name].is_float:
            builder.dequantize(name, output=final[name])
    outputs = [_output_info(graph, islands, name, final[name]) for name in graph.outputs]
    proto = helper.make_graph(builder.nodes, "zerobit", inputs, outputs, builder.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(proto, producer_name="zerobit", opset_imports=opsets, ir_version=ir_version)
    entries = {} if islands is None else {ISLANDS: json.dumps(describe_islands(graph, builder), sort_keys=True)}
    helper.set_model_props(model, dict(sorted({**entries, **metadata}.items())))
    return model


def _versions(graph: IntegerGraph, *, packed: bool) -> tuple[int, int]:
    """Opset and IR version: the oldest that has the types and the ops of islands."""
    layers = [op.weights for op in graph.ops if isinstance(op, Conv | Linear)]
    stored = [weight.weights for island in graph.islands for weight in island.weights]
    widths = [storage_bits(weights.bits).min() for weights in (*layers, *stored)] if packed else []
    versions = _VERSIONS[int(min(widths, default=8))]
    return max(versions, _FOR_ISLANDS) if graph.islands else versions


def _input_info(graph: IntegerGraph, name: str, file_name: str) -> onnx.ValueInfoProto:
    lead = () if name in graph.unbatched else (graph.batch or "batch",)
    kind = helper.np_dtype_to_tensor_dtype(graph.input_types[name])
    return helper.make_tensor_value_info(file_name, kind, [*lead, *graph.inputs[name]])


def _output_info(graph: IntegerGraph, islands: IslandWriter | None, name: str, file_name: str) -> onnx.ValueInfoProto:
    if islands is not None and name in islands.made:
        kind, shape = islands.made[name]
        return helper.make_tensor_value_info(file_name, kind, shape)
    shape = [graph.batch or "batch", *graph.by_name[name].shape]
    return helper.make_tensor_value_info(file_name, TensorProto.FLOAT, shape)
