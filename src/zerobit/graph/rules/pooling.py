"""Pooling, resizing and reductions: channels pass, positions shrink, grow or go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import (
    AbstractRule,
    Arguments,
    Cut,
    Ref,
    Shapes,
    as_kind,
    dimension,
    operand,
    pair,
    refuse,
)
from zerobit.graph.statistics import AMAX, AMIN, MEAN


def _spatial(op: Op, state: AxisState) -> Axes:
    """Channels of the input; a channel on a pooled dimension may not be cut."""
    axes = state.tensors[op.inputs[0]]
    rank = op.attrs["rank"]
    for labels in axes.labels[-rank:]:
        state.pin_axis(labels, f"pooled over in `{op.name}`")
    return Axes((*axes.labels[:-rank], *(None,) * rank), axes.spoilers)


def _rank(op: Op) -> int:
    """Number of spatial dimensions, from the name of the op."""
    return next(int(c) for c in op.target if c.isdigit())


class MaxPoolRule(AbstractRule):
    """Maximum over windows."""

    targets = ("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind MAX_POOL with kernel, stride, padding, dilation and ceil mode."""
        del shapes
        rank = _rank(op)
        kernel = pair(arguments["kernel_size"], rank)
        return as_kind(
            op,
            Kind.MAX_POOL,
            rank=rank,
            kernel=kernel,
            stride=pair(arguments["stride"], rank) if arguments["stride"] else kernel,
            padding=pair(arguments["padding"], rank),
            dilation=pair(arguments["dilation"], rank),
            ceil_mode=bool(arguments["ceil_mode"]),
        )

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels."""
        return _spatial(op, state)


class AvgPoolRule(AbstractRule):
    """Mean over windows."""

    targets = ("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind AVG_POOL with kernel, stride, padding, ceil mode, the divisor and whether padding counts."""
        del shapes
        rank = _rank(op)
        kernel = pair(arguments["kernel_size"], rank)
        return as_kind(
            op,
            Kind.AVG_POOL,
            rank=rank,
            kernel=kernel,
            stride=pair(arguments["stride"], rank) if arguments["stride"] else kernel,
            padding=pair(arguments["padding"], rank),
            count_include_pad=bool(arguments["count_include_pad"]),
            ceil_mode=bool(arguments["ceil_mode"]),
            divisor_override=arguments.get("divisor_override"),
        )

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels."""
        return _spatial(op, state)


class AdaptiveAvgPoolRule(AbstractRule):
    """Mean over as many windows as the output has positions."""

    targets = tuple(f"aten.adaptive_avg_pool{n}d.default" for n in (1, 2, 3))

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind AVG_POOL with the output size; its windows follow from the input's shape."""
        del arguments
        rank = _rank(op)
        return as_kind(op, Kind.AVG_POOL, rank=rank, output_size=shapes[op.name][-rank:])

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels."""
        return _spatial(op, state)


def _known(scales: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(float(scale) for scale in scales if scale is not None)


class ResizeRule(AbstractRule):
    """Interpolation over space: each channel by itself, zero stays zero."""

    targets = tuple(
        f"aten.{name}.{overload}"
        for name in (
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d",
            "_upsample_nearest_exact3d",
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        )
        for overload in ("default", "vec")
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RESIZE with the mode, rank, and the scales that are given."""
        del shapes
        scales = arguments.get("scale_factors") or [v for k, v in arguments.items() if k.startswith("scales")]
        name = op.target.split(".")[1]
        mode = next(m for m in ("nearest_exact", "nearest", "bilinear", "trilinear", "linear", "bicubic") if m in name)
        return as_kind(replace(op, inputs=op.inputs[:1]), Kind.RESIZE, mode=mode, rank=_rank(op), scales=_known(scales))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's channels."""
        return _spatial(op, state)


