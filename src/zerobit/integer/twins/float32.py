"""The twin of ONNX Runtime: float32 arithmetic as it fuses it.

ONNX Runtime 1.31, CPU provider, fused 8-bit graph, x86-64 with AVX2 and FMA. (On ARM its kernels round `Add`
and `Mean` in fixed point; this is not their twin.) Each operation below is one float32 operation; q is an
integer, acc an exact int32 accumulator with bias, s a scale, x and y stand for input and output, z for the
zero point in the file (128 for signed tensors, else 0):

    Quantize   rint(((x - mean) / std) / s_y)                          QuantizeLinear
    Conv       rint(float(acc) * ((s_x * s_w) / s_y))                  QLinearConv
    Linear     the same                                                QGemm
    logits     float(acc) * (s_x * s_w)                                QGemm; ConvInteger, Add, Cast, Mul
    Add        rint(fma(q_a + z_a, r_a, fma(q_b + z_b, r_b, z_y - (r_a * z_a + r_b * z_b)))) - z_y
               with r_a = s_a / s_y, r_b = s_b / s_y                   QLinearAdd
    Mean       rint(float(sum of q) * (s_x / (s_y * float(count))))    QLinearGlobalAveragePool
    AvgPool    rint((sum of float(q) * s_x, one by one, rows first) / float(count) / s_y + z_y) - z_y
                                                                       QLinearAveragePool
    Rescale    rint((float(q) * s_x) / s_y)                            DequantizeLinear, QuantizeLinear

then saturation. `walk` holds Quantize, which is the same for all runtimes. MaxPool, Concat, Pad and Reshape
run on the integers. Sources: onnxruntime's mlas/lib/intrinsics/avx2/qladd_avx2.cpp, mlas/lib/qlgavgpool.cpp,
contrib_ops/cpu/quantization/qlinear_pool.cc; tests/export compares each with `==`.

Shape legend: N batch, C channels, O output channels.
"""

from collections.abc import Mapping
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from zerobit.integer.accumulate import Array, pad_spatial, window_taps
from zerobit.integer.ir import AvgPool, Conv, IntegerGraph, IntegerTensor, Linear
from zerobit.integer.twins.run import run_twin
from zerobit.integer.walk import Feeds, Float32, Rule, to_real

Floats = Mapping[str, Array]


