"""What an NPU's compiler estimates: of files, and of layers as a cost."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from integer_networks import Builder, gated
from vela import SHORT, U55, command, needs_vela
from zerobit.cost.measured import MeasuredCost
from zerobit.cost.measurements import Table
from zerobit.cost.own import load_cost
from zerobit.cost.usage import uniform, usage
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
from zerobit.measure.npu_compiler import Estimate, accelerators, cache_folder, estimate
from zerobit.measure.profile import Sweep
from zerobit.workflows import load_run
from zerobit.zoo.models import model as zoo_model

pytestmark = pytest.mark.usefixtures("cache")

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
        result = command(*arguments)
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
    result = command("profile", "digits", "--runtime", U55, *arguments)
    assert result.exit_code == 0, result.output
    cost, table = load_cost(str(out)), Table.read(out.with_suffix(".csv"))
    assert isinstance(cost, MeasuredCost)
    assert (cost.name, cost.unit) == ("npu", "cycle")
    assert "estimates of ethos-u-vela 5." in cost.source
    assert cost.machine.startswith(f"{U55}, Ethos_U55_High_End_Embedded")
    assert len(table.rows) == 6
    assert all(row.value > 0 for row in table.rows)
    result = command(
        "search", "--task", "digits", "--target", out, "--budget", "npu=50%", "--multiple-of", 1, *SHORT,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    definition = zoo_model("digits")
    example = torch.zeros(1, *definition.input_shape)
    graph = describe(fold_batch_norm(capture(definition.build(10).eval(), example)))
    _, net = load_run(tmp_path / "r")
    limit = 0.5 * float(cost(usage(graph, uniform(graph, 8))))
    assert 0.9 * limit < float(cost(usage(graph, net.plan.net_bits()))) <= limit
