"""A width chosen by softmax over the offered ones, per channel or per layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.search.choice import Sampling, gumbel_noise
from zerobit.search.widths.base import AbstractWidthChoice


class SoftmaxWidth(AbstractWidthChoice):
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
        super().__init__(channels, widths, sampling, per_layer=per_layer)
        self.width = nn.Parameter(start.detach().clone().repeat(1 if per_layer else channels, 1))

    def probability(self, *, noise: bool = False) -> Tensor:
        """[channels, W], rows sum to 1."""
        logits = self.width + gumbel_noise(self.width) if noise else self.width
        return torch.softmax(logits / self.temperature, 1).expand(self.channels, -1)

    def preference(self) -> Tensor:
        """[channels, W], logarithms of the probabilities; those of float32 tell nothing apart near 0."""
        return (self.width.detach().double() / self.temperature).log_softmax(1).expand(self.channels, -1)

    def hard(self) -> Tensor:
        """[channels, W], one-hot at the largest logit."""
        best = self.width.detach().argmax(1)
        return nn.functional.one_hot(best, len(self.widths)).expand(self.channels, -1)

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """Prefer one width, and the others the less the farther they are from it; in place."""
        self.width.copy_(start_logits(self.widths, bits).expand_as(self.width))


def activation_softmax(widths: Sequence[int], sampling: Sampling) -> SoftmaxWidth | None:
    """The choice of one activation, started as published at b / max(b); None if there is one width only."""
    if len(widths) == 1:
        return None
    return SoftmaxWidth(1, widths, sampling, torch.tensor(widths) / max(widths))


def start_logits(widths: Sequence[int], first: int) -> Tensor:
    """Start logits: the published b / max(b), folded around the width to start from."""
    return 1 - (torch.tensor(widths) - first).abs() / max(widths)
