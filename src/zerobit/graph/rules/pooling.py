"""Pooling and means over space: channels pass, positions shrink."""

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import AbstractRule, Arguments, Shapes, as_kind, pair


def _spatial(op: Op, state: AxisState) -> Axes:
    """Channels of the input; a channel on a pooled dimension may not be cut."""
    axes = state.tensors[op.inputs[0]]
    rank = op.attrs["rank"]
    for labels in axes.labels[-rank:]:
        if labels is not None:
            state.atoms.pin(labels, f"pooled over in `{op.name}`")
    return Axes((*axes.labels[:-rank], *(None,) * rank), axes.zero)


class MaxPoolRule(AbstractRule):
    """Maximum over windows."""

    targets = ("aten.max_pool1d.default", "aten.max_pool2d.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind MAX_POOL with kernel, stride, padding; ceil mode and dilation stay barriers."""
        del shapes
        rank = int(op.target.split("pool")[1][0])
        if arguments["ceil_mode"] or set(pair(arguments["dilation"], rank)) != {1}:
            return op
        kernel = pair(arguments["kernel_size"], rank)
        stride = pair(arguments["stride"], rank) if arguments["stride"] else kernel
        return as_kind(
            op,
            Kind.MAX_POOL,
            rank=rank,
            kernel=kernel,
            stride=stride,
            padding=pair(arguments["padding"], rank),
        )

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's channels."""
        del shapes
        return _spatial(op, state)


class AvgPoolRule(AbstractRule):
    """Mean over windows."""

    targets = ("aten.avg_pool1d.default", "aten.avg_pool2d.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind AVG_POOL with kernel, stride, padding and whether padding counts."""
        del shapes
        rank = int(op.target.split("pool")[1][0])
        if arguments["ceil_mode"] or arguments.get("divisor_override") is not None:
            return op
        kernel = pair(arguments["kernel_size"], rank)
        return as_kind(
            op,
            Kind.AVG_POOL,
            rank=rank,
            kernel=kernel,
            stride=pair(arguments["stride"], rank) if arguments["stride"] else kernel,
            padding=pair(arguments["padding"], rank),
            count_include_pad=bool(arguments["count_include_pad"]),
        )

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's channels."""
        del shapes
        return _spatial(op, state)


class AdaptiveAvgPoolRule(AbstractRule):
    """Mean over as many windows as the output has positions."""

    targets = ("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind AVG_POOL with the output size; its windows follow from the input's shape."""
        del shapes
        rank = int(op.target.split("pool")[1][0])
        return as_kind(op, Kind.AVG_POOL, rank=rank, output_size=pair(arguments["output_size"], rank))

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's channels."""
        del shapes
        return _spatial(op, state)


class MeanRule(AbstractRule):
    """Mean over whole dimensions."""

    targets = ("aten.mean.dim",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind MEAN with its dimensions, counted from 0, and `keepdim`; over the batch it stays a barrier."""
        rank = len(shapes[op.inputs[0]])
        dims = tuple(sorted(int(d) % rank for d in arguments["dim"] or ()))
        if not dims or dims[0] == 0 or arguments["dtype"] is not None:
            return op
        return as_kind(op, Kind.MEAN, dims=dims, keepdim=bool(arguments["keepdim"]))

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """What is left; a mean over channels keeps them all."""
        del shapes
        axes = state.tensors[op.inputs[0]]
        labels: list[Labels | None] = []
        for dim, present in enumerate(axes.labels):
            gone = dim in op.attrs["dims"]
            if gone and present is not None:
                state.atoms.pin(present, f"averaged over in `{op.name}`")
            if not gone:
                labels.append(present)
            elif op.attrs["keepdim"]:
                labels.append(None)
        return Axes(tuple(labels), axes.zero)
