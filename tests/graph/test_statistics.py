"""Means and norms that count channels which are gone: equal to torch's with none gone, to the masked with some gone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Forward, randomised
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.program import Program
from zerobit.graph.walks import masked_run

ours = torch.ops.zerobit
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}

every_type = pytest.mark.parametrize("dtype", EXACT, ids=str)

# Each of our ops next to torch's, on [2, 6, 4] with parameters [6] along dimension `dim`:
# name -> dimension of the channels; torch's with all there; ours of those that are there.
Pair = tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]
PAIRS: dict[str, Pair] = {
    "mean": (1, lambda x, w, b: x.mean(1), lambda x, w, b: ours.mean(x, [1], False, [6])),
    "mean, kept": (
        1,
        lambda x, w, b: x.mean((-1, 1), keepdim=True),
        lambda x, w, b: ours.mean(x, [-1, 1], True, [0, 6]),
    ),
    "layer_norm": (
        -1,
        lambda x, w, b: F.layer_norm(x.mT, (6,), w, b, 0.1),
        lambda x, w, b: ours.layer_norm(x.mT, [x.shape[1]], w, b, 0.1, 6),
    ),
    "layer_norm, plain": (
        -1,
        lambda x, w, b: F.layer_norm(x.mT, (6,)),
        lambda x, w, b: ours.layer_norm(x.mT, [x.shape[1]], None, None, 1e-5, 6),
    ),
    "layer_norm, two dimensions": (
        1,
        lambda x, w, b: F.layer_norm(x, (6, 4), w[:, None].expand(6, 4)),
        lambda x, w, b: ours.layer_norm(x, x.shape[1:], w[:, None].expand(-1, 4), None, 1e-5, 24),
    ),
    "rms_norm": (
        -1,
        lambda x, w, b: F.rms_norm(x.mT, (6,), w, 0.1),
        lambda x, w, b: ours.rms_norm(x.mT, [x.shape[1]], w, 0.1, 6),
    ),
    "rms_norm, plain": (
        -1,
        lambda x, w, b: F.rms_norm(x.mT, (6,)),
        lambda x, w, b: ours.rms_norm(x.mT, [x.shape[1]], None, None, 6),
    ),
    "group_norm": (
        1,
        lambda x, w, b: F.group_norm(x, 2, w, b, 0.1),
        lambda x, w, b: ours.group_norm(x, 2, w, b, 0.1, 3),
    ),
    "group_norm, plain": (
        1,
        lambda x, w, b: F.group_norm(x, 1),
        lambda x, w, b: ours.group_norm(x, 1, None, None, 1e-5, 6),
    ),
}


def _values(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(*size, generator=random, dtype=torch.float64).to(dtype) + 1 for size in ((2, 6, 4), (6,), (6,))
    )


def _close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    assert one.dtype == other.dtype == dtype
    assert one.shape == other.shape
    return bool((one - other).abs().max() <= EXACT[dtype] * other.abs().max())


@every_type
@pytest.mark.parametrize("name", PAIRS)
def test_with_nothing_gone_it_is_torchs(name: str, dtype: torch.dtype) -> None:
    _, torchs, own = PAIRS[name]
    x, w, b = _values(dtype)
    assert _close(own(x, w, b), torchs(x, w, b), dtype)


@every_type
@pytest.mark.parametrize("kept", [[0, 1, 3, 5], [2, 4], [1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_channels_that_are_gone_count_as_zeros(name: str, kept: list[int], dtype: torch.dtype) -> None:
    """Of both groups of a GroupNorm, {0, 1, 2} and {3, 4, 5}, equally many are left."""
    dim, torchs, own = PAIRS[name]
    x, w, b = _values(dtype)
    mask = torch.zeros(6, 1, dtype=dtype)
    mask[kept] = 1
    expected = torchs(x * mask, w, b)
    if "mean" not in name:
        expected = expected.index_select(dim, torch.tensor(kept))
    assert _close(own(x[:, kept], w[kept], b[kept]), expected, dtype)


def test_a_wrong_count_is_seen() -> None:
    """The comparison above is not met by a norm over what is left alone."""
    x, w, b = _values(torch.float64)
    alone = ours.layer_norm(x[:, :4].mT, [4], w[:4], b[:4], 0.1, 4)
    assert not torch.allclose(alone, ours.layer_norm(x[:, :4].mT, [4], w[:4], b[:4], 0.1, 6), atol=0.01)


def _transformer() -> nn.Module:
    """A residual stream with both norms and means over its channels."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.down(F.relu(m.up(m.norm1(x))))
        x = m.norm2(x)
        return m.head(x) + x.mean(-1, keepdim=True)

    return Forward(
        forward,
        stem=nn.Linear(5, 8),
        norm1=nn.LayerNorm(8),
        up=nn.Linear(8, 6),
        down=nn.Linear(6, 8),
        norm2=nn.RMSNorm(8),
        head=nn.Linear(8, 3),
    )


