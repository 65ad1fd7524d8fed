"""`Strength`, `Budget` and `Budgets`: how costs enter the loss.

All work in relative units: the cost of the same network with all weights at 8 bit is 1, on every model and target.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zerobit.bits import NetBits
from zerobit.cost.amounts import parse_limit
from zerobit.cost.base import AbstractCost, Usage
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError
from zerobit.graph.ir import Graph


class Searched(Protocol):
    """What a price needs of a network in search."""

    graph: Graph

    def limit_share(self, ramp: float) -> float:
        """How far a limit that falls over this share of the search has come, 0..1."""
        ...

    def bits(self, *, hard: bool = False) -> NetBits:
        """Its choices as distributions."""
        ...

    def penalty(self) -> Tensor:
        """Its method's own loss term."""
        ...


def reference_cost(graph: Graph, cost: AbstractCost, bits: int = 8) -> float:
    """Cost of the uncut network with all weights at `bits` and 8-bit activations."""
    return float(cost(usage(graph, uniform(graph, bits))))


def _positive_reference(graph: Graph, cost: AbstractCost) -> float:
    """What shares of a cost are shares of.

    Raises:
        BudgetError: nothing.
    """
    full = reference_cost(graph, cost)
    if not full > 0:
        msg = f"`budget` is a share of {cost.name}, which is {full:g} for this network at 8 bit; choose another cost"
        raise BudgetError(msg)
    return full


def _check_number(argument: str, value: Any, *, above: bool = False) -> None:
    """Raise a BudgetError unless a value is a finite number from 0, or above."""
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if not is_number or value < 0 or (above and value == 0):
        msg = f"`{argument}` is {value!r}; allowed are numbers {'above' if above else 'from'} 0; choose one"
        raise BudgetError(msg)


@dataclass(frozen=True)
class Limit:
    """What a network may cost.

    Attributes:
        cost: what is limited.
        amount: the most it may be, in the cost's unit.
    """

    cost: AbstractCost
    amount: float


class AbstractPrice(ABC):
    """A loss term; `price(net)` is pure, `price.update(net)` moves what it keeps.

    Attributes:
        costs: what it charges for.
    """

    costs: tuple[AbstractCost, ...]

    def limits(self, graph: Graph) -> tuple[Limit, ...]:
        """What `decide` guarantees on a network; nothing, unless the price is a budget."""
        del graph
        return ()

    @abstractmethod
    def __call__(self, net: Searched) -> Tensor:
        """Loss term, float32 scalar: the method's own penalty and the cost's share."""

    @abstractmethod
    def update(self, net: Searched) -> None:
        """Adapt to the network as it is now; called once per step."""

    @abstractmethod
    def describe(self) -> str:
        """Settings as text, to tell one price from another."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where another price of the same settings was."""


