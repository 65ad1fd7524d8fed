"""From an integer graph to calls of kernels: layouts are chosen here, and copies put where two don't fit."""

import itertools
from collections.abc import Sequence

from zerobit.errors import ExportError, FormatError
from zerobit.export.c99 import constants
from zerobit.export.c99.layout import Layout, Loop, loops
from zerobit.export.c99.steps import Place, Program, Step
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    IntegerGraph,
    IntegerTensor,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Permute,
    Quantize,
    Repeat,
    Rescale,
    Reshape,
    Slice,
    Spread,
    Subtract,
    clip_range,
    makes,
    reads,
)

#: Ops that look at positions: the channels of one lie next to each other in what they read and make.
_SPATIAL = (Conv, MaxPool, AvgPool, Mean)


def plan_program(graph: IntegerGraph) -> Program:
    """Turn a graph into calls of kernels.

    Args:
        graph: a valid one.

    Raises:
        ExportError: C can't hold an op, or no 31-bit multiplier connects its scales; names it and the formats that can.
    """
    return _Planner(graph).run()


class _Planner:
    """Walks a graph once, collecting steps and where tensors are."""

    def __init__(self, graph: IntegerGraph) -> None:
        self._graph = graph
        self._steps: list[Step] = []
        self._buffers: dict[str, int] = {}
        self._places: dict[str, Place] = {}
        self._copies: dict[tuple[str, Layout], Place] = {}

    def run(self) -> Program:
        for op in self._graph.ops:
            self._plan(op)
        inputs = tuple(op.output for op in self._graph.ops if isinstance(op, Quantize))
        outputs = {name: self._regular(name) for name in self._graph.outputs}
        return Program(tuple(self._steps), self._buffers, self._places, inputs, outputs)

    def _plan(self, op: Op) -> None:
        try:
            self._plan_kind(op)
        except FormatError as error:
            msg = f"{type(op).__name__} {makes(op)[0]!r}: {error}; onnx can hold it: choose `format` 'onnx'"
            raise ExportError(msg) from error

    def _plan_kind(self, op: Op) -> None:
        match op:
            case Quantize():
                self._place(op.output, self._input_layout(op.output))
            case Conv():
                self._conv(op)
            case Linear():
                self._linear(op)
            case Add() | Subtract() | Multiply():
                self._pair(op)
            case MaxPool() | AvgPool() | Mean():
                self._pool(op)
            case Rescale():
                fields = constants.rescale(op, self._tensor(op.input), self._tensor(op.output))
                self._pointwise(op, "zb_requantize", "zb_rescale_spec", fields, self._places[op.input])
            case Lookup():
                self._lookup(op)
            case Reshape():
                self._places[op.output] = self._places[op.input]
            case Permute():
                place = self._regular(op.input)
                strides = place.layout.strides_for(self._tensor(op.input).shape)
                assert strides is not None
                layout = Layout(self._tensor(op.output).shape, tuple(strides[d] for d in op.dims))
                self._places[op.output] = Place(place.buffer, layout)
            case Concat() | Pad() | Slice() | Expand() | Repeat() | Spread():
                self._move(op)
            case _:
                msg = (
                    f"{type(op).__name__} {makes(op)[0]!r} has no integer form, and C has no float; "
                    "onnx can hold it: choose `format` 'onnx', or replace the op in the model"
                )
                raise ExportError(msg)

    # ------------------------------------------------------------------------------------------ places

    def _tensor(self, name: str) -> IntegerTensor:
        return self._graph.by_name[name]

    def _place(self, tensor: str, layout: Layout) -> None:
        """Give a tensor a buffer of its own."""
        assert tensor not in self._places
        if layout.size > 2**31 - 1:
            msg = (
                f"{tensor!r} has {layout.size} values; C takes up to 2^31 - 1; onnx can hold it: choose `format` 'onnx'"
            )
            raise ExportError(msg)
        self._places[tensor] = Place(tensor, layout)
        if not self._tensor(tensor).is_float:
            self._buffers[tensor] = layout.size

    def _input_layout(self, tensor: str) -> Layout:
        """As cameras and most libraries have images; as readers want it where there is one spatial dimension."""
        shape = self._tensor(tensor).shape
        readers = [op for op in self._graph.ops if tensor in reads(op)]
        if len(shape) >= 3 or any(isinstance(op, _SPATIAL) for op in readers):
            return Layout.channels_last(shape)
        return Layout.row_major(shape)

    def _regular(self, tensor: str) -> Place:
        """A tensor whose values lie at regular distances in its shape; copied if they don't."""
        place, shape = self._places[tensor], self._tensor(tensor).shape
        if place.layout.strides_for(shape) is not None:
            return place
        return self._copied(tensor, Layout.row_major(shape))

    def _in_layout(self, tensor: str, layout: Layout) -> Place:
        place = self._places[tensor]
        return place if place.layout.same(layout) else self._copied(tensor, layout)

    def _copied(self, tensor: str, layout: Layout) -> Place:
        """The same values in another layout, in a buffer of their own; shared by all that want them so."""
        if (tensor, layout) in self._copies:
            return self._copies[tensor, layout]
        source = self._places[tensor]
        shape = source.layout.shape if layout.strides_for(source.layout.shape) is not None else layout.shape
        if source.layout.strides_for(shape) is None:  # regular in different shapes: by way of the plain order
            source = self._copied(tensor, Layout.row_major(shape))
        names = (f"{tensor}.copy{number}" for number in itertools.count())
        name = next(name for name in names if name not in self._buffers and name not in self._graph.by_name)
        self._buffers[name] = layout.size
        one, other = source.layout.strides_for(shape), layout.strides_for(shape)
        assert one is not None
        assert other is not None
        self._copy(source.buffer, name, _counted(shape, one, other), completes=False)
        self._copies[tensor, layout] = Place(name, layout)
        return self._copies[tensor, layout]

    def _copy(
        self, source: str, target: str, counted: Sequence[Loop], start: tuple[int, int] = (0, 0), *,
        clear: int = 0, completes: bool = True,
    ) -> None:  # fmt: skip
        fields = {**constants.move(counted), "from": start[0], "to": start[1], "clear": clear}
        self._add(Step("zb_copy", "zb_move_spec", fields, (source,), target, completes=completes))

    def _add(self, step: Step) -> None:
        constants.check(step)
        self._steps.append(step)

    # ------------------------------------------------------------------------------------------ layers

    def _images(self, op: Conv | MaxPool | AvgPool | Mean) -> tuple[Place, Layout]:
        """What an op reads, and what it makes, channels last.

        Raises:
            ExportError: three spatial dimensions.
        """
        shape = self._tensor(op.input).shape
        if len(shape) > 3:
            msg = (
                f"{type(op).__name__} {op.output!r} has {len(shape) - 1} spatial dimensions; C has 1 or 2; "
                "onnx can hold it: choose `format` 'onnx'"
            )
            raise ExportError(msg)
        return self._in_layout(op.input, Layout.channels_last(shape)), Layout.channels_last(
            self._tensor(op.output).shape
        )

    def _conv(self, op: Conv) -> None:
        source, layout = self._images(op)
        given, target = self._tensor(op.input), self._tensor(op.output)
        geometry = constants.conv_geometry(op, given.shape, target.shape)
        self._place(op.output, layout)
        self._layer(op, constants.conv_rows(op, given, target), geometry, source.buffer)

    def _linear(self, op: Linear) -> None:
        given, target = self._tensor(op.input), self._tensor(op.output)
        place = self._places[op.input]
        columns = constants.columns(place.layout, given.shape)
        if columns is None:
            place = self._copied(op.input, Layout.row_major(given.shape))
            columns = constants.columns(place.layout, given.shape)
            assert columns is not None
        geometry = constants.linear_geometry(given.shape, target.shape)
        self._place(op.output, Layout.row_major(target.shape))
        self._layer(op, constants.linear_rows(op, given, target, columns), geometry, place.buffer)

    def _layer(
        self, op: Conv | Linear, rows: Sequence[constants.Rows], geometry: constants.Geometry, source: str
    ) -> None:
        """One step for each set of channels that share their inputs."""
        given, target = self._tensor(op.input), self._tensor(op.output)
        low, high = (0, 0) if target.is_float else clip_range(op, target)
        suffix = "_i32" if target.is_float else ""
        depthwise = constants.is_depthwise(op)
        for index, group in enumerate(rows):
            fields = {**geometry, **group.fields, "sign": constants.sign(given), "low": low, "high": high}
            kernel, struct = "zb_convolve", "zb_conv_spec"
            if depthwise:
                kernel, struct = "zb_convolve_depthwise", "zb_depthwise_spec"
                fields = {"conv": fields, "multiple": op.weights.channels // given.shape[0]}
            self._add(
                Step(kernel + suffix, struct, fields, (source,), op.output, group.scratch,
                     completes=index == len(rows) - 1)
            )  # fmt: skip

    def _pool(self, op: MaxPool | AvgPool | Mean) -> None:
        source, layout = self._images(op)
        if isinstance(op, Mean):  # [C] or [C, 1, 1], the same bytes
            layout = Layout.row_major(self._tensor(op.output).shape)
        fields = constants.pool(op, self._tensor(op.input), self._tensor(op.output))
        self._place(op.output, layout)
        kernel = "zb_max_pool" if isinstance(op, MaxPool) else "zb_mean_pool"
        self._add(Step(kernel, "zb_pool_spec", fields, (source.buffer,), op.output))

    # ------------------------------------------------------------------------------------------ value by value

    def _pointwise(
        self, op: Rescale | Lookup, kernel: str, struct: str, fields: constants.Fields, source: Place
    ) -> None:
        self._place(op.output, source.layout)
        self._add(Step(kernel, struct, fields, (source.buffer,), op.output, in_place=(source.buffer,)))

    def _lookup(self, op: Lookup) -> None:
        source, inner = self._places[op.input], 1
        if op.axis is not None:
            source = self._regular(op.input)
            strides = source.layout.strides_for(self._tensor(op.input).shape)
            assert strides is not None
            inner = strides[op.axis] or 1
        fields = constants.lookup(op, self._tensor(op.output), source.layout.size, inner)
        self._pointwise(op, "zb_look_up", "zb_lookup_spec", fields, source)

    def _pair(self, op: Add | Subtract | Multiply) -> None:
        names = (op.left, op.right)
        shape = self._tensor(op.output).shape
        whole = [name for name in names if self._tensor(name).shape == shape]
        layouts = {self._places[name].layout.same(self._places[names[0]].layout) for name in whole}
        if len(whole) == 2 and layouts == {True}:
            places = [self._places[name] for name in names]
            layout, counted = places[0].layout, (Loop(places[0].layout.size, 1, 1),)
        else:
            places = [self._regular(name) for name in names]
            first = places[names.index(whole[0])].layout if whole else Layout.row_major(shape)
            order = first.order_for(shape)
            assert order is not None
            layout = Layout.in_order(shape, order)
            strides = [_broadcast(p.layout, self._tensor(n).shape) for p, n in zip(places, names, strict=True)]
            counted = loops(*([values[d] for d in order] for values in (shape, *strides)))
        left, right, target = (self._tensor(name) for name in (*names, op.output))
        fields = constants.pair(op, left, right, target, counted)
        self._place(op.output, layout)
        # A buffer that is read in another layout too is still needed where the result would be written.
        same = tuple(
            place.buffer
            for place, name in zip(places, names, strict=True)
            if name in whole and all(p.layout.same(layout) for p in places if p.buffer == place.buffer)
        )
        kernel = "zb_multiply" if isinstance(op, Multiply) else "zb_add"
        buffers = tuple(place.buffer for place in places)
        self._add(Step(kernel, "zb_pair_spec", fields, buffers, op.output, in_place=same))

    # ------------------------------------------------------------------------------------------ moves

    def _move(self, op: Concat | Pad | Slice | Expand | Repeat | Spread) -> None:
        """Copies of regular parts into a regular whole, whose dimensions lie as those of the first input."""
        names, shape = reads(op), self._tensor(op.output).shape
        places = [self._regular(name) for name in names]
        given = self._tensor(names[0]).shape
        order = places[0].layout.order_for(given)
        assert order is not None
        layout = Layout.in_order(shape, order)
        self._place(op.output, layout)
        begin = 0
        for index, (name, place) in enumerate(zip(names, places, strict=True)):
            part = self._tensor(name).shape
            source = place.layout.strides_for(part)
            target = layout.strides
            assert source is not None
            start, clear, sizes = (0, 0), 0, part
            match op:
                case Concat():
                    start, begin = (0, begin * target[op.axis]), begin + part[op.axis]
                case Slice():
                    start, sizes = (op.start * source[op.axis], 0), shape
                    source = _with(source, op.axis, source[op.axis] * op.step)
                case Expand():
                    source, sizes = tuple(s if a > 1 else 0 for s, a in zip(source, part, strict=True)), shape
                case Pad():
                    clear = layout.size
                    start = (0, sum(b * s for (b, _), s in zip(op.padding, target[1:], strict=True)))
                case Spread():
                    clear = layout.size
                    target = (target[0], *(s * f for s, f in zip(target[1:], op.factors, strict=True)))
                case Repeat():
                    sizes, source, target = _repeated(part, source, target, op.factors)
            counted = _counted(sizes, source, target)
            self._copy(place.buffer, op.output, counted, start, clear=clear, completes=index == len(names) - 1)


def _counted(shape: Sequence[int], one: Sequence[int], other: Sequence[int]) -> tuple[Loop, ...]:
    """Loops that write close places one after the other."""
    order = sorted(range(len(shape)), key=lambda d: (-other[d], -one[d]))
    return loops(*([values[d] for d in order] for values in (shape, one, other)))


def _broadcast(layout: Layout, shape: Sequence[int]) -> list[int]:
    """Strides of an operand, 0 along dimensions that are repeated."""
    strides = layout.strides_for(shape)
    assert strides is not None
    return [stride if size > 1 else 0 for stride, size in zip(strides, shape, strict=True)]


def _with(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _repeated(
    sizes: Sequence[int], source: Sequence[int], target: Sequence[int], factors: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Each spatial dimension as two: its positions, and the copies of each."""
    shape, one, other = [sizes[0]], [source[0]], [target[0]]
    for size, a, b, factor in zip(sizes[1:], source[1:], target[1:], factors, strict=True):
        shape += [size, factor]
        one += [a, 0]
        other += [b * factor, b]
    return tuple(shape), tuple(one), tuple(other)
