"""What kernels are told: packed weights, ratios as fixed point, geometry; one function per struct of `zb_kernels.h`.

Shape legend: O output channels, I input channels, K weights per output channel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.c99.layout import Layout, Loop
from zerobit.export.c99.steps import MAX_DIMS, Constants, Field, Step
from zerobit.export.packing import pack_bits
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Conv,
    IntegerTensor,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Rescale,
    Subtract,
    clip_range,
    storage_bits,
)
from zerobit.integer.twins.fixed31 import FixedPoint, layer_ratio, mean_ratio, product_ratio, sum_ratios

Fields = Mapping[str, Field]
Geometry = Fields

#: Rows that kernels compute at once.
_PASS = 4
#: Fields with 32 bits; the others of a struct have 16, or hold what is smaller by itself.
_WIDE = frozenset(
    {"size", "left_stride", "right_stride", "from_stride", "to_stride", "left_multiplier", "right_multiplier",
     "multiplier", "length", "inner", "from", "to", "clear"}
)  # fmt: skip


def check(step: Step) -> None:
    """Refuse what the structs can't hold.

    Raises:
        ExportError: a size beyond 16 bits, or too many loops; names the tensor.
    """
    for name, value in _flat(step.fields):
        limit = 2**31 - 1 if name in _WIDE else 2**16 - 1
        numbers = value if isinstance(value, tuple) else (value,)
        if max(numbers) > limit or (name == "size" and len(numbers) > MAX_DIMS):
            msg = (
                f"`{name}` of the kernel that makes {step.writes!r} is {value}; C kernels take up to {limit}, and "
                f"{MAX_DIMS} loops; onnx can hold it: choose `format` 'onnx'"
            )
            raise ExportError(msg)


def _flat(fields: Fields) -> list[tuple[str, int | tuple[int, ...]]]:
    result: list[tuple[str, int | tuple[int, ...]]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            result += _flat(value)
        elif isinstance(value, int | tuple):
            result.append((name, value))
    return result


# ---------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True, eq=False)
class Rows:
    """Channels of a layer that share their inputs.

    Attributes:
        fields: of `zb_conv`: what differs between groups.
        scratch: bytes for unpacked weights.
    """

    fields: Fields
    scratch: int


def is_depthwise(op: Conv | Linear) -> bool:
    """One input channel for each output channel."""
    return isinstance(op, Conv) and op.groups > 1 and op.weights.values.shape[1] == 1


def conv_geometry(op: Conv, given: Sequence[int], made: Sequence[int]) -> Geometry:
    """Sizes of a convolution over one or two spatial dimensions."""
    (in_h, in_w), (out_h, out_w) = _two(given[1:], 1), _two(made[1:], 1)
    (kernel_h, kernel_w), (stride_h, stride_w) = _two(op.kernel, 1), _two(op.stride, 1)
    dilation_h, dilation_w = _two([d if k > 1 else 1 for d, k in zip(op.dilation, op.kernel, strict=True)], 1)
    pad_top, pad_left = _two([begin for begin, _ in op.padding], 0)
    return {
        "in_h": in_h, "in_w": in_w, "in_channels": given[0], "out_h": out_h, "out_w": out_w, "out_channels": made[0],
        "kernel_h": kernel_h, "kernel_w": kernel_w, "stride_h": stride_h, "stride_w": stride_w,
        "dilation_h": dilation_h, "dilation_w": dilation_w, "pad_top": pad_top, "pad_left": pad_left,
    }  # fmt: skip


def linear_geometry(given: Sequence[int], made: Sequence[int]) -> Geometry:
    """A linear layer is a convolution over as many positions as there are rows."""
    ones = dict.fromkeys(("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
    count = math.prod(given[:-1])
    width = next(w for w in range(min(count, 2**16 - 1), 0, -1) if count % w == 0)
    return {
        "in_h": count // width, "in_w": width, "in_channels": given[-1],
        "out_h": count // width, "out_w": width, "out_channels": made[-1],
        **ones, "pad_top": 0, "pad_left": 0,
    }  # fmt: skip


def conv_rows(op: Conv, source: IntegerTensor, target: IntegerTensor) -> list[Rows]:
    """The channels of each group; of a depthwise convolution all at once."""
    values = np.moveaxis(op.weights.values, 1, -1)  # the order of the input: position, channel
    values = values.reshape(len(values), -1)
    ratio, depth = layer_ratio(op, source, target), op.weights.values.shape[1]
    if is_depthwise(op):
        return [_rows(op, ratio, values, np.arange(len(values)), 0, depth, together=1)]
    groups = np.arange(len(values)).reshape(op.groups, -1)
    return [_rows(op, ratio, values, group, index * depth, depth) for index, group in enumerate(groups)]


def linear_rows(op: Linear, source: IntegerTensor, target: IntegerTensor, columns: NDArray[np.int64]) -> list[Rows]:
    """All channels of a linear layer.

    Args:
        op: the layer.
        source: what it reads.
        target: what it makes.
        columns: [F], place of each feature in a row of the input.
    """
    values = np.empty_like(op.weights.values)
    values[:, columns] = op.weights.values
    return [_rows(op, layer_ratio(op, source, target), values, np.arange(len(values)), 0, values.shape[1])]


def columns(layout: Layout, shape: Sequence[int]) -> NDArray[np.int64] | None:
    """[F], the place of each feature in its row; None where rows of features don't lie one after the other."""
    places = layout.places.reshape(-1, shape[-1])
    starts = np.arange(len(places))[:, None] * shape[-1]
    return places[0] if np.array_equal(places, starts + places[0]) else None


