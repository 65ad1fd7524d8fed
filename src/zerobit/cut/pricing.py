"""What a selection costs under each limit, and what each change to it would.

All costs are relative: the limit itself is 1.
Shape legend: K limits, U units, O owners, C output channels of a weight, B = len(GRID), M options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from zerobit.cost.base import LayerUse, Usage, WeightUse
from zerobit.cost.price import Limit
from zerobit.cost.usage import AxisKeep, as_read, usage
from zerobit.cut.choices import Floats, Ints, Selection, together
from zerobit.formats import GRID
from zerobit.graph.ir import Graph

_T = TypeVar("_T")

#: Share of a limit by which sums of costs may differ with their order.
MARGIN = 1e-12
#: Selections whose prices are remembered.
_RECENT = 16


@dataclass(frozen=True, eq=False)
class Prices:
    """Costs now, and what choices add to them at the margin; exact where a cost is linear in the choice.

    Attributes:
        total: [K].
        unit: [K, U], what each unit costs through those that read it and through its own channels at their widths.
        column: [K, O, B], what the channels of each owner that stay cost at each width.
        is_linear: whether all costs are linear in the channels at each width.
    """

    total: Floats
    unit: Floats
    column: Floats
    is_linear: bool


class Pricing:
    """Prices selections of one network.

    Args:
        graph: of the network.
        limits: what it may cost, K of them.
    """

    def __init__(self, graph: Graph, limits: Sequence[Limit]) -> None:
        self.graph, self.limits = graph, tuple(limits)
        self._totals: dict[bytes, Floats] = {}
        self._prices: dict[bytes, Prices] = {}

    @cached_property
    def amounts(self) -> Floats:
        """[K], the limits in their units."""
        return np.array([limit.amount for limit in self.limits])

    @cached_property
    def is_linear(self) -> bool:
        """Whether all costs are linear in the number of channels at each width; devices that work in tiles are not."""
        return all(limit.cost.per_channel for limit in self.limits)

    def totals(self, selection: Selection) -> Floats:
        """[K]."""
        key = selection.key()
        if key not in self._totals:
            with torch.no_grad():
                use = usage(self.graph, selection.net_bits())
                costs = np.array([float(limit.cost(use)) for limit in self.limits])
            _remember(self._totals, key, costs / self.amounts)
        return self._totals[key]

    def fits(self, selection: Selection) -> bool:
        """Whether every limit is kept."""
        return bool((self.totals(selection) <= 1).all())

    def fit(self, selections: Sequence[Selection]) -> list[bool]:
        """Whether every limit is kept, of each; up to `MARGIN`, as several are added up in another order than one."""
        if len(selections) == 1:
            return [self.fits(selections[0])]
        with torch.no_grad():
            use = usage(self.graph, together(selections))
            costs = [limit.cost(use).double().expand(len(selections)).numpy() for limit in self.limits]
        worst: Floats = np.max(np.stack(costs) / self.amounts[:, None], axis=0)
        return [total <= 1 + MARGIN for total in worst.tolist()]

    def prices(self, selection: Selection) -> Prices:
        """Marginal prices by the gradient of each cost."""
        key = selection.key()
        if key not in self._prices:
            _remember(self._prices, key, self._marginal(selection))
        return self._prices[key]

    def _marginal(self, selection: Selection) -> Prices:
        bits = selection.net_bits(differentiable=True)
        use = usage(self.graph, bits)
        leaves = [*bits.keep.values(), *(d.p for d in bits.weights.values())]
        totals, units, columns = [], [], []
        for limit in self.limits:
            total = limit.cost(use)
            totals.append(float(total.detach()))
            if total.requires_grad and leaves:
                grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            else:  # a network without layers has no multiplications, one that is frozen no choice
                grads = tuple(torch.zeros_like(leaf) for leaf in leaves)
            arrays = [g.numpy() for g in grads]
            unit, column = self._scatter(selection, arrays[: len(bits.keep)], arrays[len(bits.keep) :])
            units.append(unit)
            columns.append(column)
        scale = self.amounts
        unit, column = np.stack(units) / scale[:, None], np.stack(columns) / scale[:, None, None]
        return Prices(np.array(totals) / scale, unit, column, self.is_linear)

    def _scatter(self, selection: Selection, keep: list[Floats], weights: list[Floats]) -> tuple[Floats, Floats]:
        """([U], [O, B]) of the gradients of groups and weights."""
        offer, owners = selection.offer, len(selection.column)
        price = np.concatenate([np.zeros((0, len(GRID))), *weights])
        own = price - price[:, :1]
        kept = selection.all_kept()
        owner, stay = offer.channel_owner[kept], own[kept]
        column: Floats = np.stack([np.bincount(owner, s, owners).astype(np.float64) for s in stay.T], 1)
        at_width = own[np.arange(len(own)), selection.column[offer.channel_owner]]
        unit = np.concatenate([*keep, np.zeros(0)])
        of_unit, channel = offer.units_channels
        np.add.at(unit, of_unit, at_width[channel])
        return unit, column


def _remember(found: dict[bytes, _T], key: bytes, value: _T) -> None:
    """Keep the newest: the steps of a search ask for the selection of the step before, hardly ever for an older one."""
    if len(found) >= _RECENT:
        del found[next(iter(found))]
    found[key] = value


class WidthPricing:
    """Exact costs of the widths of single weights, while all units and all other weights stand.

    Args:
        pricing: of the network.
        selection: whose units stay; its widths set the costs of the other weights.
    """

    def __init__(self, pricing: Pricing, selection: Selection) -> None:
        self.pricing = pricing
        self._ops = {op.name: op for op in pricing.graph.weighted}
        with torch.no_grad():
            bits = selection.net_bits()
            use = usage(pricing.graph, bits)
            self._axis = AxisKeep(pricing.graph, bits)
        self.weights = {w.name: w for w in use.weights}
        self.layers: dict[str, list[LayerUse]] = {name: [] for name in self.weights}
        for layer in use.layers:
            self.layers[layer.weight.name].append(layer)

    def __call__(self, weight: str, counts: Ints) -> Floats:
        """[K, M], cost of a weight and the layers that read it.

        Args:
            weight: its name.
            counts: [M, B], channels at each width.
        """
        own = WeightUse(weight, torch.from_numpy(counts).double(), self.weights[weight].fan_in)
        graph, axis = self.pricing.graph, self._axis
        layers = tuple(
            replace(layer, weight=as_read(graph, self._ops[layer.name], own, axis)) for layer in self.layers[weight]
        )
        part = Usage((own,), layers, torch.zeros((), dtype=torch.float64))
        rows = []
        with torch.no_grad():
            for limit in self.pricing.limits:
                value = limit.cost(part) if limit.cost.by_weight else torch.zeros(())
                rows.append(value.double().expand(len(counts)).numpy() / limit.amount)
        return np.stack(rows)
