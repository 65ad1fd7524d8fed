"""`Usage`, what a network uses of a device, and `AbstractCost`, what that costs.

A usage is made from the distributions of a search, or of a plan; a cost does not know which.
Shape legend: C output channels, B = len(GRID).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.bits import BitDist, NetBits
from zerobit.formats import GRID
from zerobit.graph.ir import Graph, Kind, Op

#: Width that activations without a quantizer, and weights of ops without a rule, count with.
FLOAT_BITS = 32


@dataclass(frozen=True, eq=False)
class WeightUse:
    """A weight tensor.

    Attributes:
        name: of the parameter.
        dist: widths of its C output channels.
        fan_in: float64 scalar, expected number of weights per output channel that stay: kept inputs times kernel.
    """

    name: str
    dist: BitDist
    fan_in: Tensor


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One run of a layer.

    Attributes:
        name: of the op.
        kind: convolution or linear.
        weight: what it multiplies with.
        inputs: float64 scalar, expected kept input channels.
        positions: float64 scalar, expected output positions per sample (Ho * Wo; 1 for a linear layer on a vector).
        output_shape: of one sample, uncut.
        kernel: extent of the window, () for linear.
        depthwise: whether each output channel reads one input channel.
        groups: of a grouped convolution, uncut.
        activation: widths of the input, one row.
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
    activation: BitDist

    @property
    def macs_by_width(self) -> Tensor:
        """[B], expected multiplications at each weight width; those of removed channels stand at width 0."""
        return self.weight.dist.p.sum(0) * self.weight.fan_in * self.positions


@dataclass(frozen=True, eq=False)
class Usage:
    """A network's layers and weights, and the weights that stay in float.

    Attributes:
        weights: every quantised weight tensor once.
        layers: every run of a layer, in order.
        float_weights: float64 scalar, number of weights that stay in float32.
    """

    weights: tuple[WeightUse, ...]
    layers: tuple[LayerUse, ...]
    float_weights: Tensor


def usage(graph: Graph, bits: NetBits) -> Usage:
    """What a network uses at given widths. Differentiable in all of them; nothing is detached.

    Args:
        graph: of the network that `bits` refers to.
        bits: widths of its channels.
    """
    axis = _AxisKeep(graph, bits)
    weights: dict[str, WeightUse] = {}
    layers = []
    for op in graph.weighted:
        assert op.weight is not None
        if op.weight not in weights:
            weights[op.weight] = WeightUse(op.weight, bits.weights[op.weight], _fan_in(graph, op, axis))
        layers.append(_layer_use(graph, op, weights[op.weight], bits, axis))
    rest = sum((_count(graph, name, axis) for name in graph.float_weights), torch.zeros((), dtype=torch.float64))
    return Usage(tuple(weights.values()), tuple(layers), rest)


class _AxisKeep:
    """Expected number of positions that stay along a dimension of a tensor."""

    def __init__(self, graph: Graph, bits: NetBits) -> None:
        self._size = {**graph.shapes, **graph.parameters}
        self._gone = {name: (1 - keep).sum() for name, keep in bits.keep.items()}
        self._along: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for group in graph.groups:
            for member in group.members:
                self._along.setdefault((member.tensor, member.dim), []).append((group.name, member.index.shape[1]))

    def __call__(self, tensor: str, dim: int) -> Tensor:
        result = torch.as_tensor(float(self._size[tensor][dim]), dtype=torch.float64)
        for group, positions in self._along.get((tensor, dim), ()):
            result = result - self._gone[group] * positions
        return result


def _fan_in(graph: Graph, op: Op, axis: _AxisKeep) -> Tensor:
    """Inputs that stay times the kernel's extent; dimension 1 of a weight knows about groups already."""
    assert op.weight is not None
    return axis(op.weight, 1) * math.prod(graph.parameters[op.weight][2:])


def _layer_use(graph: Graph, op: Op, weight: WeightUse, bits: NetBits, axis: _AxisKeep) -> LayerUse:
    shape = graph.shapes[op.name]
    channel = 1 if op.kind is Kind.CONV else len(shape) - 1
    positions = torch.ones((), dtype=torch.float64)
    for dim in range(len(shape)):
        positions = positions if dim == channel else positions * axis(op.name, dim)
    source = op.inputs[0]
    channels_in = 1 if op.kind is Kind.CONV else len(graph.shapes[source]) - 1
    return LayerUse(
        name=op.name,
        kind=op.kind,
        weight=weight,
        inputs=axis(source, channels_in),
        positions=positions,
        output_shape=shape,
        kernel=tuple(op.attrs.get("kernel", ())),
        depthwise=bool(op.attrs.get("depthwise", False)),
        groups=int(op.attrs.get("groups", 1)),
        activation=bits.activations[_stored_as(graph, source, bits)],
    )


def _stored_as(graph: Graph, tensor: str, bits: NetBits) -> str:
    """The tensor whose quantizer a value went through: itself, or what an op that only moves values read."""
    while tensor not in bits.activations:
        op = graph.producer(tensor)
        assert op is not None, f"{tensor} is read by a layer without a quantizer on the way"
        tensor = op.inputs[0]
    return tensor


def _count(graph: Graph, name: str, axis: _AxisKeep) -> Tensor:
    result = torch.ones((), dtype=torch.float64)
    for dim in range(len(graph.parameters[name])):
        result = result * axis(name, dim)
    return result


def uniform(graph: Graph, bits: int, activations: int = 8) -> NetBits:
    """All channels kept, all weights at one width: the network that relative costs refer to.

    Args:
        graph: of the network.
        bits: width of every weight.
        activations: width of every activation.
    """
    keep = {g.name: torch.ones(g.units, dtype=torch.float64) for g in graph.groups}
    weights = {
        op.weight: BitDist.one_hot([bits] * graph.parameters[op.weight][0]) for op in graph.weighted if op.weight
    }
    tensors = (*graph.inputs, *(op.name for op in graph.ops))
    return NetBits(keep, weights, dict.fromkeys(tensors, BitDist.one_hot([activations])))


class AbstractCost(ABC):
    """What a usage costs.

    Attributes:
        name: as in `--budget name=...`.
        unit: of the value.
    """

    name: str
    unit: str

    @abstractmethod
    def __call__(self, use: Usage) -> Tensor:
        """Cost as a float64 scalar, differentiable in all widths; exact for integer widths."""


GRID_BITS = torch.tensor(GRID, dtype=torch.float64)
