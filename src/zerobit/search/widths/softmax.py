"""A width chosen by softmax over the offered ones, per channel or per layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.search.choice import AbstractChoice, Sampling, gumbel_noise


class SoftmaxWidth(AbstractChoice):
    """Width logits of one tensor.

    Args:
        channels: rows of the result.
        widths: the W widths offered.
        sampling: see `AbstractChoice`.
        start: logits at the start, [W].
        per_layer: one row of logits for all channels.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        sampling: Sampling,
        start: Tensor,
        *,
        per_layer: bool = False,
    ) -> None:
        super().__init__(sampling)
        self.widths, self.channels = tuple(widths), channels
        self.width = nn.Parameter(start.detach().clone().repeat(1 if per_layer else channels, 1))

    def probability(self, *, noise: bool = False) -> Tensor:
        """[channels, W], rows sum to 1."""
        logits = self.width + gumbel_noise(self.width) if noise else self.width
        return torch.softmax(logits / self.temperature, 1).expand(self.channels, -1)

    def hard(self) -> Tensor:
        """[channels, W], one-hot at the largest logit."""
        best = self.width.detach().argmax(1)
        return nn.functional.one_hot(best, len(self.widths)).expand(self.channels, -1)

    def forward(self) -> Tensor:
        """[channels, W], the share of each precision."""
        return self.sample()
