"""What a price tells widths: costs can be stairs, and a narrower width is worth something on every tread."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zerobit.cost import Bops, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.price import Strength
from zerobit.formats import GRID
from zerobit.search.attach import attach
from zerobit.search.choice import UnitRule
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.bsq import Bsq
from zerobit.search.methods.djpq import Djpq
from zerobit.search.methods.fracbits import FracBits
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.widths.base import with_even_slope
from zerobit.search.widths.fractional import FractionalChoice, FractionalWidth
from zerobit.search.widths.range_step import CompandedRange, StepWidth

WIDTHS = GRID[1:]
_METHODS: dict[str, AbstractMethod] = {
    "softmax": ChannelSoftmax(weight_bits=WIDTHS),
    "fracbits": FracBits(weight_bits=WIDTHS),
    "fracbits_layer": FracBits(weight_bits=WIDTHS, granularity="layer"),
    "djpq": Djpq(weight_bits=WIDTHS),
    "djpq_channel": Djpq(weight_bits=WIDTHS, granularity="channel"),
    "djpq_power_of_two": Djpq(weight_bits=(2, 4, 8), restrict="power_of_two"),
    "djpq_as_published": Djpq(weight_bits=WIDTHS, restrict="none"),
    "bsq": Bsq(weight_bits=WIDTHS),
    "bsq_channel": Bsq(weight_bits=WIDTHS, granularity="channel"),
}


@pytest.mark.parametrize("cost", [Size(), Bops()], ids=lambda cost: cost.name)
@pytest.mark.parametrize("method", list(_METHODS))
def test_a_price_alone_makes_every_width_narrow(method: str, cost: AbstractCost) -> None:
    """From 8 bit, past widths that take as many bytes, to 4 at most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
    net = attach(model, torch.randn(32, 8), _METHODS[method])
    price, steps = Strength(cost, 10.0), 120
    optimizer = torch.optim.Adam(net.param_groups(1e-3, 0.1))
    net.train()
    for step in range(steps):
        net.advance(step / steps)
        optimizer.zero_grad()
        price(net).backward()
        optimizer.step()
    net.advance(1.0)
    bits = torch.cat([dist.bits for dist in net.bits(hard=True).weights.values()])
    assert bits.max() <= 4


@pytest.mark.parametrize(
    ("width", "upper", "slope"),
    [
        (8.0, 8, 1.0),  # 8 bit for 2, six bits apart
        (7.5, 8, 1.0),
        (4.5, 5, 2.0),  # 8 for 2, three apart
        (4.0, 5, 2.0),
        (3.5, 4, 1.0),  # 4 for 2
        (2.5, 3, 2.0),
        (1.5, 2, 1.0),  # 2 for 0
    ],
)
def test_the_slope_is_the_mean_from_the_narrowest_width(width: float, upper: int, slope: float) -> None:
    stored = torch.tensor([{0: 0, 2: 2, 3: 4, 4: 4}.get(b, 8) for b in GRID], dtype=torch.float64)
    for points in (GRID, WIDTHS) if width >= 2 else (GRID,):
        bits = torch.tensor([width], requires_grad=True)
        shares = torch.zeros(1, len(points))
        found = with_even_slope(shares, bits, torch.tensor([points.index(upper)]), points)
        assert torch.equal(found.detach(), shares.double())
        (found @ stored[-len(points) :]).sum().backward()
        assert bits.grad is not None
        assert float(bits.grad) == slope


def _fractional(width: float) -> tuple[Tensor, Tensor]:
    choice = FractionalWidth(1, WIDTHS, 8, per_layer=True)
    choice.width.data.fill_(width)
    return choice.view(hard=False), choice.width


def _fractional_unit(width: float) -> tuple[Tensor, Tensor]:
    choice = FractionalChoice(1, WIDTHS, 8, removable=False, rule=UnitRule())
    choice.width.data.fill_(width)
    return choice.view(hard=False)[:, 1:], choice.width


@pytest.mark.parametrize("width", [2.0, 2.25, 3.0, 5.5, 8.0])
@pytest.mark.parametrize("choice", [_fractional, _fractional_unit])
def test_a_cost_sees_the_blend_and_where_it_is_linear_its_own_slope(
    choice: Callable[[float], tuple[Tensor, Tensor]], width: float
) -> None:
    view, parameter = choice(width)
    bits = view @ torch.tensor(WIDTHS, dtype=torch.float64)
    assert bits.tolist() == [width]
    (slope,) = torch.autograd.grad(bits.sum(), parameter)
    assert slope.tolist() == [1.0]


@torch.no_grad()
def test_widths_at_the_top_are_charged_wherever_rounding_puts_them() -> None:
    """The step of the widest width gives 8 bits and a hair for some ranges."""
    ranges = torch.linspace(0.01, 3, 400)
    choice = StepWidth(400, WIDTHS, CompandedRange(ranges, learns_exponent=False), 1, "integer")
    assert (choice.bits() > 8).any()
    with torch.enable_grad():
        bits = choice.view(hard=False) @ torch.tensor(WIDTHS, dtype=torch.float64)
        (slope,) = torch.autograd.grad(bits.sum(), choice.log_step)
    assert (slope < 0).all(), "a larger step is a narrower width"
