"""Bit planes: they are the weight's binary digits, the lasso makes them vanish, and what is left is the width."""

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
from zerobit.search.widths.planes import LARGEST_UNIT, UNIT_OF_RANGE, VANISHED, PlaneQuantizer
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, search

GRANULARITIES = ("layer", "channel")


def _quantizer(
    integers: list[list[int]], *, per_layer: bool = True, widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
) -> PlaneQuantizer:
    """Planes of given integers, as many as these need."""
    w = torch.tensor(integers, dtype=torch.float32)
    quantizer = PlaneQuantizer(w, widths, max(widths), per_layer=per_layer)
    with torch.no_grad():
        quantizer.log_step.zero_()
        quantizer.planes.write(w, torch.full_like(quantizer.planes.live, max(widths) - 1))
        quantizer.requantize()
    return quantizer


def _bits(quantizer: PlaneQuantizer) -> list[int]:
    return [quantizer.widths[column] for column in quantizer.distribution(hard=True).argmax(1).tolist()]


def _digits(integer: int) -> tuple[list[float], list[float]]:
    positive, negative = (p[:, 0, 0].tolist() for p in _quantizer([[integer, 1]]).planes.digits())
    return positive, negative


@pytest.mark.parametrize("integer", [0, 1, -1, 5, -6, 100, 127, -127])
def test_planes_are_binary_digits_with_a_sign(integer: int) -> None:
    """The integer 6 is 110 in binary."""
    positive, negative = _digits(integer)
    written = [float(d) for d in reversed(f"{abs(integer):07b}")]
    assert (positive if integer >= 0 else negative) == written
    assert not any(negative if integer >= 0 else positive)


@pytest.mark.parametrize(
    ("integers", "bits", "shift"),
    [
        ([[1, -1, 0]], 2, 0),
        ([[3, 0, -1]], 3, 0),
        ([[4, 0, 3]], 4, 0),
        ([[127, 1, 0]], 8, 0),
        ([[6, -2, 0]], 3, 1),
        ([[64, 0, -64]], 2, 6),
        ([[0, 0, 0]], 2, 0),
    ],
)
def test_the_width_is_the_number_of_planes_in_use_and_the_sign(
    integers: list[list[int]], bits: int, shift: int
) -> None:
    """High planes that are zero are dropped; with low ones the step doubles."""
    quantizer = _quantizer(integers)
    assert _bits(quantizer) == [bits]
    assert quantizer.shift.tolist() == [shift]
    weight = torch.tensor(integers, dtype=torch.float32)
    assert torch.equal(quantizer(weight), weight)


def test_a_channel_or_a_layer_has_a_width_of_its_own() -> None:
    integers = [[1, 0], [4, 6], [0, 0], [127, 3]]
    assert _bits(_quantizer(integers, per_layer=False)) == [2, 3, 2, 8]
    assert _bits(_quantizer(integers, per_layer=True)) == [8] * 4


def test_what_the_planes_need_is_rounded_up_to_a_width_on_offer() -> None:
    quantizer = _quantizer([[1, 1], [3, 1], [15, 1], [127, 1]], per_layer=False, widths=(2, 4, 8))
    assert _bits(quantizer) == [2, 4, 8, 8]
    assert quantizer.planes.live.tolist() == [1, 3, 7, 7]


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
        before, bits = quantizer(quantizer.trained), _bits(quantizer)
        parameters = [p.clone() for p in quantizer.planes.parameters()]
        quantizer.requantize()
        assert torch.equal(quantizer(quantizer.trained), before)
        assert all(new <= old for new, old in zip(_bits(quantizer), bits, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(quantizer.planes.parameters(), parameters, strict=True))
        digits = torch.stack(quantizer.planes.digits())
        assert set(digits.unique().tolist()) <= {0.0, 1.0}
        quantizer.requantize()  # planes that were given and not used are dropped
        again = copy.deepcopy(quantizer)
        again.requantize()
        assert torch.equal(again(quantizer.trained), before)
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), quantizer.buffers(), strict=True))


