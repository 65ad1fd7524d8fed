"""Searches as `zerobit search` makes them, and plans for other budgets projected from them."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from results_common import Workplace

from zerobit.cost.base import AbstractCost
from zerobit.cost.parse import make_price, parse_budgets
from zerobit.cost.price import AbstractPrice
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.choices import Selection
from zerobit.cut.decide import decide, read_offer
from zerobit.cut.pricing import Pricing
from zerobit.cut.project import project
from zerobit.errors import BudgetError
from zerobit.measure.network_costs import cut_bits
from zerobit.report import write_text
from zerobit.search.attach import SearchNet, attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.train.objective import Objective, evaluate
from zerobit.train.phases import Recipe
from zerobit.workflows import compress_task

#: Budgets, percent of the cost of the network with all weights at 8 bit.
SHARES = (10, 25, 40, 55, 70)
#: Share of a budget that may be left without a remark.
_MOST_LEFT = 0.05


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        name: of its folder.
        budget: as for `zerobit search`.
        weight_bits: offered; None as the command does.
    """

    name: str
    budget: tuple[str, ...]
    weight_bits: tuple[int, ...] | None = None

    @property
    def title(self) -> str:
        """For tables."""
        return ", ".join(self.budget)

    @property
    def costs(self) -> tuple[AbstractCost, ...]:
        """What it limits."""
        return tuple(named_cost(name) for name in parse_budgets(self.budget))


@dataclass(frozen=True)
class Projected:
    """A search's network at another budget.

    Attributes:
        share: of the cost of the 8-bit network, percent.
        limits: what each cost may be.
        costs: what the cut network costs; empty if nothing is that small.
        remark: why there is none, or why more than `_MOST_LEFT` of the budget is left.
        val: accuracy of the cut network on validation data, without fine-tuning.
    """

    share: int
    limits: tuple[float, ...]
    costs: tuple[float, ...] = ()
    remark: str = ""
    val: float | None = None

    @property
    def kept(self) -> bool:
        """Whether every limit is kept."""
        return all(c <= limit for c, limit in zip(self.costs, self.limits, strict=True))

    @property
    def spent(self) -> tuple[float, ...]:
        """Share of each limit that is used."""
        return tuple(c / limit for c, limit in zip(self.costs, self.limits, strict=True))


def compressed(place: Workplace, search: Search) -> None:
    """Search, cut and fine-tune, unless it is done."""
    settings = place.settings(search.name)
    if (settings.out / "run.json").exists():
        return
    place.console.print(f"{place.task_name}: {search.title}", highlight=False)
    method = None if search.weight_bits is None else ChannelSoftmax(weight_bits=search.weight_bits)
    compress_task(
        settings, budget=search.budget, float_path=place.float_path, method=method, epochs=place.epochs,
        console=place.console,
    )  # fmt: skip


def searched(place: Workplace, search: Search) -> SearchNet | None:
    """The network at the end of its search; None while it is not there."""
    path = place.settings(search.name).out / "search.ckpt"
    state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {"history": ()}
    if len(state["history"]) < Recipe(search_epochs=place.epochs[0]).choosing_epochs:
        return None
    per_layer = any(cost.run_per_width for cost in search.costs)
    method = ChannelSoftmax(granularity="layer" if per_layer else "channel")
    multiple = max(cost.channel_multiple for cost in search.costs)
    net = attach(place.build(), place.batches[0][:2], method, multiple_of=multiple)
    net.load_state_dict(state["net"])
    net.advance(1.0)
    return net


def projections(place: Workplace, search: Search, *, anew: bool) -> list[Projected]:
    """A search's network at all budgets, from their file or made now; none while there is no search."""
    path = place.settings(search.name).out / "projected.json"
    if path.exists() and not anew:
        return [Projected(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    net = searched(place, search)
    if net is None:
        return []
    place.console.print(f"{place.task_name}: budgets from the search for {search.title}", highlight=False)
    rows = [projected(place, net, search.costs, share) for share in SHARES]
    write_text(path, json.dumps([asdict(row) for row in rows], indent=2))
    return rows


def projected(place: Workplace, net: SearchNet, costs: Sequence[AbstractCost], share: int) -> Projected:
    """A network at one share of the 8-bit network's costs."""
    price = make_price({cost.name: f"{share}%" for cost in costs}, None, None)
    limits = tuple(limit.amount for limit in price.limits(net.graph))
    try:
        plan = decide(net, price)
    except BudgetError as error:
        return Projected(share, limits, remark=_why(error))
    small = apply(net, plan)
    costs_now = tuple(counted(small, cost) for cost in costs)
    val = evaluate(small, place.val, Objective())
    most = max(cost / limit for cost, limit in zip(costs_now, limits, strict=True))
    return Projected(share, limits, costs_now, "" if most >= 1 - _MOST_LEFT else next_step(net, price), val)


def _why(error: BudgetError) -> str:
    """The smallest reachable value that a message names, or what it begins with."""
    text = str(error)
    found = re.search(r"the smallest reachable is .*?(?=, held by|; )", text)
    return found.group() if found else text.split("; ")[0].replace("`", "")


def next_step(net: SearchNet, price: AbstractPrice) -> str:
    """What the cheapest single step beyond a projection costs: one unit more, or one width more."""
    offer, keep = read_offer(net)
    limits = price.limits(net.graph)
    pricing, selection = Pricing(net.graph, limits), project(net.graph, limits, offer, keep)
    now = pricing.totals(selection).max()
    steps = [_with(selection, keep=[unit]) for unit in np.flatnonzero(~selection.keep)]
    for owner, column in zip(*np.nonzero(np.isfinite(offer.width_score)), strict=True):
        if column > selection.column[owner]:
            steps.append(_with(selection, owner=owner, column=column))
    beyond = [most for step in steps if (most := pricing.totals(step).max()) > now]
    return f"one unit or width more takes at least {100 * min(beyond):.2f} %" if beyond else "nothing more to take"


def _with(selection: Selection, *, keep: Sequence[int] = (), owner: int | None = None, column: int = 0) -> Selection:
    """A copy with units back, or with another width."""
    result = selection.copy()
    result.keep[list(keep)] = True
    if owner is not None:
        result.column[owner] = column
    return result


def counted(small: QuantNet, cost: AbstractCost) -> float:
    """Cost of a cut network, from its own graph and quantizers."""
    return float(cost(usage(small.graph, cut_bits(small))))
