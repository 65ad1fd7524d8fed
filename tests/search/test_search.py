"""The search network: what every method owes, over a table of methods and networks."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import captured, case
from searches import METHODS, QUICK, attached, choice_parameters, scramble
from zerobit.cost import Bops, Size, TableLatency
from zerobit.cost.usage import usage
from zerobit.errors import CaptureError, FormatError
from zerobit.formats import GRID
from zerobit.graph.rows import to_rows
from zerobit.search.attach import attach, calibrate
from zerobit.search.choice import MIN_TEMPERATURE, AbstractChoice, UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet
from zerobit.search.norms import unit_norms
from zerobit.search.slots import per_channel
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth

#: Every network with the two forms of choice, every method on two networks.
TABLE = [
    (name, method)
    for name in QUICK
    for method in METHODS
    if method in ("default", "shared") or name == "concat_branches"
]


def _outputs(net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(net(*inputs)) if t is not None]


@pytest.mark.parametrize(("name", "method"), TABLE)
def test_one_step_gives_every_parameter_a_finite_gradient(name: str, method: str) -> None:
    torch.manual_seed(0)
    net = attached(name, method).train()
    outputs = _outputs(net, case(name).inputs(4))
    use = usage(net.graph, net.bits())
    cost = sum(c(use) / c(use).detach() for c in (Size(), Bops(), TableLatency.load("mpic")))
    loss = sum((o * torch.randn(o.shape)).sum() for o in outputs) + cost
    loss.backward()
    missing = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    choices = {id(p) for p in choice_parameters(net)}
    still = [n for n, p in net.named_parameters() if id(p) in choices and not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(("name", "method"), TABLE)
def test_evaluation_is_the_hard_choice(name: str, method: str) -> None:
    """Rebuilt with plain functions: the chosen precision of each channel, nothing of the removed ones."""
    net = scramble(attached(name, method), seed=1).eval()
    bits = net.bits(hard=True)
    factors = {g.name: choice.factor() for g in net.graph.groups if (choice := net.group_choice(g)) is not None}
    for weight, dist in bits.weights.items():
        chosen = dist.bits
        assert dist.p.eq(1).sum() == len(chosen), "one width per channel"
        slot, w = net.weight_slot(weight), net.tensors()[weight]
        effective = _effective(net, weight)
        layout = net.graph.rows[weight]
        w, effective = to_rows(w, layout), to_rows(effective, layout)
        values, steps = slot.quantizer.values(w), slot.quantizer.steps(w)
        factor = per_channel([factors[g] for g in slot.groups], slot.index) if slot.groups else torch.ones(len(w))
        for c, b in enumerate(chosen.int().tolist()):
            expected = torch.zeros_like(w[c])
            if b:
                top, low = 2 ** (b - 1) - 1, -(2 ** (b - 1)) + (0 if slot.quantizer.full_range else 1)
                step = steps[c, slot.quantizer.widths.index(b)]
                expected = factor[c] * step * torch.clamp(torch.round(values[c] / step), low, top)
            torch.testing.assert_close(effective[c], expected, rtol=0, atol=0)


def _effective(net: SearchNet, weight: str) -> Tensor:
    """What the layer multiplies with, read off a run."""
    found: list[Tensor] = []
    hook = net.weight_slot(weight).register_forward_hook(lambda m, i, o: found.append(o))
    net(*net.example_inputs())
    hook.remove()
    return found[0]


@pytest.mark.parametrize(("name", "method"), TABLE)
def test_widths_are_the_offered_ones_and_enough_units_stay(name: str, method: str) -> None:
    net = scramble(attached(name, method), seed=2, spread=5.0)
    hard, how = net.bits(hard=True), METHODS[method]
    for dist in hard.weights.values():
        assert set(dist.bits.int().tolist()) <= {*how.weight_bits, 0}
    for dist in hard.activations.values():
        assert set(dist.bits.int().tolist()) <= set(how.activation_bits)
    for group in net.graph.groups:
        keep = hard.keep[group.name]
        least = group.units if group.frozen or 0 not in how.weight_bits else min(how.min_channels, group.units)
        assert set(keep.tolist()) <= {0.0, 1.0}
        assert keep.sum() >= least


@pytest.mark.parametrize(("name", "method"), TABLE)
def test_distributions_are_probabilities_and_agree_with_their_group(name: str, method: str) -> None:
    net = scramble(attached(name, method), seed=3)
    for hard in (False, True):
        bits = net.bits(hard=hard)
        for dist in (*bits.weights.values(), *bits.activations.values()):
            torch.testing.assert_close(dist.p.sum(1), torch.ones(len(dist.p)).double(), rtol=0, atol=1e-6)
            assert (dist.p > -1e-6).all()
        for weight, dist in bits.weights.items():
            for group, unit in net.graph.row_units(weight).items():
                ours = torch.as_tensor(unit >= 0)
                wanted = bits.keep[group][torch.as_tensor(unit)[ours]]
                torch.testing.assert_close(dist.keep[ours], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_user_keeps_model_and_names(method: str) -> None:
    model, _ = captured(case("linear_batch_norm"))
    before = copy.deepcopy(model.state_dict())
    net = attach(model, case("linear_batch_norm").inputs(4), METHODS[method])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    ours = {n for n, _ in net.named_parameters() if n.startswith("slots.")}
    kept = {n for n, _ in net.named_parameters()} - ours
    folded = {n for n, _ in model.named_parameters() if "bn" in n}
    assert {n for n, _ in model.named_parameters()} - folded <= kept


@pytest.mark.parametrize(
    ("start", "end", "progress", "expected"),
    [
        (1.0, 1.0, 0.5, 1.0),
        (1.0, 0.25, 0.0, 1.0),
        (1.0, 0.25, 0.5, 0.5),
        (1.0, 0.25, 1.0, 0.25),
        (1.0, 0.25, 2.0, 0.25),
        (4.0, 0.25, 0.5, 1.0),
        (1.0, 1e-10, 1.0, MIN_TEMPERATURE),
        (1.0, 1e-10, 0.9, MIN_TEMPERATURE),
    ],
)
def test_advance_sets_the_temperature(start: float, end: float, progress: float, expected: float) -> None:
    assert MIN_TEMPERATURE == 0.01
    method = ChannelSoftmax(sampling="softmax", start_temperature=start, end_temperature=end)
    net = attached("mlp", method)
    net.advance(progress)
    found = {m.temperature for m in net.modules() if isinstance(m, AbstractChoice)}
    assert list(found) == [pytest.approx(expected)]
    assert net.progress == progress


#: A sample is not the start, and two of the three published copies are coarse.
STARTING = [
    name
    for name, how in METHODS.items()
    if not isinstance(how, ChannelSoftmax) or (how.sampling != "gumbel" and how.grid != "minmax")
]


@pytest.mark.parametrize("method", STARTING)
def test_search_starts_near_the_trained_network(method: str) -> None:
    """Soft gates start below 1; unless they were scaled, much of the output would be gone after some layers."""
    row = case("concat_branches")
    model, _ = captured(row)
    net = attached(row.name, method).train()
    with torch.no_grad():
        wanted, found = torch.cat(_outputs(model, row.inputs(8))), torch.cat(_outputs(net, row.inputs(8)))
    error = (wanted - found).square().mean() / wanted.square().mean()
    assert error < 0.05
    along = (wanted * found).sum() / wanted.square().sum()
    assert along == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("p", "minimum", "kept"),
    [
        ((0.6, 0.4, 0.51), 1, (1, 0, 1)),
        ((0.5, 0.5, 0.501), 1, (0, 0, 1)),
        ((0.1, 0.3, 0.2), 1, (0, 1, 0)),
        ((0.1, 0.3, 0.2), 2, (0, 1, 1)),
        ((0.9, 0.3, 0.2), 2, (1, 1, 0)),
        ((0.1, 0.3, 0.2), 9, (1, 1, 1)),
        ((0.9, 0.8, 0.7), 1, (1, 1, 1)),
    ],
)
def test_gate_keeps_above_one_half_and_at_least_the_minimum(
    p: tuple[float, ...], minimum: int, kept: tuple[int, ...]
) -> None:
    gate = LogitGate(3, "hard", UnitRule(minimum))
    with torch.no_grad():
        gate.gate.copy_(torch.logit(torch.tensor(p)))
    assert gate.hard().int().tolist() == list(kept)
    assert gate.eval()().factor.tolist() == [float(k) for k in kept]


def test_hard_choice_is_not_the_argmax_of_the_joint_probability() -> None:
    """A gate of .55 over widths (.34, .33, .33) keeps, though removal is the likeliest single outcome."""
    net = attached("mlp")
    weight = "fc1.weight"
    gate = net.group_choice(net.graph.groups[0])
    width = net.weight_slot(weight).quantizer.choice
    assert isinstance(gate, LogitGate)
    assert isinstance(width, SoftmaxWidth)
    with torch.no_grad():
        gate.gate.fill_(torch.logit(torch.tensor(0.55)))
        width.width.copy_(torch.tensor([0.34, 0.33, 0.33]).log().expand_as(width.width))
    joint = gate.probability()[:1, None] * width.probability()[:1]
    assert joint.max() < 1 - 0.55
    assert net.bits(hard=True).weights[weight].bits.tolist() == [2.0] * 12


def test_at_least_so_many_units_stay_in_the_coupled_form() -> None:
    choice = CoupledChoice(4, (2, 8), "hard", removable=True, rule=UnitRule(2))
    with torch.no_grad():
        choice.width.copy_(torch.tensor([[9.0, 0, 1], [9, 5, 1], [9, 1, 7], [9, 0, 0]]))
    assert (choice.hard() @ torch.tensor([0, 2, 8])).tolist() == [0, 2, 8, 0]


def test_samples_are_drawn_once_per_group_and_pass() -> None:
    """A noisy gate is the same for the layers that hang together, and another one in the next pass."""
    net = attached("digits", "gumbel").train()
    group = net.graph.groups[0]
    choice = net.group_choice(group)
    assert choice is not None
    drawn: list[Tensor] = []
    choice.register_forward_hook(lambda m, i, o: drawn.append(o.factor))
    inputs = case("digits").inputs(2)
    net(*inputs)
    assert len(drawn) == 1
    net(*inputs)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("sampling", ["softmax", "gumbel"])
def test_a_cost_sees_no_noise(sampling: str) -> None:
    net = attached("digits", ChannelSoftmax(sampling=sampling)).train()
    values = {float(Size()(usage(net.graph, net.bits())).detach()) for _ in range(3)}
    assert len(values) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weight_bits": (0, 1, 8)}, "`weight_bits`"),
        ({"weight_bits": (0,)}, "`weight_bits`"),
        ({"weight_bits": ()}, "`weight_bits`"),
        ({"weight_bits": (2, 16)}, "`weight_bits`"),
        ({"activation_bits": (0, 8)}, "`activation_bits`"),
        ({"activation_bits": ()}, "`activation_bits`"),
        ({"sampling": "soft"}, "`sampling`"),
        ({"granularity": "kernel"}, "`granularity`"),
        ({"grid": "log"}, "`grid`"),
        ({"start_bits": 3}, "`start_bits`"),
        ({"start_bits": 0}, "`start_bits`"),
        ({"min_channels": 0}, "`min_channels`"),
        ({"start_temperature": 0.0}, "`start_temperature`"),
        ({"end_temperature": -1.0}, "`end_temperature`"),
        ({"end_temperature": math.inf}, "`end_temperature`"),
        ({"weight_bits": None}, "`weight_bits` holds None"),
        ({"weight_bits": (0, 4.0)}, "`weight_bits` holds 4.0"),
        ({"shared": True, "granularity": "layer"}, "`granularity`"),
        ({"shared": True, "start_bits": 8}, "`start_bits`"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        ChannelSoftmax(**arguments)


def test_order_and_repetition_of_widths_do_not_matter() -> None:
    assert ChannelSoftmax(weight_bits=(8, 2, 0, 2)) == ChannelSoftmax(weight_bits=(0, 2, 8))


@pytest.mark.parametrize("start_bits", [2, 4, 8])
def test_channels_start_from_the_given_width(start_bits: int) -> None:
    net = attached("mlp", ChannelSoftmax(start_bits=start_bits))
    bits = net.bits(hard=True)
    assert {b for d in bits.weights.values() for b in d.bits.tolist()} == {start_bits}


@pytest.mark.parametrize("method", METHODS)
def test_optimizer_groups_hold_every_parameter_once(method: str) -> None:
    """Also where a layer of the user's is called `slots`."""
    net = attached("clashing_names", method)
    groups = net.param_groups(lr=0.5, choice_lr=0.25, weight_decay=0.125)
    names, choices = {id(p): n for n, p in net.named_parameters()}, {id(p) for p in choice_parameters(net)}
    given = [names[id(p)] for g in groups for p in g["params"]]
    assert sorted(given) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            found = names[id(parameter)]
            is_choice = id(parameter) in choices
            is_weight = found in net.tensors() and parameter.dim() > 1
            assert group["weight_decay"] == (0.125 if is_weight else 0.0), found
            assert group["lr"] == (0.25 if is_choice and group["name"] != "planes" else 0.5), found
    torch.optim.Adam(groups)


