"""Real widths: a tensor at a linear blend of the two offered widths that lie next to a real number.

Yang and Jin, "FracBits: Mixed Precision Quantization via Fractional Bit-Widths", AAAI 2021, arXiv 2007.02017: at a
width b between the offered ones l and h a tensor is ((b - l) Q_h + (h - b) Q_l) / (h - l), whose derivative by b is
(Q_h - Q_l) / (h - l). With 0 among the points, whose copy is nothing, a channel fades out below the narrowest width.
On an offered width its neighbours are itself and the next wider one; on the widest, itself and the next narrower one.
Shape legend: a weight is [C, K]; W widths on offer; N real widths on a grid of G points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.bits import blend
from zerobit.quant.fake import mix_precisions, straight_through
from zerobit.quant.slot import AbstractSteppedSlot, LearnedGrid
from zerobit.search.choice import AbstractGroupChoice, Sample, UnitRule
from zerobit.search.widths.base import (
    AbstractGridQuantizer,
    AbstractWidthChoice,
    charged_shares,
    closeness,
    nearest,
)


def neighbour_shares(width: Tensor, points: Sequence[int]) -> Tensor:
    """Shares of the two points next to each width, linear between them.

    Args:
        width: [N], brought between the first point and the last; the gradient is as if it lay there.
        points: G, ascending.

    Returns:
        [N, G], rows sum to 1, at most two are not zero.
    """
    if len(points) == 1:
        return straight_through(torch.ones_like(width), 0 * width)[:, None]
    inside = straight_through(width.detach().clamp(points[0], points[-1]), width)
    return blend(inside, points).to(width)


def neighbours(shares: Tensor) -> Tensor:
    """Int64 [C, 2], columns of the two neighbours that shares speak of.

    Args:
        shares: [C, W] of `neighbour_shares`, W at least 2; a first column for 0 bits may have been taken off.
    """
    low = (shares.detach() != 0).int().argmax(1).clamp_max(shares.shape[1] - 2)
    return torch.stack([low, low + 1], 1)


def rounded_from(width: Tensor, grid: Tensor, offset: Tensor) -> Tensor:
    """Float64 [N], where widths are rounded from.

    Args:
        width: [N], brought between the first point and the last.
        grid: [G], ascending.
        offset: scalar, added before rounding.
    """
    return width.detach().clamp(grid[0], grid[-1]).double() + offset.double()


class FractionalWidth(AbstractWidthChoice):
    """A real width, trained as it is; rounded in evaluation.

    Args:
        channels: rows of the result.
        widths: the W widths offered.
        start: width at the start, or the nearest on offer.
        per_layer: one width for all channels.
    """

    grid: Tensor
    offset: Tensor

    def __init__(self, channels: int, widths: Sequence[int], start: int, *, per_layer: bool) -> None:
        super().__init__(channels, widths, "softmax", per_layer=per_layer)
        self.width = nn.Parameter(torch.zeros(1 if per_layer else channels))
        self.register_buffer("grid", torch.tensor(widths, dtype=torch.float32), persistent=False)
        self.register_buffer("offset", torch.zeros(()))
        self.start_at(start)

    def probability(self, *, noise: bool = False) -> Tensor:
        """[channels, W], at most two not zero in a row."""
        del noise
        return neighbour_shares(self.width, self.widths).expand(self.channels, -1)

    def price_view(self) -> Tensor:
        """[channels, W], the same with an even slope."""
        shares = neighbour_shares(self.width, self.widths)
        return charged_shares(shares, self.width, self.widths).expand(self.channels, -1)

    def preference(self) -> Tensor:
        """[channels, W], by distance; the nearest is the hard choice."""
        return closeness(rounded_from(self.width, self.grid, self.offset), self.grid).expand(self.channels, -1)

    def hard(self) -> Tensor:
        """[channels, W], one-hot at the width nearest to the real one and the offset."""
        return nn.functional.one_hot(self.preference().argmax(1), len(self.widths))

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """The nearest width on offer, all of it; in place."""
        self.width.fill_(float(nearest(self.widths, bits)))

    def extra_repr(self) -> str:
        """Rows and widths."""
        return f"channels={self.channels}, widths={self.widths}"


class FractionalChoice(AbstractGroupChoice):
    """The coupled form: a real width per unit for all layers of a group; the nearest of {0, ...} says whether it stays.

    Args:
        units: number of units.
        widths: the W widths besides 0.
        start: width at the start, or the nearest on offer.
        removable: whether 0 is offered; it is not where units are frozen.
        rule: how many units may stay.
    """

    grid: Tensor
    offset: Tensor

    def __init__(self, units: int, widths: Sequence[int], start: int, *, removable: bool, rule: UnitRule) -> None:
        super().__init__("softmax")
        self.widths, self.rule, self.removable = tuple(widths), rule, removable
        self.width = nn.Parameter(torch.zeros(units))
        self.points = (0, *widths) if removable else tuple(widths)
        self.register_buffer("grid", torch.tensor(self.points, dtype=torch.float32), persistent=False)
        self.register_buffer("offset", torch.zeros(()))
        self.start_at(start)

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units, 1 + W]; column 0 is the share of removal."""
        del noise
        return self._with_removal(neighbour_shares(self.width, self.points), 0.0)

    def price_view(self) -> Tensor:
        """[units, 1 + W], the same with an even slope."""
        shares = neighbour_shares(self.width, self.points)
        return self._with_removal(charged_shares(shares, self.width, self.points), 0.0)

    def _closeness(self) -> Tensor:
        """[units, 1 + W]; removal is infinitely far from a unit that must stay."""
        return self._with_removal(closeness(rounded_from(self.width, self.grid, self.offset), self.grid), -torch.inf)

    def _with_removal(self, values: Tensor, none: float) -> Tensor:
        return values if self.removable else torch.cat([torch.full_like(values[:, :1], none), values], 1)

    def preference(self) -> Tensor:
        """[units, W], by distance."""
        return self._closeness()[:, 1:]

    def hard(self) -> Tensor:
        """[units, 1 + W], one-hot; as many units stay as the rule allows, those of large width first."""
        closeness_, offered = self._closeness(), self.preference()
        kept = self.rule.apply(closeness_.argmax(1) > 0, self.log_odds())
        return nn.functional.one_hot(torch.where(kept, offered.argmax(1) + 1, 0), closeness_.shape[1])

    def log_odds(self) -> Tensor:
        """[units], by how much nearer the narrowest width is than 0; rises with the width, 0 at the threshold."""
        closeness_ = self._closeness()
        return closeness_[:, 1] - closeness_[:, 0]

    def forward(self) -> Sample:
        """Shares of the precisions; those of a removed unit are zero."""
        shares = self.sample()[:, 1:]
        return Sample(shares.sum(1), shares)

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """The nearest width on offer, all of it; in place."""
        self.width.fill_(float(nearest(self.widths, bits)))

    def extra_repr(self) -> str:
        """Units and widths."""
        return f"units={len(self.width)}, widths={self.widths}"


