"""Walk an integer graph: everything that is exact is here, a `Rule` says how one runtime rounds.

Shape legend: N batch, C channels, O output channels.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ZerobitError
from zerobit.integer.accumulate import (
    Array,
    conv_accumulators,
    linear_accumulators,
    pad_spatial,
    spatial_sums,
    window_taps,
)
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    clip_range,
    reads,
)

Float32 = NDArray[np.float32]
Feeds = Array | Mapping[str, Array]


class Rule(abc.ABC):
    """How one runtime rounds. Results are whole numbers in any float or integer type, not yet saturated."""

    @abc.abstractmethod
    def quantize(self, x: Float32, op: Quantize, target: IntegerTensor) -> Array:
        """Float input [N, *shape] to integers."""

    @abc.abstractmethod
    def requantize(
        self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor, target: IntegerTensor
    ) -> Array:
        """Accumulators [N, O, ...] of a layer to output integers."""

    @abc.abstractmethod
    def logits(self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor) -> Float32:
        """Accumulators [N, O, ...] of a layer to float32."""

    @abc.abstractmethod
    def add(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Sum of two integer arrays; element-wise, they broadcast."""

    @abc.abstractmethod
    def mean(self, sums: NDArray[np.int32], count: int, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Sums of `count` integers to the mean."""

    @abc.abstractmethod
    def average(self, x: Array, op: AvgPool, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Window means of integers [N, C, *spatial], not yet padded."""

    @abc.abstractmethod
    def rescale(self, x: Array, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Integers on one scale to another; element-wise."""


def walk(graph: IntegerGraph, rule: Rule, feeds: Mapping[str, Float32], keep: bool) -> dict[str, Array]:
    """Run a graph once.

    Args:
        graph: a valid graph.
        rule: how the runtime rounds.
        feeds: float32 [N, *shape] per graph input.
        keep: return every tensor, and not only the outputs.

    Returns:
        Arrays [N, *shape] by tensor name: int8, uint8, or float32 for logits.
    """
    values: dict[str, Array] = {}
    last_use = {name: index for index, op in enumerate(graph.ops) for name in reads(op)}
    for index, op in enumerate(graph.ops):
        values[op.output] = _run(op, graph.by_name, rule, values, feeds)
        for name in reads(op):
            if not keep and last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return values if keep else {name: values[name] for name in graph.outputs}


def _run(
    op: Op,
    tensors: Mapping[str, IntegerTensor],
    rule: Rule,
    values: Mapping[str, Array],
    feeds: Mapping[str, Float32],
) -> Array:
    """One op, in the target's numpy type."""
    target = tensors[op.output]
    sources = [tensors[name] for name in reads(op)]
    x = [values[name] for name in reads(op)]
    match op:
        case Quantize():
            return saturate(rule.quantize(feeds[op.input], op, target), op, target)
        case Conv():
            return _layer(op, conv_accumulators(x[0], op, sources[0]), sources[0], target, rule)
        case Linear():
            return _layer(op, linear_accumulators(x[0], op, sources[0]), sources[0], target, rule)
        case Add():
            return _add(op, x, sources, target, rule)
        case Rescale():
            table = saturate(rule.rescale(_levels(sources[0]), sources[0], target), op, target)
            return table[x[0].view(np.uint8)]
        case Mean():
            means = rule.mean(spatial_sums(x[0]), int(np.prod(x[0].shape[2:])), sources[0], target)
            return saturate(means, op, target).reshape(len(x[0]), *target.shape)
        case AvgPool():
            return saturate(rule.average(x[0], op, sources[0], target), op, target)
        case MaxPool():
            return _max_pool(x[0], op, sources[0])
        case Concat():
            return np.concatenate(x, axis=op.axis + 1)
        case Pad():
            return pad_spatial(x[0], op.padding)
        case Reshape():
            return x[0].reshape(len(x[0]), *target.shape)


def _layer(
    op: Conv | Linear, sums: NDArray[np.int32], source: IntegerTensor, target: IntegerTensor, rule: Rule
) -> Array:
    """Accumulators of a layer to logits or output integers."""
    if target.is_float:
        return rule.logits(sums, op, source)
    return saturate(rule.requantize(sums, op, source, target), op, target)


def saturate(result: Array, op: Op, target: IntegerTensor) -> Array:
    """Clamp to what `op` leaves in `target`, in the target's numpy type."""
    return np.clip(result, *clip_range(op, target)).astype(target.dtype)


def _levels(tensor: IntegerTensor) -> Array:
    """All 256 values of the tensor's type, in the order of their bytes; an index for tables."""
    return np.arange(256, dtype=np.uint8).view(tensor.dtype)


def _add(op: Add, x: Sequence[Array], sources: Sequence[IntegerTensor], target: IntegerTensor, rule: Rule) -> Array:
    """A sum of two bytes has 65,536 possible results: the rule makes the table, the data only look it up."""
    a, b = _levels(sources[0])[:, None], _levels(sources[1])[None, :]
    table = saturate(rule.add(a, b, sources[0], sources[1], target), op, target).reshape(-1)
    index = x[0].view(np.uint8).astype(np.uint16)
    index <<= 8
    index |= x[1].view(np.uint8)
    return table[index]


def _max_pool(x: Array, op: MaxPool, source: IntegerTensor) -> Array:
    padded = pad_spatial(x, op.padding, fill=-128 if source.signed else 0)
    largest: Array | None = None
    for _, view in window_taps(padded, op.kernel, op.stride, (1,) * len(op.kernel)):
        largest = view if largest is None else np.maximum(largest, view)
    assert largest is not None  # a kernel has at least one position
    return np.ascontiguousarray(largest)


def batches(graph: IntegerGraph, x: Feeds, batch_size: int) -> Iterator[dict[str, Float32]]:
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
    feeds: dict[str, Float32] = {}
    for name, shape in graph.inputs.items():
        feeds[name] = np.asarray(given[name], np.float32)
        if feeds[name].shape[1:] != shape or not len(feeds[name]):
            msg = f"`x` for input {name!r} has shape {feeds[name].shape}; it must be (batch, {shape})"
            raise ZerobitError(msg)
        if np.isnan(feeds[name]).any():
            msg = f"`x` for input {name!r} holds a NaN, which has no integer; clean the data"
            raise ZerobitError(msg)
    sizes = {len(feed) for feed in feeds.values()}
    if len(sizes) != 1:
        msg = f"`x` has inputs of different batch sizes {sorted(sizes)}; they must be equal"
        raise ZerobitError(msg)
    for start in range(0, sizes.pop(), batch_size):
        yield {name: feed[start : start + batch_size] for name, feed in feeds.items()}


def to_float32(values: Array, tensor: IntegerTensor) -> Float32:
    """Real values of a tensor: float(q) * scale; logits as they are."""
    if tensor.is_float:
        return values.astype(np.float32)
    return values.astype(np.float32) * tensor.step