@torch.no_grad()
def test_integers_that_outgrow_their_planes_are_given_another() -> None:
    quantizer = _quantizer([[3, -1, 0]])
    assert quantizer.planes.live.tolist() == [2]
    quantizer.planes.positive[1, 0, 0] = 2 / quantizer.planes.unit()[1, 0, 0]  # 1 + 2 * 2, and 3 is the most
    assert quantizer(quantizer.trained).tolist() == [[3.0, -1.0, 0.0]]
    quantizer.requantize()
    assert quantizer.planes.live.tolist() == [3]
    assert quantizer(quantizer.trained).tolist() == [[3.0, -1.0, 0.0]]
    assert _bits(quantizer) == [3], "a width is paid for when it is used"
    quantizer.planes.positive[2, 0, 2] = 1 / quantizer.planes.unit()[2, 0, 0]
    assert _bits(quantizer) == [4]
    quantizer.planes.positive[2, 0, 2] = 0
    quantizer.requantize()
    assert quantizer.planes.live.tolist() == [2], "a plane that was not used is dropped again"


@torch.no_grad()
def test_eight_bits_are_the_most() -> None:
    quantizer = _quantizer([[127, 1]])
    quantizer.planes.positive[6] = 2 / quantizer.planes.unit()[6]
    quantizer.requantize()
    assert quantizer.planes.live.tolist() == [7]
    assert quantizer(quantizer.trained)[0, 0] == 127


