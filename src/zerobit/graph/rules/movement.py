"""Ops that move values without computing: permute, slice, expand, concatenate, pad, shuffle, roll."""

from dataclasses import replace
from typing import Any

import numpy as np

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
    reading_self,
    refuse,
)


class PermuteRule(AbstractRule):
    """Dimensions in another order."""

    takes_parameters = True
    targets = (
        "aten.permute.default",
        "aten.transpose.int",
        "aten.t.default",
        "aten.numpy_T.default",
        "aten.movedim.int",
        "aten.swapaxes.default",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind PERMUTE with, for each dimension of the result, that of the input."""
        rank = len(shapes[op.name])
        order = list(range(rank))
        if op.target == "aten.permute.default":
            order = [dimension(d, rank) for d in arguments["dims"]]
        elif op.target == "aten.movedim.int":
            source, target = dimension(arguments["source"], rank), dimension(arguments["destination"], rank)
            order.insert(target, order.pop(source))
        elif "dim0" in arguments or "axis0" in arguments:
            a, b = (
                dimension(arguments[k], rank) for k in (("dim0", "dim1") if "dim0" in arguments else ("axis0", "axis1"))
            )
            order[a], order[b] = b, a
        else:
            order.reverse()
        return as_kind(op, Kind.PERMUTE, dims=tuple(order))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels in the new order."""
        axes = state.axes(operand(op))
        return Axes(tuple(axes.labels[d] for d in op.attrs["dims"]), axes.spoilers)


class SliceRule(AbstractRule):
    """A range of a dimension, or one position of it."""

    takes_parameters = True
    targets = ("aten.slice.Tensor", "aten.select.int")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind SLICE with dim, start, end, step and whether the dimension goes away, counted from 0."""
        source = shapes[operand(op)]
        dim = dimension(arguments["dim"], len(source))
        size = source[dim]
        if op.target == "aten.select.int":
            if isinstance(arguments["index"], Ref):
                return refuse(op, "its position is computed")
            index = int(arguments["index"]) % size
            return as_kind(op, Kind.SLICE, dim=dim, start=index, end=index + 1, step=1, select=True)
        limits = [arguments[k] for k in ("start", "end", "step")]
        if any(isinstance(v, Ref) for v in limits):
            return refuse(op, "its range is computed")
        start, end, step = slice(*limits).indices(size)
        return as_kind(op, Kind.SLICE, dim=dim, start=start, end=max(start, end), step=step, select=False)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels of the range; a single position that is picked out stays."""
        axes, a = state.axes(operand(op)), op.attrs
        labels = list(axes.labels)
        own = labels[a["dim"]]
        if a["select"]:
            state.pin_axis(None if own is None else own[a["start"] : a["end"]], f"picked out in `{op.name}`")
            del labels[a["dim"]]
        elif own is not None:
            whole = (a["start"], a["end"], a["step"]) == (0, len(own), 1)
            if not whole and (a["step"] != 1 or a["dim"] == 0):
                state.atoms.pin(own, f"taken apart in `{op.name}`")
            labels[a["dim"]] = own[a["start"] : a["end"] : a["step"]]
        return Axes(tuple(labels), axes.spoilers)

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """The range, counted in positions that are left."""
        source = arguments["input" if "input" in arguments else "self"].name
        dim = dimension(arguments["dim"], len(cut.before[source]))
        size = cut.before[source][dim]
        if cut.after[source][dim] == size:
            return {}
        if "index" in arguments:
            return {"index": cut.rank(source, dim, int(arguments["index"]) % size)}
        start, end, _ = slice(arguments["start"], arguments["end"], arguments["step"]).indices(size)
        return {"start": cut.rank(source, dim, start), "end": cut.rank(source, dim, end)}


class ExpandRule(AbstractRule):
    """Values repeated along dimensions of size 1, or new ones: as many channels as whoever reads them has."""

    targets = ("aten.expand.default", "aten.expand_as.default")
    takes_parameters = True

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind EXPAND with the tensor that gives the shape, or the dimensions whose size is known."""
        like = arguments["other"].name if "other" in arguments else None
        known = tuple(d for d, size in enumerate(arguments.get("size", ())) if isinstance(size, int))
        return as_kind(reading_self(op, arguments), Kind.EXPAND, known=known, like=like, rank=len(shapes[op.name]))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels where nothing is repeated; new ones, or those of the tensor that gives the shape, where it is."""
        source = operand(op)
        axes, before, after = state.axes(source), state.shapes[source], state.shapes[op.name]
        new = len(after) - len(before)
        labels: list[Labels | None] = []
        for dim, size in enumerate(after):
            own = axes.labels[dim - new] if dim >= new else None
            if dim >= new and before[dim - new] == size:
                labels.append(self._as_wide(op, state, dim, own))
            else:
                state.pin_axis(own, f"repeated in `{op.name}`")
                labels.append(self._repeated(op, state, dim, size))
        grown = any(a is not None for a, n in zip(labels, (*(0,) * new, *before), strict=True) if n <= 1)
        return Axes(tuple(labels), frozenset({op.name}) if grown else axes.spoilers)

    def _as_wide(self, op: Op, state: AxisState, dim: int, own: Labels | None) -> Labels | None:
        if op.attrs["like"] is None:
            return own
        return state.meet((own, state.axes(op.attrs["like"]).labels[dim]), f"meets channels that stay in `{op.name}`")

    def _repeated(self, op: Op, state: AxisState, dim: int, size: int) -> Labels | None:
        if op.attrs["like"] is not None:
            return state.axes(op.attrs["like"]).labels[dim]
        return state.atoms.fresh("", size) if dim in op.attrs["known"] and size > 1 else None

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """Sizes that are left; one that is computed from the batch is the input's own."""
        before, after = cut.before[name], cut.after[name]
        if before == after or "size" not in arguments:
            return {}
        sizes = zip(arguments["size"], before, after, strict=True)
        return {"size": [size if old == new else new if isinstance(size, int) else -1 for size, old, new in sizes]}


class RepeatRule(AbstractRule):
    """Each position several times in a row along one dimension."""

    takes_parameters = True
    targets = ("aten.repeat_interleave.self_int",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with dimension and number."""
        if arguments["dim"] is None or isinstance(arguments["repeats"], Ref) or arguments["output_size"] is not None:
            return refuse(op, "it flattens, or its count is computed")
        dim = dimension(arguments["dim"], len(shapes[op.name]))
        return as_kind(op, Kind.FLOAT, dim=dim, repeats=int(arguments["repeats"]))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels repeated."""
        axes = state.axes(operand(op))
        labels = list(axes.labels)
        own = labels[op.attrs["dim"]]
        labels[op.attrs["dim"]] = None if own is None else np.repeat(own, op.attrs["repeats"])
        return Axes(tuple(labels), axes.spoilers)


class TileRule(AbstractRule):
    """The whole several times along dimensions."""

    targets = ("aten.repeat.default", "aten.tile.default")
    takes_parameters = True

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT; the shapes say the rest."""
        del shapes
        given = arguments["repeats" if "repeats" in arguments else "dims"]
        computed = tuple(d - len(given) for d, times in enumerate(given) if isinstance(times, Ref))
        return as_kind(op, Kind.FLOAT, computed=computed)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Labels as often as there are copies."""
        source = operand(op)
        axes, before, after = state.axes(source), state.shapes[source], state.shapes[op.name]
        new = len(after) - len(before)
        labels: list[Labels | None] = [None] * new
        for dim, (own, small, large) in enumerate(zip(axes.labels, before, after[new:], strict=True)):
            if dim - len(before) in op.attrs["computed"]:
                state.pin_axis(own, f"repeated as often as the batch is large in `{op.name}`")
            labels.append(None if own is None else np.tile(own, large // small))
        return Axes(tuple(labels), axes.spoilers)


class AlongRule(AbstractRule):
    """Ops that treat positions of some dimensions unalike, all others alike: softmax, roll, flip, cumulative sums."""

    takes_parameters = True
    _AWAY_FROM_ZERO = ("softmax", "log_softmax", "_softmax", "_log_softmax", "logsumexp")

    targets = (
        "aten.softmax.int",
        "aten.log_softmax.int",
        "aten._softmax.default",
        "aten._log_softmax.default",
        "aten.roll.default",
        "aten.flip.default",
        "aten.cumsum.default",
        "aten.cumprod.default",
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with its dimensions."""
        rank = len(shapes[op.name])
        given = arguments.get("dim", arguments.get("dims"))
        dims = given if isinstance(given, (list, tuple)) else (given,)
        if not dims or any(not isinstance(d, int) for d in dims):
            return refuse(op, "it runs over the flattened tensor")
        return as_kind(op, Kind.FLOAT, dims=tuple(dimension(d, rank) for d in dims))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Channels on its dimensions stay."""
        axes = state.axes(operand(op))
        labels = list(axes.labels)
        for dim in op.attrs["dims"]:
            state.pin_axis(labels[dim], f"not treated alike in `{op.name}`")
            labels[dim] = None
        keeps = op.target.split(".")[1] not in self._AWAY_FROM_ZERO
        return Axes(tuple(labels), axes.spoilers if keeps else frozenset({op.name}))


class IndexRule(AbstractRule):
    """One index tensor picks positions of one dimension."""

    takes_parameters = True
    targets = ("aten.index.Tensor",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with the tensor, the dimension and the rank of the index."""
        source, indices = arguments["self"], arguments["indices"]
        present = [d for d, index in enumerate(indices) if index is not None]
        if len(present) != 1 or any(not isinstance(indices[d], Ref) for d in present):
            return refuse(op, "several dimensions are indexed at once")
        rank = len(shapes[indices[present[0]].name])
        if len(shapes[op.name]) != len(shapes[source.name]) - 1 + rank:
            return refuse(op, "a mask over several dimensions picks positions")
        return as_kind(op, Kind.FLOAT, source=source.name, dim=present[0], rank=rank)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Channels on other dimensions pass."""
        a = op.attrs
        axes = state.axes(a["source"])
        state.pin_axis(axes.labels[a["dim"]], f"picked by index in `{op.name}`")
        for name in op.inputs:
            if name != a["source"]:
                state.pin(name, f"picks positions in `{op.name}`")
        before, after = axes.labels[: a["dim"]], axes.labels[a["dim"] + 1 :]
        return Axes((*before, *(None,) * a["rank"], *after), axes.spoilers)


class PadRule(AbstractRule):
    """Padding. With zero or mirrored edges an absent channel stays zero, with another constant it does not."""

    takes_parameters = True
    targets = (
        "aten.pad.default",
        "aten.constant_pad_nd.default",
        *(f"aten.{mode}_pad{n}d.default" for mode in ("reflection", "replication") for n in (1, 2, 3)),
    )

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind PAD with (begin, end) pairs, last dimension first as torch counts, and the value; else FLOAT."""
        del shapes
        given = arguments["pad"] if "pad" in arguments else arguments["padding"]
        if any(isinstance(p, Ref) for p in given):
            return refuse(op, "its extent is computed")
        flat = [int(p) for p in given]
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        if "pad" not in arguments or arguments.get("mode", "constant") != "constant":
            return as_kind(op, Kind.FLOAT, pad=pairs, value=0.0)
        return as_kind(op, Kind.PAD, pad=pairs, value=float(arguments.get("value") or 0.0))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The input's where a dimension is not padded; a padded channel dimension gains channels that stay."""
        axes = state.axes(operand(op))
        labels = list(axes.labels)
        for i, (begin, end) in enumerate(op.attrs["pad"]):
            dim = len(labels) - 1 - i
            own = labels[dim]
            if (begin, end) == (0, 0) or own is None:
                continue
            if op.kind is not Kind.PAD or min(begin, end) < 0 or dim == 0:
                state.atoms.pin(own, f"padded along channels in `{op.name}`")
                labels[dim] = None
            else:
                fixed = state.atoms.fresh("", begin + end)
                state.atoms.pin(fixed, f"made by padding in `{op.name}`")
                labels[dim] = np.concatenate([fixed[:begin], own, fixed[begin:]])
        return Axes(tuple(labels), axes.spoilers if op.attrs["value"] == 0 else frozenset({op.name}))


class ConcatRule(AbstractRule):
    """Concatenation: along channels the labels line up one behind the other."""

    takes_parameters = True
    targets = ("aten.cat.default", "aten.concat.default", "aten.concatenate.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind CONCAT with its dimension, counted from 0; FLOAT where a parameter is joined."""
        names = tuple(ref.name for ref in arguments["tensors"])
        dim = dimension(arguments["dim"], len(shapes[op.name]))
        if op.parameters or any(len(shapes[n]) != len(shapes[op.name]) for n in names):
            return as_kind(op, Kind.FLOAT, dim=dim, operands=names)
        return as_kind(replace(op, inputs=names), Kind.CONCAT, dim=dim, operands=names)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Joined along the dimension, united along all others."""
        along, names = op.attrs["dim"], op.attrs["operands"]
        rank = len(state.shapes[op.name])
        names = [name for name in names if len(state.shapes[name]) == rank]  # torch skips an empty vector
        parts = [state.axes(name) for name in names]
        labels: list[Labels | None] = []
        for dim in range(rank):
            column = [part.labels[dim] for part in parts]
            if dim == along:
                labels.append(_line_up(column, [state.shapes[name][along] for name in names], op, state))
            else:
                labels.append(state.meet(column, f"joined in `{op.name}` to a tensor whose channels stay"))
        return Axes(tuple(labels), frozenset().union(*(part.spoilers for part in parts)))


class PixelShuffleRule(AbstractRule):
    """r * r channels become one of r times the width and height, or the other way round."""

    targets = ("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind SHUFFLE with the factor and whether space grows."""
        del shapes
        up = "upscale_factor" in arguments
        factor = int(arguments["upscale_factor" if up else "downscale_factor"])
        return as_kind(op, Kind.SHUFFLE, factor=factor, up=up)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """The r * r channels of one go as a whole."""
        axes = state.axes(operand(op))
        labels = list(axes.labels)
        for dim in (-2, -1):
            state.pin_axis(labels[dim], f"mixed with space in `{op.name}`")
            labels[dim] = None
        own, block = labels[-3], op.attrs["factor"] ** 2
        if own is not None and op.attrs["up"]:
            columns = own.reshape(-1, block).T
            for column in columns[1:]:
                state.atoms.unite(columns[0], column)
            labels[-3] = columns[0]
        elif own is not None:
            labels[-3] = np.repeat(own, block)
        return Axes(tuple(labels), axes.spoilers)


def _line_up(column: list[Labels | None], sizes: list[int], op: Op, state: AxisState) -> Labels | None:
    if all(labels is None for labels in column):
        return None
    filled: list[Any] = []
    for labels, size in zip(column, sizes, strict=True):
        if labels is None:  # channels of an input or a barrier: there, but never to be cut
            fixed = state.atoms.fresh("", size)
            state.atoms.pin(fixed, "not made by a layer that can be cut")
            filled.append(fixed)
        else:
            filled.append(labels)
    joined = np.concatenate(filled)
    if op.attrs["dim"] == 0:
        state.atoms.pin(joined, f"joined along the batch in `{op.name}`")
    return joined
