"""`decide` keeps every budget, `apply` makes exactly the plan, and both are pure and repeatable."""

import copy
import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Forward, ModelCase, case
from searches import METHODS, QUICK, attached, scramble
from zerobit.cost import Bops, Macs, Size, TableLatency
from zerobit.cost.price import Budget, Strength
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.choices import smallest
from zerobit.cut.decide import check_limits, decide, read_offer
from zerobit.errors import BudgetError, PlanError
from zerobit.formats import GRID
from zerobit.plan import Plan
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet

COSTS = {"size": Size(), "macs": Macs(), "bops": Bops(), "mpic": TableLatency.load("mpic")}
SHARES = ("15%", "40%", "80%")


def _outputs(net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in torch.utils._pytree.tree_leaves(net(*inputs)) if t is not None]


def _reachable(net: SearchNet, cost_name: str) -> float:
    return float(COSTS[cost_name](usage(net.graph, smallest(read_offer(net)[0]).net_bits())))


def _cost(net: SearchNet, plan: Plan, cost_name: str) -> float:
    return float(COSTS[cost_name](usage(net.graph, plan.net_bits())))


def _check_coupling(net: SearchNet, plan: Plan) -> None:
    """What shares a choice in training has one width in the plan."""
    method = net.method
    for name, weight in plan.weights.items():
        if net.weight_slot(name).quantizer.per_layer:
            assert len({b for b in weight.bits if b}) <= 1
    if method.coupled:
        for group in net.graph.groups:
            for unit in range(group.units):
                rows = {n: net.graph.row_units(n).get(group.name, np.array([])) for n in plan.weights}
                found = {plan.weights[n].bits[c] for n, u in rows.items() for c in np.flatnonzero(u == unit)}
                assert len(found) <= 1
    for group in net.graph.groups:
        least = min(method.min_channels, group.units)
        assert len(plan.kept[group.name]) >= (group.units if group.frozen else least)
    offered = {*method.widths, 0}
    assert all(set(w.bits) <= offered for w in plan.weights.values())


#: All methods on a small network; the main methods on a larger one, where 5 % is not a single unit.
MAIN = ("default", "shared", "layer")
TABLE = [
    pytest.param(name, method, cost, marks=[] if method in MAIN or cost == "size" else [pytest.mark.matrix])
    for name in ("digits", "inverted_residual")
    for method in METHODS
    for cost in COSTS
    if (cost in ("size", "mpic") and (name != "digits" or method in MAIN)) or (method == "default" and name != "digits")
]


@pytest.mark.parametrize(("name", "method", "cost"), TABLE)
def test_budgets_are_kept_and_spent(name: str, method: str, cost: str) -> None:
    for seed, share in zip((1, 2, 3), SHARES, strict=True):
        net = scramble(attached(name, method), seed)
        budget = Budget(COSTS[cost], share)
        limit = budget.limit(net.graph)
        if _reachable(net, cost) > limit:
            with pytest.raises(BudgetError, match=r"smallest reachable"):
                decide(net, budget)
            continue
        plan = decide(net, budget)
        spent = _cost(net, plan, cost)
        assert spent <= limit
        _check_coupling(net, plan)
        largest = _widest(net, cost)
        if name == "digits" and not _per_layer(net):
            assert spent >= 0.95 * min(limit, largest)
        _assert_nothing_more_fits(net, plan, cost, limit)


def _per_layer(net: SearchNet) -> bool:
    """Whether some weight has one width for all its channels, though it could have several."""
    return any(
        slot.quantizer.per_layer and len(slot.quantizer.widths) > 1
        for slot in (net.weight_slot(name) for name in net.graph.searched_weights)
    )


def _widest(net: SearchNet, cost: str) -> float:
    """Cost of the network with every unit kept and everything at the widest offered width."""
    weights = {
        n: dataclasses.replace(w, bits=(max(net.method.widths),) * len(w.bits), step=None)
        for n, w in decide(net).weights.items()
    }
    kept = {g.name: tuple(range(g.units)) for g in net.graph.groups}
    return _cost(net, dataclasses.replace(decide(net), kept=kept, weights=weights), cost)


