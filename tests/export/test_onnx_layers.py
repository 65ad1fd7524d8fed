"""Layer by layer, a file is what its twin says, a broken one is found, and the first broken layer is named."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from integer_networks import NETWORKS, branches, gated, perceptron, residual, separable, tokens
from zerobit.errors import ExportError, ZerobitError
from zerobit.export import onnx_layers
from zerobit.export.comparison import LayerComparison, compare_tensors, joined
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_layers import layer_rows
from zerobit.export.onnx_run import open_session
from zerobit.export.verify import verify_onnx
from zerobit.integer import walk
from zerobit.integer.ir import (
    Add,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Island,
    Linear,
    Quantize,
    QuantizeFloat,
    Weights,
    clip_range,
    makes,
)
from zerobit.integer.twins.float32 import OnnxRuntimeRule
from zerobit.integer.walk import run_island

CONTAINERS = ["packcast", "int8", "exact"]


def some_samples(graph: IntegerGraph, seed: int, count: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 1.5, (count, *shape)).astype(np.float32) for name, shape in graph.inputs.items()}


def first_divergent(rows: list[LayerComparison]) -> str | None:
    """Of one set of inputs."""
    return next((row.layer for row in rows if row.differences), None)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("seed", "every"), [(1, True), (2, False)])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_equals_the_twin(network, seed, every, container, tmp_path):
    graph = network(seed).graph(every=every)
    path = write_onnx(graph, tmp_path / "net.onnx", container)
    samples = some_samples(graph, seed)
    rows = layer_rows(graph, path, samples, seed=seed)
    order = [name for op in graph.ops for name in makes(op)]
    for title in ("samples", "random extremes"):
        assert [row.layer for row in rows if row.inputs == title] == order
    assert [row for row in rows if row.differences or row.largest] == []
    assert all(row.values == 12 * np.prod(graph.by_name[row.layer].shape) for row in rows)


@pytest.mark.parametrize("container", ["packcast", "int8"])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_compared_is_fused_as_what_is_shipped(network, container, tmp_path, monkeypatch):
    """Handing out inner tensors leaves the runtime's kernels as they are."""
    graph = network(0).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx", container)
    open_session(path, optimized_path=tmp_path / "shipped.onnx")

    def opened(content, **options):
        return open_session(content, **options, optimized_path=tmp_path / "compared.onnx")

    monkeypatch.setattr(onnx_layers, "open_session", opened)
    layer_rows(graph, path, some_samples(graph, 0, 1))
    one, other = (kernels(tmp_path / name) for name in ("shipped.onnx", "compared.onnx"))
    assert one == other
    assert sum(one.values())


def kernels(path: Path) -> Counter[str]:
    """What computes: all nodes but those that hand out or move integers."""
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    computing = {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "QuantizeLinear"}
    return Counter({k: n for k, n in kinds.items() if k in computing or k.startswith(("QLinear", "QGemm", "ConvInt"))})


def edited(path: Path, name: str, byte: int, change: int) -> Path:
    """A copy in which one byte of one initializer differs."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    raw = bytearray(tensor.raw_data)
    raw[byte] ^= change
    tensor.raw_data = bytes(raw)
    copy = path.with_name("edited.onnx")
    copy.write_bytes(model.SerializeToString())
    return copy


def stored_weights(graph: IntegerGraph, path: Path) -> list[tuple[str, str, int]]:
    """Layer, initializer of its weights and size in bytes, of each initializer that holds weights."""
    tensors = {t.name: len(t.raw_data) for t in onnx.load(path).graph.initializer}
    layers = [op.output for op in graph.ops if isinstance(op, Conv | Linear)]
    safe = {layer: re.sub(r"\W", "_", f"_{layer}" if layer[0].isdigit() else layer) for layer in layers}
    return [(a, n, size) for a in layers for n, size in tensors.items() if re.fullmatch(f"{safe[a]}_w[248]?", n)]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("network", [residual, separable, branches, tokens, perceptron])
def test_an_edited_weight_is_found_in_its_layer(network, container, tmp_path):
    """One byte of each group of weights of each layer in turn; bytes whose channels are always 0 change nothing."""
    graph = network(2).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx", container)
    samples = some_samples(graph, 0, 8)
    groups = stored_weights(graph, path)
    assert {layer for layer, *_ in groups} == {op.output for op in graph.ops if isinstance(op, Conv | Linear)}
    found = dict[str, set[str | None]]()
    for layer, name, size in groups:
        firsts = (first_divergent(layer_rows(graph, edited(path, name, byte, 0xFF), samples)) for byte in range(size))
        found.setdefault(layer, set()).add(next(filter(None, firsts), None))
    assert {layer: firsts - {None} for layer, firsts in found.items()} == {layer: {layer} for layer in found}


@pytest.mark.parametrize(("name", "layer"), [("_1_two_b", "1.two"), ("image_mean", "image"), ("mean_scale", "mean")])
def test_an_edited_bias_mean_and_scale_are_found(name, layer, tmp_path):
    graph = residual(0).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    assert first_divergent(layer_rows(graph, edited(path, name, 2, 0x40), some_samples(graph, 0))) == layer


def test_what_the_runtime_cannot_run_is_named(tmp_path):
    """A weight's scale that no longer is that of the bias, and one that is not there."""
    graph = residual(0).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    cut = onnx.load(path)
    next(t for t in cut.graph.initializer if t.name == "_1_two_w_scale").raw_data = b""
    (tmp_path / "cut.onnx").write_bytes(cut.SerializeToString())
    for broken in (edited(path, "_1_two_w_scale", 2, 0x40), tmp_path / "cut.onnx"):
        with pytest.raises(ExportError, match=rf"`path` .*{broken.name} can't be run by ONNX Runtime: "):
            layer_rows(graph, broken, some_samples(graph, 0))


