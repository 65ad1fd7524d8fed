"""Costs: published values, laws, gradients."""

import pytest
import torch
from torch import Tensor

from cases import CASES, ModelCase, captured, case
from offers import with_unit
from searches import attached, scramble
from usages import zoo_graph
from zerobit.bits import BitDist, NetBits
from zerobit.cost import AbstractCost, Bops, Macs, Size, TableLatency, target_names
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.describe import describe
from zerobit.graph.ir import Graph
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

COSTS: dict[str, AbstractCost] = {
    "size": Size(),
    "size of 8 bit": Size(storage=(8,)),
    "macs": Macs(),
    "bops": Bops(),
    **{name: TableLatency.load(name) for name in target_names()},
}


@pytest.mark.parametrize(
    ("name", "weights", "macs", "mpic"),
    [
        ("resnet8", 77_360, 12_501_632, (5_953_158, 5_435_492, 5_000_653)),
        ("dscnn", 22_016, 2_656_768, (1_265_128, 1_155_117, 1_062_707)),
    ],
)
def test_published_values(name: str, weights: int, macs: int, mpic: tuple[int, int, int]) -> None:
    """Official cost code of Motetti et al. (IEEE TC 2024), run on MLPerf Tiny networks; no pruning, 8-bit inputs."""
    graph = zoo_graph(name)
    for bits, cycles in zip((8, 4, 2), mpic, strict=True):
        use = usage(graph, uniform(graph, bits))
        assert Size()(use).item() == weights * bits / 8
        assert Macs()(use).item() == macs
        assert Bops()(use).item() == macs * bits * 8
        assert round(TableLatency.load("mpic")(use).item()) == cycles


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_channel_more_and_a_bit_more_never_cost_less(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=True)
    for price in COSTS.values():
        _check_monotone(price, net.graph, bits)


def _check_monotone(price: AbstractCost, graph: Graph, bits: NetBits) -> None:
    for i, group in enumerate(graph.groups):
        if group.frozen is None:
            without = price(usage(graph, with_unit(graph, bits, i, 0, keep=False)))
            assert without <= price(usage(graph, with_unit(graph, bits, i, 0, keep=True)))
    now = price(usage(graph, bits))
    for weight, dist in bits.weights.items():
        widths = dist.bits.int().tolist()
        wider = [GRID[min(GRID.index(b) + 1, len(GRID) - 1)] if b else 0 for b in widths]
        more = NetBits(bits.keep, {**bits.weights, weight: BitDist.one_hot(wider)}, bits.activations)
        assert now <= price(usage(graph, more))
    wide = {t: BitDist.one_hot([8]) for t in bits.activations}
    narrow = {t: BitDist.one_hot([4]) for t in bits.activations}
    few, many = (price(usage(graph, NetBits(bits.keep, bits.weights, a))) for a in (narrow, wide))
    assert few <= many


def _leaves(bits: NetBits) -> tuple[list[Tensor], list[str]]:
    leaves = [*bits.keep.values(), *(d.p for d in bits.weights.values()), *(d.p for d in bits.activations.values())]
    return leaves, [*bits.keep, *bits.weights, *bits.activations]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ["digits", "inverted_residual", "concat_branches", "grouped", "mlp"])
def test_gradients_are_those_of_finite_differences(name: str, cost: str) -> None:
    """Every cost is at most quadratic in keeps and linear in widths, so that central differences are exact."""
    net = attached(name, "activations")
    price = COSTS[cost]
    soft = scramble(net, 2).bits()
    keep = {k: torch.full_like(v, 0.7) for k, v in soft.keep.items()}
    weights = {k: BitDist(torch.full_like(d.p, 1 / len(GRID)).requires_grad_()) for k, d in soft.weights.items()}
    acts = {k: BitDist(torch.full_like(d.p, 1 / len(GRID)).requires_grad_()) for k, d in soft.activations.items()}
    bits = NetBits({k: v.requires_grad_() for k, v in keep.items()}, weights, acts)
    leaves, names = _leaves(bits)
    total = price(usage(net.graph, bits))
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    random = torch.Generator().manual_seed(0)
    for leaf, grad, leaf_name in zip(leaves, grads, names, strict=True):
        direction = torch.rand(leaf.shape, generator=random, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 0.125 * direction)
                values.append(float(price(usage(net.graph, bits))))
                leaf.sub_(sign * 0.125 * direction)
        wanted = (values[0] - values[1]) / 0.25
        found = 0.0 if grad is None else float((grad * direction).sum())
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9 * float(total.detach())), leaf_name


