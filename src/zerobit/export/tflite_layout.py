"""Where the activations of a network lie in a TFLite file, and in which order of dimensions.

The graph is channels first, TFLite's kernels with windows are channels last. Ops that don't care take the order in
which their input already lies; where one is needed that is not there, the tensor is transposed once for all readers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from zerobit.errors import ExportError
from zerobit.export.tflite_model import Model
from zerobit.integer.ir import IntegerGraph, IntegerTensor, Op, makes

Layout = Literal["first", "last"]

#: Ranks with the batch, and inputs, that the kernels of TFLite Micro hold.
TRANSPOSE_RANK = BROADCAST_RANK = 5
SLICE_RANK = 4
CONCAT_INPUTS = 10


def refused(op: Op, why: str) -> ExportError:
    """The error for an op that has no kernel."""
    msg = f"{type(op).__name__} {makes(op)[0]!r} can't be written for TFLite Micro: {why}; the ONNX format holds it"
    return ExportError(msg)


def file_shape(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Shape in the file, batch included: [1, C, ...], or [1, H, W, C] with H = 1 for one spatial dimension."""
    if layout == "first":
        return (1, *shape)
    return (1, *(1,) * (3 - len(shape)), *shape[1:], shape[0])


def file_axis(axis: int, rank: int, layout: Layout) -> int:
    """Dimension in the file of a graph's dimension.

    Args:
        axis: 0 the first behind the batch.
        rank: of the tensor, without the batch.
        layout: how it lies.
    """
    if layout == "first":
        return axis + 1
    return axis + 3 - rank if axis else 3


def memory_order(rank: int, layout: Layout) -> tuple[int, ...]:
    """Dimensions of the graph in the order in which they lie in memory."""
    return tuple(range(rank)) if layout == "first" else (*range(1, rank), 0)


@dataclass
class Network:
    """A file that grows, and which of its tensors holds which activation.

    Attributes:
        graph: what is written.
        model: the file.
        weights: element type for layers that it can hold, the others are int8.
        held: activation -> layout -> tensor; the layout in which it was made comes first.
        entries: tensors that enter the network.
    """

    graph: IntegerGraph
    model: Model
    weights: Literal["int8", "int4"]
    held: dict[str, dict[Layout, int]] = field(default_factory=dict)
    entries: list[int] = field(default_factory=list)

    @property
    def tensors(self) -> Mapping[str, IntegerTensor]:
        """Activations by name."""
        return self.graph.by_name

    def layout(self, name: str) -> Layout:
        """The layout in which an activation was made."""
        return next(iter(self.held[name]))

    def shared_layout(self, names: Sequence[str]) -> Layout:
        """The layout for an op that reads several and doesn't care."""
        return "last" if any(self.layout(name) == "last" for name in names) else "first"

    def make(self, name: str, layout: Layout) -> int:
        """Declare the tensor that an activation is made in."""
        tensor = self.tensors[name]
        index = self.model.like(tensor, name, file_shape(tensor.shape, layout))
        self.held[name] = {layout: index}
        return index

    def read(self, name: str, layout: Layout) -> int:
        """The tensor that holds an activation in this layout; transposed if there is none yet."""
        held = self.held[name]
        if layout not in held:
            tensor, given = self.tensors[name], self.layout(name)
            rank = len(tensor.shape)
            before, after = memory_order(rank, given), memory_order(rank, layout)
            index = self.helper(name, "transposed", file_shape(tensor.shape, layout))
            sizes = [tensor.shape[dim] for dim in before]
            self.transpose(held[given], sizes, [before.index(dim) for dim in after], index, name)
            held[layout] = index
        return held[layout]

    def channels_first(self, name: str) -> int:
        """A tensor whose integers lie channels first, of any shape: the one there is, where sizes of 1 allow it."""
        sizes = self.tensors[name].shape
        order = memory_order(len(sizes), self.layout(name))
        lies_alike = _merged(sizes, order)[1] in ([], [0])
        return self.held[name][self.layout(name)] if lies_alike else self.read(name, "first")

    def helper(self, name: str, suffix: str, shape: Sequence[int]) -> int:
        """Declare a tensor on the grid of an activation that is none itself."""
        return self.model.like(self.tensors[name], f"{name}/{suffix}", shape)

    def reshape(self, source: int, output: int) -> int:
        """The same integers in the shape of `output`."""
        shape = self.model.integers(self.model.shape(output), "shape")
        sizes = np.asarray(self.model.shape(output), np.int32)
        return self.model.operator("RESHAPE", [source, shape], output, "Reshape", newShape=sizes)

    def reshaped(self, source: int, name: str, shape: Sequence[int]) -> int:
        """A tensor of the integers of `source`, on the grid of `name`; itself if it has that shape."""
        if self.model.shape(source) == tuple(shape):
            return source
        return self.reshape(source, self.helper(name, "reshaped", shape))

    def transpose(self, source: int, sizes: Sequence[int], order: Sequence[int], output: int, name: str) -> int:
        """Dimensions in another order.

        Args:
            source: the tensor.
            sizes: of its dimensions as they lie in memory, without the batch.
            order: which of them each dimension of the output is.
            output: the tensor to write, of any shape with as many values.
            name: activation whose grid it is.

        Raises:
            ExportError: more dimensions change places than the kernel can hold.
        """
        if _merged(sizes, order)[1] in ([], [0]):
            return self.reshape(source, output)
        if len(sizes) < TRANSPOSE_RANK:
            shape, order = [1, *sizes], [0, *(dim + 1 for dim in order)]
        else:
            shape, order = _merged(sizes, order)
        if len(shape) > TRANSPOSE_RANK:
            msg = (
                f"{name!r} has {len(shape)} dimensions that change places, where TFLite Micro holds "
                f"{TRANSPOSE_RANK}; the ONNX format holds it"
            )
            raise ExportError(msg)
        operands = [self.reshaped(source, name, shape), self.model.integers(order, "order")]
        moved = [shape[dim] for dim in order]
        if self.model.shape(output) == tuple(moved):
            return self.model.operator("TRANSPOSE", operands, output, "Transpose")
        between = self.helper(name, "moved", moved)
        return self.reshape(self.model.operator("TRANSPOSE", operands, between, "Transpose"), output)


def _merged(sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same transposition on fewer dimensions: none of size 1, and those that stay neighbours as one."""
    runs: list[list[int]] = []
    kept = [dim for dim, size in enumerate(sizes) if size > 1]
    follower = dict(pairwise(kept))
    for dim in (dim for dim in order if sizes[dim] > 1):
        if runs and follower.get(runs[-1][-1]) == dim:
            runs[-1].append(dim)
        else:
            runs.append([dim])
    by_place = sorted(runs)
    return [int(np.prod([sizes[dim] for dim in run])) for run in by_place], [by_place.index(run) for run in runs]
