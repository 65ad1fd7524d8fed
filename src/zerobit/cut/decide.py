"""`decide`: from trained choices to a plan; with a budget, one that keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zerobit.bits import BitDist, NetBits
from zerobit.cost.price import AbstractPrice
from zerobit.cost.usage import usage
from zerobit.cut.choices import Bools, Floats, Ints, Offer, Selection, preferred
from zerobit.cut.final import final_steps, width_score
from zerobit.cut.project import project
from zerobit.cut.reach import check_reachable
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup
from zerobit.plan import ActivationPlan, Plan, WeightPlan
from zerobit.search.choice import AbstractGroupChoice
from zerobit.search.net import SearchNet
from zerobit.search.norms import unit_norms

#: Weight of a unit's size among equal preferences; small against any learned one.
_TIE_BREAK = 1e-3


@torch.inference_mode(mode=False)
@torch.enable_grad()  # prices are gradients, whatever the caller has switched off
def decide(net: SearchNet, price: AbstractPrice | None = None) -> Plan:
    """The plan of a network's choices.

    Args:
        net: from `attach`, trained or not.
        price: the limits of a budget are guaranteed: the hard choice is projected to them and what is left of them is
            spent. Any other price, or None, takes the hard choice as it is. So does a method that chooses nothing,
            for which limits are only checked.

    Raises:
        BudgetError: the budget is smaller than the smallest choices cost, with activations at the widths that the
            search gave them.
    """
    offer, keep = read_offer(net)
    limits = () if price is None else price.limits(net.graph)
    if limits and not net.method.chooses:
        check_reachable(net.graph, limits, offer)
    projects = bool(limits) and net.method.chooses
    return _plan(net, project(net.graph, limits, offer, keep) if projects else preferred(offer, keep))


def commit(net: SearchNet, price: AbstractPrice) -> None:
    """End a search, in place: its method settles what it left open until the limits are known; call it before `decide`.

    Args:
        net: from `attach`, trained.
        price: of the search.
    """
    limits = price.limits(net.graph)

    @torch.no_grad()
    def excess(bits: NetBits) -> float:
        use = usage(net.graph, bits)
        return max((float(limit.cost(use)) / limit.amount for limit in limits), default=0.0)

    net.method.commit(net, excess)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def check_limits(net: SearchNet, price: AbstractPrice) -> None:
    """Check before any training that a budget can be met; any other price always can.

    Activations count at the narrowest widths on offer, which a search may come to.

    Raises:
        BudgetError: it can't; names the smallest reachable value of each cost and what holds it.
    """
    offer = read_offer(net)[0]
    if net.method.chooses:
        offer = replace(offer, activations=_narrowest(net))
    check_reachable(net.graph, price.limits(net.graph), offer)


def _narrowest(net: SearchNet) -> dict[str, BitDist]:
    return {
        tensor: BitDist.one_hot([min(net.activation_slot(site.name).widths)])
        for site in net.sites
        for tensor in site.tensors
    }


@torch.no_grad()
def read_offer(net: SearchNet) -> tuple[Offer, Bools]:
    """What a network's choices offer and prefer, and [U], the units that its hard choice keeps; on the CPU."""
    hard = net.bits(hard=True)
    units: dict[str, slice] = {}
    keep, score = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    for group in net.graph.groups:
        start = sum(len(k) for k in keep)
        units[group.name] = slice(start, start + group.units)
        keep.append((hard.keep[group.name] > 0.5).cpu().numpy())
        score.append(_keep_score(net, group, net.group_choice(group)).numpy())
    rows = {
        weight: {g: _flat(unit, units[g].start) for g, unit in net.graph.row_units(weight).items()}
        for weight in hard.weights
    }
    owner, width_score, channels = _owners(net, rows)
    offer = Offer(
        units=units,
        rules=net.options.rules,
        keep_score=np.concatenate(score),
        owner=owner,
        width_score=width_score,
        channels=channels,
        unit={weight: tuple(by_group.values()) for weight, by_group in rows.items()},
        activations={name: BitDist(d.p.cpu()) for name, d in hard.activations.items()},
        searched=np.concatenate(keep),
    )
    return offer, np.concatenate(keep)


def _flat(unit: Ints | Sequence[int], start: int) -> Ints:
    """Units of one group as places among all units; -1 stays."""
    index = np.asarray(unit, dtype=np.int64)
    return np.where(index >= 0, index + start, -1)


def _owners(net: SearchNet, rows: Mapping[str, Mapping[str, Ints]]) -> tuple[dict[str, Ints], Floats, Floats]:
    """Owner of each channel's width; [O, B], preferences; [O], channels that each preference speaks for.

    A channel's width is its own, its layer's where the layer has one choice, or its unit's across layers where gate and
    width are one choice.
    """
    owner: dict[str, Ints] = {}
    score, channels = [np.zeros((0, len(GRID)))], [np.zeros(0)]
    of_unit: dict[int, int] = {}
    count = 0
    for weight, by_group in rows.items():
        slot, own = net.weight_slot(weight), width_score(net, weight).numpy()
        if slot.coupled:
            unit = np.max(np.stack(list(by_group.values())), axis=0)
            new = [u for u in dict.fromkeys(unit.tolist()) if u not in of_unit]
            of_unit.update({u: count + i for i, u in enumerate(new)})
            owner[weight] = np.array([of_unit[u] for u in unit.tolist()], dtype=np.int64)
            own = own[[int(np.flatnonzero(unit == u)[0]) for u in new]]
            weighs = np.ones(len(new))
        elif slot.quantizer.per_layer:
            owner[weight] = np.full(len(own), count)
            weighs, own = np.array([float(len(own))]), own[:1]
        else:
            owner[weight] = count + np.arange(len(own))
            weighs = np.ones(len(own))
        score.append(own)
        channels.append(weighs)
        count += len(own)
    return owner, np.concatenate(score), np.concatenate(channels)


def _keep_score(net: SearchNet, group: ChannelGroup, choice: AbstractGroupChoice | None) -> Tensor:
    """[units], log odds of staying, +inf where a unit must; ties broken by the size of the unit's weights."""
    if choice is None:
        return torch.full((group.units,), torch.inf, dtype=torch.float64)
    norm = unit_norms(net, group)
    return choice.log_odds().double().cpu() + _TIE_BREAK * norm / norm.mean().clamp_min(1e-12)


@torch.no_grad()
def _plan(net: SearchNet, selection: Selection) -> Plan:
    units = {group.name: group.units for group in net.graph.groups}
    kept = {group.name: tuple(selection.kept(group.name)) for group in net.graph.groups}
    weights = {}
    for name in selection.offer.owner:
        bits = selection.bits(name)
        steps = final_steps(net, name, bits).tolist()
        step = tuple(s if b else 0.0 for s, b in zip(steps, bits, strict=True))
        weights[name] = WeightPlan(tuple(bits), step, net.weight_slot(name).quantizer.full_range)
    activations = {}
    for site in net.sites:
        row = selection.offer.activations[site.tensors[0]].p[0]
        bits = GRID[int(row.argmax())]
        step = net.activation_slot(site.name).step(bits)
        activations[site.name] = ActivationPlan(site.tensors, bits, site.signed, step)
    return Plan(units, kept, weights, activations)
