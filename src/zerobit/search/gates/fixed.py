"""A gate that is given, not searched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zerobit.search.choice import AbstractGroupChoice, Sample

#: Log odds of a unit that goes; as sure as those of a trained gate can be.
_GONE = -20.0


class FixedGate(AbstractGroupChoice):
    """Keeps the units that it is told to; nothing is trained.

    Args:
        units: of the group; all stay until `keep_only`.
    """

    kept: Tensor

    def __init__(self, units: int) -> None:
        super().__init__("hard")
        self.register_buffer("kept", torch.ones(units, dtype=torch.bool), persistent=False)

    def keep_only(self, units: Sequence[int]) -> None:
        """Keep these units and no others; in place."""
        self.kept.fill_(False)[list(units)] = True

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units], 0 or 1."""
        del noise
        return self.kept.to(torch.get_default_dtype())

    def hard(self) -> Tensor:
        """[units], bool."""
        return self.kept

    def log_odds(self) -> Tensor:
        """[units]: what stays, must."""
        return torch.where(self.kept, torch.inf, _GONE).double()

    def forward(self) -> Sample:
        """0 or 1 as factors."""
        return Sample(self.sample())

    def extra_repr(self) -> str:
        """How many of its units stay."""
        return f"units={len(self.kept)}, kept={int(self.kept.sum())}"