def _assert_nothing_more_fits(net: SearchNet, plan: Plan, cost: str, limit: float) -> None:
    """No channel can be a step wider: tried one by one, for methods whose channels choose alone."""
    method = net.method
    if method.coupled or _per_layer(net):
        return
    now = _cost(net, plan, cost)
    for name, weight in plan.weights.items():
        for b in sorted({b for b in weight.bits if b}):
            wider = [w for w in method.widths if w > b]
            channel = weight.bits.index(b)
            values = [_cost(net, _edit(plan, name, channel, w), cost) for w in wider]
            dearer = [v for v in values if v > now * (1 + 1e-9)]
            assert not dearer or min(dearer) > limit, (name, channel, b)


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_budgets_are_kept_on_every_network(row: ModelCase) -> None:
    for method, cost in (("default", "size"), ("shared", "mpic")):
        net = scramble(attached(row.name, method), 4)
        least, full = _reachable(net, cost), Budget(COSTS[cost], "100%").limit(net.graph)
        limit = least + (0.3 if method == "default" else 0.0) * max(0.0, full - least)
        plan = decide(net, Budget(COSTS[cost], limit * (1 + 1e-12)))
        assert _cost(net, plan, cost) <= limit * (1 + 1e-9)
        _check_coupling(net, plan)
        small = apply(net, plan)
        assert all(o.isfinite().all() for o in _outputs(small.eval(), row.inputs(2)))


@pytest.mark.parametrize(
    ("method", "cost"), [(m, c) for m in METHODS for c in COSTS if "default" in m or c == "size" or m == "all_widths"]
)
def test_an_infeasible_budget_names_what_can_be_reached(method: str, cost: str) -> None:
    net = attached("inverted_residual", method)
    for ask in (check_limits, decide):
        with pytest.raises(BudgetError, match=rf"`budget` for {cost} is .*held by") as caught:
            ask(net, Budget(COSTS[cost], 1))
    found = re.search(r"smallest reachable is ([0-9.,e+]+) ", str(caught.value))
    assert found is not None
    reachable = float(found.group(1).replace(",", ""))
    assert reachable == pytest.approx(_reachable(net, cost), rel=1e-5)
    plan = decide(net, Budget(COSTS[cost], reachable * (1 + 1e-5)))
    assert _cost(net, plan, cost) == pytest.approx(reachable, rel=1e-5)
    with pytest.raises(BudgetError):
        decide(net, Budget(COSTS[cost], reachable * (1 - 1e-4)))


def test_float_weights_are_named_where_they_hold_a_budget() -> None:
    row = case("recurrent")
    net = attach(row.build(), row.inputs(2), ChannelSoftmax(), frozen=["lstm"])
    with pytest.raises(BudgetError, match=r"held by .*float"):
        check_limits(net, Budget(Size(), 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["concat_branches"])
def test_without_a_budget_the_plan_is_the_hard_choice(name: str, method: str) -> None:
    net = scramble(attached(name, method), 5)
    hard = net.bits(hard=True)
    for price in (None, Strength(Size(), 1.0)):
        bits = decide(net, price).net_bits()
        assert all(torch.equal(bits.keep[k], v.double()) for k, v in hard.keep.items())
        assert all(torch.equal(bits.weights[k].p, v.p.round()) for k, v in hard.weights.items())
        assert all(torch.equal(bits.activations[k].bits, v.bits) for k, v in hard.activations.items())


def test_a_loose_budget_takes_nothing_away() -> None:
    net = scramble(attached("digits"), 5)
    hard, plan = decide(net), decide(net, Budget(Size(), "100%"))
    for name, weight in plan.weights.items():
        assert all(a >= b for a, b in zip(weight.bits, hard.weights[name].bits, strict=True))


def test_the_preferred_units_stay() -> None:
    """With one group to cut and equal costs, the budget takes the units of the lowest gates."""
    net = attached("mlp", ChannelSoftmax(weight_bits=(0, 8)))
    gate = net.group_choice(net.graph.groups[0])
    assert gate is not None
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate.get_parameter("gate").copy_(1.0 + order.float())
        other = net.group_choice(net.graph.groups[1])
        assert other is not None
        other.get_parameter("gate").fill_(30.0)
    kept = decide(net, Budget(Size(), "60%")).kept["fc1"]
    assert 1 < len(kept) < 12
    assert set(kept) == set(torch.argsort(order, descending=True)[: len(kept)].tolist())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["inverted_residual"])
