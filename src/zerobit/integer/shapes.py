"""What shape each op makes of its inputs, and that its settings fit them.

Shapes leave the batch out.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from zerobit.errors import ZerobitError
from zerobit.integer.ops import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    Feed,
    IntegerTensor,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Operation,
    Pad,
    Permute,
    Quantize,
    QuantizeFloat,
    Repeat,
    Rescale,
    Reshape,
    Slice,
    Spread,
    Subtract,
    reads,
)


def infer_shape(op: Operation, tensors: Mapping[str, IntegerTensor]) -> tuple[int, ...]:
    """Shape that an op makes of its inputs, batch left out.

    Raises:
        ZerobitError: its inputs or settings don't fit.
    """
    shapes = [tensors[name].shape for name in reads(op)]
    match op:
        case Quantize() | Feed():
            return tensors[op.output].shape
        case Conv():
            return _conv_shape(op, shapes[0])
        case Linear():
            if shapes[0][-1:] != op.weights.values.shape[1:]:
                msg = (
                    f"`input` of Linear {op.output!r} has shape {shapes[0]}, "
                    f"the weights {op.weights.values.shape}; its last dimension F must be that of weights [O, F]"
                )
                raise ZerobitError(msg)
            return (*shapes[0][:-1], op.weights.channels)
        case Add() | Subtract() | Multiply():
            return _broadcast(op, shapes)
        case Rescale() | QuantizeFloat():
            return shapes[0]
        case Lookup():
            _check_table(op, shapes[0])
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
        case Permute():
            return _permuted(op, shapes[0])
        case Slice():
            return _sliced(op, shapes[0])
        case Expand():
            return _expanded(op, shapes[0], tensors[op.output].shape)
        case Spread():
            _check_spatial(op, shapes[0], len(op.factors))
            return (shapes[0][0], *((n - 1) * f + 1 for n, f in zip(shapes[0][1:], op.factors, strict=True)))
        case Repeat():
            _check_spatial(op, shapes[0], len(op.factors))
            return (shapes[0][0], *(n * f for n, f in zip(shapes[0][1:], op.factors, strict=True)))
        case Pad():
            _check_spatial(op, shapes[0], len(op.padding))
            _check_padding(op, op.padding)
            return (shapes[0][0], *(n + sum(p) for n, p in zip(shapes[0][1:], op.padding, strict=True)))


def _reshaped(op: Operation, given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
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


def _check_spatial(op: Operation, shape: tuple[int, ...], dimensions: int) -> None:
    if dimensions not in (1, 2, 3) or len(shape) != dimensions + 1:
        msg = (
            f"{type(op).__name__} {op.output!r} works on {dimensions} spatial dimensions, "
            f"but its input has shape {shape}; allowed are [C, L], [C, H, W] and [C, D, H, W]"
        )
        raise ZerobitError(msg)


def _check_padding(op: Operation, padding: tuple[tuple[int, int], ...]) -> None:
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


def _broadcast(op: Add | Subtract | Multiply, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    left, right = shapes
    fits = len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in zip(left, right, strict=True))
    if not fits:
        msg = (
            f"`left` and `right` of {op.output!r} have shapes {shapes}; sizes must be equal, or 1 in one of them, "
            "in as many dimensions"
        )
        raise ZerobitError(msg)
    return tuple(map(max, left, right))


def _check_table(op: Lookup, shape: tuple[int, ...]) -> None:
    if op.axis is not None and not 0 <= op.axis < len(shape):
        msg = f"`axis` of Lookup {op.output!r} is {op.axis}; allowed are 0..{len(shape) - 1}, or None"
        raise ZerobitError(msg)
    wanted = (256,) if op.axis is None else (shape[op.axis], 256)
    if op.table.shape != wanted:
        msg = f"`table` of {op.output!r} has shape {op.table.shape}; it must be {wanted}"
        raise ZerobitError(msg)


def _permuted(op: Permute, shape: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(op.dims) != list(range(len(shape))):
        msg = f"`dims` of {op.output!r} is {op.dims}; give each of 0..{len(shape) - 1} once"
        raise ZerobitError(msg)
    return tuple(shape[dim] for dim in op.dims)


def _sliced(op: Slice, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not 0 <= op.axis < len(shape) or not 0 <= op.start < op.end <= shape[op.axis] or op.step < 1:
        msg = (
            f"Slice {op.output!r} takes {op.start}..{op.end} in steps of {op.step} along {op.axis} of {shape}; "
            "the range must lie within, with a step of 1 or more"
        )
        raise ZerobitError(msg)
    count = len(range(op.start, op.end, op.step))
    return (*shape[: op.axis], count, *shape[op.axis + 1 :])


def _expanded(op: Expand, given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    if len(given) != len(wanted) or any(a not in (1, b) for a, b in zip(given, wanted, strict=True)):
        msg = f"`shape` of {op.output!r} is {wanted}; its Expand reads {given}; only sizes of 1 can be repeated"
        raise ZerobitError(msg)
    return wanted
