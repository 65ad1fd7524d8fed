"""Making a `Usage`: what a graph uses of a device at given widths."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from zerobit.bits import BitDist, NetBits
from zerobit.cost.base import LayerUse, Usage, WeightUse
from zerobit.cost.liveness import make_values
from zerobit.graph.ir import Graph, Kind, Op, Rows
from zerobit.quant.placement import activation_sites, place


def usage(graph: Graph, bits: NetBits) -> Usage:
    """What a network uses at given widths. Differentiable in all of them; nothing is detached.

    Args:
        graph: of the network that `bits` refers to.
        bits: widths of its channels.
    """
    axis = AxisKeep(graph, bits)
    weights = {
        name: WeightUse(name, bits.weights[name].p.sum(-2), _fan_in(graph, name, rows, axis))
        for name, rows in graph.rows.items()
    }
    layers = [
        _layer_use(graph, op, as_read(graph, op, weights[op.weight], axis), bits, axis)
        for op in graph.weighted
        if op.weight is not None
    ]
    rest = sum((axis.product(name) for name in graph.float_weights), torch.zeros((), dtype=torch.float64))
    return Usage(tuple(weights.values()), tuple(layers), rest, lambda: make_values(graph, axis.gone, bits))


class AxisKeep:
    """Expected number of positions that stay along a dimension of a tensor.

    Attributes:
        gone: group name -> float64 [...], expected number of units that are removed.
    """

    def __init__(self, graph: Graph, bits: NetBits) -> None:
        self._graph = graph
        self.gone = {name: (1 - keep).sum(-1) for name, keep in bits.keep.items()}

    def __call__(self, tensor: str, dim: int) -> Tensor | float:
        """Expected extent of dimension `dim` of a tensor, float64 [...]; a number where it is the same for all choices.

        Most are: a tensor for each would take most of the time of pricing a network.
        """
        result: Tensor | float = float(self._graph.shape_of(tensor)[dim])
        for group, member in self._graph.groups_along(tensor, dim):
            result = result - self.gone[group.name] * member.index.shape[1]
        return result

    def product(self, tensor: str, dims: Iterable[int] | None = None) -> Tensor:
        """Expected number of values along some dimensions of a tensor, all of them if None; float64 [...]."""
        result: Tensor | float = 1.0
        for dim in range(len(self._graph.shape_of(tensor))) if dims is None else dims:
            result = result * self(tensor, dim)
        return torch.as_tensor(result, dtype=torch.float64)


def _fan_in(graph: Graph, weight: str, rows: Rows, axis: AxisKeep) -> Tensor:
    """Weights of one output channel that stay: inputs times the kernel's extent.

    Dimension 1 of a convolution's weight knows about groups already; dimension 0 of a grouped transposed one holds all
    of them: with one input each, whole groups go; with several, as many from each.
    """
    shape = graph.parameters[weight]
    if rows.groups == 1:
        return axis.product(weight, [dim for dim in range(len(shape)) if dim != rows.dim])
    per_group = 1.0 if shape[0] == rows.groups else axis(weight, 0) / rows.groups
    return per_group * axis.product(weight, [dim for dim in range(1, len(shape)) if dim != rows.dim])


def as_read(graph: Graph, op: Op, weight: WeightUse, axis: AxisKeep) -> WeightUse:
    """A weight as a layer reads it whose output channels lie along the inputs of the layer that widths belong to.

    That is the last layer of a language model that shares its weight with the embedding. Each of its output channels
    has weights of all widths, and counts for each by its share.

    Args:
        graph: of the network.
        op: the layer.
        weight: as the first layer reads it.
        axis: what stays along each dimension.
    """
    rows = graph.rows[weight.name]
    if op.rows.dim == rows.dim or max(op.rows.groups, rows.groups) > 1:
        return weight
    size, device = graph.parameters[weight.name][op.rows.dim], weight.counts.device
    outputs = axis.product(weight.name, [op.rows.dim]).to(device)
    inputs = axis.product(weight.name, [rows.dim]).to(device)
    kept = weight.counts[..., 1:] * (outputs / inputs.clamp_min(1))[..., None]
    removed = (size - outputs).expand(kept.shape[:-1])[..., None]
    return WeightUse(weight.name, torch.cat([removed, kept], -1), _fan_in(graph, weight.name, op.rows, axis))


def _layer_use(graph: Graph, op: Op, weight: WeightUse, bits: NetBits, axis: AxisKeep) -> LayerUse:
    return LayerUse(
        name=op.name,
        kind=op.kind,
        weight=weight,
        inputs=_inputs(graph, op, axis),
        positions=_positions(graph, op, axis),
        output_shape=graph.shapes[op.name],
        kernel=tuple(op.attrs.get("kernel", ())),
        depthwise=bool(op.attrs.get("depthwise", False)),
        groups=int(op.attrs.get("groups", 1)),
        activation=_stored_as(graph, op.inputs[0], bits),
        stride=tuple(op.attrs.get("stride", ())),
        dilation=tuple(op.attrs.get("dilation", ())),
        inside=_inside(graph, op),
    )


def _inside(graph: Graph, op: Op) -> tuple[float, ...]:
    a = op.attrs
    if op.kind not in (Kind.CONV, Kind.CONV_TRANSPOSE):
        return ()
    sizes, outputs = graph.shapes[op.inputs[0]][2:], graph.shapes[op.name][2:]
    steps, before = a["stride"], [begin for begin, _ in a["padding"]]
    if op.kind is Kind.CONV_TRANSPOSE:  # a direct one, step by step over an input with zeros between
        sizes = tuple((size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True))
        before = [d * (k - 1) - p for d, k, p in zip(a["dilation"], a["kernel"], before, strict=True)]
        steps = (1,) * len(sizes)
    dimensions = zip(sizes, outputs, a["kernel"], steps, before, a["dilation"], strict=True)
    return tuple(mean_inside(*dimension) for dimension in dimensions)


@cache
def mean_inside(size: int, outputs: int, kernel: int, stride: int, before: int, dilation: int) -> float:
    """Places of a window that lie inside an input, along one dimension; the mean over all outputs.

    Args:
        size: of the input.
        outputs: number of windows.
        kernel: places of a window.
        stride: between windows.
        before: padding before the input.
        dilation: between places.
    """
    starts = range(-before, outputs * stride - before, stride)
    places = range(0, kernel * dilation, dilation)
    return sum(0 <= start + place < size for start in starts for place in places) / outputs


def _channel_dim(graph: Graph, op: Op, tensor: str) -> int:
    return 1 if op.kind in (Kind.CONV, Kind.CONV_TRANSPOSE) else len(graph.shapes[tensor]) - 1


def _inputs(graph: Graph, op: Op, axis: AxisKeep) -> Tensor:
    if op.kind is Kind.EMBEDDING:  # integers have no channels; each stands for a vector of one place per row
        return axis.product(op.weight or "", [1 - op.rows.dim])
    return axis.product(op.inputs[0], [_channel_dim(graph, op, op.inputs[0])])


def _positions(graph: Graph, op: Op, axis: AxisKeep) -> Tensor:
    if op.kind is Kind.EMBEDDING:
        return torch.zeros((), dtype=torch.float64)
    tensor = op.inputs[0] if op.kind is Kind.CONV_TRANSPOSE else op.name
    channels = _channel_dim(graph, op, tensor)
    return axis.product(tensor, [dim for dim in range(len(graph.shapes[tensor])) if dim != channels])


def _stored_as(graph: Graph, tensor: str, bits: NetBits) -> BitDist | None:
    """Widths of the quantizer that a value went through, if any."""
    source = place(graph).governor.get(tensor)
    return None if source is None else bits.activations[source]


def uniform(graph: Graph, bits: int, activations: int = 8) -> NetBits:
    """All channels kept, all weights at one width: the network that relative costs refer to.

    Args:
        graph: of the network.
        bits: width of every weight.
        activations: width of every activation.
    """
    keep = {g.name: torch.ones(g.units, dtype=torch.float64) for g in graph.groups}
    weights = {name: BitDist.one_hot([bits] * r.count(graph.parameters[name])) for name, r in graph.rows.items()}
    tensors = [tensor for site in activation_sites(graph) for tensor in site.tensors]
    return NetBits(keep, weights, dict.fromkeys(tensors, BitDist.one_hot([activations])))
