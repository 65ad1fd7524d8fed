"""What an ONNX file says of itself in its metadata, as JSON: how inputs become integers, what outputs mean."""

import json
from collections.abc import Mapping
from typing import Any

from zerobit.export.inputs import INPUT, describe_input
from zerobit.export.pixels import PIXEL_STEP
from zerobit.integer.ir import Conv, Feed, IntegerGraph, Linear, Quantize
from zerobit.integer.twins.fixed31 import logit_scale
from zerobit.integer.twins.float32 import zero_point

#: Entry that names the container.
CONTAINER = "zerobit.container"
#: Entry that gives the scales of integer outputs; only in exact files, others hand out real values.
OUTPUT = "zerobit.output"


def describe_inputs(graph: IntegerGraph, names: Mapping[str, str], *, image: bool) -> dict[str, Any]:
    """Each input of a file by its name there.

    The integer is clip(rint(((value * factor) - mean) / std / scale) + zero_point, *range), in float32.

    Args:
        graph: the network.
        names: graph input -> its name in the file.
        image: whether the input is uint8 pixels.

    Returns:
        "type", "factor" (None but for pixels), and what `describe_input` says.
    """
    entries = [op for op in graph.ops if isinstance(op, Quantize | Feed)]
    return {names[op.input]: _input(graph, op, image=image) for op in entries}


def _input(graph: IntegerGraph, op: Quantize | Feed, *, image: bool) -> dict[str, Any]:
    tensor = graph.by_name[op.output]
    return {
        "type": "uint8" if image else graph.input_types[op.input].name,
        "factor": float(PIXEL_STEP) if image else None,
        **describe_input(op, tensor, zero_point(tensor)),
    }


def describe_outputs(graph: IntegerGraph, names: Mapping[str, str]) -> dict[str, Any]:
    """Each output of an exact file by its name there.

    Args:
        graph: the network.
        names: graph output -> its name in the file.

    Returns:
        The scale of each: the real value is the output times it. 1 for an input that is handed on.
    """
    makers = {op.output: op for op in graph.ops if isinstance(op, Conv | Linear)}
    scales = dict[str, float]()
    for name in names:
        tensor = graph.by_name[name]
        if not tensor.is_float:
            scales[name] = float(tensor.step)
        elif name in makers:
            scales[name] = logit_scale(makers[name], graph.by_name[makers[name].input])
    return {file_name: {"scale": scales.get(name, 1.0)} for name, file_name in names.items()}


def takes_pixels(metadata: Mapping[str, str]) -> bool:
    """Whether a file with this metadata takes uint8 pixels."""
    entries = json.loads(metadata.get(INPUT, "{}"))
    return any(entry["factor"] is not None for entry in entries.values())
