"""Discrete choices with gradients: how probabilities become the values that a forward pass uses."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from zerobit.quant.fake import straight_through

Sampling = Literal["hard", "softmax", "gumbel"]
SAMPLINGS: tuple[Sampling, ...] = ("hard", "softmax", "gumbel")
#: Below this temperature a softmax's gradient is 0 in float32.
MIN_TEMPERATURE = 1e-2


class AbstractChoice(nn.Module, ABC):
    """A trained choice.

    Attributes:
        sampling: "hard" uses the hard choice with the soft gradient, "softmax" the probabilities, "gumbel" a sample.
        temperature: of the probabilities; set by the method's schedule.
    """

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

    def sample(self) -> Tensor:
        """What a forward pass uses: the hard choice in evaluation, the sampling mode's in training."""
        if not self.training:
            return self.hard().to(torch.get_default_dtype())
        if self.sampling == "hard":
            return self.price_view()
        return self.probability(noise=self.sampling == "gumbel")


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the same shape."""
    uniform = torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
    return -torch.log(-torch.log(uniform))


def keep_at_least(hard: Tensor, score: Tensor, minimum: int) -> Tensor:
    """Hard gates with at least `minimum` units kept, those of largest score."""
    if int(hard.sum()) >= minimum:
        return hard
    best = torch.topk(score, min(minimum, len(score))).indices
    return torch.zeros_like(hard).index_fill(0, best, True)
