"""Bit planes are the binary digits of a weight; those in use are its width."""

import math

import pytest
import torch
from torch import nn

from zerobit.search.widths.planes import LARGEST_UNIT, UNIT_OF_RANGE, VANISHED, PlaneQuantizer


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


@pytest.mark.parametrize("live", range(1, 8))
def test_a_digit_moves_at_a_rate_that_the_weight_can_bear(live: int) -> None:
    quantizer = _quantizer([[2**live - 1]], widths=range(2, 9))
    unit = quantizer.planes.unit()[:live, 0, 0].tolist()
    for b, value in enumerate(unit):
        share = value * 2**b / (2**live - 1)
        assert share <= UNIT_OF_RANGE / live, "all planes move at once"
        assert value == LARGEST_UNIT or 2 * share > UNIT_OF_RANGE / live, "and no slower"


def test_the_gradient_of_a_digit_is_its_place_times_the_step() -> None:
    quantizer = _quantizer([[5, -2]])
    with torch.no_grad():
        quantizer.log_step.fill_(math.log(0.25))
    upstream = torch.tensor([[1.0, -3.0]])
    weight = nn.Parameter(torch.zeros(1, 2))
    (quantizer(weight) * upstream).sum().backward()
    for b, unit in enumerate((16, 8, 4)):  # together at most eight ranges of 7
        assert quantizer.planes.positive.grad[b].tolist() == (unit * 0.25 * 2**b * upstream).tolist()
        assert quantizer.planes.negative.grad[b].tolist() == (-unit * 0.25 * 2**b * upstream).tolist()
    masked = quantizer.planes.positive.grad[3:]
    assert masked.tolist() == [(4 * 4 * 0.25 * upstream).tolist()] * 4, "as the highest: a plane may be grown any time"
    quantizer.planes.positive.data[3:] = 0.5
    assert not quantizer.planes.digits()[0][3:].any()
    quantizer.planes.project()
    assert not quantizer.planes.positive[3:].any()
    assert quantizer.log_step.grad.tolist() == [0.25 * (5 + 6)]
    assert weight.grad.tolist() == [[0.0, 0.0]], "the user's weight is not used"


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
