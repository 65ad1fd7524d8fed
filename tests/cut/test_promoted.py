"""A projection adds to what was trained: what is kept stays, and what gets wider computes what it did before."""

import copy
import dataclasses

import pytest
import torch

from cases import case
from searches import attached, scramble
from zerobit.cost.price import Budget
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.cut.final import finer, trained_bits
from zerobit.formats import GRID, Format
from zerobit.plan import Plan
from zerobit.search.net import SearchNet


@pytest.mark.parametrize("full_range", [False, True])
def test_every_trained_level_is_a_level_of_the_wider_width(full_range: bool) -> None:
    for trained in GRID[1:]:
        for bits in GRID[1:]:
            ratio = finer(trained, bits, full_range=full_range)
            narrow, wide = (Format(b, signed=True, full_range=full_range) for b in (trained, bits))
            if bits <= trained:
                assert ratio == 1
                continue
            assert wide.low <= ratio * narrow.low
            assert ratio * narrow.high <= wide.high
            larger = ratio + 1
            assert larger * narrow.high > wide.high or larger * narrow.low < wide.low


def _widened(net: SearchNet, plan: Plan) -> Plan:
    """All kept channels at 8 bit, with the steps that a projection gives them."""
    weights = {}
    for name, weight in plan.weights.items():
        trained = trained_bits(net, name).tolist()
        step = tuple(
            s / finer(t, 8, full_range=weight.full_range) for s, t in zip(weight.step or (), trained, strict=True)
        )
        weights[name] = dataclasses.replace(weight, bits=tuple(8 if b else 0 for b in weight.bits), step=step)
    return dataclasses.replace(plan, weights=weights)


@pytest.mark.parametrize("method", ["default", "shared", "layer", "minmax", "all_widths"])
@pytest.mark.parametrize("name", ["digits", "inverted_residual"])
@torch.no_grad()
def test_a_promotion_alone_changes_nothing(name: str, method: str) -> None:
    net = scramble(attached(name, method), 1).eval()
    inputs = case(name).inputs(4)
    plan = decide(net)
    before = copy.deepcopy(net.state_dict())
    as_searched, promoted = apply(net, plan).eval()(*inputs), apply(net, _widened(net, plan)).eval()(*inputs)
    torch.testing.assert_close(promoted, as_searched, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items()), "apply is pure"
    kept, settled = apply(net, plan).tensors(), apply(net, _widened(net, plan)).tensors()
    assert any(not torch.equal(settled[name], kept[name]) for name in plan.weights), "weights moved to their levels"


def test_a_plan_gives_promoted_channels_a_fraction_of_the_trained_step() -> None:
    net = scramble(attached("digits"), 1)
    hard, plan = decide(net), decide(net, Budget(named_cost("macs"), "100%"))
    promoted = 0
    for name, weight in plan.weights.items():
        trained = trained_bits(net, name).tolist()
        for b, t, s, old in zip(weight.bits, trained, weight.step or (), hard.weights[name].step or (), strict=True):
            if b > t and old:
                assert s == pytest.approx(old / finer(t, b, full_range=False), rel=1e-12)
                promoted += 1
    assert promoted > 0, "widths cost no MACs, so all of them rise"


@pytest.mark.parametrize("cost", ["size", "bops", "ne16", "ram"])
def test_a_hard_choice_within_the_limits_is_kept(cost: str) -> None:
    """Its weights were trained for it; what is left of a limit adds to it and takes nothing away."""
    for method in ("default", "layer"):
        net = scramble(attached("digits", method), 3)
        hard = decide(net)
        now = float(named_cost(cost)(usage(net.graph, hard.net_bits())))
        plan = decide(net, Budget(named_cost(cost), 1.1 * now))
        assert all(set(hard.kept[group]) <= set(plan.kept[group]) for group in hard.kept)
        for name, weight in hard.weights.items():
            assert all(b >= h for b, h in zip(plan.weights[name].bits, weight.bits, strict=True)), name
