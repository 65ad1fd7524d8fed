"""What a legal integer graph is, in one place: order, shapes, ranges, scales, accumulators that fit 32 bits.

Shape legend: O output channels, I input channels, K weights per output channel; shapes leave the batch out.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import FormatError, ZerobitError
from zerobit.integer.ops import (
    MOVES,
    AvgPool,
    Conv,
    Feed,
    IntegerTensor,
    Island,
    Linear,
    Lookup,
    Mean,
    Op,
    Operation,
    Quantize,
    QuantizeFloat,
    Weights,
    clip_range,
    makes,
    reads,
)
from zerobit.integer.shapes import infer_shape

INT32_MAX = 2**31 - 1
Tensors = Mapping[str, IntegerTensor]


def check_graph(tensors: Sequence[IntegerTensor], ops: Sequence[Op], outputs: Sequence[str]) -> None:
    """Prove that a graph is legal.

    Raises:
        ZerobitError: order, names or shapes are wrong; names the tensor.
        FormatError: a scale, width or value is out of range, or an accumulator can overflow; names the layer.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) != len(tensors):
        msg = "`tensors` holds a name twice; give every tensor a name of its own"
        raise ZerobitError(msg)
    for tensor in tensors:
        _check_tensor(tensor)
    _check_order(by_name, ops, outputs)
    _check_inputs(by_name, ops)
    for op in ops:
        if isinstance(op, Island):
            _check_island(op, by_name)
        else:
            _check_shape(op, by_name)
            _check_formats(op, by_name)


def _check_tensor(tensor: IntegerTensor) -> None:
    name = repr(tensor.name)
    if not tensor.name:
        msg = "`name` of a tensor is empty; give it one"
        raise ZerobitError(msg)
    if tensor.is_float:
        return  # torch makes it, of any shape
    if not tensor.shape or min(tensor.shape) < 1:
        msg = f"`shape` of tensor {name} is {tensor.shape}; sizes must be 1 or more (batch left out)"
        raise ZerobitError(msg)
    if not 2 <= tensor.bits <= 8:
        msg = f"`bits` of tensor {name} is {tensor.bits}; allowed are 2..8"
        raise FormatError(msg)
    if tensor.scale is not None and not (np.isfinite(tensor.scale) and tensor.scale > 0):
        msg = f"`scale` of tensor {name} is {tensor.scale}; it must be positive and finite in float32"
        raise FormatError(msg)


def _check_order(tensors: Tensors, ops: Sequence[Op], outputs: Sequence[str]) -> None:
    made: set[str] = set()
    for op in ops:
        for name in reads(op):
            if name not in tensors:
                msg = f"`tensors` lacks {name!r}, which the op that makes {makes(op)[0]!r} reads"
                raise ZerobitError(msg)
            if name not in made:
                msg = f"`ops` reads {name!r} before it is made (for {makes(op)[0]!r}); sort them topologically"
                raise ZerobitError(msg)
            if tensors[name].is_float and not isinstance(op, Island | QuantizeFloat):
                msg = f"{makes(op)[0]!r} reads float tensor {name!r}; only islands and graph outputs are float"
                raise ZerobitError(msg)
        for name in makes(op):
            if name not in tensors:
                msg = f"`tensors` lacks {name!r}, which an op makes"
                raise ZerobitError(msg)
            if name in made:
                msg = f"`ops` makes {name!r} twice; every tensor has one producer"
                raise ZerobitError(msg)
            made.add(name)
    if unmade := sorted(set(tensors) - made):
        msg = f"`tensors` holds {unmade[0]!r}, which no op makes; drop it or add its op"
        raise ZerobitError(msg)
    if not outputs or len(set(outputs)) != len(outputs):
        msg = f"`outputs` is {tuple(outputs)}; name at least one tensor, and each once"
        raise ZerobitError(msg)
    for name in outputs:
        if name not in tensors:
            msg = f"`outputs` names {name!r}, which is no tensor; choose from {sorted(tensors)}"
            raise ZerobitError(msg)
    read = {name for op in ops for name in reads(op)}
    if unused := sorted(made - read - set(outputs)):
        msg = f"`tensors` holds {unused[0]!r}, which nothing reads; name it in `outputs` or drop its op"
        raise ZerobitError(msg)


