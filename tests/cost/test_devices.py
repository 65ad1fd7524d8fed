"""Devices: published and hand-computed values, and slopes over a tile."""

import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from usages import Words, one_layer, zoo_graph
from zerobit.bits import BitDist, NetBits
from zerobit.cost.base import AbstractCost, Usage
from zerobit.cost.devices.cortex_m import FITTED, Constants, Flash, Instructions
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import mean_inside, uniform, usage
from zerobit.formats import GRID
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.ir import Graph, Kind

# --- values


@pytest.mark.parametrize(
    ("name", "cycles"), [("resnet8", (155_241, 104_361, 78_921)), ("dscnn", (204_838, 172_582, 156_454))]
)
def test_ne16_published_values(name: str, cycles: tuple[int, int, int]) -> None:
    """Official cost code of Motetti et al. (IEEE TC 2024), run on MLPerf Tiny networks; no pruning."""
    graph = zoo_graph(name)
    assert [named_cost("ne16")(usage(graph, uniform(graph, b))).item() for b in (8, 4, 2)] == list(cycles)


def test_ne16_published_values_of_layers() -> None:
    use = usage(zoo_graph("resnet8"), uniform(zoo_graph("resnet8"), 8))
    found = [named_cost("ne16")(replace(use, layers=(layer,))).item() for layer in use.layers]
    assert found == [25531, 25531, 25531, 12780, 23616, 4284, 11808, 22644, 3312, 204]


@pytest.mark.parametrize(
    ("bits", "cycles"),
    [
        (8, {1: 2115, 8: 4194, 16: 6570, 31: 11025, 32: 11322, 33: 13437, 64: 22644}),
        (2, {1: 1899, 8: 2466, 16: 3114, 31: 4329, 32: 4410, 33: 6309, 64: 8820}),
    ],
)
def test_ne16_published_values_by_channels(bits: int, cycles: dict[int, int]) -> None:
    for channels, wanted in cycles.items():
        use = one_layer({bits: channels}, 64, kernel=(3, 3), size=(8, 8))
        assert named_cost("ne16")(use).item() == wanted


def test_ne16_by_hand() -> None:
    ne16 = named_cost("ne16")
    # 1 x 1, two tiles of inputs and two patches: 2 * (19 + 6 + 6 + 2) + (9 + 13), and 2 + 1 cycles per channel
    assert ne16(one_layer({4: 5}, 17, kernel=(1, 1), size=(3, 4))).item() == 2 * (2 * 33 + 22 + 5 * 3)
    # a linear layer on ten words: patches of nine
    assert ne16(one_layer({4: 5}, 17, size=(10,))).item() == 2 * (2 * 33 + 22 + 5 * 3)
    # each width is a run of its own: 3 and 8 bit, 3 x 3, one tile of inputs and one patch
    assert ne16(one_layer({0: 9, 3: 5, 8: 2}, 16, kernel=(3, 3), size=(3, 3))).item() == (45 + 22 + 5 * 4) + (
        45 + 22 + 2 * 9
    )
    # depthwise, 17 channels in two tiles: 31 + 6 + 6 + 2 + 22 per tile, 1 + 8 + 1 cycles per channel
    use = one_layer({8: 17}, 17, kernel=(3, 3), size=(3, 3), depthwise=True, groups=17)
    assert ne16(use).item() == 2 * 67 + 17 * 10
    # depthwise over 5 x 5: four runs over a window padded to 6 x 6
    use = one_layer({8: 17}, 17, kernel=(5, 5), size=(3, 3), depthwise=True, groups=17)
    assert ne16(use).item() == 4 * (2 * 67 + 17 * 10)
    # two groups of 40 channels each, that read 16 inputs each: two tiles in both
    use = one_layer({8: 80}, 32, kernel=(3, 3), size=(3, 3), groups=2)
    assert ne16(use).item() == 2 * (2 * 67 + 40 * 9)
    # 1-D of 3 taps over length 7: three 1 x 1 runs, three patches
    assert ne16(one_layer({8: 4}, 16, kernel=(3,), size=(7,))).item() == 3 * 3 * (33 + 22 + 4 * 2)
    # 3-D: three 3 x 3 runs for each of two output planes
    assert ne16(one_layer({8: 4}, 16, kernel=(3, 3, 3), size=(2, 3, 3))).item() == 2 * 3 * (67 + 4 * 9)
    # a transposed convolution walks over its outputs
    transposed = one_layer({8: 4}, 16, kernel=(3, 3), size=(6, 6), kind=Kind.CONV_TRANSPOSE)
    layer = replace(transposed.layers[0], positions=torch.tensor(9.0, dtype=torch.float64))
    assert ne16(replace(transposed, layers=(layer,))).item() == 4 * (67 + 4 * 9)


