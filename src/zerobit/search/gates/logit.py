"""A gate with one logit per unit: sigmoid(logit / T) is the probability that the unit stays."""

import torch
from torch import Tensor, nn

from zerobit.search.choice import AbstractChoice, Sampling, UnitRule, gumbel_noise


class LogitGate(AbstractChoice):
    """Separate gate of a channel group.

    Args:
        units: number of units.
        sampling: see `AbstractChoice`.
        start: probability at the start; soft gates are divided by it, so that the search starts at the trained
            network's function.
        rule: how many units may stay.
    """

    def __init__(self, units: int, sampling: Sampling, start: float, rule: UnitRule) -> None:
        super().__init__(sampling)
        self.gate = nn.Parameter(torch.logit(torch.full((units,), start)))
        self.rule = rule
        self.scale = 1.0 if sampling == "hard" else 1 / start

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units]."""
        logit = self.gate
        if noise:
            logit = logit + gumbel_noise(logit) - gumbel_noise(logit)
        return torch.sigmoid(logit / self.temperature)

    def hard(self) -> Tensor:
        """[units], bool: probability above 1/2, as many as the rule allows."""
        return self.rule.apply(self.gate.detach() > 0, self.gate.detach())

    def forward(self) -> Tensor:
        """[units], the factor on each unit."""
        return self.sample() * (self.scale if self.training else 1.0)

    def extra_repr(self) -> str:
        """Number of units."""
        return f"units={len(self.gate)}"
