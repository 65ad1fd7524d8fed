"""`Strength` and `Budget`: how a cost enters the loss.

Both work in relative units: the cost of the same network with all weights at 8 bit is 1, on every model and target.
"""

import math
import re
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from zerobit.bits import NetBits
from zerobit.cost.base import AbstractCost
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError
from zerobit.graph.ir import Graph

_UNITS = {"": 1.0, "k": 1e3, "ki": 1024.0, "m": 1e6, "mi": 1024.0**2, "g": 1e9, "gi": 1024.0**3}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


class Searched(Protocol):
    """What a price needs of a network in search."""

    graph: Graph
    progress: float

    def bits(self, *, hard: bool = False) -> NetBits:
        """Its choices as distributions."""
        ...

    def penalty(self) -> Tensor:
        """Its method's own loss term."""
        ...


def reference_cost(graph: Graph, cost: AbstractCost, bits: int = 8) -> float:
    """Cost of the uncut network with all weights at `bits` and 8-bit activations."""
    return float(cost(usage(graph, uniform(graph, bits))))


class AbstractPrice(ABC):
    """A loss term; `price(net)` is pure, `price.update(net)` moves what it keeps."""

    cost: AbstractCost

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
        if not strength >= 0:
            msg = f"`strength` is {strength}; allowed are numbers from 0; choose one"
            raise BudgetError(msg)
        self.cost, self.strength = cost, float(strength)
        self._full_of: tuple[Graph, float] | None = None

    def _full(self, graph: Graph) -> float:
        if self._full_of is None or self._full_of[0] is not graph:
            self._full_of = graph, reference_cost(graph, self.cost)
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
    violation. Loss term: multiplier * v + stiffness / 2 * max(v, 0)^2 with v = cost / limit - 1.

    Args:
        cost: what to limit.
        limit: a number in the cost's unit, "64kB", or "25%" of the network with all weights at 8 bit.
        ramp: share of the search over which the limit falls.
        stiffness: of the quadratic term.
        rate: of the multiplier, per step and unit of violation.

    Raises:
        BudgetError: the limit can't be read.
    """

    def __init__(
        self,
        cost: AbstractCost,
        limit: str | float,
        *,
        ramp: float = 0.2,
        stiffness: float = 10.0,
        rate: float = 0.05,
    ) -> None:
        self.cost, self.text = cost, str(limit)
        self.ramp, self.stiffness, self.rate = ramp, stiffness, rate
        self.amount, self.is_share = parse_limit(cost, limit)
        self.multiplier = 0.0
        self._start: float | None = None
        self._limit_of: tuple[Graph, float] | None = None

    def limit(self, graph: Graph) -> float:
        """The limit in the cost's unit."""
        if self._limit_of is None or self._limit_of[0] is not graph:
            full = reference_cost(graph, self.cost) if self.is_share else 1.0
            self._limit_of = graph, self.amount * full
        return self._limit_of[1]

    def current_limit(self, net: Searched) -> float:
        """Where the falling limit is now."""
        final = self.limit(net.graph)
        start = max(final, self._start if self._start is not None else final)
        share = min(1.0, net.progress / self.ramp) if self.ramp > 0 else 1.0
        return start * (final / start) ** share

    def violation(self, net: Searched) -> Tensor:
        """Cost / current limit - 1, differentiable."""
        return self.cost(usage(net.graph, net.bits())) / self.current_limit(net) - 1

    def __call__(self, net: Searched) -> Tensor:
        """Augmented Lagrangian of the violation, and the penalty."""
        v = self.violation(net)
        lagrangian = self.multiplier * v + 0.5 * self.stiffness * v.clamp_min(0).square()
        return (lagrangian + net.penalty()).float()

    @torch.no_grad()
    def update(self, net: Searched) -> None:
        """Raise the multiplier while the limit is exceeded, lower it (to 0 at least) while it is not."""
        if self._start is None:
            self._start = float(self.cost(usage(net.graph, net.bits())))
        self.multiplier = max(0.0, self.multiplier + self.rate * float(self.violation(net)))

    def describe(self) -> str:
        """Cost, limit and the constants of the multiplier."""
        return f"{self.cost.name} <= {self.text} (ramp {self.ramp:g}, stiffness {self.stiffness:g}, rate {self.rate:g})"

    def state_dict(self) -> dict[str, Any]:
        """Multiplier and where the limit started."""
        return {"multiplier": self.multiplier, "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where another budget was."""
        self.multiplier, self._start = float(state["multiplier"] or 0.0), state["start"]


def parse_limit(cost: AbstractCost, limit: str | float) -> tuple[float, bool]:
    """(amount, whether it is a share of the 8-bit network) of "25%", "64kB", "48 KiB" or a number.

    Raises:
        BudgetError: the text can't be read, the unit is another cost's, or the amount is not positive.
    """
    text = str(limit).strip()
    share = text.endswith("%")
    match = _AMOUNT.fullmatch(text.removesuffix("%"))
    amount = _number(match.group(1)) if match else None
    letters = match.group(2).lower() if match else ""
    units = (cost.unit.lower() + "s", cost.unit.lower())
    prefix = next((letters.removesuffix(u) for u in units if letters.endswith(u)), letters)
    if amount is None or not 0 < amount < math.inf or prefix not in _UNITS or (share and letters):
        msg = (
            f"`budget` for {cost.name} is {text!r}; allowed are a positive number, a number with a unit like "
            f"'64k{cost.unit}', or a percentage of the 8-bit network like '25%'; write one of these"
        )
        raise BudgetError(msg)
    scale = 0.01 if share else _UNITS[prefix]
    return amount * scale, share


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