def test_ne16_fractional_counts_open_a_tile() -> None:
    ne16 = named_cost("ne16")
    half = ne16(one_layer({8: 0.5}, 16.5, kernel=(3, 3), size=(3, 3))).item()
    assert half == 2 * 45 + 22 + 0.5 * (2 * 8 + 1)
    assert ne16(one_layer({8: 32 + 1e-9}, 16, kernel=(3, 3), size=(3, 3))).item() == pytest.approx(67 + 32 * 9)


def test_a_narrower_image_has_fewer_tiles() -> None:
    """A linear layer over the columns of an image cuts them: here 6 of 7 are left, in 3 rows."""
    use = one_layer({8: 4}, 16, kernel=(3, 3), size=(3, 7))
    narrow = replace(use.layers[0], positions=torch.tensor(18.0, dtype=torch.float64))
    narrow_use = replace(use, layers=(narrow,))
    assert [named_cost("ne16")(u).item() for u in (use, narrow_use)] == [3 * (67 + 4 * 9), 2 * (67 + 4 * 9)]
    product = 2 * 144 + 5 + 14 * 36 + 10
    assert [named_cost("gap8")(u).item() for u in (use, narrow_use)] == [4 * product, 3 * product]


def test_gap8_by_hand() -> None:
    gap8 = named_cost("gap8")
    # 3 x 3 on 3 inputs, output 9 high and 5 wide: 2 * 3 patches; copy 2 * 27; two blocks of 4 channels;
    # ceil(27 / 4) = 7 steps
    use = one_layer({2: 3, 8: 2}, 3, kernel=(3, 3), size=(9, 5))
    assert gap8(use).item() == 2 * 3 * (2 * 27 + 2 * (5 + 14 * 7 + 10))
    use = one_layer({4: 6}, 6, kernel=(3, 3), size=(9, 5), depthwise=True, groups=6)
    assert gap8(use).item() == 4 * 2 * 45 * 9
    assert gap8(one_layer({8: 10}, 65)).item() == 33 * 3
    assert gap8(one_layer({8: 10}, 65, size=(7,))).item() == 7 * 33 * 3
    # two groups: each copies 2 * 9 * 2 and computes one block in ceil(18 / 4) = 5 steps
    use = one_layer({8: 8}, 4, kernel=(3, 3), size=(8, 2), groups=2)
    assert gap8(use).item() == 2 * (2 * 18 + 5 + 14 * 5 + 10)