class AbstractReduction(AbstractRule):
    """Many values into one over whole dimensions."""

    takes_parameters = True

    def _read(self, op: Op, arguments: Arguments, shapes: Shapes, *, takes_zeros: bool) -> Op:
        """Kind FLOAT with dimensions counted from 0 and `keepdim`; over the batch it stays a barrier.

        Args:
            op: the op.
            arguments: of the call.
            shapes: of all activations, and of the op's parameters.
            takes_zeros: whether channels may go if they read as zero; otherwise they stay.
        """
        rank = len(shapes[operand(op)])
        given = arguments["dim"]
        dims = tuple(given) if isinstance(given, (list, tuple)) else () if given is None else (given,)
        if not dims or any(isinstance(d, Ref) for d in dims):
            return refuse(op, "it runs over all dimensions, the batch included")
        dims = tuple(sorted(dimension(d, rank) for d in dims))
        if op.inputs and dims[0] == 0:
            return refuse(op, "it runs over the batch")
        return as_kind(op, Kind.FLOAT, dims=dims, keepdim=bool(arguments["keepdim"]), takes_zeros=takes_zeros)

    def couple(self, op: Op, state: AxisState) -> Axes | tuple[Axes, ...]:
        """What is left. Channels that are reduced over must read as zero, or stay."""
        axes = state.axes(operand(op))
        labels: list[Labels | None] = []
        for dim, present in enumerate(axes.labels):
            if dim not in op.attrs["dims"]:
                labels.append(present)
                continue
            if not op.attrs["takes_zeros"]:
                state.pin_axis(present, f"reduced over in `{op.name}`")
            elif present is not None:
                state.require_zero(axes)
            if op.attrs["keepdim"]:
                labels.append(None)
        result = Axes(tuple(labels), frozenset({op.name}) if op.target == "aten.logsumexp.default" else axes.spoilers)
        return (result, result) if op.target in ("aten.max.dim", "aten.min.dim") else result


class ReduceRule(AbstractReduction):
    """Sum, norm, maximum and other reductions over whole dimensions.

    A sum does not see what is zero; a maximum goes on to see one zero where channels are gone.
    """

    targets = (
        "aten.sum.dim_IntList",
        "aten.amax.default",
        "aten.amin.default",
        AMAX,
        AMIN,
        "aten.var.correction",
        "aten.var.dim",
        "aten.std.correction",
        "aten.std.dim",
        "aten.logsumexp.default",
        "aten.linalg_vector_norm.default",
        "aten.prod.dim_int",
        "aten.argmax.default",
        "aten.argmin.default",
        "aten.max.dim",
        "aten.min.dim",
    )
    replacement: ClassVar[Mapping[str, str]] = {"aten.amax.default": AMAX, "aten.amin.default": AMIN}

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT. A norm of negative order is about the smallest values and no sum."""
        is_norm = op.target == "aten.linalg_vector_norm.default" and arguments["ord"] >= 0
        sees_zero = op.target in ("aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default", AMAX, AMIN)
        return self._read(op, arguments, shapes, takes_zeros=is_norm or sees_zero)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """Nothing but the overload, where a dimension that it runs over loses some."""
        del name
        source, dims = arguments["self"].name, arguments.get("dim")
        before, after = cut.before[source], cut.after[source]
        dims = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
        shrinks = any(before[d] != after[d] for d in (dimension(d, len(before)) for d in dims))
        return {"dim": arguments["dim"]} if shrinks else {}


class MeanRule(AbstractReduction):
    """Mean over whole dimensions; over channels it goes on to count those that are gone."""

    targets = ("aten.mean.dim", MEAN)
    replacement: ClassVar[Mapping[str, str]] = {"aten.mean.dim": MEAN}

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind MEAN; FLOAT where it counts what is gone, or casts, which our own can't."""
        casts = arguments.get("dtype") is not None
        op = self._read(op, arguments, shapes, takes_zeros=not casts)
        is_plain = op.kind is Kind.FLOAT and op.target == "aten.mean.dim" and not casts
        return as_kind(op, Kind.MEAN, **op.attrs) if is_plain else op

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """How many positions there were of each dimension that loses some, now or in an earlier cut."""
        del name
        source = arguments["self"].name
        before, after = cut.before[source], cut.after[source]
        dims = [dimension(d, len(before)) for d in arguments["dim"] or ()]
        if all(before[d] == after[d] for d in dims):
            return {}
        known = arguments.get("counts", [0] * len(dims))
        return {"counts": [n or before[d] * (before[d] != after[d]) for d, n in zip(dims, known, strict=True)]}


class AdaptiveMaxPoolRule(AbstractRule):
    """Maximum over as many windows as the output has positions; returns the positions as well."""

    targets = tuple(f"aten.adaptive_max_pool{n}d.default" for n in (1, 2, 3))

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT."""
        del arguments, shapes
        return as_kind(op, Kind.FLOAT, rank=_rank(op))

    def couple(self, op: Op, state: AxisState) -> tuple[Axes, ...]:
        """The input's channels, of the maxima and of their positions, which aren't zero where a channel is."""
        axes = _spatial(op, state)
        return axes, replace(axes, stays="its positions are read")
