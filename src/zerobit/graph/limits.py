"""What sizes of its inputs a captured network takes, where they are free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy

#: Smallest batch for which torch.export states its conditions; a batch of one is taken as well.
_SMALLEST = 2

Sizes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Limit:
    """A condition on the sizes of inputs.

    Attributes:
        condition: a sympy relation over symbols `inputs[i].shape[d]`.
        places: (input, dimension) of each symbol in it.
    """

    condition: Any
    places: tuple[tuple[int, int], ...]

    def allows(self, sizes: Sizes) -> bool:
        """Whether it holds.

        Args:
            sizes: shape of each flat input; () for one that is no tensor.
        """
        values = {_symbol(i, d): max(sizes[i][d], _SMALLEST) if d == 0 else sizes[i][d] for i, d in self.places}
        return bool(self.condition.subs(values))

    @cached_property
    def text(self) -> str:
        """The condition in words of Python."""
        relation = {"Equality": "==", "Unequality": "!="}.get(type(self.condition).__name__)
        if relation is None:
            return str(self.condition)
        left, right = self.condition.args
        return f"{left} {relation} {right}"


def _symbol(index: int, dim: int) -> sympy.Symbol:
    return sympy.Symbol(f"inputs[{index}].shape[{dim}]", integer=True, positive=True)


def _is_free(size: Any) -> bool:
    return not isinstance(size, int) and not size.node.expr.is_number


def size_limits(shapes: Sequence[Sequence[Any]]) -> tuple[Limit, ...]:
    """Conditions on free sizes, apart from those on the batch alone.

    Args:
        shapes: of each flat input as torch.export made them, with symbols where sizes are free.
    """
    places = [(i, d) for i, shape in enumerate(shapes) for d, n in enumerate(shape) if _is_free(n)]
    own: dict[Any, sympy.Symbol] = {}
    conditions: list[Any] = []
    for i, d in places:
        expression = shapes[i][d].node.expr
        if isinstance(expression, sympy.Symbol) and expression not in own:
            own[expression] = _symbol(i, d)
        else:
            conditions.append(sympy.Eq(_symbol(i, d), expression, evaluate=False))
    conditions += _torch_conditions([shapes[i][d] for i, d in places])
    where = {_symbol(i, d): (i, d) for i, d in places}
    limits: list[Limit] = []
    for condition in dict.fromkeys(condition.xreplace(own) for condition in conditions):
        used = tuple(sorted(where[s] for s in condition.free_symbols if s in where))
        is_ours = len(used) == len(condition.free_symbols)
        if is_ours and any(d for _, d in used):
            limits.append(Limit(condition, used))
    return tuple(limits)


def _torch_conditions(free: Sequence[Any]) -> Iterator[Any]:
    """What torch assumed of the symbols of a shape while it went through the model."""
    if not free:
        return
    environment = free[0].node.shape_env
    for guard in environment.guards:
        yield guard.expr
    for size in free:
        bounds = environment.bound_sympy(size.node.expr)
        if bounds.upper.is_finite and bounds.upper < 2**31:
            yield sympy.Le(size.node.expr, bounds.upper, evaluate=False)
        yield sympy.Ge(size.node.expr, bounds.lower, evaluate=False)
