"""Channel groups: labels are carried through the graph rule by rule, then read off as units and members."""

from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import ChannelGroup, Graph, Kind, Member, Op
from zerobit.graph.rules import RULES


def find_groups(graph: Graph) -> Graph:
    """The graph with its channel groups: every set of channels that must be cut together, as units."""
    state = AxisState()
    for name in graph.inputs:
        state.tensors[name] = Axes((None,) * len(graph.shapes[name]))
    for op in graph.ops:
        state.tensors[op.name] = _propagate(op, state, graph)
    for op in graph.barriers:  # now that all channels are known: what they read keeps its shape
        for name in op.parameters:
            reason = f"`{name}` is read by `{op.name}` ({op.target}), an op without a rule"
            _pin_parameter(name, reason, state)
    for name in graph.outputs:
        if name in state.tensors:
            state.pin(name, "an output of the network")
        else:
            _pin_parameter(name, "an output of the network", state)
    return replace(graph, groups=tuple(_read_off(state, graph)))


def _propagate(op: Op, state: AxisState, graph: Graph) -> Axes:
    if op.kind is Kind.BARRIER:
        for name in op.inputs:
            state.pin(name, f"read by `{op.name}` ({op.target}), an op without a rule")
        return Axes((None,) * len(graph.shapes[op.name]))
    if op.kind is Kind.IDENTITY:
        return state.tensors[op.inputs[0]]
    return RULES[op.target].couple(op, state, graph.shapes)


def _pin_parameter(name: str, reason: str, state: AxisState) -> None:
    """A parameter keeps its shape."""
    for labels in state.parameters.get(name, ()):
        if labels is not None:
            state.atoms.pin(labels, reason)


def _read_off(state: AxisState, graph: Graph) -> list[ChannelGroup]:
    atoms = state.atoms
    family = _families(state)
    roots = atoms.roots(np.arange(len(atoms)))
    pins = {int(roots[atom]): reason for atom, reason in reversed(atoms.pins.items())}
    groups = []
    for origins in family:
        units = np.unique(roots[[a for a in range(len(atoms)) if atoms.origin_of(a) in origins]])
        name = next((atoms.origins[o] for o in sorted(origins) if atoms.origins[o]), "")
        if not name:
            continue
        members, ragged = _members(state, units, roots)
        frozen = next((pins[u] for u in units.tolist() if u in pins), ragged)
        affine = tuple(op.name for op in graph.ops if op.name in state.affine and _is_member(op.name, members))
        groups.append(ChannelGroup(name, len(units), members, affine, frozen))
    return groups


def _families(state: AxisState) -> list[set[int]]:
    """Sets of axes of birth whose atoms were united, in order of their first."""
    atoms = state.atoms
    parent = list(range(len(atoms.origins)))

    def find(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for atom in range(len(atoms)):
        low, high = sorted((find(atoms.origin_of(atom)), find(atoms.origin_of(atoms.root(atom)))))
        parent[high] = low
    families: dict[int, set[int]] = {}
    for origin in range(len(parent)):
        families.setdefault(find(origin), set()).add(origin)
    return list(families.values())


def _members(state: AxisState, units: Labels, roots: Labels) -> tuple[tuple[Member, ...], str | None]:
    """Where the units lie, and why they can't be cut if they lie unevenly."""
    axes = [*state.parameters.items(), *((n, a.labels) for n, a in state.tensors.items())]
    members, ragged = [], None
    for tensor, per_dim in axes:
        for dim, labels in enumerate(per_dim):
            if labels is None:
                continue
            number = np.searchsorted(units, roots[labels])
            inside = np.isin(roots[labels], units)
            if not inside.any():
                continue
            positions = np.flatnonzero(inside)
            counts = np.bincount(number[positions], minlength=len(units))
            if len(set(counts.tolist())) > 1:
                ragged = f"its channels lie unevenly along `{tensor}`"
                continue
            order = np.argsort(number[positions], kind="stable")
            members.append(Member(tensor, dim, positions[order].reshape(len(units), -1)))
    return tuple(members), ragged


def _is_member(name: str, members: tuple[Member, ...]) -> bool:
    return any(m.tensor == name for m in members)
