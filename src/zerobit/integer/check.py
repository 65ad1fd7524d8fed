"""What a legal integer graph is, in one place: order, shapes, ranges, scales, accumulators that fit 32 bits.

Shape legend: O output channels, I input channels, K weights per output channel; shapes leave the batch out.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import FormatError, ZerobitError
from zerobit.integer.ops import (
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    Weights,
    clip_range,
    reads,
)

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
        _check_shape(op, by_name)
        _check_formats(op, by_name)


def _check_tensor(tensor: IntegerTensor) -> None:
    name = repr(tensor.name)
    if not tensor.name:
        msg = "`name` of a tensor is empty; give it one"
        raise ZerobitError(msg)
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
                msg = f"`tensors` lacks {name!r}, which the op that makes {op.output!r} reads"
                raise ZerobitError(msg)
            if name not in made:
                msg = f"`ops` reads {name!r} before it is made (for {op.output!r}); sort them topologically"
                raise ZerobitError(msg)
            if tensors[name].is_float:
                msg = f"{op.output!r} reads float tensor {name!r}; only a graph output can be float"
                raise ZerobitError(msg)
        if op.output not in tensors:
            msg = f"`tensors` lacks {op.output!r}, which an op makes"
            raise ZerobitError(msg)
        if op.output in made:
            msg = f"`ops` makes {op.output!r} twice; every tensor has one producer"
            raise ZerobitError(msg)
        made.add(op.output)
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
        if not isinstance(op, Quantize):
            continue
        shape = tensors[op.output].shape
        if not op.input or shapes.setdefault(op.input, shape) != shape:
            msg = f"`input` {op.input!r} of {op.output!r} is empty or has two shapes: {shape} and another"
            raise ZerobitError(msg)
        for name, values in (("mean", op.mean), ("std", op.std)):
            _check_normalisation(f"`{name}` of {op.output!r}", values, shape[0], positive=name == "std")


def _check_normalisation(what: str, values: NDArray[np.float32] | None, channels: int, *, positive: bool) -> None:
    if values is None:
        return
    if values.shape != (channels,):
        msg = f"{what} has shape {values.shape}; give one value per channel, shape ({channels},)"
        raise ZerobitError(msg)
    if not np.isfinite(values).all() or (positive and values.min() <= 0):
        msg = f"{what} is {values.tolist()}; it must be finite{' and positive' if positive else ''}"
        raise FormatError(msg)


def _check_shape(op: Op, tensors: Tensors) -> None:
    shape, inferred = tensors[op.output].shape, _infer_shape(op, tensors)
    if shape != inferred:
        msg = f"`shape` of tensor {op.output!r} is {shape}; its {type(op).__name__} makes {inferred}"
        raise ZerobitError(msg)


def _infer_shape(op: Op, tensors: Tensors) -> tuple[int, ...]:
    shapes = [tensors[name].shape for name in reads(op)]
    match op:
        case Quantize():
            return tensors[op.output].shape
        case Conv():
            return _conv_shape(op, shapes[0])
        case Linear():
            if shapes[0] != op.weights.values.shape[1:]:
                msg = (
                    f"`input` of Linear {op.output!r} has shape {shapes[0]}, "
                    f"the weights {op.weights.values.shape}; flatten the input to [F] and give weights [O, F]"
                )
                raise ZerobitError(msg)
            return (op.weights.channels,)
        case Add() | Rescale():
            if len(set(shapes)) != 1:
                msg = f"`left` and `right` of {op.output!r} have shapes {shapes}; they must be equal"
                raise ZerobitError(msg)
            return shapes[0]
        case Concat():
            return _concat_shape(op, shapes)
        case MaxPool() | AvgPool():
            _check_window(op, shapes[0])
            dilation = (1,) * len(op.kernel)
            return (shapes[0][0], *window_counts(shapes[0][1:], op.kernel, op.stride, op.padding, dilation))
        case Mean():
            _check_spatial(op, shapes[0], len(shapes[0]) - 1)
            return (shapes[0][0], *((1,) * (len(shapes[0]) - 1) if op.keepdim else ()))
        case Reshape():
            return _reshaped(op, shapes[0], tensors[op.output].shape)
        case Pad():
            _check_spatial(op, shapes[0], len(op.padding))
            _check_padding(op, op.padding)
            return (shapes[0][0], *(n + sum(p) for n, p in zip(shapes[0][1:], op.padding, strict=True)))


def _reshaped(op: Op, given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    if np.prod(given) != np.prod(wanted):
        msg = f"`shape` of {op.output!r} is {wanted}; its Reshape reads {given}, another number of values"
        raise ZerobitError(msg)
    return wanted


def _conv_shape(op: Conv, shape: tuple[int, ...]) -> tuple[int, ...]:
    values, where = op.weights.values, f"Conv {op.output!r}"
    _check_spatial(op, shape, len(op.kernel))
    if len(op.stride) != len(op.kernel) or len(op.dilation) != len(op.kernel) or len(op.padding) != len(op.kernel):
        msg = f"`stride`, `dilation` and `padding` of {where} need one entry per dimension of {op.kernel}"
        raise ZerobitError(msg)
    if min(op.stride) < 1 or min(op.dilation) < 1:
        msg = f"`stride` {op.stride} and `dilation` {op.dilation} of {where} must be 1 or more"
        raise ZerobitError(msg)
    _check_padding(op, op.padding)
    if op.groups < 1 or shape[0] % op.groups or values.shape[0] % op.groups:
        msg = f"`groups` of {where} is {op.groups}; it must divide {shape[0]} and {values.shape[0]} channels"
        raise ZerobitError(msg)
    if values.shape[1] * op.groups != shape[0]:
        msg = (
            f"`weights` of {where} have shape {values.shape} with {op.groups} groups, but the input has "
            f"{shape[0]} channels; the second dimension must be {shape[0] // op.groups}"
        )
        raise ZerobitError(msg)
    return (values.shape[0], *window_counts(shape[1:], op.kernel, op.stride, op.padding, op.dilation))


def _concat_shape(op: Concat, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, axis = shapes[0], op.axis
    if not 0 <= axis < len(first):
        msg = f"`axis` of Concat {op.output!r} is {axis}; allowed are 0..{len(first) - 1} (batch left out)"
        raise ZerobitError(msg)
    others = {(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}
    if len(shapes) < 2 or len(others) != 1:
        msg = f"`inputs` of Concat {op.output!r} have shapes {shapes}; two or more that agree but on {axis}"
        raise ZerobitError(msg)
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _check_spatial(op: Op, shape: tuple[int, ...], dimensions: int) -> None:
    if dimensions not in (1, 2) or len(shape) != dimensions + 1:
        msg = (
            f"{type(op).__name__} {op.output!r} works on {dimensions} spatial dimensions, "
            f"but its input has shape {shape}; allowed are [C, L] and [C, H, W]"
        )
        raise ZerobitError(msg)


def _check_padding(op: Op, padding: tuple[tuple[int, int], ...]) -> None:
    if min(side for pair in padding for side in pair) < 0:
        msg = f"`padding` of {op.output!r} is {padding}; it must be 0 or more"
        raise ZerobitError(msg)


def _check_window(op: MaxPool | AvgPool, shape: tuple[int, ...]) -> None:
    _check_spatial(op, shape, len(op.kernel))
    if len(op.stride) != len(op.kernel) or len(op.padding) != len(op.kernel):
        msg = f"`stride` and `padding` of {op.output!r} need one entry per dimension of {op.kernel}"
        raise ZerobitError(msg)
    _check_padding(op, op.padding)
    if min(op.kernel) < 1 or min(op.stride) < 1:
        msg = f"`kernel` {op.kernel} and `stride` {op.stride} of {op.output!r} must be 1 or more"
        raise ZerobitError(msg)
    if any(max(pair) >= size for pair, size in zip(op.padding, op.kernel, strict=True)):
        msg = f"`padding` of {op.output!r} is {op.padding}; it must be smaller than the kernel {op.kernel}"
        raise ZerobitError(msg)


def window_counts(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Output size per spatial dimension of a sliding window; the last, incomplete window is dropped.

    Raises:
        ZerobitError: no window fits.
    """
    counts = tuple(
        (size + sum(pad) - step * (width - 1) - 1) // jump + 1
        for size, width, jump, pad, step in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )
    if min(counts) < 1:
        msg = f"`kernel` {tuple(kernel)} is larger than the padded input {tuple(sizes)}; pad more"
        raise ZerobitError(msg)
    return counts


def _check_formats(op: Op, tensors: Tensors) -> None:
    output = tensors[op.output]
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
    elif isinstance(op, Concat | MaxPool | Pad | Reshape):
        _check_shared((*reads(op), op.output), tensors)


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
