"""Run a .tflite file with the interpreter of TFLite Micro, on the integers of a graph."""

import json
import os
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.tflite_layout import Layout, file_shape
from zerobit.export.tflite_model import FILE_IDENTIFIER, PLACES, runtime, schema, zero_point
from zerobit.integer.ir import IntegerGraph, IntegerTensor, Quantize
from zerobit.integer.walk import Feeds, batches, quantized_input

Array = NDArray[np.generic]

#: Memory of the interpreter: every tensor apart and as much again, all weights unpacked, and what operators keep.
_ARENA_PER_BYTE, _ARENA_PER_FILE_BYTE, _ARENA_PER_OPERATOR, _ARENA_BASE = 2, 4, 1 << 10, 1 << 16


def run_tflite(
    path: str | os.PathLike[str], graph: IntegerGraph, x: Feeds, *, keep: bool = False
) -> dict[str, NDArray[np.generic]]:
    """Run a file on all of `x`, one by one.

    Args:
        path: the file.
        graph: what it was written from; the inputs are quantised as it says.
        x: [N, *shape], or one such array per graph input by name.
        keep: return every tensor, and not only the outputs. The interpreter then gives each its own memory; else it
            shares memory as on a device.

    Returns:
        Integers [N, *shape] by name as the twin returns them: channels first, int8 or uint8.

    Raises:
        ExportError: the file is none of TFLite, is damaged, was not written from `graph`, or the runtime refuses it.
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
    """
    data = Path(path).read_bytes()
    with _named(str(path)):
        model = _parsed(data, str(path))
        places = _places(model, graph, str(path))
    names = tuple(tensor.name for tensor in graph.tensors) if keep else graph.outputs
    interpreter = _interpreter(data, _arena(model, len(data)), str(path), keep=keep)
    entries = [op for op in graph.ops if isinstance(op, Quantize)]
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for feeds in batches(graph, x, 1):
        for number, op in enumerate(entries):
            tensor = graph.by_name[op.output]
            integers = quantized_input(feeds[op.input], op, tensor)
            interpreter.set_input(_to_file(integers, tensor, places[op.output][1]), number)
        interpreter.invoke()
        for number, name in enumerate(names):
            index, layout = places[name]
            found = interpreter.GetTensor(index, 0)["tensor_data"] if keep else interpreter.get_output(number)
            parts[name].append(_from_file(found, graph.by_name[name], layout))
    return {name: np.concatenate(part) for name, part in parts.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file's metadata.

    Args:
        path: the file.

    Raises:
        ExportError: it is no TFLite file, or it is damaged.
    """
    with _named(str(path)):
        return _metadata(_parsed(Path(path).read_bytes(), str(path)))


def logit_scales(path: str | os.PathLike[str], graph: IntegerGraph) -> dict[str, np.float32]:
    """The scales on which a file hands out what is float in `graph`; `with_logit_scales` makes its graph of them.

    Args:
        path: the file.
        graph: of the network, with float logits.

    Raises:
        ExportError: it is no TFLite file, is damaged, or was not written from `graph`.
    """
    with _named(str(path)):
        model = _parsed(Path(path).read_bytes(), str(path))
        places = _places(model, graph, str(path))
        tensors = model.subgraphs[0].tensors
        floats = (tensor.name for tensor in graph.tensors if tensor.is_float)
        return {name: np.float32(tensors[places[name][0]].quantization.scale[0]) for name in floats}


@contextmanager
def _named(title: str) -> Generator[None]:
    """Whatever reading a damaged file raises, as an error that names it."""
    try:
        yield
    except ExportError:
        raise
    except (struct.error, ValueError, TypeError, LookupError, AttributeError) as error:
        msg = f"`path` {title} is damaged or cut off: {error}; export the network again"
        raise ExportError(msg) from error


def _parsed(data: bytes, title: str) -> Any:
    """The file as objects, which proves that all that it names lies within it: the runtime checks nothing."""
    if data[4:8] != FILE_IDENTIFIER:
        msg = f"`path` {title} is no TFLite file; export the network again"
        raise ExportError(msg)
    return runtime.convert_bytearray_to_object(data)


def _metadata(model: Any) -> dict[str, str]:
    entries = model.metadata or ()
    return {entry.name.decode(): bytes(model.buffers[entry.buffer].data).decode() for entry in entries}


def _places(model: Any, graph: IntegerGraph, title: str) -> Mapping[str, tuple[int, Layout]]:
    """Which tensor of the file holds which activation, and in which layout."""
    places = json.loads(_metadata(model).get(PLACES, "{}"))
    tensors = model.subgraphs[0].tensors
    for tensor in graph.tensors:
        index, layout = places.get(tensor.name, (-1, "first"))
        shape = tuple(tensors[index].shape) if 0 <= index < len(tensors) else None
        if shape != file_shape(tensor.shape, layout):
            msg = f"`path` {title} was not written from this graph: it lacks {tensor.name!r} of shape {tensor.shape}"
            raise ExportError(msg)
    return places


def _arena(model: Any, size: int) -> int:
    graph = model.subgraphs[0]
    kinds = {schema.TensorType.INT32: 4}
    total = sum(int(np.prod(tensor.shape)) * kinds.get(tensor.type, 1) for tensor in graph.tensors)
    kept = _ARENA_PER_FILE_BYTE * size + _ARENA_PER_OPERATOR * len(graph.operators) + _ARENA_BASE
    return _ARENA_PER_BYTE * total + kept


def _interpreter(data: bytes, arena: int, title: str, *, keep: bool) -> Any:
    kinds = runtime.InterpreterConfig
    kind = kinds.kPreserveAllTensors if keep else kinds.kAllocationRecording
    try:
        return runtime.Interpreter.from_bytes(data, arena_size=arena, intrepreter_config=kind)
    except RuntimeError as error:
        msg = f"`path` {title} can't be run by TFLite Micro: {error}"
        raise ExportError(msg) from error


def _to_file(integers: Array, tensor: IntegerTensor, layout: Layout) -> NDArray[np.int8]:
    """Integers [1, *shape] as the file stores them."""
    stored = (integers.astype(np.int16) + zero_point(tensor)).astype(np.int8)
    stored = np.moveaxis(stored, 1, -1) if layout == "last" else stored
    return np.ascontiguousarray(stored).reshape(file_shape(tensor.shape, layout))


def _from_file(stored: Array, tensor: IntegerTensor, layout: Layout) -> Array:
    """Integers [1, *shape] of the graph."""
    values = (stored.astype(np.int16) - zero_point(tensor)).astype(tensor.dtype)
    if layout == "last":
        return np.moveaxis(values.reshape(1, *tensor.shape[1:], tensor.shape[0]), -1, 1)
    return values.reshape(1, *tensor.shape)
