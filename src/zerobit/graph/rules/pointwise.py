"""Functions of single values and their broadcast sums and products. They make no channels; some destroy zero."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op, Shape
from zerobit.graph.rules.base import (
    AbstractRule,
    Arguments,
    Call,
    Cut,
    Ref,
    Shapes,
    as_call,
    as_kind,
    dimension,
    operand,
    operands,
    reading_self,
    refuse,
)
from zerobit.graph.rules.contract import cleanest


class ReluRule(AbstractRule):
    """ReLU and its clipped forms; zero stays zero."""

    takes_parameters = True
    targets = ("aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RELU with the upper limit `high`, or None; other clamps are POINTWISE."""
        del shapes
        if op.target == "aten.relu.default":
            return as_kind(op, Kind.RELU, high=None)
        if op.target == "aten.relu6.default":
            return as_kind(op, Kind.RELU, high=6.0)
        names = ("min_val", "max_val") if "min_val" in arguments else ("min", "max")
        low, high = (arguments[name] for name in names)
        if low != 0 or isinstance(high, Ref) or (high is not None and high <= 0):
            return _unary(op, arguments)
        return as_kind(op, Kind.RELU, high=None if high is None else float(high))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's."""
        return _same_channels(op, state)


class UnaryRule(AbstractRule):
    """One function of every value. Whether it keeps zero is found by asking it."""

    takes_parameters = True
    targets = tuple(
        f"aten.{name}"
        for name in (
            "gelu.default", "silu.default", "hardswish.default", "hardsigmoid.default", "sigmoid.default",
            "tanh.default",
            "leaky_relu.default", "elu.default", "selu.default", "celu.default", "mish.default", "softplus.default",
            "hardshrink.default", "softshrink.default", "threshold.default", "log_sigmoid.default",
            "exp.default", "expm1.default", "log.default", "log1p.default", "sqrt.default", "rsqrt.default",
            "reciprocal.default", "square.default", "neg.default", "abs.default", "sign.default", "sin.default",
            "cos.default", "erf.default", "floor.default", "ceil.default", "round.default", "trunc.default",
            "clamp_min.default", "clamp_max.default", "pow.Tensor_Scalar", "rsub.Scalar", "add.Scalar", "sub.Scalar",
            "mul.Scalar", "div.Scalar", "nan_to_num.default", "logical_not.default", "isnan.default", "isinf.default",
            "eq.Scalar", "ne.Scalar", "ge.Scalar", "gt.Scalar", "le.Scalar", "lt.Scalar",
        )
    )  # fmt: skip

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind POINTWISE."""
        del shapes
        return _unary(op, arguments)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's; zero if the function keeps it."""
        return _same_channels(op, state)


