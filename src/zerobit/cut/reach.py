"""The smallest selection, and what to say when it is not small enough.

Every group at its fewest units and every width at its narrowest is the cheapest for nearly every cost. A device with
two arithmetic units may be faster at a wider width or with both: there the widths of each weight are searched.
"""

from collections.abc import Sequence

import numpy as np
import torch

from zerobit.cost.amounts import written
from zerobit.cost.base import Usage
from zerobit.cost.memory import PeakRam
from zerobit.cost.price import Limit
from zerobit.cost.usage import usage
from zerobit.cut.choices import Offer, Selection, smallest
from zerobit.cut.pricing import Pricing, WidthPricing
from zerobit.cut.widths import cheapen, choose_widths
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.ir import Graph

#: Holders that a message names.
_NAMED = 3


def check_reachable(graph: Graph, limits: Sequence[Limit], offer: Offer) -> Selection:
    """Check that there is a selection within all limits.

    Args:
        graph: of the network.
        limits: what it may cost.
        offer: what can be chosen.

    Returns:
        One that is, with the fewest units.

    Raises:
        BudgetError: there is none; names the value that is reached for each cost and what holds most of it.
    """
    pricing = Pricing(graph, limits)
    least = smallest(offer)
    if pricing.fits(least):
        return least
    alone = [_least_of(Pricing(graph, [limit]), least) for limit in limits]
    totals = [float(Pricing(graph, [x]).totals(s)[0]) * x.amount for x, s in zip(limits, alone, strict=True)]
    for limit, selection, total in zip(limits, alone, totals, strict=True):
        if total > limit.amount:
            raise BudgetError(_message(Pricing(graph, [limit]), selection, total) + _others(limits, totals, limit))
    for start in (least, *alone):
        found = start.copy()
        choose_widths(pricing, found)
        if pricing.fits(found):
            return found
    names = " and ".join(limit.cost.name for limit in limits)
    msg = (
        f"`budget` for {names} can be kept one by one, but not together: what is cheap for one is dear for another; "
        f"raise one of them{_others(limits, totals, None)}"
    )
    raise BudgetError(msg)


def _least_of(pricing: Pricing, least: Selection) -> Selection:
    """The cheapest widths for one limit, with the fewest units."""
    if pricing.limits[0].cost.per_channel:
        return least
    result = least.copy()
    cheapen(pricing, result)
    return result


def _message(pricing: Pricing, least: Selection, total: float) -> str:
    limit = pricing.limits[0]
    cost = limit.cost
    return (
        f"`budget` for {cost.name} is {_figure(limit.amount, cost.unit)}; the smallest reachable is "
        f"{_figure(total, cost.unit)}, held by {_holders(pricing, least, total)}; allow at least that, offer "
        f"narrower widths, or a smaller network"
    )


def _figure(value: float, unit: str) -> str:
    return written(value, unit) if unit in ("s", "J") else f"{value:,.6g} {unit}"


def _others(limits: Sequence[Limit], totals: Sequence[float], one: Limit | None) -> str:
    texts = [f"{x.cost.name} {_figure(t, x.cost.unit)}" for x, t in zip(limits, totals, strict=True) if x is not one]
    return f" (smallest of {'the other limits' if one else 'each'}: {', '.join(texts)})" if texts else ""


def _holders(pricing: Pricing, least: Selection, total: float) -> str:
    """What holds most of the first limit's cost: weights, buffers, or what no choice changes."""
    cost, unit = pricing.limits[0].cost, pricing.limits[0].cost.unit
    share = _buffers(pricing, least) if isinstance(cost, PeakRam) else _weights(pricing, least)
    largest = sorted(share, key=share.__getitem__, reverse=True)[:_NAMED]
    held = [f"{name} ({_figure(share[name], unit)})" for name in largest if share[name] > 0]
    rest = total - sum(share.values())
    if cost.name == "size" and rest > 1e-6 * total:
        held.insert(0, f"weights left in float ({_figure(rest, unit)})")
    return ", ".join(held) or "what no width changes"


def _weights(pricing: Pricing, least: Selection) -> dict[str, float]:
    """What each weight and the layers that read it add to the first limit's cost."""
    limit = pricing.limits[0]
    if not limit.cost.by_weight:
        price = pricing.prices(least).column[0] * limit.amount
        now = price[np.arange(len(price)), least.column]
        return {name: float(now[np.unique(owner)].sum()) for name, owner in least.offer.owner.items()}
    exact = WidthPricing(pricing, least)
    none = float(limit.cost(Usage((), (), torch.zeros((), dtype=torch.float64))))
    counts = {name: np.bincount(least.columns(name), minlength=len(GRID))[None] for name in least.offer.owner}
    return {name: float(exact(name, row)[0, 0]) * limit.amount - none for name, row in counts.items()}


def _buffers(pricing: Pricing, least: Selection) -> dict[str, float]:
    """Bytes of the buffers that are live at the worst moment."""
    values = usage(pricing.graph, least.net_bits()).values
    size = {v.name: float(v.elements * v.bits) / 8 for v in values}
    moments = {t: [v.name for v in values if v.first <= t <= v.last] for t in {v.first for v in values}}
    worst = max(moments.values(), key=lambda names: sum(size[n] for n in names), default=[])
    return {name: size[name] for name in worst}
