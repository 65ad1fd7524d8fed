"""Peak RAM of activations."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from zerobit.cost.base import AbstractCost, Usage
from zerobit.cost.staircase import soft_maximum


@dataclass(frozen=True)
class PeakRam(AbstractCost):
    """Bytes of all buffers of activations that are live at once, at the worst moment; one sample.

    What a buffer is and how long it lives is said in `liveness.py`. It is the least that a static arena can take: a
    planner that can't place buffers without gaps needs more, and so do kernels with memory of their own. Weights are
    not in it, as they are read from flash.
    """

    name = "ram"
    unit = "B"
    by_weight = False

    def __call__(self, use: Usage) -> Tensor:
        """Bytes; exact, while the gradient goes to all moments that are close to the worst."""
        if not use.values:
            return torch.zeros((), dtype=torch.float64)
        sizes = _together([v.elements for v in use.values]) * _together([v.bits for v in use.values]) / 8
        live = _live(tuple((v.first, v.last) for v in use.values), sizes.device)
        return soft_maximum(sizes @ live)


def _together(terms: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*terms), -1)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # it outlives whoever asks first
def _live(lives: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """float64 [N, M], 1 for the buffers that are live at each moment; moments that hold less than another are left out.

    Args:
        lives: first and last step of each of the N buffers.
        device: to put it on.
    """
    moments = range(min(first for first, _ in lives), max(last for _, last in lives) + 1)
    sets = {frozenset(i for i, (first, last) in enumerate(lives) if first <= t <= last): None for t in moments}
    largest = [s for s in sets if not any(s < other for other in sets)]
    rows = [[float(i in s) for s in largest] for i in range(len(lives))]
    return torch.tensor(rows, dtype=torch.float64, device=device)
