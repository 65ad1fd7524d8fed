"""Slots of a search: a weight at its mixture of widths, and the gates of channel groups."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerobit.graph.ir import Graph, Rows
from zerobit.graph.rows import from_rows, to_rows
from zerobit.quant.slot import AbstractWeightGrid
from zerobit.search.widths.softmax import SoftmaxWidth


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


def _gate(sample: Tensor) -> Tensor:
    return sample if sample.dim() == 1 else sample.sum(1)


class WeightSlot(nn.Module):
    """Quantises a weight at its mixture of widths and applies the gates of its groups.

    A deterministic gate behind conv + bias is the same function as a gate on weight and bias; here it costs no pass
    over an activation.

    Args:
        grid: levels and steps.
        width: the weight's own choice, or None.
        along: choices of the groups along its output channels.
        layout: how its output channels lie.
        coupled: whether the groups' choices hold the widths.
    """

    index: Tensor

    def __init__(
        self,
        grid: AbstractWeightGrid,
        width: SoftmaxWidth | None,
        along: Along,
        layout: Rows,
        *,
        coupled: bool,
    ) -> None:
        super().__init__()
        self.grid, self.width, self.coupled = grid, width, coupled
        self.groups, self.layout = along.groups, layout
        self.register_buffer("index", along.index, persistent=False)
        self.bypassed = False

    def forward(self, w: Tensor, *samples: Tensor) -> Tensor:
        """Effective weight.

        Args:
            w: in the layout of its layer.
            samples: of the groups' choices: [units] gates, or [units, P] shares in the coupled form.
        """
        if self.bypassed:
            return w
        flat = to_rows(w, self.layout)
        choice = self.width() if self.width is not None else flat.new_ones(len(flat), len(self.grid.widths))
        if self.coupled:
            choice = per_channel(samples, self.index)
        elif samples:
            choice = choice * per_channel([_gate(s) for s in samples], self.index)[:, None]
        return from_rows(self.grid.mix(flat, choice.to(flat)), w, self.layout)


class GateSlot(nn.Module):
    """Multiplies a bias, the scale and shift of a norm, or an activation, by the gates of its groups.

    Args:
        along: choices of the groups along a dimension.
        dim: that dimension.
    """

    index: Tensor

    def __init__(self, along: Along, dim: int = 0) -> None:
        super().__init__()
        self.register_buffer("index", along.index, persistent=False)
        self.dim, self.bypassed = dim, False

    def forward(self, value: Tensor, *samples: Tensor) -> Tensor:
        """The value times the gate; in the coupled form the gate is the sum of shares."""
        if self.bypassed:
            return value
        gate = per_channel([_gate(s) for s in samples], self.index).to(value)
        return value * gate.reshape([-1 if d == self.dim else 1 for d in range(value.dim())])
