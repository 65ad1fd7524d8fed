"""`Fixed`: given widths go through the same pipeline, and nothing of them is chosen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zerobit as zb
from cases import case, randomised
from searches import attached, choice_parameters, scramble
from zerobit.cost import Bops, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.price import Budget, reference_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import check_limits, decide
from zerobit.errors import BudgetError, FormatError, PlanError
from zerobit.plan import ActivationPlan, Plan
from zerobit.search.attach import attach
from zerobit.search.methods.fixed import Fixed
from zerobit.search.methods.softmax import ChannelSoftmax


def _plan(name: str, seed: int = 1) -> Plan:
    """With units gone, mixed widths in every weight, and activations of 4 and 8 bit."""
    plan = decide(scramble(attached(name, ChannelSoftmax(weight_bits=(0, 2, 3, 8), activation_bits=(4, 8))), seed))
    assert any(len(kept) < plan.units[group] for group, kept in plan.kept.items())
    assert {b for w in plan.weights.values() for b in w.bits} == {0, 2, 3, 8}
    assert {a.bits for a in plan.activations.values()} == {4, 8}
    return plan


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("cost", [Size(), Bops()], ids=lambda c: c.name)
def test_a_uniform_width_costs_what_the_reference_costs(cost: AbstractCost, bits: int) -> None:
    net = attached("inverted_residual", Fixed(bits=bits))
    expected = reference_cost(net.graph, cost, bits)
    for plan in (decide(net), decide(net, Budget(cost, expected))):
        assert float(cost(usage(net.graph, plan.net_bits()))) == expected
        assert {b for w in plan.weights.values() for b in w.bits} == {bits}
        assert {a.bits for a in plan.activations.values()} == {8}
        assert all(len(kept) == plan.units[group] for group, kept in plan.kept.items())


def test_activations_have_the_given_width() -> None:
    plan = decide(attached("mlp", Fixed(bits=4, activation_bits=(6,))))
    assert {a.bits for a in plan.activations.values()} == {6}


def test_patterns_give_single_weights_their_width() -> None:
    row = case("mlp")
    net = attach(randomised(row.build()), row.inputs(4), Fixed(bits=4), bits={"fc1": 8, "fc2": (0, 2)})
    found = {name: set(weight.bits) for name, weight in decide(net).weights.items()}
    assert found["fc1.weight"] == {8}
    assert found["fc2.weight"] == {2}
    assert set().union(*found.values()) == {2, 4, 8}


@pytest.mark.parametrize("name", ["digits", "inverted_residual", "concat_branches"])
def test_a_plan_is_kept_and_computed(name: str) -> None:
    plan, row = _plan(name), case(name)
    net = attached(name, Fixed(plan=plan)).eval()
    assert choice_parameters(net) == []
    again = decide(net)
    assert again.hash == plan.hash
    for found, expected in zip((net.bits(hard=True), net.bits()), (plan.net_bits(), plan.net_bits()), strict=True):
        assert all(torch.equal(found.keep[k], v) for k, v in expected.keep.items())
        assert all(torch.equal(found.weights[k].p, v.p) for k, v in expected.weights.items())
        assert all(torch.equal(found.activations[k].p, v.p) for k, v in expected.activations.items())
    inputs = row.inputs(3, seed=1)
    with torch.no_grad():
        searched, cut = net(*inputs), apply(net, again).eval()(*inputs)
    torch.testing.assert_close(cut, searched, rtol=1e-4, atol=1e-4 * float(searched.abs().max()))


def test_a_plan_through_json_and_its_own_result_is_the_same() -> None:
    plan = Plan.from_json(_plan("digits").to_json())
    once = decide(attached("digits", Fixed(plan=plan)))
    assert once.hash == plan.hash
    assert decide(attached("digits", Fixed(plan=once))) == once


def test_the_plan_of_a_search_is_trained_from_the_start() -> None:
    """Round trip through `compress`: search, take the plan, train the float network at it."""
    model, train, val = _task()
    settings: dict[str, Any] = {"epochs": (2, 1), "device": "cpu", "progress": False, "lr": 1e-2}
    searched = zb.compress(model, train, val, budget="40%", **settings)
    fixed = zb.compress(model, train, val, method=Fixed(plan=searched.plan), **settings)
    assert fixed.plan.hash == searched.plan.hash
    assert fixed.stages[-1].size == searched.stages[-1].size
    assert f"Fixed(bits=None, activation_bits=(8,), plan_hash='{searched.plan.hash}')" == fixed.facts["method"]
    assert fixed.verify()[0].differences == 0


def test_uniform_widths_need_no_budget_and_learn() -> None:
    model, train, val = _task()
    before = _loss(model, val)
    result = zb.compress(
        model, train, val, method=Fixed(bits=4), epochs=(10, 4), lr=1e-2, distillation=0.0, device="cpu", progress=False
    )
    assert {b for w in result.plan.weights.values() for b in w.bits} == {4}
    assert _loss(result.net.eval(), val) < 0.8 * before


def _task() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(256, 12)
    y = x[:, :3].argmax(1)
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    return model, batches[:6], batches[6:]


def _loss(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(net(x), y)) for x, y in batches)


def test_a_drop_that_is_to_be_kept_is_a_mistake() -> None:
    model, train, val = _task()
    with pytest.raises(BudgetError, match=r"`max_drop` is 0\.01, but `method` has fixed widths"):
        zb.compress(model, train, val, method=Fixed(bits=4), max_drop=0.01, progress=False)


@pytest.mark.parametrize("share", ["40%", "60%"])
def test_a_budget_is_checked_and_nothing_is_projected(share: str) -> None:
    net = attached("digits", Fixed(bits=4))
    if share == "60%":
        check_limits(net, Budget(Size(), share))
        assert decide(net, Budget(Size(), share)) == decide(net)
        return
    for ask in (check_limits, decide):
        with pytest.raises(BudgetError, match=r"`budget` for size is 7,763\.2 B; the smallest reachable is 9,704 B"):
            ask(net, Budget(Size(), share))


@pytest.mark.parametrize("cost", [Size(), Bops()], ids=lambda c: c.name)
def test_a_plan_costs_what_it_costs_and_no_less(cost: AbstractCost) -> None:
    plan = _plan("digits")
    net = attached("digits", Fixed(plan=plan))
    spent = float(cost(usage(net.graph, plan.net_bits())))
    for ask in (check_limits, decide):
        ask(net, Budget(cost, spent))
        with pytest.raises(BudgetError, match=rf"`budget` for {cost.name} is"):
            ask(net, Budget(cost, spent * (1 - 1e-6)))


def test_what_is_left_of_a_budget_brings_no_unit_back() -> None:
    plan = _plan("digits")
    assert decide(attached("digits", Fixed(plan=plan)), Budget(Size(), "100%")).hash == plan.hash


class _Wide(Size):
    """A device that computes 16 channels at once."""

    name, channel_multiple = "wide", 16


def test_a_multiple_that_suits_a_device_does_not_change_a_plan() -> None:
    """Without a wish of the user's, a device's multiple of channels is for searches."""
    model, train, val = _task()
    net = attach(model, train[0][0], ChannelSoftmax())
    plan = decide(net)
    kept = {**plan.kept, "0": plan.kept["0"][:13]}
    weight = dataclasses.replace(plan.weights["0.weight"], bits=(8,) * 13 + (0,) * 3, step=None)
    odd = dataclasses.replace(plan, kept=kept, weights={**plan.weights, "0.weight": weight})
    result = zb.compress(
        model, train, val, budget={"wide": "100%"}, targets=[_Wide()], method=Fixed(plan=odd), epochs=(1, 0),
        device="cpu", progress=False,
    )  # fmt: skip
    assert result.plan.hash == odd.hash


def _other_width(plan: Plan) -> Plan:
    weights = {n: dataclasses.replace(w, bits=tuple(8 if b else 0 for b in w.bits)) for n, w in plan.weights.items()}
    return dataclasses.replace(plan, weights=weights)


def _without_a_weight(plan: Plan) -> Plan:
    return dataclasses.replace(plan, weights={n: w for n, w in plan.weights.items() if n != "conv.weight"})


def _moved_activation(plan: Plan) -> Plan:
    name, first = next(iter(plan.activations.items()))
    moved = ActivationPlan(("elsewhere",), first.bits, first.signed, first.step)
    return dataclasses.replace(plan, activations={**plan.activations, name: moved})


@pytest.mark.parametrize(
    ("change", "control", "named"),
    [
        (lambda _: _plan("inverted_residual"), {}, r"`plan` has groups"),
        (_without_a_weight, {}, r"`plan` and the network differ in \['conv\.weight'\]"),
        (_moved_activation, {}, r"`plan` and the network differ in \["),
        (_other_width, {"bits": {"conv": (0, 2, 4)}}, r"`plan` has \[8\] bit in 'conv\.weight', .* \(2, 4\)"),
        (lambda p: p, {"bits": {"*": (2, 3, 8)}}, r"`plan` keeps .* can't lose any: 0 is not among the widths"),
        (lambda p: p, {"min_channels": 16}, r"`plan` keeps .* allowed are at least 16"),
        (lambda p: p, {"frozen": ["classifier"]}, r"`plan` has groups .*'classifier': 10\}, the network has"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    change: Callable[[Plan], Plan], control: dict[str, Any], named: str
) -> None:
    row, plan = case("digits"), change(_plan("digits"))
    with pytest.raises(PlanError, match=named):
        attach(randomised(row.build()), row.inputs(2), Fixed(plan=plan), **control)


def test_several_widths_for_a_weight_are_refused() -> None:
    row = case("mlp")
    with pytest.raises(FormatError, match=r"`bits` offers \(4, 8\) to 'fc1\.weight'"):
        attach(randomised(row.build()), row.inputs(2), Fixed(bits=4), bits={"fc1": (4, 8)})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "`bits` or `plan`: neither"),
        ({"bits": 4, "plan": "plan"}, "`bits` or `plan`: both"),
        ({"bits": 1}, "`bits`"),
        ({"bits": 0}, "`bits`"),
        ({"bits": 9}, "`bits`"),
        ({"bits": 4, "activation_bits": (4, 8)}, "`activation_bits`"),
        ({"bits": 4, "activation_bits": (9,)}, "`activation_bits`"),
        ({"plan": "plan", "activation_bits": (8,)}, "`activation_bits`"),
        ({"plan": "plan.json"}, r"`plan` is 'plan.json'; allowed is a Plan; read one with Plan.from_json"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], named: str) -> None:
    given = {k: _plan("digits") if v == "plan" else v for k, v in arguments.items()}
    with pytest.raises(FormatError, match=named):
        Fixed(**given)


def test_methods_of_other_plans_are_others() -> None:
    one, other = Fixed(plan=_plan("digits", 1)), Fixed(plan=_plan("digits", 2))
    assert one == dataclasses.replace(one) != other
    assert repr(one) != repr(other), "what a checkpoint and a report tell them apart by"
    assert hash(one) == hash(Fixed(plan=_plan("digits", 1)))
