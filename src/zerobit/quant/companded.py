"""Quantisation with a learned range, step and exponent (Wang, Lu, Blankevoort, DJPQ, ECCV 2020).

Values are companded, then rounded uniformly, and not expanded again: y = sign(x) * d * round(u / d) with
u = min(|x|, q)^t, step d, range q and exponent t. Integers times d are all that hardware sees; the exponent is gone
once weights are stored.
Shape legend: x is [C, K]; d, q and t are [C] or [1].
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Least magnitude that a logarithm is taken of.
_TINY = 1e-8
#: The slope t * |x|^(t - 1) has no bound near 0 where t < 1; a larger one is taken for this.
MAX_SLOPE = 4.0


def compand(x: Tensor, limit: Tensor, exponent: Tensor) -> Tensor:
    """sign(x) * min(|x|, limit)^exponent.

    Args:
        x: [C, K].
        limit: the range q, [C] or [1], positive.
        exponent: t, [C] or [1].
    """
    return torch.sign(x) * torch.minimum(x.abs(), limit[:, None]).pow(exponent[:, None])


class _CompandedQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor) -> Tensor:
        ctx.save_for_backward(x, step, limit, exponent)
        d = step[:, None]
        return d * torch.round(compand(x, limit, exponent) / d)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, ...]:
        (grad,) = grad_outputs
        x, step, limit, exponent = ctx.saved_tensors
        d, q, t = step[:, None], limit[:, None], exponent[:, None]
        signed = grad * torch.sign(x)
        magnitude = x.abs()
        inside = magnitude < q
        u = torch.minimum(magnitude, q).pow(t)
        slope = (t * magnitude.clamp_min(_TINY).pow(t - 1)).clamp_max(MAX_SLOPE)
        of_step = signed * (torch.round(u / d) - u / d)
        of_limit = signed * ~inside * t * q.pow(t - 1)
        of_exponent = signed * u * torch.minimum(magnitude, q).clamp_min(_TINY).log()
        return (
            grad * inside * slope,
            _sum_to(of_step, step),
            _sum_to(of_limit, limit),
            _sum_to(of_exponent, exponent),
        )


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """[C] or [1]."""
    return values.sum(1) if len(like) == len(values) else values.sum().reshape(1)


def companded_quantize(x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor) -> Tensor:
    """sign(x) * d * round(min(|x|, q)^t / d) with the gradients of DJPQ.

    With the straight-through estimator for the rounding, r = round(u / d) - u / d and s = sign(x):
    of d it is s * r; of q it is s * t * q^(t - 1) where clipped, else 0; of t it is s * u * ln(min(|x|, q)); of x it is
    t * |x|^(t - 1), at most `MAX_SLOPE`, inside the range and 0 where clipped.

    Args:
        x: [C, K].
        step: d, [C] or [1], positive.
        limit: q, [C] or [1], positive.
        exponent: t, [C] or [1].

    Returns:
        [C, K].
    """
    return _CompandedQuantize.apply(x, step, limit, exponent)


class _ClippedQuantize(torch.autograd.Function):
    """The same for an activation, with t = 1 and one step and range; keeps the input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, limit: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(x, step, limit)
        ctx.bounds = (-float(limit) - float(step) if signed else 0.0), float(limit)
        ctx.signed = signed
        return x.clamp(*ctx.bounds).mul_(step.reciprocal()).round_().mul_(step)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, step, limit = ctx.saved_tensors
        low, high = ctx.bounds
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        # sums of rounding errors: half precision would leave nothing of them
        wide = torch.promote_types(grad.dtype, torch.float32)
        grad, u = grad.to(wide), x.to(wide).clamp(low, high) / step.to(wide)
        above = (grad * (x >= high)).sum()
        below = (grad * (x <= low)).sum() if ctx.signed else torch.zeros_like(above)
        of_step = (grad * (u.round() - u)).sum() - below
        return grad_x, of_step.to(step).reshape(step.shape), (above - below).to(limit).reshape(limit.shape), None


def clipped_quantize(x: Tensor, step: Tensor, limit: Tensor, *, signed: bool) -> Tensor:
    """Clamp to low..q and round to multiples of d, with the gradients of `companded_quantize` at t = 1.

    The lowest value is 0, or -(q + d): signed activations use the lowest level of two's complement.

    Args:
        x: any shape.
        step: d, one positive number.
        limit: q, one positive number.
        signed: whether values can be negative.
    """
    return _ClippedQuantize.apply(x, step, limit, signed)
