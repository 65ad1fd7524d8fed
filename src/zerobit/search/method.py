"""`Method`: how choices are parameterised and trained. Data that builds thin modules."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from zerobit.bits import NetBits
from zerobit.errors import FormatError
from zerobit.formats import check_bits
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.quant.slot import AbstractActivationSlot, ActivationSlot
from zerobit.search.choice import AbstractGroupChoice, UnitRule
from zerobit.search.slots import WeightSlot
from zerobit.search.widths.base import AbstractWeightQuantizer, AbstractWidthChoice

Granularity = Literal["channel", "layer"]
GRANULARITIES: tuple[Granularity, ...] = ("channel", "layer")


class Searched(Protocol):
    """What a method sees of a network in search."""

    graph: Graph

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules, those of the method among them."""
        ...

    def weight_slot(self, weight: str) -> WeightSlot:
        """The slot of a weight."""
        ...

    def group_choice(self, group: ChannelGroup) -> AbstractGroupChoice | None:
        """The choice of a channel group, if it has one."""
        ...

    def bits(self, *, hard: bool = False) -> NetBits:
        """The choices as distributions."""
        ...


class AbstractMethod(ABC):
    """A pair of gate and width with a schedule.

    Attributes:
        weight_bits: widths offered to weights; 0 among them makes channels removable.
        activation_bits: widths offered to activations.
        min_channels: units that every group keeps.
        start_bits: the width that weights start from; if None, one near the budget, or the widest without one.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    min_channels: int
    start_bits: int | None

    @property
    def widths(self) -> tuple[int, ...]:
        """Weight widths other than 0."""
        return tuple(w for w in self.weight_bits if w)

    @property
    def coupled(self) -> bool:
        """Whether one choice per group holds gate and width of all its layers."""
        return False

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose; if not, no budget is needed, and one is only checked."""
        return True

    @property
    def choosing_share(self) -> float:
        """Share of a search in which each choice is trained."""
        return 1.0

    @abstractmethod
    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> AbstractGroupChoice | None:
        """The choice of a channel group; None if nothing is to choose.

        Args:
            group: of the network.
            rule: how many of its units may stay.
            removable: whether units may go at all.
        """

    @abstractmethod
    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> AbstractWeightQuantizer:
        """The quantizer of one weight.

        Args:
            w_CK: the weight as it was trained, output channels by the rest.
            widths: offered to it, 0 not among them.
            coupled: whether a group's choice holds its widths.
        """

    def activation_choice(self) -> AbstractWidthChoice | None:
        """The width choice of one activation; None if there is one width only, or its slot chooses."""
        return None

    def activation_slot(self, signed: bool) -> AbstractActivationSlot:
        """The quantizer of one activation.

        Args:
            signed: whether values can be negative.
        """
        return ActivationSlot(self.activation_bits, signed)

    def temperature(self, progress: float) -> float:
        """Temperature of all choices at a share of the search, 0..1."""
        del progress
        return 1.0

    def attached(self, net: Searched) -> None:
        """Called once all slots of a network are in place."""
        del net

    def advance(self, net: Searched, progress: float) -> None:
        """Move the schedule of a network in search; called before every step.

        Parameters may get new values; an optimizer keeps what it remembers of them.

        Args:
            net: with this method's choices.
            progress: share of the search that is done, 0..1.
        """
        del net, progress

    def penalty(self, net: Searched) -> Tensor:
        """The method's own loss term, a scalar."""
        return torch.zeros((), dtype=torch.float64, device=net.device)

    def limit_share(self, progress: float, ramp: float) -> float:
        """How far a budget's falling limit has come, 0 at the start and 1 at the budget; a share of its logarithm.

        Args:
            progress: share of the search that is done, 0..1.
            ramp: share of the search over which it falls.
        """
        return min(1.0, progress / ramp) if ramp > 0 else 1.0

    def rate_progress(self, progress: float) -> float:
        """How far the learning rate of choices has come on its way to 0, as a share 0..1.

        Args:
            progress: share of the search that is done, 0..1.
        """
        return progress

    def commit(self, net: Searched, excess: Callable[[NetBits], float]) -> None:
        """Called when the search is over, before anything is decided.

        Args:
            net: with this method's choices.
            excess: choices -> cost over limit of the limit that binds most, 1 where it is just kept; 0 without limits.
        """
        del net, excess


def check_method(method: object) -> None:
    """Raise a FormatError unless this is a method, and not its name or class."""
    if not isinstance(method, AbstractMethod):
        msg = f"`method` is {method!r}; allowed is a method, not its name or class; write for example zerobit.Djpq()"
        raise FormatError(msg)


def check_widths(method: AbstractMethod) -> None:
    """Check and order the widths of a method that is being made, a frozen dataclass.

    Raises:
        FormatError: a width that does not exist, a start that is not offered, or no unit to stay.
    """
    for name, allow_zero in (("weight_bits", True), ("activation_bits", False)):
        value: Any = getattr(method, name)
        widths = tuple(value) if isinstance(value, Iterable) else (value,)
        object.__setattr__(method, name, check_bits(name, widths, allow_zero=allow_zero))
    check_count("min_channels", method.min_channels)
    if method.start_bits is not None:
        check_one_of("start_bits", method.start_bits, method.widths)


def check_one_of(argument: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise a FormatError unless a value is one of those allowed."""
    if value not in allowed:
        msg = f"`{argument}` is {value!r}; allowed are {allowed}; choose one of these"
        raise FormatError(msg)


def check_positive(argument: str, value: float) -> None:
    """Raise a FormatError unless a value is a positive number, and finite."""
    if not (_is_finite(value) and value > 0):
        msg = f"`{argument}` is {value!r}; allowed are positive numbers; choose one of these"
        raise FormatError(msg)


def check_count(argument: str, value: Any) -> None:
    """Raise a FormatError unless a value is a whole number from 1."""
    if not isinstance(value, int) or value < 1:
        msg = f"`{argument}` is {value!r}; allowed are whole numbers from 1; choose one of these"
        raise FormatError(msg)


def check_not_negative(argument: str, value: float) -> None:
    """Raise a FormatError unless a value is a number from 0, and finite."""
    if not (_is_finite(value) and value >= 0):
        msg = f"`{argument}` is {value!r}; allowed are numbers from 0; choose one of these"
        raise FormatError(msg)


def check_share(argument: str, value: float) -> None:
    """Raise a FormatError unless a value is a number between 0 and 1, neither of the two."""
    if not (_is_finite(value) and 0 < value < 1):
        msg = f"`{argument}` is {value!r}; allowed are numbers between 0 and 1; choose one"
        raise FormatError(msg)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
