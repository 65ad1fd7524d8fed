"""`IntegerGraph`: the whole network in integers, as frozen data that every interpreter and export reads.

The pieces are in `ops.py`, what is legal in `check.py`; both are re-exported here where users need them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from zerobit.integer.check import accumulator_bound, check_graph
from zerobit.integer.ops import (
    STORAGE_BITS,
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    Weights,
    clip_range,
    reads,
    storage_bits,
)

__all__ = [
    "STORAGE_BITS",
    "Add",
    "AvgPool",
    "Concat",
    "Conv",
    "IntegerGraph",
    "IntegerTensor",
    "Linear",
    "MaxPool",
    "Mean",
    "Op",
    "Pad",
    "Quantize",
    "Rescale",
    "Reshape",
    "Weights",
    "accumulator_bound",
    "clip_range",
    "reads",
    "storage_bits",
]


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """A network whose activations and weights are integers.

    Attributes:
        tensors: every activation; names are unique.
        ops: in topological order; each makes one tensor.
        outputs: names of the tensors that leave the network, in order. Files and twins hand them out as
            float32: logits as they are, integers times their scale. Inner tensors can be named too; the
            exported file stays as exact and as fused as before.
    """

    tensors: tuple[IntegerTensor, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("tensors", "ops", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @cached_property
    def by_name(self) -> Mapping[str, IntegerTensor]:
        """Tensors by name."""
        return MappingProxyType({tensor.name: tensor for tensor in self.tensors})

    @cached_property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the float32 graph inputs, batch left out, by name in order of first use."""
        quantizers = [op for op in self.ops if isinstance(op, Quantize)]
        return MappingProxyType({op.input: self.by_name[op.output].shape for op in quantizers})

    @property
    def weight_bytes_packed(self) -> float:
        """Bytes of all weights at their own widths, packed without gaps; exact, in steps of 1/8."""
        return sum(op.weights.packed_bits for op in self.ops if isinstance(op, Conv | Linear)) / 8

    def validate(self) -> "IntegerGraph":
        """Return the graph after proving that it is legal.

        Raises:
            ZerobitError: order, names or shapes are wrong; names the tensor.
            FormatError: a scale, width or value is out of range, or an accumulator can overflow; names it.
        """
        check_graph(self.tensors, self.ops, self.outputs)
        return self
