"""DJPQ: the gradients of its quantizer, widths from range and step, gates by information, and what becomes of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from cases import case
from searches import attached, scramble
from zerobit.bits import blend
from zerobit.cost import Bops
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import FormatError
from zerobit.quant.companded import MAX_SLOPE, clipped_quantize, compand, companded_quantize
from zerobit.search.choice import UnitRule
from zerobit.search.gates.bottleneck import START_LOG_VARIANCE, UNIT, BottleneckGate
from zerobit.search.methods.djpq import Djpq
from zerobit.search.net import SearchNet
from zerobit.search.slots import Along, NoiseSlot
from zerobit.search.widths.range_step import CompandedRange, RangeActivationSlot, RangeQuantizer, StepWidth

# ---- the quantizer


def _reference(x: Tensor, d: Tensor, q: Tensor, t: Tensor, errors: Tensor | None = None) -> Tensor:
    """In operations that autograd differentiates; rounding errors, relative to the step, are constants."""
    d, q, t = d[:, None], q[:, None], t[:, None]
    u = torch.where(x.abs() < q, x.abs().clamp_min(1e-12), q.expand_as(x)).pow(t)
    errors = (torch.round(u / d) - u / d).detach() if errors is None else errors
    return torch.sign(x) * d * (u / d + errors)


def _leaves(rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 50, generator=random, dtype=torch.float64)
    d = 0.03 + 0.2 * torch.rand(rows, generator=random, dtype=torch.float64)
    q = 0.5 + torch.rand(rows, generator=random, dtype=torch.float64)
    t = 1 + torch.rand(rows, generator=random, dtype=torch.float64)
    return tuple(v.requires_grad_() for v in (x, d, q, t))


@pytest.mark.parametrize("rows", [1, 4])
def test_gradients_are_those_of_autograd(rows: int) -> None:
    """Exponents above 1, where the slope in x has a bound."""
    upstream = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    ours, theirs = _leaves(rows), _leaves(rows)
    found, wanted = companded_quantize(*ours), _reference(*theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (found * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    for name, a, b in zip("xdqt", ours, theirs, strict=True):
        assert b.grad is not None
        assert b.grad.abs().max() > 0.1
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("index", [0, 1, 2, 3], ids=["x", "step", "range", "exponent"])
def test_gradients_are_finite_differences_of_what_is_not_rounded(index: int) -> None:
    leaves = _leaves(1, seed=3)
    x, d, q, t = (v.detach() for v in leaves)
    u = torch.minimum(x.abs(), q[:, None]).pow(t[:, None])
    errors = torch.round(u / d[:, None]) - u / d[:, None]
    companded_quantize(*leaves).sum().backward()
    far = (x.abs() - q[:, None]).abs() > 1e-3  # from where values begin to be clipped, and from the sign's jump
    far &= x.abs() > 1e-3
    size = 1e-6
    varied = [[v.clone() for v in (x, d, q, t)] for _ in range(2)]
    varied[0][index] += size
    varied[1][index] -= size
    slope = (_reference(*varied[0], errors) - _reference(*varied[1], errors)) / (2 * size)
    grad = leaves[index].grad
    assert grad is not None
    if index == 0:
        torch.testing.assert_close(grad[far], slope[far], rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(grad, slope.sum().reshape(1), rtol=1e-5, atol=1e-5)


def test_the_slope_near_zero_has_a_bound() -> None:
    x = torch.tensor([[1e-6, 0.0, -1e-9, 0.3]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    companded_quantize(x, 0.01 * one, one, 0.5 * one).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :3].tolist() == [MAX_SLOPE] * 3
    assert float(x.grad[0, 3]) == pytest.approx(0.5 * 0.3**-0.5)


def test_values_are_companded_and_clipped() -> None:
    one = torch.ones(1)
    x = torch.tensor([[-2.0, -0.25, 0.0, 0.49, 3.0]])
    assert compand(x, one, 2 * one)[0].tolist() == pytest.approx([-1, -0.0625, 0, 0.2401, 1])
    found = companded_quantize(x, 0.25 * one, one, 0.5 * one)[0].tolist()
    assert found == pytest.approx([-1, -0.5, 0, 0.75, 1]), "0.7 is nearer to 0.75 than to 0.5"


@pytest.mark.parametrize("signed", [True, False])
def test_activations_have_the_gradients_of_autograd(signed: bool) -> None:
    x, d, q, _ = _leaves(1, seed=5)
    y, e, r, _ = _leaves(1, seed=5)
    upstream = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = clipped_quantize(x, d, q, signed=signed)
    clipped = torch.minimum(torch.maximum(y, -(r + e) if signed else torch.zeros(1, dtype=torch.float64)), r)
    wanted = e * (clipped / e + (torch.round(clipped / e) - clipped / e).detach())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-11)
    (found * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    torch.testing.assert_close(d.grad, e.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.grad, r.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("signed", [True, False])
def test_gradients_survive_half_precision(signed: bool) -> None:
    """Sums of rounding errors, of which the difference of two large sums would leave nothing."""
    random = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(100_000, generator=random).bfloat16() for _ in range(2))
    slopes = []
    for dtype in (torch.bfloat16, torch.float64):
        d, q = (torch.tensor([v], dtype=torch.float32, requires_grad=True) for v in (0.07, 1.5))
        y = clipped_quantize(x.to(dtype), d, q, signed=signed)
        (y * upstream.to(dtype)).sum().backward()
        slopes.append((d.grad.item(), q.grad.item()))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2, abs=1e-2 * abs(slopes[1][1]))


# ---- widths


@pytest.mark.parametrize(("levels", "bits"), [(127, 8), (7, 4), (1, 2), (3, 3), (math.sqrt(8 * 16) - 1, 4.5)])
def test_bits_count_the_steps_of_the_range(levels: float, bits: float) -> None:
    """log2(R / d + 1) + 1 with a sign, one less without (Wang et al., ECCV 2020)."""
    within = CompandedRange(torch.tensor([0.5]), learns_exponent=True)
    width = StepWidth(3, range(2, 9), within, 1, "none")
    with torch.no_grad():
        within.exponent.fill_(1.5)
        width.log_step.copy_(torch.tensor([0.5**1.5 / levels]).log())
    assert width.bits().item() == pytest.approx(bits, abs=1e-5)
    assert (width.probability().detach() @ torch.arange(2.0, 9.0).double()).tolist() == pytest.approx([bits] * 3)


@pytest.mark.parametrize(
    ("restrict", "bits", "nearest"),
    [("none", 4.4, 4), ("integer", 4.6, 5), ("integer", 2.1, 2), ("power_of_two", 5.6, 4), ("power_of_two", 5.7, 8)],
)
def test_the_nearest_width_on_offer_is_taken(restrict: str, bits: float, nearest: int) -> None:
    """By the logarithm for powers of two: the boundary between 4 and 8 is 2^2.5 = 5.66."""
    widths = (2, 4, 8) if restrict == "power_of_two" else range(2, 9)
    width = StepWidth(1, widths, CompandedRange(torch.ones(1), learns_exponent=False), 1, restrict)
    with torch.no_grad():
        width.log_step.fill_(-math.log(2 ** (bits - 1) - 1))
    assert width.hard_bits().tolist() == [nearest]
    assert int(width.preference().argmax()) == int(width.hard().argmax())
    trained = 2 ** (bits - 1) - 1 if restrict == "none" else 2 ** (nearest - 1) - 1
    assert 1 / width.step().item() == pytest.approx(trained, rel=1e-5)
    width.step().sum().backward()
    assert float(width.log_step.grad) == pytest.approx(1 / (2 ** (bits - 1) - 1), rel=1e-4), "as if it were the learned"


def test_a_step_outside_comes_back() -> None:
    width = StepWidth(1, (2, 4, 8), CompandedRange(torch.ones(1), learns_exponent=True), 1, "none")
    with torch.no_grad():
        for shift, bits in ((-100.0, 8), (100.0, 2)):
            width.log_step.fill_(shift)
            assert width.bits().item() == pytest.approx(bits, abs=1e-4)
            width.project()
            assert abs(width.log_step.item()) < 10
        width.within.log_range.fill_(1e6)
        width.within.exponent.fill_(-3.0)
        width.project()
        assert width.step().isfinite().all()
        assert width.within.exponent.item() == 0.5
        assert width.within.log_range.item() == pytest.approx(math.log(1000), rel=1e-5)


@pytest.mark.parametrize("x", [2.0, 3.0, 4.0, 8.0, 2.5, 7.9])
def test_a_blend_has_a_slope_everywhere(x: float) -> None:
    """Also on a point, where two blends meet, and at the last one."""
    points = (2, 3, 4, 8)
    value = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    shares = blend(value, points)
    (shares @ torch.tensor(points, dtype=torch.float64)).sum().backward()
    assert float(value.grad) == pytest.approx(1.0)
    assert shares.sum().item() == pytest.approx(1.0)


# ---- gates


def test_a_unit_goes_when_it_is_mostly_noise() -> None:
    gate = BottleneckGate(4, 1e-3, 2.0, UnitRule())
    with torch.no_grad():
        gate.mean.copy_(torch.tensor([1.0, -1.0, 0.01, 0.01]))
        gate.noise.copy_(torch.tensor([0.0, 6.9, -3.0, 0.0]) / UNIT)
    assert gate.hard().tolist() == [True, True, True, False], "alpha: 1, 1.008e-3, 2e-3, 1e-4"
    assert gate.log_odds()[:2].tolist() == pytest.approx([-math.log(1e-3) / 2, (-6.9 - math.log(1e-3)) / 2], abs=1e-5)
    torch.testing.assert_close(gate.probability().double(), torch.sigmoid(gate.log_odds()))
    expected = [0.5 * math.log1p(m * m / math.exp(v)) for m, v in ((1, 0), (1, 6.9), (0.01, -3), (0.01, 0))]
    assert gate.divergence().tolist() == pytest.approx(expected, rel=1e-3)
    assert gate.eval()().factor.tolist() == pytest.approx([1.0, -1.0, 0.01, 0.0])


def test_important_units_start_with_less_noise() -> None:
    """As much less as others have more: the start of VIBNet is the mean."""
    gate = BottleneckGate(5, 1e-3, 4.0, UnitRule())
    gate.order(torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0]))
    assert torch.argsort(gate.log_alpha()).tolist() == [1, 3, 0, 4, 2]
    assert bool(gate.hard().all())
    assert (UNIT * gate.noise.detach()).mean().item() == pytest.approx(START_LOG_VARIANCE, abs=0.02)


def test_noise_is_per_sample_and_unit_and_relative_to_the_mean() -> None:
    gate = BottleneckGate(2, 1e-3, 2.0, UnitRule())
    with torch.no_grad():
        gate.mean.copy_(torch.tensor([2.0, 0.5]))
        gate.noise.copy_(torch.tensor([0.0, -2.0]) / UNIT)
    slot = NoiseSlot(Along(("a",), torch.tensor([0, 1, 2]), False), 1).train()
    torch.manual_seed(0)
    value = torch.ones(20_000, 3, 2)
    noisy = slot(value, gate())
    assert torch.equal(noisy[:, :, 0], noisy[:, :, 1]), "the same at all positions"
    assert torch.equal(noisy[:, 2], value[:, 2]), "a channel of no group has none"
    assert noisy[:, :2, 0].std(0).tolist() == pytest.approx([0.5, math.exp(-1) / 0.5], rel=0.02)
    assert torch.equal(slot.eval()(value, gate()), value)


def test_the_penalty_starts_at_its_strength_and_falls_with_information() -> None:
    net = attached("digits", Djpq(information=0.25))
    assert net.penalty().item() == pytest.approx(0.25, rel=0.01)
    with torch.no_grad():
        for gate in _gates(net):
            gate.noise.fill_(20.0 / UNIT)
    assert net.penalty().item() < 1e-6
    assert attached("digits", Djpq(weight_bits=(2, 4))).penalty().item() == 0


def _gates(net: SearchNet) -> list[BottleneckGate]:
    return [module for module in net.modules() if isinstance(module, BottleneckGate)]


# ---- what becomes of it


@pytest.mark.parametrize("name", ["digits", "inverted_residual", "pre_activation", "tcn", "rows"])
def test_means_and_exponents_become_part_of_the_cut_network(name: str) -> None:
    net = scramble(attached(name, Djpq(granularity="channel")), 3).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, CompandedRange):
                module.log_range.sub_(0.3 * torch.rand(module.log_range.shape, generator=random))
                if isinstance(module.exponent, nn.Parameter):
                    module.exponent.add_(torch.rand(module.exponent.shape, generator=random) - 0.4)
    inputs = case(name).inputs(3, seed=1)
    small = apply(net, decide(net)).eval()
    with torch.no_grad():
        wanted, found = net(*inputs), small(*inputs)
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (wanted, found)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", ["digits", "inverted_residual", "recurrent", "tcn", "pre_activation"])
def test_the_task_hears_every_gates_noise(name: str) -> None:
    """A gate whose noise disturbs nothing would be closed by the penalty alone."""
    net = attached(name, Djpq()).train()
    torch.manual_seed(0)
    outputs = torch.utils._pytree.tree_leaves(net(*case(name).inputs(4)))
    sum((o * torch.randn(o.shape)).sum() for o in outputs if o is not None).backward()
    assert _gates(net)
    for gate in _gates(net):
        assert gate.noise.grad is not None
        assert gate.noise.grad.any()


def test_a_layers_levels_are_all_used_at_its_width() -> None:
    w = torch.linspace(-1, 1, 603).reshape(3, -1)
    quantizer = RangeQuantizer(w, range(2, 9), "none", per_channel=False, learns_exponent=True).eval()
    for bits in (2, 5, 8):
        quantizer.start_at(bits)
        levels = (quantizer(w) / quantizer.steps(w)[:, bits - 2, None]).round().unique()
        assert levels.tolist() == list(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
@torch.no_grad()
def test_a_start_from_a_width_has_the_range_of_least_squared_error(bits: int, per_channel: bool) -> None:
    """With the largest weight as its range, a layer would begin with little but zeros."""
    w = torch.randn(5, 300, generator=torch.Generator().manual_seed(bits))
    w[4] = 0
    quantizer = RangeQuantizer(w, range(2, 9), "integer", per_channel=per_channel, learns_exponent=True).eval()
    within = quantizer.choice.within
    assert torch.allclose(within.log_limit().exp()[0], w[0].abs().max() if per_channel else w.abs().max())
    quantizer.start_at(bits)
    assert (quantizer.choice.hard_bits() == bits).all()
    assert quantizer(w).isfinite().all()
    least, start = (quantizer(w) - w).square().sum(), within.log_limit().exp()
    for factor in (0.5, 0.8, 1.25, 2.0):
        within.fit(factor * start)
        quantizer.choice.start_at(bits)
        assert (quantizer(w) - w).square().sum() > least


@pytest.mark.parametrize("signed", [True, False])
def test_a_range_fits_what_it_sees_and_evaluation_is_a_plain_quantizer(signed: bool) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    values = values if signed else values.relu()
    slot = RangeActivationSlot(range(2, 9), signed, "none").eval()
    slot.fit(values)
    error = (slot(values) - values).square().mean() / values.square().mean()
    assert error < 1e-3
    step, low = slot.step(8), -128 if signed else 0
    levels = torch.round(slot(values) / step)
    assert low <= float(levels.min())
    assert float(levels.max()) == (127 if signed else 255)
    torch.testing.assert_close(
        slot(values), step * torch.clamp(torch.round(values / step), low, 127 + 128 * (not signed))
    )


def test_bops_push_widths_of_weights_and_activations_down() -> None:
    net = attached("digits", "djpq").train()
    Bops()(usage(net.graph, net.bits())).backward()
    slots = [m for m in net.modules() if isinstance(m, StepWidth)]
    slopes = [float(m.log_step.grad) for m in slots if m.log_step.grad is not None]
    assert all(slope <= 0 for slope in slopes)
    assert sum(slope < 0 for slope in slopes) > len(slots) // 2, "a larger step is fewer bits, of all that layers read"
    assert all(bool((g.noise.grad < 0).all()) for g in _gates(net)), "more noise is less kept"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"restrict": "three"}, "`restrict`"),
        ({"granularity": "layer"}, "`granularity`"),
        ({"information": -1.0}, "`information`"),
        ({"threshold": 0.0}, "`threshold`"),
        ({"sharpness": 0.0}, "`sharpness`"),
        ({"weight_bits": (0, 3), "restrict": "power_of_two"}, "`weight_bits` holds 3"),
        ({"weight_bits": (0, 1, 4), "restrict": "power_of_two"}, "`weight_bits` holds 1"),
        ({"activation_bits": (4, 6), "restrict": "power_of_two"}, "`activation_bits` holds 6"),
        ({"min_channels": 2.5}, "`min_channels`"),
        ({"start_bits": 1}, "`start_bits`"),
        ({"start_bits": 5, "restrict": "power_of_two"}, r"`start_bits` is 5; allowed are \(2, 4, 8\)"),
        ({"threshold": math.inf}, "`threshold` is inf"),
        ({"information": "0.1"}, "`information` is '0.1'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        Djpq(**arguments)


def test_powers_of_two_are_all_that_is_offered_when_restricted() -> None:
    method = Djpq(restrict="power_of_two")
    assert (method.weight_bits, method.activation_bits) == ((0, 2, 4, 8), (2, 4, 8))
    assert Djpq(restrict="power_of_two", weight_bits=(0, 8), activation_bits=8).weight_bits == (0, 8)
