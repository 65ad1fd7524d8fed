"""Where activation slots go. Their placement decides whether the exported network equals the trained one."""

from collections.abc import Mapping
from dataclasses import dataclass

from zerobit.graph.ir import Graph, Kind, Op

#: Ops that hand on values of their input's integer grid.
_PASSING = (Kind.MAX_POOL, Kind.RESHAPE, Kind.IDENTITY)
#: Ops whose output a following ReLU can be merged into.
_MERGES_RELU = (Kind.CONV, Kind.LINEAR, Kind.ADD)
#: Ops that compute on integers; all others read floats.
_INTEGER = (
    Kind.CONV,
    Kind.LINEAR,
    Kind.RELU,
    Kind.ADD,
    Kind.CONCAT,
    Kind.MAX_POOL,
    Kind.AVG_POOL,
    Kind.MEAN,
    Kind.RESHAPE,
    Kind.PAD,
    Kind.IDENTITY,
)


@dataclass(frozen=True)
class ActivationSite:
    """One activation quantizer.

    Attributes:
        name: of the first tensor it quantises.
        tensors: all tensors that share it (members of a concatenation), in execution order.
        signed: whether values can be negative.
    """

    name: str
    tensors: tuple[str, ...]
    signed: bool


def activation_sites(graph: Graph) -> tuple[ActivationSite, ...]:
    """One site per tensor that is stored as integers: inputs, layers (behind their ReLU), sums, averages.

    Ops that only move values need none, members of a concatenation share one, and the network's results stay
    accumulators. Values are signed wherever they can be negative, so before a sum in particular.
    """
    governor = _governors(graph)
    shared = _shared_by_concat(graph, governor)
    negative = _can_be_negative(graph)
    sites: dict[str, list[str]] = {}
    for tensor in (*graph.inputs, *(op.name for op in graph.ops)):
        if governor.get(tensor) == tensor:
            sites.setdefault(shared.get(tensor, tensor), []).append(tensor)
    return tuple(ActivationSite(name, tuple(t), any(negative[x] for x in t)) for name, t in sites.items())


def merged_relu(graph: Graph, op: Op) -> bool:
    """Whether an op's only reader is a ReLU that becomes part of it."""
    readers = graph.consumers(op.name)
    return (
        op.kind in _MERGES_RELU and len(readers) == 1 and readers[0].kind is Kind.RELU and op.name not in graph.outputs
    )


def passes_grid(op: Op) -> bool:
    """Whether an op's output lies on the integer grid of its input."""
    return op.kind in _PASSING or (op.kind is Kind.PAD and op.attrs["value"] == 0)


def _governors(graph: Graph) -> dict[str, str]:
    """Tensor -> the tensor whose slot its values went through."""
    governor = {name: name for name in graph.inputs if _read_as_integer(graph, name)}
    for op in graph.ops:
        if (passes_grid(op) or op.kind is Kind.CONCAT) and op.inputs[0] in governor:
            governor[op.name] = governor[op.inputs[0]]
        elif not merged_relu(graph, op) and _stored(graph, op):
            governor[op.name] = op.name
    return governor


def _stored(graph: Graph, op: Op) -> bool:
    """Whether an op's result is kept as integers: some op computes on it, not only the caller."""
    if op.kind is Kind.BARRIER or op.kind is Kind.NORM:
        return _read_as_integer(graph, op.name)
    return any(not passes_grid(c) or _stored(graph, c) for c in graph.consumers(op.name))


def _read_as_integer(graph: Graph, tensor: str) -> bool:
    return any(
        _read_as_integer(graph, c.name) if passes_grid(c) else c.kind in _INTEGER for c in graph.consumers(tensor)
    )


def _shared_by_concat(graph: Graph, governor: Mapping[str, str]) -> dict[str, str]:
    """Slot -> the slot that stands for it, where concatenations force slots to be one."""
    stands: dict[str, str] = {}

    def find(name: str) -> str:
        while name in stands:
            name = stands[name]
        return name

    order = {name: i for i, name in enumerate((*graph.inputs, *(op.name for op in graph.ops)))}
    for op in graph.ops:
        if op.kind is Kind.CONCAT and op.name in governor:
            roots = sorted({find(governor[name]) for name in op.inputs if name in governor}, key=order.__getitem__)
            stands.update(dict.fromkeys(roots[1:], roots[0]))
    return {name: find(name) for name in governor.values()}


def _can_be_negative(graph: Graph) -> dict[str, bool]:
    negative = dict.fromkeys(graph.inputs, True)
    moving = (
        Kind.MAX_POOL,
        Kind.AVG_POOL,
        Kind.MEAN,
        Kind.RESHAPE,
        Kind.PAD,
        Kind.IDENTITY,
        Kind.ADD,
        Kind.CONCAT,
    )
    for op in graph.ops:
        if op.kind is Kind.RELU:
            negative[op.name] = False
        elif op.kind in moving:
            padded_below = op.kind is Kind.PAD and op.attrs["value"] < 0
            negative[op.name] = padded_below or any(negative[name] for name in op.inputs)
        else:
            negative[op.name] = True
    return negative