class FractionalQuantizer(AbstractGridQuantizer):
    """A weight at the two neighbours of its widths; the other copies have no share and are not made.

    Args:
        w_CK: the weight as it was trained.
        widths: the W widths offered.
        choice: of the widths; None if there is one only, or a group's choice holds them.
    """

    def __init__(self, w_CK: Tensor, widths: Sequence[int], choice: FractionalWidth | None) -> None:
        super().__init__(LearnedGrid(widths, w_CK), len(w_CK), choice)

    def forward(self, w_CK: Tensor, factor: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
        """Sum of the two copies."""
        shares = self._own_shares(w_CK) if shares is None else shares
        columns = neighbours(shares) if shares.shape[1] > 1 else torch.zeros_like(shares, dtype=torch.int64)
        pair = shares.to(w_CK).gather(1, columns)
        if factor is not None:  # only now: shares of a closed gate would not say which neighbours they are of
            pair = pair * factor.to(w_CK)[:, None]
        step = self.grid.steps(w_CK).gather(1, columns)
        low, high = (level[columns].T[:, :, None].to(w_CK) for level in (self.grid.low, self.grid.high))
        return mix_precisions(w_CK, pair, step, low, high)

    def _own_shares(self, w_CK: Tensor) -> Tensor:
        return w_CK.new_ones(self.channels, 1) if self.choice is None else self.choice()


class FractionalActivationSlot(AbstractSteppedSlot):
    """An activation at the two neighbours of a real width of its own, with one learned step per width."""

    def __init__(self, widths: Sequence[int], signed: bool) -> None:
        super().__init__(widths, signed)
        self.choice = FractionalWidth(1, self.widths, max(self.widths), per_layer=True)

    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """The sum of the two copies; in evaluation the one of the hard choice."""
        del choice
        if self.bypassed:
            return x
        share = self.choice()[0]
        if not self.training:
            return self.copy(x, int(share.argmax()))
        low, high = neighbours(share[None])[0].tolist()
        return share[low] * self.copy(x, low) + share[high] * self.copy(x, high)

    def distribution(self, *, hard: bool) -> Tensor:
        """[1, A], of its width."""
        return self.choice.view(hard=hard)
