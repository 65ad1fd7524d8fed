"""The twin of TFLite Micro: gemmlowp's fixed point, 31-bit multipliers, rounded twice.

The reference kernels of TFLite for int8, as TFLite Micro builds them without a vendor's library. q is an integer, acc
an exact int32 accumulator with bias, s a scale, x and y stand for input and output. A ratio in float64 becomes a
multiplier m in 2^30..2^31 - 1 with a shift e (`multiplier`), and a result is

    scaled(v) = halves_away(halves_up(v * 2^max(e, 0) * m / 2^31) / 2^max(-e, 0))

then saturation: `halves_up` rounds ties up, `halves_away` away from zero.

    Conv, Linear    scaled(acc)             ratio (s_x * s_w) / s_y                 CONV_2D, DEPTHWISE_CONV_2D,
                                                                                    FULLY_CONNECTED
    Add, Subtract   scaled(a +- b)          ratio 2 max(s_a, s_b) / (2^20 * s_y)    ADD, SUB
                    a = scaled(q_a * 2^20)  ratio s_a / (2 max(s_a, s_b)); b alike
    Multiply        scaled(q_a * q_b)       ratio s_a * s_b / s_y                   MUL
    Mean            scaled(sum of q)        m / count rounded down, of s_x / s_y    MEAN
    AvgPool         scaled(sum of q)        ratio s_x * float32(1 / count) / s_y    DEPTHWISE_CONV_2D of ones
    Rescale         scaled(q)               ratio s_x / s_y                         QUANTIZE

AVERAGE_POOL_2D can't change the scale, and would round twice; a convolution with ones sums exactly. Logits are int8:
the graph's float tensors must have been given a scale. Sources: gemmlowp's fixedpoint/fixedpoint.h; TFLite's
kernels/internal/quantization_util.cc and kernels/internal/reference; tests/export compares each with `==`.

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
_INT32_MAX = 2**31 - 1
#: Bits by which the operands of a sum are moved up (TFLite's add_common.cc for int8).
_SUM_BITS = 20


@dataclass(frozen=True, eq=False)
class Multiplier:
    """Ratios as integers: `ratio` is about `multiplier / 2^31 * 2^shift`.

    Attributes:
        multiplier: int64 [...], 2^30..2^31 - 1, or 0 where the ratio is below 2^-32.
        shift: int64 [...], -31 or more.
    """

    multiplier: Ints
    shift: Ints

    def __call__(self, x: Array) -> Ints:
        """Integers times the ratio, rounded to 31 fraction bits and then again to none; shapes broadcast.

        Args:
            x: at most 32 bits once shifted left by `shift`.
        """
        shifted = x.astype(np.int64) << np.maximum(self.shift, 0)
        return halves_away(halves_up(shifted * self.multiplier), np.maximum(-self.shift, 0))

    def reshape(self, *shape: int) -> "Multiplier":
        """The same ratios in another shape."""
        return Multiplier(self.multiplier.reshape(shape), self.shift.reshape(shape))

    def fits(self, bound: ArrayLike) -> bool:
        """Whether magnitudes up to `bound` stay within int32 once shifted left."""
        bits = np.maximum(self.shift, 0)
        return bool((bits < 32).all() and (np.asarray(bound, np.int64) << np.minimum(bits, 32)).max() <= _INT32_MAX)


def halves_up(product: Ints) -> Ints:
    """The nearest integer to product / 2^31, ties up: gemmlowp's SaturatingRoundingDoublingHighMul."""
    return np.asarray((product + (1 << 30)) >> 31, np.int64)


def halves_away(x: Ints, exponent: Ints) -> Ints:
    """The nearest integer to x / 2^exponent, ties away from zero: gemmlowp's RoundingDivideByPOT."""
    mask = (np.int64(1) << exponent) - 1
    return np.asarray((x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0)), np.int64)


def multiplier(ratio: ArrayLike) -> Multiplier:
    """Round ratios to 31 bits: TFLite's QuantizeMultiplier.

    Args:
        ratio: float64 [...], positive.
    """
    fraction, exponent = np.frexp(np.asarray(ratio, np.float64))
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carried = mantissa == 2**31
    mantissa, shift = np.where(carried, 2**30, mantissa), exponent.astype(np.int64) + carried
    vanishes = shift < -31
    return Multiplier(np.where(vanishes, 0, mantissa), np.where(vanishes, 0, shift))


def _checked(result: Multiplier, bound: ArrayLike, name: str) -> Multiplier:
    """The multiplier, proven not to overflow."""
    if not result.fits(bound):
        msg = (
            f"TFLite Micro multiplies the integers of {name!r} by {2.0 ** int(result.shift.max()):.3g}, where "
            f"{int(np.max(bound))} leaves 32 bits; bring the scales of its input and output closer, or use ONNX"
        )
        raise FormatError(msg)
    return result


def layer_multiplier(op: Conv | Linear, source: IntegerTensor, target: IntegerTensor) -> Multiplier:
    """[O], from accumulators to output integers.

    Raises:
        FormatError: an accumulator could overflow; names the layer.
    """
    scale = np.float64(source.step) * op.weights.scale.astype(np.float64)
    return _checked(multiplier(scale / np.float64(target.step)), accumulator_bound(op.weights, source), op.output)


def rescale_multiplier(source: IntegerTensor, target: IntegerTensor) -> Multiplier:
    """From integers on one scale to another.

    Raises:
        FormatError: an integer could overflow; names the tensor.
    """
    return _checked(multiplier(np.float64(source.step) / np.float64(target.step)), _largest(source), target.name)


