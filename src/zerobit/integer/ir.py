"""`IntegerGraph`: the whole network in integers, as frozen data that every interpreter and export reads.

The pieces are in `tensors.py` and `ops.py`, what is legal in `check.py`; re-exported here where users need them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from zerobit.integer.check import accumulator_bound, check_graph
from zerobit.integer.floats import FloatOp, StoredWeight
from zerobit.integer.ops import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    Feed,
    Island,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Permute,
    Quantize,
    QuantizeFloat,
    Repeat,
    Rescale,
    Reshape,
    Slice,
    Spread,
    Subtract,
    clip_range,
    makes,
    reads,
)
from zerobit.integer.tensors import STORAGE_BITS, IntegerTensor, Weights, storage_bits

__all__ = [
    "STORAGE_BITS",
    "Add",
    "AvgPool",
    "Concat",
    "Conv",
    "Expand",
    "Feed",
    "FloatOp",
    "IntegerTensor",
    "Island",
    "Linear",
    "Lookup",
    "MaxPool",
    "Mean",
    "Multiply",
    "Op",
    "Pad",
    "Permute",
    "Quantize",
    "QuantizeFloat",
    "Repeat",
    "Rescale",
    "Reshape",
    "Slice",
    "Spread",
    "StoredWeight",
    "Subtract",
    "Weights",
    "accumulator_bound",
    "clip_range",
    "makes",
    "reads",
    "storage_bits",
]


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """A network whose activations and weights are integers, but for islands of ops that have no integer form.

    Attributes:
        tensors: every activation; names are unique.
        ops: in topological order; each makes one tensor, an island several.
        outputs: names of the tensors that leave the network, in order. Files and twins hand them out as
            float32: logits as they are, integers times their scale. Inner tensors can be named too; the
            exported file stays as exact and as fused as before.
        batch: the only batch size it takes, or None if it takes any.
    """

    tensors: tuple[IntegerTensor, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("tensors", "ops", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @cached_property
    def by_name(self) -> Mapping[str, IntegerTensor]:
        """Tensors by name."""
        return MappingProxyType({tensor.name: tensor for tensor in self.tensors})

    @cached_property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the graph inputs by name in order of first use; batch left out, where there is one."""
        entries = [op for op in self.ops if isinstance(op, Quantize | Feed)]
        return MappingProxyType({op.input: self.by_name[op.output].shape for op in entries})

    @cached_property
    def input_types(self) -> Mapping[str, np.dtype[np.generic]]:
        """Numpy type of each graph input; float32 where integers are made of it."""
        feeds = {op.input: op.dtype for op in self.ops if isinstance(op, Feed)}
        return MappingProxyType({name: feeds.get(name, np.dtype(np.float32)) for name in self.inputs})

    @cached_property
    def unbatched(self) -> frozenset[str]:
        """Graph inputs without a batch: they enter whole."""
        return frozenset(op.input for op in self.ops if isinstance(op, Feed) and not op.is_batched)

    @cached_property
    def islands(self) -> tuple[Island, ...]:
        """What is computed in float: ops without an integer form, their operators, modules and the reasons."""
        return tuple(op for op in self.ops if isinstance(op, Island))

    @cached_property
    def float_tensors(self) -> tuple[str, ...]:
        """Tensors that islands make."""
        return tuple(name for island in self.islands for name in island.outputs)

    @property
    def weight_bytes_packed(self) -> float:
        """Bytes of all weights at their own widths, packed without gaps; exact, in steps of 1/8."""
        layers = [op.weights for op in self.ops if isinstance(op, Conv | Linear)]
        stored = [weight.weights for island in self.islands for weight in island.weights]
        return sum(weights.packed_bits for weights in (*layers, *stored)) / 8

    def validate(self) -> "IntegerGraph":
        """Return the graph after proving that it is legal.

        Raises:
            ZerobitError: order, names or shapes are wrong; names the tensor.
            FormatError: a scale, width or value is out of range, or an accumulator can overflow; names it.
        """
        check_graph(self.tensors, self.ops, self.outputs)
        return self