def _check_inputs(tensors: Tensors, ops: Sequence[Op]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for op in ops:
        if not isinstance(op, Quantize | Feed):
            continue
        shape = tensors[op.output].shape
        if not op.input or shapes.setdefault(op.input, shape) != shape:
            msg = f"`input` {op.input!r} of {op.output!r} is empty or has two shapes: {shape} and another"
            raise ZerobitError(msg)
        for name, values in (("mean", op.mean), ("std", op.std)):
            _check_normalisation(f"`{name}` of {op.output!r}", values, shape[:1], positive=name == "std")


def _check_normalisation(
    what: str, values: NDArray[np.float32] | None, channels: tuple[int, ...], *, positive: bool
) -> None:
    if values is None:
        return
    if values.shape != channels:
        msg = f"{what} has shape {values.shape}; give one value per channel, shape {channels}"
        raise ZerobitError(msg)
    if not np.isfinite(values).all() or (positive and values.min() <= 0):
        msg = f"{what} is {values.tolist()}; it must be finite{' and positive' if positive else ''}"
        raise FormatError(msg)


def _check_island(op: Island, tensors: Tensors) -> None:
    for name in op.outputs:
        if not tensors[name].is_float:
            msg = f"island {op.name!r} makes {name!r}, which is no float tensor; put a QuantizeFloat behind"
            raise FormatError(msg)
    for weight in op.weights:
        _check_weights(weight.weights, weight.name)


def _check_shape(op: Operation, tensors: Tensors) -> None:
    shape, inferred = tensors[op.output].shape, infer_shape(op, tensors)
    if shape != inferred:
        msg = f"`shape` of tensor {op.output!r} is {shape}; its {type(op).__name__} makes {inferred}"
        raise ZerobitError(msg)


def _check_formats(op: Operation, tensors: Tensors) -> None:
    output = tensors[op.output]
    if isinstance(op, Feed):
        if not output.is_float:
            msg = f"`scale` of {op.output!r} is {output.scale}; a Feed makes a float tensor, use a Quantize"
            raise FormatError(msg)
        return
    if output.is_float and not isinstance(op, Conv | Linear):
        msg = f"`scale` of {op.output!r} is None, but only a Conv or Linear can make float logits"
        raise ZerobitError(msg)
    low, high = clip_range(op, output)
    if not output.low <= low <= high <= output.high:
        msg = (
            f"`clip_low`, `clip_high` of {op.output!r} are {low}, {high}; "
            f"allowed is {output.low}..{output.high}, low first"
        )
        raise FormatError(msg)
    if isinstance(op, Conv | Linear):
        if output.is_float and not op.clip_low is op.clip_high is None:
            msg = f"`clip_low`, `clip_high` of {op.output!r} must be None: float logits are not clipped"
            raise FormatError(msg)
        _check_weights(op.weights, op.output)
        _check_factor(op, tensors)
        _check_overflow(op.output, accumulator_bound(op.weights, tensors[op.input]))
    elif isinstance(op, Mean | AvgPool):
        count = np.prod(tensors[op.input].shape[1:]) if isinstance(op, Mean) else np.prod(op.kernel)
        _check_overflow(op.output, np.array([int(count) * largest(tensors[op.input])]))
    elif isinstance(op, Lookup):
        _check_entries(op, output)
    elif isinstance(op, MOVES):
        _check_shared((*reads(op), op.output), tensors)


def _check_entries(op: Lookup, output: IntegerTensor) -> None:
    low, high = int(op.table.min()), int(op.table.max())
    if not output.low <= low <= high <= output.high:
        msg = f"`table` of {op.output!r} holds {low}..{high}; its tensor holds {output.low}..{output.high}"
        raise FormatError(msg)


def _check_shared(names: Iterable[str], tensors: Tensors) -> None:
    first, *others = (tensors[name] for name in names)
    for other in others:
        if (first.scale, first.bits, first.signed) != (other.scale, other.bits, other.signed):
            msg = (
                f"tensors {first.name!r} and {other.name!r} share integers; `scale`, `bits`, `signed` are "
                f"{(first.scale, first.bits, first.signed)} and {(other.scale, other.bits, other.signed)}; "
                "give them one format, or put a Rescale between"
            )
            raise FormatError(msg)


def _check_weights(weights: Weights, layer: str) -> None:
    if weights.bits.min() < 2 or weights.bits.max() > 8:
        msg = f"`bits` of the weights of {layer!r} holds {sorted(set(weights.bits.tolist()))}; 2..8 allowed"
        raise FormatError(msg)
    if not (np.isfinite(weights.scale).all() and (weights.scale > 0).all()):
        msg = f"`scale` of the weights of {layer!r} must be positive and finite in every channel"
        raise FormatError(msg)
    w_OK = weights.values.reshape(weights.channels, -1).astype(np.int64)
    half = 1 << (weights.bits - 1)
    wrong = np.flatnonzero((w_OK.min(1) < -half) | (w_OK.max(1) > half - 1))
    if wrong.size:
        channel = int(wrong[0])
        msg = (
            f"`values` of {layer!r}, channel {channel}, span {w_OK[channel].min()}..{w_OK[channel].max()}; "
            f"{weights.bits[channel]} bits hold {-half[channel]}..{half[channel] - 1}; clip or raise `bits`"
        )
        raise FormatError(msg)


def _check_factor(op: Conv | Linear, tensors: Tensors) -> None:
    source, target = tensors[op.input], tensors[op.output]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        factor = source.step * op.weights.scale
        factor = factor if target.is_float else factor / target.step
    if not (np.isfinite(factor).all() and (factor > 0).all()):
        msg = f"`scale` of {op.output!r}: input times weight over output leaves float32; bring them closer"
        raise FormatError(msg)


def largest(tensor: IntegerTensor) -> int:
    """Largest magnitude of an integer of this tensor."""
    return max(-tensor.low, tensor.high)


def accumulator_bound(weights: Weights, source: IntegerTensor) -> NDArray[np.int64]:
    """int64 [O], largest magnitude that an accumulator, or any partial sum of it, can reach for any input."""
    total_O = np.abs(weights.values.reshape(weights.channels, -1).astype(np.int64)).sum(1)
    return total_O * largest(source) + np.abs(weights.bias.astype(np.int64))


def _check_overflow(layer: str, bound_O: NDArray[np.int64]) -> None:
    channel = int(bound_O.argmax())
    if bound_O[channel] > INT32_MAX:
        msg = (
            f"the accumulator of {layer!r}, channel {channel}, can reach {bound_O[channel]}; "
            f"int32 holds {INT32_MAX}; use fewer bits, a smaller bias or a narrower layer"
        )
        raise FormatError(msg)
