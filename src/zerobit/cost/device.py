"""What costs of devices share: `Device`, costs scaled by a clock or a power, a layer's shape as they see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from zerobit.cost.base import AbstractCost, LayerUse, Usage, rounded_up
from zerobit.formats import GRID
from zerobit.graph.ir import Kind


@dataclass(frozen=True)
class Device:
    """A device and what can be limited on it.

    Attributes:
        name: as in `--budget name=...`.
        source: where its formulas and figures are from.
        metrics: cost by name of the metric; the first is meant by the name of the device alone.
    """

    name: str
    source: str
    metrics: Mapping[str, AbstractCost]


@dataclass(frozen=True)
class Scaled(AbstractCost):
    """Another cost times a constant, in another unit. Made by `scaled`.

    Attributes:
        cost: the other one.
        factor: of this unit per unit of the other.
    """

    cost: AbstractCost
    factor: float
    name: str
    unit: str
    storage: tuple[int, ...]
    channel_multiple: int
    by_weight: bool
    per_channel: bool
    run_per_width: bool

    def __call__(self, use: Usage) -> Tensor:
        """The other cost times the factor."""
        return self.cost(use) * self.factor


def scaled(cost: AbstractCost, factor: float, name: str, unit: str) -> Scaled:
    """A cost in another unit, with the same traits.

    Args:
        cost: what is scaled.
        factor: of the new unit per unit of `cost`.
        name: of the new cost.
        unit: of the new cost.
    """
    traits = cost.storage, cost.channel_multiple, cost.by_weight, cost.per_channel, cost.run_per_width
    return Scaled(cost, factor, name, unit, *traits)


def timed(
    name: str, source: str, cycles: AbstractCost, *, clock_hz: float | None = None, power_w: float | None = None
) -> Device:
    """A device that counts cycles; a known clock gives time in s too, and a known power energy in J.

    Args:
        name: of the device.
        source: of the figures.
        cycles: its cost in cycles, which is called as the device is.
        clock_hz: cycles per second, if known.
        power_w: mean power while it computes, if known; needs a clock.
    """
    metrics: dict[str, AbstractCost] = {"cycles": cycles}
    if clock_hz is not None:
        metrics["time"] = scaled(cycles, 1 / clock_hz, f"{name}.time", "s")
        if power_w is not None:
            metrics["energy"] = scaled(cycles, power_w / clock_hz, f"{name}.energy", "J")
    return Device(name, source, metrics)


def stored_counts(counts: Tensor, storage: tuple[int, ...]) -> Tensor:
    """Channels at each width that a device computes with; others have been rounded up to these.

    Args:
        counts: float64 [..., B], of which the first column is removed channels.
        storage: the S widths, ascending.

    Returns:
        float64 [..., S].
    """
    if storage == GRID[1:]:
        return counts[..., 1:]
    return counts @ _columns(storage).to(counts.device)


@cache
@torch.inference_mode(mode=False)  # it outlives whoever asks first
def _columns(storage: tuple[int, ...]) -> Tensor:
    """[B, S], 1 where a width of the grid is stored in that of the column."""
    stored = rounded_up(storage)
    return torch.tensor([[float(b > 0 and stored[i] == s) for s in storage] for i, b in enumerate(GRID)]).double()


def is_computed(layer: LayerUse) -> bool:
    """Whether it multiplies; an embedding is read from memory."""
    return layer.kind is not Kind.EMBEDDING


def window(layer: LayerUse) -> tuple[int, int, int]:
    """Depth, height and width of the kernel; 1 x 1 x 1 of a linear layer, 1 x 1 x k of a 1-D convolution."""
    depth, height, width = (1, 1, 1, *layer.kernel)[-3:]
    return depth, height, width


def output_size(layer: LayerUse) -> tuple[int, int, Tensor]:
    """Depth, height and width of the output that an equivalent direct convolution walks over.

    A 1-D convolution is an image of height 1, and so is a linear layer on a sequence. A transposed convolution is a
    direct one over an input with zeros between, so that its outputs count. What a cut removes along the image (a linear
    layer over its columns) is removed from the width.

    Returns:
        Two ints and a float64 [...].
    """
    if layer.kind is Kind.LINEAR:
        return 1, 1, layer.positions
    depth, height, width = (1, 1, *layer.output_shape[2:])[-3:]
    if layer.kind is Kind.CONV_TRANSPOSE:
        return depth, height, torch.full_like(layer.positions, float(width))
    return depth, height, layer.positions / prod((depth, height))
