"""Budgets that can't be kept: what is said about them."""

import re

import pytest

from offers import ALL, random_offer
from zerobit.cost.price import Limit
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.choices import smallest
from zerobit.cut.pricing import Pricing
from zerobit.cut.project import project
from zerobit.cut.reach import check_reachable
from zerobit.errors import BudgetError


@pytest.mark.parametrize("names", [*ALL, ("diana.time",)], ids="+".join)
def test_an_infeasible_budget_names_the_smallest_values_and_what_holds_them(names: tuple[str, ...]) -> None:
    graph, offer, keep = random_offer("digits", 7)
    costs = [named_cost(name) for name in names]
    with pytest.raises(BudgetError, match=r"`budget` for .*smallest reachable is .*held by .*\d.*allow") as caught:
        project(graph, [Limit(cost, 1e-9) for cost in costs], offer, keep)
    message = str(caught.value)
    assert costs[0].name in message
    assert all(cost.name in message.split("smallest of the other limits")[1] for cost in costs[1:])
    held = message.split("held by")[1].split(";")[0]
    assert any(
        part in held for part in (*offer.owner, *(v.name for v in usage(graph, smallest(offer).net_bits()).values))
    )
    reached = Limit(costs[0], _reached(message) * (1 + 1e-5))
    assert Pricing(graph, [reached]).fits(project(graph, [reached], offer, keep))
    with pytest.raises(BudgetError):
        project(graph, [Limit(costs[0], reached.amount * (1 - 1e-4))], offer, keep)


def _reached(message: str) -> float:
    found = re.search(r"smallest reachable is ([0-9.,e+-]+) (m|u|n)?", message)
    assert found is not None
    scale = {"m": 1e-3, "u": 1e-6, "n": 1e-9}.get(found.group(2) or "", 1.0)
    return float(found.group(1).replace(",", "")) * scale


def test_the_buffers_that_hold_the_ram_are_those_of_the_worst_moment() -> None:
    graph, offer, _ = random_offer("chain", 8)
    with pytest.raises(BudgetError, match=r"held by (\S+) \(\d+ B\), (\S+) \(\d+ B\)") as caught:
        check_reachable(graph, [Limit(named_cost("ram"), 1.0)], offer)
    message = str(caught.value)
    held = [int(n) for n in re.findall(r"\((\d+) B\)", message)]
    assert sum(held) == _reached(message)


def test_limits_that_can_only_be_kept_one_by_one_are_said_to_be() -> None:
    """Narrow weights are small but slow to load into an analog array."""
    graph, offer, keep = random_offer("chain", 9)
    size, cycles = (
        Limit(named_cost(n), float(named_cost(n)(usage(graph, smallest(offer).net_bits())))) for n in ("size", "diana")
    )
    least = project(graph, [Limit(cycles.cost, cycles.amount * 0.9)], offer, keep)
    assert Pricing(graph, [cycles]).totals(least)[0] <= 0.9, "the narrowest widths are not the fastest"
    with pytest.raises(BudgetError, match=r"`budget` for size and diana .* one by one, but not together"):
        project(graph, [size, Limit(cycles.cost, cycles.amount * 0.9)], offer, keep)
