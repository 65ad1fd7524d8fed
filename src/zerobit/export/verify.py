"""`verify`: run an exported file on real samples and random extremes, and compare it with its twin, value by value."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerobit.export.comparison import gaps
from zerobit.export.onnx_reference import Reference
from zerobit.integer.ir import IntegerGraph, IntegerTensor, Island, QuantizeFloat
from zerobit.integer.walk import run_island

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Comparison:
    """One output on one set of inputs.

    Attributes:
        output: name of the output.
        inputs: what was fed.
        values: values compared.
        differences: how many differ.
        largest: largest absolute difference.
    """

    output: str
    inputs: str
    values: int
    differences: int
    largest: float


@dataclass(frozen=True)
class FloatComparison:
    """One tensor that an island makes, by ONNX Runtime and by torch, from equal inputs.

    Floating-point kernels of two libraries differ in the last bits.

    Attributes:
        island: name of the island.
        tensor: name of the tensor.
        inputs: what was fed.
        values: values compared.
        largest: largest absolute difference.
        relative: that, as a share of the largest magnitude.
        steps: largest difference in steps of the integers that are made of it; None if none are.
    """

    island: str
    tensor: str
    inputs: str
    values: int
    largest: float
    relative: float
    steps: int | None


def verify_onnx(graph: IntegerGraph, path: Path, samples: Mapping[str, Array], *, seed: int = 0) -> list[Comparison]:
    """Compare an ONNX file, run by ONNX Runtime, with the twin of its integer graph. Equal means `==`.

    The twin is the float32 one, for the container "exact" the fixed-point one. A file that takes pixels is fed with
    them: float samples are rounded to the nearest.

    What islands make is taken from ONNX Runtime and fed to the twin, so that all integers behind them are compared
    exactly; `verify_islands` compares the islands themselves.

    The session has wide sums, as `open_session` says: on x86 processors without VNNI others saturate.

    Args:
        graph: what the file was written from.
        path: the file.
        samples: real inputs by name, [N, ...].
        seed: of the random extremes.
    """
    reference = _reference(graph, path)
    result: list[Comparison] = []
    for title, inputs in reference.input_sets(samples, seed):
        found, floats = _run_file(reference, path, inputs)
        for name, a, b in zip(graph.outputs, reference.outputs(inputs, floats), found, strict=True):
            gap = gaps(a, b)
            result.append(Comparison(name, title, a.size, int((gap != 0).sum()), float(gap.max(initial=0.0))))
    return result


def verify_islands(
    graph: IntegerGraph, path: Path, samples: Mapping[str, Array], *, seed: int = 0
) -> list[FloatComparison]:
    """Compare what the islands of an ONNX file make with what torch makes of the same inputs.

    Args:
        graph: what the file was written from.
        path: the file.
        samples: real inputs by name, [N, ...].
        seed: of the random extremes.

    Returns:
        A row for each tensor that an island makes; none for a network without islands.
    """
    reference = _reference(graph, path)
    result: list[FloatComparison] = []
    for title, inputs in reference.input_sets(samples, seed) if graph.islands else ():
        _, floats = _run_file(reference, path, inputs)
        values = reference.tensors(inputs, floats)
        for island in graph.islands:
            result += _compare_island(graph, island, values, title)
    return result


def _compare_island(
    graph: IntegerGraph, island: Island, values: Mapping[str, Array], title: str
) -> Iterator[FloatComparison]:
    for name, own in run_island(island, graph.by_name, values).items():
        gap = gaps(own, values[name])
        steps = [graph.by_name[op.output] for op in graph.ops if isinstance(op, QuantizeFloat) and op.input == name]
        largest, magnitude = float(gap.max(initial=0.0)), float(np.abs(own.astype(np.float64)).max(initial=0.0))
        levels = None
        if steps:
            levels = int(gaps(*(_integers(x, steps[0]) for x in (own, values[name]))).max(initial=0.0))
        yield FloatComparison(island.name, name, title, own.size, largest, largest / max(magnitude, 1e-30), levels)


def _integers(x: Array, tensor: IntegerTensor) -> Array:
    return np.rint(x.astype(np.float64) / tensor.step).clip(tensor.low, tensor.high)


def _reference(graph: IntegerGraph, path: Path) -> Reference:
    from zerobit.export.onnx_run import metadata  # onnx is an extra

    return Reference.of(graph, metadata(path))


def _run_file(
    reference: Reference, path: Path, inputs: Mapping[str, Array]
) -> tuple[list[Array], dict[str, Array] | None]:
    """Outputs of the file, and the tensors that its islands make, by name; None without islands."""
    from zerobit.export.onnx_run import input_names, metadata, run_onnx, with_outputs  # onnxruntime is an extra

    graph = reference.graph
    fed = dict(zip(input_names(path), reference.feeds(inputs).values(), strict=True))
    if not graph.islands:
        return list(run_onnx(path, fed)), None
    entries = json.loads(metadata(path)["zerobit.islands"])
    names = {tensor: file_name for island in entries.values() for tensor, file_name in island["tensors"].items()}
    everything = run_onnx(with_outputs(path, list(names.values())), fed, batch_size=len(next(iter(fed.values()))))
    count = len(graph.outputs)
    return list(everything[:count]), dict(zip(names, everything[count:], strict=True))