class Strength(AbstractPrice):
    """A fixed price: strength times relative cost.

    Args:
        cost: what to charge.
        strength: loss per unit of relative cost.
    """

    def __init__(self, cost: AbstractCost, strength: float) -> None:
        _check_number("strength", strength)
        self.cost, self.costs, self.strength = cost, (cost,), float(strength)
        self._full_of: tuple[Graph, float] | None = None

    def _full(self, graph: Graph) -> float:
        if self._full_of is None or self._full_of[0] is not graph:
            self._full_of = graph, _positive_reference(graph, self.cost)
        return self._full_of[1]

    def __call__(self, net: Searched) -> Tensor:
        """Strength * cost / cost(w8) + penalty."""
        relative = self.cost(usage(net.graph, net.bits())) / self._full(net.graph)
        return (self.strength * relative + net.penalty()).float()

    def update(self, net: Searched) -> None:
        """Nothing moves."""
        del net

    def describe(self) -> str:
        """Cost and strength."""
        return f"{self.cost.name} at strength {self.strength:g}"

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept."""
        del state


class Budget(AbstractPrice):
    """A limit: an augmented Lagrangian in the search, guaranteed by `decide`.

    The limit falls from the start's cost to the budget over the first part of the search; the multiplier follows the
    violation. Loss term: (max(0, multiplier + stiffness * v)^2 - multiplier^2) / (2 * stiffness) with
    v = cost / limit - 1 (Rockafellar, 1973: the augmented Lagrangian of an inequality).

    Args:
        cost: what to limit.
        limit: a number in the cost's unit, "64kB", or "25%" of the network with all weights at 8 bit.
        ramp: share of the search over which the limit falls.
        stiffness: of the quadratic term.
        rate: of the multiplier, per step and unit of violation.

    Raises:
        BudgetError: the limit can't be read, or another number can't be.
    """

    def __init__(
        self,
        cost: AbstractCost,
        limit: str | float,
        *,
        ramp: float = 1 / 3,
        stiffness: float = 10.0,
        rate: float = 0.05,
    ) -> None:
        _check_number("ramp", ramp)
        _check_number("stiffness", stiffness, above=True)
        _check_number("rate", rate)
        self.cost, self.costs, self.text = cost, (cost,), str(limit)
        self.ramp, self.stiffness, self.rate = ramp, stiffness, rate
        self.amount, self.is_share = parse_limit(cost, limit)
        self.multiplier = 0.0
        self._start: float | None = None
        self._limit_of: tuple[Graph, float] | None = None

    def limit(self, graph: Graph) -> float:
        """The limit in the cost's unit."""
        if self._limit_of is None or self._limit_of[0] is not graph:
            full = _positive_reference(graph, self.cost) if self.is_share else 1.0
            self._limit_of = graph, self.amount * full
        return self._limit_of[1]

    def limits(self, graph: Graph) -> tuple[Limit, ...]:
        """The one limit."""
        return (Limit(self.cost, self.limit(graph)),)

    def current_limit(self, net: Searched) -> float:
        """Where the falling limit is now."""
        final = self.limit(net.graph)
        start = max(final, self._start if self._start is not None else final)
        return start * (final / start) ** net.limit_share(self.ramp)

    def violation(self, net: Searched, use: Usage) -> Tensor:
        """Cost / current limit - 1, differentiable.

        Args:
            net: in search.
            use: of its choices.
        """
        return self.cost(use) / self.current_limit(net) - 1

    def lagrangian(self, net: Searched, use: Usage) -> Tensor:
        """Augmented Lagrangian of the violation; what is far enough below the limit is not pushed on."""
        self._begin(use)
        pressure = (self.multiplier + self.stiffness * self.violation(net, use)).clamp_min(0)
        return (pressure.square() - self.multiplier**2) / (2 * self.stiffness)

    def __call__(self, net: Searched) -> Tensor:
        """Augmented Lagrangian of the violation, and the method's penalty."""
        return (self.lagrangian(net, usage(net.graph, net.bits())) + net.penalty()).float()

    @torch.no_grad()
    def update(self, net: Searched) -> None:
        """Raise the multiplier while the limit is exceeded, lower it (to 0 at least) while it is not."""
        self.follow(net, usage(net.graph, net.bits()))

    def follow(self, net: Searched, use: Usage) -> None:
        """`update` at a usage that is known."""
        self._begin(use)
        self.multiplier = max(0.0, self.multiplier + self.rate * float(self.violation(net, use)))

    def _begin(self, use: Usage) -> None:
        """Let the limit fall from the first cost that is seen: an optimizer remembers one step above it for long."""
        if self._start is None:
            self._start = float(self.cost(use).detach())

    def describe(self) -> str:
        """Cost, limit and the constants of the multiplier."""
        return f"{self.cost.name} <= {self.text} (ramp {self.ramp:g}, stiffness {self.stiffness:g}, rate {self.rate:g})"

    def state_dict(self) -> dict[str, Any]:
        """Multiplier and where the limit started."""
        return {"multiplier": self.multiplier, "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where another budget was."""
        self.multiplier, self._start = float(state["multiplier"] or 0.0), state["start"]


class Budgets(AbstractPrice):
    """Several limits at once: each has a multiplier of its own, so that only those that bind are paid for.

    Args:
        budgets: one for each cost.

    Raises:
        BudgetError: there is none, or two limit the same cost.
    """

    def __init__(self, budgets: Sequence[Budget]) -> None:
        self.budgets = tuple(budgets)
        self.costs = tuple(b.cost for b in self.budgets)
        names = [cost.name for cost in self.costs]
        if not names or len(set(names)) < len(names):
            msg = f"`budget` limits {names}; allowed is one limit or more, one for each cost; leave out the others"
            raise BudgetError(msg)

    def limits(self, graph: Graph) -> tuple[Limit, ...]:
        """All limits."""
        return tuple(limit for budget in self.budgets for limit in budget.limits(graph))

    def __call__(self, net: Searched) -> Tensor:
        """Sum of the augmented Lagrangians, and the method's penalty."""
        use = usage(net.graph, net.bits())
        terms = torch.stack([budget.lagrangian(net, use) for budget in self.budgets])
        return (terms.sum() + net.penalty()).float()

    @torch.no_grad()
    def update(self, net: Searched) -> None:
        """As of each budget."""
        use = usage(net.graph, net.bits())
        for budget in self.budgets:
            budget.follow(net, use)

    def describe(self) -> str:
        """All budgets."""
        return "; ".join(budget.describe() for budget in self.budgets)

    def state_dict(self) -> dict[str, Any]:
        """Of every budget, by the name of its cost."""
        return {budget.cost.name: budget.state_dict() for budget in self.budgets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where the same budgets were."""
        for budget in self.budgets:
            budget.load_state_dict(state[budget.cost.name])