def test_largest_and_count_of_differences(tmp_path):
    """Against a graph that is one off in a bias: one channel differs, by what the change makes."""
    graph = perceptron(1).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    quantize, one, *others = graph.ops
    bias = one.weights.bias.copy()
    bias[3] += 2**14
    changed = replace(graph, ops=(quantize, replace(one, weights=replace(one.weights, bias=bias)), *others))
    samples = some_samples(graph, 0)
    rows = {row.layer: row for row in layer_rows(changed, path, samples) if row.inputs == "samples"}
    assert (rows["image"].differences, rows["one"].values) == (0, 12 * 11)
    assert 0 < rows["one"].differences <= 12
    assert 0 < rows["one"].largest <= clip_range(one, graph.by_name["one"])[1]


@pytest.mark.parametrize(
    ("share", "problem"), [(0, "of 0 bytes, holds no network"), *((s, "is truncated") for s in (0.1, 0.5, 0.9, 0.999))]
)
def test_a_truncated_file_is_named(share, problem, tmp_path):
    graph = perceptron(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for compare in (layer_rows, verify_onnx):
        with pytest.raises(ExportError, match=rf"`path` .*net.onnx,? {problem}"):
            compare(graph, path, some_samples(graph, 0))


def test_a_file_without_its_end_is_named(tmp_path):
    """Cut between two fields it is a model still, but not ours."""
    graph = perceptron(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx")
    model = onnx.load(path)
    model.ClearField("metadata_props")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"net.onnx has None as 'zerobit.container'.*give a file that zerobit wrote"):
        layer_rows(graph, path, some_samples(graph, 0))


def _without_a_node(model: onnx.ModelProto) -> str:
    node = model.graph.node[4]
    name = node.name
    model.graph.node.remove(node)
    return f"node '{name}'"


def _with_another_attribute(model: onnx.ModelProto) -> str:
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    next(a for a in node.attribute if a.name == "dilations").ints[0] += 1
    return f"node '{node.name}'"


def _with_a_node_more(model: onnx.ModelProto) -> str:
    model.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["y"], name="more"))
    return "node 'more'"


def _with_another_input(model: onnx.ModelProto) -> str:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return "input 'x'"


def _without_an_initializer(model: onnx.ModelProto) -> str:
    name = model.graph.initializer[-1].name
    del model.graph.initializer[-1]
    return f"initializer '{name}'"


def _with_another_type(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.name == "stem_b")
    tensor.data_type = onnx.TensorProto.FLOAT
    return "initializer 'stem_b'"


@pytest.mark.parametrize(
    "change",
    [
        _without_a_node,
        _with_another_attribute,
        _with_a_node_more,
        _with_another_input,
        _without_an_initializer,
        _with_another_type,
    ],
)
def test_a_file_of_another_form_is_refused(change, tmp_path):
    graph = residual(0).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    model = onnx.load(path)
    what = change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=f"net.onnx is not the file that this network makes: {what} differs"):
        layer_rows(graph, path, some_samples(graph, 0))


def test_a_file_of_another_network_is_refused(tmp_path):
    path = write_onnx(gated(0).graph(), tmp_path / "net.onnx")
    graph = residual(0).graph()
    with pytest.raises(ExportError, match="is not the file that this network makes: input 'x' differs"):
        layer_rows(graph, path, some_samples(graph, 0))


