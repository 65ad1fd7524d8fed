"""What a rule says about an op kind; `RULES` in the package is the table of all of them."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from zerobit.graph.axes import Axes, AxisState
from zerobit.graph.ir import Kind, Op, Shape


@dataclass(frozen=True)
class Ref:
    """The name of a tensor, or of a size that is computed, where an argument is one."""

    name: str


Arguments = Mapping[str, Any]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Call:
    """An aten call with its constants filled in: what an element-wise op computes.

    Attributes:
        target: the overload, such as "aten.gelu.default".
        constants: arguments that are no tensors, by schema name.
        tensors: schema names of the arguments that are.
    """

    target: str
    constants: tuple[tuple[str, Any], ...]
    tensors: tuple[str, ...]

    def __call__(self, *values: Tensor) -> Tensor:
        """Apply it to tensors, in the order of `tensors`."""
        overload = operator.attrgetter(self.target)(torch.ops)
        given = {**dict(self.constants), **dict(zip(self.tensors, values, strict=True))}
        names = [argument.name for argument in overload._schema.arguments if argument.name in given]
        keyword_only = {a.name for a in overload._schema.arguments if a.kwarg_only}
        args = [given[name] for name in names if name not in keyword_only]
        return overload(*args, **{name: given[name] for name in names if name in keyword_only})


@dataclass(frozen=True, eq=False)
class Cut:
    """What a cut does to the sizes of a network.

    Attributes:
        before: shapes of activations and parameters.
        after: shapes of the same behind the cut.
        kept: (tensor, dim) -> positions that stay, ascending, for every dimension that loses some.
    """

    before: Shapes
    after: Shapes
    kept: Mapping[tuple[str, int], Sequence[int]]

    def rank(self, tensor: str, dim: int, position: int) -> int:
        """Where a position of a dimension lies afterwards: how many before it stay."""
        kept = self.kept.get((tensor, dim))
        return position if kept is None else sum(p < position for p in kept)


class AbstractRule(ABC):
    """How one op kind is read, how channels travel through it, and what a cut changes in it.

    A rule that meets a form it can't treat exactly returns a barrier from `read`, with the reason: never a guess.
    """

    #: Aten overloads this rule reads, such as "aten.relu.default".
    targets: tuple[str, ...]
    #: Whether it also reads calls on parameters alone, or on no tensor at all.
    takes_parameters = False
    #: The overload that takes the place of another where a cut changes a call.
    replacement: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Fill in kind and attributes.

        Args:
            op: a barrier with names, inputs and parameters set.
            arguments: the call's arguments by schema name.
            shapes: of all activations, and of the op's parameters.
        """

    @abstractmethod
    def couple(self, op: Op, state: AxisState) -> Axes | tuple[Axes, ...]:
        """Label the parameters and return the labels of the output, uniting what must be cut together.

        Of an op that returns several tensors, those of each.
        """

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """Constant arguments that a cut changes, by schema name; none unless a rule says otherwise.

        Args:
            arguments: the call's arguments.
            cut: sizes before and after.
            name: of the op's output.
        """
        del arguments, cut, name
        return {}


def as_kind(op: Op, kind: Kind, **attrs: Any) -> Op:
    """The op with its kind and attributes set."""
    return replace(op, kind=kind, attrs=attrs, reason=None)


def refuse(op: Op, reason: str) -> Op:
    """The op as a barrier, for a reason."""
    return replace(op, kind=Kind.BARRIER, reason=reason)


def as_call(op: Op, arguments: Arguments) -> Call | None:
    """The call with its constants; None where a size that is computed is one of them."""
    tensors = tuple(k for k, v in arguments.items() if isinstance(v, Ref) and _is_tensor(v, op))
    constants = tuple((k, _hashable(v)) for k, v in arguments.items() if k not in tensors)
    return None if any(_holds_ref(v) for _, v in constants) else Call(op.target, constants, tensors)


def _is_tensor(value: Ref, op: Op) -> bool:
    return value.name in op.inputs or value.name in op.parameters


def _holds_ref(value: Any) -> bool:
    return isinstance(value, Ref) or (isinstance(value, tuple) and any(_holds_ref(v) for v in value))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


def operands(op: Op, arguments: Arguments, *names: str) -> tuple[str, ...]:
    """Names of the tensors among some arguments; an argument that is no tensor is left out."""
    given = [arguments.get(name) for name in names]
    return tuple(v.name for v in given if isinstance(v, Ref) and _is_tensor(v, op))


def reading_self(op: Op, arguments: Arguments) -> Op:
    """The op with its argument `self` as the only one whose values it reads, and first; others tell shape or type."""
    source = arguments["self"].name
    if source in op.inputs:
        return replace(op, inputs=(source,))
    return replace(op, inputs=(), parameters=(source, *(p for p in op.parameters if p != source)))


def operand(op: Op) -> str:
    """The tensor that an op on one tensor reads: an activation, or a parameter where there is none."""
    return op.inputs[0] if op.inputs else op.parameters[0]


def is_parameter(value: object, op: Op) -> bool:
    """Whether an argument is one of the op's parameters."""
    return isinstance(value, Ref) and value.name in op.parameters


def pair(value: Any, rank: int) -> tuple[int, ...]:
    """An int or short list as `rank` ints, as torch broadcasts its geometry arguments."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * rank if len(values) == 1 else values


def dimension(value: int, rank: int) -> int:
    """A dimension counted from 0."""
    return int(value) % max(rank, 1)
