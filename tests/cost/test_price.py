"""`Budget` and `Strength`: what can be written, what they charge, and how the multiplier moves."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from searches import attached, scramble
from zerobit.cost import AbstractCost, Bops, Macs, Size, TableLatency
from zerobit.cost.amounts import parse_limit, written
from zerobit.cost.base import Usage
from zerobit.cost.own import FunctionCost
from zerobit.cost.parse import make_price, parse_budgets
from zerobit.cost.price import AbstractPrice, Budget, Budgets, Strength, reference_cost
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.errors import BudgetError
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet

MPIC = TableLatency.load("mpic")


@pytest.mark.parametrize(
    ("cost", "limit", "amount", "share"),
    [
        (Size(), "25%", 0.25, True),
        (Size(), " 12.5 % ", 0.125, True),
        (Size(), "250%", 2.5, True),
        (Size(), "64kB", 64_000, False),
        (Size(), "64 kB", 64_000, False),
        (Size(), "64KB", 64_000, False),
        (Size(), "64KiB", 65_536, False),
        (Size(), "1.5 MB", 1_500_000, False),
        (Size(), "1MiB", 2**20, False),
        (Size(), "800B", 800, False),
        (Size(), "800", 800, False),
        (Size(), 800, 800, False),
        (Size(), 1e20, 1e20, False),
        (Size(), "6.4e4", 64_000, False),
        (Macs(), "5M", 5_000_000, False),
        (Macs(), "5 MMAC", 5_000_000, False),
        (Macs(), "500 MAC", 500, False),
        (Macs(), "500macs", 500, False),
        (Macs(), "5kMACs", 5_000, False),
        (Bops(), "2 GBOPs", 2e9, False),
        (MPIC, "5M", 5_000_000, False),
        (MPIC, "5 Mcycles", 5_000_000, False),
        (MPIC, "300 cycles", 300, False),
        (MPIC, "1 cycle", 1, False),
        (named_cost("mpic.time"), "5ms", 5e-3, False),
        (named_cost("mpic.time"), "5 us", 5e-6, False),
        (named_cost("mpic.time"), "0.2 s", 0.2, False),
        (named_cost("mpic.energy"), "20uJ", 20e-6, False),
        (named_cost("mpic.energy"), "1 mJ", 1e-3, False),
        (named_cost("mpic.energy"), "30%", 0.3, True),
    ],
)
def test_limits_that_can_be_written(cost: AbstractCost, limit: str | float, amount: float, share: bool) -> None:
    found = parse_limit(cost, limit)
    assert found == (pytest.approx(amount, rel=1e-12), share)


@pytest.mark.parametrize(
    ("cost", "limit"),
    [
        (Size(), ""),
        (Size(), "%"),
        (Size(), "kB"),
        (Size(), "many"),
        (FunctionCost("latency", "", lambda layer: layer.inputs), "5ms"),
        (FunctionCost("latency", "", lambda layer: layer.inputs), "5s"),
        (Size(), "0"),
        (Size(), "0%"),
        (Size(), "-5kB"),
        (Size(), -5),
        (Size(), math.nan),
        (Size(), math.inf),
        (Size(), "1e999"),
        (Size(), "1.2.3kB"),
        (Size(), "."),
        (Size(), "25%%"),
        (Size(), "25kB%"),
        (Size(), "5 MAC"),
        (Size(), "5 TB"),
        (Macs(), "64kB"),
        (MPIC, "64kB"),
        (Size(), "64kB 3"),
        (named_cost("mpic.time"), "5 MB"),
        (named_cost("mpic.time"), "5 Ms"),
        (named_cost("mpic.energy"), "5 GJ"),
    ],
)
def test_limits_that_cannot_be_read(cost: AbstractCost, limit: str | float) -> None:
    with pytest.raises(BudgetError, match=r"`budget` for .*allowed are"):
        Budget(cost, limit)


@pytest.mark.parametrize(
    "arguments",
    [{"stiffness": 0}, {"stiffness": -1}, {"ramp": "x"}, {"ramp": -0.1}, {"rate": math.inf}, {"rate": None}],
)
def test_constants_of_a_budget_are_numbers(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(BudgetError, match=rf"`{name}` is .*allowed are numbers"):
        Budget(Size(), "50%", **arguments)


def test_a_share_of_nothing_is_refused() -> None:
    """A network of embeddings has no multiplications, of which none is a half."""
    model = nn.Sequential(nn.Embedding(10, 4))
    net = attach(model.eval(), torch.zeros(2, 3, dtype=torch.int64), ChannelSoftmax())
    for price in (Budget(Macs(), "50%"), Strength(Macs(), 0.5)):
        with pytest.raises(BudgetError, match=r"share of macs, which is 0"):
            price(net)


@pytest.mark.parametrize("strength", [0.5, ("size",), "size=0.5"])
def test_a_strength_names_its_cost(strength: Any) -> None:
    with pytest.raises(BudgetError, match=r"`strength` is .*write for example"):
        make_price(None, strength, None)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, "1"])
def test_a_strength_is_a_number_from_zero(strength: float) -> None:
    with pytest.raises(BudgetError, match=r"`strength`"):
        Strength(Size(), strength)


@pytest.mark.parametrize("cost", [Size(), Macs(), Bops(), MPIC], ids=lambda c: c.name)
def test_strength_charges_the_same_on_every_cost(cost: AbstractCost) -> None:
    net = attached("digits", "no_pruning")
    assert float(Strength(cost, 0.5)(net).detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("cost", [Size(), Macs(), Bops(), MPIC], ids=lambda c: c.name)
def test_a_share_is_of_the_network_at_8_bit(cost: AbstractCost) -> None:
    net = attached("digits")
    full = reference_cost(net.graph, cost)
    assert Budget(cost, "25%").limit(net.graph) == pytest.approx(full / 4)
    assert Budget(cost, 123).limit(net.graph) == 123
    if cost.name == "size":
        assert full == 19_408


def _prices() -> list[AbstractPrice]:
    return [
        Budget(Size(), "25%"),
        Budget(MPIC, "50%"),
        Budget(named_cost("ne16"), "50%"),
        Strength(Bops(), 0.3),
        Budgets([Budget(Size(), "25%"), Budget(MPIC, "50%"), Budget(named_cost("ram"), "60%")]),
    ]


@pytest.mark.parametrize("price", _prices(), ids=lambda p: p.describe())
@pytest.mark.parametrize("method", ["default", "softmax", "gumbel"])
def test_a_price_is_pure(price: AbstractPrice, method: str) -> None:
    price, net = copy.deepcopy(price), attached("digits", method).train()
    price.update(net)
    state, torch_state, tensors = price.state_dict(), torch.get_rng_state(), copy.deepcopy(net.state_dict())
    values = {float(price(net).detach()) for _ in range(3)}
    assert len(values) == 1
    assert price.state_dict() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(torch.equal(t, tensors[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize("price", _prices(), ids=lambda p: p.describe())
def test_a_price_pulls_the_cost_down(price: AbstractPrice) -> None:
    net, price = attached("digits", "softmax").train(), copy.deepcopy(price)
    net.advance(1.0)
    price.update(net)
    choices = [p for n, p in net.named_parameters() if n.endswith(("gate", "width"))]
    before = _relative(price, net)
    grads = torch.autograd.grad(price(net), choices)
    with torch.no_grad():
        for parameter, grad in zip(choices, grads, strict=True):
            parameter -= 1e-3 * grad / grad.norm().clamp_min(1e-12)
    assert _relative(price, net) < before


def _relative(price: AbstractPrice, net: SearchNet) -> float:
    """All costs, each in units of the network at 8 bit."""
    use = usage(net.graph, net.bits())
    return sum(float(cost(use).detach()) / reference_cost(net.graph, cost) for cost in price.costs)


def test_multiplier_rises_while_the_limit_is_broken_and_falls_otherwise() -> None:
    net = attached("digits", "softmax")
    net.advance(1.0)
    budget = Budget(Size(), "10%")
    path = []
    for _ in range(5):
        budget.update(net)
        path.append(budget.state_dict()["multiplier"])
    assert all(a < b for a, b in itertools.pairwise([0.0, *path]))
    with torch.no_grad():  # all gates shut: far below the limit
        for name, parameter in net.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(-9.0)
    assert float(budget.violation(net, usage(net.graph, net.bits())).detach()) < 0
    falling = []
    for _ in range(200):
        budget.update(net)
        falling.append(budget.state_dict()["multiplier"])
    assert falling[0] < path[-1]
    assert falling[-1] == 0.0
    assert all(b <= a for a, b in itertools.pairwise(falling))
    assert float(budget(net).detach()) == 0.0, "a limit that is kept costs nothing"


def test_limit_falls_from_the_start_to_the_budget() -> None:
    net = attached("digits")
    budget = Budget(Size(), "10%")
    budget.update(net)
    start = float(Size()(usage(net.graph, net.bits())).detach())
    path = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        net.advance(progress)
        path.append(budget.current_limit(net))
    assert path[0] == pytest.approx(start)
    assert path == sorted(path, reverse=True)
    assert path[-1] == pytest.approx(budget.limit(net.graph))
    assert float(budget(net).detach()) > 0


@pytest.mark.parametrize("price", [Budget(Size(), "10%"), Budgets([Budget(Size(), "10%"), Budget(MPIC, "30%")])])
def test_the_first_step_is_not_charged_for_what_is_above_the_budget(price: AbstractPrice) -> None:
    """An optimizer's second moments would remember its gradient for hundreds of steps."""
    net, price = attached("digits"), copy.deepcopy(price)
    assert float(price(net).detach()) == 0.0
    net.advance(1.0)
    assert float(price(net).detach()) > 0.0


