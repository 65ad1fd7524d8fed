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

The container "exact" is another file: integer ops that compute what the fixed-point twin does (onnx_exact.py).

Shape legend: O output channels, N batch, C channels, H height, W width.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from onnx import TensorProto, helper

from zerobit.atomic import replacing
from zerobit.errors import ExportError
from zerobit.export.inputs import INPUT
from zerobit.export.onnx_builder import Builder
from zerobit.export.onnx_exact import check_exact, hand_out, write_exact_op
from zerobit.export.onnx_islands import ISLANDS, IslandWriter, Made, describe_islands
from zerobit.export.onnx_metadata import CONTAINER, OUTPUT, describe_inputs, describe_outputs
from zerobit.export.onnx_ops import write_op
from zerobit.export.version import VERSION, zerobit_version
from zerobit.integer.ir import Conv, IntegerGraph, Island, Linear, storage_bits

Container = Literal["packcast", "int8", "exact"]

#: (opset, IR version) that first has the narrowest type used.
_VERSIONS = {2: (25, 13), 4: (21, 10), 8: (13, 8)}
#: That has the ops that torch writes islands with.
_FOR_ISLANDS = (20, 9)


@dataclass(frozen=True, eq=False)
class Written:
    """A model, and where it holds the tensors of its graph.

    Attributes:
        model: as the file has it.
        stored: integer tensor -> name of its stored bytes in the model.
        real: float tensor -> name of its values in the model.
        final: graph output -> its name in the model.
    """

    model: onnx.ModelProto
    stored: Mapping[str, str]
    real: Mapping[str, str]
    final: Mapping[str, str]


def write_onnx(
    graph: IntegerGraph,
    path: str | os.PathLike[str],
    container: Container = "packcast",
    metadata: Mapping[str, str] | None = None,
    *,
    image: bool = False,
) -> Path:
    """Write a graph to an ONNX file; nothing is left behind on failure.

    Inputs and outputs are float32 with a free first dimension "batch", in the graph's order; what only islands read
    or make keeps its type. Names are those of the graph, with every character but letters, digits and "_" replaced.

    Args:
        graph: validated here.
        path: the file to write; an existing one is replaced in one step.
        container: "packcast" packs weights to 2, 4 and 8 bits (2 needs ONNX Runtime 1.24.4 or newer);
            "int8" stores all in 8 bits, for other and older runtimes; "exact" computes what the fixed-point twin
            does, for comparisons: its outputs are that twin's integers, logits int32, and their scales are in the
            metadata (a float32 has 24 bits, an int32 logit up to 29).
        metadata: further entries of the file's `metadata_props`.
        image: take the input as uint8 pixels [N, C, H, W], which mean pixel * float32(1/255).

    Returns:
        The path.

    Raises:
        ZerobitError: the graph is not valid.
        ExportError: `container` is unknown, ONNX can't hold the graph, "exact" is asked for a graph with islands or
            `image` for another input than one float32 image.
        OSError: the file can't be written.
    """
    model = build_onnx(graph, container, metadata or {}, image=image)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        msg = f"`graph` made a file that onnx.checker refuses: {error}; please report this"
        raise ExportError(msg) from error
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return path


def build_onnx(
    graph: IntegerGraph, container: Container, metadata: Mapping[str, str], *, image: bool = False
) -> onnx.ModelProto:
    """The model of `write_onnx`, in memory and unchecked."""
    return build_written(graph, container, metadata, image=image).model


