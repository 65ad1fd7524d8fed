"""`verify`: run an exported file on real samples and random extremes, and compare it with its twin, value by value."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.ir import IntegerGraph, IntegerTensor, Island, QuantizeFloat
from zerobit.integer.twins.float32 import run_float32
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
    """Compare an ONNX file, run by ONNX Runtime, with the float32 twin of its integer graph. Equal means `==`.

    What islands make is taken from ONNX Runtime and fed to the twin, so that all integers behind them are compared
    exactly; `verify_islands` compares the islands themselves.

    On x86 processors without VNNI, ONNX Runtime's kernels for uint8 times int8 saturate; the session sets
    `session.x64quantprecision`, which avoids that, and computes the same elsewhere.

    Args:
        graph: what the file was written from.
        path: the file.
        samples: real inputs by name, [N, ...].
        seed: of the random extremes.
    """
    result: list[Comparison] = []
    for title, inputs in _input_sets(samples, seed):
        found, floats = _run_file(graph, path, inputs)
        expected = run_float32(graph, inputs, floats=floats if graph.islands else None)
        for name, a, b in zip(graph.outputs, expected, found, strict=True):
            gap = _gap(a, b)
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
    result: list[FloatComparison] = []
    for title, inputs in _input_sets(samples, seed) if graph.islands else ():
        _, floats = _run_file(graph, path, inputs)
        values = run_float32(graph, inputs, keep=True, floats=floats)
        for island in graph.islands:
            result += _compare_island(graph, island, values, title)
    return result


def _compare_island(
    graph: IntegerGraph, island: Island, values: Mapping[str, Array], title: str
) -> Iterator[FloatComparison]:
    for name, own in run_island(island, graph.by_name, values).items():
        gap = _gap(own, values[name])
        steps = [graph.by_name[op.output] for op in graph.ops if isinstance(op, QuantizeFloat) and op.input == name]
        largest, magnitude = float(gap.max(initial=0.0)), float(np.abs(own.astype(np.float64)).max(initial=0.0))
        levels = None
        if steps:
            levels = int(_gap(*(_integers(x, steps[0]) for x in (own, values[name]))).max(initial=0.0))
        yield FloatComparison(island.name, name, title, own.size, largest, largest / max(magnitude, 1e-30), levels)


def _integers(x: Array, tensor: IntegerTensor) -> Array:
    return np.rint(x.astype(np.float64) / tensor.step).clip(tensor.low, tensor.high)


def _gap(a: Array, b: Array) -> NDArray[np.float64]:
    """Absolute differences; 0 where both are the same infinity or no number."""
    one, two = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - two)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    return np.where(same, 0.0, np.nan_to_num(gap, nan=np.inf))


def _input_sets(samples: Mapping[str, Array], seed: int) -> Iterator[tuple[str, dict[str, Array]]]:
    rng = np.random.default_rng(seed)
    yield "samples", dict(samples)
    yield "random extremes", {name: _extremes(x, rng) for name, x in samples.items()}


def _run_file(graph: IntegerGraph, path: Path, inputs: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
    """Outputs of the file, and the tensors that its islands make, by name."""
    from zerobit.export.onnx_run import input_names, metadata, run_onnx, with_outputs  # onnxruntime is an extra

    feeds = {name: np.asarray(inputs[name], graph.input_types[name]) for name in graph.inputs}
    fed = {file_name: feeds[name] for file_name, name in zip(input_names(path), graph.inputs, strict=True)}
    if not graph.islands:
        return list(run_onnx(path, fed, wide_sums=True)), {}
    entries = json.loads(metadata(path)["zerobit.islands"])
    names = {tensor: file_name for island in entries.values() for tensor, file_name in island["tensors"].items()}
    everything = run_onnx(
        with_outputs(path, list(names.values())), fed, wide_sums=True, batch_size=len(next(iter(fed.values())))
    )
    count = len(graph.outputs)
    return list(everything[:count]), dict(zip(names, everything[count:], strict=True))


def _extremes(x: Array, rng: np.random.Generator) -> Array:
    """Inputs far outside the data: every value at one of the ends, or well beyond; of integers, those there are."""
    count = min(len(x), 64) if x.ndim else 0
    if x.ndim == 0:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        return rng.choice(np.unique(x), size=(count, *x.shape[1:]))
    low, high = float(x.min()), float(x.max())
    spread = max(high - low, 1.0)
    corners = np.array([low - spread, low, (low + high) / 2, high, high + spread], np.float32)
    return rng.choice(corners, size=(count, *x.shape[1:]))
