"""Differentiable joint pruning and quantization: bottleneck gates, and widths from learned ranges and steps.

Wang, Lu, Blankevoort, "Differentiable Joint Pruning and Quantization for Hardware Efficiency", ECCV 2020. The authors
published no code; strengths and rates are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zerobit.errors import FormatError
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.search.choice import AbstractGroupChoice, UnitRule
from zerobit.search.gates.bottleneck import BottleneckGate
from zerobit.search.method import (
    AbstractMethod,
    Searched,
    check_not_negative,
    check_one_of,
    check_positive,
    check_widths,
)
from zerobit.search.widths.range_step import (
    RESTRICTIONS,
    RangeActivationSlot,
    RangeQuantizer,
    Restriction,
    StepWidth,
)


@dataclass(frozen=True)
class Djpq(AbstractMethod):
    """Differentiable joint pruning and quantization (DJPQ, ECCV 2020).

    The loss is that of the task, `information` times the divergence of the gates, and the price of a cost. Widths are
    real numbers in the loss; at the end each becomes the nearest one on offer, and its step follows from the range.

    Attributes:
        weight_bits: offered to weights; 0 removes channels. Any width between the narrowest and the widest is trained.
        activation_bits: offered to activations.
        granularity: "tensor" for one range, step and exponent per weight, as published, or "channel".
        restrict: "integer" trains with the step of the nearest width on offer, so that the network that is trained is
            the one that is cut; "power_of_two" the same with 2, 4 and 8, except for weights whose widths the
            user gives by pattern; "none", as published, with the step as it is.
        learns_exponent: whether weights are companded; the exponent becomes part of the stored integers.
        information: loss per unit of the gates' divergence, relative to the start's.
        threshold: a unit goes when mean^2 / variance of its gate falls below this.
        sharpness: of the soft gate that a cost sees, in units of the logarithm of that ratio.
        start_bits: the width that weights start from; if None, one near the budget, or the widest without one.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width, granularity or restriction that does not exist, or a number out of range.
    """

    weight_bits: tuple[int, ...] = GRID
    activation_bits: tuple[int, ...] = GRID[1:]
    granularity: Literal["tensor", "channel"] = "tensor"
    restrict: Restriction = "integer"
    learns_exponent: bool = True
    information: float = 0.1
    threshold: float = 1e-3
    sharpness: float = 4.0
    start_bits: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        check_one_of("restrict", self.restrict, RESTRICTIONS)
        check_widths(self)
        if self.restrict == "power_of_two":
            for name in ("weight_bits", "activation_bits"):
                object.__setattr__(self, name, _powers_of_two(name, getattr(self, name)))
            check_widths(self)
        check_one_of("granularity", self.granularity, ("tensor", "channel"))
        check_not_negative("information", self.information)
        check_positive("threshold", self.threshold)
        check_positive("sharpness", self.sharpness)

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> AbstractGroupChoice | None:
        """A bottleneck gate."""
        return BottleneckGate(group.units, self.threshold, self.sharpness, rule) if removable else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> RangeQuantizer:
        """A range, step and exponent."""
        assert not coupled
        quantizer = RangeQuantizer(
            w_CK,
            widths,
            self.restrict,
            per_channel=self.granularity == "channel",
            learns_exponent=self.learns_exponent,
        )
        if self.start_bits is not None:
            quantizer.start_at(self.start_bits)
        return quantizer

    def activation_slot(self, signed: bool) -> RangeActivationSlot:
        """A range and step."""
        return RangeActivationSlot(self.activation_bits, signed, self.restrict)

    def advance(self, net: Searched, progress: float) -> None:
        """Keep ranges, steps and exponents where their gradients have a meaning."""
        del progress
        for module in net.modules():
            if isinstance(module, StepWidth):
                module.project()

    def penalty(self, net: Searched) -> Tensor:
        """`information` times the mean divergence of the gates, over that of the start."""
        divergences = [gate.divergence() for gate in net.modules() if isinstance(gate, BottleneckGate)]
        if not divergences:
            return super().penalty(net)
        return self.information * torch.cat(divergences).double().mean() / BottleneckGate.START_DIVERGENCE


def _powers_of_two(argument: str, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Those among all widths, if all are offered; else all that are offered have to be."""
    allowed = tuple(b for b in GRID if b in (0, 2, 4, 8))
    if set(widths) >= set(GRID[1:]):
        return tuple(b for b in allowed if b in widths)
    wrong = [b for b in widths if b not in allowed]
    if wrong:
        msg = (
            f"`{argument}` holds {wrong[0]} in {widths}; with `restrict` 'power_of_two' allowed are {allowed}; "
            "leave it out, or the restriction"
        )
        raise FormatError(msg)
    return widths
