"""What a run's network costs, by formula and by the compiler of an NPU."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from searches import attached, scramble
from vela import SHORT, U55, command, needs_vela
from zerobit.cost.registry import cost_names, named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.measure.network_costs import cut_bits
from zerobit.measure.npu_compiler import Estimate, estimate

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("npu") / "run"
    result = command("search", "--task", "digits", "--budget", "size=25%", *SHORT, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def _rows(output: str) -> dict[str, list[str]]:
    """Cells of each line of the table, by the first."""
    lines = [line.strip("\u2502").split("\u2502") for line in output.splitlines() if line.startswith("\u2502")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@needs_vela
def test_the_command_shows_estimates_and_formulas(run: Path, compiled: list[str], tmp_path: Path) -> None:
    """Those of the exported file, though its logits are on a scale of their own."""
    arguments = ("cost", run, "--target", U55, "--target", "ethos-u85-256", "--target", "mpic.energy")
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    rows = _rows(result.output)
    assert list(rows) == [U55, "ethos-u85-256", "mpic.energy", "size", "macs", "ram"]
    assert compiled == [U55, "ethos-u85-256"]
    assert command(*arguments).output == result.output
    assert compiled == [U55, "ethos-u85-256"]
    assert command("export", run, "--format", "tflite", "--out", tmp_path / "x.tflite").exit_code == 0
    first = estimate((tmp_path / "x.tflite").read_bytes(), U55)
    assert rows[U55] == [f"{first.cycles:,} cycle", f"{first.sram:,}", "0", f"{first.flash:,}", "0"]
    assert f"{U55}: estimates of ethos-u-vela 5." in result.output
    assert first.setting in result.output
    stage = json.loads((run / "run.json").read_text())["stages"][-1]
    assert rows["size"] == [f"{stage['size']:,.0f} B", "", "", "", ""]
    assert rows["macs"][0] == f"{stage['macs']:,.0f} MAC"


def test_formulas_need_no_compiler(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(subprocess, "run", started)
    result = command("cost", run, "--target", "ne16", "--target", "size")
    assert result.exit_code == 0, result.output
    assert list(_rows(result.output)) == ["ne16", "size", "macs", "ram"]
    assert "SRAM" not in result.output


@needs_vela
@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("ethos-u55-12", "`target` is 'ethos-u55-12'; Vela 5"),
        ("ne17", "`target` is 'ne17'; allowed are size, macs"),
        ("nowhere.toml", "nowhere.toml"),
        ("nowhere:cost", "nowhere:cost"),
    ],
)
def test_a_wrong_target_is_named_with_the_allowed_ones(target: str, named: str, tmp_path: Path) -> None:
    result = command("cost", tmp_path, "--target", target)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert named in line
    assert U55 in line or target.startswith("nowhere")


def test_operators_on_the_cpu_are_said(run: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Estimate(7, 6, 5, 4, 3, 1, "system", "mode")
    monkeypatch.setattr("zerobit.measure.network_costs.estimate", lambda file, target: figures)
    result = command("cost", run, "--target", U55)
    assert result.exit_code == 0, result.output
    assert _rows(result.output)[U55] == ["7 cycle", "6", "5", "4", "3"]
    assert "Cycles have nothing of operators on the CPU." in result.output


@pytest.mark.parametrize("name", ["resnet8", "dscnn", "digits"])
def test_a_cut_network_costs_what_its_plan_costs(name: str) -> None:
    net = scramble(attached(name), 0)
    plan = decide(net)
    small = apply(net, plan)
    for title in cost_names():
        cost = named_cost(title)
        assert float(cost(usage(small.graph, cut_bits(small)))) == pytest.approx(
            float(cost(usage(net.graph, plan.net_bits()))), rel=1e-12
        )
