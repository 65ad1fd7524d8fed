"""Widths that follow from signed bit planes: a weight is its binary digits, and the digits are trained.

Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network Quantization", ICLR 2021
(arXiv 2102.10462): weight = step * round(sum_b 2^b (p_b - n_b)), and a group lasso on each plane makes planes vanish.
Shape legend: a weight is [C, K], output channels by the rest; P planes; G groups that share a width, 1 or C; W widths.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zerobit.quant.fake import straight_through
from zerobit.quant.ranges import least_squares_step
from zerobit.search.choice import AbstractChoice
from zerobit.search.widths.base import AbstractWeightQuantizer, nearest, with_even_slope

#: A digit is at most this times its parameter, which learns at the rate of weights: low digits, whose range is that of
#: [0, 1] and not that of a weight, have to move faster than weights do.
LARGEST_UNIT = 16.0
#: And at most this many ranges of the weight is what parameters of one in all planes stand for: a step of an optimizer
#: moves all digits, and with them the weight itself. (Digits task, size 6 %: with half of both, 7 and 9 points are
#: lost; with twice of both, searches end at chance. With this many for each plane, ResNet-8 at 4 bits ends at chance.)
UNIT_OF_RANGE = 8.0
#: A low plane with less than this share of the norm that it was written with is zero.
VANISHED = 0.5
#: Of a unit, beyond an integer: digits that were just written and lost their low planes lie halfway.
_LARGEST_REST = 0.499
#: Under the root of each group of the lasso; of the paper's code.
LASSO_EPS = 1e-8


class Planes(AbstractChoice):
    """Signed bit planes of a weight, and which of them are in use.

    A plane lies in [0, 1], the highest live one in [0, 2]: integers can then outgrow their planes, which is how planes
    are grown. All planes are there from the start; those above the live ones are masked.

    Args:
        shape: (P, C, K).
        per_layer: whether all channels have one width.

    Attributes:
        positive: [P, C, K].
        negative: [P, C, K], subtracted.
        live: int64 [G], number of planes in use, from the lowest.
        written: [P, C], sum of the squared digits of each plane and channel when they were last written.
        counted: bool [C], channels that decide about widths; others are closed by a gate.
        period: int64 scalar, the period of the search that the planes were last rewritten in.
    """

    is_of_weights = True
    live: Tensor
    written: Tensor
    counted: Tensor
    period: Tensor

    def __init__(self, shape: tuple[int, int, int], *, per_layer: bool) -> None:
        super().__init__("hard")
        self.positive, self.negative = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("live", torch.ones(1 if per_layer else shape[1], dtype=torch.int64))
        self.register_buffer("written", torch.zeros(shape[:2]))
        self.register_buffer("counted", torch.ones(shape[1], dtype=torch.bool))
        self.register_buffer("period", torch.zeros((), dtype=torch.int64))
        # widths and prices ask for the same sums over all planes, which are the dear part of a step
        self._remembered: dict[str, tuple[tuple[tuple[int, int], ...], Tensor]] = {}

    def place(self) -> Tensor:
        """Int64 [P, 1], the number of each plane."""
        return torch.arange(len(self.positive), device=self.live.device)[:, None]

    def is_live(self) -> Tensor:
        """Bool [P, G]."""
        return self.place() < self.live

    def unit(self) -> Tensor:
        """[P, G, 1], what a digit is times its parameter."""
        influence = self.live * torch.pow(2.0, self.place()) / (torch.pow(2.0, self.live) - 1)
        # a power of two: a digit that is written is read exactly
        unit = torch.pow(2.0, (UNIT_OF_RANGE / influence).log2().floor())
        return unit.clamp_max(LARGEST_UNIT).to(self.positive)[:, :, None]

    def digits(self) -> tuple[Tensor, Tensor]:
        """[P, C, K] twice, positive and negative digits within their bounds, which are 0 in planes that are masked.

        These have the gradients of live ones: an optimizer that had seen none would move a plane that is grown at
        several times its rate.
        """
        bound = (self.is_live().to(self.positive) + (self.place() == self.live - 1))[:, :, None]
        lowest, unit = torch.zeros_like(bound), self.unit()
        positive, negative = (torch.clamp(unit * p, lowest, bound) for p in (self.positive, self.negative))
        return positive, negative

    def sums(self) -> Tensor:
        """[C, K], the integers before rounding and clipping."""
        positive, negative = self.digits()
        value = torch.pow(2.0, self.place())[:, :, None].to(positive)
        return self._remember("sums", ((positive - negative) * value).sum(0))

    def known_sums(self) -> Tensor:
        """`sums` without gradients, computed once for the digits as they are."""
        return self._recall("sums", self.sums)

    def known_squares(self) -> Tensor:
        """`squares` without gradients, computed once for the digits as they are."""
        return self._recall("squares", self.squares)

    def _digits_as_they_are(self) -> tuple[tuple[int, int], ...]:
        """Other after every change of the digits."""
        return tuple((t.data_ptr(), t._version) for t in (self.positive, self.negative, self.live, self.counted))

    def _remember(self, name: str, value: Tensor) -> Tensor:
        self._remembered[name] = self._digits_as_they_are(), value.detach()
        return value

    def _recall(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        state, value = self._remembered.get(name, ((), None))
        if value is None or state != self._digits_as_they_are():
            with torch.no_grad():
                value = compute()
        return value

    @torch.no_grad()
    def lowest(self) -> Tensor:
        """Int64 [G], number of the lowest plane that is not zero; one plane is left in any case."""
        is_zero = self._by_group(self.known_squares()) < VANISHED**2 * self._by_group(self.written)
        return is_zero.long().cumprod(1).sum(1).minimum(self.live - 1)

    @torch.no_grad()
    def top(self) -> Tensor:
        """[G, 1], the largest integer of the planes that are not zero."""
        return (torch.pow(2.0, self.live) - torch.pow(2.0, self.lowest()))[:, None]

    def clipped(self, sums_CK: Tensor) -> Tensor:
        """[C, K], integers of the planes that are not zero.

        Args:
            sums_CK: as of `sums`.
        """
        unit, top = torch.pow(2.0, self.lowest())[:, None], self.top()
        return torch.clamp(unit * torch.round(sums_CK.detach() / unit), -top, top)

    def grouped(self, per_channel: Tensor) -> Tensor:
        """[G, channels of a group, K]: rows put together by their group."""
        return per_channel.reshape(len(self.live), -1, per_channel.shape[-1])

    def squares(self) -> Tensor:
        """[P, C], sum of the squared digits of each plane and channel."""
        positive, negative = self.digits()
        return self._remember("squares", (positive.square() + negative.square()).sum(2))

    @property
    def elements(self) -> int:
        """Digits of a plane of a group."""
        return self.positive[0].numel() // len(self.live)

    def norms(self) -> Tensor:
        """[G, P], the published terms of the group lasso: the norm of each group's digits."""
        return (LASSO_EPS + self._by_group(self.squares())).sqrt()

    def _by_group(self, rows: Tensor) -> Tensor:
        """[G, P], sums over the channels that count of what is [P, C]."""
        return (rows * self.counted).reshape(len(rows), len(self.live), -1).sum(2).T

    def probability(self, *, noise: bool = False) -> Tensor:
        """[G, P], root mean square of each group's digits."""
        del noise
        return self.norms() / math.sqrt(self.elements)

    @torch.no_grad()
    def hard(self) -> Tensor:
        """Bool [G, P], planes that the integers need."""
        needed = self.peak(self.clipped(self.known_sums()))[:, None] >= torch.pow(2, self.place()).T
        return needed & (self.lowest()[:, None] <= self.place().T)

    def peak(self, integers_CK: Tensor) -> Tensor:
        """[G], largest magnitude in the channels of each group that count."""
        return self.grouped(integers_CK.abs() * self.counted[:, None]).amax((1, 2))

    @torch.no_grad()
    def project(self) -> None:
        """Put the digits back into their bounds, in place; what they compute stays."""
        for parameter, digits in zip((self.positive, self.negative), self.digits(), strict=True):
            parameter.copy_(digits / self.unit())

    @torch.no_grad()
    def write(self, integers_CK: Tensor, live: Tensor) -> None:
        """Become the binary digits of integers, in place.

        Args:
            integers_CK: of magnitudes below 2^live.
            live: int64 [G].
        """
        magnitude = integers_CK.abs().to(torch.int64)
        digits = (magnitude >> self.place()[:, :, None]) & 1
        self.live.copy_(live)
        self.positive.copy_(digits * (integers_CK > 0) / self.unit())
        self.negative.copy_(digits * (integers_CK < 0) / self.unit())
        self.written.copy_(self.squares())