def test_cut_network_computes_what_the_search_network_evaluates(name: str, method: str) -> None:
    row = case(name)
    net = scramble(attached(name, method), 6).eval()
    small = apply(net, decide(net))
    _assert_equal_outputs(net, small, row)


@pytest.mark.parametrize(
    ("row", "method"),
    [(row, m) for row in CASES for m in ("default", "shared") if m == "default" or row.name in QUICK],
    ids=lambda v: getattr(v, "name", v),
)
def test_cut_networks_compute_what_they_were_searched_as(row: ModelCase, method: str) -> None:
    net = scramble(attached(row.name, method), 7).eval()
    small = apply(net, decide(net))
    assert not small.training
    _assert_equal_outputs(net, small, row)
    assert apply(net.train(), decide(net)).training


def _assert_equal_outputs(net: SearchNet, small: QuantNet, row: ModelCase) -> None:
    inputs = row.inputs(3, seed=1)
    for a, b in zip(_outputs(net, inputs), _outputs(small.eval(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
        assert a.shape == b.shape


def test_channels_are_gone_for_good() -> None:
    net = scramble(attached("digits"), 8)
    plan = decide(net)
    small = apply(net, plan)
    for name, weight in plan.weights.items():
        assert len(small.tensors()[name]) == sum(b > 0 for b in weight.bits)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for n, p in net.named_parameters() if not n.startswith("slots.")
    )


def test_apply_is_pure() -> None:
    net = scramble(attached("digits"), 9)
    plan, state = decide(net), copy.deepcopy(net.state_dict())
    code = str(net.code)
    first = apply(net, plan)
    assert decide(net) == plan
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(3.0)
    assert str(net.code) == code
    assert all(torch.equal(t, state[k]) for k, t in net.state_dict().items())
    second = apply(net, plan)
    assert not any(t.eq(3.0).all() for t in second.tensors().values())


def test_apply_of_a_plan_to_its_own_result_is_the_identity() -> None:
    net = scramble(attached("digits"), 9)
    plan = decide(net)
    once = apply(net, plan)
    twice = apply(once, plan)
    assert twice is not once
    assert twice.plan == once.plan
    assert {k: v.tolist() for k, v in twice.state_dict().items()} == {
        k: v.tolist() for k, v in once.state_dict().items()
    }


def _edit(plan: Plan, weight: str, channel: int, bits: int) -> Plan:
    old = plan.weights[weight]
    new = dataclasses.replace(old, bits=(*old.bits[:channel], bits, *old.bits[channel + 1 :]), step=None)
    return dataclasses.replace(plan, weights={**plan.weights, weight: new})


def _lower_bits(plan: Plan) -> Plan:
    for name in plan.weights:
        plan = _edit(plan, name, 0, 2)
    return plan


def test_a_plan_edited_by_hand_is_made_real() -> None:
    net = attached("digits")
    plan = decide(net)
    unit = 3
    kept = tuple(u for u in plan.kept["block1.conv1"] if u != unit)
    edited = _edit(dataclasses.replace(plan, kept={**plan.kept, "block1.conv1": kept}), "block1.conv1.weight", unit, 0)
    edited = _edit(edited, "conv.weight", 5, 2)
    edited = Plan.from_json(edited.to_json())
    small = apply(net, edited).eval()
    assert small.tensors()["block1.conv1.weight"].shape[0] == 15
    assert small.tensors()["block1.conv2.weight"].shape[1] == 15
    slot = small.weight_slot("conv.weight")
    assert slot.bits[5] == 2
    assert set(slot.integers(small.tensors()["conv.weight"])[5].flatten().tolist()) <= {-1, 0, 1}
    assert all(o.isfinite().all() for o in _outputs(small, case("digits").inputs(2)))
    same = apply(net, decide(net)).eval()
    near = _outputs(small, case("digits").inputs(2)), _outputs(same, case("digits").inputs(2))
    assert not torch.equal(near[0][0], near[1][0])


def test_plans_that_do_not_fit_are_refused() -> None:
    net, other = attached("digits"), attached("mlp")
    plan = decide(net)
    removed = dataclasses.replace(plan.weights["conv.weight"], bits=(0,) * 16, step=None)
    shorter = dataclasses.replace(plan.weights["classifier.weight"], bits=(8,) * 9, step=None)
    longer = dataclasses.replace(plan.weights["conv.weight"], bits=(8,) * 17, step=None)
    fixed = dataclasses.replace(plan, kept={**plan.kept, "classifier": (0, 1)})
    missing = dict(itertools.islice(plan.activations.items(), 3))
    without = {k: v for k, v in plan.weights.items() if k != "conv.weight"}
    for broken, named in (
        (decide(other), "`plan` has groups"),
        (dataclasses.replace(plan, weights={**plan.weights, "conv.weight": removed}), "`weights.conv.weight.bits`"),
        (_edit(plan, "conv.weight", 3, 0), "`weights.conv.weight.bits` is 0 at channel 3"),
        (dataclasses.replace(plan, kept={**plan.kept, "conv": tuple(range(15))}), "`weights.*bits`"),
        (
            dataclasses.replace(plan, weights={**plan.weights, "classifier.weight": shorter}),
            "`weights.classifier.weight.bits`",
        ),
        (dataclasses.replace(plan, weights={**plan.weights, "conv.weight": longer}), "`weights.conv.weight.bits`"),
        (fixed, "`kept.classifier`.*fixed"),
        (dataclasses.replace(plan, weights=without), "conv.weight"),
        (dataclasses.replace(plan, activations=missing), "`plan` and the network differ"),
    ):
        with pytest.raises(PlanError, match=named):
            apply(net, broken)


def test_a_weight_outside_all_groups_keeps_its_channels() -> None:
    """An op without a rule reads it."""
    model = Forward(
        lambda m, x: m.last(torch.bilinear(x, x, m.pair.weight, None)), pair=nn.Bilinear(3, 3, 4), last=nn.Linear(4, 2)
    )
    net = attach(model.eval(), torch.randn(4, 3), METHODS["default"])
    with pytest.raises(PlanError, match=r"`weights\.pair\.weight\.bits` is 0 at channel 1, which can't be removed"):
        apply(net, _edit(decide(net), "pair.weight", 1, 0))


def test_another_plan_for_a_network_that_is_cut_is_refused() -> None:
    net = scramble(attached("digits"), 9)
    small = apply(net, decide(net))
    with pytest.raises(PlanError, match=r"was cut by plan"):
        apply(small, _lower_bits(decide(net)))


@pytest.mark.parametrize("method", ["default", "shared", "layer"])
def test_the_same_choices_give_the_same_plan(method: str) -> None:
    plans = []
    for _ in range(2):
        net = scramble(attached("inverted_residual", method), 10)
        plans.append(decide(net, Budget(Bops(), "30%")))
    assert plans[0] == plans[1]
    assert plans[0].hash == plans[1].hash


def test_more_units_than_a_group_has_can_be_asked_to_stay() -> None:
    net = scramble(attached("digits", ChannelSoftmax(min_channels=20)), 11, spread=5.0)
    plan = decide(net, Budget(Size(), "40%"))
    assert len(plan.kept["conv"]) == 16
    assert len(plan.kept["block2.conv1"]) >= 20
    assert set(GRID) >= {b for w in plan.weights.values() for b in w.bits}
