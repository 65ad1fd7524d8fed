"""Convolution, linear and BatchNorm that stays: the ops that make channels and whose output a mask zeroes."""

from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import AbstractRule, Arguments, Ref, Shapes, as_kind, pair


class ConvRule(AbstractRule):
    """Convolution over 1, 2 or 3 dimensions; dense, grouped or depthwise.

    Dense: input channels are cut freely. Depthwise (one input channel per group): output channels go with
    their input channel. Grouped: unit j is channel j of *every* group, so that the groups stay equal.
    """

    targets = (
        "aten.conv1d.default",
        "aten.conv2d.default",
        "aten.conv3d.default",
        "aten.conv1d.padding",
        "aten.conv2d.padding",
        "aten.conv3d.padding",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind CONV with stride, dilation, groups and padding as (begin, end) per dimension."""
        if not _has_parameters(op, arguments):
            return op
        weight, bias = arguments["weight"], arguments["bias"]
        kernel = shapes[weight.name][2:]
        rank = len(kernel)
        if len(shapes[op.name]) != rank + 2:  # without a batch
            return op
        dilation = pair(arguments["dilation"], rank)
        groups = int(arguments["groups"])
        op = replace(op, weight=weight.name, bias=bias.name if bias else None, inputs=op.inputs[:1])
        return as_kind(
            op,
            Kind.CONV,
            kernel=kernel,
            stride=pair(arguments["stride"], rank),
            padding=_padding(arguments["padding"], kernel, dilation),
            dilation=dilation,
            groups=groups,
            depthwise=groups > 1 and shapes[weight.name][1] == 1,
        )

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """New channels for a dense or grouped convolution, the input's own for a depthwise one."""
        assert op.weight is not None
        entering = state.tensors[op.inputs[0]]
        _require_zero(op, entering, state)
        _pin_others(op, entering, 1, state)
        channels = entering.labels[1]
        count, groups = shapes[op.name][1], op.attrs["groups"]
        space: tuple[Labels | None, ...] = (None,) * len(op.attrs["kernel"])
        if op.attrs["depthwise"] and channels is not None:
            leaving = np.repeat(channels, count // groups)
            fan_in = None
        else:
            leaving = _known(state, op, 0)
            leaving = state.atoms.fresh(_layer(op.weight), count) if leaving is None else leaving
            fan_in = channels if groups == 1 else _equal_per_group(channels, groups, state)
            if groups > 1:
                _equal_per_group(leaving, groups, state)
        state.label_parameter(op.weight, (leaving, fan_in, *space))
        return _leave(op, state, leaving, 1, len(shapes[op.name]))

    def rewrite(self, arguments: Arguments, before: Shapes, after: Shapes, name: str) -> Arguments:
        """A depthwise convolution has as many groups as channels are left."""
        source = arguments["input"].name
        groups = int(arguments["groups"])
        if groups > 1 and groups == before[source][1] and after[source] != before[source]:
            return {"groups": after[source][1]}
        return {}


class LinearRule(AbstractRule):
    """Linear layer on any rank; contracts the last dimension."""

    targets = ("aten.linear.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind LINEAR."""
        del shapes
        if not _has_parameters(op, arguments):
            return op
        weight, bias = arguments["weight"], arguments["bias"]
        op = replace(op, weight=weight.name, bias=bias.name if bias else None, inputs=op.inputs[:1])
        return as_kind(op, Kind.LINEAR)

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """New channels on the last dimension; channels on any other one pass through."""
        assert op.weight is not None
        entering = state.tensors[op.inputs[0]]
        _require_zero(op, entering, state)
        leaving = _known(state, op, 0)
        rank = len(shapes[op.name])
        leaving = state.atoms.fresh(_layer(op.weight), shapes[op.name][-1]) if leaving is None else leaving
        state.label_parameter(op.weight, (leaving, entering.labels[-1]))
        axes = _leave(op, state, leaving, rank - 1, rank)
        return Axes((*entering.labels[:-1], axes.labels[-1]))


class NormRule(AbstractRule):
    """BatchNorm in evaluation mode that follows no convolution: one scale and shift per channel."""

    targets = ("aten.batch_norm.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind NORM with the names of its statistics."""
        del shapes
        parts = [arguments[k] for k in ("weight", "bias", "running_mean", "running_var")]
        if arguments["training"] or not all(_is_parameter(p, op) for p in parts):
            return op
        op = replace(op, weight=parts[0].name, bias=parts[1].name, inputs=op.inputs[:1])
        return as_kind(op, Kind.NORM, eps=float(arguments["eps"]), mean=parts[2].name, var=parts[3].name)

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's channels; its output is masked, so an absent channel reads as zero again."""
        entering = state.tensors[op.inputs[0]]
        _pin_others(op, entering, 1, state)
        channels = entering.labels[1]
        for name in op.parameters:
            state.label_parameter(name, (channels,))
        if channels is None:
            return Axes((None,) * len(shapes[op.name]))
        return _leave(replace(op, bias=None), state, channels, 1, len(shapes[op.name]))


def _is_parameter(value: object, op: Op) -> bool:
    return isinstance(value, Ref) and value.name in op.parameters


def _has_parameters(op: Op, arguments: Arguments) -> bool:
    """Whether the input is data, weight and bias parameters; computed weights are not."""
    bias = arguments["bias"]
    return (
        not _is_parameter(arguments["input"], op)
        and _is_parameter(arguments["weight"], op)
        and (bias is None or _is_parameter(bias, op))
    )


def _padding(value: object, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(begin, end) per dimension; "same" puts the odd one at the end, as torch does."""
    if value == "valid":
        return ((0, 0),) * len(kernel)
    if value == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((p, p) for p in pair(value, len(kernel)))


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _known(state: AxisState, op: Op, dim: int) -> Labels | None:
    """Labels of a weight that an earlier call of the same layer gave it."""
    assert op.weight is not None
    known = state.parameters.get(op.weight)
    return known[dim] if known else None


def _require_zero(op: Op, entering: Axes, state: AxisState) -> None:
    if not entering.zero:
        state.atoms.pin(entering.atoms, f"an absent channel would not read as zero in `{op.name}`")


def _pin_others(op: Op, entering: Axes, dim: int, state: AxisState) -> None:
    """Channels may lie along one dimension only; those on others stay."""
    for other, labels in enumerate(entering.labels):
        if labels is not None and other != dim:
            state.atoms.pin(labels, f"not on the channel dimension of `{op.name}`")


def _equal_per_group(labels: Labels | None, groups: int, state: AxisState) -> Labels | None:
    """Unite channel j of every group; returns the labels of one group."""
    if labels is None:
        return None
    blocks = labels.reshape(groups, -1)
    for block in blocks[1:]:
        state.atoms.unite(blocks[0], block)
    return blocks[0]


def _leave(op: Op, state: AxisState, channels: Labels, dim: int, rank: int) -> Axes:
    """Axes of an affine op's output; the bias goes with the channels."""
    if op.bias is not None:
        state.label_parameter(op.bias, (channels,))
    state.affine[op.name] = dim
    return Axes(tuple(channels if d == dim else None for d in range(rank)))
