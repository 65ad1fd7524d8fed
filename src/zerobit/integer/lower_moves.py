"""Lowering of ops that only move values."""

from collections.abc import Iterator
from typing import Any

from zerobit.graph.ir import Graph, Kind, Op, Shape
from zerobit.integer.moves import Concat, Expand, MaxPool, Pad, Permute, Repeat, Reshape, Slice
from zerobit.integer.ops import MOVES

#: An op and the shape it makes, batch left out.
Made = tuple[MOVES, Shape]


def moves(graph: Graph, op: Op, inputs: tuple[str, ...]) -> Iterator[Made]:
    """One or several ops that move integers as a network's op moves values.

    Args:
        graph: of the network.
        op: one of its ops, with an integer form.
        inputs: names of the integer tensors it reads.

    Yields:
        The ops, the last of which makes a tensor of the network op's name.
    """
    source, name, a, shape = inputs[0], op.name, op.attrs, graph.shapes[op.name][1:]
    match op.kind:
        case Kind.CONCAT:
            yield Concat(inputs, name, a["dim"] % (len(shape) + 1) - 1), shape
        case Kind.MAX_POOL:
            pads = tuple((p, p) for p in a["padding"])
            yield MaxPool(source, name, a["kernel"], a["stride"], pads), shape
        case Kind.RESHAPE:
            yield Reshape(source, name), shape
        case Kind.PERMUTE:
            yield Permute(source, name, tuple(d - 1 for d in a["dims"][1:])), shape
        case Kind.SLICE:
            yield from _slice(graph, op, source)
        case Kind.EXPAND:
            yield Expand(source, name), shape
        case Kind.RESIZE:
            before = graph.shapes[op.inputs[0]][2:]
            yield Repeat(source, name, tuple(o // i for i, o in zip(before, shape[1:], strict=True))), shape
        case Kind.SHUFFLE:
            yield from _shuffle(graph, op, source)
        case Kind.PAD:
            yield Pad(source, name, _spatial_pads(op, len(shape) - 1)), shape
        case _:
            raise AssertionError(op.kind)


def _slice(graph: Graph, op: Op, source: str) -> Iterator[Made]:
    """A range; of a single position the dimension may go away."""
    a, before = op.attrs, graph.shapes[op.inputs[0]]
    dim = a["dim"] % len(before)
    start, end, step = (
        int(a[k]) if a.get(k) is not None else d
        for k, d in zip(("start", "end", "step"), (0, before[dim], 1), strict=True)
    )
    start, end = _within(start, before[dim]), _within(end, before[dim])
    shape = graph.shapes[op.name][1:]
    if not a.get("select"):
        yield Slice(source, op.name, dim - 1, start, end, step), shape
        return
    part = f"{op.name}.kept"
    yield Slice(source, part, dim - 1, start, start + 1), (*before[1:dim], 1, *before[dim + 1 :])
    yield Reshape(part, op.name), shape


def _within(position: int, size: int) -> int:
    return min(max(position + size if position < 0 else position, 0), size)


def _shuffle(graph: Graph, op: Op, source: str) -> Iterator[Made]:
    """Channels to space, or back: split, permute, join."""
    factor = int(op.attrs["factor"])
    channels, height, width = graph.shapes[op.inputs[0]][1:]
    if op.attrs["up"]:
        split, dims = (channels // factor**2, factor, factor, height, width), (0, 3, 1, 4, 2)
    else:
        split, dims = (channels, height // factor, factor, width // factor, factor), (0, 2, 4, 1, 3)
    yield Reshape(source, f"{op.name}.split"), split
    yield Permute(f"{op.name}.split", f"{op.name}.moved", dims), tuple(split[d] for d in dims)
    yield Reshape(f"{op.name}.moved", op.name), graph.shapes[op.name][1:]


def _spatial_pads(op: Op, rank: int) -> tuple[tuple[int, int], ...]:
    """(begin, end) per spatial dimension, first dimension first; torch counts from the last."""
    pairs: list[Any] = [*op.attrs["pad"]]
    return tuple(pairs[i] if i < len(pairs) else (0, 0) for i in range(rank))[::-1]


def transposed_padding(op: Op) -> tuple[tuple[int, int], ...]:
    """Padding of the convolution that a transposed convolution is, over its spread input."""
    a = op.attrs
    reach = [step * (width - 1) for step, width in zip(a["dilation"], a["kernel"], strict=True)]
    sides = zip(reach, a["padding"], a["output_padding"], strict=True)
    return tuple((most - begin, most - end + extra) for most, (begin, end), extra in sides)