def test_state_is_taken_up() -> None:
    net = scramble(attached("digits"), 1)
    first, second = Budget(Size(), "10%"), Budget(Size(), "10%")
    for _ in range(3):
        first.update(net)
    second.load_state_dict(first.state_dict())
    assert float(first(net).detach()) == float(second(net).detach())
    first.update(net)
    second.update(net)
    assert first.state_dict() == second.state_dict()


def test_the_methods_penalty_is_part_of_every_price(monkeypatch: pytest.MonkeyPatch) -> None:
    net = attached("mlp")
    without = [float(p(net).detach()) for p in _prices()]
    monkeypatch.setattr(net, "penalty", lambda: torch.tensor(7.0, dtype=torch.float64))
    assert [float(p(net).detach()) for p in _prices()] == [pytest.approx(v + 7, rel=1e-6) for v in without]


def test_prices_of_other_settings_are_told_apart() -> None:
    texts = [
        p.describe()
        for p in (Budget(Size(), "25%"), Budget(Size(), "26%"), Budget(Bops(), "25%"), Strength(Size(), 0.25))
    ]
    assert len(set(texts)) == 4


def test_several_budgets_are_the_sum_of_each() -> None:
    net = scramble(attached("digits", "softmax"), 1)
    single = [Budget(Size(), "10%"), Budget(MPIC, "30%")]
    both = Budgets([Budget(Size(), "10%"), Budget(MPIC, "30%")])
    for _ in range(3):
        for price in (*single, both):
            price.update(net)
        net.advance(0.5)
    alone = [float(price(net).detach()) for price in single]
    assert all(value > 0 for value in alone)
    assert float(both(net).detach()) == pytest.approx(sum(alone), rel=1e-6)
    assert [(x.cost.name, x.amount) for x in both.limits(net.graph)] == [
        (price.cost.name, price.limit(net.graph)) for price in single
    ]
    again = Budgets([Budget(Size(), "10%"), Budget(MPIC, "30%")])
    again.load_state_dict(both.state_dict())
    assert again.state_dict() == both.state_dict()
    assert float(again(net).detach()) == float(both(net).detach())


