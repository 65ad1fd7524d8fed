"""The user's hand: patterns freeze layers, fix widths, and set how many channels stay."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import case, randomised
from searches import METHODS, QUICK, scramble
from zerobit.cost import Bops, Macs, Size
from zerobit.cost.price import Budget
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import check_limits, decide
from zerobit.cut.store import load, save
from zerobit.errors import BudgetError, FormatError
from zerobit.graph.ir import FROZEN
from zerobit.plan import Plan
from zerobit.search.attach import attach
from zerobit.search.choice import UnitRule
from zerobit.search.net import SearchNet


def _net(name: str, method: str = "default", **control: Any) -> SearchNet:
    row = case(name)
    torch.manual_seed(0)
    return attach(randomised(row.build()), row.inputs(4), METHODS[method], **control)


def _hard_bits(net: SearchNet, weight: str) -> set[int]:
    return {int(b) for b in net.bits(hard=True).weights[weight].bits.tolist() if b}


# ---- how many units may stay


@pytest.mark.parametrize("units", range(1, 14))
def test_a_rule_knows_the_counts_that_are_allowed(units: int) -> None:
    for least, multiple in itertools.product(range(1, 16), range(1, 16)):
        rule = UnitRule(least, multiple)
        allowed = [n for n in range(1, units + 1) if n == units or (n % multiple == 0 and n >= least)]
        assert rule.fewest(units) == allowed[0]
        for count in range(units + 1):
            near = min(abs(n - count) for n in allowed)
            assert rule.nearest(count, units) == max(n for n in allowed if abs(n - count) == near)
        for lower, higher in itertools.pairwise(allowed):
            assert rule.below(higher) == lower
            assert rule.above(lower, units) == higher


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_a_rule_keeps_what_is_wanted_first_and_the_rest_by_score(
    units: list[tuple[bool, int]], least: int, multiple: int
) -> None:
    wanted = torch.tensor([w for w, _ in units])
    score = torch.tensor([float(s) for _, s in units])
    rule = UnitRule(least, multiple)
    kept = rule.apply(wanted, score)
    assert int(kept.sum()) == rule.nearest(int(wanted.sum()), len(units))
    order = torch.stack([wanted.double(), score.double()], 1).tolist()
    stay = [o for o, k in zip(order, kept.tolist(), strict=True) if k]
    gone = [o for o, k in zip(order, kept.tolist(), strict=True) if not k]
    assert not stay or not gone or min(stay) >= max(gone)
    if int(kept.sum()) == int(wanted.sum()):
        assert torch.equal(kept, wanted)


COUNTS = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])


@COUNTS
@given(
    st.sampled_from(["digits", "inverted_residual", "concat_branches", "two_inputs"]),
    st.sampled_from(["default", "shared", "layer", "softmax"]),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from(["size", "macs", "bops"]),
    st.floats(0.15, 1.0),
    st.integers(0, 99),
)
def test_enough_channels_in_multiples_stay_everywhere(
    name: str, method: str, least: int, multiple: int, cost: str, share: float, seed: int
) -> None:
    """In the hard choice, in the plan without and with a budget, and in the network that is cut."""
    net = scramble(_net(name, method, min_channels=least, multiple_of=multiple), seed, spread=4.0)
    budget = Budget({"size": Size(), "macs": Macs(), "bops": Bops()}[cost], f"{100 * share}%")
    plans = [decide(net)]
    try:
        plans.append(decide(net, budget))
        assert float(budget.cost(usage(net.graph, plans[1].net_bits()))) <= budget.limit(net.graph)
    except BudgetError:
        with pytest.raises(BudgetError):
            check_limits(net, budget)
    hard = net.bits(hard=True)
    for group in net.graph.groups:
        counts = [int(hard.keep[group.name].sum()), *(len(plan.kept[group.name]) for plan in plans)]
        for count in counts:
            assert count == group.units or (count >= least and count % multiple == 0), (group.name, counts)
    small = apply(net, plans[-1])
    left = {g.name: g.units for g in small.graph.groups}
    assert all(left.get(name, len(kept)) == len(kept) for name, kept in plans[-1].kept.items())


@pytest.mark.parametrize("method", ["default", "shared"])
def test_what_is_left_of_a_budget_is_spent_in_blocks(method: str) -> None:
    """One block more of any group does not fit; priced by hand, one group at a time."""
    net = scramble(_net("digits", method, multiple_of=4), 3, spread=4.0)
    budget = Budget(Macs(), "50%")
    plan = decide(net, budget)
    limit = budget.limit(net.graph)
    assert float(Macs()(usage(net.graph, plan.net_bits()))) <= limit
    for group in net.graph.groups:
        gone = [u for u in range(group.units) if u not in plan.kept[group.name]]
        if gone:
            more = plan.net_bits()
            more.keep[group.name][gone[:4]] = 1
            for weight, dist in more.weights.items():
                unit = torch.as_tensor(net.graph.row_units(weight).get(group.name, []))
                rows = torch.isin(unit, torch.tensor(gone[:4]))
                dist.p[torch.nonzero(rows)[:, 0]] = torch.eye(8, dtype=torch.float64)[-1]
            assert float(Macs()(usage(net.graph, more))) > limit


def test_numbers_by_pattern_hold_for_the_groups_of_the_weights() -> None:
    net = _net("digits", min_channels={"block1.*": 5, "conv": 9}, multiple_of={"block2.conv1": 4, "block2": 6})
    rules = net.options.rules
    assert rules["conv"].at_least == 9
    assert rules["block1.conv1"] == UnitRule(5, 1)
    assert rules["block2.conv1"] == UnitRule(1, 12), "several patterns: the least common multiple"
    scrambled = scramble(net, 0, spread=50.0)
    with torch.no_grad():
        for name, parameter in scrambled.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(-9.0)
    kept = decide(scrambled).kept
    assert len(kept["block1.conv1"]) == 5
    assert len(kept["conv"]) == 9
    assert len(kept["block2.conv1"]) == 12


def test_the_larger_of_the_methods_and_the_users_number_holds() -> None:
    assert _net("digits", "three_channels", min_channels=2).options.rules["conv"].at_least == 3
    assert _net("digits", "three_channels", min_channels=5).options.rules["conv"].at_least == 5


# ---- widths


@pytest.mark.parametrize("method", ["default", "shared", "layer", "no_pruning", "softmax", "published"])
def test_a_width_that_is_fixed_is_not_searched(method: str) -> None:
    net = scramble(_net("digits", method, bits={"conv": 8, "block1.conv1": (4, 8)}), 2)
    assert net.weight_slot("conv.weight").quantizer.widths == (8,)
    for plan in (decide(net), decide(net, Budget(Size(), "70%"))):
        assert set(plan.weights["conv.weight"].bits) == {8}, "0 is not offered: all channels stay"
        assert set(plan.weights["block1.conv1.weight"].bits) <= {4, 8}
    loss = net.train()(*case("digits").inputs(4)).sum() + Size()(usage(net.graph, net.bits()))
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("method", ["default", "shared", "no_pruning", "shared_no_pruning"])
def test_channels_go_if_zero_is_offered_to_all_that_lose_them(method: str) -> None:
    """The group of `conv` holds the second layers of the first block, too."""
    net = _net("digits", method, bits={"*": (0, 4, 8)})
    assert net.options.fixed.keys() == {g.name for g in net.graph.groups if g.frozen}
    partly = _net("digits", method, bits={"*": (0, 4, 8), "block1.conv2": 4})
    assert "block1.conv2.weight" in partly.options.fixed["conv"]
    assert "block1.conv1" not in partly.options.fixed
    plan = decide(scramble(partly, 1, spread=6.0))
    assert len(plan.kept["conv"]) == 16
    assert set(plan.weights["block1.conv2.weight"].bits) == {4}
    assert len(plan.kept["block1.conv1"]) < 16
    small = apply(partly, plan).eval()
    torch.testing.assert_close(*_both(partly, small, "digits"), rtol=1e-4, atol=1e-4)


def _both(net: SearchNet, small: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        (x,) = case(name).inputs(3, seed=1)
        return net.eval()(x), small(x)


def test_the_last_pattern_that_matches_holds() -> None:
    net = _net("digits", bits={"*": 8, "block1": (2, 4), "block1.conv2.weight": 2})
    assert net.options.weight_bits["conv.weight"] == (8,)
    assert net.options.weight_bits["block1.conv1.weight"] == (2, 4)
    assert net.options.weight_bits["block1.conv2.weight"] == (2,)


@pytest.mark.parametrize("pattern", ["block1", "block1.*", "block1.conv?", "*ck1.conv[12].weight"])
def test_a_pattern_matches_parameters_and_the_modules_that_hold_them(pattern: str) -> None:
    net = _net("digits", bits={pattern: 2})
    fixed = {name for name, bits in net.options.weight_bits.items() if bits == (2,)}
    assert {"block1.conv1.weight", "block1.conv2.weight"} <= fixed
    assert all(name.startswith("block1.") for name in fixed)


def test_a_tied_weight_answers_to_both_of_its_names() -> None:
    for pattern in ("left", "right"):
        assert _net("tied", bits={pattern: 4}).options.weight_bits["left.weight"] == (4,)


# ---- frozen layers


@pytest.mark.parametrize("name", QUICK)
def test_nothing_changes_in_a_network_that_is_frozen(name: str) -> None:
    row = case(name)
    model = randomised(row.build())
    net = attach(model, row.inputs(4), METHODS["default"], frozen=["*"])
    assert net.graph.searched_weights == ()
    assert not net.choosing_groups
    plan = decide(net, Budget(Size(), "100%"))
    small = apply(net, plan).eval()
    with torch.no_grad():
        x = row.inputs(3, seed=2)
        assert torch.equal(_first(small(*x)), _first(model(*x)))
    assert not any(p.requires_grad for n, p in small.named_parameters() if n in dict(model.named_parameters()))


def _first(result: Any) -> Tensor:
    return next(t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))


@pytest.mark.parametrize("method", ["default", "shared"])
def test_a_frozen_layer_keeps_its_weights_and_its_channels(method: str) -> None:
    row = case("digits")
    model = randomised(row.build())
    net = scramble(attach(model, row.inputs(4), METHODS[method], frozen=["block1.conv2", "classifier.*"]), 1, 6.0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    (net.train()(*row.inputs(4)).sum()).backward()
    torch.optim.SGD([p for p in net.parameters() if p.grad is not None], 0.1).step()
    plan = decide(net)
    small = apply(net, plan)
    assert not {"block1.conv2.weight", "classifier.weight"} & set(plan.weights)
    for name in ("block1.conv2.weight", "classifier.weight", "classifier.bias"):
        assert torch.equal(small.tensors()[name], before[name])
    assert {op.reason for op in net.graph.barriers} == {FROZEN}
    assert any(len(kept) < plan.units[group] for group, kept in plan.kept.items())
    torch.testing.assert_close(*_both(net, small.eval(), "digits"), rtol=1e-4, atol=1e-4)


def test_a_frozen_batch_norm_is_not_folded() -> None:
    plain, frozen = _net("digits"), _net("digits", frozen=["*bn*"])
    assert not any("bn" in name for name in plain.tensors())
    assert any("bn" in name for name in frozen.tensors())


def test_a_frozen_network_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    net = scramble(_net("digits", frozen=["block1.conv2", "classifier"]), 1)
    small = apply(net, decide(net)).eval()
    path = save(small, tmp_path / "small.safetensors")
    again = load(path, case("digits").build())
    assert again.structure.frozen == small.structure.frozen != frozenset()
    (x,) = case("digits").inputs(3)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


class _Reparametrised(nn.Module):
    """A convolution whose weight is computed from two others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 6, 3))
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x))).mean((2, 3))


