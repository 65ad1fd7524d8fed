"""Widths that follow from a learned range and step: as many bits as it takes to count the steps in the range.

Wang, Lu, Blankevoort, "Differentiable Joint Pruning and Quantization for Hardware Efficiency", ECCV 2020 (DJPQ).
Learning range and step has gradients of bounded size, which learning the width itself has not (Uhlich et al., "Mixed
Precision DNNs: All you need is a good parametrization", ICLR 2020).
Shape legend: a weight is [C, K]; steps are [R], R = C or 1 for one step per tensor; W widths on offer.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from zerobit.bits import blend
from zerobit.formats import Format
from zerobit.quant.companded import clipped_quantize, compand, companded_quantize
from zerobit.quant.fake import fake_quantize, straight_through
from zerobit.quant.ranges import least_squares_step
from zerobit.quant.slot import AbstractActivationSlot
from zerobit.search.widths.base import (
    AbstractWeightQuantizer,
    AbstractWidthChoice,
    charged_shares,
    closeness,
    nearest,
)

Restriction = Literal["none", "integer", "power_of_two"]
RESTRICTIONS: tuple[Restriction, ...] = ("none", "integer", "power_of_two")
#: An exponent outside makes a distribution too flat or too sharp to be of use, and its powers too large.
EXPONENTS = (0.5, 2.0)
#: A range stays within this factor of where it started.
_RANGE_FACTOR = 1000.0


class CompandedRange(nn.Module):
    """A range q and an exponent t; companded values end at q^t.

    Args:
        limit: q at the start, [R], positive.
        learns_exponent: whether t is learned, or 1.
    """

    start: Tensor
    exponent: Tensor

    def __init__(self, limit: Tensor, *, learns_exponent: bool) -> None:
        super().__init__()
        self.log_range = nn.Parameter(limit.detach().log())
        exponent = torch.ones_like(limit)
        if learns_exponent:
            self.exponent = nn.Parameter(exponent)
        else:
            self.register_buffer("exponent", exponent)
        self.register_buffer("start", self.log_range.detach().clone())

    def log_limit(self) -> Tensor:
        """[R], ln q."""
        bound = math.log(_RANGE_FACTOR)
        return torch.clamp(self.log_range, self.start - bound, self.start + bound)

    def power(self) -> Tensor:
        """[R], t."""
        return self.exponent.clamp(*EXPONENTS)

    def log_span(self) -> Tensor:
        """[R], ln(q^t), the range of companded values."""
        return self.power() * self.log_limit()

    @torch.no_grad()
    def fit(self, limit: Tensor) -> None:
        """Start from a range, [R], in place."""
        self.log_range.copy_(limit.log())
        self.start.copy_(self.log_range)

    @torch.no_grad()
    def project(self) -> None:
        """Back to values of use, in place: outside, a gradient has no way back."""
        self.log_range.copy_(self.log_limit())
        self.exponent.copy_(self.power())


class StepWidth(AbstractWidthChoice):
    """A learned step in a learned range; the width is the real number of bits that counts the steps.

    Args:
        channels: rows of the result.
        widths: the W widths offered.
        within: the range.
        sign_bits: 1 where values can be negative, else 0.
        restrict: "none" trains with the step as it is, "integer" with that of the nearest width on offer,
            "power_of_two" with that of the nearest by its logarithm.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], within: CompandedRange, sign_bits: int, restrict: Restriction
    ) -> None:
        rows = len(within.log_range)
        super().__init__(channels, widths, "softmax" if restrict == "none" else "hard", per_layer=rows < channels)
        self.within, self.sign_bits, self.restrict = within, sign_bits, restrict
        self.log_step = nn.Parameter(torch.zeros(rows))
        self.start_at(max(widths))

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """Start from a width, or the nearest on offer, in place."""
        self.log_step.copy_(self.within.log_span() - self._log_levels(nearest(self.widths, bits)))

    @torch.no_grad()
    def project(self) -> None:
        """Back to widths on offer, in place: outside, a gradient has no way back."""
        self.within.project()
        self.log_step.copy_(self._log_step())

    def bits(self) -> Tensor:
        """[R], log2(q^t / d + 1), and a sign bit: real, from the narrowest to the widest width."""
        return torch.log2((self.within.log_span() - self._log_step()).exp() + 1) + self.sign_bits

    def step(self) -> Tensor:
        """[R], the step that training uses; gradients as if it were the learned one."""
        step = self._log_step().exp()
        return step if self.restrict == "none" else straight_through(self._step_at(self.hard_bits()).detach(), step)

    def steps(self) -> Tensor:
        """[R, W], steps that divide the range into the levels of each width."""
        return torch.stack([self._step_at(torch.tensor(w)) for w in self.widths], 1)

    def hard_bits(self) -> Tensor:
        """[R], int64, the nearest width on offer."""
        return torch.tensor(self.widths, device=self.log_step.device)[self._preference().argmax(1)]

    def probability(self, *, noise: bool = False) -> Tensor:
        """[channels, W], shares of the two neighbours of the real width, with an even slope: only costs see them."""
        del noise
        bits = self.bits()
        shares = blend(bits.detach().clamp(self.widths[0], self.widths[-1]), self.widths)
        # the slope is of the width as it is: rounding leaves some of the widest ones a hair outside
        return charged_shares(shares, bits, self.widths).expand(self.channels, -1)

    def hard(self) -> Tensor:
        """[channels, W], one-hot at the nearest width."""
        best = self._preference().argmax(1)
        return nn.functional.one_hot(best, len(self.widths)).expand(self.channels, -1)

    def preference(self) -> Tensor:
        """[channels, W], the less the farther a width is from the real one, as logarithms."""
        return self._preference().expand(self.channels, -1)

    def _preference(self) -> Tensor:
        offered = torch.tensor(self.widths, dtype=torch.float64, device=self.log_step.device)
        bits = self.bits().detach().double()
        if self.restrict == "power_of_two":
            offered, bits = offered.log2(), bits.log2()
        return closeness(bits, offered)

    def _log_step(self) -> Tensor:
        span, low, high = self.within.log_span(), self._log_levels(self.widths[0]), self._log_levels(self.widths[-1])
        return torch.clamp(self.log_step, span - high, span - low)

    def _log_levels(self, bits: int) -> float:
        return math.log(2 ** (bits - self.sign_bits) - 1)

    def _step_at(self, bits: Tensor) -> Tensor:
        """[R], steps at a width."""
        levels = torch.pow(2.0, (bits - self.sign_bits).double()) - 1
        return self.within.log_span().exp() / levels.to(self.log_step)


