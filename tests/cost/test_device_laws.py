"""Laws of every cost that a budget can name, over the table of models."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cases import CASES, ModelCase
from offers import with_unit
from searches import attached, scramble
from zerobit.bits import BitDist, NetBits
from zerobit.cost.base import AbstractCost, Usage, ValueUse, WeightUse
from zerobit.cost.registry import cost_names, named_cost
from zerobit.cost.usage import uniform, usage
from zerobit.formats import GRID


def _costs() -> list[AbstractCost]:
    """Every cost once."""
    return list({cost.name: cost for cost in map(named_cost, cost_names())}.values())


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_channel_more_never_costs_less(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=True)
    for i, group in enumerate(net.graph.groups):
        if group.frozen is None:
            without, with_it = (usage(net.graph, with_unit(net.graph, bits, i, 0, keep=k)) for k in (False, True))
            for cost in _costs():
                assert cost(without) <= cost(with_it), cost.name


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_bit_more_never_costs_less_where_channels_are_priced_one_by_one(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=True)
    now = usage(net.graph, bits)
    for weight, dist in bits.weights.items():
        wider = [GRID[min(GRID.index(b) + 1, len(GRID) - 1)] if b else 0 for b in dist.bits.int().tolist()]
        more = NetBits(bits.keep, {**bits.weights, weight: BitDist.one_hot(wider)}, bits.activations)
        use = usage(net.graph, more)
        for cost in _costs():
            if cost.per_channel:
                assert cost(now) <= cost(use), cost.name


def _stacked(uses: list[Usage]) -> Usage:
    """One usage with a leading dimension."""

    def stack(of: Callable[[Usage], Tensor]) -> Tensor:
        return torch.stack([of(use) for use in uses])

    weights = [
        WeightUse(w.name, stack(lambda u, i=i: u.weights[i].counts), stack(lambda u, i=i: u.weights[i].fan_in))
        for i, w in enumerate(uses[0].weights)
    ]
    by_name = {w.name: w for w in weights}
    layers = [
        replace(
            layer,
            weight=by_name[layer.weight.name],
            inputs=stack(lambda u, i=i: u.layers[i].inputs),
            positions=stack(lambda u, i=i: u.layers[i].positions),
        )
        for i, layer in enumerate(uses[0].layers)
    ]
    values = [
        ValueUse(
            v.name,
            stack(lambda u, i=i: u.values[i].elements),
            stack(lambda u, i=i: u.values[i].bits),
            v.first,
            v.last,
        )
        for i, v in enumerate(uses[0].values)
    ]
    return Usage(tuple(weights), tuple(layers), stack(lambda u: u.float_weights), lambda: tuple(values))


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_many_choices_at_once_cost_what_each_does(row: ModelCase) -> None:
    nets = [scramble(attached(row.name), seed) for seed in (1, 2, 3)]
    uses = [usage(net.graph, net.bits(hard=True)) for net in nets]
    for cost in _costs():
        together = cost(_stacked(uses)).detach()
        assert together.tolist() == [cost(use).item() for use in uses], cost.name


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_many_choices_of_one_weight_cost_what_each_does(row: ModelCase) -> None:
    use = usage(attached(row.name).graph, uniform(attached(row.name).graph, 8))
    random = torch.Generator().manual_seed(0)
    first = use.weights[0]
    counts = torch.randint(0, 20, (5, len(GRID)), generator=random).double()

    def put(new: Tensor) -> Usage:
        weight = replace(first, counts=new)
        layers = [replace(x, weight=weight) if x.weight is first else x for x in use.layers]
        return replace(use, weights=(weight, *use.weights[1:]), layers=tuple(layers))

    for cost in _costs():
        together = cost(put(counts)).expand(5)
        assert together.tolist() == [cost(put(c)).item() for c in counts], cost.name


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_the_cost_of_a_network_is_that_of_its_weights(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    use = usage(net.graph, net.bits(hard=True))
    zero = torch.zeros((), dtype=torch.float64)
    for cost in _costs():
        if cost.by_weight:
            fixed = cost(Usage((), (), use.float_weights))
            parts = [Usage((w,), tuple(x for x in use.layers if x.weight is w), zero) for w in use.weights]
            sum_of_parts = sum((cost(p) - cost(Usage((), (), zero))).item() for p in parts)
            assert fixed.item() + sum_of_parts == pytest.approx(cost(use).item(), rel=1e-12), cost.name


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("hard", [False, True])
def test_gradients_are_finite_and_not_all_zero(row: ModelCase, hard: bool) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=hard)
    keep = {k: v.detach().clone().requires_grad_() for k, v in bits.keep.items()}
    weights = {k: BitDist(d.p.detach().clone().requires_grad_()) for k, d in bits.weights.items()}
    use = usage(net.graph, NetBits(keep, weights, bits.activations))
    leaves = [*keep.values(), *(d.p for d in weights.values())]
    for cost in _costs():
        value = cost(use)
        assert value.dtype == torch.float64
        assert math.isfinite(value.item())
        if value.requires_grad:
            grads = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
            found = [g for g in grads if g is not None]
            assert all(g.isfinite().all() for g in found), cost.name
            assert any(g.any() for g in found), cost.name


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_cost_is_where_the_counts_are(row: ModelCase) -> None:
    """Counts on an accelerator, and what nothing cuts on the CPU; the meta device mixes them as strictly."""
    net = attached(row.name)
    use = usage(net.graph, net.bits(hard=True))

    def moved(t: Tensor) -> Tensor:
        return t.to("meta") if t.requires_grad or t.dim() else t

    weights = {w.name: WeightUse(w.name, w.counts.to("meta"), moved(w.fan_in)) for w in use.weights}
    layers = [
        replace(x, weight=weights[x.weight.name], inputs=moved(x.inputs), positions=moved(x.positions))
        for x in use.layers
    ]
    for cost in _costs():
        if layers and cost.by_weight:
            found = cost(Usage(tuple(weights.values()), tuple(layers), use.float_weights))
            assert found.device.type == "meta", cost.name
