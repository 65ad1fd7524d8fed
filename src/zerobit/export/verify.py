"""`verify`: run an exported file on real samples and random extremes, and compare it with its twin, value by value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.ir import IntegerGraph
from zerobit.integer.twins import run_float32

Array = NDArray[np.float32]


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


def verify_onnx(graph: IntegerGraph, path: Path, samples: Mapping[str, Array], *, seed: int = 0) -> list[Comparison]:
    """Compare an ONNX file, run by ONNX Runtime, with the float32 twin of its integer graph. Equal means `==`.

    On x86 processors without VNNI, ONNX Runtime's kernels for uint8 times int8 saturate; the session sets
    `session.x64quantprecision`, which avoids that, and computes the same elsewhere.

    Args:
        graph: what the file was written from.
        path: the file.
        samples: real inputs by name, [N, ...].
        seed: of the random extremes.
    """
    from zerobit.export.onnx_run import input_names, run_onnx  # onnxruntime is heavy, and an extra

    rng = np.random.default_rng(seed)
    extremes = {name: _extremes(x, rng) for name, x in samples.items()}
    result: list[Comparison] = []
    for title, inputs in (("samples", dict(samples)), ("random extremes", extremes)):
        expected = run_float32(graph, inputs)
        fed = {file_name: inputs[name] for file_name, name in zip(input_names(path), graph.inputs, strict=True)}
        found = run_onnx(path, fed, wide_sums=True)
        for name, a, b in zip(graph.outputs, expected, found, strict=True):
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
            result.append(Comparison(name, title, a.size, int((a != b).sum()), float(gap.max(initial=0.0))))
    return result


def _extremes(x: Array, rng: np.random.Generator) -> Array:
    """Inputs far outside the data: every value at one of the ends, or well beyond."""
    count = min(len(x), 64)
    low, high = float(x.min()), float(x.max())
    spread = max(high - low, 1.0)
    corners = np.array([low - spread, low, (low + high) / 2, high, high + spread], np.float32)
    return rng.choice(corners, size=(count, *x.shape[1:]))