def _rows(
    op: Conv | Linear, ratio: FixedPoint, values: NDArray[np.int8], channels: NDArray[np.int64], first_input: int,
    depth: int, together: int = _PASS,
) -> Rows:  # fmt: skip
    """Rows of some channels, sorted by the width that they are stored with."""
    widths = storage_bits(op.weights.bits[channels])
    order = channels[np.argsort(widths, kind="stable")]
    widths = np.sort(widths)
    packed = [pack_row(values[channel], int(bits)) for channel, bits in zip(order, widths, strict=True)]
    in_order = np.array_equal(order, channels)
    counts = {f"rows_{bits}": int((widths == bits).sum()) for bits in (2, 4, 8)}
    fields: dict[str, Field] = {
        "weights": Constants("uint8_t", np.concatenate(packed)),
        "bias": Constants("int32_t", op.weights.bias[order]),
        "ratio": _ratio(FixedPoint(ratio.multiplier[order], ratio.shift[order])),
        "order": None if in_order else Constants("uint16_t", order),
        "first_channel": int(channels[0]), **counts, "first_input": first_input, "depth": depth,
    }  # fmt: skip
    buffers = min(together, len(order)) if widths[0] < 8 else 0
    return Rows(fields, buffers * values.shape[1])


def pack_row(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """The weights of a channel in bytes, low bits first; 2 and 4 bit ones moved up so that they are not negative.

    Args:
        values: [K].
        bits: 2, 4 or 8.
    """
    up = 0 if bits == 8 else 1 << (bits - 1)
    return np.frombuffer(pack_bits(values + np.int8(up), bits), np.uint8)


def _ratio(ratio: FixedPoint) -> Fields:
    return {
        "multiplier": Constants("int32_t", ratio.multiplier.reshape(-1)),
        "shift": Constants("uint8_t", ratio.shift.reshape(-1)),
    }


def _two(values: Sequence[int], missing: int) -> tuple[int, int]:
    """Of one spatial dimension the width."""
    height, width = (missing, *values)[-2:]
    return height, width


# ---------------------------------------------------------------------------------------------- the others


def pool(op: MaxPool | AvgPool | Mean, source: IntegerTensor, target: IntegerTensor) -> Fields:
    """`zb_pool`; a mean has one window."""
    in_h, in_w = _two(source.shape[1:], 1)
    out_h, out_w = (1, 1) if isinstance(op, Mean) else _two(target.shape[1:], 1)
    kernel = stride = (in_h, in_w)
    pads = (0, 0)
    if not isinstance(op, Mean):
        kernel, stride = _two(op.kernel, 1), _two(op.stride, 1)
        pads = _two([begin for begin, _ in op.padding], 0)
    fields: dict[str, Field] = {
        "in_h": in_h, "in_w": in_w, "channels": source.shape[0], "out_h": out_h, "out_w": out_w,
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
        "pad_top": pads[0], "pad_left": pads[1], "ratio": {"multiplier": None, "shift": None},
        "sign": sign(source), "ratio_by_count": 0, "low": target.low, "high": target.high,
    }  # fmt: skip
    if isinstance(op, MaxPool):
        return fields
    count = math.prod(kernel)
    by_count = isinstance(op, AvgPool) and not op.count_include_pad
    counts = np.arange(1, count + 1) if by_count else np.array([count])
    return {**fields, "ratio": _ratio(mean_ratio(counts, source, target)), "ratio_by_count": int(by_count)}


def rescale(op: Rescale, source: IntegerTensor, target: IntegerTensor) -> Fields:
    """`zb_rescale`."""
    ratio = mean_ratio(1, source, target)
    low, high = clip_range(op, target)
    return {
        "length": math.prod(source.shape), "multiplier": int(ratio.multiplier), "shift": int(ratio.shift),
        "sign": sign(source), "low": low, "high": high,
    }  # fmt: skip


def lookup(op: Lookup, target: IntegerTensor, length: int, inner: int) -> Fields:
    """`zb_lookup`."""
    table = op.table.astype(target.dtype).view(np.uint8).reshape(-1)
    return {
        "table": Constants("uint8_t", table), "length": length, "inner": inner if op.axis is not None else length,
        "tables": len(table) // 256,
    }  # fmt: skip


def pair(
    op: Add | Subtract | Multiply,
    left: IntegerTensor,
    right: IntegerTensor,
    target: IntegerTensor,
    counted: Sequence[Loop],
) -> Fields:
    """`zb_pair`."""
    if isinstance(op, Multiply):
        ratio = product_ratio(left, right, target)
        m_left, m_right, shift = int(ratio.multiplier), 0, int(ratio.shift)
    else:
        m_left, m_right, shift = sum_ratios(left, right, target)
    low, high = clip_range(op, target)
    return {
        "size": tuple(loop.size for loop in counted), "left_stride": tuple(loop.one for loop in counted),
        "right_stride": tuple(loop.other for loop in counted), "left_multiplier": m_left,
        "right_multiplier": -m_right if isinstance(op, Subtract) else m_right, "dims": len(counted), "shift": shift,
        "left_sign": sign(left), "right_sign": sign(right), "low": low, "high": high,
    }  # fmt: skip


def move(counted: Sequence[Loop]) -> Fields:
    """`zb_move`, but for where it starts."""
    return {
        "size": tuple(loop.size for loop in counted), "from_stride": tuple(loop.one for loop in counted),
        "to_stride": tuple(loop.other for loop in counted), "dims": len(counted),
    }  # fmt: skip


def sign(tensor: IntegerTensor) -> int:
    """What kernels subtract a flipped byte by."""
    return 128 if tensor.signed else 0