def test_layer_granularity_gives_all_kept_channels_one_width() -> None:
    net = scramble(attached("digits", "layer"), seed=4)
    for dist in net.bits(hard=True).weights.values():
        assert len(set(dist.bits[dist.keep > 0].tolist())) <= 1


def test_coupled_choice_gives_all_layers_of_a_unit_one_width() -> None:
    net = scramble(attached("inverted_residual", "shared"), seed=4)
    bits = net.bits(hard=True)
    for group in net.graph.groups:
        widths = torch.full((group.units,), -1.0).double()
        for weight, dist in bits.weights.items():
            for c, unit in enumerate(net.graph.row_units(weight).get(group.name, ())):
                if unit >= 0:
                    assert widths[unit] in (-1, dist.bits[c])
                    widths[unit] = dist.bits[c]


class _Named(nn.Module):
    """Layers that bear the names torch gives to operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d, self.linear = nn.Conv2d(2, 4, 1), nn.Linear(4, 4)
        self.dropout_conv, self.last = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout_conv(self.conv2d(x)).mean((2, 3))
        return self.last(self.linear(x) + x)


@pytest.mark.parametrize("method", ["default", "activations", "shared"])
def test_slots_of_layers_and_of_values_of_one_name_are_apart(method: str) -> None:
    model, x = _Named().eval(), torch.randn(4, 2, 4, 4)
    net = attach(model, x, METHODS[method])
    choices = [n for n, _ in net.named_parameters() if n.endswith(("gate", "width"))]
    trained = [m for m in net.modules() if isinstance(m, AbstractChoice)]
    assert len(choices) == len(trained)
    for group in net.graph.groups:
        choice = net.group_choice(group)
        assert choice is None or isinstance(choice, (LogitGate, CoupledChoice))
    assert {op.weight for op in net.graph.weighted} == {
        f"{n}.weight" for n in ("conv2d", "linear", "dropout_conv", "last")
    }
    (net.train()(x).sum() + Size()(usage(net.graph, net.bits()))).backward()
    assert all(p.grad is not None for p in net.parameters())


class _Joined(nn.Module):
    """A depthwise convolution reads a concatenation: its channels belong to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1)
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(torch.cat([self.a(x), self.b(x)], 1)))
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["default", "shared", "softmax", "layer", "no_pruning", "published"])
def test_a_weight_may_belong_to_several_groups(method: str) -> None:
    net = scramble(attach(_Joined().eval(), torch.randn(4, 2, 4, 4), METHODS[method]), seed=5)
    bits = net.bits(hard=True)
    keep = torch.cat([bits.keep["a"], bits.keep["b"]])
    assert torch.equal((bits.weights["depthwise.weight"].bits > 0).double(), keep)
    net.eval()
    found: list[Tensor] = []
    net.weight_slot("depthwise.weight").register_forward_hook(lambda m, i, o: found.append(o))
    net(torch.randn(2, 2, 4, 4))
    assert torch.equal(found[0].flatten(1).any(1).double(), keep)


