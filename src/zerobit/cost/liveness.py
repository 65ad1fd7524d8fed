"""Which buffers of activations a network needs, and from when to when.

This is what a runtime without an allocator does: it goes through the ops in the graph's order, and every buffer has its
place in one static arena. A layer with the ReLU and the quantizer behind it writes one buffer; ops that only read the
same values in another shape share that of their input; ops that compute each value from those at its own position work
in place where what they read is read for the last time. What is not quantised takes 32 bits: what is computed in float,
and accumulators that leave the network. Inputs come in quantised and may be overwritten. Kernels are taken to need no
memory of their own, but for the zeros that a strided transposed convolution slides over.

Everything but the number of channels and the widths follows from the graph, and is worked out once.
Shape legend: ... batch of choices, usually none; N buffers; G groups; S quantizers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from zerobit.bits import NetBits
from zerobit.cost.base import FLOAT_BITS, ValueUse, rounded_up
from zerobit.formats import DEFAULT_STORAGE
from zerobit.graph.ir import Graph, Kind, Op
from zerobit.quant.forms import merged_relu, takes_all
from zerobit.quant.placement import place

#: Kinds that compute each value of the result from those at its position, so that they can overwrite what they read.
_ELEMENTWISE = (Kind.RELU, Kind.POINTWISE, Kind.CHANNELWISE, Kind.NORM, Kind.ADD, Kind.MUL)
#: Kinds whose result is what they read, the same bytes in the same order.
_VIEWS = (Kind.RESHAPE, Kind.IDENTITY)


@dataclass(frozen=True)
class Value:
    """Numbers that are written at once.

    Attributes:
        name: of its own.
        tensor: whose numbers they are.
        source: tensor whose quantizer they went through, None for 32 bits.
        spread: per spatial dimension, the distance of its positions once there are zeros between; () for none.
    """

    name: str
    tensor: str
    source: str | None
    spread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """What the runtime does at once.

    Attributes:
        reads: names of values.
        writes: a value.
        elementwise: whether it may overwrite what it reads.
    """

    reads: tuple[str, ...]
    writes: Value
    elementwise: bool = False


@dataclass(frozen=True)
class Buffer:
    """Memory that holds values one after the other.

    Attributes:
        values: all of as many elements, and of 32 bits or none of them.
        first: step that writes the first, -1 for an input of the network.
        last: step that reads the last.
    """

    values: tuple[Value, ...]
    first: int
    last: int


@lru_cache(maxsize=8)
def buffers(graph: Graph) -> tuple[Buffer, ...]:
    """The buffers of a network, in order of their first step; what it returns lives until after the last."""
    values, steps, outputs = _Walk(graph).run()
    last = {value.name: -1 for value in values}
    for position, step in enumerate(steps):
        last[step.writes.name] = position
        last.update(dict.fromkeys(step.reads, position))
    last.update(dict.fromkeys(outputs, len(steps)))
    chains: list[list[Value]] = [[value] for value in values]
    first = [-1] * len(chains)
    holds = {value.name: i for i, value in enumerate(values)}
    for position, step in enumerate(steps):
        dying = [name for name in dict.fromkeys(step.reads) if last[name] == position]
        given = [name for name in dying if step.elementwise and _fits(graph, chains[holds[name]][-1], step.writes)]
        if given:
            holds[step.writes.name] = holds[given[0]]
            chains[holds[given[0]]].append(step.writes)
        else:
            holds[step.writes.name] = len(chains)
            chains.append([step.writes])
            first.append(position)
    return tuple(Buffer(tuple(c), f, last[c[-1].name]) for c, f in zip(chains, first, strict=True))


def _fits(graph: Graph, old: Value, new: Value) -> bool:
    """Whether a value can lie where another one lay."""
    is_same = math.prod(graph.shapes[old.tensor]) == math.prod(graph.shapes[new.tensor]) and old.spread == new.spread
    return is_same and (old.source is None) == (new.source is None)


class _Walk:
    """Goes through a graph once, collecting what is written and read; the counterpart of lowering."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._placement = place(graph)
        self._steps: list[Step] = []
        #: tensor -> name of the value that holds it
        self._held: dict[str, str] = {}

    def run(self) -> tuple[list[Value], list[Step], list[str]]:
        """The values that come in, what is done, and the names of the values that go out."""
        graph, governor = self._graph, self._placement.governor
        used = [name for name in graph.inputs if graph.consumers(name) or name in graph.outputs]
        self._held.update(zip(used, used, strict=True))
        for op in graph.ops:
            if op.name in graph.shapes and op.name not in self._held:
                self._visit(op)
        outputs = [self._held[name] for name in graph.outputs if name in self._held]
        return [Value(name, name, governor.get(name)) for name in used], self._steps, outputs

    def _visit(self, op: Op) -> None:
        in_float = op.name in self._placement.reasons
        reads = tuple(self._held[name] for name in op.inputs if name in self._held)
        result = op.name
        if reads and (op.kind in _VIEWS or takes_all(self._graph, op)):
            self._held[op.name] = reads[0]
        else:
            result = op.name if in_float else self._behind_relu(op)
            source = None if in_float else self._placement.governor.get(result)
            if not in_float and op.kind is Kind.CONV_TRANSPOSE and set(op.attrs["stride"]) != {1}:
                reads = (self._spread(op, reads),)
            self._write(reads, Value(result, result, source), elementwise=op.kind in _ELEMENTWISE)
            self._held[op.name] = result
        if in_float and op.name in self._placement.governor:
            self._write((self._held[op.name],), Value(f"{op.name}.quantised", op.name, op.name))

    def _write(self, reads: tuple[str, ...], value: Value, *, elementwise: bool = False) -> None:
        self._steps.append(Step(reads, value, elementwise))
        self._held[value.tensor] = value.name

    def _behind_relu(self, op: Op) -> str:
        """The tensor that an op on integers writes: that of a ReLU that became part of it, or its own."""
        if not merged_relu(self._graph, op):
            return op.name
        relu = self._graph.consumers(op.name)[0].name
        return op.name if relu in self._placement.reasons else relu

    def _spread(self, op: Op, reads: tuple[str, ...]) -> str:
        """Zeros between the positions: a transposed convolution is a convolution over them."""
        source = self._placement.governor[op.inputs[0]]
        value = Value(f"{op.name}.spread", op.inputs[0], source, tuple(op.attrs["stride"]))
        self._steps.append(Step(reads, value))
        return value.name


