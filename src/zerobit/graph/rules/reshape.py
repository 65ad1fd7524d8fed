"""Ops that give the same elements another shape."""

import math
from collections.abc import Sequence

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import AbstractRule, Arguments, Ref, Shapes, as_kind


class ReshapeRule(AbstractRule):
    """Flatten, view, reshape, squeeze, unsqueeze: elements keep their row-major order.

    Both shapes are split into the smallest blocks of equal size. Within a block, channels of one input
    dimension spread over one output dimension (flatten: k = H * W positions per channel). Any other mixture
    pins them, and so does one with the batch, whose true size the shapes don't tell.
    """

    targets = (
        "aten.flatten.using_ints",
        "aten.view.default",
        "aten.reshape.default",
        "aten._unsafe_view.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unsqueeze.default",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RESHAPE; the shapes say the rest."""
        del arguments, shapes
        return as_kind(op, Kind.RESHAPE)

    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """Labels carried block by block."""
        axes = state.tensors[op.inputs[0]]
        before, after = shapes[op.inputs[0]], shapes[op.name]
        labels: list[Labels | None] = [None] * len(after)
        for source, target in blocks(before, after):
            self._carry(op, state, axes, (source, target), labels, before, after)
        return Axes(tuple(labels), axes.zero)

    def _carry(
        self,
        op: Op,
        state: AxisState,
        axes: Axes,
        block: tuple[Sequence[int], Sequence[int]],
        labels: list[Labels | None],
        before: Sequence[int],
        after: Sequence[int],
    ) -> None:
        source, target = block
        labelled = [d for d in source if axes.labels[d] is not None]
        wide = [d for d in target if after[d] > 1] or list(target[:1])
        if not labelled:
            return
        if len(labelled) > 1 or len(wide) != 1 or 0 in source or 0 in target:
            for dim in labelled:
                present = axes.labels[dim]
                assert present is not None
                state.atoms.pin(present, f"channels are split or mixed in `{op.name}`")
            return
        present = axes.labels[labelled[0]]
        assert present is not None
        shape = [before[d] for d in source]
        along = [-1 if d == labelled[0] else 1 for d in source]
        labels[wide[0]] = np.broadcast_to(present.reshape(along), shape).reshape(-1)

    def rewrite(self, arguments: Arguments, before: Shapes, after: Shapes, name: str) -> Arguments:
        """Sizes of cut dimensions; symbolic ones and -1 stay."""
        key = next((k for k in ("size", "shape") if k in arguments), None)
        if key is None or before[name] == after[name]:
            return {}
        sizes = list(arguments[key])
        for dim, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            if old != new and not isinstance(sizes[dim], Ref) and sizes[dim] != -1:
                sizes[dim] = new
        return {key: sizes}


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size into the smallest runs of dimensions of equal size.

    Example: (1, 16, 4, 4) and (1, 256) give [([0], [0]), ([1, 2, 3], [1])].
    """
    assert math.prod(before) == math.prod(after), (before, after)
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        source, target = [], []
        size_in = size_out = 1
        while not (source and target and size_in == size_out):
            take_input = j >= len(after) or (i < len(before) and (not source or size_in < size_out))
            if take_input and i < len(before):
                size_in *= before[i]
                source.append(i)
                i += 1
            elif j < len(after):
                size_out *= after[j]
                target.append(j)
                j += 1
            else:
                break
        result.append((source, target))
    return result
