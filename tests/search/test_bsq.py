"""BSQ: a lasso makes bit planes vanish, units go with their last one, and what is left is the width."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cases import case
from killed import Killed, until
from searches import attached, choice_parameters, scramble
from zerobit.cost import Size
from zerobit.cost.price import Strength
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import FormatError
from zerobit.graph.ir import ChannelGroup
from zerobit.search.attach import attach
from zerobit.search.methods.bsq import Bsq
from zerobit.search.net import SearchNet
from zerobit.search.widths.planes import PlaneQuantizer
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, search

GRANULARITIES = ("layer", "channel")


def _trained(granularity: str, seed: int) -> SearchNet:
    """As after some steps: digits are anywhere within and beyond their bounds."""
    net = scramble(attached("inverted_residual", f"bsq_{granularity}" if granularity == "channel" else "bsq"), seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for quantizer in _quantizers(net):
            for parameter in (quantizer.planes.positive, quantizer.planes.negative):
                parameter.mul_(torch.rand(parameter.shape, generator=random) + 0.2)
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1 / quantizer.planes.unit())
    return net


def _quantizers(net: nn.Module) -> list[PlaneQuantizer]:
    return [m for m in net.modules() if isinstance(m, PlaneQuantizer)]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
@torch.no_grad()
def test_requantising_changes_no_weight(granularity: str, seed: int) -> None:
    for quantizer in _quantizers(_trained(granularity, seed)):
        before, columns = quantizer(quantizer.trained), quantizer.column()
        parameters = [p.clone() for p in quantizer.planes.parameters()]
        quantizer.requantize()
        assert torch.equal(quantizer(quantizer.trained), before)
        assert (quantizer.column() <= columns).all()
        assert not all(torch.equal(a, b) for a, b in zip(quantizer.planes.parameters(), parameters, strict=True))
        digits = torch.stack(quantizer.planes.digits())
        assert set(digits.unique().tolist()) <= {0.0, 1.0}
        quantizer.requantize()  # planes that were given and not used are dropped
        again = copy.deepcopy(quantizer)
        again.requantize()
        assert torch.equal(again(quantizer.trained), before)
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), quantizer.buffers(), strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_penalty_is_the_published_lasso_for_groups_of_any_size(granularity: str) -> None:
    net = scramble(attached("mlp", Bsq(granularity=granularity, strength=0.5)), 4)  # type: ignore[arg-type]
    expected, count = 0.0, 0
    for quantizer in _quantizers(net):
        p, n = (d.detach().double() for d in quantizer.planes.digits())
        live = quantizer.planes.live.expand(quantizer.channels).tolist()
        rows = [range(len(live))] if granularity == "layer" else [range(c, c + 1) for c in range(len(live))]
        for row in rows:
            size = len(row) * p.shape[2]
            squares = (p[:, row].square() + n[:, row].square()).sum((1, 2)).tolist()
            norms = [math.sqrt((1e-8 + total) / size) for total in squares[: live[row[0]]]]
            expected += (live[row[0]] + 1) * size * sum(norms)
            count += size
    assert float(net.penalty().detach()) == pytest.approx(0.5 * expected / (8 * 7 * count), rel=1e-6)
    assert float(attached("mlp", "bsq").penalty()) == 0


@torch.no_grad()
def _empty(net: SearchNet, group: ChannelGroup, units: list[int]) -> None:
    """Make all digits of these units zero, in place, in the weights that make them."""
    for weight in net.graph.searched_weights:
        unit = net.graph.row_units(weight).get(group.name)
        if unit is not None:
            rows = torch.isin(torch.as_tensor(unit), torch.tensor(units))
            for digits in net.weight_slot(weight).quantizer.get_submodule("planes").parameters():
                digits[:, rows] = 0


def _groups(net: SearchNet) -> dict[str, ChannelGroup]:
    return {group.name: group for group in net.graph.groups}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@torch.no_grad()
def test_a_unit_goes_with_its_last_plane_and_is_gone_after_apply(granularity: str) -> None:
    net = attached("digits", Bsq(granularity=granularity)).eval()  # type: ignore[arg-type]
    group = _groups(net)["block1.conv1"]
    choice = net.group_choice(group)
    assert choice is not None
    _empty(net, group, [5])
    assert choice.hard().all(), "digits may come back within a period"
    net.method.commit(net, lambda bits: 0.0)
    assert choice.hard().logical_not().nonzero().tolist() == [[5]]
    plan = decide(net)
    assert plan.kept["block1.conv1"] == tuple(u for u in range(group.units) if u != 5)
    small = apply(net, plan).eval()
    assert small.tensors()["block1.conv1.weight"].shape[0] == group.units - 1
    inputs = case("digits").inputs(3)
    torch.testing.assert_close(small(*inputs), net(*inputs), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_unit_that_one_weight_still_makes_stays() -> None:
    net = attached("digits", "bsq")
    group = next(g for g in net.graph.groups if len(list(_makers(net, g))) > 1)
    choice = net.group_choice(group)
    assert choice is not None
    _empty(net, group, [0, 2, 3])
    first = net.weight_slot(next(_makers(net, group))).quantizer
    assert isinstance(first, PlaneQuantizer)
    first.planes.positive[0, 2] = 1 / first.planes.unit()[0]
    net.advance(0.3)
    assert choice.hard().logical_not().nonzero().tolist() == [[0], [3]]
    choice.gate.add_(4.0)
    assert choice.hard().all(), "a gate may open again"


def _makers(net: SearchNet, group: ChannelGroup) -> Iterator[str]:
    return (w for w in net.graph.searched_weights if group.name in net.graph.row_units(w))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@torch.no_grad()
def test_a_new_period_changes_nothing_of_what_a_network_computes(granularity: str) -> None:
    net = _trained(granularity, 7).eval()
    inputs = case("inverted_residual").inputs(2)
    before, period = net(*inputs), {int(q.planes.period) for q in _quantizers(net)}
    written = [q.planes.positive.clone() for q in _quantizers(net)]
    net.advance(0.3)
    assert torch.equal(net(*inputs), before)
    assert (period, {int(q.planes.period) for q in _quantizers(net)}) == ({0}, {1})
    assert not any(torch.equal(q.planes.positive, old) for q, old in zip(_quantizers(net), written, strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_advance_rewrites_once_a_period(granularity: str) -> None:
    net = _trained(granularity, 5)
    digits = [p for q in _quantizers(net) for p in (q.planes.positive, q.planes.negative)]

    def rewrites(progress: float) -> bool:
        """Whether some digits become others, beyond being put back into their bounds."""
        for q in _quantizers(net):
            q.planes.project()
        old = [p.clone() for p in digits]
        net.advance(progress)
        return not all(torch.equal(a, b) for a, b in zip(old, digits, strict=True))

    assert not rewrites(0.24)
    assert rewrites(0.25)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in digits:
            p.mul_(torch.rand_like(p))
    assert not rewrites(0.26)
    resumed = _trained(granularity, 6)
    resumed.load_state_dict(net.state_dict())
    resumed.advance(0.27)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), net.parameters(), strict=True)), (
        "part of the state"
    )
    assert rewrites(0.5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@torch.no_grad()
def test_digits_that_a_step_led_out_of_their_bounds_are_brought_back(granularity: str) -> None:
    net = _trained(granularity, 5)

    def parameters() -> list[torch.Tensor]:
        return [q.planes.unit() * torch.stack([q.planes.positive, q.planes.negative]) for q in _quantizers(net)]

    bounded = [torch.stack(q.planes.digits()) for q in _quantizers(net)]
    weights = [q(q.trained) for q in _quantizers(net)]
    assert not any(torch.equal(p, digits) for p, digits in zip(parameters(), bounded, strict=True))
    net.advance(0.1)
    assert all(torch.equal(p, digits) for p, digits in zip(parameters(), bounded, strict=True))
    assert all(torch.equal(q(q.trained), w) for q, w in zip(_quantizers(net), weights, strict=True)), (
        "what they compute"
    )


def _search(file: Path | None, steps: int = 10**6) -> SearchNet:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 4, 4, generator=random), torch.randint(0, 3, (24,), generator=random)
    data = Data(DataLoader(TensorDataset(x, y), 8, shuffle=True), DataLoader(TensorDataset(x, y), 12))
    torch.manual_seed(1)
    net = attached("mlp", Bsq(periods=2))
    recipe = Recipe(search_epochs=4, finetune_epochs=1, lr=1e-2, commit=1.0)
    objective = Objective(loss=until(steps), distillation=0.0)
    search(net, Strength(Size(), 0.5), None, data, objective, recipe, Hardware("cpu", progress=False), checkpoint=file)
    return net


def test_a_resumed_search_is_the_whole_one(tmp_path: Path) -> None:
    """Killed before and after the planes were rewritten, which is in the middle."""
    whole = {name: t.tolist() for name, t in _search(None).state_dict().items()}
    file = tmp_path / "search.ckpt"
    for steps in (4, 4, 4):
        with pytest.raises(Killed):
            _search(file, steps)
    resumed = _search(file, 3)
    assert {name: t.tolist() for name, t in resumed.state_dict().items()} == whole
    assert {int(q.planes.period) for q in _quantizers(resumed)} == {1}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_price_makes_planes_vanish(granularity: str) -> None:
    net = attached("mlp", Bsq(granularity=granularity))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(choice_parameters(net), lr=2.0)
    before = float(Size()(usage(net.graph, net.bits(hard=True))))
    for step in range(60):
        net.advance(step / 60)
        optimizer.zero_grad()
        Strength(Size(), 20.0)(net).backward()
        optimizer.step()
    assert float(Size()(usage(net.graph, net.bits(hard=True)))) < 0.5 * before


def test_users_widths_need_not_be_neighbours() -> None:
    row = case("mlp")
    net = attach(row.build().eval(), row.inputs(4), Bsq(), bits={"fc1": (4, 8), "fc2": 5})
    found = net.bits(hard=True).weights
    assert set(found["fc1.weight"].bits.tolist()) == {8.0}
    assert set(found["fc2.weight"].bits.tolist()) == {5.0}
    net.start_at(3)
    found = net.bits(hard=True).weights
    assert set(found["fc1.weight"].bits.tolist()) == {4.0}
    assert set(found["fc2.weight"].bits.tolist()) == {5.0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"granularity": "kernel"}, "`granularity`"),
        ({"periods": 0}, "`periods`"),
        ({"strength": -0.1}, "`strength`"),
        ({"strength": float("nan")}, "`strength`"),
        ({"weight_bits": (0, 1)}, "`weight_bits`"),
        ({"start_bits": 9}, "`start_bits`"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        Bsq(**arguments)  # type: ignore[arg-type]


def test_digits_are_weights_and_gates_are_choices() -> None:
    """Choices get a higher rate where a search is short, which digits could not bear."""
    net = attached("digits", "bsq")
    groups = {g["name"]: g for g in net.param_groups(lr=0.5, choice_lr=0.25)}
    digits = {id(p) for q in _quantizers(net) for p in q.planes.parameters()}
    choices = filter(None, (net.group_choice(group) for group in net.graph.groups))
    gates = {id(choice.get_parameter("gate")) for choice in choices}
    assert {id(p) for p in groups["planes"]["params"]} == digits
    assert {id(p) for p in groups["choices"]["params"]} == gates
    assert (groups["planes"]["lr"], groups["planes"]["weight_decay"]) == (0.5, 0.0)


@torch.no_grad()
def test_closed_gates_are_closed_channels() -> None:
    net = attached("digits", "bsq")
    group = _groups(net)["block1.conv1"]
    gate, quantizer = net.group_choice(group), net.weight_slot("block1.conv1.weight").quantizer
    assert gate is not None
    assert isinstance(quantizer, PlaneQuantizer)
    gate.get_parameter("gate")[2] = -1.0
    net.advance(0.1)
    assert quantizer.planes.counted.logical_not().nonzero().tolist() == [[2]]
    gate.get_parameter("gate")[2] = 1.0
    net.method.commit(net, lambda bits: 0.0)
    assert quantizer.planes.counted.all()