class PlaneQuantizer(AbstractWeightQuantizer):
    """A weight as signed bit planes with a step per channel; its width is that of the integers they make.

    The user's weight is where the planes start from, and no more: it gets a gradient of zero. The step is learned at
    the rate of ranges: planes can't leave their bounds, so without it a range that was fitted to the start would last
    for the whole search.

    Args:
        w_CK: the weight as it was trained.
        widths: the W widths offered; a weight has the narrowest that holds its integers.
        bits: the width to start from.
        per_layer: whether all channels have one width.
    """

    trained: Tensor
    shift: Tensor

    def __init__(self, w_CK: Tensor, widths: Sequence[int], bits: int, *, per_layer: bool) -> None:
        super().__init__(len(w_CK), widths, full_range=False, per_layer=per_layer)
        shape = max(widths) - 1, w_CK.shape[0], w_CK.shape[1]
        self.planes = Planes(shape, per_layer=per_layer).to(w_CK)
        self.log_step = nn.Parameter(w_CK.new_zeros(len(w_CK)))
        self.register_buffer("shift", torch.zeros_like(self.planes.live))
        self.register_buffer("trained", w_CK.detach().clone(), persistent=False)
        self.start_at(bits)

    def step(self) -> Tensor:
        """[C, 1], step of the lowest plane."""
        return (self.log_step.exp() * torch.pow(2.0, self.shift).to(self.log_step))[:, None]

    def forward(self, w_CK: Tensor, factor: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
        """Step times integers, with the straight-through gradient for the digits."""
        assert shares is None
        sums = self.planes.sums()
        weight = self.step() * straight_through(self.planes.clipped(sums), sums)
        return _Instead.apply(weight if factor is None else factor[:, None].to(weight) * weight, w_CK)

    def offered(self) -> Tensor:
        """Int64 [W]."""
        return torch.tensor(self.widths, device=self.planes.live.device)

    def _column(self, needed: Tensor) -> Tensor:
        """The narrowest width on offer that is as wide as needed."""
        return torch.searchsorted(self.offered(), needed).clamp_max(len(self.widths) - 1)

    def needed(self) -> Tensor:
        """Int64 [G], bits that the integers need."""
        return 1 + self.planes.hard().sum(1)

    def column(self) -> Tensor:
        """Int64 [G], place of the hard width among those offered: the narrowest of enough bits."""
        return self._column(self.needed())

    def distribution(self, *, hard: bool) -> Tensor:
        """One-hot; a cost's gradient per bit is that of the group lasso: bits are the sum of the planes' norms."""
        column = self.column()
        one_hot = nn.functional.one_hot(column, len(self.widths)).double()
        if not hard and len(self.widths) > 1:
            one_hot = with_even_slope(one_hot, self._soft_bits(column), column.clamp_min(1), self.widths)
        return one_hot.expand(self.channels, -1)

    def _soft_bits(self, column: Tensor) -> Tensor:
        """Float64 [G], sum of the norms of the live planes; of those that the narrowest width lacks, at that width."""
        counted = self.planes.is_live().T & ((column > 0)[:, None] | ~self._narrowest())
        return (self.planes.norms().double() * counted).sum(1)

    def _narrowest(self) -> Tensor:
        """Bool [1, P], planes of the narrowest width."""
        planes = self.widths[0] - 1
        return planes > self.planes.place().T

    @torch.no_grad()
    def preference(self) -> Tensor:
        """[C, W], the largest at the hard width.

        Narrower, it falls by what the planes below the new step amount to, relative to the range; wider, the less the
        finer the levels are already.
        """
        bits = self.needed().double()[:, None]
        place = (self.planes.place().T - self.planes.lowest()[:, None]).double()
        lost = self.planes.probability().double() * torch.pow(2.0, place - (bits - 1)) * (place >= 0)
        below = (lost[:, None] * (place[:, None] < (bits - self.offered())[:, :, None])).sum(2)
        wider = (self.offered() - self.offered()[self.column()][:, None]).clamp_min(0)
        above = wider * (1 - torch.pow(2.0, 1 - bits))
        return (-below - above).expand(self.channels, -1)

    @torch.no_grad()
    def steps(self, w_CK: Tensor) -> Tensor:
        """Of the planes at the hard width; the range stays over other widths, so that narrower ones drop low planes."""
        del w_CK
        is_hard = nn.functional.one_hot(self.column(), len(self.widths)).bool()
        coarser = torch.pow(2.0, self.needed()[:, None] - self.offered()).masked_fill(is_hard, 1.0)
        lowest = torch.pow(2.0, self.planes.lowest())[:, None]
        return self.step() * (lowest * coarser).to(self.log_step)

    def values(self, w_CK: Tensor) -> Tensor:
        """Step times the sums of the planes, which round to the integers that they make, however this is computed."""
        del w_CK
        sums, unit = self.planes.sums(), torch.pow(2.0, self.planes.lowest())[:, None]
        integers = self.planes.clipped(sums)
        return self.step() * (integers + torch.clamp(sums - integers, -_LARGEST_REST * unit, _LARGEST_REST * unit))

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """Binary digits of the trained weight at a width, with steps of least squared error; in place."""
        bits = nearest(self.widths, bits)
        high = 2 ** (bits - 1) - 1
        step = least_squares_step(self.trained, -high, high)
        self.log_step.copy_(step.log())
        self.shift.zero_()
        integers = torch.clamp(torch.round(self.trained / self.step()), -high, high)
        self.planes.write(integers, torch.full_like(self.planes.live, bits - 1))

    @torch.no_grad()
    def requantize(self) -> None:
        """Rewrite the planes as the binary digits of the integers that they make, in place; the weight stays the same.

        High planes that are zero are dropped; so are low ones, with which the step doubles. Where integers outgrew
        the live planes, there are planes of the next width. Channels that do not count become what fits.
        """
        sums, live = self.planes.sums(), self.planes.live
        integers = self.planes.clipped(sums)
        outgrown = self.planes.peak(torch.round(sums)) > torch.pow(2.0, live) - 1
        halved = torch.zeros_like(live)
        for _ in range(len(self.planes.positive)):
            whole = self.planes.grouped(integers * self.planes.counted[:, None])
            halves = (whole.remainder(2) == 0).all(2).all(1) & (whole != 0).any(2).any(1)
            integers = torch.where(halves[:, None], integers / 2, integers)
            halved += halves
        self.shift += halved
        digits = (self.planes.peak(integers)[:, None] >= torch.pow(2, self.planes.place()).T).sum(1)
        needed = 1 + torch.where(outgrown, live + 1 - halved, digits)
        live = self.offered()[self._column(needed)] - 1
        high = (torch.pow(2, live) - 1)[:, None]
        self.planes.write(torch.clamp(integers.round(), -high, high), live)

    def extra_repr(self) -> str:
        """Widths and granularity."""
        return f"widths={self.widths}, per_layer={self.per_layer}"


class _Instead(torch.autograd.Function):
    """The first tensor; the second, which it stands for, is asked for a gradient and gets zeros.

    Without one, every optimizer and every check for parameters that a loss does not reach would have to know of it.
    """

    @staticmethod
    def forward(ctx: object, value: Tensor, unused: Tensor) -> Tensor:
        del ctx, unused
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        del ctx
        (grad,) = grad_outputs
        return grad, torch.zeros_like(grad)
