"""Slots of a search: a weight at its mixture of widths, the gates of channel groups, and their noise."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerobit.graph.ir import Graph, Rows
from zerobit.graph.rows import from_rows, to_rows
from zerobit.search.choice import Sample
from zerobit.search.widths.base import AbstractWeightQuantizer


@dataclass(frozen=True, eq=False)
class Along:
    """Choices of the groups that lie along a dimension of a tensor, or along the rows of a weight.

    Attributes:
        groups: their names.
        index: int64 [C], for each position the place of its unit in the groups' samples, one after another; behind
            the last where it belongs to none.
        is_whole: whether every position belongs to one of them.
    """

    groups: tuple[str, ...]
    index: Tensor
    is_whole: bool


def choices_along(graph: Graph, units: Mapping[str, NDArray[np.int64]], count: int, only: Container[str]) -> Along:
    """The groups of `only` along some positions.

    Args:
        graph: of the network.
        units: group -> int64 [count], the unit at each position, -1 for none.
        count: number of positions.
        only: names of the groups that have a choice.
    """
    sizes = {group.name: group.units for group in graph.groups}
    present = {name: torch.as_tensor(unit) for name, unit in units.items() if name in only}
    total = sum(sizes[name] for name in present)
    index = torch.full((count,), total, dtype=torch.int64)
    start = 0
    for name, unit in present.items():
        index = torch.where(unit >= 0, unit + start, index)
        start += sizes[name]
    return Along(tuple(present), index, bool((index < total).all()))


def per_channel(samples: Sequence[Tensor], index: Tensor) -> Tensor:
    """Samples of several groups, a row per channel; ones where a channel belongs to no group."""
    return torch.cat([*samples, torch.ones_like(samples[0][:1])]).index_select(0, index)


class WeightSlot(nn.Module):
    """Quantises a weight at its mixture of widths and applies the gates of its groups.

    A deterministic gate behind conv + bias is the same function as a gate on weight and bias; here it costs no pass
    over an activation.

    Args:
        quantizer: at widths that are being chosen.
        along: choices of the groups along its output channels.
        layout: how its output channels lie.
        coupled: whether the groups' choices hold the widths.
    """

    index: Tensor

    def __init__(self, quantizer: AbstractWeightQuantizer, along: Along, layout: Rows, *, coupled: bool) -> None:
        super().__init__()
        self.quantizer, self.coupled = quantizer, coupled
        self.groups, self.layout = along.groups, layout
        self.register_buffer("index", along.index, persistent=False)
        self.bypassed = False

    def forward(self, w: Tensor, *samples: Sample) -> Tensor:
        """Effective weight.

        Args:
            w: in the layout of its layer.
            samples: of the groups' choices.
        """
        if self.bypassed:
            return w
        flat, factor, shares = to_rows(w, self.layout), None, None
        if self.coupled:
            shares = per_channel([s.shares for s in samples if s.shares is not None], self.index)
        elif samples:
            factor = per_channel([s.factor for s in samples], self.index)
        return from_rows(self.quantizer(flat, factor, shares), w, self.layout)


class GateSlot(nn.Module):
    """Multiplies a bias, the scale and shift of a norm, or an activation, by the gates of its groups.

    Args:
        along: choices of the groups along a dimension.
        dim: that dimension.
        masks: whether samples' masks are meant, not their factors.
    """

    index: Tensor

    def __init__(self, along: Along, dim: int = 0, *, masks: bool = False) -> None:
        super().__init__()
        self.groups = along.groups
        self.register_buffer("index", along.index, persistent=False)
        self.dim, self.masks, self.bypassed = dim, masks, False

    def forward(self, value: Tensor, *samples: Sample) -> Tensor:
        """The value times the gate."""
        if self.bypassed:
            return value
        return self.scaled(value, [_mask(s) if self.masks else s.factor for s in samples])

    def scaled(self, value: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """The value times factors of the groups' units, [units] each."""
        gate = per_channel(factors, self.index).to(value)
        return value * _along(gate, self.dim, value.dim())


class NoiseSlot(nn.Module):
    """Multiplies an activation by 1 + noise in training, drawn for each sample and unit; nothing in evaluation.

    Args:
        along: choices of the groups along a dimension.
        dim: that dimension; not 0, which is the batch.
    """

    index: Tensor

    def __init__(self, along: Along, dim: int) -> None:
        super().__init__()
        self.register_buffer("index", along.index, persistent=False)
        self.dim, self.bypassed = dim, False

    def forward(self, value: Tensor, *samples: Sample) -> Tensor:
        """The value with noise."""
        if self.bypassed or not self.training:
            return value
        none = [torch.zeros_like(s.factor) if s.noise is None else s.noise for s in samples]
        # units of no group come last, and have no noise
        deviation = torch.cat([*none, none[0].new_zeros(1)]).index_select(0, self.index)
        drawn = torch.randn(len(value), len(deviation), device=value.device)
        noisy = (1 + drawn * deviation).to(value)
        return value * noisy.reshape([n if d in (0, self.dim) else 1 for d, n in enumerate(value.shape)])


def _mask(sample: Sample) -> Tensor:
    return (sample.factor != 0).to(sample.factor) if sample.mask is None else sample.mask


def _along(vector: Tensor, dim: int, dims: int) -> Tensor:
    return vector.reshape([-1 if d == dim else 1 for d in range(dims)])
