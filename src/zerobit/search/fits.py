"""Whether a plan is one of a network's."""

import numpy as np

from zerobit.errors import PlanError
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.plan import Plan
from zerobit.quant.placement import activation_sites


def check_fits(graph: Graph, plan: Plan) -> None:
    """Check that a plan speaks of a network's groups, weights and activations, and cuts only what can be cut.

    Args:
        graph: of the uncut network.
        plan: for it.

    Raises:
        PlanError: it is of another network, or its kept units and widths do not agree; names what differs.
    """
    units = {g.name: g.units for g in graph.groups}
    if dict(plan.units) != units:
        msg = (
            f"`plan` has groups {dict(plan.units)}, the network has {units}; "
            "use the plan with the network it was decided for"
        )
        raise PlanError(msg)
    weights = set(graph.searched_weights)
    sites = {site.name: site.tensors for site in activation_sites(graph)}
    given = {name: a.tensors for name, a in plan.activations.items()}
    if set(plan.weights) != weights or given != sites:
        names = {*given, *sites}
        odd = sorted(set(plan.weights) ^ weights) or sorted(n for n in names if given.get(n) != sites.get(n))
        msg = f"`plan` and the network differ in {odd}; use the plan with the network it was decided for"
        raise PlanError(msg)
    for group in graph.groups:
        _check_kept(group, set(plan.kept[group.name]))
    for name in plan.weights:
        _check_bits(graph, plan, name)


def _check_kept(group: ChannelGroup, kept: set[int]) -> None:
    if group.frozen is not None and len(kept) < group.units:
        msg = (
            f"`kept.{group.name}` leaves out {sorted(set(range(group.units)) - kept)}, but this group is "
            f"fixed: {group.frozen}; keep all its units"
        )
        raise PlanError(msg)


def _check_bits(graph: Graph, plan: Plan, name: str) -> None:
    """One width per channel, 0 where and only where the channel's unit goes."""
    bits, channels = plan.weights[name].bits, graph.rows[name].count(graph.parameters[name])
    if len(bits) != channels:
        msg = (
            f"`weights.{name}.bits` has {len(bits)} widths; the weight has {channels} channels; give one "
            "for each, 0 where it is removed"
        )
        raise PlanError(msg)
    unit_of = graph.row_units(name)
    stays = np.ones(channels, bool)
    for group, unit in unit_of.items():
        stays &= (unit < 0) | np.isin(unit, plan.kept[group])
    in_group = np.any([unit >= 0 for unit in unit_of.values()], axis=0) if unit_of else np.zeros(channels, bool)
    for channel, b in enumerate(bits):
        if not b and not in_group[channel]:
            msg = f"`weights.{name}.bits` is 0 at channel {channel}, which can't be removed; give it 2 to 8 bits"
            raise PlanError(msg)
        if (b > 0) != stays[channel]:
            msg = (
                f"`weights.{name}.bits` is {b} at channel {channel}; a kept channel has "
                "2 to 8 bits, a removed one 0; make `kept` and `bits` agree"
            )
            raise PlanError(msg)
