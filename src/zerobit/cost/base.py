"""`Usage`, what a network uses of a device, and `AbstractCost`, what that costs.

A usage is made from the distributions of a search, or of a plan; a cost does not know which. Everything in it may have
leading dimensions, so that a cost can be asked for many choices at once.
Shape legend: ... batch of choices, usually none; B = len(GRID).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from zerobit.bits import BitDist
from zerobit.formats import DEFAULT_STORAGE, GRID
from zerobit.graph.ir import Kind

#: Width that activations without a quantizer, and weights left in float, count with.
FLOAT_BITS = 32
#: [B], the widths of the grid.
GRID_BITS = torch.tensor(GRID, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class WeightUse:
    """A weight tensor.

    Attributes:
        name: of the parameter.
        counts: float64 [..., B], expected number of output channels at each width; those at width 0 are removed.
        fan_in: float64 [...], expected number of weights per output channel that stay: kept inputs times kernel.
    """

    name: str
    counts: Tensor
    fan_in: Tensor


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One run of a layer.

    Attributes:
        name: of the op.
        kind: convolution or linear.
        weight: what it multiplies with.
        inputs: float64 [...], expected kept input channels.
        positions: float64 [...], how often per sample each weight is expected to multiply: output positions (Ho * Wo;
            1 for a linear layer on a vector), input positions of a transposed convolution, 0 for an embedding.
        output_shape: of one sample, uncut.
        kernel: extent of the window, () for linear.
        depthwise: whether each output channel reads one input channel.
        groups: of a grouped convolution, uncut.
        activation: widths of the input, one row; None for one that has no quantizer and is read in float.
        stride: steps of the window, () for linear.
        dilation: distance of two places of the window, () for linear.
        inside: along each dimension, how many places of the window lie inside the input, the mean over all outputs; the
            others meet padding. () for linear. The zeros between the inputs of a transposed convolution are inside.
    """

    name: str
    kind: Kind
    weight: WeightUse
    inputs: Tensor
    positions: Tensor
    output_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    depthwise: bool
    groups: int
    activation: BitDist | None
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    inside: tuple[float, ...] = ()

    @property
    def macs_by_width(self) -> Tensor:
        """[..., B], expected multiplications at each weight width; those of removed channels stand at width 0."""
        per_channel = (self.weight.fan_in * self.positions).to(self.weight.counts.device)
        return self.weight.counts * per_channel[..., None]

    @property
    def activation_bits(self) -> Tensor:
        """Expected width of the input, a scalar; `FLOAT_BITS` in float."""
        if self.activation is None:
            return torch.as_tensor(float(FLOAT_BITS), dtype=torch.float64)
        return self.activation.bits[0]


@dataclass(frozen=True, eq=False)
class ValueUse:
    """A buffer of activations.

    Attributes:
        name: of the tensor that is written to it first.
        elements: float64 [...], expected kept values per sample.
        bits: float64 [...], expected width that each is stored with.
        first: step of the runtime, in the graph's order, that writes it; -1 for an input of the network.
        last: last step that reads it; the number of steps for what the network returns.
    """

    name: str
    elements: Tensor
    bits: Tensor
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Usage:
    """A network's layers and weights, and the weights that stay in float.

    Attributes:
        weights: every quantised weight tensor once, those that only barriers read included.
        layers: every run of a layer, in order.
        float_weights: float64 [...], number of weights that stay in float32.
        make_values: makes `values`; few costs ask for them, and a search asks every step.
    """

    weights: tuple[WeightUse, ...]
    layers: tuple[LayerUse, ...]
    float_weights: Tensor
    make_values: Callable[[], tuple[ValueUse, ...]] = field(default=tuple, repr=False)

    @cached_property
    def values(self) -> tuple[ValueUse, ...]:
        """Buffers of activations, in order of their first op."""
        return self.make_values()


class AbstractCost(ABC):
    """What a usage costs.

    Attributes:
        name: as in `--budget name=...`.
        unit: of the value.
        storage: widths that weights are stored and computed with; others round up.
        channel_multiple: the number of channels that stay is best a multiple of this.
        run_per_width: whether each width in a layer is a run of its own with a fixed part, so that a channel apart
            costs more than it saves; a search then gives every layer one width.
        by_weight: whether the cost of a network is the sum, over its weights, of the cost of each with the layers that
            read it, and a part that no width enters. False for a peak.
        per_channel: whether, with the inputs given, it is linear in the number of channels at each width. False for a
            device that works in tiles.
    """

    name: str
    unit: str
    storage: tuple[int, ...] = DEFAULT_STORAGE
    channel_multiple: int = 1
    run_per_width: bool = False
    by_weight: bool = True
    per_channel: bool = True

    @abstractmethod
    def __call__(self, use: Usage) -> Tensor:
        """Cost as a float64 [...], differentiable in all widths; exact for integer widths."""


def total(terms: list[Tensor]) -> Tensor:
    """Sum of float64 [...] terms, broadcast; 0 for a network without any."""
    return sum(terms, torch.zeros((), dtype=torch.float64))


def rounded_up(storage: tuple[int, ...]) -> tuple[int, ...]:
    """For each width of the grid the narrowest stored width that holds it; 0 stays 0, the widest holds wider ones."""
    return tuple(0 if b == 0 else min((s for s in storage if s >= b), default=max(storage)) for b in GRID)
