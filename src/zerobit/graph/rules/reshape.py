"""Ops that give the same elements another shape."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels, Product
from zerobit.graph.ir import Kind, Op, Shape
from zerobit.graph.rules.base import AbstractRule, Arguments, Cut, Ref, Shapes, as_kind, operand, reading_self


@dataclass(frozen=True)
class Factors:
    """Two shapes of the same elements as products of common factors.

    Attributes:
        sizes: of the factors, in row-major order; none is 1.
        source: for each dimension of the first shape, the numbers of its factors.
        target: likewise of the second.
    """

    sizes: Shape
    source: tuple[tuple[int, ...], ...]
    target: tuple[tuple[int, ...], ...]


def factorise(before: Shape, after: Shape) -> Factors | None:
    """The coarsest common factors of two shapes, or None where they cut across each other.

    Example: (1, 12, 5) and (1, 3, 4, 5) have the factors 3, 4, 5; (2, 3) and (3, 2) have none in common.
    """
    marks = sorted({*_marks(before), *_marks(after)})
    if 0 in marks or any(large % small for small, large in itertools.pairwise(marks)):
        return None
    sizes = tuple(large // small for small, large in itertools.pairwise(marks))
    return Factors(sizes, _spans(before, marks), _spans(after, marks))


def _marks(shape: Shape) -> list[int]:
    """Number of elements in front of each dimension, and of all."""
    return np.cumprod((1, *shape)).tolist()


def _spans(shape: Shape, marks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    position = {mark: i for i, mark in enumerate(marks)}
    ends = _marks(shape)
    return tuple(tuple(range(position[a], position[b])) for a, b in itertools.pairwise(ends))


class ReshapeRule(AbstractRule):
    """Flatten, view, reshape, squeeze, unsqueeze: elements keep their row-major order.

    Channels that lie along one dimension are spread over the factors it is split into; those of several that are
    merged are joined. Where both shapes have no factors in common, nothing may go.
    """

    takes_parameters = True
    targets = (
        "aten.flatten.using_ints",
        "aten.unflatten.int",
        "aten.view.default",
        "aten.reshape.default",
        "aten._unsafe_view.default",
        "aten.view_as.default",
        "aten.reshape_as.default",
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unsqueeze.default",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RESHAPE with the tensor that gives the shape, if one does; the shapes say the rest."""
        del shapes
        like = arguments["other"].name if "other" in arguments else None
        return as_kind(reading_self(op, arguments), Kind.RESHAPE, like=like)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels split and merged factor by factor, and those of the tensor that gives the shape."""
        axes = self._reshaped(op, state)
        if op.attrs["like"] is None:
            return axes
        pairs = zip(axes.labels, state.axes(op.attrs["like"]).labels, strict=True)
        met = (state.meet(pair, f"meets channels that stay in `{op.name}`") for pair in pairs)
        return replace(axes, labels=tuple(met))

    def _reshaped(self, op: Op, state: AxisState) -> Axes:
        source = operand(op)
        axes = state.axes(source)
        before, after = state.shapes[source], state.shapes[op.name]
        factors = factorise(before, after)
        if factors is None:
            for labels in axes.labels:
                state.pin_axis(labels, f"elements are mixed in `{op.name}`")
            return Axes((None,) * len(after))
        by_factor = _split(op, state, axes, factors)
        return Axes(_merge(op, state, by_factor, factors), axes.spoilers)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """Sizes of cut dimensions. One that is computed from the batch is left to torch (-1)."""
        sizes = _sizes(arguments)
        if sizes is None or cut.before[name] == cut.after[name]:
            return {}
        start = int(arguments["dim"]) % len(cut.before[name]) if "dim" in arguments and "sizes" in arguments else 0
        changed = {
            d - start
            for d, (old, new) in enumerate(zip(cut.before[name], cut.after[name], strict=True))
            if old != new and 0 <= d - start < len(sizes)
        }
        new = [cut.after[name][d + start] if d in changed and size != -1 else size for d, size in enumerate(sizes)]
        for d in changed:
            if isinstance(sizes[d], Ref):
                new = [cut.after[name][i + start] if size == -1 else size for i, size in enumerate(new)]
                new[d] = -1
        return {next(k for k in ("size", "shape", "sizes") if k in arguments): new}


def _sizes(arguments: Arguments) -> list[object] | None:
    """Sizes that the call gives, where it gives any."""
    key = next((k for k in ("size", "shape", "sizes") if k in arguments), None)
    return None if key is None or isinstance(arguments[key], Ref) else list(arguments[key])


def _split(op: Op, state: AxisState, axes: Axes, factors: Factors) -> list[Labels | None]:
    """Labels of each factor; those of an axis that falls apart are new, and tied to it by a product."""
    by_factor: list[Labels | None] = [None] * len(factors.sizes)
    for labels, span in zip(axes.labels, factors.source, strict=True):
        if labels is None or not span:
            continue
        if len(span) == 1:
            by_factor[span[0]] = labels
            continue
        parts = tuple(state.atoms.fresh("", factors.sizes[i]) for i in span)
        state.products.append(Product(op.name, labels, parts))
        for i, part in zip(span, parts, strict=True):
            by_factor[i] = part
    return by_factor


def _merge(op: Op, state: AxisState, by_factor: Sequence[Labels | None], factors: Factors) -> tuple[Labels | None, ...]:
    """Labels of each dimension of the result; one factor repeats over those without channels."""
    result: list[Labels | None] = []
    for span in factors.target:
        labelled = [i for i in span if by_factor[i] is not None]
        if not labelled:
            result.append(None)
            continue
        parts = [by_factor[i] for i in labelled]
        joined = parts[0]
        if len(parts) > 1:
            counts = [factors.sizes[i] for i in labelled]
            joined = state.atoms.fresh("", int(np.prod(counts)))
            state.products.append(Product(op.name, joined, tuple(p for p in parts if p is not None)))
        assert joined is not None
        own = [factors.sizes[i] if i in labelled else 1 for i in span]
        whole = [factors.sizes[i] for i in span]
        result.append(np.broadcast_to(joined.reshape(own), whole).reshape(-1))
    return tuple(result)
