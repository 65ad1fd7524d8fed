"""Layers with a weight: convolution and its transpose, linear, embedding. They make channels."""

from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op, Rows
from zerobit.graph.rules.base import AbstractRule, Arguments, Cut, Shapes, as_kind, is_parameter, pair, refuse


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
            return refuse(op, COMPUTED)
        weight = arguments["weight"].name
        kernel = shapes[weight][2:]
        rank = len(kernel)
        if len(shapes[op.name]) != rank + 2:
            return refuse(op, "its input has no batch dimension")
        dilation = pair(arguments["dilation"], rank)
        groups = int(arguments["groups"])
        return as_kind(
            _layer_op(op, arguments),
            Kind.CONV,
            kernel=kernel,
            stride=pair(arguments["stride"], rank),
            padding=_padding(arguments["padding"], kernel, dilation),
            dilation=dilation,
            groups=groups,
            depthwise=groups > 1 and shapes[weight][1] == 1,
        )

    def couple(self, op: Op, state: AxisState) -> Axes:
        """New channels for a dense or grouped convolution, the input's own for a depthwise one."""
        assert op.weight is not None
        channels = _entering(op, state)
        count, groups = state.shapes[op.name][1], op.attrs["groups"]
        space: tuple[Labels | None, ...] = (None,) * len(op.attrs["kernel"])
        if op.attrs["depthwise"] and channels is not None:
            leaving = np.repeat(channels, count // groups)
            fan_in = None
        else:
            leaving = _leaving(op, state, count)
            fan_in = channels if groups == 1 else equal_per_group(channels, groups, state)
            if groups > 1:
                equal_per_group(leaving, groups, state)
        state.label_parameter(op.weight, (leaving, fan_in, *space))
        return leave(op, state, leaving, 1)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """A depthwise convolution has as many groups as channels are left."""
        return _depthwise_groups(arguments, cut)


class ConvTransposeRule(AbstractRule):
    """Transposed convolution: dense, depthwise, or grouped with equal cuts in every group, as `ConvRule`."""

    targets = (
        "aten.conv_transpose1d.default",
        "aten.conv_transpose2d.input",
        "aten.conv_transpose3d.input",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind CONV_TRANSPOSE with stride, dilation, groups, both paddings and how channels lie in the weight."""
        if not _has_parameters(op, arguments):
            return refuse(op, COMPUTED)
        shape = shapes[arguments["weight"].name]
        rank = len(shape) - 2
        if len(shapes[op.name]) != rank + 2:
            return refuse(op, "its input has no batch dimension")
        groups = int(arguments["groups"])
        return as_kind(
            replace(_layer_op(op, arguments), rows=Rows(1, groups)),
            Kind.CONV_TRANSPOSE,
            kernel=shape[2:],
            stride=pair(arguments["stride"], rank),
            padding=_padding(arguments["padding"], shape[2:], ()),
            output_padding=pair(arguments["output_padding"], rank),
            dilation=pair(arguments["dilation"], rank),
            groups=groups,
            depthwise=groups > 1 and groups == shape[0],
        )

    def couple(self, op: Op, state: AxisState) -> Axes:
        """New channels; of a depthwise one with one filter per channel the input's own."""
        assert op.weight is not None
        channels = _entering(op, state)
        count, groups = state.shapes[op.name][1], op.attrs["groups"]
        space: tuple[Labels | None, ...] = (None,) * len(op.attrs["kernel"])
        per_channel = count // groups
        if op.attrs["depthwise"] and channels is not None:
            leaving = np.repeat(channels, per_channel)
            state.label_parameter(op.weight, (channels, None, *space))
            return leave(op, state, leaving, 1)
        leaving = _leaving(op, state, count)
        equal_per_group(channels, groups, state)
        block = equal_per_group(leaving, groups, state)
        if op.attrs["depthwise"]:
            state.atoms.pin(leaving, f"`{op.name}` spreads channels that stay")
        state.label_parameter(op.weight, (channels, block, *space))
        return leave(op, state, leaving, 1)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """A depthwise convolution has as many groups as channels are left."""
        return _depthwise_groups(arguments, cut)


class LinearRule(AbstractRule):
    """Linear layer on any rank; contracts the last dimension."""

    targets = ("aten.linear.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind LINEAR."""
        if not _has_parameters(op, arguments):
            return refuse(op, COMPUTED)
        if len(shapes[op.inputs[0]]) < 2:
            return refuse(op, "its input has no batch dimension")
        layer = _layer_op(op, arguments)
        weight = shapes[arguments["weight"].name]
        if len(weight) != 2 or (layer.bias is not None and tuple(shapes[layer.bias]) != tuple(weight[:1])):
            return refuse(op, "its weight is no matrix, or its bias no vector of its outputs")
        return as_kind(layer, Kind.LINEAR)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """New channels on the last dimension; channels on any other one pass through."""
        return couple_linear(op, state)


class AddmmRule(AbstractRule):
    """bias + input @ weight, the weight stored as [I, O]."""

    targets = ("aten.addmm.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind LINEAR where weight and bias are parameters."""
        x, weight, bias = arguments["mat1"], arguments["mat2"], arguments["self"]
        scaled = arguments["alpha"] != 1 or arguments["beta"] != 1
        if scaled or is_parameter(x, op) or not is_parameter(weight, op) or not is_parameter(bias, op):
            return refuse(op, COMPUTED)
        if tuple(shapes[bias.name]) != tuple(shapes[weight.name][1:]):
            return refuse(op, "its bias is no vector of its outputs")
        return as_kind(replace(op, weight=weight.name, bias=bias.name, inputs=op.inputs[:1], rows=Rows(1)), Kind.LINEAR)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """As a linear layer."""
        return couple_linear(op, state)


class EmbeddingRule(AbstractRule):
    """Integers pick rows of a table; its columns are channels."""

    targets = ("aten.embedding.default",)
    takes_parameters = True

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind EMBEDDING."""
        del shapes
        weight = arguments["weight"]
        if not is_parameter(weight, op):
            return refuse(op, COMPUTED)
        return as_kind(replace(op, weight=weight.name, rows=Rows(1)), Kind.EMBEDDING)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """New channels on the last dimension."""
        assert op.weight is not None
        for name in op.inputs:
            state.pin(name, f"picks rows in `{op.name}`")
        rank = len(state.shapes[op.name])
        leaving = _leaving(op, state, state.shapes[op.name][-1])
        state.label_parameter(op.weight, (None, leaving))
        return leave(op, state, leaving, rank - 1)


#: Why a layer is a barrier whose weight or bias is no parameter.
COMPUTED = "its weight or bias is computed, not a parameter"


def couple_linear(op: Op, state: AxisState) -> Axes:
    """New channels on the last dimension, for a weight [O, I] or [I, O]; channels on any other one pass."""
    assert op.weight is not None
    entering = state.tensors[op.inputs[0]]
    state.require_zero(entering)
    rank = len(state.shapes[op.name])
    leaving = _leaving(op, state, state.shapes[op.name][-1])
    labels = (leaving, entering.labels[-1])
    state.label_parameter(op.weight, labels if op.rows.dim == 0 else labels[::-1])
    return Axes((*entering.labels[:-1], leave(op, state, leaving, rank - 1).labels[-1]))


def equal_per_group(labels: Labels | None, groups: int, state: AxisState) -> Labels | None:
    """Unite channel j of every group; returns the labels of one group."""
    if labels is None or groups == 1:
        return labels
    blocks = labels.reshape(groups, -1)
    for block in blocks[1:]:
        state.atoms.unite(blocks[0], block)
    return blocks[0]


def pin_others(op: Op, entering: Axes, dim: int, state: AxisState) -> None:
    """Channels may lie along one dimension only; those on others stay."""
    for other, labels in enumerate(entering.labels):
        if other != dim:
            state.pin_axis(labels, f"not on the channel dimension of `{op.name}`")


def leave(op: Op, state: AxisState, channels: Labels, dim: int) -> Axes:
    """Axes of an affine op's output; the bias goes with the channels."""
    if op.bias is not None:
        state.label_parameter(op.bias, (channels,))
    state.masked.add(op.name)
    return Axes(tuple(channels if d == dim else None for d in range(len(state.shapes[op.name]))))


def _layer_op(op: Op, arguments: Arguments) -> Op:
    bias = arguments["bias"]
    return replace(op, weight=arguments["weight"].name, bias=bias.name if bias else None, inputs=op.inputs[:1])


def _has_parameters(op: Op, arguments: Arguments) -> bool:
    """Whether the input is data, weight and bias parameters; computed weights are not."""
    bias = arguments["bias"]
    return (
        not is_parameter(arguments["input"], op)
        and is_parameter(arguments["weight"], op)
        and (bias is None or is_parameter(bias, op))
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


def _entering(op: Op, state: AxisState) -> Labels | None:
    """Channels of a convolution's input."""
    entering = state.tensors[op.inputs[0]]
    state.require_zero(entering)
    pin_others(op, entering, 1, state)
    return entering.labels[1]


def _leaving(op: Op, state: AxisState, count: int) -> Labels:
    """New channels, named after the layer; the weight's labels unite them with those of an earlier reader, if any."""
    assert op.weight is not None
    return state.atoms.fresh(_layer(op.weight), count)


def _depthwise_groups(arguments: Arguments, cut: Cut) -> Arguments:
    source = arguments["input"].name
    groups = int(arguments["groups"])
    if groups > 1 and groups == cut.before[source][1] and cut.after[source] != cut.before[source]:
        return {"groups": cut.after[source][1]}
    return {}
