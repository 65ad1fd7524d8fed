"""`Graph`: what a captured model *is*, as frozen data.

A graph is derived from a `Program` (see program.py) and never edited; after a cut it is derived anew. Tensors
are named after the node that makes them; parameters keep the names of the user's state_dict. Shapes are those
of one sample: dimension 0, the batch, is 1 (of a model that fixes its batch, the only size it takes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]

#: Reason of a barrier that the user asked for.
FROZEN = "frozen by the user"


class Kind(StrEnum):
    """The closed set of op kinds."""

    CONV = "conv"  # a weight [O, I/groups, *k] slides over the input
    CONV_TRANSPOSE = "conv_transpose"  # each input position spreads a weight [I, O/groups, *k]
    LINEAR = "linear"  # a weight [O, I], or [I, O], contracts the last dimension
    RECURRENT = "recurrent"  # LSTM, GRU: weights [blocks * H, I] and [blocks * H, H], computed in float
    EMBEDDING = "embedding"  # integers pick rows of a weight [V, O]
    NORM = "norm"  # y = a[c] * x + b[c], BatchNorm that could not be folded
    RELU = "relu"  # clamp to [0, high]
    POINTWISE = "pointwise"  # one function of each value, the same everywhere
    CHANNELWISE = "channelwise"  # sum or product with a parameter that broadcasts over positions
    ADD = "add"  # sum of two tensors
    MUL = "mul"  # product of two tensors
    MATMUL = "matmul"  # product of two activations, contracted
    CONCAT = "concat"  # along one dimension
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    MEAN = "mean"  # over whole dimensions
    RESHAPE = "reshape"  # same elements in the same order
    PERMUTE = "permute"  # dimensions in another order
    SLICE = "slice"  # a range, or one position, of one dimension
    EXPAND = "expand"  # values repeated along dimensions
    SHUFFLE = "shuffle"  # channels to space or back (pixel shuffle)
    RESIZE = "resize"  # interpolation over space
    PAD = "pad"  # with a constant
    IDENTITY = "identity"  # dropout in evaluation
    FLOAT = "float"  # channels travel by rule, values are computed in float (softmax, LayerNorm, division)
    BARRIER = "barrier"  # anything without a rule: kept in float, never cut through


@dataclass(frozen=True)
class Rows:
    """How the output channels of a layer lie in its weight.

    Attributes:
        dim: the dimension that holds them.
        groups: of a grouped transposed convolution, whose dimension 0 holds the groups as well; else 1.
    """

    dim: int = 0
    groups: int = 1

    def count(self, shape: Shape) -> int:
        """Number of output channels of a weight of this shape."""
        return shape[self.dim] * self.groups


#: Kinds with a weight that is searched.
WEIGHTED = (Kind.CONV, Kind.CONV_TRANSPOSE, Kind.LINEAR, Kind.EMBEDDING)


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: its own name and that of the tensor it makes.
        kind: what the library takes it for.
        inputs: names of the activation tensors read, in order.
        weight: name of the parameter that is multiplied with the input, if any.
        bias: name of the parameter that is added, if any.
        parameters: every parameter or buffer read, weight and bias included.
        attrs: settings, normalised by the op's rule (stride, padding, dim ...).
        target: the operator behind it, for reports.
        module: path of the user's module it comes from, "" for the root.
        rows: how output channels lie in the weight.
        reason: why this op is a barrier; None for all others.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    target: str
    module: str = ""
    weight: str | None = None
    bias: str | None = None
    parameters: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rows: Rows = Rows()
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one tensor that a group's units lie along.

    Attributes:
        tensor: name of a parameter or an activation.
        dim: the dimension.
        index: int array [units, k]: the positions along `dim` that belong to each unit.
    """

    tensor: str
    dim: int
    index: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that are cut as a whole, and everything that must be cut with them.

    Attributes:
        name: that of the first layer that makes these channels.
        units: how many units there are.
        members: all (tensor, dimension) pairs the units lie along.
        masked: names of the tensors that a mask must zero for the units to read as absent: results of layers, what
            ops make that map zero elsewhere, and parameters that are added. These are where gates act.
        frozen: why no unit can be removed, or None.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    masked: tuple[str, ...]
    frozen: str | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured network.

    Attributes:
        inputs: names of the input tensors.
        outputs: names of the tensors that the network returns.
        ops: in execution order.
        shapes: activation name -> shape of one sample, batch dimension 1 included.
        parameters: parameter or buffer name -> shape; a tied one by its first name.
        groups: channel groups, in order of their first layer.
        trained: names of the floating-point parameters, those that training changes; buffers are not among them.
        batched: names of the floating-point activations whose dimension 0, and no other, grows with the batch;
            None if that is not known, and taken for all of them.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    shapes: Mapping[str, Shape]
    parameters: Mapping[str, Shape]
    groups: tuple[ChannelGroup, ...] = ()
    trained: frozenset[str] = frozenset()
    batched: frozenset[str] | None = None

    @cached_property
    def weighted(self) -> tuple[Op, ...]:
        """Ops whose weight is searched and whose multiplications count."""
        return tuple(op for op in self.ops if op.kind in WEIGHTED and op.weight is not None)

    @cached_property
    def rows(self) -> Mapping[str, Rows]:
        """How the output channels lie in each searched weight, in order of first use."""
        by_layer = {op.weight: op.rows for op in reversed(self.weighted) if op.weight is not None}
        ordered = {op.weight: by_layer[op.weight] for op in self.weighted if op.weight is not None}
        return {**ordered, **{name: Rows() for name in self._stored_weights if name not in ordered}}

    @property
    def searched_weights(self) -> tuple[str, ...]:
        """Names of the weights that are searched, each once: of layers, then those that are computed with in float."""
        return tuple(self.rows)

    @cached_property
    def _stored_weights(self) -> tuple[str, ...]:
        """Trained weights that only barriers and recurrent layers read: quantised where they are stored."""
        storing = (Kind.BARRIER, Kind.RECURRENT)
        reads = {name: op for op in self.ops for name in op.parameters}
        others = {name for op in self.ops if op.kind not in storing for name in op.parameters}
        frozen = {name for op in self.barriers if op.reason == FROZEN for name in op.parameters}
        return tuple(n for n in reads if n in self.trained and n not in others | frozen and len(self.parameters[n]) > 1)

    @cached_property
    def barriers(self) -> tuple[Op, ...]:
        """Ops that are kept in float and never cut through."""
        return tuple(op for op in self.ops if op.kind is Kind.BARRIER)

    @cached_property
    def float_weights(self) -> tuple[str, ...]:
        """Trained tensors of two or more dimensions that are read and not searched; they stay in float32."""
        names = dict.fromkeys(name for op in self.ops for name in op.parameters)
        return tuple(n for n in names if n in self.trained and n not in self.rows and len(self.parameters[n]) > 1)

    def row_units(self, weight: str) -> Mapping[str, NDArray[np.int64]]:
        """For each group along a searched weight's output channels: int64 [C], the unit of each, -1 for none."""
        op = next((op for op in self.weighted if op.weight == weight), None)
        if op is None:
            return self.units_along(weight, 0)
        dim = 1 if op.kind in (Kind.CONV, Kind.CONV_TRANSPOSE) else len(self.shapes[op.name]) - 1
        return self.units_along(op.name, dim)

    def units_along(self, tensor: str, dim: int) -> Mapping[str, NDArray[np.int64]]:
        """For each group along a tensor's dimension: int64 [size], the unit at each position, -1 for none."""
        size = self.shape_of(tensor)[dim]
        found = {}
        for group, member in self.groups_along(tensor, dim):
            units = np.full(size, -1, np.int64)
            units[member.index] = np.arange(group.units)[:, None]
            found[group.name] = units
        return found

    def shape_of(self, tensor: str) -> Shape:
        """Shape of an activation or a parameter."""
        return self.shapes[tensor] if tensor in self.shapes else self.parameters[tensor]

    def groups_along(self, tensor: str, dim: int) -> Sequence[tuple[ChannelGroup, Member]]:
        """The groups that remove positions along a tensor's dimension, and where their units lie in it."""
        return self._along.get((tensor, dim), ())

    @cached_property
    def _along(self) -> Mapping[tuple[str, int], list[tuple[ChannelGroup, Member]]]:
        along: dict[tuple[str, int], list[tuple[ChannelGroup, Member]]] = {}
        for group in self.groups:
            for member in group.members:
                along.setdefault((member.tensor, member.dim), []).append((group, member))
        return along

    def producer(self, tensor: str) -> Op | None:
        """The op that makes a tensor, or None for an input."""
        return self._by_name.get(tensor)

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """The ops that read a tensor."""
        return tuple(self._readers.get(tensor, ()))

    @cached_property
    def _by_name(self) -> Mapping[str, Op]:
        return {op.name: op for op in self.ops}

    @cached_property
    def _readers(self) -> Mapping[str, list[Op]]:
        readers: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                readers.setdefault(name, []).append(op)
        return readers
