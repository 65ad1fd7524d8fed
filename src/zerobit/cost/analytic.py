"""Costs that are formulas: size, multiplications, bit operations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.cost.base import FLOAT_BITS, GRID_BITS, AbstractCost, LayerUse, Usage, rounded_up, total
from zerobit.formats import DEFAULT_STORAGE


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
        per_width = torch.tensor(rounded_up(self.storage), dtype=torch.float64)
        quantised = total([(w.counts @ per_width.to(w.counts.device)) * w.fan_in for w in use.weights])
        return (quantised + use.float_weights.to(quantised.device) * FLOAT_BITS) / 8


@dataclass(frozen=True)
class Macs(AbstractCost):
    """Multiplications of convolutions and linear layers per sample, whatever their width.

    Those of recurrent layers, of barriers, and of activations with each other (attention) are not counted, here as in
    all costs that price layers.
    """

    name = "macs"
    unit = "MAC"

    def __call__(self, use: Usage) -> Tensor:
        """Multiplications."""
        return total([layer.macs_by_width[..., 1:].sum(-1) for layer in use.layers])


@dataclass(frozen=True)
class Bops(AbstractCost):
    """Bit operations: multiplications times weight width times activation width.

    As in DJPQ (Wang, Lu, Blankevoort, ECCV 2020) and Bayesian Bits (van Baalen et al., NeurIPS 2020).
    """

    name = "bops"
    unit = "BOP"

    def __call__(self, use: Usage) -> Tensor:
        """Bit operations."""
        return total([_bit_operations(layer) for layer in use.layers])


def _bit_operations(layer: LayerUse) -> Tensor:
    macs = layer.macs_by_width
    return (macs @ GRID_BITS.to(macs.device)) * layer.activation_bits.to(macs.device)