@dataclass(frozen=True, eq=False)
class _Layout:
    """What turns channels and widths into elements and bits.

    Attributes:
        buffers: N of them.
        groups: names of the G groups.
        sources: names of the S tensors whose quantizers have a width.
        fixed: float64 [N], product of the extents that no group lies along.
        extents: for each further dimension: float64 [N], its extent, and float64 [G, N], what each unit takes off it.
        widths: int64 [N, K], columns of the widths that a buffer holds, of S + 1; the last is that of floats.
    """

    buffers: tuple[Buffer, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    fixed: Tensor
    extents: tuple[tuple[Tensor, Tensor], ...]
    widths: Tensor

    def to(self, device: torch.device) -> "_Layout":
        """The same on another device."""
        extents = tuple((size.to(device), cut.to(device)) for size, cut in self.extents)
        return _Layout(self.buffers, self.groups, self.sources, self.fixed.to(device), extents, self.widths.to(device))


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # it outlives whoever asks first
def _layout(graph: Graph, device: torch.device) -> _Layout:
    every = buffers(graph)
    along: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for g, group in enumerate(graph.groups):
        for member in group.members:
            along.setdefault((member.tensor, member.dim), []).append((g, member.index.shape[1]))
    fixed = torch.ones(len(every), dtype=torch.float64)
    extents: list[tuple[Tensor, Tensor]] = []
    for n, buffer in enumerate(every):
        tensor, used = buffer.values[0].tensor, 0
        for dim, (size, step) in enumerate(_dimensions(graph, buffer.values[0])):
            if (tensor, dim) not in along:
                fixed[n] *= (size - 1) * step + 1
                continue
            if used == len(extents):
                empty = torch.zeros(len(graph.groups), len(every), dtype=torch.float64)
                extents.append((torch.ones_like(fixed), empty))
            extents[used][0][n] = (size - 1) * step + 1
            for g, positions in along[tensor, dim]:
                extents[used][1][g, n] += positions * step
            used += 1
    sources = tuple(dict.fromkeys(v.source for b in every for v in b.values if v.source is not None))
    column = {name: i for i, name in enumerate((*sources, None))}
    held = [[*dict.fromkeys(column[value.source] for value in b.values)] for b in every]
    most = max(map(len, held), default=1)
    widths = torch.tensor([[*h, *h[:1] * (most - len(h))] for h in held], dtype=torch.int64).reshape(len(every), most)
    groups = tuple(group.name for group in graph.groups)
    return _Layout(every, groups, sources, fixed, tuple(extents), widths).to(device)


def _dimensions(graph: Graph, value: Value) -> list[tuple[int, int]]:
    """(size, distance of its positions) of each dimension."""
    shape = graph.shapes[value.tensor]
    steps = (1,) * (len(shape) - len(value.spread)) + value.spread
    return list(zip(shape, steps, strict=True))


def make_values(graph: Graph, gone: Mapping[str, Tensor], bits: NetBits) -> tuple[ValueUse, ...]:
    """The buffers of a network at given widths.

    A buffer is as wide as the widest values that it ever holds; widths that are not stored round up, and narrow values
    are packed: of 4 bits two to the byte, whatever their number.

    Args:
        graph: of the network that `bits` refers to.
        gone: group name -> float64 [...], expected number of units that are removed.
        bits: widths of its channels.

    Returns:
        In order of their first step; `first` and `last` count the steps of the runtime.
    """
    some = next(iter((*gone.values(), *(d.p for d in bits.activations.values()))), torch.zeros(()))
    layout = _layout(graph, some.device)
    if not layout.buffers:
        return ()
    elements = layout.fixed
    if layout.extents:
        removed = torch.stack(torch.broadcast_tensors(*(gone[name] for name in layout.groups)), -1)
        for size, cut in layout.extents:
            elements = elements * (size - removed @ cut)
    width = _stored_bits(layout, bits, some.device)[..., layout.widths].amax(-1)
    return tuple(
        ValueUse(b.values[0].name, e, w, b.first, b.last)
        for b, e, w in zip(layout.buffers, elements.unbind(-1), width.unbind(-1), strict=True)
    )


def _stored_bits(layout: _Layout, bits: NetBits, device: torch.device) -> Tensor:
    """[..., S + 1], expected width that values behind each quantizer are stored with, then that of floats."""
    floats = torch.tensor([FLOAT_BITS], dtype=torch.float64, device=device)
    if not layout.sources:
        return floats
    rows = [bits.activations[name].p[..., 0, :] for name in layout.sources]
    grid = torch.tensor(rounded_up(DEFAULT_STORAGE), dtype=torch.float64, device=device)
    stored = torch.stack(torch.broadcast_tensors(*rows), -2) @ grid
    return torch.cat([stored, floats.expand(*stored.shape[:-1], 1)], -1)
