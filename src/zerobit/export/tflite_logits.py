"""int8 logits: TFLite files hand out bytes, on a scale that samples decide."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.twins.float32 import run_float32
from zerobit.integer.walk import Feeds


def integer_logits(graph: IntegerGraph, samples: Feeds) -> IntegerGraph:
    """The same network with signed bytes for logits.

    Args:
        graph: a valid graph without islands.
        samples: inputs [N, *shape], or one such array per graph input by name. The largest magnitude of a logit
            over them, as the float32 twin computes it, becomes 127.

    Returns:
        A validated graph; `graph` itself if it has no float logits.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
        ExportError: there are islands; or logits are zero for all samples.
    """
    if graph.islands:
        msg = (
            f"`graph` computes {graph.islands[0].name!r} in floating point; only graphs of integers have integer "
            "logits; export it to ONNX"
        )
        raise ExportError(msg)
    floats = [tensor for tensor in graph.tensors if tensor.is_float]
    if not floats:
        return graph
    names = tuple(tensor.name for tensor in floats)
    values = run_float32(replace(graph, outputs=names), samples)
    return with_logit_scales(graph, {name: _scale(name, x) for name, x in zip(names, values, strict=True)})


def with_logit_scales(graph: IntegerGraph, scales: Mapping[str, np.float32]) -> IntegerGraph:
    """The same network with signed bytes for logits, on given scales.

    Args:
        graph: a valid graph.
        scales: of each float tensor, by name.
    """
    tensors = (
        replace(tensor, scale=scales[tensor.name], bits=8, signed=True) if tensor.is_float else tensor
        for tensor in graph.tensors
    )
    return replace(graph, tensors=tuple(tensors)).validate()


def _scale(name: str, values: NDArray[np.generic]) -> np.float32:
    largest = np.abs(values.astype(np.float32)).max()
    if largest == 0:
        msg = f"`samples` make {name!r} zero everywhere, which gives it no scale; give samples of real data"
        raise ExportError(msg)
    return np.float32(largest / np.float32(127))