def test_diana_by_hand() -> None:
    diana = named_cost("diana")
    # digital: ceil(20 / 16) = 2 blocks, 24 inputs, 2 steps over 20 columns, 10 rows, 3 x 3; moved 200 * 44 / 8
    digital = 2 * 24 * 2 * 10 * 9 + 200 * 44 / 8
    assert diana(one_layer({3: 12, 8: 8}, 24, kernel=(3, 3), size=(10, 20))).item() == digital
    # analog, 64 channels: columns allow 8 at once, rows (U + 2) * 64 * 3 <= 1152 only 4
    analog = 200 / 4 * 18.2 + 8 * 24 * 9
    assert diana(one_layer({2: 64}, 24, kernel=(3, 3), size=(10, 20))).item() == pytest.approx(analog, rel=1e-14)
    # side by side: the slower one counts
    both = one_layer({2: 64, 8: 20}, 24, kernel=(3, 3), size=(10, 20))
    assert analog < digital == diana(both).item()
    # more than fits: 513 columns and 129 inputs are two blocks each, one position at once
    use = one_layer({2: 513}, 129, size=(5,))
    assert diana(use).item() == pytest.approx(2 * 2 * 5 * 18.2 + 8 * 129, rel=1e-14)
    # depthwise is digital, whatever the width
    use = one_layer({2: 20}, 20, kernel=(3, 3), size=(10, 20), depthwise=True, groups=20)
    assert diana(use).item() == 20 * 2 * 10 * 9 + 200 * 40 / 8
    assert named_cost("diana.time")(both).item() == pytest.approx(digital / 260e6, rel=1e-15)


#: Counted on QEMU, cortex-m4, at 8 bits (docs/cortex_m.md): instructions, and bytes of flash without the input.
CORTEX_M = {"resnet8": (42_017_360, 87_376), "dscnn": (20_367_080, 33_606)}


@pytest.mark.parametrize("name", CORTEX_M)
def test_cortex_m_is_close_to_counts(name: str) -> None:
    """Sums and pools are not in the cost of instructions; a table of places is in that of flash, 2 B per channel."""
    graph = zoo_graph(name)
    use = usage(graph, uniform(graph, 8))
    instructions, flash = CORTEX_M[name]
    assert named_cost("cortex_m")(use).item() == pytest.approx(instructions, rel=0.03)
    places = 2 * sum(layer.weight.counts.sum().item() for layer in use.layers)
    assert named_cost("cortex_m.flash")(use).item() - places == pytest.approx(flash, rel=0.02)