def product_multiplier(left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Multiplier:
    """From products of two integers to output integers.

    Raises:
        FormatError: a product could overflow; names the tensor.
    """
    ratio = np.float64(left.step) * np.float64(right.step) / np.float64(target.step)
    return _checked(multiplier(ratio), _largest(left) * _largest(right), target.name)


def mean_multiplier(count: int, source: IntegerTensor, target: IntegerTensor) -> Multiplier:
    """From sums of `count` integers to their mean, all of a tensor's spatial positions.

    Raises:
        FormatError: a sum could overflow; names the tensor.
    """
    whole = multiplier(np.float64(source.step) / np.float64(target.step))
    shift = min(count.bit_length() - 1, 32, 31 + int(whole.shift))
    result = Multiplier((whole.multiplier << shift) // count, whole.shift - shift)
    return _checked(result, count * _largest(source), target.name)


def window_scale(count: ArrayLike) -> NDArray[np.float32]:
    """float32 [...], the scale of the ones that sum a window of `count` integers to their mean."""
    return np.asarray(np.float32(1) / np.asarray(count, np.float32), np.float32)


def window_multiplier(count: ArrayLike, source: IntegerTensor, target: IntegerTensor) -> Multiplier:
    """From sums of `count` integers to their mean, of a window.

    Raises:
        FormatError: a sum could overflow; names the tensor.
    """
    scale = np.float64(source.step) * window_scale(count).astype(np.float64)
    bound = np.asarray(count, np.int64) * _largest(source)
    return _checked(multiplier(scale / np.float64(target.step)), bound, target.name)


def sum_multipliers(
    left: IntegerTensor, right: IntegerTensor, target: IntegerTensor
) -> tuple[Multiplier, Multiplier, Multiplier]:
    """Of the left operand, the right one and the result.

    Raises:
        FormatError: the result would have to be multiplied by 1 or more; names the tensor.
    """
    steps = [np.float64(tensor.step) for tensor in (left, right, target)]
    twice = 2 * max(steps[:2])
    one, other = (multiplier(step / twice) for step in steps[:2])
    result = multiplier(twice / ((1 << _SUM_BITS) * steps[2]))
    if int(result.shift) > 0:
        msg = (
            f"TFLite Micro adds to {target.name!r} on steps 2^{_SUM_BITS} times as fine as its inputs'; its own step "
            f"{target.step:.3g} is finer still, next to {max(left.step, right.step):.3g}; use ONNX"
        )
        raise FormatError(msg)
    return one, other, result


def _largest(tensor: IntegerTensor) -> int:
    return max(-tensor.low, tensor.high)


class GemmlowpRule(Rule):
    """TFLite Micro; formulas at the top of the file."""

    def requantize(
        self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor, target: IntegerTensor
    ) -> Array:
        """One ratio per channel."""
        ratio = layer_multiplier(op, source, target)
        return (ratio.reshape(-1, *(1,) * (sums.ndim - 2)) if isinstance(op, Conv) else ratio)(sums)

    def logits(self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor) -> Array:
        """There are none.

        Raises:
            FormatError: always; names the layer.
        """
        msg = f"`scale` of {op.output!r} is None, but TFLite has int8 logits; call `integer_logits` on the graph first"
        raise FormatError(msg)

    def add(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Three roundings: of each operand, and of the sum."""
        one, other, result = sum_multipliers(left, right, target)
        return result(one(_moved_up(a)) + other(_moved_up(b)))

    def subtract(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Three roundings: of each operand, and of the difference."""
        one, other, result = sum_multipliers(left, right, target)
        return result(one(_moved_up(a)) - other(_moved_up(b)))

    def multiply(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """The product times one ratio."""
        return product_multiplier(left, right, target)(a.astype(np.int64) * b.astype(np.int64))

    def mean(self, sums: NDArray[np.int32], count: int, source: IntegerTensor, target: IntegerTensor) -> Array:
        """The sum times one ratio."""
        return mean_multiplier(count, source, target)(sums)

    def average(self, x: Array, op: AvgPool, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Exact sums times a ratio for each number of inputs in a window."""
        return window_multiplier(window_inputs(op, x.shape[2:]), source, target)(_window_sums(x, op))

    def rescale(self, x: Array, source: IntegerTensor, target: IntegerTensor) -> Array:
        """One ratio."""
        return rescale_multiplier(source, target)(x)


def _moved_up(x: Array) -> Ints:
    return x.astype(np.int64) << _SUM_BITS


def window_inputs(op: AvgPool, sizes: tuple[int, ...]) -> Ints:
    """What the sum of each window is divided by.

    Args:
        op: the pool.
        sizes: of the spatial dimensions of its input.

    Returns:
        int64 [1, 1, *windows], or a scalar where all are equal; 1 for a window without inputs.
    """
    if op.count_include_pad or not any(side for pair in op.padding for side in pair):
        return np.asarray(math.prod(op.kernel), np.int64)
    return np.maximum(_window_sums(np.ones((1, 1, *sizes), np.uint8), op), 1)


def _window_sums(x: Array, op: AvgPool) -> Ints:
    padded = pad_spatial(x.astype(np.int64), op.padding)
    taps = window_taps(padded, op.kernel, op.stride, (1,) * len(op.kernel))
    return np.asarray(np.sum([view for _, view in taps], axis=0), np.int64)


def run_gemmlowp(graph: IntegerGraph, x: Feeds, keep: bool = False, batch_size: int = 64) -> dict[str, Array]:
    """Run the twin of TFLite Micro.

    Args:
        graph: a valid graph without islands and without float logits.
        x: [N, *shape], or one such array per graph input by name.
        keep: return every tensor, and not only the outputs.
        batch_size: images at a time.

    Returns:
        Integers [N, *shape] by tensor name: int8 or uint8.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
        FormatError: scales so far apart that the runtime would overflow, or float logits.
    """
    return run_twin(graph, GemmlowpRule(), x, keep=keep, batch_size=batch_size)
