"""The twin of fixed-point runtimes: 31-bit multipliers, one rounding, no float after the input.

q is an integer, acc an exact int32 accumulator with bias, s a scale, x and y stand for input and output. Every
result is floor((sum of integer * multiplier + 2^(shift - 1)) / 2^shift), that is round half up, then saturation:

    Conv, Linear   acc         ratio (s_x * s_w) / s_y
    logits         acc         ratio (s_x * s_w) / `logit_scale`; int32, one scale for all channels
    Add, Subtract  q_a, q_b    ratios s_a / s_y and s_b / s_y on one shift
    Multiply       q_a * q_b   ratio (s_a * s_b) / s_y
    Mean, AvgPool  sum of q    ratio s_x / (s_y * count)
    Rescale        q           ratio s_x / s_y

A ratio is computed in float64 and becomes a multiplier in 2^30..2^31 - 1 with its shift (`fixed_point`). Scheme:
Jacob et al., CVPR 2018, section 2.2, with a single rounding. tests/export compares C code with it by `==`.

Shape legend: N batch, C channels, O output channels.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zerobit.errors import FormatError
from zerobit.integer.accumulate import Array, pad_spatial, window_taps
from zerobit.integer.ir import AvgPool, Conv, IntegerGraph, IntegerTensor, Linear, accumulator_bound
from zerobit.integer.twins.run import run_twin
from zerobit.integer.walk import Feeds, Rule

Ints = NDArray[np.int64]
#: Largest shift: a product of int32 and a multiplier keeps within int64 after half a unit is added.
_MAX_SHIFT = 62
#: Shifts of a sum of two tensors, so that 32-bit kernels can work on the operands moved up by 20 bits.
PAIR_SHIFTS = (13, 42)
#: Largest magnitude of int32 logits, as a power of two.
_LOGIT_BITS = 28


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Ratios as integers: `ratio` is about `multiplier / 2^shift`.

    Attributes:
        multiplier: int64 [...], below 2^31.
        shift: int64 [...], 1..62.
    """

    multiplier: Ints
    shift: Ints

    def __call__(self, x: Array) -> Ints:
        """Integers times the ratio, rounded half up; shapes broadcast.

        Args:
            x: at most 32 bits.
        """
        product = x.astype(np.int64) * self.multiplier
        return np.asarray((product + (np.int64(1) << (self.shift - 1))) >> self.shift, np.int64)

    def reshape(self, *shape: int) -> "FixedPoint":
        """The same ratios in another shape."""
        return FixedPoint(self.multiplier.reshape(shape), self.shift.reshape(shape))


def fixed_point(ratio: ArrayLike) -> FixedPoint:
    """Round ratios to 31 bits.

    Args:
        ratio: float64 [...], positive.

    Raises:
        FormatError: a ratio of 2^30 or more.
    """
    values = np.asarray(ratio, np.float64)
    shift = np.minimum(31 - np.frexp(values)[1].astype(np.int64), _MAX_SHIFT)
    multiplier = np.rint(np.ldexp(values, shift)).astype(np.int64)
    carried = multiplier == 2**31
    multiplier, shift = np.where(carried, 2**30, multiplier), shift - carried
    if shift.min() < 1:
        msg = f"the ratio of two scales is {values.max():.3g}; fixed point allows less than 2^30; check the ranges"
        raise FormatError(msg)
    return FixedPoint(multiplier, shift)


def paired(left: float, right: float) -> tuple[int, int, int]:
    """Two ratios on one shift: (left multiplier, right multiplier, shift).

    Raises:
        FormatError: a ratio of 2^18 or more.
    """
    low, high = PAIR_SHIFTS
    shift = min(31 - math.frexp(max(left, right))[1], high)
    if round(math.ldexp(max(left, right), shift)) == 2**31:
        shift -= 1
    if shift < low:
        msg = f"the ratio of two scales in a sum is {max(left, right):.3g}; fixed point allows less than 2^18"
        raise FormatError(msg)
    return round(math.ldexp(left, shift)), round(math.ldexp(right, shift)), shift


def layer_ratio(op: Conv | Linear, source: IntegerTensor, target: IntegerTensor) -> FixedPoint:
    """[O], from accumulators to output integers, or to int32 logits."""
    scale = np.float64(source.step) * op.weights.scale.astype(np.float64)
    return fixed_point(scale / (logit_scale(op, source) if target.is_float else np.float64(target.step)))


