"""`decide`: from trained choices to a plan; with a budget, one that keeps it."""

import torch
from torch import Tensor

from zerobit.bits import BitDist
from zerobit.cost.price import AbstractPrice, Budget
from zerobit.cut.project import Choices, check_reachable, project
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.graph.rows import to_rows
from zerobit.plan import ActivationPlan, Plan, WeightPlan
from zerobit.search.choice import AbstractChoice
from zerobit.search.net import SearchNet
from zerobit.search.slots import per_channel
from zerobit.search.widths.coupled import CoupledChoice

#: Weight of a unit's size among equal preferences; small against any learned one.
_TIE_BREAK = 1e-3


def decide(net: SearchNet, price: AbstractPrice | None = None) -> Plan:
    """The plan of a network's choices.

    Args:
        net: from `attach`, trained or not.
        price: a `Budget` is guaranteed: the hard choice is projected to it and what is left of it is spent on the
            preferred promotions. Any other price, or None, takes the hard choice as it is.

    Raises:
        BudgetError: the budget is smaller than the smallest choices cost.
    """
    choices = read_choices(net)
    if isinstance(price, Budget):
        project(net.graph, price.cost, price.limit(net.graph), choices)
    return _plan(net, choices)


def check_budget(net: SearchNet, budget: Budget) -> None:
    """Check before any training that a budget can be met.

    Raises:
        BudgetError: it can't; names the smallest reachable value and what holds it.
    """
    check_reachable(net.graph, budget.cost, budget.limit(net.graph), read_choices(net))


@torch.no_grad()
def read_choices(net: SearchNet) -> Choices:
    """Hard choice and preferences of all groups and weights, on the CPU."""
    hard = net.bits(hard=True)
    keep, keep_score, width, width_score, units, tied = {}, {}, {}, {}, {}, {}
    for group in net.graph.groups:
        choice = net.group_choice(group)
        keep[group.name] = hard.keep[group.name].cpu() > 0.5
        keep_score[group.name] = _keep_score(net, group, choice)
    for weight in hard.weights:
        units[weight] = {name: torch.as_tensor(unit) for name, unit in net.graph.row_units(weight).items()}
        width_score[weight] = _width_score(net, weight)
        width[weight] = width_score[weight].argmax(1)
        slot = net.weight_slot(weight)
        if slot.coupled:
            tied[weight] = "unit"
        elif slot.width is not None and len(slot.width.width) == 1 and slot.width.channels > 1:
            tied[weight] = "layer"
    activations = {name: BitDist(d.p.cpu()) for name, d in hard.activations.items()}
    return Choices(keep, width, keep_score, width_score, units, activations, net.options.rules, tied)


def _keep_score(net: SearchNet, group: ChannelGroup, choice: AbstractChoice | None) -> Tensor:
    """[units], log odds of staying, +inf where a unit must; ties broken by the size of the unit's weights."""
    if choice is None or (isinstance(choice, CoupledChoice) and not choice.removable):
        return torch.full((group.units,), torch.inf, dtype=torch.float64)
    p = choice.probability().double().cpu()
    stay = 1 - p[:, 0] if isinstance(choice, CoupledChoice) else p
    odds = torch.logit(stay.clamp(1e-9, 1 - 1e-9))
    norm = unit_norms(net, group)
    return odds + _TIE_BREAK * norm / norm.mean().clamp_min(1e-12)


def unit_norms(net: SearchNet, group: ChannelGroup) -> Tensor:
    """[units], root of the summed squared weights that make each unit."""
    total = torch.zeros(group.units, dtype=torch.float64)
    tensors = net.tensors()
    for name, layout in net.graph.rows.items():
        unit = torch.as_tensor(net.graph.row_units(name).get(group.name, ()), dtype=torch.int64)
        if len(unit):
            squares = to_rows(tensors[name].detach().double().cpu(), layout).square().sum(1)
            total.index_add_(0, unit[unit >= 0], squares[unit >= 0])
    return total.sqrt()


def _width_score(net: SearchNet, weight: str) -> Tensor:
    """[C, B], log preference of each offered grid column, -inf elsewhere."""
    slot = net.weight_slot(weight)
    channels = len(slot.index)
    score = torch.full((channels, len(GRID)), -torch.inf, dtype=torch.float64)
    columns = [GRID.index(w) for w in slot.grid.widths]
    if slot.coupled:
        by_name = {g.name: net.group_choice(g) for g in net.graph.groups}
        samples = [choice.probability() for name in slot.groups if (choice := by_name[name]) is not None]
        p = per_channel(samples, slot.index).double().cpu()[:, 1:]
    elif slot.width is not None:
        p = slot.width.probability().double().cpu()
    else:
        p = torch.ones(channels, 1, dtype=torch.float64)
    score[:, columns] = p.clamp_min(1e-30).log()
    return score


@torch.no_grad()
def _plan(net: SearchNet, choices: Choices) -> Plan:
    units = {group.name: group.units for group in net.graph.groups}
    kept = {name: tuple(torch.nonzero(k)[:, 0].tolist()) for name, k in choices.keep.items()}
    tensors = net.tensors()
    weights = {}
    for name in choices.width:
        grid = net.weight_slot(name).grid
        steps = grid.steps(to_rows(tensors[name], net.graph.rows[name])).double().cpu()
        bits = choices.bits(name)
        step = tuple(float(steps[c, grid.widths.index(b)]) if b else 0.0 for c, b in enumerate(bits))
        weights[name] = WeightPlan(tuple(bits), step, grid.full_range)
    activations = {}
    for site in net.sites:
        slot = net.activation_slot(site.name)
        row = choices.activations[site.tensors[0]].p[0]
        bits = GRID[int(row.argmax())]
        step = float(slot.log_step.exp()[slot.widths.index(bits)])
        activations[site.name] = ActivationPlan(site.tensors, bits, site.signed, step)
    return Plan(units, kept, weights, activations)
