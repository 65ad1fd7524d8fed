"""`Graph`: what a captured model *is*, as frozen data.

A graph is derived from a `Program` (see program.py) and never edited; after a cut it is derived anew. Tensors
are named after the node that makes them; parameters keep the names of the user's state_dict. Shapes are those
of one sample: dimension 0, the batch, is 1 (of a model that fixes its batch, the only size it takes).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


class Kind(str, Enum):
    """The closed set of op kinds."""

    CONV = "conv"  # a weight [O, I/groups, *k] slides over the input
    LINEAR = "linear"  # a weight [O, I] contracts the last dimension
    NORM = "norm"  # y = a[c] * x + b[c], BatchNorm that could not be folded
    RELU = "relu"  # clamp to [0, high]
    ADD = "add"  # sum of two tensors
    CONCAT = "concat"  # along one dimension
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    MEAN = "mean"  # over whole dimensions
    RESHAPE = "reshape"  # same elements in the same order
    PAD = "pad"  # with a constant
    IDENTITY = "identity"  # dropout in evaluation
    BARRIER = "barrier"  # anything without a rule: kept in float, never cut through


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
        affine: names of the ops whose output a mask must zero for the units to read as absent.
        frozen: why no unit can be removed, or None.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    affine: tuple[str, ...]
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
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    shapes: Mapping[str, Shape]
    parameters: Mapping[str, Shape]
    groups: tuple[ChannelGroup, ...] = ()

    @property
    def weighted(self) -> tuple[Op, ...]:
        """Ops whose weight is searched: convolutions and linear layers."""
        return tuple(op for op in self.ops if op.kind in (Kind.CONV, Kind.LINEAR) and op.weight is not None)

    @property
    def searched_weights(self) -> tuple[str, ...]:
        """Names of the weights that are searched, each once, in order of first use."""
        return tuple(dict.fromkeys(op.weight for op in self.weighted if op.weight is not None))

    @property
    def barriers(self) -> tuple[Op, ...]:
        """Ops without a rule."""
        return tuple(op for op in self.ops if op.kind is Kind.BARRIER)

    @property
    def float_weights(self) -> tuple[str, ...]:
        """Weight tensors (two or more dimensions) read by barriers only; they stay in float32."""
        searched = self.searched_weights
        names = dict.fromkeys(name for op in self.barriers for name in op.parameters)
        return tuple(n for n in names if n not in searched and len(self.parameters[n]) > 1)

    def producer(self, tensor: str) -> Op | None:
        """The op that makes a tensor, or None for an input."""
        return next((op for op in self.ops if op.name == tensor), None)

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """The ops that read a tensor."""
        return tuple(op for op in self.ops if tensor in op.inputs)
