"""Normalisations: over stored statistics, over single channels, over groups of channels, over whole positions."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from zerobit.graph.axes import Axes, AxisState
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.affine import equal_per_group, pin_others
from zerobit.graph.rules.base import AbstractRule, Arguments, Cut, Ref, Shapes, as_kind, is_parameter, refuse
from zerobit.graph.statistics import GROUP_NORM, LAYER_NORM, RMS_NORM


class BatchNormRule(AbstractRule):
    """BatchNorm in evaluation mode that follows no convolution: one scale and shift per channel."""

    targets = ("aten.batch_norm.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind NORM with the names of its statistics; FLOAT where it has no scale or no shift."""
        del shapes
        if arguments["training"]:
            return refuse(op, "a BatchNorm over the statistics of its batch")
        if not all(is_parameter(arguments[k], op) for k in ("running_mean", "running_var")):
            return refuse(op, "a BatchNorm whose statistics are computed")
        if _is_scale_computed(op, arguments):
            return refuse(op, COMPUTED_SCALE)
        op = _scaled(op, arguments)
        if op.weight is None or op.bias is None:
            return as_kind(op, Kind.FLOAT)
        mean, var = arguments["running_mean"].name, arguments["running_var"].name
        return as_kind(op, Kind.NORM, eps=float(arguments["eps"]), mean=mean, var=var)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels; its output is masked, so an absent channel reads as zero again."""
        return _per_channel(op, state, fills=True)


class InstanceNormRule(AbstractRule):
    """InstanceNorm: each channel over its own positions; an absent one stays zero but for a shift."""

    targets = ("aten.instance_norm.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT."""
        del shapes
        if not arguments["use_input_stats"]:
            return refuse(op, "an InstanceNorm over stored statistics")
        if _is_scale_computed(op, arguments):
            return refuse(op, COMPUTED_SCALE)
        return as_kind(_scaled(op, arguments), Kind.FLOAT)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels."""
        return _per_channel(op, state, fills=op.bias is not None)


class GroupNormRule(AbstractRule):
    """GroupNorm: whole groups go, or equally many channels of each, whichever makes more units.

    In the second case those that are gone count as zeros in the statistics of their group.
    """

    targets = ("aten.group_norm.default", GROUP_NORM)
    replacement: ClassVar[Mapping[str, str]] = {"aten.group_norm.default": GROUP_NORM}

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with the number of groups."""
        del shapes
        if _is_scale_computed(op, arguments):
            return refuse(op, COMPUTED_SCALE)
        return as_kind(_scaled(op, arguments), Kind.FLOAT, groups=int(arguments["num_groups"]))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Units of one group each, or of one channel of every group."""
        entering, groups = state.tensors[op.inputs[0]], op.attrs["groups"]
        channels = entering.labels[1]
        if channels is None:
            return _per_channel(op, state, fills=True)
        state.require_zero(entering)
        if self._goes_whole(groups, len(channels), cut=op.target == GROUP_NORM):
            columns = channels.reshape(groups, -1).T
            for column in columns[1:]:
                state.atoms.unite(columns[0], column)
        else:
            equal_per_group(channels, groups, state)
        return _per_channel(op, state, fills=True)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """As many groups as are left, or as many channels in each as there were."""
        groups, before, after = int(arguments["num_groups"]), cut.before[name][1], cut.after[name][1]
        if before == after:
            return {}
        if self._goes_whole(groups, before, cut="count" in arguments):
            return {"num_groups": groups * after // before, "count": before // groups}
        return {"num_groups": groups, "count": arguments.get("count", before // groups)}

    def _goes_whole(self, groups: int, channels: int, *, cut: bool) -> bool:
        """Whether units are whole groups. Once channels were taken out of groups, it goes on that way."""
        return not cut and channels // groups < groups


class LayerNormRule(AbstractRule):
    """LayerNorm and RMSNorm over the last dimensions; channels that are gone count as zeros in the statistics."""

    targets = (
        "aten.layer_norm.default",
        "aten.rms_norm.default",
        LAYER_NORM,
        RMS_NORM,
    )
    replacement: ClassVar[Mapping[str, str]] = {
        "aten.layer_norm.default": LAYER_NORM,
        "aten.rms_norm.default": RMS_NORM,
    }

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with the number of dimensions."""
        del shapes
        if any(isinstance(size, Ref) for size in arguments["normalized_shape"]):
            return refuse(op, "it normalises over sizes that are free")
        if _is_scale_computed(op, arguments):
            return refuse(op, COMPUTED_SCALE)
        return as_kind(_scaled(op, arguments), Kind.FLOAT, rank=len(arguments["normalized_shape"]))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels; scale and shift go with them."""
        axes, rank = state.axes(op.inputs[0]), op.attrs["rank"]
        inner = axes.labels[-rank:]
        if any(labels is not None for labels in inner):
            state.require_zero(axes)
        for name in op.parameters:
            state.label_parameter(name, inner)
        if "rms_norm" in op.target and op.bias is None:
            return Axes(axes.labels, frozenset() if any(labels is not None for labels in inner) else axes.spoilers)
        return Axes(axes.labels, frozenset({op.name}))

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """The sizes that are left, and the number of values there were."""
        rank = len(arguments["normalized_shape"])
        before, after = cut.before[name][-rank:], cut.after[name][-rank:]
        if before == after:
            return {}
        return {"normalized_shape": list(after), "count": arguments.get("count", math.prod(before))}


#: Why a norm is a barrier whose scale or shift is no parameter.
COMPUTED_SCALE = "its scale or shift is computed, not a parameter"


def _is_scale_computed(op: Op, arguments: Arguments) -> bool:
    given = [arguments.get(name) for name in ("weight", "bias")]
    return any(isinstance(value, Ref) and not is_parameter(value, op) for value in given)


def _scaled(op: Op, arguments: Arguments) -> Op:
    """The op with its scale and shift, where these are parameters."""
    found = [arguments.get(name) for name in ("weight", "bias")]
    weight, bias = (v.name if isinstance(v, Ref) and v.name in op.parameters else None for v in found)
    return replace(op, weight=weight, bias=bias, inputs=op.inputs[:1])


def _per_channel(op: Op, state: AxisState, *, fills: bool) -> Axes:
    """Parameters lie along dimension 1, the channels; other dimensions keep theirs.

    Args:
        op: the op.
        state: channels so far.
        fills: whether it maps zero elsewhere.
    """
    entering = state.tensors[op.inputs[0]]
    pin_others(op, entering, 1, state)
    channels = entering.labels[1]
    for name in op.parameters:
        if math.prod(state.shapes[name]) > 1:
            state.label_parameter(name, (channels,))
    if channels is None:
        return Axes((None,) * len(state.shapes[op.name]))
    labels = tuple(channels if d == 1 else None for d in range(len(state.shapes[op.name])))
    return Axes(labels, frozenset({op.name}) if fills else entering.spoilers)