class BinaryRule(AbstractRule):
    """Sum, difference, product, quotient and the like of two tensors, or of a tensor and a number."""

    takes_parameters = True
    targets = tuple(
        f"aten.{name}"
        for name in (
            "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "rsub.Tensor", "remainder.Tensor",
            "floor_divide.default", "maximum.default", "minimum.default", "pow.Tensor_Tensor", "atan2.default",
            "eq.Tensor", "ne.Tensor", "ge.Tensor", "gt.Tensor", "le.Tensor", "lt.Tensor",
            "logical_and.default", "logical_or.default", "bitwise_and.Tensor", "bitwise_or.Tensor",
        )
    )  # fmt: skip

    _SUMS = ("add", "sub", "rsub", "maximum", "minimum")
    _QUOTIENTS = ("div", "remainder", "floor_divide")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """POINTWISE with a number, CHANNELWISE with a parameter, ADD or MUL of two activations, FLOAT otherwise."""
        names = operands(op, arguments, "self", "other", "exponent")
        if len(names) == 1:
            return _unary(op, arguments)
        assert len(names) == 2, op
        function = op.target.split(".")[1]
        scale = arguments.get("alpha", 1)
        parameters = [name for name in names if name in op.parameters]
        if len(parameters) == 1 and op.inputs:
            return self._with_parameter(op, arguments, parameters[0], shapes, names)
        if len(parameters) == 0 and function in ("add", "sub") and scale in (1, -1):
            sign = scale if function == "add" else -scale
            return as_kind(replace(op, inputs=names), Kind.ADD, operands=names, alpha=sign)
        if len(parameters) == 0 and function == "mul":
            return as_kind(replace(op, inputs=names), Kind.MUL, operands=names)
        return as_kind(op, Kind.FLOAT, operands=names)

    def _with_parameter(
        self, op: Op, arguments: Arguments, parameter: str, shapes: Shapes, names: tuple[str, ...]
    ) -> Op:
        """CHANNELWISE; the parameter may vary along one dimension of the result, or else along several (-2)."""
        rank = len(shapes[op.name])
        sizes = shapes[parameter]
        wide = [rank - len(sizes) + d for d, n in enumerate(sizes) if n > 1]
        dim = None if not wide else wide[0] if len(wide) == 1 else -2
        call = as_call(op, arguments)
        if call is None or shapes[op.inputs[0]] != shapes[op.name]:
            return as_kind(op, Kind.FLOAT, operands=names)
        function = op.target.split(".")[1]
        return as_kind(op, Kind.CHANNELWISE, operands=names, parameter=parameter, function=function, dim=dim, call=call)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Operands broadcast against each other; a product absorbs, a sum needs zero in all of them."""
        if "operands" not in op.attrs:
            return _same_channels(op, state)
        names = op.attrs["operands"]
        function = op.target.split(".")[1]
        if function in self._QUOTIENTS:  # zero by zero is no number, and what divides is not masked
            state.pin(names[1], f"divides in `{op.name}`")
        if function == "pow":
            state.pin(names[0], f"raised to a power that may be negative in `{op.name}`")
        zero = "any" if function in ("mul", "div") else "all" if function in self._SUMS else "none"
        return broadcast(op, state, names, zero)


class WhereRule(AbstractRule):
    """Choice between two tensors, or a tensor and a number, by a condition."""

    takes_parameters = True
    targets = ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.masked_fill.Scalar")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT."""
        del shapes
        return as_kind(op, Kind.FLOAT, operands=operands(op, arguments, "condition", "mask", "self", "other"))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """All operands broadcast against each other; the result is masked, since a condition can't be."""
        return broadcast(op, state, op.attrs["operands"], "none")