def logit_scale(op: Conv | Linear, source: IntegerTensor) -> float:
    """The one scale of int32 logits: a power of two, as fine as the largest possible logit allows."""
    scale = np.float64(source.step) * op.weights.scale.astype(np.float64)
    largest = (np.maximum(accumulator_bound(op.weights, source), 1) * scale).max()
    return math.ldexp(1.0, math.frexp(float(largest))[1] - _LOGIT_BITS)


def mean_ratio(count: ArrayLike, source: IntegerTensor, target: IntegerTensor) -> FixedPoint:
    """From sums of `count` integers to their mean."""
    return fixed_point(np.float64(source.step) / (np.float64(target.step) * np.asarray(count, np.float64)))


def product_ratio(left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> FixedPoint:
    """From products of two integers to output integers."""
    return fixed_point(np.float64(left.step) * np.float64(right.step) / np.float64(target.step))


def sum_ratios(left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> tuple[int, int, int]:
    """From two integers to their sum: (left multiplier, right multiplier, shift)."""
    return paired(*(float(np.float64(t.step) / np.float64(target.step)) for t in (left, right)))


class FixedPointRule(Rule):
    """31-bit fixed point; formulas at the top of the file."""

    def requantize(
        self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor, target: IntegerTensor
    ) -> Array:
        """One ratio per channel."""
        ratio = layer_ratio(op, source, target)
        return (ratio.reshape(-1, *(1,) * (sums.ndim - 2)) if isinstance(op, Conv) else ratio)(sums)

    def logits(self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor) -> Array:
        """int32 on one scale."""
        return self.requantize(sums, op, source, IntegerTensor("logits", (1,), None)).astype(np.int32)

    def add(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Two ratios, one rounding."""
        m_a, m_b, shift = sum_ratios(left, right, target)
        return (a.astype(np.int64) * m_a + b.astype(np.int64) * m_b + (1 << (shift - 1))) >> shift

    def subtract(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Two ratios, one rounding."""
        m_a, m_b, shift = sum_ratios(left, right, target)
        return (a.astype(np.int64) * m_a - b.astype(np.int64) * m_b + (1 << (shift - 1))) >> shift

    def multiply(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """The product times one ratio."""
        return product_ratio(left, right, target)(a.astype(np.int64) * b.astype(np.int64))

    def mean(self, sums: NDArray[np.int32], count: int, source: IntegerTensor, target: IntegerTensor) -> Array:
        """The sum times one ratio."""
        return mean_ratio(count, source, target)(sums)

    def average(self, x: Array, op: AvgPool, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Exact sums times a ratio for each number of inputs in a window."""
        count = math.prod(op.kernel)
        if op.count_include_pad:
            return mean_ratio(count, source, target)(_window_sums(x, op))
        inside = _window_sums(np.ones((1, 1, *x.shape[2:]), np.uint8), op)
        return mean_ratio(np.maximum(inside, 1), source, target)(_window_sums(x, op))

    def rescale(self, x: Array, source: IntegerTensor, target: IntegerTensor) -> Array:
        """One ratio."""
        return mean_ratio(1, source, target)(x)


def _window_sums(x: Array, op: AvgPool) -> Ints:
    padded = pad_spatial(x.astype(np.int64), op.padding)
    taps = window_taps(padded, op.kernel, op.stride, (1,) * len(op.kernel))
    return np.asarray(np.sum([view for _, view in taps], axis=0), np.int64)


def run_fixed31(graph: IntegerGraph, x: Feeds, keep: bool = False, batch_size: int = 64) -> dict[str, Array]:
    """Run the twin of fixed-point runtimes.

    Args:
        graph: a valid graph without islands.
        x: [N, *shape], or one such array per graph input by name.
        keep: return every tensor, and not only the outputs.
        batch_size: images at a time.

    Returns:
        Integers [N, *shape] by tensor name: int8, uint8, int32 for logits.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
        FormatError: scales so far apart that no 31-bit multiplier connects them.
    """
    return run_twin(graph, FixedPointRule(), x, keep=keep, batch_size=batch_size)
