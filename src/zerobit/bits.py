"""`BitDist`: for each channel, probabilities over the bit grid {0, 2, 3, ..., 8}; the one currency of the library.

Every method maps onto it; costs, decisions and reports are written once, against it.
Shape legend: C channels, W widths a method offers, B = len(GRID) grid points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from zerobit.formats import GRID

_COLUMN = {width: column for column, width in enumerate(GRID)}


@dataclass(frozen=True, eq=False)
class BitDist:
    """Per-channel probabilities over `GRID`.

    Attributes:
        p: float64 [C, B], rows sum to 1; differentiable.
    """

    p: Tensor

    @staticmethod
    def from_gate_and_width(gate: Tensor, width: Tensor, widths: Sequence[int]) -> "BitDist":
        """Compose a gate and a width choice: p[c, 0] = 1 - gate[c], p[c, b] = gate[c] * width[c, b].

        Args:
            gate: [C], probability that the channel stays.
            width: [C, W], probabilities of the widths given that it stays.
            widths: the W widths, none of them 0.
        """
        gate, width = gate.double(), width.double()
        kept = (gate[:, None] * width) @ _columns(tuple(widths)).to(gate.device)
        return BitDist(torch.cat([(1 - gate)[:, None], kept[:, 1:]], dim=1))

    @staticmethod
    def one_hot(bits: Sequence[int] | Tensor) -> "BitDist":
        """All probability on one integer width per channel, given as C ints from `GRID`."""
        values = bits.tolist() if isinstance(bits, Tensor) else bits
        columns = torch.tensor([_COLUMN[int(b)] for b in values])
        return BitDist(torch.nn.functional.one_hot(columns, len(GRID)).double())

    @property
    def keep(self) -> Tensor:
        """[C], probability that the channel stays."""
        return 1 - self.p[:, 0]

    @property
    def bits(self) -> Tensor:
        """[C], expected width; a removed channel counts 0."""
        return self.p @ torch.tensor(GRID, dtype=self.p.dtype, device=self.p.device)


def blend(values: Tensor, points: Sequence[int]) -> Tensor:
    """Shares of the two neighbours of each value, linear between them.

    Args:
        values: [C], between the first point and the last; differentiable.
        points: W numbers, ascending.

    Returns:
        float64 [C, W], rows sum to 1.
    """
    grid = torch.tensor(points, dtype=torch.float64, device=values.device)
    if len(points) == 1:
        return torch.ones(len(values), 1, dtype=torch.float64, device=values.device)
    x, lower = values.double(), upper_neighbour(values, points) - 1
    share = (x - grid[lower]) / (grid[lower + 1] - grid[lower])
    empty = torch.zeros(len(x), len(points), dtype=torch.float64, device=x.device)
    pair = torch.stack([1 - share, share], 1)
    return empty.scatter(1, torch.stack([lower, lower + 1], 1), pair)


def upper_neighbour(values: Tensor, points: Sequence[int]) -> Tensor:
    """Int64 [C], place of the point above each value: the next one at a point; the last, or the second, at the ends.

    Args:
        values: [C].
        points: two or more numbers, ascending.
    """
    grid = torch.tensor(points, dtype=torch.float64, device=values.device)
    return torch.searchsorted(grid, values.detach().double().contiguous(), right=True).clamp(1, len(points) - 1)


@cache
def _columns(widths: tuple[int, ...]) -> Tensor:
    """[W, B], 1 where a width stands on the grid."""
    with torch.inference_mode(False):  # it outlives whoever asks first
        return torch.nn.functional.one_hot(torch.tensor([_COLUMN[w] for w in widths]), len(GRID)).double()


@dataclass(frozen=True, eq=False)
class NetBits:
    """The widths of a whole network; what every method and every plan comes down to.

    Attributes:
        keep: group name -> float64 [units], probability that each unit stays.
        weights: weight name -> distribution over its output channels; absent for weights left in float.
        activations: tensor name -> distribution with one row, for every tensor with an activation slot.
    """

    keep: Mapping[str, Tensor]
    weights: Mapping[str, BitDist]
    activations: Mapping[str, BitDist]
