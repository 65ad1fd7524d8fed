"""Channel groups: labels are carried through the graph rule by rule, then read off as units and members."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Atoms, Axes, AxisState, Labels, Product
from zerobit.graph.ir import ChannelGroup, Graph, Kind, Member, Op
from zerobit.graph.rules import RULES


def find_groups(graph: Graph) -> Graph:
    """The graph with its channel groups: every set of channels that must be cut together, as units."""
    state = AxisState({**graph.parameters, **graph.shapes})
    for name in graph.inputs:
        state.tensors[name] = Axes((None,) * len(graph.shapes[name]))
    several: dict[str, tuple[Axes, ...]] = {}  # labels of what ops that return several tensors return
    for op in graph.ops:
        if op.inputs and op.inputs[0] in several:
            axes = several[op.inputs[0]][op.attrs["index"]]
        else:
            axes = _propagate(op, state)
        if isinstance(axes, tuple):
            several[op.name], axes = axes, Axes(())
        if axes.stays is not None:
            state.atoms.pin(axes.atoms, f"{axes.stays} in `{op.name}`")
        state.tensors[op.name] = axes
    for op in graph.barriers:  # now that all channels are known: what they read keeps its shape
        for name in op.parameters:
            _pin_parameter(name, f"`{name}` is read by {_barrier(op)}", state)
    for name in graph.outputs:
        if name in state.tensors:
            state.pin(name, "an output of the network")
        else:
            _pin_parameter(name, "an output of the network", state)
    for name in sorted(state.masked):
        _pin_beside_batch(name, graph, state)
    _settle_products(state)
    return replace(graph, groups=tuple(_read_off(state, graph)))


def _propagate(op: Op, state: AxisState) -> Axes | tuple[Axes, ...]:
    if op.kind is Kind.BARRIER:
        for name in op.inputs:
            state.pin(name, f"read by {_barrier(op)}")
        return Axes((None,) * len(state.shapes[op.name]))
    if op.target not in RULES:  # dropout, which is a module of ours
        return state.tensors[op.inputs[0]]
    return RULES[op.target].couple(op, state)


def _barrier(op: Op) -> str:
    return f"`{op.name}` ({op.target}): {op.reason}"


def _pin_beside_batch(name: str, graph: Graph, state: AxisState) -> None:
    """A mask has one factor for each channel, and can't lie along a dimension that the batch was merged into."""
    if name in state.tensors and (graph.batched is None or name in graph.batched):
        state.pin_axis(state.tensors[name].labels[0], f"merged with the batch in `{name}`")


def _pin_parameter(name: str, reason: str, state: AxisState) -> None:
    """A parameter keeps its shape."""
    for labels in state.parameters.get(name, ()):
        state.pin_axis(labels, reason)


def _settle_products(state: AxisState) -> None:
    """Choose, for every axis that is laid out as several, the one that carries the units; the others stay whole.

    Units of a factor are slices of the whole. Preferred is the factor of which most can go: heads, which products of
    matrices run side by side on, before what lies within them, then the one with most units.
    """
    atoms = state.atoms
    for product in state.products:
        flat = product.flat.reshape([len(factor) for factor in product.factors])
        slices = [np.moveaxis(flat, dim, 0).reshape(len(f), -1) for dim, f in enumerate(product.factors)]

        def merit(dim: int, product: Product = product, slices: list[Labels] = slices) -> tuple[bool, bool, bool, int]:
            free = _free_units(product.factors[dim], slices[dim], atoms)
            factor = product.factors[dim].tolist()
            return free > 1, any(map(atoms.is_head, factor)), any(map(atoms.is_made, factor)), free

        chosen = max(range(len(slices)), key=merit)
        for dim, factor in enumerate(product.factors):
            if dim == chosen:
                atoms.unite(slices[dim], np.broadcast_to(factor[:, None], slices[dim].shape))
            else:
                atoms.pin(factor, f"one of several dimensions in `{product.op}`, another of which is cut")


def _free_units(factor: Labels, slices: Labels, atoms: Atoms) -> int:
    """How many units of a factor nothing holds."""
    return sum(
        not any(atoms.is_pinned(atom) for atom in (unit, *row))
        for unit, row in zip(factor.tolist(), slices.tolist(), strict=True)
    )


def _read_off(state: AxisState, graph: Graph) -> Iterator[ChannelGroup]:
    """One group for each set of units that lie alike: along the same dimensions, as often, held or not."""
    roots = state.atoms.roots()
    units = np.unique(roots)
    number = np.searchsorted(units, roots)
    pins: dict[int, str] = {}
    for atom, reason in state.atoms.pins.items():
        pins.setdefault(int(number[atom]), reason)
    axes = [
        (tensor, dim, number[labels])
        for tensor, per_dim in (*state.parameters.items(), *((n, a.labels) for n, a in state.tensors.items()))
        for dim, labels in enumerate(per_dim)
        if labels is not None
    ]
    names = _names(state, number, len(units))
    alike = _alike(axes, np.isin(np.arange(len(units)), list(pins)), names)
    members = _members(axes, alike)
    taken: dict[str, int] = {}
    for kind in _in_order(alike):
        own = np.flatnonzero(alike == kind)
        name = names[own[0]]
        if not name:
            continue
        taken[name] = taken.get(name, 0) + 1
        title = name if taken[name] == 1 else f"{name}#{taken[name]}"
        theirs = tuple(members.get(int(kind), ()))
        along = {member.tensor for member in theirs}
        masked = tuple(
            name for name in (*graph.parameters, *(op.name for op in graph.ops)) if name in state.masked & along
        )
        yield ChannelGroup(title, len(own), theirs, masked, next((pins[u] for u in own.tolist() if u in pins), None))


def _names(state: AxisState, number: Labels, count: int) -> list[str]:
    """For each unit the first layer that makes it, "" if none does."""
    names = [""] * count
    for atom in range(len(state.atoms)):
        unit = int(number[atom])
        names[unit] = names[unit] or state.atoms.origins[state.atoms.origin_of(atom)]
    return names


def _alike(axes: list[tuple[str, int, Labels]], pinned: np.ndarray, names: list[str]) -> Labels:
    """A number for each unit, the same for those that lie alike."""
    first = {name: i for i, name in enumerate(dict.fromkeys(names))}
    alike = np.array([first[name] for name in names], np.int64) * 2 + pinned
    for _, _, units in axes:
        own, counts = np.unique(units, return_counts=True)
        _, kinds = np.unique(np.stack([alike[own], counts]), axis=1, return_inverse=True)
        alike[own] = alike.max() + 1 + kinds.reshape(-1)
    return alike


def _in_order(alike: Labels) -> Labels:
    """The numbers in order of their first unit."""
    kinds, first = np.unique(alike, return_index=True)
    return kinds[np.argsort(first)]


def _members(axes: list[tuple[str, int, Labels]], alike: Labels) -> Mapping[int, list[Member]]:
    """For each kind of units where they lie, as often for every unit."""
    rank = np.zeros(len(alike), np.int64)  # of a unit among those of its kind
    for kind in np.unique(alike):
        own = np.flatnonzero(alike == kind)
        rank[own] = np.arange(len(own))
    members: dict[int, list[Member]] = {}
    for tensor, dim, units in axes:
        order = np.lexsort((np.arange(len(units)), rank[units], alike[units]))
        kinds, starts = np.unique(alike[units][order], return_index=True)
        for kind, positions in zip(kinds.tolist(), np.split(order, starts[1:]), strict=True):
            count = len(np.unique(units[positions]))
            members.setdefault(kind, []).append(Member(tensor, dim, positions.reshape(count, -1)))
    return members