@torch.no_grad()
def test_a_low_plane_that_lost_its_norm_is_zero() -> None:
    quantizer = _quantizer([[7, 5, 3, -2]])
    quantizer.planes.positive[0] *= VANISHED + 0.01
    assert _bits(quantizer) == [4]
    quantizer.planes.positive[0] *= (VANISHED - 0.01) / (VANISHED + 0.01)
    assert _bits(quantizer) == [3]
    weight = quantizer(quantizer.trained)
    assert (weight % 2 == 0).all()
    quantizer.requantize()
    assert quantizer.shift.tolist() == [1]
    assert torch.equal(quantizer(quantizer.trained), weight)


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_bit_costs_what_the_group_lasso_weighs(per_layer: bool) -> None:
    """Yang et al., ICLR 2021, eq. 4: the sum over planes of sqrt(sum (p^2 + n^2)), of a layer or of each channel."""
    torch.manual_seed(0)
    quantizer = _quantizer([[7, 5, 0], [-6, 1, 2]], per_layer=per_layer, widths=(2, 3, 4))
    planes = quantizer.planes
    with torch.no_grad():
        for parameter in (planes.positive, planes.negative):
            parameter.copy_(parameter * 0.7 + 0.1 / planes.unit())
    bits = quantizer.distribution(hard=False) @ torch.tensor([2.0, 3, 4]).double()
    assert bits.detach().tolist() == [4.0, 4.0]
    shares = torch.tensor([0.3, 0.7]).double()
    (bits @ shares).backward()
    p, n = (x.detach().double().requires_grad_() for x in (planes.positive, planes.negative))
    squares = (planes.unit() * p).square() + (planes.unit() * n).square()
    lasso = squares.sum((1, 2)).sqrt().sum() if per_layer else (squares.sum(2).sqrt().sum(0) * shares).sum()
    wanted = torch.autograd.grad(lasso, (p, n))
    for found, expected in zip((planes.positive.grad, planes.negative.grad), wanted, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


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


@pytest.mark.parametrize("live", range(1, 8))
def test_a_digit_moves_at_a_rate_that_the_weight_can_bear(live: int) -> None:
    quantizer = _quantizer([[2**live - 1]], widths=range(2, 9))
    unit = quantizer.planes.unit()[:live, 0, 0].tolist()
    for b, value in enumerate(unit):
        share = value * 2**b / (2**live - 1)
        assert share <= UNIT_OF_RANGE
        assert value == LARGEST_UNIT or 2 * share > UNIT_OF_RANGE, "and no slower"


def test_the_gradient_of_a_digit_is_its_place_times_the_step() -> None:
    quantizer = _quantizer([[5, -2]])
    with torch.no_grad():
        quantizer.log_step.fill_(math.log(0.25))
    upstream = torch.tensor([[1.0, -3.0]])
    weight = nn.Parameter(torch.zeros(1, 2))
    (quantizer(weight) * upstream).sum().backward()
    for b, unit in enumerate((16, 16, 8)):  # at most eight ranges of 7
        assert quantizer.planes.positive.grad[b].tolist() == (unit * 0.25 * 2**b * upstream).tolist()
        assert quantizer.planes.negative.grad[b].tolist() == (-unit * 0.25 * 2**b * upstream).tolist()
    masked = quantizer.planes.positive.grad[3:]
    assert masked.tolist() == [(8 * 4 * 0.25 * upstream).tolist()] * 4, "as the highest: a plane may be grown any time"
    quantizer.planes.positive.data[3:] = 0.5
    assert not quantizer.planes.digits()[0][3:].any()
    quantizer.planes.project()
    assert not quantizer.planes.positive[3:].any()
    assert quantizer.log_step.grad.tolist() == [0.25 * (5 + 6)]
    assert weight.grad.tolist() == [[0.0, 0.0]], "the user's weight is not used"


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


@torch.no_grad()
def test_what_is_known_of_digits_follows_them() -> None:
    quantizer = _quantizer([[7, 5, 0], [-6, 1, 2]], per_layer=False)
    planes = quantizer.planes
    changes = (
        lambda: planes.positive.mul_(0.5),
        lambda: planes.negative.add_(0.3),
        lambda: planes.live.sub_(1),
        lambda: planes.load_state_dict(_quantizer([[1, 2, 3], [3, 2, 1]], per_layer=False).planes.state_dict()),
    )
    for change in (lambda: None, *changes):
        change()
        for known, now in ((planes.known_sums, planes.sums), (planes.known_squares, planes.squares)):
            assert torch.equal(known(), now())
            assert known() is known(), "computed once"


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
def test_channels_that_are_closed_have_no_say_in_the_width() -> None:
    quantizer = _quantizer([[127, 3], [1, -1], [0, 1]])
    assert _bits(quantizer) == [8, 8, 8]
    quantizer.planes.counted[0] = False
    assert _bits(quantizer) == [2, 2, 2]
    quantizer.requantize()
    assert quantizer.planes.live.tolist() == [1]
    assert quantizer(quantizer.trained).tolist() == [[1.0, 1.0], [1.0, -1.0], [0.0, 1.0]], "closed ones are what fits"


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


@torch.no_grad()
def test_widths_on_offer_may_have_gaps() -> None:
    """Integers of 5 bits in a width of 8: fewer bits than 5 lose what they lose, and more than 8 are finer."""
    integers = [[15, -7, 3, 1, 9, -12]]
    quantizer = _quantizer(integers, widths=(2, 4, 8))
    assert quantizer.column().tolist() == [2]
    assert quantizer.steps(quantizer.trained).tolist() == [[8.0, 2.0, 1.0]]
    assert torch.equal(quantizer.preference(), _quantizer(integers, widths=(2, 4, 5)).preference()), "what is lost"
    narrow = _quantizer([[3, -1, 2]], widths=(3, 5, 8))
    assert narrow.steps(narrow.trained).tolist() == [[1.0, 2.0**-2, 2.0**-5]]


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_what_is_cut_rounds_as_what_was_trained(seed: int) -> None:
    """Digits that were just written and lost their lowest plane make sums halfway between two integers."""
    random = torch.Generator().manual_seed(seed)
    quantizer = _quantizer(torch.randint(-7, 8, (8, 200), generator=random).tolist(), per_layer=False)
    quantizer.log_step.copy_(0.1 * torch.randn(8, generator=random))
    planes = quantizer.planes
    for digits in (planes.positive, planes.negative):
        digits[0] *= torch.rand(digits[0].shape, generator=random) < 0.1
    assert (planes.lowest() == 1).all()
    wanted, steps = quantizer(quantizer.trained), quantizer.steps(quantizer.trained)
    step = steps.gather(1, quantizer.column()[:, None])
    levels = torch.round(quantizer.values(quantizer.trained) / step)
    torch.testing.assert_close(step * levels, wanted, rtol=1e-6, atol=0)
