"""What widths are in a search: how a weight is quantised while its widths are chosen, and what it becomes then.

Shape legend: a weight is [C, K], output channels by the rest; W widths on offer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.bits import upper_neighbour
from zerobit.quant.fake import quantize
from zerobit.quant.slot import AbstractWeightGrid
from zerobit.search.choice import AbstractChoice, Sampling


def nearest(widths: Sequence[int], bits: int) -> int:
    """The width nearest to a number of bits, the narrower of two equally near."""
    return min(widths, key=lambda width: abs(width - bits))


def closeness(values: Tensor, points: Tensor) -> Tensor:
    """Float64 [N, G], minus the squared distance of each value to each point: a preference for the nearest.

    The lower one of two equally near has the same, and comes first; what one more step to a point is worth grows with
    its length and its distance to the threshold.

    Args:
        values: [N].
        points: [G], ascending.
    """
    return -(points.double() - values.double()[:, None]).square()


def with_even_slope(shares: Tensor, bits: Tensor, upper: Tensor, widths: Sequence[int]) -> Tensor:
    """Float64 [R, W], shares that a cost can be asked for, with the slope of one that rises evenly with the width.

    Costs can be stairs: a byte holds 5 bits as it holds 8, and between two widths that cost the same nothing says
    that a narrower one costs less. A bit is worth the mean slope from the narrowest width to the one above. Below the
    narrowest, where 0 is among the widths, it is that from 0.

    Args:
        shares: [R, W], without gradients.
        bits: [R], real widths that the gradient goes to.
        upper: int64 [R], place of the width above, 1 or more.
        widths: W numbers, ascending; 0 may be the first.
    """
    narrowest = int(widths[0] == 0)
    lower = torch.where(upper > narrowest, narrowest, 0)
    offered = torch.tensor(widths, device=bits.device)
    places = nn.functional.one_hot(torch.stack([upper, lower]), len(widths)).double()
    between = (offered[upper] - offered[lower])[:, None]
    exact = bits.double()
    return shares.detach().double() + (exact - exact.detach())[:, None] * (places[0] - places[1]) / between


def charged_shares(shares: Tensor, bits: Tensor, widths: Sequence[int]) -> Tensor:
    """Float64 [R, W], shares of the neighbours of real widths as a cost is to see them: with an even slope.

    Args:
        shares: [R, W].
        bits: [R], real widths that the gradient goes to.
        widths: W numbers, ascending; 0 may be the first.
    """
    if len(widths) == 1:
        return shares.double()
    return with_even_slope(shares, bits, upper_neighbour(bits, widths), widths)


class AbstractWidthChoice(AbstractChoice):
    """One of several widths, for each channel or for all channels of a layer.

    Args:
        channels: rows of the result.
        widths: the W widths offered.
        sampling: see `AbstractChoice`.
        per_layer: whether all channels share a row.
    """

    def __init__(self, channels: int, widths: Sequence[int], sampling: Sampling, *, per_layer: bool) -> None:
        super().__init__(sampling)
        self.channels, self.widths, self.per_layer = channels, tuple(widths), per_layer

    @abstractmethod
    def preference(self) -> Tensor:
        """Float64 [channels, W], how much each width is preferred, as logarithms."""

    @abstractmethod
    def start_at(self, bits: int) -> None:
        """Start from a width, or the nearest on offer; in place."""

    def forward(self) -> Tensor:
        """[channels, W], the share of each precision."""
        return self.sample()


class AbstractWeightQuantizer(nn.Module, ABC):
    """Quantises a weight at the widths that are being chosen for it.

    Args:
        channels: C.
        widths: the W widths it may end at.
        full_range: whether the lowest level of two's complement is used.
        per_layer: whether all channels have one width.
    """

    def __init__(self, channels: int, widths: Sequence[int], *, full_range: bool, per_layer: bool) -> None:
        super().__init__()
        self.channels, self.widths = channels, tuple(widths)
        self.full_range, self.per_layer = full_range, per_layer

    @abstractmethod
    def forward(self, w_CK: Tensor, factor: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
        """[C, K], effective weight: as it is trained, or in evaluation at the hard choice.

        Args:
            w_CK: the user's weight.
            factor: [C], on each channel; ones if None.
            shares: [C, W], of each precision where a group's choice holds the widths; only then.
        """

    @abstractmethod
    def distribution(self, *, hard: bool) -> Tensor:
        """[C, W], float64, probabilities of the widths given that a channel stays; one-hot if `hard`."""

    @abstractmethod
    def preference(self) -> Tensor:
        """[C, W], float64, how much each width is preferred, as logarithms; the largest is the hard choice."""

    @abstractmethod
    def steps(self, w_CK: Tensor) -> Tensor:
        """[C, W], quantisation step at each width."""

    @abstractmethod
    def start_at(self, bits: int) -> None:
        """Start from a width, or the nearest on offer; in place."""

    def values(self, w_CK: Tensor) -> Tensor:
        """[C, K], what is rounded to the levels: the weight, unless the method puts a function in between."""
        return w_CK

    @torch.no_grad()
    def quantized(self, w_CK: Tensor, bits: Tensor, factor: Tensor | None = None) -> Tensor:
        """[C, K], the weight at given widths.

        Args:
            w_CK: the user's weight.
            bits: int64 [C], each on offer.
            factor: [C], on each channel; ones if None.
        """
        step = self.step_at(w_CK, bits)[:, None]
        high = (torch.pow(2, bits - 1) - 1).to(step)[:, None]
        low = -high - 1 if self.full_range else -high
        levels = quantize(self.values(w_CK), step, low, high)
        # the factor becomes part of the step, and so it is here, in the same order
        return (step if factor is None else factor[:, None] * step) * levels

    def step_at(self, w_CK: Tensor, bits: Tensor) -> Tensor:
        """[C], steps at given widths, int64 [C]."""
        columns = torch.searchsorted(torch.tensor(self.widths, device=bits.device), bits.contiguous())
        steps = self.steps(w_CK)
        return steps.gather(1, columns[:, None].to(steps.device)).squeeze(1)


class AbstractGridQuantizer(AbstractWeightQuantizer):
    """A weight on a grid of its own at each width, by a choice.

    Args:
        grid: levels and steps.
        channels: C.
        choice: of the widths; None if there is one only, or a group's choice holds them.
    """

    def __init__(self, grid: AbstractWeightGrid, channels: int, choice: AbstractWidthChoice | None) -> None:
        per_layer = choice is not None and choice.per_layer
        super().__init__(channels, grid.widths, full_range=grid.full_range, per_layer=per_layer)
        self.grid, self.choice = grid, choice

    def distribution(self, *, hard: bool) -> Tensor:
        """Of the choice."""
        if self.choice is None:
            return torch.ones(self.channels, 1, dtype=torch.float64, device=self.grid.low.device)
        return self.choice.view(hard=hard)

    def preference(self) -> Tensor:
        """Of the choice."""
        return torch.zeros(self.channels, 1, dtype=torch.float64) if self.choice is None else self.choice.preference()

    def steps(self, w_CK: Tensor) -> Tensor:
        """Of the grid."""
        return self.grid.steps(w_CK)

    def start_at(self, bits: int) -> None:
        """Of the choice."""
        if self.choice is not None:
            self.choice.start_at(bits)


class GridQuantizer(AbstractGridQuantizer):
    """A copy of the weight at each width, mixed by the choice."""

    def forward(self, w_CK: Tensor, factor: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
        """Sum of the copies."""
        if shares is None:
            shares = self._shares(w_CK, factor)
        return self.grid.mix(w_CK, shares.to(w_CK))

    def _shares(self, w_CK: Tensor, factor: Tensor | None) -> Tensor:
        shares = w_CK.new_ones(self.channels, len(self.widths)) if self.choice is None else self.choice()
        return shares if factor is None else shares * factor[:, None]
