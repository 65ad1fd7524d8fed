"""A gate with one logit per unit: sigmoid(logit / T) is the probability that the unit stays."""

import math

import torch
from torch import Tensor, nn

from zerobit.search.choice import AbstractGroupChoice, Sample, Sampling, UnitRule, gumbel_noise, ranks

#: Gates start clearly open, close enough to the threshold to be closed within a search. (At a temperature of 1.)
GATE_START = 0.85
_START_LOGIT = float(torch.logit(torch.tensor(GATE_START)))
#: Half the distance between the first and the last gate at the start, in units of their mean.
_SPREAD = 0.6


class LogitGate(AbstractGroupChoice):
    """Separate gate of a channel group.

    Args:
        units: number of units.
        sampling: see `AbstractChoice`.
        rule: how many units may stay.
        temperature: at the start. Soft gates are divided by their probability then, so that the search starts at the
            trained network's function. As published, this is for good, and becomes part of the weights: those are
            trained with it, and open gates are no longer at that probability when they are cut.
    """

    def __init__(self, units: int, sampling: Sampling, rule: UnitRule, temperature: float = 1.0) -> None:
        super().__init__(sampling)
        self.gate = nn.Parameter(torch.full((units,), _START_LOGIT))
        self.rule = rule
        self.scale = 1.0 if sampling == "hard" else 1 + math.exp(-_START_LOGIT / temperature)
        self.scales = self.scale != 1

    @torch.no_grad()
    def order(self, importance: Tensor) -> None:
        """Start with important units wider open, in place; the mean stays.

        Under a price that all units pay alike, gates that start alike close alike, all at once: the limit is overshot
        before the search knows which to keep. Soft gates start at one value, which their scale makes up for.

        Args:
            importance: [units], larger is more important.
        """
        if self.sampling == "hard" and len(importance) > 1:
            rank = ranks(importance).to(self.gate)
            self.gate *= 1 + _SPREAD * (2 * rank / (len(rank) - 1) - 1)

    @torch.no_grad()
    def close(self, units: Tensor) -> None:
        """Close gates as far as they were open at first, in place; they may open again.

        Args:
            units: bool [units].
        """
        self.gate.copy_(torch.where(units, self.gate.clamp_max(-_START_LOGIT), self.gate))

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units]."""
        logit = self.gate
        if noise:
            logit = logit + gumbel_noise(logit) - gumbel_noise(logit)
        return torch.sigmoid(logit / self.temperature)

    def hard(self) -> Tensor:
        """[units], bool: probability above 1/2, as many as the rule allows."""
        return self.rule.apply(self.gate.detach() > 0, self.gate.detach())

    def log_odds(self) -> Tensor:
        """[units], of the probability at this temperature."""
        return self.gate.detach().double() / self.temperature

    def factor(self) -> Tensor:
        """[units], what soft gates were divided by."""
        return torch.full_like(self.gate.detach(), self.scale)

    def forward(self) -> Sample:
        """Gates as factors."""
        gate = self.sample()
        return Sample(self.scale * gate, mask=gate)

    def extra_repr(self) -> str:
        """Number of units."""
        return f"units={len(self.gate)}"
