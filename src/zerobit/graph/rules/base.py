"""What a rule says about an op kind; `RULES` in the package is the table of all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zerobit.graph.axes import Axes, AxisState
from zerobit.graph.ir import Kind, Op, Shape


@dataclass(frozen=True)
class Ref:
    """The name of a tensor where an argument is one."""

    name: str


Arguments = Mapping[str, Any]
Shapes = Mapping[str, Shape]


class AbstractRule(ABC):
    """How one op kind is read, how channels travel through it, and what a cut changes in it.

    A rule that meets a form it can't treat exactly returns the op unchanged from `read`, as a barrier: never
    a guess.
    """

    #: Aten overloads this rule reads, such as "aten.relu.default".
    targets: tuple[str, ...]

    @abstractmethod
    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Fill in kind and attributes.

        Args:
            op: a barrier with names, parameters and at least one input set.
            arguments: the call's arguments by schema name.
            shapes: of all activations, and of the op's parameters.
        """

    @abstractmethod
    def couple(self, op: Op, state: AxisState, shapes: Shapes) -> Axes:
        """Label the parameters and return the labels of the output, uniting what must be cut together."""

    def rewrite(self, arguments: Arguments, before: Shapes, after: Shapes, name: str) -> Arguments:
        """Constant arguments that a cut changes, by schema name; none unless a rule says otherwise.

        Args:
            arguments: the call's arguments.
            before: activation shapes before the cut.
            after: and after it.
            name: of the op's output.
        """
        del arguments, before, after, name
        return {}


def as_kind(op: Op, kind: Kind, **attrs: Any) -> Op:
    """The op with its kind and attributes set."""
    return replace(op, kind=kind, attrs=attrs)


def pair(value: Any, rank: int) -> tuple[int, ...]:
    """An int or short list as `rank` ints, as torch broadcasts its geometry arguments."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * rank if len(values) == 1 else values