class RangeQuantizer(AbstractWeightQuantizer):
    """A weight with a learned range, exponent and step, for the tensor or for each channel.

    It starts with the largest weight as its range, as published. That is far too wide for a start from few bits, where
    the range is that of least squared error.

    Args:
        w_CK: the trained weight.
        widths: offered.
        restrict: see `StepWidth`.
        per_channel: whether each channel has a range, exponent and step of its own.
        learns_exponent: whether the exponent is learned, or 1.
    """

    fitted: Tensor

    def __init__(
        self, w_CK: Tensor, widths: Sequence[int], restrict: Restriction, *, per_channel: bool, learns_exponent: bool
    ) -> None:
        super().__init__(len(w_CK), widths, full_range=False, per_layer=not per_channel and len(w_CK) > 1)
        rows = (w_CK if per_channel else w_CK.reshape(1, -1)).detach()
        largest = rows.abs().amax(1)
        is_zero, one = largest == 0, torch.ones_like(largest)
        within = CompandedRange(torch.where(is_zero, one, largest), learns_exponent=learns_exponent)
        self.choice = StepWidth(len(w_CK), widths, within, 1, restrict)
        high = [2 ** (bits - 1) - 1 for bits in widths]
        fitted = torch.stack([torch.where(is_zero, one, h * least_squares_step(rows, -h, h)) for h in high])
        self.register_buffer("fitted", fitted, persistent=False)

    def forward(self, w_CK: Tensor, factor: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
        """Companded and rounded; in evaluation at the nearest width on offer."""
        assert shares is None
        if not self.training:
            return self.quantized(w_CK, self.choice.hard_bits().expand(self.channels), factor)
        within = self.choice.within
        found = companded_quantize(w_CK, self.choice.step(), within.log_limit().exp(), within.power())
        return found if factor is None else found * factor[:, None].to(found)

    def distribution(self, *, hard: bool) -> Tensor:
        """Of range and step."""
        return self.choice.view(hard=hard)

    def preference(self) -> Tensor:
        """Of range and step."""
        return self.choice.preference()

    def values(self, w_CK: Tensor) -> Tensor:
        """The companded weight."""
        return compand(w_CK, self.choice.within.log_limit().exp(), self.choice.within.power())

    def steps(self, w_CK: Tensor) -> Tensor:
        """The range over the levels of each width."""
        del w_CK
        return self.choice.steps().expand(self.channels, -1)

    def start_at(self, bits: int) -> None:
        """The range of least squared error at this width, and its step."""
        bits = nearest(self.widths, bits)
        self.choice.within.fit(self.fitted[self.widths.index(bits)])
        self.choice.start_at(bits)


class RangeActivationSlot(AbstractActivationSlot):
    """An activation with a learned range and step; the exponent is 1, since hardware would have to apply it.

    Args:
        widths: offered.
        signed: whether values can be negative.
        restrict: see `StepWidth`.
    """

    def __init__(self, widths: Sequence[int], signed: bool, restrict: Restriction) -> None:
        super().__init__(widths, signed)
        self.choice = StepWidth(1, widths, CompandedRange(torch.ones(1), learns_exponent=False), int(signed), restrict)

    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """Clipped and rounded; in evaluation at the nearest width on offer."""
        assert choice is None
        if self.bypassed:
            return x
        if self.training:
            limit = self.choice.within.log_limit().exp()
            return clipped_quantize(x, self.choice.step(), limit, signed=self.signed)
        found = self._format(int(self.choice.hard_bits()))
        # as the slot of the cut network, which keeps the logarithm
        step = torch.tensor([self.step(found.bits)], device=x.device).log().exp()
        return fake_quantize(x, step, found.low, found.high)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """The range of least squared error at the widest width."""
        found = self._format(self.widths[-1])
        step = least_squares_step(values.reshape(1, -1).float(), found.low, found.high)
        self.choice.within.fit(step * found.high)
        self.choice.start_at(self.widths[-1])

    def step(self, bits: int) -> float:
        """The range over the levels of a width."""
        return float(self.choice.steps()[0, self.widths.index(bits)].detach())

    def distribution(self, *, hard: bool) -> Tensor:
        """Of range and step."""
        return self.choice.view(hard=hard)

    def _format(self, bits: int) -> Format:
        return Format(bits, signed=self.signed, full_range=True)
