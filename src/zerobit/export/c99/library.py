"""A network as a C library: its steps, its memory, what goes in and out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zerobit.export.c99.arena import Arena, plan_arena
from zerobit.export.c99.layout import Layout
from zerobit.export.c99.planner import plan_program
from zerobit.export.c99.source import checked_prefix, identifier
from zerobit.export.c99.steps import Constants, Field, Place, Program
from zerobit.integer.ir import Conv, IntegerGraph, IntegerTensor, Linear, Quantize
from zerobit.integer.twins.fixed31 import logit_scale

Array = NDArray[np.generic]


_SIZES = {"uint8_t": 1, "uint16_t": 2, "int32_t": 4}


@dataclass(frozen=True)
class Port:
    """What goes in or out.

    Attributes:
        tensor: of the graph.
        place: of its values.
        label: "" for the only one, else "_0", "_1" and so on.
        type: of a value, in C.
        scale: of the integers.
    """

    tensor: IntegerTensor
    place: Place
    label: str
    type: str
    scale: float

    @property
    def layout(self) -> Layout:
        """Of its values."""
        return self.place.layout

    @property
    def dims(self) -> str:
        """Sizes in the order in which they lie in memory."""
        order = self.layout.order_for(self.tensor.shape)
        assert order is not None
        names = ["channel", *(["height", "width"] if len(order) == 3 else [f"dim {d}" for d in range(1, len(order))])]
        return "".join(f"[{self.tensor.shape[d]} {names[d]}]" for d in order)


@dataclass(frozen=True, eq=False)
class Library:
    """A network as C.

    Attributes:
        graph: what it computes.
        name: that its functions begin with.
        metadata: put into a comment; keys and values are not trusted.
    """

    graph: IntegerGraph
    name: str
    metadata: Mapping[str, str]

    @cached_property
    def program(self) -> Program:
        """Its steps.

        Raises:
            ExportError: C can't hold an op.
        """
        checked_prefix(self.name)
        return plan_program(self.graph)

    @cached_property
    def arena(self) -> Arena:
        """Its memory."""
        return plan_arena(self.program)

    @cached_property
    def traced(self) -> tuple[tuple[int, str], ...]:
        """(step, tensor) of all tensors in the arena that `zb_trace` is shown."""
        return tuple(
            (index, step.writes)
            for index, step in enumerate(self.program.steps)
            if step.completes and step.writes in self.program.places and not self.graph.by_name[step.writes].is_float
        )

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """What goes in."""
        return self._ports({name: self.program.places[name] for name in self.program.inputs})

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """What comes out."""
        return self._ports(self.program.outputs)

    def _ports(self, places: Mapping[str, Place]) -> tuple[Port, ...]:
        result: list[Port] = []
        for index, (name, place) in enumerate(places.items()):
            tensor = self.graph.by_name[name]
            kind = "int32_t" if tensor.is_float else "int8_t" if tensor.signed else "uint8_t"
            scale = self._logit_scale(name) if tensor.is_float else float(tensor.step)
            label = "" if len(places) == 1 else f"_{index}"
            result.append(Port(tensor, place, label, kind, scale))
        return tuple(result)

    def _logit_scale(self, name: str) -> float:
        op = next(op for op in self.graph.ops if isinstance(op, Conv | Linear) and op.output == name)
        return logit_scale(op, self.graph.by_name[op.input])

    def quantizer(self, port: Port) -> Quantize:
        """Of an input."""
        return next(op for op in self.graph.ops if isinstance(op, Quantize) and op.output == port.tensor.name)

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of weights, biases, ratios and tables."""
        return sum(_bytes(step.fields) for step in self.program.steps)

    @property
    def macro(self) -> str:
        """What its macros begin with."""
        return self.name.upper()

    @property
    def parameters(self) -> str:
        """Of its run function."""
        ins = [f"const {p.type} *input{p.label}, size_t input{p.label}_length" for p in self.inputs]
        outs = [f"{p.type} *output{p.label}, size_t output{p.label}_length" for p in self.outputs]
        return ", ".join(ins + outs)

    @property
    def title(self) -> str:
        """A comment for the top of a file."""
        entries = [f"{identifier(key)}: {identifier(value)}" for key, value in sorted(self.metadata.items())]
        text = "\n * ".join(["Made by zerobit; do not edit.", *entries])
        return f"/* {text} */"


def _bytes(fields: Mapping[str, Field]) -> int:
    """Of the arrays that a struct points to."""
    arrays = sum(value.values.size * _SIZES[value.type] for value in fields.values() if isinstance(value, Constants))
    return arrays + sum(_bytes(value) for value in fields.values() if isinstance(value, Mapping))