class PreluRule(AbstractRule):
    """A learned slope below zero, one or one per channel; zero stays zero."""

    targets = ("aten.prelu.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind CHANNELWISE along dimension 1, or with a single value."""
        weight = arguments["weight"]
        if not isinstance(weight, Ref) or weight.name not in op.parameters:
            return refuse(op, "its slope is computed, not a parameter")
        dim = 1 if math.prod(shapes[weight.name]) > 1 else None
        call = as_call(op, arguments)
        return as_kind(op, Kind.CHANNELWISE, parameter=weight.name, function="prelu", dim=dim, call=call)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's; slopes go with the channels."""
        axes = state.tensors[op.inputs[0]]
        if op.attrs["dim"] is None:
            return axes
        own = state.axes(op.attrs["parameter"]).labels[0]
        met = state.meet([axes.labels[1], own], f"meets channels that stay in `{op.name}`")
        return Axes((axes.labels[0], met, *axes.labels[2:]), axes.spoilers)


class GluRule(AbstractRule):
    """Gated linear unit: channel j of the first half times a gate from channel j of the second."""

    targets = ("aten.glu.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with its dimension."""
        return as_kind(op, Kind.FLOAT, dim=dimension(arguments["dim"], len(shapes[op.name])))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The halves are united."""
        axes = state.axes(op.inputs[0])
        labels = list(axes.labels)
        whole = labels[op.attrs["dim"]]
        if whole is not None:
            first, second = whole.reshape(2, -1)
            state.atoms.unite(first, second)
            labels[op.attrs["dim"]] = first
        return Axes(tuple(labels), axes.spoilers)


class ConstantRule(AbstractRule):
    """Tensors made in the code: as many channels as they are given, or as the tensor has that they are like."""

    _FILLED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
    _LIKE = ("zeros_like", "ones_like", "full_like")
    targets = (
        *(f"aten.{name}.default" for name in (*_FILLED, *_LIKE)),
        *(f"aten.arange.{overload}" for overload in ("default", "start", "start_step")),
        "aten.scalar_tensor.default",
        "aten.eye.default",
        "aten.linspace.default",
    )
    takes_parameters = True

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with the dimensions whose size is known."""
        rank = len(shapes[op.name])
        sizes: Sequence[Any] = arguments.get("size", ()) if op.target.split(".")[1] in self._FILLED else ()
        known = tuple(d for d, size in enumerate(sizes) if isinstance(size, int))
        return as_kind(op, Kind.FLOAT, known=known, rank=rank)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Channels of their own along what can be made smaller, or those of the tensor they are like."""
        function, shape = op.target.split(".")[1], state.shapes[op.name]
        spoilers = frozenset[str]() if "zeros" in function else frozenset({op.name})
        if function in self._LIKE:
            return Axes(state.axes(operand(op)).labels, spoilers)
        wide = [d in op.attrs["known"] and size > 1 for d, size in enumerate(shape)]
        return Axes(tuple(state.atoms.fresh("", n) if w else None for w, n in zip(wide, shape, strict=True)), spoilers)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """Sizes that are left."""
        before, after = cut.before[name], cut.after[name]
        if before == after or "size" not in arguments:
            return {}
        sizes = zip(arguments["size"], before, after, strict=True)
        return {"size": [new if old != new else size for size, old, new in sizes]}


class IdentityRule(AbstractRule):
    """Copies, layout hints, casts between float types."""

    takes_parameters = True
    targets = (
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.alias.default",
        "aten.detach.default",
        "aten.lift_fresh_copy.default",
        "aten.to.dtype",
        "aten.to.dtype_layout",
        "aten.to.device",
        "aten.to.other",
        "aten.type_as.default",
        "aten._to_copy.default",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind IDENTITY; a cast to integers is FLOAT."""
        del shapes
        dtype = arguments.get("dtype")
        is_float = not isinstance(dtype, torch.dtype) or dtype.is_floating_point
        return as_kind(reading_self(op, arguments), Kind.IDENTITY if is_float else Kind.FLOAT)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's."""
        return state.axes(operand(op))


def _unary(op: Op, arguments: Arguments) -> Op:
    call = as_call(op, arguments)
    if call is None:
        return refuse(op, "one of its constants is a size that is computed")
    return as_kind(op, Kind.POINTWISE, call=call, function=op.target.split(".")[1])


def _same_channels(op: Op, state: AxisState) -> Axes:
    axes = state.axes(operand(op))
    call = op.attrs.get("call")
    at_zero = 0.0 if call is None else _at_zero(call)
    if not math.isfinite(at_zero):  # no mask turns that into zero
        state.pin(operand(op), f"has no value at zero in `{op.name}`")
    return axes if at_zero == 0 else Axes(axes.labels, frozenset({op.name}))


def _at_zero(call: Call) -> float:
    return float(call(torch.zeros(1)).item())


def broadcast(op: Op, state: AxisState, names: Sequence[str], zero: str) -> Axes:
    """Labels of an element-wise op on operands that broadcast.

    Args:
        op: the op.
        state: channels so far.
        names: of the operands.
        zero: an absent channel reads as zero behind the op if it does in "any" operand that has it, if it does in
            "all" operands and all have it, or never ("none"); else its result spoils it.
    """
    shape = state.shapes[op.name]
    factors = [_padded(state.axes(name), state.shapes[name], len(shape)) for name in names]
    labels: list[Labels | None] = []
    spoilers: frozenset[str] = frozenset()
    for dim, size in enumerate(shape):
        wide = [(axes, axes.labels[dim]) for axes, own in factors if own[dim] == size]
        for axes, own in factors:
            if own[dim] != size:
                state.pin_axis(axes.labels[dim], f"broadcast in `{op.name}`")
        if size == 1:  # a single channel never goes; a tensor that has none there does not mind
            wide = [(axes, own) for axes, own in wide if own is not None]
        met = state.meet([own for _, own in wide], f"meets channels that stay in `{op.name}`")
        labels.append(met)
        carriers = [axes for axes, own in wide if own is not None]
        if met is not None and zero == "any":
            spoilers |= cleanest(carriers).spoilers
        elif met is not None and (zero == "none" or len(carriers) < len(factors)):
            spoilers |= {op.name}
        elif met is not None:
            spoilers |= frozenset().union(*(axes.spoilers for axes in carriers))
    return Axes(tuple(labels), frozenset({op.name}) if op.name in spoilers else spoilers)


def _padded(axes: Axes, shape: Shape, rank: int) -> tuple[Axes, Shape]:
    """Labels and shape with the leading dimensions that broadcasting adds."""
    missing = rank - len(shape)
    return Axes((*(None,) * missing, *axes.labels), axes.spoilers), (*(1,) * missing, *shape)
