"""Walk an integer graph: everything that is exact is here, a `Rule` says how one runtime rounds.

Shape legend: N batch, C channels, O output channels.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zerobit.errors import ZerobitError
from zerobit.integer.accumulate import (
    Array,
    conv_accumulators,
    linear_accumulators,
    spatial_sums,
)
from zerobit.integer.floats import Feed, Island
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.move import moved
from zerobit.integer.ops import (
    Add,
    AvgPool,
    Conv,
    Linear,
    Lookup,
    Mean,
    Multiply,
    Op,
    Operation,
    Quantize,
    QuantizeFloat,
    Rescale,
    Subtract,
    clip_range,
    reads,
)
from zerobit.integer.tensors import IntegerTensor

Float32 = NDArray[np.float32]
Feeds = Array | Mapping[str, Array]


class Rule(abc.ABC):
    """How one runtime rounds. Results are whole numbers in any float or integer type, not yet saturated."""

    @abc.abstractmethod
    def requantize(
        self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor, target: IntegerTensor
    ) -> Array:
        """Accumulators [N, O, ...] of a layer to output integers."""

    @abc.abstractmethod
    def logits(self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor) -> Array:
        """Accumulators [N, O, ...] of a layer to what the runtime hands out where there is no integer tensor."""

    @abc.abstractmethod
    def add(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Sum of two integer arrays; element-wise, they broadcast."""

    @abc.abstractmethod
    def subtract(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Difference of two integer arrays; element-wise, they broadcast."""

    @abc.abstractmethod
    def multiply(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Product of two integer arrays; element-wise, they broadcast."""

    @abc.abstractmethod
    def mean(self, sums: NDArray[np.int32], count: int, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Sums of `count` integers to the mean."""

    @abc.abstractmethod
    def average(self, x: Array, op: AvgPool, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Window means of integers [N, C, *spatial], not yet padded."""

    @abc.abstractmethod
    def rescale(self, x: Array, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Integers on one scale to another; element-wise."""


def walk(
    graph: IntegerGraph,
    rule: Rule,
    feeds: Mapping[str, Array],
    keep: bool,
    floats: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Run a graph once.

    Args:
        graph: a valid graph.
        rule: how the runtime rounds.
        feeds: [N, *shape] per graph input, float32 where the graph makes integers of it.
        keep: return every tensor, and not only the outputs.
        floats: what to take for the float tensors that islands make; computed with torch if None.

    Returns:
        Arrays [N, *shape] by tensor name: int8, uint8, float32 for logits, what torch makes for islands.
    """
    values: dict[str, Array] = {}
    last_use = {name: index for index, op in enumerate(graph.ops) for name in reads(op)}
    for index, op in enumerate(graph.ops):
        if not isinstance(op, Island):
            values[op.output] = compute(op, graph.by_name, rule, values, feeds)
        elif floats is None:
            values |= run_island(op, graph.by_name, values)
        else:
            values |= {name: floats[name] for name in op.outputs}
        for name in reads(op):
            if not keep and last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return values if keep else {name: values[name] for name in graph.outputs}


def run_island(op: Island, tensors: Mapping[str, IntegerTensor], values: Mapping[str, Array]) -> dict[str, Array]:
    """What torch makes of an island's inputs.

    Args:
        op: the island.
        tensors: of its graph, by name.
        values: arrays of its inputs by name, as `walk` holds them.

    Returns:
        Arrays by tensor name.
    """
    real = [to_real(values[name], tensors[name]) for name in op.inputs]
    stored = [w.weights.values.astype(np.float32) * w.weights.scale[:, None] for w in op.weights]
    with torch.no_grad():
        results = op.function(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (*real, *stored)))
    return {name: result.numpy() for name, result in zip(op.outputs, results, strict=True)}


def compute(
    op: Operation,
    tensors: Mapping[str, IntegerTensor],
    rule: Rule,
    values: Mapping[str, Array],
    feeds: Mapping[str, Array],
) -> Array:
    """What one op makes, in the target's numpy type.

    Args:
        op: the op.
        tensors: of its graph, by name.
        rule: how the runtime rounds.
        values: arrays [N, *shape] of what it reads, by name.
        feeds: the graph's inputs by name.
    """
    target = tensors[op.output]
    sources = [tensors[name] for name in reads(op)]
    x = [values[name] for name in reads(op)]
    match op:
        case Quantize():
            return quantized_input(feeds[op.input], op, target)
        case Feed():
            return normalise(feeds[op.input], op)
        case QuantizeFloat():
            return saturate(quantize(x[0], target), op, target)
        case Conv():
            return _layer(op, conv_accumulators(x[0], op, sources[0]), sources[0], target, rule)
        case Linear():
            return _layer(op, linear_accumulators(x[0], op, sources[0]), sources[0], target, rule)
        case Add():
            turn = -1 if _repeats_left(*(source.shape for source in sources)) else 1
            return _pairwise(op, x[::turn], sources[::turn], target, rule.add)
        case Subtract():
            return _pairwise(op, x, sources, target, rule.subtract)
        case Multiply():
            return _pairwise(op, x, sources, target, rule.multiply)
        case Rescale():
            table = saturate(rule.rescale(_levels(sources[0]), sources[0], target), op, target)
            return table[x[0].view(np.uint8)]
        case Lookup():
            return look_up(x[0], op).astype(target.dtype)
        case Mean():
            means = rule.mean(spatial_sums(x[0]), int(np.prod(x[0].shape[2:])), sources[0], target)
            return saturate(means, op, target).reshape(len(x[0]), *target.shape)
        case AvgPool():
            return saturate(rule.average(x[0], op, sources[0], target), op, target)
        case _:
            return moved(x, op, target)


def normalise(x: Array, op: Quantize | Feed) -> Array:
    """Input [N, C, ...] with the mean of `op` subtracted and divided by its standard deviation, in float32."""
    shape = (-1, *(1,) * (x.ndim - 2))
    if op.mean is not None:
        x = np.asarray(x, np.float32) - op.mean.reshape(shape)
    return x if op.std is None else np.asarray(x, np.float32) / op.std.reshape(shape)


def quantized_input(x: Array, op: Quantize, target: IntegerTensor) -> Array:
    """Input [N, *shape] as the integers that `op` makes of it, in the target's numpy type."""
    return saturate(quantize(normalise(x, op), target), op, target)


def quantize(x: Array, target: IntegerTensor) -> Array:
    """Real values [N, *shape] to whole numbers: float32 division, round half to even; not yet saturated."""
    with np.errstate(over="ignore"):  # infinity saturates like any large value
        return np.rint(np.asarray(x, np.float32) / target.step)


def look_up(x: Array, op: Lookup) -> NDArray[np.int16]:
    """Entries of the table."""
    codes = x.view(np.uint8)
    if op.axis is None:
        return op.table[codes]
    channel = np.arange(len(op.table)).reshape(-1, *(1,) * (x.ndim - op.axis - 2))
    return op.table[channel, codes]


def _layer(
    op: Conv | Linear, sums: NDArray[np.int32], source: IntegerTensor, target: IntegerTensor, rule: Rule
) -> Array:
    """Accumulators of a layer to logits or output integers."""
    if target.is_float:
        return rule.logits(sums, op, source)
    return saturate(rule.requantize(sums, op, source, target), op, target)


def saturate(result: Array, op: Op, target: IntegerTensor) -> Array:
    """Clamp to what `op` leaves in `target`, in the target's numpy type."""
    with np.errstate(invalid="ignore"):  # what an island makes may be no number; then any integer will do
        return np.clip(result, *clip_range(op, target)).astype(target.dtype)


def _levels(tensor: IntegerTensor) -> Array:
    """All 256 values of the tensor's type, in the order of their bytes; an index for tables."""
    return np.arange(256, dtype=np.uint8).view(tensor.dtype)


def _repeats_left(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether a sum takes one value on the left for many on the right, innermost.

    ONNX Runtime's kernel turns such a sum around, which its rounding shows; in fixed point both orders are the same.
    """
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if max(a, b) > 1]
    return bool(pairs) and pairs[-1][0] == 1 < pairs[-1][1]


def _pairwise(
    op: Add | Subtract | Multiply,
    x: Sequence[Array],
    sources: Sequence[IntegerTensor],
    target: IntegerTensor,
    compute: Callable[[Array, Array, IntegerTensor, IntegerTensor, IntegerTensor], Array],
) -> Array:
    """Two bytes have 65,536 possible results: the rule makes the table, the data only look it up."""
    a, b = _levels(sources[0])[:, None], _levels(sources[1])[None, :]
    table = saturate(compute(a, b, sources[0], sources[1], target), op, target).reshape(-1)
    index = x[0].view(np.uint8).astype(np.uint16)
    index <<= 8
    return table[index | x[1].view(np.uint8)]


def batches(graph: IntegerGraph, x: Feeds, batch_size: int) -> Iterator[dict[str, Array]]:
    """Check the inputs and yield them in batches.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN; `batch_size` is not positive.
    """
    if batch_size < 1:
        msg = f"`batch_size` is {batch_size}; it must be 1 or more"
        raise ZerobitError(msg)
    given = dict(x) if isinstance(x, Mapping) else dict.fromkeys(graph.inputs, x)
    if set(given) != set(graph.inputs) or (not isinstance(x, Mapping) and len(graph.inputs) != 1):
        msg = f"`x` must map the graph inputs {sorted(graph.inputs)} to arrays; it has {sorted(given)}"
        raise ZerobitError(msg)
    feeds: dict[str, Array] = {}
    for name, shape in graph.inputs.items():
        feeds[name] = np.asarray(given[name], graph.input_types[name])
        whole = feeds[name].shape if name in graph.unbatched else feeds[name].shape[1:]
        if whole != shape or not feeds[name].size:
            wanted = shape if name in graph.unbatched else ("batch", *shape)
            msg = f"`x` for input {name!r} has shape {feeds[name].shape}; it must be {wanted}"
            raise ZerobitError(msg)
        if np.isnan(feeds[name]).any():
            msg = f"`x` for input {name!r} holds a NaN, which has no integer; clean the data"
            raise ZerobitError(msg)
    sizes = {len(feed) for name, feed in feeds.items() if name not in graph.unbatched}
    if len(sizes) > 1:
        msg = f"`x` has inputs of different batch sizes {sorted(sizes)}; they must be equal"
        raise ZerobitError(msg)
    if graph.unbatched:
        yield feeds
        return
    for start in range(0, sizes.pop(), batch_size):
        yield {name: feed[start : start + batch_size] for name, feed in feeds.items()}


def to_real(values: Array, tensor: IntegerTensor) -> Array:
    """Real values of a tensor: float(q) * scale; logits and what islands make as they are."""
    if tensor.is_float:
        return values
    return values.astype(np.float32) * tensor.step
