"""FracBits: real widths, blended while they are trained, rounded by one offset that meets the budget."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.bits import NetBits
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.quant.slot import AbstractActivationSlot, ActivationSlot
from zerobit.search.choice import AbstractGroupChoice, UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.method import GRANULARITIES, AbstractMethod, Granularity, Searched, check_one_of, check_widths
from zerobit.search.widths.fractional import (
    FractionalActivationSlot,
    FractionalChoice,
    FractionalQuantizer,
    FractionalWidth,
)

#: No offset below moves a width that one of this size does not: the widest grid is as wide.
_LOWEST_OFFSET = -float(GRID[-1])
#: Halvings of the offset's range: to 2e-5 of a bit, in numbers that float32 holds exactly.
_HALVINGS = 20
#: Relative excess that is rounding.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class FracBits(AbstractMethod):
    """Fractional widths (Yang and Jin, AAAI 2021, arXiv 2007.02017), on this library's grid and budget.

    A tensor is a linear blend of its quantised copies at the two widths next to a real one. At the end all widths are
    rounded, with one offset for the whole network, found by bisection, at which it costs what it may. As published,
    channels whose width falls towards 0 are pruned. Unlike the publication, steps are learned (LSQ) instead of DoReFa
    and PACT, and a budget is an augmented Lagrangian instead of an absolute difference.

    Attributes:
        weight_bits: offered to weights, from {0, 2..8}; 0 removes the channel.
        activation_bits: offered to activations, from {2..8}; a real width each, if there are several.
        granularity: "channel" for a width per unit of a channel group, shared by the group's layers, which prunes where
            it falls below half of the narrowest; or "layer" for one width per layer, and gates that prune.
        start_bits: the width to start from; if None, one near the budget, or the widest without one.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width or granularity that does not exist.
    """

    weight_bits: tuple[int, ...] = GRID
    activation_bits: tuple[int, ...] = (8,)
    granularity: Granularity = "channel"
    start_bits: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        check_widths(self)
        check_one_of("granularity", self.granularity, GRANULARITIES)

    @property
    def coupled(self) -> bool:
        """Per channel, a group's layers share widths."""
        return self.granularity == "channel"

    @property
    def _start(self) -> int:
        return self.start_bits or max(self.widths)

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> AbstractGroupChoice | None:
        """A real width per unit, or a gate beside widths per layer."""
        if self.coupled:
            return FractionalChoice(group.units, self.widths, self._start, removable=removable, rule=rule)
        return LogitGate(group.units, "hard", rule) if removable else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> FractionalQuantizer:
        """Two neighbours, of the group's widths or of the weight's own."""
        if coupled or len(widths) == 1:
            return FractionalQuantizer(w_CK, widths, None)
        choice = FractionalWidth(len(w_CK), widths, self._start, per_layer=self.granularity == "layer")
        return FractionalQuantizer(w_CK, widths, choice)

    def activation_slot(self, signed: bool) -> AbstractActivationSlot:
        """With a real width, unless there is one width only."""
        kind = ActivationSlot if len(self.activation_bits) == 1 else FractionalActivationSlot
        return kind(self.activation_bits, signed)

    @torch.no_grad()
    def advance(self, net: Searched, progress: float) -> None:
        """Bring widths that a step led off their grid back to its end."""
        del progress
        for choice in fractional(net):
            choice.width.clamp_(choice.grid[0], choice.grid[-1])

    @torch.no_grad()
    def commit(self, net: Searched, excess: Callable[[NetBits], float]) -> None:
        """Set the largest offset at which the rounded network is within the limits.

        It is at most half the largest gap of a grid: there a width that lies in that gap is rounded up, and what is
        then left of a budget is spent by promotions, which keep what the network computes. Where no offset is enough,
        it is the largest one at which the excess is least. Without limits it stays 0.

        Args:
            net: after the search.
            excess: as of `AbstractMethod.commit`.
        """
        choices = fractional(net)

        def excess_at(offset: float) -> float:
            for choice in choices:
                choice.offset.fill_(offset)
            return excess(net.bits(hard=True))

        if not choices or excess_at(0.0) == 0:
            return
        low, high = _LOWEST_OFFSET, max(_half_gap(choice.grid) for choice in choices)
        allowed = max(1.0, excess_at(low)) * (1 + _TOLERANCE)
        if excess_at(high) <= allowed:
            return
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if excess_at(middle) <= allowed else (low, middle)
        excess_at(low)


def fractional(net: Searched) -> list[FractionalWidth | FractionalChoice]:
    """The real widths of a network in search."""
    return [module for module in net.modules() if isinstance(module, (FractionalWidth, FractionalChoice))]


def _half_gap(grid: Tensor) -> float:
    """Half the largest distance of neighbours; 0 with one point."""
    return float(grid.diff().max()) / 2 if len(grid) > 1 else 0.0