def test_a_computed_weight_is_frozen_by_the_name_of_its_layer(tmp_path: Path) -> None:
    x, model = torch.randn(4, 2, 5, 5), _Reparametrised().eval()
    assert "conv.weight" in attach(model, x, METHODS["default"]).graph.searched_weights
    net = attach(model, x, METHODS["default"], frozen=["conv"])
    assert net.graph.searched_weights == ("last.weight",)
    small = apply(net, decide(net)).eval()
    again = load(save(small, tmp_path / "small.safetensors"), copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


# ---- mistakes


@pytest.mark.parametrize(
    ("control", "named"),
    [
        ({"frozen": ["clasifier.*"]}, r"`frozen` has the pattern 'clasifier\.\*'.*nothing.*'classifier"),
        ({"frozen": ["block1.*", "head"]}, r"`frozen` has the pattern 'head'"),
        ({"frozen": "head"}, r"`frozen` is 'head'; allowed is a list"),
        ({"frozen": None}, r"`frozen` is None; allowed is a list"),
        ({"frozen": [0]}, r"`frozen` is \[0\]; allowed is a list"),
        ({"bits": {"head": 4.0}}, r"`bits\['head'\]` holds 4.0"),
        ({"bits": {"head": None}}, r"`bits\['head'\]` holds None"),
        ({"bits": {"stem": 8}}, r"`bits` has the pattern 'stem', which matches nothing"),
        ({"bits": {"block1.conv9": 8}}, r"nearest are \['block1\.conv[12]'"),
        ({"bits": {"*.bias": 8}}, r"only conv\.bias.*does not choose"),
        ({"bits": {"conv": 1}}, r"`bits\['conv'\]`"),
        ({"bits": {"conv": 0}}, r"`bits\['conv'\]`"),
        ({"bits": {"conv": (2, 9)}}, r"`bits\['conv'\]`"),
        ({"bits": {"conv": ()}}, r"`bits\['conv'\]`"),
        ({"bits": 8}, r"`bits` is 8; allowed is pattern -> width"),
        ({"bits": {"conv": 8}, "frozen": ["conv"]}, r"`bits` has the pattern 'conv', which matches only conv"),
        ({"min_channels": 0}, r"`min_channels` is 0"),
        ({"min_channels": 2.5}, r"`min_channels` is 2\.5"),
        ({"min_channels": {"conv": 0}}, r"`min_channels` is \{'conv': 0\}"),
        ({"min_channels": {"stem": 4}}, r"`min_channels` has the pattern 'stem'"),
        ({"multiple_of": -8}, r"`multiple_of` is -8"),
        ({"multiple_of": {"stem": 4}}, r"`multiple_of` has the pattern 'stem'"),
    ],
)
def test_mistakes_are_named(control: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        _net("digits", **control)


def test_without_wishes_nothing_is_different() -> None:
    plain, asked = (scramble(_net("digits", **c), 1) for c in ({}, {"min_channels": 1, "multiple_of": 1, "bits": {}}))
    assert isinstance(decide(plain), Plan)
    assert decide(plain) == decide(asked)