def _convolutions() -> nn.Module:
    """GroupNorms of which whole groups go (4 of 2 channels), or equally many channels of each (2 of 6)."""
    return Forward(
        lambda m, x: m.head(m.few(m.second(F.relu(m.many(m.first(x))))).mean((2, 3))),
        first=nn.Conv2d(2, 8, 1),
        many=nn.GroupNorm(4, 8),
        second=nn.Conv2d(8, 12, 1),
        few=nn.GroupNorm(2, 12),
        head=nn.Linear(12, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "transformer": (_transformer, (4, 5), {"layer_norm", "rms_norm", "mean"}),
    "convolutions": (_convolutions, (2, 3, 3), {"group_norm"}),
}


def _cut_in_half(program: Program, *, odd: bool) -> Program:
    """Every second unit of each group that may go."""
    graph = describe(program)
    small = copy.deepcopy(program)
    groups = [g for g in graph.groups if g.frozen is None and g.units > 1]
    cut(small, graph, {g.name: range(odd, g.units, 2) for g in groups})
    return small


@every_type
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_cut_network_exports_and_computes_the_same(name: str, dtype: torch.dtype) -> None:
    build, shape, expected = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(3, *shape, dtype=dtype)
    program = capture(randomised(build()).to(dtype), x)
    graph, small = describe(program), _cut_in_half(program, odd=True)
    assert {op.target.split(".")[1] for op in describe(small).ops if op.target.startswith("zerobit.")} == expected
    keep = {g: torch.tensor([u % 2 for u in range(g.units)]) for g in graph.groups if g.frozen is None and g.units > 1}
    assert len(keep) > 1
    assert _close(small(x), masked_run(program, keep, x)[0], dtype)
    exported = torch.export.export(small, (x,)).run_decompositions()
    assert not [n for n in exported.graph.nodes if "zerobit" in str(n.target)]
    assert _close(exported.module()(x), small(x), dtype)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_second_cut_counts_what_the_first_took(name: str) -> None:
    """Masked at once is cut at once is cut twice."""
    build, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(3, *shape, dtype=torch.float64)
    small = _cut_in_half(capture(randomised(build()).double(), x), odd=True)
    graph, smaller = describe(small), _cut_in_half(small, odd=False)
    keep = {
        g: 1 - torch.tensor([u % 2 for u in range(g.units)]) for g in graph.groups if g.frozen is None and g.units > 1
    }
    assert len(keep) > 1
    assert _close(smaller(x), masked_run(small, keep, x)[0], torch.float64)


def test_group_norm_goes_by_whole_groups_or_equally() -> None:
    program = capture(_convolutions(), torch.randn(2, 2, 3, 3))
    units = {
        g.name: [m.index.tolist() for m in g.members if m.tensor == f"{g.name}.bias"] for g in describe(program).groups
    }
    assert units["first"] == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    assert units["second"] == [[[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]]
    attributes = {
        op.name: op.attrs["groups"] for op in describe(_cut_in_half(program, odd=True)).ops if "norm" in op.name
    }
    assert attributes == {"group_norm": 2, "group_norm_1": 2}


@torch.no_grad()
def test_a_mean_over_channels_and_a_free_size_counts_the_size_that_is_there() -> None:
    model = Forward(
        lambda m, x: m.head(m.conv(x)).mean((2, 3)) + m.conv(x).mean((1, 2, 3))[:, None],
        conv=nn.Conv2d(2, 6, 1),
        head=nn.Conv2d(6, 3, 1),
    ).double()
    program = capture(model, torch.randn(2, 2, 5, 5, dtype=torch.float64), free_size=True)
    graph, small = describe(program), _cut_in_half(program, odd=True)
    keep = {graph.groups[0]: torch.tensor([u % 2 for u in range(6)])}
    for size in (5, 7):
        x = torch.randn(2, 2, size, size, dtype=torch.float64)
        assert _close(small(x), masked_run(program, keep, x)[0], torch.float64)


def test_a_norm_over_free_sizes_is_a_barrier() -> None:
    """How many values it counts would have to depend on them."""
    model = Forward(lambda m, x: F.layer_norm(y := m.conv(x), y.shape[1:]), conv=nn.Conv2d(2, 6, 1))
    graph = describe(capture(model, torch.randn(2, 2, 5, 5), free_size=True))
    assert [op.reason for op in graph.barriers] == ["it normalises over sizes that are free"]
