"""Discrete choices with gradients: how probabilities become the values that a forward pass uses."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zerobit.quant.fake import straight_through

Sampling = Literal["hard", "softmax", "gumbel"]
SAMPLINGS: tuple[Sampling, ...] = ("hard", "softmax", "gumbel")
#: Below this temperature a softmax's gradient is 0 in float32.
MIN_TEMPERATURE = 1e-2


@dataclass(frozen=True, eq=False)
class Sample:
    """What a channel group's choice hands to the slots of one forward pass.

    Attributes:
        factor: [units], on all that makes a unit.
        shares: [units, W], of each precision in the coupled form; they sum to the factor.
        noise: [units], standard deviation of a factor around 1, drawn anew for each sample of a batch; or None.
        mask: [units], on activations, of which a factor could not become part of the cut network: 0 for a unit that
            goes, 1 for one that stays; if None, whether the factor is 0.
    """

    factor: Tensor
    shares: Tensor | None = None
    noise: Tensor | None = None
    mask: Tensor | None = None


class AbstractChoice(nn.Module, ABC):
    """A trained choice.

    Attributes:
        is_of_weights: whether its parameters are weights in another form, which learn at the rate of weights; others
            learn at that of choices, which is made faster where a search is short.
        sampling: "hard" uses the hard choice with the soft gradient, "softmax" the probabilities, "gumbel" a sample.
        temperature: of the probabilities; set by the method's schedule.
    """

    is_of_weights: bool = False

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.sampling: Sampling = sampling
        self.temperature = 1.0

    @abstractmethod
    def probability(self, *, noise: bool = False) -> Tensor:
        """Soft probabilities."""

    @abstractmethod
    def hard(self) -> Tensor:
        """The hard choice as 0 and 1, of the same shape; the one used by evaluation, decide and apply."""

    def price_view(self) -> Tensor:
        """What a cost sees: no noise, and the hard values if the forward pass uses these."""
        soft = self.probability()
        return straight_through(self.hard().to(soft), soft) if self.sampling == "hard" else soft

    def view(self, *, hard: bool) -> Tensor:
        """The choice as numbers, float64: the hard one, or what a cost sees.

        Args:
            hard: which of the two.
        """
        return (self.hard() if hard else self.price_view()).double()

    def sample(self) -> Tensor:
        """What a forward pass uses: the hard choice in evaluation, the sampling mode's in training."""
        if not self.training:
            return self.hard().to(torch.get_default_dtype())
        if self.sampling == "hard":
            return self.price_view()
        return self.probability(noise=self.sampling == "gumbel")


class AbstractGroupChoice(AbstractChoice):
    """Whether the units of a channel group stay; in the coupled form, at which widths, too.

    Attributes:
        widths: of the coupled form, 0 not among them; none where each weight has its own.
        scales: whether a unit that stays has a factor other than 1, which becomes part of the weights.
        is_noisy: whether samples have noise.
    """

    widths: tuple[int, ...] = ()
    scales: bool = False
    is_noisy: bool = False

    def keep(self, *, hard: bool) -> Tensor:
        """[units], float64, probability of staying, or 0 and 1.

        Args:
            hard: which of the two.
        """
        view = self.view(hard=hard)
        return 1 - view[:, 0] if self.widths else view

    @abstractmethod
    def log_odds(self) -> Tensor:
        """[units], of staying; +inf for a unit that must stay."""

    @abstractmethod
    def forward(self) -> Sample:
        """For one pass."""

    def preference(self) -> Tensor:
        """[units, W], how much each width is preferred in the coupled form, as logarithms."""
        return self.log_odds()[:, None][:, :0]

    def factor(self) -> Tensor:
        """[units], factor of each unit if it stays."""
        return torch.ones_like(self.log_odds())

    def order(self, importance: Tensor) -> None:
        """Start with important units farther from removal, where the choice knows a way to; in place.

        Args:
            importance: [units], larger is more important.
        """
        del importance

    def start_at(self, bits: int) -> None:
        """Start from a width, or the nearest on offer, where the coupled form knows a way to; in place.

        Args:
            bits: the width.
        """
        del bits


def ranks(importance: Tensor) -> Tensor:
    """Int64 [units], place of each unit in the order of importance, 0 for the least."""
    return torch.argsort(torch.argsort(importance, stable=True), stable=True)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the same shape."""
    uniform = torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
    return -torch.log(-torch.log(uniform))


@dataclass(frozen=True)
class UnitRule:
    """How many units of a group may stay: a multiple of `multiple_of` from `at_least` on, or all.

    Attributes:
        at_least: units that stay in any case; all, if there are fewer.
        multiple_of: their number is a multiple of this, unless all stay.
    """

    at_least: int = 1
    multiple_of: int = 1

    def fewest(self, units: int) -> int:
        """The smallest number of units that may stay."""
        return min(units, math.ceil(self.at_least / self.multiple_of) * self.multiple_of)

    def below(self, count: int) -> int:
        """The next smaller number; to be used above the fewest only."""
        return (count - 1) // self.multiple_of * self.multiple_of

    def above(self, count: int, units: int) -> int:
        """The next larger number; to be used below all only."""
        return min(units, (count // self.multiple_of + 1) * self.multiple_of)

    def nearest(self, count: int, units: int) -> int:
        """The allowed number nearest to one, the larger of two equally near."""
        if count <= self.fewest(units):
            return self.fewest(units)
        if count >= units or count % self.multiple_of == 0:
            return min(count, units)
        below, above = self.below(count), self.above(count, units)
        return below if count - below < above - count else above

    def apply(self, wanted: Tensor, score: Tensor) -> Tensor:
        """The units that stay: those that are wanted, if their number may be, else fewer or more by score.

        Args:
            wanted: bool [units].
            score: [units]; units of large score stay first.
        """
        now = int(wanted.sum())
        count = self.nearest(now, len(wanted))
        if count == now:
            return wanted
        by_score = torch.argsort(score, descending=True, stable=True)
        first = by_score[torch.argsort(wanted[by_score].int(), descending=True, stable=True)[:count]]
        return torch.zeros_like(wanted).index_fill(0, first, True)
