"""BSQ: bit planes are trained, a group lasso makes them vanish, and widths are what is left of them.

Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network Quantization", ICLR 2021
(arXiv 2102.10462).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.search.choice import UnitRule
from zerobit.search.gates.planes import PlaneGate, UnitRows
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
from zerobit.search.widths.planes import PlaneQuantizer
from zerobit.search.widths.softmax import SoftmaxWidth, activation_softmax


@dataclass(frozen=True)
class Bsq(AbstractMethod):
    """Bit-level sparsity (Yang et al., ICLR 2021), with any cost, and with units that go.

    A weight is trained as its signed binary digits. As published, a group lasso presses on each plane, weights are
    requantised every so often, planes that became zero are dropped, and one is grown where integers outgrew them.
    Beyond it: a cost takes the place of the lasso's fixed strength, its gradient per bit being the lasso's; a low plane
    counts as zero once it has lost half of its norm; a width may belong to each channel; and a unit whose planes lost
    their norm is removed. There are 14 trained numbers per weight: for large networks other methods are quicker.

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

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> PlaneGate | None:
        """A gate that follows the planes."""
        return PlaneGate(group.units, rule) if removable else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> PlaneQuantizer:
        """Planes per layer or channel."""
        del coupled
        return PlaneQuantizer(w_CK, widths, self.start_bits or max(widths), per_layer=self.granularity == "layer")

    def activation_choice(self) -> SoftmaxWidth | None:
        """A softmax over the widths, if there are several; planes are for weights."""
        return activation_softmax(self.activation_bits, "hard")

    def attached(self, net: Searched) -> None:
        """Let gates follow the planes of their groups' weights."""
        for group in net.graph.groups:
            choice = net.group_choice(group)
            if isinstance(choice, PlaneGate):
                choice.bind(_rows(net, group))

    @torch.no_grad()
    def advance(self, net: Searched, progress: float) -> tuple[nn.Parameter, ...]:
        """Keep digits within their bounds; requantise where a period begins."""
        period, planes = int(progress * self.periods), [quantizer.planes for quantizer in _quantizers(net)]
        if all(int(p.period) >= period for p in planes):
            for p in planes:
                p.project()
            return ()
        _requantize(net)
        for p in planes:
            p.period.fill_(period)
        return tuple(parameter for p in planes for parameter in (p.positive, p.negative))

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
        return self.strength * total / (max(GRID) * (max(GRID) - 1) * weights)


def _requantize(net: Searched) -> None:
    """Of all weights; rows of units that are gone become zero, since units are measured anew from here."""
    gone = {quantizer: torch.zeros_like(quantizer.trained[:, 0], dtype=torch.bool) for quantizer in _quantizers(net)}
    for group in net.graph.groups:
        choice = net.group_choice(group)
        for quantizer, rows in choice.gone() if isinstance(choice, PlaneGate) else ():
            gone[quantizer] = gone[quantizer] | rows
    for quantizer, rows in gone.items():
        quantizer.requantize(grow=True, gone=rows)


def _quantizers(net: Searched) -> Iterator[PlaneQuantizer]:
    return (module for module in net.modules() if isinstance(module, PlaneQuantizer))


def _rows(net: Searched, group: ChannelGroup) -> Iterator[UnitRows]:
    for weight in net.graph.searched_weights:
        unit = net.graph.row_units(weight).get(group.name)
        quantizer = net.weight_slot(weight).quantizer if unit is not None else None
        if isinstance(quantizer, PlaneQuantizer):
            yield UnitRows(quantizer, torch.as_tensor(unit))