def test_samples_are_checked(tmp_path):
    graph = perceptron(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx")
    for samples in ({}, {"y": np.zeros((2, 13))}, {"x": np.zeros((2, 12))}, {"x": np.full((2, 13), np.nan)}):
        with pytest.raises(ZerobitError, match="`x`"):
            layer_rows(graph, path, samples)


@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_batches_are_joined(count, tmp_path):
    graph = perceptron(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx")
    rows = layer_rows(graph, path, some_samples(graph, 0, count))
    assert [row.values for row in rows if row.layer == "logits"] == [4 * count, 4 * min(count, 64)]
    assert first_divergent(rows) is None


def test_a_fixed_batch_is_fed_whole(tmp_path):
    graph = replace(perceptron(0).graph(), batch=70)
    path = write_onnx(graph, tmp_path / "net.onnx")
    rows = layer_rows(graph, path, some_samples(graph, 0, 70))
    assert [row.values for row in rows if row.layer == "logits"] == [280, 280]
    assert first_divergent(rows) is None


class _Softmax(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.softmax(x, 1),)


def test_islands_are_fed_to_the_twin(tmp_path, monkeypatch):
    """Behind an island, and in the accumulators in front of it, all is compared exactly; an edit is found there."""

    def few(op, tensors, values):
        assert len(values["sums"]) < 4, "torch computes islands for the exporter, not for comparisons"
        return run_island(op, tensors, values)

    monkeypatch.setattr(walk, "run_island", few)
    rng = np.random.default_rng(0)
    one, two = (
        Weights(rng.integers(-7, 8, (6, 6)), np.full(6, 4), rng.uniform(0.05, 0.1, 6), rng.integers(-50, 50, 6))
        for _ in range(2)
    )
    tensors = (
        IntegerTensor("image", (6,), 0.05, signed=True),
        IntegerTensor("sums", (6,), None),
        IntegerTensor("share", (6,), None),
        IntegerTensor("levels", (6,), 1 / 255),
        IntegerTensor("logits", (6,), None),
    )
    ops = (
        Quantize("x", "image"),
        Linear("image", "sums", one),
        Island("island", ("sums",), ("share",), _Softmax()),
        QuantizeFloat("share", "levels"),
        Linear("levels", "logits", two),
    )
    graph = IntegerGraph(tensors, ops, ("logits",)).validate()
    path = write_onnx(graph, tmp_path / "net.onnx")
    rows = layer_rows(graph, path, some_samples(graph, 0, 70))
    assert [row.layer for row in rows] == ["image", "sums", "levels", "logits"] * 2
    assert first_divergent(rows) is None
    assert first_divergent(layer_rows(graph, edited(path, "logits_w4", 0, 0x08), some_samples(graph, 0))) == "logits"


def test_rows_count_what_differs():
    found = {"a": np.array([[1, 2], [3, 4]]), "b": np.array([np.inf, np.nan, 1.0, np.inf]), "c": np.zeros((0, 3))}
    wanted = {"a": np.array([[1, -2], [3, 5]]), "b": np.array([np.inf, np.nan, 1.0, 0.0]), "c": np.zeros((0, 3))}
    rows = compare_tensors(["b", "a", "c"], found, wanted, "some")
    assert rows == [
        LayerComparison("b", "some", 4, 1, np.finfo(float).max),
        LayerComparison("a", "some", 4, 2, 4.0),
        LayerComparison("c", "some", 0, 0, 0.0),
    ]
    assert joined([[LayerComparison("a", "some", 5, 1, 0.5)], rows[1:2]]) == [LayerComparison("a", "some", 9, 3, 4.0)]


@pytest.mark.parametrize("repeated", ["left", "right"])
def test_a_sum_that_repeats_one_side_rounds_as_the_runtime_does(repeated: str, tmp_path: Path) -> None:
    """All pairs of bytes, at scales where the order of the two fused multiply-adds shows."""
    levels = np.arange(256, dtype=np.float32)[:, None]
    for steps in np.random.default_rng(0).uniform(0.01, 0.03, (200, 3)).astype(np.float32):
        shapes = (256, 1), (256, 256), (256, 256)
        a, b, y = (IntegerTensor(name, *rest) for name, *rest in zip("aby", shapes, steps, strict=True))
        if (OnnxRuntimeRule().add(levels, levels.T, a, b, y) != OnnxRuntimeRule().add(levels.T, levels, b, a, y)).any():
            break
    else:
        pytest.fail("no scales show it")
    names = ("a", "b") if repeated == "left" else ("b", "a")
    graph = IntegerGraph((a, b, y), (Quantize("xa", "a"), Quantize("xb", "b"), Add(*names, "y")), ("y",)).validate()
    path = write_onnx(graph, tmp_path / "model.onnx")
    every = np.arange(256, dtype=np.float32)
    feeds = {"xa": every.reshape(1, 256, 1) * a.step, "xb": np.tile(every, (1, 256, 1)) * b.step}
    rows = [row for row in layer_rows(graph, path, feeds) if row.layer == "y"]
    assert [(row.differences, row.values) for row in rows[:1]] == [(0, 65_536)]