def test_only_the_budgets_that_bind_are_paid_for() -> None:
    net = attached("digits", "softmax")
    net.advance(1.0)
    both = Budgets([Budget(Size(), "5%"), Budget(MPIC, "100%")])
    for _ in range(5):
        both.update(net)
    state = both.state_dict()
    assert state["size"]["multiplier"] > 0
    assert state["mpic"]["multiplier"] == 0
    assert float(both(net).detach()) == pytest.approx(float(both.budgets[0](net).detach()), rel=1e-6)


def test_a_budget_far_from_its_limit_pushes_no_more() -> None:
    """A multiplier that has risen would close gates long after the limit is kept."""
    net = attached("digits")
    budget = Budget(Size(), "300%")
    budget.load_state_dict({"multiplier": 3.0, "start": None})
    net.advance(1.0)
    choices = [p for n, p in net.named_parameters() if n.endswith(("gate", "width"))]
    assert float(budget.violation(net, usage(net.graph, net.bits())).detach()) < -0.5
    assert all(not g.any() for g in torch.autograd.grad(budget(net), choices, materialize_grads=True))
    budget.load_state_dict({"multiplier": 8.0, "start": None})
    assert any(g.any() for g in torch.autograd.grad(budget(net), choices, materialize_grads=True))


def test_a_cost_is_limited_once() -> None:
    with pytest.raises(BudgetError, match=r"`budget` limits \['size', 'size'\]"):
        Budgets([Budget(Size(), "10%"), Budget(Size(), "20%")])
    with pytest.raises(BudgetError, match=r"`budget` limits \[\]"):
        Budgets([])
    with pytest.raises(BudgetError, match=r"`budget` limits 'size' twice"):
        parse_budgets(["size=10%", "size=20%"])