def build_written(
    graph: IntegerGraph, container: Container, metadata: Mapping[str, str], *, image: bool = False
) -> Written:
    """The model of `write_onnx`, in memory and unchecked, and where it holds the graph's tensors.

    Equal arguments make equal models.
    """
    _check(graph, container, image=image)
    opset, ir_version = _versions(graph, packed=container == "packcast")
    builder = Builder(graph, packed=container == "packcast")
    builder.inputs |= {name: builder.unique(name) for name in graph.inputs}
    inputs = dict(builder.inputs)
    # Reserved before any inner name, so that outputs keep theirs.
    final = {name: builder.unique(name) for name in graph.outputs}
    if image:
        builder.take_pixels(next(iter(graph.inputs)))
    islands = IslandWriter(builder, opset, final) if graph.islands else None
    _write_ops(builder, islands, final, container)
    made = {} if islands is None else islands.made
    proto = helper.make_graph(
        builder.nodes,
        "zerobit",
        [_input_info(graph, name, file_name, image=image) for name, file_name in inputs.items()],
        [_hand_out(builder, made, name, file_name, container) for name, file_name in final.items()],
        builder.initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(proto, producer_name="zerobit", opset_imports=opsets, ir_version=ir_version)
    described = {INPUT: describe_inputs(graph, inputs, image=image)}
    if container == "exact":
        described[OUTPUT] = describe_outputs(graph, final)
    if graph.islands:
        described[ISLANDS] = describe_islands(graph, builder)
    entries = {CONTAINER: container, VERSION: zerobit_version(), **_as_json(described), **metadata}
    helper.set_model_props(model, dict(sorted(entries.items())))
    return Written(model, dict(builder.stored), dict(builder.real), final)


def _as_json(entries: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value, sort_keys=True) for key, value in entries.items()}


def _check(graph: IntegerGraph, container: Container, *, image: bool) -> None:
    if container not in get_args(Container):
        msg = f"`container` is {container!r}; allowed are {', '.join(map(repr, get_args(Container)))}"
        raise ExportError(msg)
    graph.validate()
    if container == "exact":
        check_exact(graph)
    shapes = {name: (*shape, graph.input_types[name].name) for name, shape in graph.inputs.items()}
    if image and not (len(shapes) == 1 and all(len(s) == 4 and s[-1] == "float32" for s in shapes.values())):
        msg = f"`image` is True, but the inputs are {shapes}; it needs one float32 input [C, H, W]; leave it False"
        raise ExportError(msg)


def _write_ops(builder: Builder, islands: IslandWriter | None, final: Mapping[str, str], container: Container) -> None:
    for op in builder.graph.ops:
        if isinstance(op, Island):
            assert islands is not None
            islands.write(op)
        elif container == "exact":
            write_exact_op(builder, op, final)
        else:
            write_op(builder, op, final)


def _hand_out(
    builder: Builder, made: Mapping[str, Made], name: str, file_name: str, container: Container
) -> onnx.ValueInfoProto:
    """Nodes that make a graph output of an integer tensor, and what the file declares."""
    tensor, batch = builder.graph.by_name[name], builder.graph.batch or "batch"
    kind, shape = made.get(name, (builder.types.get(name, TensorProto.FLOAT), [batch, *tensor.shape]))
    if not tensor.is_float and container == "exact":
        kind = hand_out(builder, name, file_name)
    elif not tensor.is_float:
        builder.dequantize(name, output=file_name)
    return helper.make_tensor_value_info(file_name, kind, shape)


def _versions(graph: IntegerGraph, *, packed: bool) -> tuple[int, int]:
    """Opset and IR version: the oldest that has the types and the ops of islands."""
    layers = [op.weights for op in graph.ops if isinstance(op, Conv | Linear)]
    stored = [weight.weights for island in graph.islands for weight in island.weights]
    widths = [storage_bits(weights.bits).min() for weights in (*layers, *stored)] if packed else []
    versions = _VERSIONS[int(min(widths, default=8))]
    return max(versions, _FOR_ISLANDS) if graph.islands else versions


def _input_info(graph: IntegerGraph, name: str, file_name: str, *, image: bool) -> onnx.ValueInfoProto:
    lead = () if name in graph.unbatched else (graph.batch or "batch",)
    kind = TensorProto.UINT8 if image else helper.np_dtype_to_tensor_dtype(graph.input_types[name])
    return helper.make_tensor_value_info(file_name, kind, [*lead, *graph.inputs[name]])
