"""Cutting channels away computes what masking them computes, and leaves a network of the sizes it should have.

Masked: the output of every layer of a group, bias included, and of what makes something of zero, is multiplied by 0
where a unit is gone.
"""

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from cases import CASES, ModelCase, as_data, captured, captured_dyadic, case, leaves
from zerobit.errors import PlanError
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.graph.program import Program
from zerobit.graph.walks import masked_run

Keep = Mapping[ChannelGroup, Tensor]

every_case = pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)


def removable(graph: Graph) -> list[ChannelGroup]:
    return [group for group in graph.groups if group.frozen is None and group.units > 1]


def keep_some(group: ChannelGroup, seed: int) -> Tensor:
    """0 and 1 by chance, neither all of them."""
    random = torch.Generator().manual_seed(seed)
    keep = (torch.rand(group.units, generator=random) < 0.5).int()
    first, second = torch.randperm(group.units, generator=random)[:2].tolist()
    keep[first], keep[second] = 1, 0
    return keep


def keep_one(group: ChannelGroup, seed: int) -> Tensor:
    keep = torch.zeros(group.units, dtype=torch.int)
    keep[seed % group.units] = 1
    return keep


def choices(graph: Graph, seeds: int) -> list[Keep]:
    """Each group alone, by chance and down to its last unit; then several groups, and all."""
    groups = removable(graph)
    alone: list[Keep] = [{g: keep(g, s)} for g in groups for s in range(seeds) for keep in (keep_some, keep_one)]
    several: list[Keep] = [{g: keep_some(g, s) for g in groups[s % 2 :: 2]} for s in range(seeds)]
    together: list[Keep] = [{g: keep(g, s + 7) for g in groups} for s in range(seeds) for keep in (keep_some, keep_one)]
    return [*alone, *several, *together]


def units(keep: Keep) -> dict[str, list[int]]:
    return {group.name: torch.nonzero(mask).ravel().tolist() for group, mask in keep.items()}


def cut_copy(program: Program, graph: Graph, keep: Keep) -> Program:
    small = copy.deepcopy(program)
    cut(small, graph, units(keep))
    return small


@torch.no_grad()
def results(program: Program, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in leaves(program(*inputs)) if isinstance(x, Tensor)]


@torch.no_grad()
def masked(program: Program, keep: Keep, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in masked_run(program, keep, *inputs) if isinstance(x, Tensor)]


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("row", [c for c in CASES if c.is_dyadic], ids=lambda row: row.name)
def test_bit_for_bit_with_exact_values(row: ModelCase, fold: bool) -> None:
    program = captured_dyadic(row)
    if fold:
        fold_batch_norm(program)
    graph, inputs = describe(program), row.dyadic_inputs(2, seed=1)
    for keep in choices(graph, seeds=2 if fold else 1):
        small = results(cut_copy(program, graph, keep), inputs)
        large = masked(program, keep, inputs)
        assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True)), units(keep)


@every_case
def test_within_rounding_with_any_values(row: ModelCase) -> None:
    _, program = captured(row, torch.float64)
    graph, inputs = describe(program), row.inputs(2, seed=1, dtype=torch.float64)
    for keep in choices(graph, seeds=1):
        small = results(cut_copy(program, graph, keep), inputs)
        large = masked(program, keep, inputs)
        for a, b in zip(small, large, strict=True):
            assert (a - b).abs().max() <= 1e-12 * b.abs().max(), units(keep)


@every_case
def test_the_law_is_not_empty(row: ModelCase) -> None:
    """Masking nothing is the network; masking a unit changes what the network computes."""
    _, program = captured(row, torch.float64)
    graph, inputs = describe(program), row.inputs(4, seed=1, dtype=torch.float64)
    whole = results(program, inputs)
    everything = {group: torch.ones(group.units) for group in graph.groups}
    assert all(torch.equal(a, b) for a, b in zip(masked(program, everything, inputs), whole, strict=True))
    for group in removable(graph):
        less = masked(program, {group: keep_one(group, 0)}, inputs)
        assert any(not torch.allclose(a, b) for a, b in zip(less, whole, strict=True)), group.name


@every_case
def test_sizes_after_a_cut(row: ModelCase) -> None:
    _, program = captured(row)
    graph = describe(program)
    for keep in choices(graph, seeds=1):
        small = describe(cut_copy(program, graph, keep))
        expected = _sizes_without(graph, keep)
        assert {**small.shapes, **small.parameters} == expected
        assert [op.name for op in small.ops] == [op.name for op in graph.ops]
        left = {g.name: int(keep[g].sum()) if g in keep else g.units for g in graph.groups}
        # With one channel per group a convolution is depthwise or dense, and groups are others.
        if min(left.values()) > 1:
            assert {g.name: g.units for g in small.groups} == left


def _sizes_without(graph: Graph, keep: Keep) -> dict[str, tuple[int, ...]]:
    sizes = {name: list(shape) for name, shape in {**graph.shapes, **graph.parameters}.items()}
    for group, mask in keep.items():
        for member in group.members:
            sizes[member.tensor][member.dim] -= int((1 - mask).sum()) * member.index.shape[1]
    return {name: tuple(shape) for name, shape in sizes.items()}


