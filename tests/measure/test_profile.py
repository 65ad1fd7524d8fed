"""Measuring layers in a runtime, and the command that does."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from cases import CASES, ModelCase
from searches import attached
from zerobit.cli import app
from zerobit.cost.measured import MeasuredCost
from zerobit.cost.measurements import Table
from zerobit.cost.own import load_cost
from zerobit.cost.terms import Widths, amounts_of, amounts_of_rows, op_of, term
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError
from zerobit.export.onnx_file import build_onnx
from zerobit.export.onnx_run import open_session
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import Graph, Kind
from zerobit.measure.bench import Settings, copies, layer_graph, measure, per_layer, steps
from zerobit.measure.layers import Configuration, Layer, configurations, counts, distinct_layers
from zerobit.measure.profile import Sweep
from zerobit.zoo.models import model as zoo_model

SQUARE = Layer("conv", 8, 16, (6, 6), (3, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
DEPTHWISE = replace(SQUARE, op="depthwise", in_channels=16)
ONE_AXIS = Layer("conv", 8, 16, (9,), (9,), (3,), (1,), ((1, 1),), (1,))
VECTOR = Layer("linear", 8, 12, (), ())
SEQUENCE = Layer("linear", 8, 12, (5,), (5,))
LAYERS = {"conv": SQUARE, "depthwise": DEPTHWISE, "1-D": ONE_AXIS, "vector": VECTOR, "sequence": SEQUENCE}


def _graph(name: str) -> Graph:
    definition = zoo_model(name)
    example = torch.zeros(1, *definition.input_shape)
    return describe(fold_batch_norm(capture(definition.build(10).eval(), example)))


@pytest.mark.parametrize(("name", "number"), [("resnet8", 9), ("dscnn", 4), ("digits", 6)])
def test_each_distinct_layer_is_measured_once(name: str, number: int) -> None:
    """ResNet-8 has ten layers, the two of its first block alike; DS-CNN ten, its four blocks alike."""
    layers, left = distinct_layers(_graph(name))
    assert len(layers) == len(set(layers)) == number
    assert left == {}


def test_what_is_not_measured_is_said() -> None:
    left = {name: distinct_layers(attached(name).graph)[1] for name in ("grouped", "embedded")}
    assert "a grouped convolution is not measured" in left["grouped"].values()
    assert left["embedded"]


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_measured_layer_has_the_terms_of_the_layer_in_use(row: ModelCase) -> None:
    """Also where the stride does not divide the input, whose size a row does not say."""
    graph, widths = attached(row.name).graph, Widths((2, 4, 8), (4, 8))
    layers, left = distinct_layers(graph)
    names = (
        "windows",
        "reads",
        "macs",
        "macs_w>2",
        "inputs",
        "outputs",
        "weights",
        "weight_bytes",
        "tiles/16",
        "tiled/4",
    )
    found = []
    for layer in usage(graph, uniform(graph, 4)).layers:
        if layer.name not in left and layer.kind is not Kind.EMBEDDING:
            amounts = amounts_of(layer, widths)
            found.append((op_of(layer), *(term(name, amounts, widths).item() for name in names)))
    rows = [c.measured(1.0) for c in configurations(layers, (1,), 1, (4,), (8,))]
    wanted = [(r.op, *(term(n, amounts_of_rows([r], widths), widths).item() for n in names)) for r in rows]
    assert set(found) == set(wanted)


@pytest.mark.parametrize(
    ("channels", "fractions", "multiple", "expected"),
    [
        (64, (0.25, 0.5, 0.75, 1), 4, (16, 32, 48, 64)),
        (10, (0.25, 0.5, 0.75, 1), 4, (4, 8, 10)),
        (3, (0.25, 0.5, 0.75, 1), 4, (3,)),
        (16, (0.25, 0.5, 0.75, 1), 16, (16,)),
        (7, (0.5, 1), 1, (4, 7)),
    ],
)
def test_channel_counts_are_multiples_or_all(
    channels: int, fractions: tuple[float, ...], multiple: int, expected: tuple[int, ...]
) -> None:
    assert counts(channels, fractions, multiple) == expected


def test_the_grid_has_inputs_and_outputs_and_widths() -> None:
    found = configurations([SQUARE, DEPTHWISE, VECTOR], (0.5, 1), 4, (2, 8), (4, 8))
    assert len(found) == len(set(found)) == (2 * 2 + 2 + 2 * 2) * 2 * 2
    assert all(c.in_channels == c.out_channels for c in found if c.layer is DEPTHWISE)
    assert found[0].macs == 4 * 8 * 9 * 9


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_two_files_differ_in_nothing_but_the_number_of_layers(tmp_path: Path, kind: str, bits: int) -> None:
    """As the runtime has fused them: one 8-bit kernel for each layer, all else alike."""
    layer = LAYERS[kind]
    c = Configuration(layer, layer.in_channels, layer.out_channels, bits, 8)
    kernel = "QGemm" if layer.op == "linear" else "QLinearConv"
    found = []
    for layers in (1, 4):
        graph = layer_graph(c, layers, 4)
        path = tmp_path / f"{layers}.onnx"
        session = open_session(
            build_onnx(graph, "packcast", {}).SerializeToString(), wide_sums=False, optimized_path=path
        )
        ops = Counter(node.op_type for node in onnx.load(path).graph.node)
        assert ops[kernel] == layers, ops
        assert not {"Conv", "Gemm", "MatMul", "Cast", "Gather"} & set(ops)
        # On a sequence each layer has a reshape of its own: that is how it is exported.
        reshapes = layers if kind == "sequence" else 0
        found.append({**ops, kernel: 0, "Reshape": ops["Reshape"] - reshapes})
        x = np.zeros((1, *graph.inputs["input"]), np.float32)
        assert all(np.isfinite(y).all() for y in session.run(None, {"input": x}))
    assert found[0] == found[1]


def test_small_layers_are_repeated_more_often() -> None:
    small, large = (Configuration(replace(SQUARE, out_size=(n, n)), 8, 16, 8, 8) for n in (3, 1000))
    assert copies(small) == 16
    assert copies(large) == 2


def test_a_layer_takes_what_more_of_it_adds() -> None:
    """Four layers more in 12 us more, in most rounds."""
    times = np.array([[[50_000, 38_000]]] * 9 + [[[900_000, 38_000]]] * 3, np.float64)
    assert per_layer(times, np.array([4])).tolist() == [3.0]


def test_larger_layers_take_longer() -> None:
    """A hundred times the arithmetic: no noise hides that."""
    small, large = (
        Configuration(replace(SQUARE, in_size=(2 * n, 2 * n), out_size=(n, n)), 8, 16, 8, 8) for n in (3, 30)
    )
    seen: list[int] = []
    settings = Settings(rounds=5)
    few, many = measure([small, large], settings, lambda: seen.append(1))
    assert len(seen) == steps([small, large], settings) == 5
    assert many > 3 * max(few, 0.1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("runtime", "toaster"), ("grid", 0), ("multiple_of", 0), ("rounds", 0), ("weight_bits", ()), ("weight_bits", (1,)),
     ("activation_bits", (8, 16))],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(setting: str, value: object) -> None:
    with pytest.raises(BudgetError, match=f"`{setting}` is .*; allowed are "):
        Sweep(**{setting: value})  # type: ignore[arg-type]


def test_the_command_measures_fits_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "made" / "tiny.toml"
    arguments = ["profile", "digits", "--rounds", "2", "--grid", "2", "--multiple-of", "8", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--weight-bits", "2,8"])
    assert result.exit_code == 0, result.output
    assert "6 distinct layers" in result.output
    cost, table = load_cost(str(out)), Table.read(out.with_suffix(".csv"))
    assert isinstance(cost, MeasuredCost)
    assert (cost.name, cost.unit, cost.channel_multiple, cost.storage) == ("tiny", "us", 8, (2, 8))
    assert table.channel_multiple == 8
    assert {row.op for row in table.rows} == {"conv", "linear"}
    assert all(row.value > 0 for row in table.rows)
    assert cost.source == table.source
    assert "onnxruntime" in table.source
    assert cost.machine == table.machine != ""
    for title, quality in cost.qualities.items():
        assert f"\N{BOX DRAWINGS LIGHT VERTICAL} {title}" in result.output
        assert f"{quality.rank_correlation:.3f}" in result.output
    assert cost.qualities["channels"].rows == len(table.rows)
    graph = _graph("digits")
    assert cost(usage(graph, uniform(graph, 8))).item() > 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["tiny.csv", "tiny.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--runtime", "toaster"], "`runtime` is 'toaster'"),
        (["digits", "--out", "x.csv"], "`out` is 'x.csv'"),
        (["digits", "--weight-bits", "2;8"], "`weight_bits` is '2;8'"),
        (["digit"], "did you mean 'digits'"),
        (["torch.nn:ReLU", "--input", "1,3"], "`model` has no layer that can be measured"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "x.toml")]
    result = CliRunner().invoke(app, ["profile", *arguments, *out])
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []
