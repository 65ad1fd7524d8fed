"""Timing single layers in ONNX Runtime, in the form in which they are exported.

A file with one layer would time the runtime's call, the conversion of the input and the change of its memory layout as
well: for a small layer they take ten times as long as the layer. So each configuration has two files that differ in
nothing but the number of layers: in "many", `copies + 1` layers of different weights read the same input, in "one" a
single layer does. Of each layer's result, one value is handed out: in "many" one from each layer, in "one" as many
from the only one. What a layer takes is (many - one) / copies, its share of the runtime's bookkeeping included, and on
a sequence the reshape behind it.

All files run in turn, round after round, so that a drift of the machine meets all of them alike. Each is run twice in a
row and timed once, with its weights in the cache as they are when a network runs again and again.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.ir import Conv, IntegerGraph, IntegerTensor, Linear, Op, Quantize, Slice, Weights
from zerobit.measure.layers import Configuration

#: Layers more than one in a file: of small ones as many as make about this many multiplications.
_MACS, _FEWEST, _MOST = 8_000_000, 2, 16
#: Of the times of a file. Other work only ever delays: with some on the machine, values at the lower quartile differ
#: half as much between equal layers as medians do, and as little as smallest ones.
_QUANTILE = 0.25
#: Files that are open at a time; with more of them they are taken in portions, shuffled.
_PORTION = 600


def copies(configuration: Configuration) -> int:
    """How many layers more "many" has than "one"; the more, the smaller the layer.

    Args:
        configuration: of the layer.
    """
    return min(_MOST, max(_FEWEST, _MACS // max(1, configuration.macs)))


def layer_graph(configuration: Configuration, layers: int, values: int) -> IntegerGraph:
    """A network of equal layers that read the same input.

    Args:
        configuration: of the layers.
        layers: how many.
        values: how many values are handed out, in turn from each layer; 0 for all of every layer.
    """
    c, layer = configuration, configuration.layer
    before, after = (
        (*layer.in_size, c.in_channels), (*layer.out_size, c.out_channels)
    ) if layer.op == "linear" else ((c.in_channels, *layer.in_size), (c.out_channels, *layer.out_size))  # fmt: skip
    tensors = [IntegerTensor("x", before, np.float32(0.05), c.activation_bits)]
    ops: list[Op] = [Quantize("input", "x")]
    for i in range(layers):
        tensors.append(IntegerTensor(f"y{i}", after, np.float32(1), c.activation_bits))
        ops.append(_op(c, f"y{i}", _weights(c, seed=i)))
    results: list[str] = []
    for i in range(values):
        name, shape = f"y{i % layers}", after
        for axis in _positions(layer.op, len(after)):
            # Steps beyond the end take the same value, and keep the runtime from merging slices of one layer.
            ops.append(Slice(name, f"v{i}_{axis}", axis, 0, 1, 1 + i // layers))
            name = f"v{i}_{axis}"
            shape = (*shape[:axis], 1, *shape[axis + 1 :])
            tensors.append(IntegerTensor(name, shape, np.float32(1), c.activation_bits))
        results.append(name)
    whole = tuple(tensor.name for tensor in tensors[1 : layers + 1])
    return IntegerGraph(tuple(tensors), tuple(ops), tuple(results) or whole).validate()


def _positions(op: str, rank: int) -> range:
    """Dimensions that a handed out value is taken from; a linear layer on a vector has only its features."""
    return range(1, rank) if op != "linear" else range(max(1, rank - 1))


def _op(c: Configuration, output: str, weights: Weights) -> Op:
    layer = c.layer
    if layer.op == "linear":
        return Linear("x", output, weights)
    groups = c.out_channels if layer.op == "depthwise" else 1
    return Conv("x", output, weights, layer.stride, layer.padding, layer.dilation, groups)


def _weights(c: Configuration, seed: int) -> Weights:
    read = 1 if c.layer.op == "depthwise" else c.in_channels
    rng, high = np.random.default_rng(seed), 2 ** (c.weight_bits - 1) - 1
    values = rng.integers(-high, high + 1, (c.out_channels, read, *c.layer.kernel)).astype(np.int8)
    bias = rng.integers(-100, 100, c.out_channels).astype(np.int32)
    width = np.full(c.out_channels, c.weight_bits)
    return Weights(values, width, np.full(c.out_channels, 0.01, np.float32), bias)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: how often each file is timed.
        warm_up: how often each is run before.
        seed: of the order and of the inputs.
    """

    rounds: int = 40
    warm_up: int = 3
    seed: int = 0


def measure(
    chosen: Sequence[Configuration], settings: Settings, advance: Callable[[], None] = lambda: None
) -> list[float]:
    """Microseconds that each configuration takes on one thread of the CPU; 0 or less where noise is larger.

    Args:
        chosen: what to measure.
        settings: how.
        advance: called after each round of each portion; `steps` says how often.
    """
    order = list(range(len(chosen)))
    random.Random(settings.seed).shuffle(order)
    result = [0.0] * len(chosen)
    for start in range(0, len(order), _PORTION // 2):
        part = order[start : start + _PORTION // 2]
        for index, value in zip(part, _portion([chosen[i] for i in part], settings, advance), strict=True):
            result[index] = value
    return result


def steps(chosen: Sequence[Configuration], settings: Settings) -> int:
    """How often `measure` calls `advance`.

    Args:
        chosen: what to measure.
        settings: how.
    """
    return -(-len(chosen) // (_PORTION // 2)) * settings.rounds


def _portion(part: Sequence[Configuration], settings: Settings, advance: Callable[[], None]) -> list[float]:
    runs = [run for c in part for run in (_runner(c, settings, copies(c) + 1), _runner(c, settings, 1))]
    times = np.zeros((settings.rounds, len(runs)))
    for _ in range(settings.warm_up):
        for run in runs:
            run()
    for r in range(settings.rounds):
        for i, run in enumerate(runs):
            run()
            start = time.perf_counter_ns()
            run()
            times[r, i] = time.perf_counter_ns() - start
        advance()
    extra = np.array([copies(c) for c in part])
    return per_layer(times.reshape(settings.rounds, len(part), 2), extra).tolist()


def per_layer(times: NDArray[np.float64], extra: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N], microseconds of one layer.

    Args:
        times: [rounds, N, 2], nanoseconds of "many" and "one".
        extra: [N], layers more in "many".
    """
    many, one = np.quantile(times, _QUANTILE, 0).T
    return (many - one) / extra / 1000


def _runner(c: Configuration, settings: Settings, layers: int) -> Callable[[], object]:
    """A loaded file as a function without arguments."""
    from zerobit.export.onnx_file import build_onnx  # onnx is an extra
    from zerobit.export.onnx_run import open_session

    graph = layer_graph(c, layers, copies(c) + 1)
    session = open_session(build_onnx(graph, "packcast", {}).SerializeToString(), threads=1, wide_sums=False)
    shape = (1, *graph.inputs["input"])
    feed = {"input": np.random.default_rng(settings.seed).uniform(0, 12, shape).astype(np.float32)}
    return lambda: session.run(None, feed)
