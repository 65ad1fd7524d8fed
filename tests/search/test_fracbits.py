"""FracBits: blends and their gradients against plain formulas, rounding, and an offset that meets a budget."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cases import case, randomised
from searches import METHODS, attached, scramble
from zerobit.bits import NetBits
from zerobit.cost import Macs, Size
from zerobit.cost.price import Budget
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import FormatError
from zerobit.formats import GRID
from zerobit.quant.slot import ActivationSlot
from zerobit.search.attach import attach
from zerobit.search.choice import UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.methods.fracbits import FracBits, fractional
from zerobit.search.net import SearchNet
from zerobit.search.widths.fractional import (
    FractionalActivationSlot,
    FractionalChoice,
    FractionalQuantizer,
    FractionalWidth,
    neighbour_shares,
)
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, search

ROWS = [name for name, how in METHODS.items() if isinstance(how, FracBits)]


def _width(values: list[float], widths: tuple[int, ...], offset: float = 0.0) -> FractionalWidth:
    choice = FractionalWidth(len(values), widths, 8, per_layer=False)
    return _set(choice, values, offset)


def _units(
    values: list[float], widths: tuple[int, ...], offset: float = 0.0, *, removable: bool = True, rule: Any = None
) -> FractionalChoice:
    choice = FractionalChoice(len(values), widths, 8, removable=removable, rule=rule or UnitRule())
    return _set(choice, values, offset)


def _set(choice: Any, values: list[float], offset: float) -> Any:
    with torch.no_grad():
        choice.width.copy_(torch.tensor(values))
        choice.offset.fill_(offset)
    return choice


@pytest.mark.parametrize(
    ("grid", "width", "shares"),
    [
        ((2, 3, 8), 2.25, (0.75, 0.25, 0)),
        ((2, 3, 8), 2.0, (1, 0, 0)),
        ((2, 3, 8), 3.0, (0, 1, 0)),
        ((2, 3, 8), 4.25, (0, 0.75, 0.25)),
        ((2, 3, 8), 8.0, (0, 0, 1)),
        ((2, 3, 8), 9.5, (0, 0, 1)),
        ((2, 3, 8), -4.0, (1, 0, 0)),
        ((0, 2, 4), 0.5, (0.75, 0.25, 0)),
        ((0, 2, 4), 0.0, (1, 0, 0)),
        ((8,), 5.0, (1,)),
    ],
)
def test_a_width_is_a_blend_of_its_neighbours(grid: tuple[int, ...], width: float, shares: tuple[float, ...]) -> None:
    found = neighbour_shares(torch.tensor([width]), grid)
    assert found.tolist() == [list(shares)]


@pytest.mark.parametrize("grid", [(2, 3, 8), (0, 2, 4, 8), GRID])
def test_slopes_of_the_blend_are_differences(grid: tuple[int, ...]) -> None:
    """On a point that towards the next one, at the last one that from the one before; outside as at the end."""
    h = 1e-6
    values = torch.randn(len(grid), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = [*grid, *((a + b) / 2 for a, b in itertools.pairwise(grid))]
    outside = [(grid[0] - 3.0, float(grid[0])), (grid[-1] + 2.0, float(grid[-1]))]
    for at, place in [*((float(w), float(w)) for w in inner), *outside]:
        width = torch.tensor([at], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((neighbour_shares(width, grid) @ values).sum(), width)
        step = -h if place == grid[-1] else h
        ends = [_blended(w, grid) @ values for w in (place, place + step)]
        assert float(slope) == pytest.approx(float(ends[1] - ends[0]) / step, rel=1e-6), at


def _blended(width: float, grid: tuple[int, ...]) -> Tensor:
    return neighbour_shares(torch.tensor([width], dtype=torch.float64), grid)[0]


def _quantizer(widths: tuple[int, ...], at: list[float]) -> tuple[FractionalQuantizer, Tensor]:
    w = torch.randn(len(at), 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    quantizer = FractionalQuantizer(w, widths, _width(at, widths)).double()
    return quantizer, w


def _copy(quantizer: FractionalQuantizer, w: Tensor, column: int) -> Tensor:
    """One quantised copy, with plain functions."""
    top = 2 ** (quantizer.widths[column] - 1) - 1
    step = quantizer.steps(w).detach()[:, column, None]
    return step * (w / step).round().clamp(-top, top)


#: Widths between points, on a point, at both ends and beyond them.
_AT = [2.25, 3.0, 5.5, 8.0, 2.0, 9.0, 1.0, 7.999]


def test_the_gradient_of_a_width_is_the_difference_of_its_copies() -> None:
    """arXiv 2007.02017: <g, Q_h - Q_l> / (h - l); the function is piecewise linear, so differences are exact."""
    widths = (2, 3, 8)
    quantizer, w = _quantizer(widths, _AT)
    up = torch.randn(w.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert quantizer.choice is not None
    (quantizer(w) * up).sum().backward()
    found = quantizer.choice.width.grad
    assert found is not None
    copies = [(up * _copy(quantizer, w, j)).sum(1) for j in range(3)]
    for c, b in enumerate(_AT):
        low = 0 if b < 3 else 1
        assert float(found[c]) == pytest.approx(
            float(copies[low + 1][c] - copies[low][c]) / (widths[low + 1] - widths[low]), rel=1e-9
        )
        if 2 < b < 8 and b != 3:
            assert float(found[c]) == pytest.approx(_slope(quantizer, w, up, c), rel=1e-6)


def _slope(quantizer: FractionalQuantizer, w: Tensor, up: Tensor, channel: int, h: float = 1e-5) -> float:
    assert quantizer.choice is not None
    values, width = [], quantizer.choice.width
    with torch.no_grad():
        for step in (h, -2 * h, h):
            width[channel] += step
            values.append(float((quantizer(w) * up).sum()))
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("gate", [False, True])
def test_two_copies_are_all_that_have_a_share(gate: bool) -> None:
    """Values and all gradients are those of the mixture of all copies; also where a closed gate hides the shares."""
    factor = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0]).double() if gate else None
    results = []
    for dense in (False, True):
        quantizer, w = _quantizer((2, 3, 5, 8), _AT)
        assert quantizer.choice is not None
        w.requires_grad_()
        gates = None if factor is None else factor.clone().requires_grad_()
        if dense:
            shares = quantizer.choice() if gates is None else quantizer.choice() * gates[:, None]
            out = quantizer.grid.mix(w, shares)
        else:
            out = quantizer(w, gates)
        (out * torch.linspace(-1, 1, out.numel()).double().reshape(out.shape)).sum().backward()
        trained = [w, quantizer.choice.width, quantizer.grid.log_step, *([] if gates is None else [gates])]
        results.append([out.detach(), *(p.grad for p in trained)])
    for pair, dense in zip(*results, strict=True):
        torch.testing.assert_close(pair, dense, rtol=1e-12, atol=1e-12)
    steps = results[0][3]
    assert torch.equal(steps[0] != 0, torch.tensor([True, True, False, False])) or gate
    if gate:
        assert (results[0][4] != 0).all(), "a closed gate hears from the copies it would open"


def test_shares_of_a_group_reach_the_same_copies() -> None:
    choice = _units([0.0, 0.5, 2.0, 2.5, 4.0, 6.0, 8.0], (2, 4, 8)).double()
    quantizer, w = _quantizer((2, 4, 8), [8.0] * 7)
    quantizer.choice = None
    (quantizer(w, None, choice().shares) * w).sum().backward()
    copies = [(w * _copy(quantizer, w, j)).sum(1) for j in range(3)]
    expected = [
        copies[0][0] / 2, copies[0][1] / 2, *((copies[1][c] - copies[0][c]) / 2 for c in (2, 3)),
        *((copies[2][c] - copies[1][c]) / 4 for c in (4, 5, 6)),
    ]  # fmt: skip
    torch.testing.assert_close(choice.width.grad, torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("offset", "rounded"),
    [(0.0, [2, 2, 3, 4, 8, 8]), (0.5, [2, 3, 4, 4, 8, 8]), (2.0, [4, 4, 4, 8, 8, 8]), (-8.0, [2] * 6)],
)
def test_the_hard_choice_is_the_nearest_width(offset: float, rounded: list[int]) -> None:
    """The narrower one of two equally near: 2.5 becomes 2."""
    choice = _width([-1.0, 2.5, 3.25, 5.0, 6.5, 11.0], (2, 3, 4, 8), offset)
    assert (choice.hard() @ torch.tensor(choice.widths)).tolist() == rounded
    assert torch.equal(choice.hard().argmax(1), choice.preference().argmax(1))
    assert torch.equal(choice.eval()(), choice.hard().float())


@pytest.mark.parametrize(
    ("offset", "rounded"), [(0.0, [0, 0, 2, 2, 4, 8]), (0.25, [0, 2, 2, 4, 4, 8]), (-2.0, [0, 0, 0, 0, 2, 4])]
)
def test_units_below_half_the_narrowest_width_go(offset: float, rounded: list[int]) -> None:
    """With widths from 2 bit on, that is below 1 bit, as published."""
    choice = _units([-2.0, 1.0, 1.25, 3.0, 3.01, 9.0], (2, 4, 8), offset)
    assert (choice.hard() @ torch.tensor([0, 2, 4, 8])).tolist() == rounded
    assert torch.equal(choice.log_odds() > 0, torch.tensor(rounded) > 0)
    assert choice.log_odds().isfinite().all()
    kept = choice.hard()[:, 0] == 0
    assert torch.equal(choice.hard()[kept, 1:].argmax(1), choice.preference()[kept].argmax(1))
    assert choice.eval()().factor.tolist() == [float(b > 0) for b in rounded]


def test_log_odds_rise_with_the_width() -> None:
    odds = _units([0.0, 0.5, 1.0, 1.5, 2.0, 8.0], (2, 4, 8)).log_odds()
    assert odds.tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0, 28.0]


def test_as_many_units_stay_as_the_rule_allows() -> None:
    widths, values = torch.tensor([0, 2, 8]), [0.25, 0.75, 8.0, 0.5]
    assert (_units(values, (2, 8), rule=UnitRule(3)).hard() @ widths).tolist() == [0, 2, 8, 2]
    assert (_units([2.0, 3.0, 8.0, 0.5], (2, 8), rule=UnitRule(2, 2)).hard() @ widths).tolist() == [2, 2, 8, 2]
    assert (_units(values, (2, 8), -8.0, rule=UnitRule(1)).hard() @ widths).tolist() == [0, 0, 2, 0]


def test_units_that_must_stay_have_no_removal() -> None:
    choice = _units([-3.0, 0.5, 2.0, 9.0], (2, 8), removable=False)
    assert choice.probability()[:, 0].eq(0).all()
    assert (choice.hard() @ torch.tensor([0, 2, 8])).tolist() == [2, 2, 2, 8]
    assert torch.isinf(choice.log_odds()).all()
    assert choice().factor.tolist() == [1.0] * 4
    only = _units([8.0, 8.0], (8,), removable=False)
    assert only().factor.tolist() == [1.0, 1.0]
    assert only.hard().tolist() == [[0, 1]] * 2


def test_a_unit_has_one_width_in_all_layers_or_a_layer_one_for_all_channels() -> None:
    per_unit, per_layer = attached("digits", "fracbits"), attached("digits", "fracbits_layer")
    choices = [per_unit.group_choice(g) for g in per_unit.graph.groups]
    assert all(isinstance(c, FractionalChoice) for c in choices if c is not None)
    assert {len(c.width) for c in choices if isinstance(c, FractionalChoice)} == {10, 16, 32}
    assert all(per_unit.weight_slot(name).coupled for name in per_unit.graph.searched_weights)
    gates = [per_layer.group_choice(g) for g in per_layer.graph.groups]
    assert all(isinstance(c, LogitGate) and c.sampling == "hard" for c in gates if c is not None)
    assert {len(m.width) for m in fractional(per_layer)} == {1}
    assert len(fractional(per_layer)) == len(per_layer.graph.searched_weights)


@pytest.mark.parametrize("method", ROWS)
def test_the_search_starts_at_what_it_evaluates(method: str) -> None:
    net, inputs = attached("digits", method), case("digits").inputs(3)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(*inputs), net.eval()(*inputs), rtol=0, atol=0)
    start = METHODS[method].start_bits or 8
    assert all(set(d.bits.tolist()) == {float(start)} for d in net.bits().weights.values())


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_widths_start_near_what_is_asked_for(granularity: Any) -> None:
    row, how = case("digits"), FracBits((0, 2, 3, 8), granularity=granularity)
    net = attach(randomised(row.build()), row.inputs(4), how, bits={"conv": (4, 8), "block1.conv1": 8})
    net.start_at(3)
    found = {name: set(dist.bits.tolist()) for name, dist in net.bits(hard=True).weights.items()}
    assert found.pop("conv.weight") == {4.0}, "the nearest of its own"
    assert found.pop("block1.conv1.weight") == {8.0}
    assert set.union(*found.values()) == {3.0}


@pytest.mark.parametrize("method", ROWS)
def test_units_that_go_in_a_search_are_cut(method: str) -> None:
    """Real widths from 8 bit on need a wider spread than logits to fall to nothing."""
    net = scramble(attached("inverted_residual", method), 3, spread=6.0).eval()
    plan = decide(net)
    assert any(len(plan.kept[g.name]) < g.units for g in net.graph.groups)
    assert len({b for w in plan.weights.values() for b in w.bits}) > 3
    inputs = case("inverted_residual").inputs(3)
    with torch.no_grad():
        wanted, found = net(*inputs), apply(net, plan).eval()(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_steps_that_lead_off_the_grid_are_taken_back() -> None:
    net = scramble(attached("digits", "fracbits"), 1, spread=9.0)
    outside = [m for m in fractional(net) if (m.width < m.grid[0]).any() or (m.width > m.grid[-1]).any()]
    assert outside
    before = net.bits().weights
    net.advance(0.5)
    assert all(m.width.min() >= m.grid[0] and m.width.max() <= m.grid[-1] for m in fractional(net))
    assert all(torch.equal(dist.p, before[name].p) for name, dist in net.bits().weights.items())


def _activation(width: float) -> tuple[FractionalActivationSlot, Tensor]:
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slot = FractionalActivationSlot((2, 4, 8), signed=True)
    slot.fit(x)
    _set(slot.choice, [width], 0.0)
    return slot.double(), x


def test_an_activation_is_a_blend_of_two_copies() -> None:
    slot, x = _activation(5.0)
    slot(x).sum().backward()
    copies = []
    for bits in (4, 8):
        step = slot.step(bits)
        copies.append(step * (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    torch.testing.assert_close(slot(x), 0.75 * copies[0] + 0.25 * copies[1], rtol=1e-12, atol=1e-12)
    assert float(slot.choice.width.grad) == pytest.approx(float((copies[1] - copies[0]).sum()) / 4, rel=1e-9)
    assert slot.log_step.grad is not None
    assert torch.equal(slot.log_step.grad != 0, torch.tensor([False, True, True]))
    torch.testing.assert_close(slot.eval()(x), copies[0], rtol=1e-12, atol=0)
    assert slot.distribution(hard=True).tolist() == [[0.0, 1.0, 0.0]]
    assert slot.distribution(hard=False).tolist() == [[0.0, 0.75, 0.25]]


def test_one_activation_width_needs_no_choice() -> None:
    assert isinstance(FracBits().activation_slot(signed=False), ActivationSlot)
    net = attached("mlp", "fracbits_activations")
    assert all(isinstance(net.activation_slot(s.name), FractionalActivationSlot) for s in net.sites)


def _excess(net: SearchNet, cost: Any, limit: float) -> Callable[[NetBits], float]:
    return lambda bits: float(cost(usage(net.graph, bits))) / limit


def _offsets(net: SearchNet) -> set[float]:
    return {float(module.offset) for module in fractional(net)}


def _excess_at(net: SearchNet, excess: Callable[[NetBits], float], offset: float) -> float:
    other = copy.deepcopy(net)
    for module in fractional(other):
        module.offset.fill_(offset)
    return excess(other.bits(hard=True))


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_offset_is_the_largest_within_the_limit(method: str, share: float) -> None:
    """Just above it the network costs too much; that is one step of rounding."""
    net = scramble(attached("digits", method), 4, spread=3.0)
    assert isinstance(net.method, FracBits)
    now = float(Size()(usage(net.graph, net.bits(hard=True))))
    excess = _excess(net, Size(), (0.6 + share) * now)
    METHODS[method].commit(net, excess)
    (offset,) = _offsets(net)
    assert excess(net.bits(hard=True)) <= 1
    highest = {"fracbits": 1.0, "fracbits_layer": 0.5, "fracbits_activations": 2.0}[method]
    assert -8 < offset <= highest
    if offset < highest:
        assert _excess_at(net, excess, offset + 2**-15) > 1
        assert net.method.granularity == "layer" or excess(net.bits(hard=True)) > 0.97, "a unit is a small step"
    again = copy.deepcopy(net)
    METHODS[method].commit(again, excess)
    assert _offsets(again) == {offset}, "whatever the offset was before"


def test_a_limit_below_the_start_moves_the_offset_down() -> None:
    net = attached("digits", "fracbits_layer")
    half = 0.5 * float(Size()(usage(net.graph, net.bits(hard=True))))
    METHODS["fracbits_layer"].commit(net, _excess(net, Size(), half))
    (offset,) = _offsets(net)
    assert offset == pytest.approx(-3.5, abs=1e-4), "from 8 bit in all layers to 4: above -3.5 it is 5"
    assert {b for d in net.bits(hard=True).weights.values() for b in d.bits.tolist()} == {4.0}


@pytest.mark.parametrize("method", ROWS)
def test_a_limit_out_of_reach_is_no_mistake_of_rounding(method: str) -> None:
    """Nothing is raised here; what is least is reached at the largest offset."""
    net = scramble(attached("digits", method), 4)
    excess = _excess(net, Size(), 1.0)
    METHODS[method].commit(net, excess)
    (offset,) = _offsets(net)
    assert -8 < offset < 0
    assert excess(net.bits(hard=True)) == _excess_at(net, excess, -8.0) > 1
    assert _excess_at(net, excess, offset + 2**-15) > _excess_at(net, excess, -8.0)


def test_without_limits_nothing_is_moved() -> None:
    net = scramble(attached("digits", "fracbits"), 4)
    METHODS["fracbits"].commit(net, lambda bits: 0.0)
    assert _offsets(net) == {0.0}


def test_what_a_limit_does_not_charge_is_rounded_up_and_no_further() -> None:
    """MACs are the same at all widths: promotions, which keep the function, do the rest."""
    net = attached("digits", "fracbits_layer")
    with torch.no_grad():
        for module in fractional(net):
            module.width.fill_(2.25)
    METHODS["fracbits_layer"].commit(net, _excess(net, Macs(), 1e12))
    assert _offsets(net) == {0.5}
    assert {b for d in net.bits(hard=True).weights.values() for b in d.bits.tolist()} == {3.0}


@pytest.mark.parametrize("method", ROWS)
def test_choices_and_decision_agree_at_an_offset(method: str) -> None:
    net = scramble(attached("inverted_residual", method), 5, spread=3.0)
    now = float(Size()(usage(net.graph, net.bits(hard=True))))
    METHODS[method].commit(net, _excess(net, Size(), 0.7 * now))
    assert _offsets(net) != {0.0}
    hard, plan = net.bits(hard=True), decide(net).net_bits()
    assert all(torch.equal(plan.weights[name].p, dist.p) for name, dist in hard.weights.items())
    assert all(torch.equal(plan.keep[name], keep) for name, keep in hard.keep.items())
    inputs = case("inverted_residual").inputs(3)
    with torch.no_grad():
        wanted, found = net.eval()(*inputs), apply(net, decide(net)).eval()(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(("method", "least"), [("fracbits", 0.95), ("fracbits_activations", 0.94)])
def test_a_search_ends_at_its_budget(method: str, least: float) -> None:
    """Before anything is projected: the rounded network is never above the limit, nor more than a unit below it."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 4, 4, generator=random), torch.randint(0, 3, (24,), generator=random)
    examples = TensorDataset(x, y)
    torch.manual_seed(1)
    net, price = attached("mlp", method), Budget(Size(), "40%")
    recipe = Recipe(search_epochs=12, finetune_epochs=0, lr=1e-3, commit=1.0)
    data = Data(DataLoader(examples, 8, shuffle=True), DataLoader(examples, 12))
    before = float(Size()(usage(net.graph, net.bits(hard=True))))
    search(net, price, None, data, Objective(), recipe, Hardware("cpu", progress=False))
    spent = float(Size()(usage(net.graph, net.bits(hard=True)))) / price.limit(net.graph)
    assert before / price.limit(net.graph) > 1.2
    assert least <= spent <= 1, "a unit of 4 bit is worth 6 to 10 %"
    (offset,) = _offsets(net)
    assert _excess_at(net, _excess(net, Size(), price.limit(net.graph)), offset + 2**-15) > 1
    plan = decide(net, price)
    for name, dist in net.bits(hard=True).weights.items():
        assert all(b >= h for b, h in zip(plan.weights[name].bits, dist.bits.tolist(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weight_bits": (0, 1, 8)}, "`weight_bits`"),
        ({"weight_bits": (0,)}, "`weight_bits`"),
        ({"activation_bits": (0, 8)}, "`activation_bits`"),
        ({"granularity": "kernel"}, "`granularity`"),
        ({"weight_bits": (0, 4, 8), "start_bits": 3}, "`start_bits`"),
        ({"min_channels": 0}, "`min_channels`"),
    ],
)
def test_settings_that_can_not_be_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        FracBits(**arguments)


def test_widths_are_choices_and_steps_are_ranges() -> None:
    net: nn.Module = attached("digits", "fracbits_activations")
    assert isinstance(net, SearchNet)
    groups = {g["name"]: {id(p) for p in g["params"]} for g in net.param_groups()}
    assert {id(m.width) for m in fractional(net)} == groups["choices"]
    assert {id(net.activation_slot(s.name).get_parameter("log_step")) for s in net.sites} <= groups["ranges"]
