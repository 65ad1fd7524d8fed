"""What an NPU's compiler estimates: of files, of layers as a cost, and of runs."""

import importlib.util
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from integer_networks import Builder, gated
from searches import attached, scramble
from zerobit.cli import app
from zerobit.cost.measured import MeasuredCost
from zerobit.cost.measurements import Table
from zerobit.cost.own import load_cost
from zerobit.cost.registry import cost_names, named_cost
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import BudgetError, ExportError
from zerobit.export.tflite_file import build_tflite
from zerobit.export.tflite_logits import integer_logits
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.integer.ir import IntegerGraph
from zerobit.measure import layer_runtimes, npu_compiler
from zerobit.measure.layer_runtimes import CompiledLayers, layer_file
from zerobit.measure.layers import Configuration, Layer
from zerobit.measure.network_costs import cut_bits
from zerobit.measure.npu_compiler import Estimate, accelerators, cache_folder, estimate
from zerobit.measure.profile import Sweep
from zerobit.workflows import load_run
from zerobit.zoo.models import model as zoo_model

U55 = "ethos-u55-128"
#: It waits for its weights, so that cycles add up in a network and narrow ones make it faster.
HEAVY = Layer("conv", 64, 64, (8, 8), (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
TINY = Layer("conv", 3, 4, (4, 4), (4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
KINDS = {
    "conv": TINY,
    "stride": replace(TINY, out_size=(2, 2), stride=(2, 2)),
    "depthwise": replace(TINY, op="depthwise", in_channels=4),
    "1-D": Layer("conv", 8, 16, (9,), (9,), (3,), (1,), ((1, 1),), (1,)),
    "vector": Layer("linear", 8, 12, (), ()),
    "sequence": Layer("linear", 8, 12, (5,), (5,)),
}

needs_vela = pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="ethos-u-vela is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zerobit" / "npu"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets of the compilations that really ran."""
    seen: list[str] = []
    run: Callable[[str, Path], str] = npu_compiler._run

    def counted(target: str, folder: Path) -> str:
        seen.append(target)
        return run(target, folder)

    monkeypatch.setattr(npu_compiler, "_run", counted)
    return seen


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As `compiled`, without a compiler: every compilation gives the same figures."""
    seen: list[str] = []

    def run(file: bytes, target: str) -> Estimate:
        seen.append(target)
        return Estimate(7, 6, 5, 4, 0, 1, "system", "mode")

    monkeypatch.setattr(npu_compiler, "_compiled", run)
    monkeypatch.setattr(npu_compiler, "vela_version", lambda: "5.2.0")
    monkeypatch.setattr(npu_compiler, "accelerators", lambda: (U55, "ethos-u55-32"))
    return seen


def _file(layer: Layer, bits: int = 8, layers: int = 1) -> bytes:
    return layer_file(Configuration(layer, layer.in_channels, layer.out_channels, bits, 8), layers)


def _with_logits(graph: IntegerGraph) -> bytes:
    (shape,) = graph.inputs.values()
    samples = np.random.default_rng(0).normal(0, 1.5, (8, *shape)).astype(np.float32)
    return build_tflite(integer_logits(graph, samples), "int8", {})


# ------------------------------------------------------------------------------------------ the compiler


@needs_vela
def test_units_are_bytes_and_cycles() -> None:
    """Random bytes can't be packed, input and output are all that lies in SRAM, and the NPU has 128 MACs per cycle."""
    found, weights = estimate(_file(HEAVY), U55), 64 * 64 * 9
    assert weights <= found.flash <= 1.05 * weights
    assert found.sram == 2 * 64 * 8 * 8
    assert weights * 64 / 128 <= found.cycles <= 4 * weights * 64 / 128
    assert (found.dram, found.cpu_operators, found.clock) == (0, 0, 500_000_000)
    assert found.setting == "Ethos_U55_High_End_Embedded, Shared_Sram, 500 MHz"


@needs_vela
def test_a_larger_npu_keeps_weights_in_dram_and_is_faster() -> None:
    small, large = (estimate(_file(HEAVY), target) for target in (U55, "ethos-u65-512"))
    assert large.cycles < small.cycles
    assert (large.flash, large.dram > small.flash) == (0, True)


@needs_vela
def test_narrow_weights_take_less_flash_and_time() -> None:
    eight, two = (estimate(_file(HEAVY, bits), U55) for bits in (8, 2))
    assert two.flash < 0.4 * eight.flash
    assert two.cycles < eight.cycles


@needs_vela
def test_operators_that_stay_on_the_cpu_are_counted() -> None:
    assert estimate(_with_logits(gated(0).graph()), U55).cpu_operators > 0


@needs_vela
def test_every_accelerator_that_vela_knows_is_a_target() -> None:
    assert {U55, "ethos-u55-32", "ethos-u65-256", "ethos-u85-2048"} <= set(accelerators())
    assert all(name.startswith(npu_compiler.PREFIX) for name in accelerators())


@needs_vela
@pytest.mark.parametrize("damage", ["noise", "half"])
def test_a_file_that_vela_refuses_ends_with_what_it_said(damage: str, cache: Path) -> None:
    whole = _file(TINY)
    with pytest.raises(ExportError, match=f"`target` {U55}: Vela 5.* ended with -?[1-9][0-9]* and said: .*[a-z]"):
        estimate({"noise": b"garbage", "half": whole[: len(whole) // 2]}[damage], U55)
    assert not cache.exists()


@needs_vela
def test_a_compiler_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu_compiler, "_SECONDS", 0.01)
    with pytest.raises(ExportError, match=r"longer than 0\.01 s"):
        estimate(_file(TINY), U55)


@pytest.mark.parametrize(
    ("csv", "said", "named"),
    [
        (None, "CPU operators = 0 (0.0%)", "0 summaries"),
        ("a,b\n", "CPU operators = 0 (0.0%)", "0 lines"),
        ("a,b\n1,2\n", "CPU operators = 0 (0.0%)", "KeyError: 'cycles_total'"),
        ("cycles_total\nnan\n", "CPU operators = 0 (0.0%)", "'nan' is no amount"),
        ("cycles_total\nmany\n", "CPU operators = 0 (0.0%)", "ValueError"),
        ("a,b\n1,2\n", "all is well", "no count of operators"),
    ],
)
def test_another_summary_than_is_known_is_refused(
    csv: str | None, said: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(target: str, folder: Path) -> str:
        (folder / "out").mkdir()
        if csv is not None:
            (folder / "out" / "network_summary_x.csv").write_text(csv)
        return said

    monkeypatch.setattr(npu_compiler, "_run", run)
    monkeypatch.setattr(npu_compiler, "vela_version", lambda: "9")
    monkeypatch.setattr(npu_compiler, "accelerators", lambda: (U55,))
    with pytest.raises(ExportError, match=r"Vela 9 wrote .*install ethos-u-vela 5\.2") as caught:
        estimate(b"", U55)
    assert named in str(caught.value)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(npu_compiler, "version", version)
    for call in (accelerators, lambda: estimate(b"", U55), lambda: Sweep(U55)):
        with pytest.raises((ExportError, BudgetError), match=r"not installed: pip install 'zerobit\[npu\]'"):
            call()
    with pytest.raises(BudgetError, match="once ethos-u-vela is installed"):
        Sweep("toaster")
    for arguments in (("cost", "nowhere", "--target", U55), ("profile", "digits", "--runtime", U55)):
        result = _run(*arguments)
        assert result.exit_code == 2
        assert "pip install 'zerobit[npu]'" in result.output


# --------------------------------------------------------------------------------------------- the cache


@needs_vela
def test_a_file_is_compiled_once(compiled: list[str], cache: Path) -> None:
    first = estimate(_file(TINY), U55)
    assert (estimate(_file(TINY), U55), compiled) == (first, [U55])
    assert len(list(cache.iterdir())) == 1


def test_what_changes_an_estimate_is_part_of_its_name(pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for file, target in ((b"one", U55), (b"two", U55), (b"one", "ethos-u55-32")):
        estimate(file, target)
    monkeypatch.setattr(npu_compiler, "vela_version", lambda: "5.3.0")
    estimate(b"one", U55)
    assert len(pretended) == 4
    estimate(b"one", U55)
    assert len(pretended) == 4


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:20], lambda text: "", lambda text: "[]", lambda text: "{}", lambda text: "\ud800",
     lambda text: text.replace('"cycles": 7', '"cycles": 8'), lambda text: text.replace('"sram"', '"sdram"'),
     lambda text: text.replace('"sha256"', '"md5"')],
)  # fmt: skip
def test_a_damaged_entry_is_made_anew(damage: Callable[[str], str], pretended: list[str], cache: Path) -> None:
    first = estimate(b"file", U55)
    (entry,) = cache.iterdir()
    whole = entry.read_text()
    entry.write_bytes(damage(whole).encode("utf-8", "surrogatepass"))
    assert entry.read_bytes() != whole.encode()
    assert estimate(b"file", U55) == first
    assert len(pretended) == 2
    assert entry.read_text() == whole
    assert list(cache.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_does_no_harm(
    pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert estimate(b"file", U55) == estimate(b"file", U55)
    assert len(pretended) == 2


@pytest.mark.parametrize("given", [None, "", "relative"])
def test_the_cache_lies_in_the_home_unless_told(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder() == tmp_path / ".cache" / "zerobit" / "npu"


# ------------------------------------------------------------------------------------------------ layers


@needs_vela
def test_a_layer_takes_what_it_adds_to_a_network() -> None:
    """In a file of its own a layer waits for its first weights; in a chain of three, that is so of the first."""
    layer = Layer("conv", 16, 16, (32, 32), (32, 32), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    (value,) = CompiledLayers(U55).measure([Configuration(layer, 16, 16, 8, 8)], lambda: None)
    chains = []
    for length in (2, 4):
        net = Builder((16, 32, 32), 0)
        x = "image"
        for i in range(length):
            x = net.conv(x, f"y{i}", 16, 3, padding=((1, 1), (1, 1)), widths=(8,))
        chains.append(estimate(build_tflite(net.graph(every=False), "int8", {}), U55).cycles)
    assert value == (chains[1] - chains[0]) / 2
    assert value < estimate(_file(layer), U55).cycles


@needs_vela
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_runs_on_the_npu(kind: str) -> None:
    assert estimate(_file(KINDS[kind]), U55).cpu_operators == 0


def test_layers_are_compiled_in_order_each_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles are 100 for a file and 10 for each layer and output; two files with operators on the CPU say nothing."""
    monkeypatch.setattr(layer_runtimes, "layer_file", lambda c, layers: f"{c.out_channels} {layers}".encode())
    asked: list[bytes] = []

    def estimated(file: bytes, target: str) -> Estimate:
        asked.append(file)
        channels, layers = map(int, file.split())
        return Estimate(100 + 10 * channels * layers, 0, 0, 0, int(channels == 9), 1, "system", "mode")

    monkeypatch.setattr(layer_runtimes, "estimate", estimated)
    chosen = [Configuration(TINY, 3, channels, 8, 8) for channels in (4, 1, 9, 4)]
    runtime, told = CompiledLayers(U55), []
    assert runtime.measure(chosen, lambda: told.append(1)) == [40, 10, 0, 40]
    assert len(asked) == len(set(asked)) == 6
    assert len(told) == runtime.steps(chosen) == 4
    assert runtime.machine().startswith(f"{U55}, system, mode")


def test_a_failure_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: bytes, target: str) -> Estimate:
        msg = "no"
        raise ExportError(msg)

    monkeypatch.setattr(layer_runtimes, "estimate", fails)
    with pytest.raises(ExportError, match="no"):
        CompiledLayers(U55).measure([Configuration(TINY, 3, 4, 8, 8)], lambda: None)


@needs_vela
def test_a_wrong_runtime_is_named_with_the_allowed_ones() -> None:
    for name in ("toaster", "ethos-u55-127"):
        with pytest.raises(BudgetError, match=f"`runtime` is '{name}'.*{U55}"):
            Sweep(name)


@needs_vela
def test_a_fit_to_the_compiler_is_a_cost_that_a_search_uses(tmp_path: Path) -> None:
    out = tmp_path / "npu.toml"
    arguments = ["--grid", "1", "--weight-bits", "8", "--out", out]
    result = _run("profile", "digits", "--runtime", U55, *arguments)
    assert result.exit_code == 0, result.output
    cost, table = load_cost(str(out)), Table.read(out.with_suffix(".csv"))
    assert isinstance(cost, MeasuredCost)
    assert (cost.name, cost.unit) == ("npu", "cycle")
    assert "estimates of ethos-u-vela 5." in cost.source
    assert cost.machine.startswith(f"{U55}, Ethos_U55_High_End_Embedded")
    assert len(table.rows) == 6
    assert all(row.value > 0 for row in table.rows)
    result = _run(
        "search", "--task", "digits", "--target", out, "--budget", "npu=50%", *_SHORT, "--out", tmp_path / "r"
    )
    assert result.exit_code == 0, result.output
    definition = zoo_model("digits")
    example = torch.zeros(1, *definition.input_shape)
    graph = describe(fold_batch_norm(capture(definition.build(10).eval(), example)))
    _, net = load_run(tmp_path / "r")
    limit = 0.5 * float(cost(usage(graph, uniform(graph, 8))))
    assert 0.9 * limit < float(cost(usage(graph, net.plan.net_bits()))) <= limit


# ---------------------------------------------------------------------------------------------- networks


_SHORT = ("--float-epochs", 1, "--epochs", 1, 1, "--batch", 256, "--device", "cpu")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("npu") / "run"
    result = _run("search", "--task", "digits", "--budget", "size=25%", *_SHORT, "--out", folder)
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
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    rows = _rows(result.output)
    assert list(rows) == [U55, "ethos-u85-256", "mpic.energy", "size", "macs", "ram"]
    assert compiled == [U55, "ethos-u85-256"]
    assert _run(*arguments).output == result.output
    assert compiled == [U55, "ethos-u85-256"]
    assert _run("export", run, "--format", "tflite", "--out", tmp_path / "x.tflite").exit_code == 0
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
    result = _run("cost", run, "--target", "ne16", "--target", "size")
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
    result = _run("cost", tmp_path, "--target", target)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert named in line
    assert U55 in line or target.startswith("nowhere")


def test_operators_on_the_cpu_are_said(run: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Estimate(7, 6, 5, 4, 3, 1, "system", "mode")
    monkeypatch.setattr("zerobit.measure.network_costs.estimate", lambda file, target: figures)
    result = _run("cost", run, "--target", U55)
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
