"""The published form: one softmax over {0, 2, 4, 8} per unit, shared by all layers of the group.

Motetti et al., "Joint Pruning and Channel-wise Mixed-Precision Quantization for Efficient Deep Neural Networks",
IEEE TC 2024. The gate is 1 - theta_0, the widths are the other thetas.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.search.choice import AbstractGroupChoice, Sample, Sampling, UnitRule, gumbel_noise


class CoupledChoice(AbstractGroupChoice):
    """Gate and width of a channel group in one softmax.

    Args:
        units: number of units.
        widths: the W widths besides 0.
        sampling: see `AbstractChoice`.
        temperature: at the start.
        removable: whether the 0-bit option exists; it does not where units are frozen.
        rule: how many units may stay.
    """

    def __init__(
        self,
        units: int,
        widths: Sequence[int],
        sampling: Sampling,
        temperature: float = 1.0,
        *,
        removable: bool,
        rule: UnitRule,
    ) -> None:
        super().__init__(sampling)
        self.widths, self.rule, self.removable = tuple(widths), rule, removable
        options = torch.tensor([0, *widths] if removable else widths, dtype=torch.float32)
        self.width = nn.Parameter((options / options.max()).repeat(units, 1))
        start = torch.softmax(self.width.detach()[0] / temperature, 0)
        # the paper divides the weights by the share that is not zero; here the mixture is, and in the end the weights
        self.scale = 1.0 if sampling == "hard" or not removable else float(1 / (1 - start[0]))
        self.scales = self.scale != 1

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units, 1 + W]; column 0 is the share of removal."""
        logits = self.width + gumbel_noise(self.width) if noise else self.width
        theta = torch.softmax(logits / self.temperature, 1)
        return theta if self.removable else torch.cat([torch.zeros_like(theta[:, :1]), theta], 1)

    def hard(self) -> Tensor:
        """[units, 1 + W], one-hot; as many units stay as the rule allows."""
        logits = self._logits()
        kept = self.rule.apply(logits.argmax(1) > 0, self.log_odds())
        best = torch.where(kept, logits[:, 1:].argmax(1) + 1, 0)
        return nn.functional.one_hot(best, logits.shape[1])

    def log_odds(self) -> Tensor:
        """[units], of the likeliest width against removal: positive where the hard choice keeps a unit."""
        logits = self._logits()
        return logits[:, 1:].amax(1) - logits[:, 0]

    def preference(self) -> Tensor:
        """[units, W], logarithms of the probabilities."""
        return self._logits().log_softmax(1)[:, 1:]

    def factor(self) -> Tensor:
        """[units], what the mixture was divided by."""
        return torch.full_like(self.width.detach()[:, 0], self.scale)

    def forward(self) -> Sample:
        """Shares of the precisions; those of removed units are zero."""
        shares = self.sample()[:, 1:]
        mask = shares.sum(1)
        return Sample(self.scale * mask, self.scale * shares, mask=mask)

    def _logits(self) -> Tensor:
        """Float64 [units, 1 + W]: probabilities of float32 tell nothing apart near 0 and 1, where cold ones are."""
        logits = self.width.detach().double() / self.temperature
        return logits if self.removable else torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits], 1)
