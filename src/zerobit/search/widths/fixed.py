"""Widths that are given, not searched."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.search.widths.base import AbstractWidthChoice


class FixedWidth(AbstractWidthChoice):
    """Each channel at the width that it is told; nothing is trained.

    Args:
        channels: rows of the result.
        widths: the W widths that occur; the widest everywhere until `set_bits`.
    """

    column: Tensor

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__(channels, widths, "hard", per_layer=False)
        self.register_buffer("column", torch.full((channels,), len(self.widths) - 1), persistent=False)

    def set_bits(self, bits: Sequence[int]) -> None:
        """Give every channel its width, one of those that occur; in place. A removed one, 0, gets the narrowest."""
        self.column.copy_(torch.tensor([self.widths.index(b) if b else 0 for b in bits]))

    def probability(self, *, noise: bool = False) -> Tensor:
        """[channels, W], one-hot."""
        del noise
        return self.hard().to(torch.get_default_dtype())

    def hard(self) -> Tensor:
        """[channels, W], one-hot."""
        return nn.functional.one_hot(self.column, len(self.widths))

    def preference(self) -> Tensor:
        """[channels, W]: no width but the given one is offered."""
        return torch.where(self.hard() > 0, 0.0, -torch.inf).double()

    def start_at(self, bits: int) -> None:
        """Nothing: what is given stays."""
        del bits
