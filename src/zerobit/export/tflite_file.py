"""Write an `IntegerGraph` as a .tflite file for TFLite Micro: int8 activations, int8 or int4 weights.

Every activation is int8: unsigned ones are stored 128 lower, so that a ReLU is the saturation at the lowest byte. The
batch is 1. Files take the integers of the network's inputs and hand out those of its outputs. Normalisation and
quantisation are up to the caller, because the scale of an int8 input is what the first layer multiplies by: nothing
can be folded into it. The file's metadata say how:

    zerobit.input     of each input by its name in the file: "input" of the network that it is made of, and "mean",
                      "std", "scale", "zero_point" and "range" to make it with, in float32, as
                      clip(rint(((x - mean) / std) / scale) + zero_point, *range)
    zerobit.tensors   of each activation: index of its tensor, and "first" or "last" for where channels are
    zerobit.version   of the package that wrote it
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from zerobit.atomic import replacing
from zerobit.errors import ExportError
from zerobit.export.inputs import INPUT, describe_input
from zerobit.export.tflite_layout import Network
from zerobit.export.tflite_model import PLACES, Model, zero_point
from zerobit.export.tflite_ops import needs_float, write_op
from zerobit.export.version import VERSION, zerobit_version
from zerobit.integer.ir import IntegerGraph, Quantize

WeightType = Literal["int8", "int4"]
#: Metadata that TFLite Micro itself reads (micro_allocation_info.cc, compression/metadata.fbs).
_RESERVED = ("OfflineMemoryAllocation", "COMPRESSION_METADATA")


def write_tflite(
    graph: IntegerGraph,
    path: str | os.PathLike[str],
    weights: WeightType = "int8",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a graph to a .tflite file; nothing is left behind on failure.

    Args:
        graph: validated here; its logits are integers, as `integer_logits` makes them.
        path: the file to write; an existing one is replaced in one step.
        weights: "int8" stores all in 8 bits; "int4" packs layers whose channels all have 4 bits or fewer.
        metadata: further entries of the file's metadata.

    Returns:
        The path.

    Raises:
        ZerobitError: the graph is not valid.
        ExportError: `weights` or a key of `metadata` is not allowed, or TFLite Micro can't hold an op; names it.
        FormatError: scales so far apart that the runtime would overflow; names the tensor.
        OSError: the file can't be written.
    """
    data = build_tflite(graph, weights, metadata or {})
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def build_tflite(graph: IntegerGraph, weights: WeightType, metadata: Mapping[str, str]) -> bytes:
    """The file of `write_tflite`, in memory."""
    if weights not in ("int8", "int4"):
        msg = f"`weights` is {weights!r}; allowed are 'int8' and 'int4'"
        raise ExportError(msg)
    if wrong := [key for key in metadata if key in _RESERVED]:
        msg = f"`metadata` has the key {wrong[0]!r}, which TFLite Micro takes for its own; choose another"
        raise ExportError(msg)
    graph.validate()
    if graph.batch not in (None, 1):
        msg = f"`graph` takes a batch of {graph.batch} only; TFLite Micro runs one input: capture it with a batch of 1"
        raise ExportError(msg)
    if graph.islands:
        raise needs_float(graph.islands[0])
    network = Network(graph, Model(), weights)
    for op in graph.ops:
        write_op(network, op)
    outputs = [next(iter(network.held[name].values())) for name in graph.outputs]
    entries = {
        INPUT: json.dumps(_inputs(network), sort_keys=True),
        PLACES: json.dumps(_places(network), separators=(",", ":")),
        VERSION: zerobit_version(),
    }
    return network.model.finish(network.entries, outputs, {**entries, **metadata})


def _places(network: Network) -> dict[str, list[Any]]:
    return {name: [index, layout] for name, held in network.held.items() for layout, index in list(held.items())[:1]}


def _inputs(network: Network) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for op in network.graph.ops:
        if isinstance(op, Quantize):
            tensor = network.tensors[op.output]
            result[op.output] = {"input": op.input, **describe_input(op, tensor, zero_point(tensor))}
    return result
