"""Which float ops form islands, and in which order everything is computed.

An island is as large as it can be without waiting for itself: ops in float that hand values to each other in
float, of one level. An op has the level of what it reads, and one more where it reads integers in float.
"""

import heapq
from collections.abc import Mapping, Sequence

from zerobit.graph.ir import Graph

#: Names of ops that are computed together: one op on integers, or an island.
Unit = tuple[str, ...]
Reads = Mapping[str, Sequence[str]]


def schedule(graph: Graph, reads: Reads, floats: Mapping[str, str], held: Mapping[str, str]) -> list[Unit]:
    """Group float ops into islands and put all into an order in which each finds what it reads.

    Args:
        graph: of the network.
        reads: op -> activations it reads.
        floats: ops that are computed in float.
        held: tensors that are stored as integers.

    Returns:
        Units in execution order; that of the graph, where it can be.
    """
    unit_of = _units(graph, reads, floats, held)
    members: dict[str, list[str]] = {}
    for op in graph.ops:
        members.setdefault(unit_of[op.name], []).append(op.name)
    position = {name: i for i, name in enumerate(members)}
    waits: dict[str, set[str]] = {name: set() for name in members}
    for op in graph.ops:
        waits[unit_of[op.name]] |= {unit_of[t] for t in reads[op.name] if t in unit_of}
    readers: dict[str, list[str]] = {name: [] for name in members}
    for name, sources in waits.items():
        sources.discard(name)
        for source in sources:
            readers[source].append(name)
    ready = [(position[name], name) for name, sources in waits.items() if not sources]
    heapq.heapify(ready)
    order: list[Unit] = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(tuple(members[name]))
        for reader in readers[name]:
            waits[reader].discard(name)
            if not waits[reader]:
                heapq.heappush(ready, (position[reader], reader))
    assert len(order) == len(members), "islands wait for each other"
    return order


def _units(graph: Graph, reads: Reads, floats: Mapping[str, str], held: Mapping[str, str]) -> dict[str, str]:
    """Op -> name of its unit, the first op in it."""
    level = dict.fromkeys(graph.inputs, 0)
    order = {op.name: i for i, op in enumerate(graph.ops)}
    stands: dict[str, str] = {}

    def find(name: str) -> str:
        while stands[name] != name:
            name = stands[name]
        return name

    for op in graph.ops:
        stands[op.name] = op.name
        near = [t for t in reads[op.name] if t in floats and t not in held]
        level[op.name] = max((level[t] for t in reads[op.name]), default=0)
        if op.name not in floats:
            continue
        level[op.name] = max([1, *(level[t] + (t not in near) for t in reads[op.name])])
        for source in near:
            if level[source] == level[op.name]:
                first, other = sorted((find(source), find(op.name)), key=order.__getitem__)
                stands[other] = first
    return {op.name: find(op.name) for op in graph.ops}
