"""Names of costs, and the modules and tables of devices behind them."""

from pathlib import Path

import pytest

from usages import one_layer, zoo_graph
from zerobit.cost import devices, registry
from zerobit.cost.registry import cost_names, device, device_names, named_cost
from zerobit.cost.table import TableLatency, load_target
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError


def test_a_cost_is_called_as_it_is_written() -> None:
    for name in device_names():
        metrics = device(name).metrics
        first, *others = metrics
        assert named_cost(name) is named_cost(f"{name}.{first}")
        assert named_cost(name).name == name
        assert all(named_cost(f"{name}.{m}").name == f"{name}.{m}" for m in others)
        assert device(name).source
    assert {"ne16", "gap8", "diana", "cortex_m", "mpic"} <= set(device_names())
    assert {n for n in cost_names() if "." not in n} == {"size", "macs", "bops", "ram", *device_names()}
    assert all(named_cost(n).name == n for n in ("size", "macs", "bops", "ram"))


@pytest.mark.parametrize("name", ["toaster", "mpic.colour", "ne16.time", "", "size.bytes"])
def test_an_unknown_cost_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(BudgetError, match=rf"`budget` names the cost '{name}'.*ne16.*ne16\.cycles"):
        named_cost(name)
    with pytest.raises(BudgetError, match=r"`target`.*ne16"):
        device(name)


MODULE = """
from zerobit.cost.device import timed
from zerobit.cost.analytic import Macs
DEVICE = timed("abacus", "a guess", Macs(), clock_hz=2.0, power_w=3.0)
"""


def test_a_device_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abacus.py").write_text(MODULE)
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(tmp_path)])
    registry.forget()
    try:
        use = usage(zoo_graph("resnet8"), uniform(zoo_graph("resnet8"), 8))
        assert named_cost("abacus")(use) == 12_501_632
        assert named_cost("abacus.time")(use) == 12_501_632 / 2
        assert named_cost("abacus.energy")(use) == 12_501_632 * 1.5
    finally:
        registry.forget()


TOML = """
source = "measured"
weight_bits = [2, 8]
clock_hz = 1000
power_w = 0.5
channel_multiple = 4
[macs_per_cycle]
8 = [2, 1.5]
4 = [4, 2]
"""


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    for path in (tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        mine = load_target(path)
        assert (mine.name, mine.source, [*mine.metrics]) == ("mine", "measured", ["cycles", "time", "energy"])
        assert [(c.name, c.unit, c.channel_multiple) for c in mine.metrics.values()] == [
            ("mine", "cycle", 4),
            ("mine.time", "s", 4),
            ("mine.energy", "J", 4),
        ]
        use = one_layer({2: 3, 4: 5}, 10)  # 4 bit costs what 8 does, an input in float too
        assert mine.metrics["cycles"](use).item() == pytest.approx(10 * (3 / 2 + 5 / 1.5))
        assert mine.metrics["energy"](use).item() == pytest.approx(10 * (3 / 2 + 5 / 1.5) / 1000 * 0.5)
        cycles = mine.metrics["cycles"]
        assert isinstance(cycles, TableLatency)
        assert (cycles.activation_bits, cycles.macs_per_cycle) == ((4, 8), ((4, 2), (2, 1.5)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "measured"', "", "`source` is missing"),
        ('"measured"', '""', "`source` is ''"),
        ('"measured"', "3", "`source` is 3"),
        ("weight_bits", "weights", "`weights` is a key"),
        ("weight_bits = [2, 8]", "", "`weight_bits` is missing"),
        ("[2, 8]", "[2, 4]", r"`weight_bits` is \[2, 4\].*8 among them"),
        ("[2, 8]", "[8, 2]", r"`weight_bits` is \[8, 2\].*ascending"),
        ("[2, 8]", "[1, 8]", r"`weight_bits` is \[1, 8\]"),
        ("[2, 8]", "[8, 8]", r"`weight_bits` is \[8, 8\]"),
        ("[2, 8]", "[true, 8]", r"`weight_bits` is \[True, 8\]"),
        ("[2, 8]", "8", "`weight_bits` is 8"),
        ("[2, 8]", "[8]", r"`macs_per_cycle`.*1 positive number"),
        ("8 = [2, 1.5]", "", "`macs_per_cycle`.*8 among them"),
        ("8 = [2, 1.5]", "eight = [2, 1.5]", "`macs_per_cycle`"),
        ("8 = [2, 1.5]", "8 = [2, 0]", "`macs_per_cycle`"),
        ("8 = [2, 1.5]", "8 = [2, inf]", "`macs_per_cycle`"),
        ("8 = [2, 1.5]", "8 = [2, nan]", "`macs_per_cycle`"),
        ("8 = [2, 1.5]", '8 = [2, "1"]', "`macs_per_cycle`"),
        ("8 = [2, 1.5]", "8 = 2", "`macs_per_cycle`"),
        ("8 = [2, 1.5]", "8 = [2, 1.5]\n08 = [2, 1.5]", "`macs_per_cycle`"),
        ("[macs_per_cycle]", "macs_per_cycle = 3\n[more]", "`more` is a key"),
        ("clock_hz = 1000", "", "`clock_hz` is missing"),
        ("clock_hz = 1000", "clock_hz = -1", "`clock_hz` is -1"),
        ("power_w = 0.5", 'power_w = "0.5"', "`power_w` is '0.5'"),
        ("channel_multiple = 4", "channel_multiple = 0", "`channel_multiple` is 0"),
        ("channel_multiple = 4", "channel_multiple = 1.5", "`channel_multiple` is 1.5"),
        ("weight_bits", "weight_bits =", "can't be read"),
    ],
)
def test_a_table_that_cannot_be(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    path = tmp_path / "mine.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(BudgetError, match=message) as error:
        load_target(path)
    assert str(path) in str(error.value)
    assert "; " in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"`target` .*none\.toml.* can't be read"):
        load_target(tmp_path / "none.toml")
