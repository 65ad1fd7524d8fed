"""Costs that are formulas: size, multiplications, bit operations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.cost.base import FLOAT_BITS, GRID_BITS, AbstractCost, LayerUse, Usage
from zerobit.formats import DEFAULT_STORAGE


def _sum(terms: list[Tensor]) -> Tensor:
    """0 for a network without any."""
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def stored_bits(storage: tuple[int, ...]) -> Tensor:
    """[B], bits that a value of each grid width takes; a width between two stored ones takes the wider."""
    widths = [0 if b == 0 else min(s for s in storage if s >= b) for b in map(int, GRID_BITS.tolist())]
    return torch.tensor(widths, dtype=torch.float64)


@dataclass(frozen=True)
class Size(AbstractCost):
    """Bytes of all weights, those left in float included; biases are not counted.

    Motetti et al. (IEEE TC 2024), size regulariser of the official code; 1 kB = 1000 B.

    Attributes:
        storage: widths the target holds; others round up.
    """

    storage: tuple[int, ...] = DEFAULT_STORAGE
    name = "size"
    unit = "B"

    def __call__(self, use: Usage) -> Tensor:
        """Bytes."""
        per_width = stored_bits(self.storage)
        terms = [(w.dist.p.sum(0) @ per_width.to(w.dist.p.device)) * w.fan_in for w in use.weights]
        quantised = _sum(terms)
        return (quantised + use.float_weights.to(quantised.device) * FLOAT_BITS) / 8


@dataclass(frozen=True)
class Macs(AbstractCost):
    """Multiplications per sample, whatever their width."""

    name = "macs"
    unit = "MAC"

    def __call__(self, use: Usage) -> Tensor:
        """Multiplications."""
        return _sum([layer.macs_by_width[1:].sum() for layer in use.layers])


@dataclass(frozen=True)
class Bops(AbstractCost):
    """Bit operations: multiplications times weight width times activation width.

    As in DJPQ (Wang, Lu, Blankevoort, ECCV 2020) and Bayesian Bits (van Baalen et al., NeurIPS 2020).
    """

    name = "bops"
    unit = "BOP"

    def __call__(self, use: Usage) -> Tensor:
        """Bit operations."""
        return _sum([_bit_operations(layer) for layer in use.layers])


def _bit_operations(layer: LayerUse) -> Tensor:
    macs = layer.macs_by_width
    return (macs @ GRID_BITS.to(macs.device)) * layer.activation_bits.to(macs.device)
