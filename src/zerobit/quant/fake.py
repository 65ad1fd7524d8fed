"""Fake quantisation: integers times a step, with gradients for values, steps and precision choices.

Shape legend: x is [C, K] (weights: channels by the rest) or any shape with C = 1 (activations: one step per tensor);
P precisions. All functions are exact in what the integer network will compute: step * clamp(round(x / step)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def quantize(x: Tensor, step: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Integers clamp(round(x / step), low, high), as floats; ties to even."""
    return torch.clamp(
        torch.round(x / step), torch.as_tensor(low, device=x.device), torch.as_tensor(high, device=x.device)
    )


class _PrecisionMixture(torch.autograd.Function):
    """sum_p choice[c, p] * Q_p(x[c]), keeping one copy of x; quantised copies are made anew in the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, choice: Tensor, step: Tensor, low: Tensor, high: Tensor, learned: bool) -> Tensor:
        del learned
        out = torch.zeros_like(x)
        for p in range(choice.shape[1]):
            s = step[:, p, None]
            out = out + choice[:, p, None] * s * torch.clamp(torch.round(x / s), low[p], high[p])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, choice, step, low, high, learned = inputs
        ctx.save_for_backward(x, choice, step, low, high)
        ctx.learned = learned

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, choice, step, low, high = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_choice, grad_step = [], []
        for p in range(choice.shape[1]):
            s = step[:, p, None]
            v = x / s
            q = torch.clamp(torch.round(v), low[p], high[p])
            inside = (v >= low[p]) & (v <= high[p])
            grad_choice.append((grad * q).sum(1) * step[:, p])
            grad_step.append((grad * (q - v * inside)).sum(1) * choice[:, p])
            grad_x = grad_x + choice[:, p, None] * grad * inside
        if not ctx.learned:  # the paper's quantizer: identity to x for every precision, the 0-bit one included
            return grad, torch.stack(grad_choice, 1), None, None, None, None
        return grad_x, torch.stack(grad_choice, 1), torch.stack(grad_step, 1), None, None, None


def mix_precisions(
    x: Tensor, choice: Tensor, step: Tensor, low: Tensor, high: Tensor, *, learned: bool = True
) -> Tensor:
    """Effective weight: the sum over precisions of choice times quantised copy.

    Args:
        x: [C, K].
        choice: [C, P], not necessarily summing to 1: what is missing is the 0-bit share.
        step: [C, P], positive.
        low: [P], lowest level of each precision.
        high: [P], highest.
        learned: gradients of LSQ (Esser et al., ICLR 2020) for step and clipped values. Otherwise the straight-through
            form of Motetti et al. (IEEE TC 2024): identity for x, none for the step.

    Returns:
        [C, K]. The gradient of choice[c, p] is the inner product of the upstream gradient with Q_p(x[c]).
    """
    return _PrecisionMixture.apply(x, choice, step, low, high, learned)


class _FakeQuantize(torch.autograd.Function):
    """One step for the whole tensor; keeps input and output, which their neighbours keep anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        y = (x * step.reciprocal()).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, y, step)
        ctx.low, ctx.high = low, high
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, y, step = ctx.saved_tensors
        size = float(step)
        # one pass; a mask and a product take five times as long
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, ctx.low * size, ctx.high * size)
        # d y / d step is q - x / step inside and q where clipped: two inner products, no further pass
        along = _inner(grad, y) - _inner(grad_x, x)
        return grad_x, (along / step).reshape(step.shape), None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product without the copy that flattening a channels_last tensor would make; in float32 at least."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last) and a.stride() == b.stride():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    a, b = a.reshape(-1), b.reshape(-1)
    if a.element_size() < 4:  # a step's gradient is the difference of two nearly equal ones
        a, b = a.float(), b.float()
    return torch.dot(a, b)


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Step * clamp(round(x / step), low, high) for one step, with the gradients of LSQ (Esser et al., ICLR 2020).

    Args:
        x: any shape.
        step: one positive number.
        low: lowest level.
        high: highest level.
    """
    return _FakeQuantize.apply(x, step, low, high)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Value of `hard`, gradient of `soft`."""
    return hard + (soft - soft.detach())