@pytest.mark.parametrize("cost", COSTS)
def test_pruning_a_producer_is_rewarded_for_its_readers(cost: str) -> None:
    net = attached("mlp")
    price = COSTS[cost]
    bits = uniform(net.graph, 8)
    keep = {k: v.requires_grad_() for k, v in bits.keep.items()}
    total = price(usage(net.graph, NetBits(keep, bits.weights, bits.activations)))
    (grad,) = torch.autograd.grad(total, [keep["fc1"]])
    # fc2 reads 12 units with 8 rows of 8 bit: what one unit of fc1 costs there
    per_mac = float(price(usage(net.graph, bits)).detach()) / (16 * 12 + 12 * 8 + 8 * 3)
    torch.testing.assert_close(grad, torch.full((12,), 8 * per_mac, dtype=torch.float64))
    less = with_unit(net.graph, bits, 0, 0, keep=False)
    change = float((total - price(usage(net.graph, less))).detach())
    assert change == pytest.approx((16 + 8) * per_mac)


def test_size_counts_what_is_stored() -> None:
    graph = describe(captured(case("mlp"))[1])
    weights = {op.weight or "": BitDist.one_hot([3] * graph.parameters[op.weight or ""][0]) for op in graph.weighted}
    bits = NetBits(uniform(graph, 8).keep, weights, uniform(graph, 8).activations)
    count = 16 * 12 + 12 * 8 + 8 * 3
    use = usage(graph, bits)
    assert Size()(use).item() == count * 4 / 8
    assert Size(storage=(3, 8))(use).item() == count * 3 / 8
    assert Size(storage=(8,))(use).item() == count


def test_weights_of_ops_without_a_rule_count_at_their_widths_and_frozen_ones_in_float() -> None:
    net = attached("recurrent")
    lstm = sum(t.numel() for n, t in net.tensors().items() if n.startswith("lstm") and t.dim() > 1)
    layers = sum(t.numel() for n, t in net.tensors().items() if n in ("conv.weight", "fc1.weight", "fc2.weight"))
    assert Size()(usage(net.graph, uniform(net.graph, 8))).item() == layers + lstm
    row = case("recurrent")
    frozen = attach(row.build(), row.inputs(2), ChannelSoftmax(), frozen=["lstm"])
    assert Size()(usage(frozen.graph, uniform(frozen.graph, 8))).item() == layers + 4 * lstm


def test_a_network_that_is_frozen_costs_its_float_weights() -> None:
    row = case("mlp")
    net = attach(row.build(), row.inputs(2), ChannelSoftmax(), frozen=["*"])
    use = usage(net.graph, net.bits(hard=True))
    assert Size()(use).item() == 4 * (16 * 12 + 12 * 8 + 8 * 3)
    assert [price(use).item() for price in (Macs(), Bops(), TableLatency.load("mpic"))] == [0, 0, 0]


@pytest.mark.parametrize("name", target_names())
def test_every_target_file_loads(name: str) -> None:
    target = TableLatency.load(name)
    assert target.source
    assert target.weight_bits
    assert set(target.weight_bits) <= set(GRID)
    table = target.cycles_per_mac()
    assert table.shape == (len(GRID), len(GRID))
    assert (table[1:, 1:] > 0).all()
    assert not table[0].any()
    assert not table[:, 0].any()


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BudgetError, match=r"`target` is 'toaster'.*mpic"):
        TableLatency.load("toaster")
