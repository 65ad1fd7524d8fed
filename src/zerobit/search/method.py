"""`Method`: how choices are parameterised and trained. Data that builds thin modules."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zerobit.errors import FormatError
from zerobit.formats import DEFAULT_STORAGE, check_bits
from zerobit.quant.slot import GRIDS
from zerobit.search.choice import MIN_TEMPERATURE, SAMPLINGS, AbstractChoice, Sampling, UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth


class AbstractMethod(ABC):
    """A pair of gate and width with a schedule.

    Attributes:
        weight_bits: widths offered to weights; 0 among them makes channels removable.
        activation_bits: widths offered to activations.
        min_channels: units that every group keeps.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    min_channels: int
    grid: str

    @property
    def widths(self) -> tuple[int, ...]:
        """Weight widths other than 0."""
        return tuple(w for w in self.weight_bits if w)

    @property
    @abstractmethod
    def coupled(self) -> bool:
        """Whether one choice per group holds gate and width of all its layers."""

    @abstractmethod
    def group_choice(self, units: int, rule: UnitRule, *, removable: bool) -> AbstractChoice | None:
        """The choice of a channel group; None if nothing is to choose.

        Args:
            units: of the group.
            rule: how many of them may stay.
            removable: whether units may go at all.
        """

    @abstractmethod
    def width_choice(self, channels: int, widths: tuple[int, ...]) -> SoftmaxWidth | None:
        """The width choice of one weight that no group's choice holds; None if there is one width only.

        Args:
            channels: of the weight.
            widths: offered to it, 0 not among them.
        """

    @abstractmethod
    def activation_choice(self) -> SoftmaxWidth | None:
        """The width choice of one activation; None if there is one width only."""

    @abstractmethod
    def temperature(self, progress: float) -> float:
        """Temperature of all choices at a share of the search, 0..1."""


@dataclass(frozen=True)
class ChannelSoftmax(AbstractMethod):
    """Channel-wise selection with a 0-bit option (Motetti et al., IEEE TC 2024), and beyond it.

    By default a gate per unit is shared by its group and a width per channel belongs to each layer; with `shared` one
    softmax over all options does both, as published.

    Attributes:
        weight_bits: offered to weights, from {0, 2..8}; 0 removes the channel.
        activation_bits: offered to activations, from {2..8}.
        shared: the published coupled form.
        granularity: "channel", or "layer" for one width per layer.
        sampling: "hard" trains the network that will be cut, with straight-through gradients; "softmax" and "gumbel"
            are the published modes.
        start_temperature: of the softmax, at the start.
        end_temperature: and at the end; between them it falls geometrically. Floored at 0.01.
        grid: "learned" steps (LSQ), or "minmax" as published.
        start_bits: the width that channels start from; the widest if None.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width, sampling, granularity or grid that does not exist.
    """

    weight_bits: tuple[int, ...] = (0, *DEFAULT_STORAGE)
    activation_bits: tuple[int, ...] = (8,)
    shared: bool = False
    granularity: Literal["channel", "layer"] = "channel"
    sampling: Sampling = "hard"
    start_temperature: float = 1.0
    end_temperature: float = 1.0
    grid: str = "learned"
    start_bits: int | None = None
    min_channels: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_bits", check_bits("weight_bits", self.weight_bits, allow_zero=True))
        object.__setattr__(
            self, "activation_bits", check_bits("activation_bits", self.activation_bits, allow_zero=False)
        )
        _positive("min_channels", self.min_channels)
        _positive("start_temperature", self.start_temperature)
        _positive("end_temperature", self.end_temperature)
        _one_of("sampling", self.sampling, SAMPLINGS)
        _one_of("granularity", self.granularity, ("channel", "layer"))
        _one_of("grid", self.grid, tuple(GRIDS))
        if self.start_bits is not None:
            _one_of("start_bits", self.start_bits, self.widths)

    @property
    def coupled(self) -> bool:
        """As `shared` says."""
        return self.shared

    def group_choice(self, units: int, rule: UnitRule, *, removable: bool) -> AbstractChoice | None:
        """A gate, or the coupled softmax."""
        if self.shared:
            return CoupledChoice(units, self.widths, self.sampling, removable=removable, rule=rule)
        return LogitGate(units, self.sampling, _GATE_START, rule) if removable else None

    def width_choice(self, channels: int, widths: tuple[int, ...]) -> SoftmaxWidth | None:
        """Per channel or per layer."""
        if len(widths) == 1:
            return None
        per_layer = self.granularity == "layer"
        start = start_logits(widths, self.start_bits or max(widths))
        return SoftmaxWidth(channels, widths, self.sampling, start, per_layer=per_layer)

    def activation_choice(self) -> SoftmaxWidth | None:
        """One row."""
        if len(self.activation_bits) == 1:
            return None
        start = torch.tensor(self.activation_bits) / max(self.activation_bits)
        return SoftmaxWidth(1, self.activation_bits, self.sampling, start)

    def temperature(self, progress: float) -> float:
        """Geometric from start to end."""
        ratio = self.end_temperature / self.start_temperature
        return max(MIN_TEMPERATURE, self.start_temperature * ratio ** min(max(progress, 0.0), 1.0))


def start_logits(widths: tuple[int, ...], first: int) -> Tensor:
    """Start logits: the published b / max(b), folded around the width to start from."""
    return 1 - (torch.tensor(widths) - first).abs() / max(widths)


#: Gates start clearly open, close enough to the threshold to be closed within a search.
_GATE_START = 0.85


def _one_of(argument: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        msg = f"`{argument}` is {value!r}; allowed are {allowed}; choose one of these"
        raise FormatError(msg)


def _positive(argument: str, value: float) -> None:
    if not value > 0:
        msg = f"`{argument}` is {value}; allowed are positive numbers; choose one of these"
        raise FormatError(msg)
