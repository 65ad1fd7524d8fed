"""Ops that move or combine channels but make none: clamps from zero, sums, concatenation, padding."""

from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import AbstractRule, Arguments, Ref, Shapes, as_kind


class ReluRule(AbstractRule):
    """ReLU and its clipped forms; zero stays zero."""

    targets = ("aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RELU with the upper limit `high`, or None."""
        del shapes
        if op.target == "aten.relu.default":
            return as_kind(op, Kind.RELU, high=None)
        if op.target == "aten.relu6.default":
            return as_kind(op, Kind.RELU, high=6.0)
        names = ("min_val", "max_val") if "min_val" in arguments else ("min", "max")
        low, high = (arguments[name] for name in names)
        if low != 0 or isinstance(high, Ref) or (high is not None and high <= 0):
            return op
        return as_kind(op, Kind.RELU, high=None if high is None else float(high))

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's."""
        del shapes
        return state.tensors[op.inputs[0]]


class IdentityRule(AbstractRule):
    """Copies and layout hints."""

    targets = ("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind IDENTITY."""
        del arguments, shapes
        return as_kind(op, Kind.IDENTITY)

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's."""
        del shapes
        return state.tensors[op.inputs[0]]


class AddRule(AbstractRule):
    """Sum of two tensors of one shape: a channel of one goes only together with its partner."""

    targets = ("aten.add.Tensor",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind ADD; a scaled sum, a sum with a constant, a parameter or itself stays a barrier."""
        del shapes
        if arguments["alpha"] != 1 or len(op.inputs) != 2 or op.parameters:
            return op
        return as_kind(op, Kind.ADD)

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """Unite the operands' channels; where shapes differ (broadcast), nothing may go."""
        a, b = (state.tensors[name] for name in op.inputs)
        if shapes[op.inputs[0]] != shapes[op.inputs[1]]:
            for name in op.inputs:
                state.pin(name, f"broadcast in `{op.name}`")
            return Axes((None,) * len(shapes[op.name]))
        labels = tuple(_join(x, y, state, op.name) for x, y in zip(a.labels, b.labels, strict=True))
        return Axes(labels, a.zero and b.zero)


class PadRule(AbstractRule):
    """Padding with a constant. Zero keeps absent channels zero, anything else does not."""

    targets = ("aten.pad.default", "aten.constant_pad_nd.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind PAD with (begin, end) pairs, last dimension first as torch counts, and the value."""
        del shapes
        if arguments.get("mode", "constant") != "constant" or any(isinstance(p, Ref) for p in arguments["pad"]):
            return op
        flat = [int(p) for p in arguments["pad"]]
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        return as_kind(op, Kind.PAD, pad=pairs, value=float(arguments.get("value") or 0.0))

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """The input's where a dimension is not padded; a padded channel dimension may not be cut."""
        axes = state.tensors[op.inputs[0]]
        labels = list(axes.labels)
        for i, ends in enumerate(op.attrs["pad"]):
            dim = len(shapes[op.name]) - 1 - i
            lone = labels[dim]
            if ends != (0, 0) and lone is not None:
                state.atoms.pin(lone, f"padded along channels in `{op.name}`")
                labels[dim] = None
        return Axes(tuple(labels), axes.zero and op.attrs["value"] == 0)


class ConcatRule(AbstractRule):
    """Concatenation: along channels the labels line up one behind the other."""

    targets = ("aten.cat.default", "aten.concat.default", "aten.concatenate.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind CONCAT with its dimension, counted from 0."""
        if op.parameters:
            return op
        names = tuple(ref.name for ref in arguments["tensors"])
        return as_kind(replace(op, inputs=names), Kind.CONCAT, dim=int(arguments["dim"]) % len(shapes[op.name]))

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """Joined along the dimension, united along all others."""
        along = op.attrs["dim"]
        parts = [state.tensors[name] for name in op.inputs]
        sizes = [shapes[name][along] for name in op.inputs]
        labels: list[Labels | None] = []
        for dim in range(len(shapes[op.name])):
            column = [part.labels[dim] for part in parts]
            joined = _line_up(column, sizes, state) if dim == along else _unite(column, state, op.name)
            labels.append(joined)
        return Axes(tuple(labels), all(part.zero for part in parts))


def _join(a: Labels | None, b: Labels | None, state: AxisState, name: str) -> Labels | None:
    if a is not None and b is not None:
        state.atoms.unite(a, b)
        return a
    lone = a if a is not None else b
    if lone is not None:
        state.atoms.pin(lone, f"added in `{name}` to a tensor whose channels stay")
    return None


def _line_up(column: list[Labels | None], sizes: list[int], state: AxisState) -> Labels | None:
    if all(labels is None for labels in column):
        return None
    filled = []
    for labels, size in zip(column, sizes, strict=True):
        if labels is None:  # channels of an input or a barrier: there, but never to be cut
            fixed = state.atoms.fresh("", size)
            state.atoms.pin(fixed, "not made by a layer that can be cut")
            filled.append(fixed)
        else:
            filled.append(labels)
    return np.concatenate(filled)


def _unite(column: list[Labels | None], state: AxisState, name: str) -> Labels | None:
    result = column[0]
    for other in column[1:]:
        result = _join(result, other, state, name)
    return result