def test_cortex_m_has_the_constants_that_were_fitted() -> None:
    """docs/cortex_m.md is written by the script that fits them."""
    page = (Path(__file__).parents[2] / "docs" / "cortex_m.md").read_text(encoding="utf-8")
    found = {k: float(v) for k, v in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", page, re.MULTILINE)}
    assert found == asdict(FITTED)
    assert f"{Flash().call} (`call`)" in page
    assert f"{Flash().code} (`code`)" in " ".join(page.split())


def test_cortex_m_by_hand() -> None:
    c = Constants(**{name: float(2 * i + 3) for i, name in enumerate(asdict(FITTED))})
    cost = Instructions(c)

    def passes(fours: float, ones: float, rows: int, columns: int, lines: float, runs: float, values: float) -> float:
        four = c.window + c.line * lines + c.run * runs + c.value * values
        one = c.single_window + c.single_line * lines + c.single_run * runs + c.single_value * values
        return rows * (columns * (fours * four + ones * one) + c.row * (fours + ones))

    # linear: one line of ten values; what is left of four takes a pass of its own, a single channel a shorter one
    fours_and_ones = [(0, 0), (0, 1), (1, 0), (1, 0), (1, 0), (1, 1), (2, 0), (2, 0), (2, 0)]
    for n, (fours, ones) in enumerate(fours_and_ones):
        wanted = c.call + passes(fours, ones, 1, 1, 1, 1, 10) + n * (c.output + c.channel)
        assert cost(one_layer({8: n}, 10)).item() == wanted
        widths = {2: n // 2, 4: n - n // 2}  # share passes, and are unpacked
        more = 10 * (n // 2 * c.unpack_2 + (n - n // 2) * c.unpack_4)
        assert cost(one_layer(widths, 10)).item() == wanted + more
    # widths between round up
    assert cost(one_layer({3: 5, 5: 2}, 10)).item() == cost(one_layer({4: 5, 8: 2}, 10)).item()
    # on seven words, in one row
    assert cost(one_layer({8: 5}, 10, size=(7,))).item() == c.call + passes(1, 1, 1, 7, 1, 1, 10) + 5 * (
        7 * c.output + c.channel
    )
    # 3 x 5 on two channels: three lines of 5 * 2 values, 4 rows of 6
    use = one_layer({8: 4}, 2, kernel=(3, 5), size=(4, 6))
    assert cost(use).item() == c.call + passes(1, 0, 4, 6, 3, 3, 30) + 4 * (24 * c.output + c.channel)
    # with padding, 2.5 of the lines and 4 of the columns are inside: 2.5 * 4 * 2 values
    padded = replace(use, layers=(replace(use.layers[0], inside=(2.5, 4.0)),))
    assert cost(padded).item() == c.call + passes(1, 0, 4, 6, 2.5, 2.5, 20) + 4 * (24 * c.output + c.channel)
    # dilated: gaps between the places of a line
    dilated = replace(use, layers=(replace(use.layers[0], dilation=(1, 2)),))
    assert cost(dilated).item() == c.call + passes(1, 0, 4, 6, 3, 15, 30) + 4 * (24 * c.output + c.channel)
    # two groups of five channels, which read one input each
    use = one_layer({4: 10}, 2, kernel=(3, 5), size=(4, 6), groups=2)
    unpacked = 10 * 15 * c.unpack_4
    wanted = 2 * (c.call + passes(1, 1, 4, 6, 3, 15, 15)) + 10 * (24 * c.output + c.channel) + unpacked
    assert cost(use).item() == wanted
    # depthwise: each channel alone, in one call
    use = one_layer({4: 10}, 10, kernel=(3, 5), size=(4, 6), groups=10, depthwise=True)
    wanted = c.call + passes(0, 10, 4, 6, 3, 15, 15) + 10 * (24 * c.output + c.channel) + unpacked
    assert cost(use).item() == wanted


def test_cortex_m_flash_by_hand() -> None:
    flash = Flash(call=100, code=1000)
    assert flash(one_layer({2: 4, 4: 3, 8: 2}, 10)).item() == 10 * (4 * 2 + 3 * 4 + 2 * 8) / 8 + 9 * 11 + 100 + 1000
    assert flash(one_layer({8: 4}, 8, kernel=(3, 3), size=(5, 5), groups=2)).item() == 4 * 36 + 44 + 200 + 1000
    use = one_layer({8: 8}, 8, kernel=(3, 3), size=(5, 5), groups=8, depthwise=True)
    assert flash(use).item() == 72 + 88 + 100 + 1000


def test_cortex_m_prices_fractions_of_channels() -> None:
    """A search asks for expected counts: what opens a pass pays for it, up to rounding errors."""
    cost = Instructions(Constants(window=8, single_window=1))
    found = [cost(one_layer({8: n}, 1)).item() for n in (0.00001, 0.5, 1.00001, 1.5, 4.00001, 4.5, 5.5)]
    assert found == [0, 1, 1, 8, 8, 9, 16]


def test_a_window_is_inside_as_often_as_a_convolution_of_ones_says() -> None:
    grid = itertools.product((5, 6, 7), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 4), (1, 2))
    for size, kernel, stride, pad, dilation in grid:
        if size + 2 * pad < dilation * (kernel - 1) + 1:
            continue
        ones = torch.ones(1, 1, size, dtype=torch.float64), torch.ones(1, 1, kernel, dtype=torch.float64)
        sums = torch.conv1d(*ones, None, stride, pad, dilation)
        found = mean_inside(size, sums.shape[2], kernel, stride, pad, dilation)
        assert found == pytest.approx(sums.mean().item(), rel=1e-14)


def test_windows_of_layers_know_their_padding() -> None:
    layers = [
        nn.Conv2d(2, 3, (3, 5), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        nn.ConvTranspose2d(3, 2, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 0)),
        nn.Conv2d(2, 1, 3, padding="same"),
    ]
    graph = describe(capture(nn.Sequential(*layers).eval(), torch.zeros(1, 2, 6, 9)))
    use = usage(graph, uniform(graph, 8))
    # rows of 6: the outer places of 3 with gaps miss 1 of 4; columns of 9: three windows of 5
    assert [layer.dilation for layer in use.layers] == [(2, 1), (1, 1), (1, 1)]
    assert use.layers[0].output_shape[2:] == (4, 3)
    assert use.layers[0].inside == (10 / 4, 5.0)
    # spread to 7 x 7, with 1 row before and 2 behind, and 1 column before and behind
    assert use.layers[1].output_shape[2:] == (8, 8)
    assert use.layers[1].inside == ((2 + 5 * 3 + 2 + 1) / 8, (1 + 6 * 2 + 1) / 8)
    assert use.layers[2].inside == ((2 + 6 * 3 + 2) / 8, (2 + 6 * 3 + 2) / 8)


def test_mpic_time_and_energy() -> None:
    use = usage(zoo_graph("resnet8"), uniform(zoo_graph("resnet8"), 8))
    cycles = named_cost("mpic")(use).item()
    assert named_cost("mpic.time")(use).item() == pytest.approx(cycles / 250e6, rel=1e-15)
    mean_power = (5.30 + 5.39 + 5.46 + 5.38) / 4 * 1e-3
    assert named_cost("mpic.energy")(use).item() == pytest.approx(cycles / 250e6 * mean_power, rel=1e-14)


# --- slopes


def _slope(cost: AbstractCost, make: Callable[[Tensor], Usage], at: float, tile: float) -> tuple[float, float]:
    """Slope times tile, and the difference of one tile."""
    x = torch.tensor(float(at), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cost(make(x)), [x])
    with torch.no_grad():
        return float(slope) * tile, float(cost(make(x + tile)) - cost(make(x)))


#: Device, tile of outputs, tile of inputs, arguments of a layer.
STAIRCASES = {
    "ne16 3x3": ("ne16", 32, 16, {"kernel": (3, 3), "size": (8, 8)}),
    "ne16 1x1": ("ne16", 32, 16, {"kernel": (1, 1), "size": (8, 8)}),
    "ne16 5x4": ("ne16", 32, 16, {"kernel": (5, 4), "size": (8, 8)}),
    "ne16 linear": ("ne16", 32, 16, {"size": (10,)}),
    "ne16 grouped": ("ne16", 64, 32, {"kernel": (3, 3), "size": (8, 8), "groups": 2}),
    "ne16 depthwise": ("ne16", 16, None, {"kernel": (3, 3), "size": (8, 8), "depthwise": True, "groups": 96}),
    "gap8 3x3": ("gap8", 4, 4, {"kernel": (3, 3), "size": (8, 8)}),
    "gap8 linear": ("gap8", 4, 2, {}),
    "gap8 grouped": ("gap8", 8, 8, {"kernel": (3, 3), "size": (8, 8), "groups": 2}),
    "gap8 depthwise": ("gap8", 4, None, {"kernel": (3, 3), "size": (8, 8), "depthwise": True, "groups": 96}),
    "cortex_m 3x3": ("cortex_m", 4, 1, {"kernel": (3, 3), "size": (8, 8)}),
    "cortex_m linear": ("cortex_m", 4, 1, {}),
    "cortex_m grouped": ("cortex_m", 8, 2, {"kernel": (3, 3), "size": (8, 8), "groups": 2}),
    "cortex_m depthwise": ("cortex_m", 1, None, {"kernel": (3, 3), "size": (8, 8), "depthwise": True, "groups": 96}),
    "cortex_m flash": ("cortex_m.flash", 1, 1, {"kernel": (3, 3), "size": (8, 8)}),
}


@pytest.mark.parametrize("row", STAIRCASES)
@pytest.mark.parametrize("channels", [1, 16, 31, 32, 33])
@pytest.mark.parametrize("bits", [8, 4])
def test_slope_over_a_tile_is_what_the_tile_costs(row: str, channels: int, bits: int) -> None:
    name, outputs, inputs, arguments = STAIRCASES[row]
    unit = torch.tensor([float(b == bits) for b in GRID], dtype=torch.float64)
    by_output, jump = _slope(named_cost(name), lambda k: one_layer(unit * k, 48, **arguments), channels, outputs)
    assert by_output == pytest.approx(jump, rel=1e-12)
    if inputs is not None:
        by_input, jump = _slope(named_cost(name), lambda c: one_layer({bits: 48}, c, **arguments), channels, inputs)
        assert by_input == pytest.approx(jump, rel=1e-12)


@pytest.mark.parametrize("channels", [0, 17, 31, 32, 33])
def test_diana_slope_of_the_digital_unit(channels: int) -> None:
    """The first tile also pays for moving the inputs; the idle unit has a share of 2e-9 in the slope."""
    unit = torch.tensor([float(b == 8) for b in GRID], dtype=torch.float64)
    shape = {"kernel": (3, 3), "size": (8, 8)}
    by_output, jump = _slope(named_cost("diana"), lambda k: one_layer(unit * k, 48, **shape), channels, 16)
    assert by_output == pytest.approx(jump, rel=1e-8) if channels else 0 < by_output <= jump
    by_input, jump = _slope(named_cost("diana"), lambda c: one_layer({8: 48}, c, **shape), channels, 1)
    assert by_input == pytest.approx(jump, rel=1e-8)


def test_diana_slope_in_columns_is_that_between_powers_of_two() -> None:
    """From 128 to 256 channels the analog array computes half as many positions at once."""

    def make(channels: Tensor) -> Usage:
        unit = torch.tensor([float(b == 2) for b in GRID], dtype=torch.float64)
        return one_layer(unit * channels, 64, kernel=(1, 1), size=(8, 8))

    x = torch.tensor(128.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(named_cost("diana")(make(x)), [x])
    diana = named_cost("diana")
    jump = diana(make(torch.tensor(256.0))) - diana(make(torch.tensor(128.0)))
    # what the array takes once, for 512 columns, is spread over these: a step of use, and its rows
    once = (64 / 4 * 18.2 + 8 * 64) / 512
    assert float(slope) == pytest.approx(float(jump) / 128 + once, rel=1e-6)


def test_diana_shows_both_units_their_slope() -> None:
    counts = torch.tensor([{2: 64.0, 8: 16.0}.get(b, 0.0) for b in GRID], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(named_cost("diana")(one_layer(counts, 16, kernel=(1, 1), size=(16, 16))), [counts])
    assert slope[GRID.index(2)] > 0
    assert slope[GRID.index(8)] > slope[GRID.index(2)], "the digital unit is the slower one"
    assert slope[0] == 0


# A weight that is read along both of its dimensions.


def _words(is_tied: bool) -> Graph:
    return describe(capture(Words(is_tied).eval(), torch.randint(0, 40, (2, 5))))


@pytest.mark.parametrize("cost", ["macs", "bops", "mpic", "ne16", "gap8", "diana", "cortex_m", "ram"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_that_is_also_the_embedding_runs_as_one_of_its_own_does(cost: str, bits: int) -> None:
    tied, own = (named_cost(cost)(usage(g, uniform(g, bits))) for g in (_words(True), _words(False)))
    assert tied.item() == own.item() > 0


def test_each_word_counts_for_all_widths_of_the_embedding() -> None:
    graph = _words(True)
    bits = uniform(graph, 8)
    weights = {**bits.weights, "table.weight": BitDist.one_hot([0] * 4 + [2] * 3 + [8] * 9)}
    keep = {g.name: torch.tensor([0.0] * 4 + [1.0] * 12).double() if g.units == 16 else k
            for g, k in zip(graph.groups, bits.keep.values(), strict=True)}  # fmt: skip
    use = usage(graph, NetBits(keep, weights, bits.activations))
    table, head = use.weights[0], use.layers[-1].weight
    assert table.counts.tolist() == [4, 3, 0, 0, 0, 0, 0, 9]
    assert head.counts.tolist() == [0, 10, 0, 0, 0, 0, 0, 30]
    assert (head.fan_in.item(), table.fan_in.item()) == (12, 40)