@every_case
def test_members_are_whole(row: ModelCase) -> None:
    """Positions of a group are distinct and inside the tensor; no two groups share one; all of them are int64."""
    graph = describe(captured(row)[1])
    sizes = {**graph.shapes, **graph.parameters}
    seen: dict[tuple[str, int], list[int]] = {}
    for group in graph.groups:
        for member in group.members:
            assert member.index.dtype.name == "int64"
            assert len(member.index) == group.units
            seen.setdefault((member.tensor, member.dim), []).extend(member.index.ravel().tolist())
    for (tensor, dim), positions in seen.items():
        assert sorted(set(positions)) == sorted(positions)
        assert 0 <= min(positions) <= max(positions) < sizes[tensor][dim]


@every_case
def test_every_output_of_a_layer_is_in_one_group(row: ModelCase) -> None:
    graph = describe(captured(row)[1])
    for op in graph.weighted:
        assert op.weight is not None
        channels = op.rows.count(graph.parameters[op.weight])
        groups = [units >= 0 for units in graph.row_units(op.weight).values()]
        assert torch.as_tensor(sum(mask.astype(int) for mask in groups)).tolist() == [1] * channels


@every_case
def test_cutting_twice_is_cutting_once(row: ModelCase) -> None:
    _, program = captured(row)
    graph = describe(program)
    first = {g: keep_some(g, 1) for g in removable(graph)}
    twice = cut_copy(program, graph, first)
    between = describe(twice)
    # With one head left its channels are units, and a convolution with one channel per group is depthwise.
    left = {g.name for g in between.groups if g.frozen is None and g.units == len(units(first).get(g.name, []))}
    cut(twice, between, {g.name: [0] for g in first if g.name in left})
    once = copy.deepcopy(program)
    cut(once, graph, {name: kept[:1] if name in left else kept for name, kept in units(first).items()})
    assert as_data(describe(twice)) == as_data(describe(once))
    assert all(torch.equal(t, once.tensors()[n]) for n, t in twice.tensors().items())


@every_case
def test_a_cut_network_trains_and_keeps_names(row: ModelCase) -> None:
    _, program = captured(row)
    graph = describe(program)
    small = cut_copy(program, graph, {g: keep_some(g, 0) for g in removable(graph)})
    assert list(small.state_dict()) == list(program.state_dict())
    kinds = {name: (type(t), t.requires_grad) for name, t in program.tensors().items()}
    assert {name: (type(t), t.requires_grad) for name, t in small.tensors().items()} == kinds
    outputs = [x for x in leaves(small.train()(*row.inputs(3))) if isinstance(x, Tensor)]
    torch.stack([x.sum() for x in outputs]).sum().backward()
    read = {name for op in graph.ops for name in op.parameters}
    assert all(t.grad is not None for n, t in small.named_parameters() if n in read)


@every_case
def test_frozen_groups_are_never_cut(row: ModelCase) -> None:
    _, program = captured(row)
    graph = describe(program)
    before = {name: t.clone() for name, t in program.tensors().items()}
    frozen = [g for g in graph.groups if g.frozen is not None and g.units > 1]
    assert frozen
    for group in frozen:
        with pytest.raises(PlanError, match="must stay") as caught:
            cut(program, graph, {group.name: range(1, group.units)})
        assert group.frozen is not None
        assert group.frozen in str(caught.value)
        cut(program, graph, {group.name: range(group.units)})
    assert all(torch.equal(t, before[name]) for name, t in program.tensors().items())


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"stam": [0]}, r"`kept` names a group 'stam'; this network has \['conv1', 'fc', 'stem'\]"),
        ({"stem": []}, r"`kept\['stem'\]` is \[\]; at least one of 0\.\.5 must stay"),
        ({"stem": [0, 6]}, r"`kept\['stem'\]` is \[0, 6\]; at least one of 0\.\.5 must stay"),
        ({"fc": [0]}, r"`kept\['fc'\]` leaves out \[1, 2\].*an output of the network; keep all 3"),
    ],
    ids=["name", "nothing", "range", "frozen"],
)
def test_a_wrong_cut_says_why_and_changes_nothing(kept: dict[str, list[int]], expected: str) -> None:
    _, program = captured(case("pre_activation"))
    graph = describe(program)
    with pytest.raises(PlanError, match=expected):
        cut(program, graph, kept)
    assert as_data(describe(program)) == as_data(graph)


def test_units_may_come_in_any_order() -> None:
    _, program = captured(case("barrier"))
    graph = describe(program)
    small = copy.deepcopy(program)
    cut(small, graph, {"conv1": [3, 0, 2]})
    cut(program, graph, {"conv1": (0, 2, 3)})
    assert all(torch.equal(t, program.tensors()[n]) for n, t in small.tensors().items())


def test_exact_values_are_exact() -> None:
    """Bit for bit needs sums that are exact in any order: even in the deepest network they fill 44 of 53 bits."""
    program = captured_dyadic(case("resnet8"))
    (result,) = results(program, case("resnet8").dyadic_inputs(2))
    digits = next(b for b in range(60) if all(math.ldexp(x, b).is_integer() for x in result.flatten().tolist()))
    assert 20 < math.log2(result.abs().max()) + digits < 44
