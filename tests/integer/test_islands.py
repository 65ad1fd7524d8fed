"""Islands are as large as they can be without waiting for themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerobit.graph.ir import Graph, Kind, Op
from zerobit.integer.islands import schedule


def _graph(reads: list[list[int]]) -> tuple[Graph, dict[str, tuple[str, ...]]]:
    """Op i reads ops of lower number, or the input where there are none."""
    named = {f"op{i}": tuple(f"op{j}" for j in found) or ("x",) for i, found in enumerate(reads)}
    ops = tuple(Op(name, Kind.BARRIER, found, "t") for name, found in named.items())
    return Graph(("x",), (ops[-1].name,), ops, {}, {}), named


@st.composite
def _networks(draw: st.DrawFn) -> tuple[list[list[int]], list[bool], list[bool]]:
    count = draw(st.integers(1, 14))
    reads = [draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else [] for i in range(count)]
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    return reads, draw(flags), draw(flags)


@given(_networks())
def test_every_unit_finds_what_it_reads(network: tuple[list[list[int]], list[bool], list[bool]]) -> None:
    graph, reads = _graph(network[0])
    floats = {op.name: "" for op, is_float in zip(graph.ops, network[1], strict=True) if is_float}
    held = {op.name: op.name for op, is_held in zip(graph.ops, network[2], strict=True) if is_held}
    done = {"x"}
    units = schedule(graph, reads, floats, held)
    for unit in units:
        for name in unit:
            assert all(t in done or t in unit for t in reads[name])
            # What is rounded on its way is no part of the same island.
            assert not any(t in unit and t in held for t in reads[name])
        assert len(unit) == 1 or set(unit) <= set(floats)
        done |= {*unit}
    assert sorted(name for unit in units for name in unit) == sorted(reads)


@given(_networks())
def test_a_network_of_integers_keeps_its_order(network: tuple[list[list[int]], list[bool], list[bool]]) -> None:
    graph, reads = _graph(network[0])
    assert schedule(graph, reads, {}, {}) == [(op.name,) for op in graph.ops]


@pytest.mark.parametrize(
    ("reads", "floats", "units"),
    [
        # a chain in float is one island
        ([[], [0], [1]], {0, 1, 2}, [(0, 1, 2)]),
        # two that meet are one, too
        ([[], [], [0, 1]], {0, 1, 2}, [(0, 1, 2)]),
        # with an op on integers between, the last must wait for it, although it reads the first as well
        ([[], [0], [0, 1]], {0, 2}, [(0,), (1,), (2,)]),
        # a branch that waits for nothing else joins the first island
        ([[], [0], [0], [1, 2]], {0, 2}, [(0, 2), (1,), (3,)]),
    ],
)
def test_islands(reads: list[list[int]], floats: set[int], units: list[tuple[int, ...]]) -> None:
    graph, named = _graph(reads)
    found = schedule(graph, named, {f"op{i}": "" for i in floats}, {})
    assert found == [tuple(f"op{i}" for i in unit) for unit in units]