def test_budgets_are_written_as_on_the_command_line() -> None:
    entries = parse_budgets(["size=64kB", "ram=48kB", "ne16.cycles=1e5"])
    price = make_price(entries, None, None)
    graph = attached("digits").graph
    found = [(limit.cost.name, limit.amount) for limit in price.limits(graph)]
    assert found == [("size", 64_000), ("ram", 48_000), ("ne16", 1e5)]
    own = make_price({"gap8": "50%", "half": 3}, None, None, [_Half()])
    assert [limit.cost.name for limit in own.limits(graph)] == ["gap8", "half"]
    with pytest.raises(BudgetError, match=r"`budget` names the cost 'third'; allowed are .*ne16.cycles, half;"):
        make_price({"third": 3}, None, None, [_Half()])
    with pytest.raises(BudgetError, match=r"called 'half', a name that is taken"):
        make_price({"half": 3}, None, None, [_Half(), _Half()])
    with pytest.raises(BudgetError, match=r"called 'size', a name that is taken"):
        make_price({"size": 3}, None, None, [Size()])


class _Half(AbstractCost):
    """Half a byte."""

    name = "half"
    unit = "B"

    def __call__(self, use: Usage) -> Tensor:
        return Size()(use) / 2


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (19_339.4, "B", "19,339 B"),
        (512.0, "B", "512 B"),
        (0.42, "ms", "0.42 ms"),
        (1.625, "mJ", "1.625 mJ"),
        (0.0, "us", "0 us"),
        (0.0052131, "s", "5.213 ms"),
        (2.5, "s", "2.5 s"),
        (1.28e-4, "J", "128 uJ"),
        (3e-9, "J", "3 nJ"),
    ],
)
def test_amounts_are_written_for_people(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text