class OnnxRuntimeRule(Rule):
    """float32 as ONNX Runtime fuses it; formulas at the top of the file."""

    def requantize(
        self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor, target: IntegerTensor
    ) -> Array:
        """Multiply by one factor per channel, round half to even."""
        scaled = self._scale(op, sums, (source.step * op.weights.scale) / target.step)
        return np.rint(scaled, out=scaled)

    def logits(self, sums: NDArray[np.int32], op: Conv | Linear, source: IntegerTensor) -> Float32:
        """Multiply by one factor per channel."""
        return self._scale(op, sums, source.step * op.weights.scale)

    def _scale(self, op: Conv | Linear, sums: NDArray[np.int32], factor_O: Float32) -> Float32:
        scaled = sums.astype(np.float32)
        scaled *= factor_O.reshape(-1, *(1,) * (sums.ndim - 2)) if isinstance(op, Conv) else factor_O
        return scaled

    def add(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Two fused multiply-adds on the stored integers, zero points included."""
        zero_a, zero_b, zero_y = (np.float32(zero_point(tensor)) for tensor in (left, right, target))
        ratio_a, ratio_b = left.step / target.step, right.step / target.step
        fixed = np.asarray(zero_y - (ratio_a * zero_a + ratio_b * zero_b))
        partial = fused_multiply_add(b.astype(np.float32) + zero_b, ratio_b, fixed)
        return np.rint(fused_multiply_add(a.astype(np.float32) + zero_a, ratio_a, partial)) - zero_y

    def subtract(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """To real values, subtract, and back."""
        real = a.astype(np.float32) * left.step - b.astype(np.float32) * right.step
        return np.rint(real / target.step)

    def multiply(self, a: Array, b: Array, left: IntegerTensor, right: IntegerTensor, target: IntegerTensor) -> Array:
        """Multiply integers, then by one factor; the output zero point takes part in the rounding."""
        product = a.astype(np.float32) * b.astype(np.float32)
        zero = np.float32(zero_point(target))
        return np.rint(product * (left.step * right.step / target.step) + zero) - zero

    def mean(self, sums: NDArray[np.int32], count: int, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Multiply by one factor, round half to even."""
        return np.rint(sums.astype(np.float32) * (source.step / (target.step * np.float32(count))))

    def average(self, x: Array, op: AvgPool, source: IntegerTensor, target: IntegerTensor) -> Array:
        """Average real values; the output zero point takes part in the rounding."""
        real = pad_spatial(x.astype(np.float32) * source.step, op.padding)
        total = sum_taps(real, op)
        if op.count_include_pad:
            count = np.asarray(np.prod(op.kernel), np.float32)
        else:
            inside = np.ones((1, 1, *x.shape[2:]), np.float32)
            count = sum_taps(pad_spatial(inside, op.padding), op)
        zero = np.float32(zero_point(target))
        return np.rint(total / count / target.step + zero) - zero

    def rescale(self, x: Array, source: IntegerTensor, target: IntegerTensor) -> Array:
        """To real values and back."""
        return np.rint((x.astype(np.float32) * source.step) / target.step)


def zero_point(tensor: IntegerTensor) -> int:
    """Where ONNX files store the integer 0: all tensors are uint8 there, signed ones moved up by 128."""
    return 128 if tensor.signed else 0


def sum_taps(x: Array, op: AvgPool) -> Float32:
    """Sequential float32 sum over each window of a padded array, rows first."""
    total: Float32 | None = None
    for _, view in window_taps(x, op.kernel, op.stride, (1,) * len(op.kernel)):
        total = view.astype(np.float32) if total is None else total + view.astype(np.float32)
    assert total is not None  # a kernel has at least one position
    return total


def fused_multiply_add(a: Float32, b: np.float32, c: Float32) -> Float32:
    """float32 a * b + c, rounded once.

    The product of two float32 is exact in float64; the sum is rounded to odd there (Boldo and Melquiond
    2008), so that rounding it to float32 is the only rounding that counts.
    """
    product = a.astype(np.float64) * np.float64(b)
    addend = c.astype(np.float64)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)  # TwoSum: exactly what `total` lacks
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return odd.astype(np.float32)


@overload
def run_float32(
    graph: IntegerGraph, x: Feeds, keep: Literal[False] = False, batch_size: int = 64, floats: Floats | None = None
) -> tuple[Array, ...]: ...
@overload
def run_float32(
    graph: IntegerGraph, x: Feeds, keep: Literal[True], batch_size: int = 64, floats: Floats | None = None
) -> dict[str, Array]: ...
def run_float32(
    graph: IntegerGraph, x: Feeds, keep: bool = False, batch_size: int = 64, floats: Floats | None = None
) -> tuple[Array, ...] | dict[str, Array]:
    """Run the twin of ONNX Runtime.

    Args:
        graph: a valid graph.
        x: [N, *shape], or one such array per graph input by name.
        keep: return the integers of every tensor instead of the outputs.
        batch_size: images at a time; bounds memory, changes no result.
        floats: what to take for the float tensors that islands make, for all of `x` at once; torch computes them
            if None.

    Returns:
        One array [N, *shape] per graph output, as the exported file returns them, float32 but for what islands
        make of integers; with `keep` a dict of all tensors, int8 or uint8, logits float32.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
    """
    values = run_twin(graph, OnnxRuntimeRule(), x, keep=keep, batch_size=batch_size, floats=floats)
    if keep:
        return values
    return tuple(to_real(values[name], graph.by_name[name]) for name in graph.outputs)