@pytest.mark.parametrize("method", ["default", "shared", "softmax", "no_pruning"])
@pytest.mark.parametrize("name", ["concat_add", "concat_batch_norm", "shared", "grouped", "tied", "recurrent"])
def test_awkward_networks_are_searched_too(name: str, method: str) -> None:
    net = scramble(attached(name, method), seed=6).train()
    loss = sum(o.sum() for o in _outputs(net, case(name).inputs(4))) + Size()(usage(net.graph, net.bits()))
    loss.backward()
    bits = net.bits(hard=True)
    assert {b for d in bits.weights.values() for b in d.bits.tolist()} <= set(GRID)


def test_calibration_fits_ranges_to_what_it_sees() -> None:
    row = case("digits")
    net = attached("digits")
    small = {s.name: float(net.activation_slot(s.name).log_step.exp().detach()) for s in net.sites}
    (x,) = row.inputs(16, seed=9)
    calibrate(net.train(), [((100 * x,), {})])
    assert net.training
    for site in net.sites:
        assert float(net.activation_slot(site.name).log_step.exp().detach()) > 10 * small[site.name]


def test_a_calibration_that_fails_leaves_the_network_as_it_was() -> None:
    net = attached("digits")
    (x,) = case("digits").inputs(4)
    before = _outputs(net, (x,))
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.inf
    for batch, named in ((broken, r"`.*` has values that are not finite"), (x[:, :, :2], None)):
        with pytest.raises(CaptureError, match=named):
            calibrate(net.train(), [((x,), {}), ((batch,), {})])
        assert net.training
        assert all(torch.equal(a, b) for a, b in zip(_outputs(net, (x,)), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_refused(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).to(dtype))
    with pytest.raises(CaptureError, match=r"`model` \(Sequential\): '1.weight' is torch.*allowed.*model.float"):
        attach(model, torch.ones(1, 4), ChannelSoftmax())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"`model`.*no weight of two or more dimensions"):
        attach(nn.ReLU(), torch.randn(2, 3), ChannelSoftmax())


def test_gates_start_open_in_the_order_of_their_units_norms() -> None:
    net = attached("digits")
    for group in net.graph.groups:
        choice = net.group_choice(group)
        if choice is None:
            continue
        assert isinstance(choice, LogitGate)
        logits, norms = choice.gate.detach(), unit_norms(net, group)
        assert (logits > 0).all()
        assert torch.equal(torch.argsort(logits), torch.argsort(norms))
        assert float(logits.mean()) == pytest.approx(float(torch.logit(torch.tensor(0.85))), rel=1e-5)
        soft = LogitGate(group.units, "softmax", UnitRule())
        soft.order(norms)
        assert (soft.gate == soft.gate[0]).all(), "their scale makes up for one value"
