"""BSQ: bit planes are trained, a group lasso makes them vanish, and widths are what is left of them.

Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network Quantization", ICLR 2021
(arXiv 2102.10462).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.bits import NetBits
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.search.choice import UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.method import (
    GRANULARITIES,
    AbstractMethod,
    Granularity,
    Searched,
    check_count,
    check_not_negative,
    check_one_of,
    check_widths,
)
from zerobit.search.slots import WeightSlot, per_channel
from zerobit.search.widths.planes import PlaneQuantizer, Planes
from zerobit.search.widths.softmax import SoftmaxWidth, activation_softmax


@dataclass(frozen=True)
class Bsq(AbstractMethod):
    """Bit-level sparsity (Yang et al., ICLR 2021), with any cost, and with units that go.

    A weight is trained as its signed binary digits. As published, a group lasso presses on each plane, weights are
    requantised every so often, planes that became zero are dropped, and one is grown where integers outgrew them.
    Beyond it: a cost takes the place of the lasso's fixed strength, its gradient per bit being the lasso's; a low plane
    counts as zero once it has lost half of its norm; a width may belong to each channel; and units have gates, since a
    lasso that drives whole units to zero spoils those that stay. The gate of a unit whose planes are all zero closes.
    There are 14 trained numbers per weight: for large networks other methods are quicker.

    Attributes:
        weight_bits: offered to weights, from {0, 2..8}; 0 removes channels. Planes that the integers need are rounded
            up to the next width on offer.
        activation_bits: offered to activations, from {2..8}.
        granularity: "layer" as published, or "channel".
        periods: stretches of the search, between which weights are requantised.
        strength: of the published regulariser, beside a price that works on the same planes; see `penalty`.
        start_bits: the width that weights start from; if None, one near the budget, or the widest without one.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width or granularity that does not exist, no period, or a negative strength.
    """

    weight_bits: tuple[int, ...] = GRID
    activation_bits: tuple[int, ...] = (8,)
    granularity: Granularity = "layer"
    periods: int = 4
    strength: float = 0.0
    start_bits: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        check_widths(self)
        check_one_of("granularity", self.granularity, GRANULARITIES)
        check_count("periods", self.periods)
        check_not_negative("strength", self.strength)

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> LogitGate | None:
        """A gate per unit."""
        return LogitGate(group.units, "hard", rule) if removable else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> PlaneQuantizer:
        """Planes per layer or channel."""
        del coupled
        return PlaneQuantizer(w_CK, widths, self.start_bits or max(widths), per_layer=self.granularity == "layer")

    def activation_choice(self) -> SoftmaxWidth | None:
        """A softmax over the widths, if there are several; planes are for weights."""
        return activation_softmax(self.activation_bits, "hard")

    @torch.no_grad()
    def advance(self, net: Searched, progress: float) -> None:
        """Keep digits within their bounds; requantise where a period begins.

        An optimizer keeps what it remembers of the digits: without second moments, its next steps would move all of
        them at full rate. Where low planes were dropped, it is that of a neighbour, until it has seen others.
        """
        period, quantizers = int(progress * self.periods), list(_quantizers(net))
        begins = any(int(quantizer.planes.period) < period for quantizer in quantizers)
        if begins:
            _close_empty(net)
        _count_open(net)
        for quantizer in quantizers:
            if begins:
                quantizer.requantize()
                quantizer.planes.period.fill_(period)
            else:
                quantizer.planes.project()

    def commit(self, net: Searched, excess: Callable[[NetBits], float]) -> None:
        """Close the gates of units whose planes became zero since the last period began.

        What their biases added goes with them; the cut network is trained on.
        """
        del excess
        _close_empty(net)
        _count_open(net)

    def penalty(self, net: Searched) -> Tensor:
        """The published regulariser, relative to a network of 8-bit weights all of whose digits are 1.

        strength * sum over groups of n |W| sum_b norm_b / (8 * 7 * all |W|), with n the bits and |W| the weights of a
        group and norm_b the root of the mean square of plane b, where the paper has the root of the sum: a strength
        then means the same for layers and networks of all sizes.
        """
        total = super().penalty(net)
        if not self.strength:
            return total
        weights = 0
        for quantizer in _quantizers(net):
            planes = quantizer.planes
            norms = (planes.probability().double() * planes.is_live().T).sum(1)
            total = total + planes.elements * ((planes.live + 1) * norms).sum()
            weights += planes.positive[0].numel()
        return self.strength * total / (max(GRID) * (max(GRID) - 1) * max(1, weights))


def _quantizers(net: Searched) -> Iterator[PlaneQuantizer]:
    return (module for module in net.modules() if isinstance(module, PlaneQuantizer))


def _slots(net: Searched) -> Iterator[tuple[WeightSlot, Planes]]:
    """Weights that are planes."""
    for weight in net.graph.searched_weights:
        slot = net.weight_slot(weight)
        if isinstance(slot.quantizer, PlaneQuantizer):
            yield slot, slot.quantizer.planes


def _gates(net: Searched) -> dict[str, LogitGate]:
    choices = {group.name: net.group_choice(group) for group in net.graph.groups}
    return {name: choice for name, choice in choices.items() if isinstance(choice, LogitGate)}


@torch.no_grad()
def _close_empty(net: Searched) -> None:
    """Close the gates of units that have nothing but zeros in the weights that make them."""
    gates = _gates(net)
    filled: dict[str, Tensor] = {}
    for slot, planes in _slots(net):
        rows = planes.clipped(planes.known_sums()).any(1)
        units = [len(gates[name].gate) for name in slot.groups]
        has = rows.new_zeros(sum(units) + 1).index_fill(0, slot.index[rows], value=True)  # the last: rows of no unit
        for name, of_units in zip(slot.groups, has[:-1].split(units), strict=True):
            filled[name] = of_units | filled.get(name, torch.zeros_like(of_units))
    for name, of_units in filled.items():
        gates[name].close(~of_units)


@torch.no_grad()
def _count_open(net: Searched) -> None:
    """Let the rows of units that are closed have no say in the widths of their layers."""
    is_open = {name: gate.hard() for name, gate in _gates(net).items()}
    for slot, planes in _slots(net):
        if slot.groups:
            planes.counted.copy_(per_channel([is_open[name] for name in slot.groups], slot.index))
