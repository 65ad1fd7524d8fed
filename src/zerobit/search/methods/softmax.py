"""Channel-wise selection by softmax: the default, and the published joint pruning and mixed-precision search."""

from dataclasses import dataclass

from torch import Tensor

from zerobit.formats import DEFAULT_STORAGE
from zerobit.graph.ir import ChannelGroup
from zerobit.quant.slot import GRIDS
from zerobit.search.choice import MIN_TEMPERATURE, SAMPLINGS, AbstractGroupChoice, Sampling, UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.method import (
    GRANULARITIES,
    AbstractMethod,
    Granularity,
    check_one_of,
    check_positive,
    check_widths,
)
from zerobit.search.widths.base import GridQuantizer
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth, activation_softmax, start_logits


@dataclass(frozen=True)
class ChannelSoftmax(AbstractMethod):
    """Channel-wise selection with a 0-bit option (Motetti et al., IEEE TC 2024), and beyond it.

    By default a gate per unit is shared by its group and a width per channel belongs to each layer; with `shared` one
    softmax over all options does both, as published.

    Attributes:
        weight_bits: offered to weights, from {0, 2..8}; 0 removes the channel.
        activation_bits: offered to activations, from {2..8}.
        shared: the published coupled form; widths are those of units and start as published, the widest likeliest.
        granularity: "channel", or "layer" for one width per layer.
        sampling: "hard" trains the network that will be cut, with straight-through gradients; "softmax" and "gumbel"
            are the published modes.
        start_temperature: of the softmax, at the start.
        end_temperature: and at the end; between them it falls geometrically. Floored at 0.01.
        grid: "learned" steps (LSQ), or "minmax" as published.
        start_bits: the width that channels start from; if None, one near the budget, or the widest without one.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width, sampling, granularity or grid that does not exist.
    """

    weight_bits: tuple[int, ...] = (0, *DEFAULT_STORAGE)
    activation_bits: tuple[int, ...] = (8,)
    shared: bool = False
    granularity: Granularity = "channel"
    sampling: Sampling = "hard"
    start_temperature: float = 1.0
    end_temperature: float = 1.0
    grid: str = "learned"
    start_bits: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        check_widths(self)
        check_positive("start_temperature", self.start_temperature)
        check_positive("end_temperature", self.end_temperature)
        check_one_of("sampling", self.sampling, SAMPLINGS)
        check_one_of("granularity", self.granularity, GRANULARITIES)
        check_one_of("grid", self.grid, tuple(GRIDS))
        if self.shared:
            check_one_of("granularity", self.granularity, ("channel",))
            check_one_of("start_bits", self.start_bits, (None,))

    @property
    def coupled(self) -> bool:
        """As `shared` says."""
        return self.shared

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> AbstractGroupChoice | None:
        """A gate, or the coupled softmax."""
        start = self.temperature(0.0)
        if self.shared:
            return CoupledChoice(group.units, self.widths, self.sampling, start, removable=removable, rule=rule)
        return LogitGate(group.units, self.sampling, rule, start) if removable else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> GridQuantizer:
        """A grid, mixed per channel or per layer."""
        grid = GRIDS[self.grid](widths, w_CK)
        if coupled or len(widths) == 1:
            return GridQuantizer(grid, len(w_CK), None)
        start = start_logits(widths, self.start_bits or max(widths))
        per_layer = self.granularity == "layer"
        return GridQuantizer(
            grid, len(w_CK), SoftmaxWidth(len(w_CK), widths, self.sampling, start, per_layer=per_layer)
        )

    def activation_choice(self) -> SoftmaxWidth | None:
        """One row."""
        return activation_softmax(self.activation_bits, self.sampling)

    def temperature(self, progress: float) -> float:
        """Geometric from start to end."""
        ratio = self.end_temperature / self.start_temperature
        return max(MIN_TEMPERATURE, self.start_temperature * ratio ** min(max(progress, 0.0), 1.0))
