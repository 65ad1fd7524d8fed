"""The ONNX file computes exactly what its twin computes, in every tensor, and stays fused and small."""

import platform
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integer_networks import NETWORKS, Builder, branches, perceptron, residual
from zerobit.errors import ExportError, ZerobitError
from zerobit.export import onnx_builder
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_run import input_names, open_session, run_onnx
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    Mean,
    Multiply,
    Quantize,
    Rescale,
    Subtract,
    Weights,
)
from zerobit.integer.shapes import window_counts
from zerobit.integer.twins.float32 import run_float32

_PROCESSOR = Path("/proc/cpuinfo")
_HAS_VNNI = _PROCESSOR.exists() and "_vnni" in _PROCESSOR.read_text()
#: Whether ONNX Runtime's own choice of kernels has 16-bit sums here: on x86 processors without VNNI.
SATURATES = platform.machine() in ("x86_64", "AMD64") and not _HAS_VNNI


def some_inputs(graph: IntegerGraph, seed: int) -> np.ndarray:
    """64 inputs: random, all zero, constant, and so large that everything saturates."""
    (shape,) = graph.inputs.values()
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1.5, (64, *shape)).astype(np.float32)
    x[:8] *= 100
    x[8:12] = np.array([0, 1, 1e9, -1e9], np.float32).reshape(-1, *(1,) * len(shape))
    return x


def assert_file_equals_twin(graph: IntegerGraph, x, path: Path, **options) -> None:
    outputs = run_onnx(path, x, **options)
    for name, got, wanted in zip(graph.outputs, outputs, run_float32(graph, x), strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=name)


@pytest.mark.parametrize("container", ["packcast", "int8"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("network", NETWORKS)
def test_every_tensor_equals_the_twin(network, seed, container, tmp_path):
    graph = network(seed).graph()
    path = write_onnx(graph, tmp_path / "net.onnx", container)
    assert_file_equals_twin(graph, some_inputs(graph, seed), path)


@pytest.mark.parametrize("seed", range(4, 12))
@pytest.mark.parametrize("network", NETWORKS)
def test_last_tensors_equal_the_twin(network, seed, tmp_path):
    """As users run it: without the outputs of inner tensors, which change what the runtime optimises."""
    graph = network(seed).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    assert_file_equals_twin(graph, some_inputs(graph, seed), path, threads=2)
    if not SATURATES:
        assert_file_equals_twin(graph, some_inputs(graph, seed), path, wide_sums=False)


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_seven_bits_are_the_same_on_every_processor(seed, tmp_path):
    """In a session without options: two products of at most 255 * 64 fit into 16 bits."""
    net = Builder((16, 6, 6), seed, bits=8)
    x = net.conv("image", "conv", 24, 3, widths=(2, 4, 7))
    x = net.conv(x, "pointwise", 32, 1, widths=(7,))
    net.linear(net.mean(x, "mean"), "fc", 10, widths=(7,))
    graph = net.graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx")
    assert_file_equals_twin(graph, some_inputs(graph, seed), path, wide_sums=False)


@pytest.mark.parametrize("container", ["packcast", "int8"])
@pytest.mark.parametrize("every", [False, True])
def test_network_is_fused(container, every, tmp_path):
    path = write_onnx(residual(0).graph(every=every), tmp_path / "net.onnx", container)
    open_session(path, wide_sums=False, optimized_path=tmp_path / "fused.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert kinds["QLinearConv"] == 9
    assert kinds["QLinearAdd"] == 3
    assert kinds["QLinearGlobalAveragePool"] == kinds["QGemm"] == 1
    helpers = {"Sub", "Div", "QuantizeLinear", "Transpose", "Clip", "Flatten"}
    fused = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"}
    assert set(kinds) - helpers - fused == ({"DequantizeLinear"} if every else set())


def test_other_kernels_are_fused_too(tmp_path):
    path = write_onnx(branches(0).graph(), tmp_path / "net.onnx")
    open_session(path, wide_sums=False, optimized_path=tmp_path / "fused.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAveragePool"], kinds["QGemm"]) == (4, 4, 2)
    assert not {"Conv", "AveragePool", "Gemm", "GlobalAveragePool"} & set(kinds)


_DYADIC = [(0.5, 0.5, 1.0), (0.25, 1.0, 0.5), (0.1, 0.1, 0.2)]


@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize("signed", [(a, b, y) for a in (0, 1) for b in (0, 1) for y in (0, 1)])
def test_every_pair_of_bytes(kind, signed, tmp_path):
    """All 65,536 results on scales with many exact ties, and on random ones."""
    rng = np.random.default_rng(sum(signed))
    for scales in [*_DYADIC, *rng.uniform(0.01, 0.05, (5, 3)) * (1, 1, 2)]:
        forms = zip("aby", scales, signed, strict=True)
        a, b, y = (IntegerTensor(name, (256,), scale, 8, bool(sign)) for name, scale, sign in forms)
        if kind is Multiply:
            y = replace(y, scale=y.step * 64 * max(scales))
        ops = (Quantize("left", "a"), Quantize("right", "b"), kind("a", "b", "y"))
        graph = IntegerGraph((a, b, y), ops, ("y",))
        grid = np.meshgrid(*(np.arange(t.low, t.high + 1) * t.step for t in (a, b)))
        feeds = {name: values.astype(np.float32) for name, values in zip(graph.inputs, grid, strict=True)}
        assert_file_equals_twin(graph, feeds, write_onnx(graph, tmp_path / "pairs.onnx"))


@pytest.mark.parametrize("kind", [Add, Multiply])
@pytest.mark.parametrize("shapes", [((4, 1, 1), (4, 3, 5)), ((4, 3, 5), (4, 1, 1)), ((1, 3, 1), (4, 1, 5))])
def test_pairs_that_broadcast(kind, shapes, tmp_path):
    """The runtime has a kernel of its own for spans that meet one value."""
    rng = np.random.default_rng(0)
    a, b = (IntegerTensor(n, s, rng.uniform(0.01, 0.05), 8, True) for n, s in zip("ab", shapes, strict=True))
    scale = 0.05 if kind is Add else 0.02
    y = IntegerTensor("y", np.broadcast_shapes(*shapes), scale, 8, True)
    graph = IntegerGraph((a, b, y), (Quantize("l", "a"), Quantize("r", "b"), kind("a", "b", "y")), ("y",))
    feeds = {n: rng.normal(0, 3, (300, *s)).astype(np.float32) for n, s in zip("lr", shapes, strict=True)}
    assert_file_equals_twin(graph, feeds, write_onnx(graph, tmp_path / "pairs.onnx"))


@pytest.mark.parametrize("kernel", [(1,), (2, 2), (2, 4)])
@pytest.mark.parametrize("signed", [False, True])
def test_averages_with_ties(kernel, signed, tmp_path):
    """Equal scales and two, four or eight values per window: half of all results are ties or close to."""
    shape = (3, *(8,) * len(kernel))
    x = IntegerTensor("x", shape, 0.1, 8, signed)
    padding = tuple((0, width - 1) for width in kernel)
    pooled = (3, *window_counts(shape[1:], kernel, kernel, padding, (1,) * len(kernel)))
    tensors = (x, IntegerTensor("p", pooled, 0.1, 8, signed), IntegerTensor("m", (3,), 0.025, 8, signed))
    ops = (Quantize("in", "x"), AvgPool("x", "p", kernel, kernel, padding, False), Mean("p", "m"))
    graph = IntegerGraph(tensors, ops, ("p", "m"))
    image = np.random.default_rng(0).integers(x.low, x.high + 1, (500, *shape)) * x.step
    assert_file_equals_twin(graph, image.astype(np.float32), write_onnx(graph, tmp_path / "avg.onnx"))


@pytest.mark.parametrize(("count", "scale", "target"), [(12, 0.4796, 0.4796), (24, 0.3853, 0.5137333)])
def test_mean_rounds_in_the_kernel_order(count, scale, target, tmp_path):
    """Every sum that an image can have, on scales where another order of multiplying rounds differently."""
    tensors = (IntegerTensor("x", (1, count), scale), IntegerTensor("m", (1,), target))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), Mean("x", "m")), ("m",))
    sums = np.arange(255 * count + 1)[:, None]
    image = np.clip(sums - 255 * np.arange(count), 0, 255)[:, None] * np.float32(scale)
    assert_file_equals_twin(graph, image.astype(np.float32), write_onnx(graph, tmp_path / "mean.onnx"))


@pytest.mark.parametrize(("scale", "target"), [(0.3326508, 0.4435344), (0.14719777, 0.29439554)])
def test_rescale_rounds_in_the_kernel_order(scale, target, tmp_path):
    tensors = (IntegerTensor("x", (256,), scale), IntegerTensor("y", (256,), target))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), Rescale("x", "y")), ("y",))
    x = (np.arange(256) * np.float32(scale)).astype(np.float32)[None]
    assert_file_equals_twin(graph, x, write_onnx(graph, tmp_path / "rescale.onnx"))


@given(st.sampled_from([2, 4, 8]), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_packed_values_read_back(bits, count, seed):
    values = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    raw = onnx_builder.pack_bits(values, bits)
    assert len(raw) == -(-count * bits // 8)
    kinds = {2: onnx.TensorProto.INT2, 4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}
    tensor = onnx.TensorProto(name="t", data_type=kinds[bits], dims=[count], raw_data=raw)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values)


@pytest.mark.parametrize(
    ("widths", "bytes_per_weight", "versions"),
    [((2,), 0.25, (25, 13)), ((3, 4), 0.5, (21, 10)), ((5, 8), 1, (13, 8)), ((2, 8), None, (25, 13))],
)
def test_packed_file_is_smaller_and_as_old_as_possible(widths, bytes_per_weight, versions, tmp_path):
    net = Builder((16, 8, 8), 0)
    net.conv("image", "conv", 64, 3, widths=widths)
    packed = write_onnx(net.graph(), tmp_path / "packed.onnx")
    plain = write_onnx(net.graph(), tmp_path / "plain.onnx", "int8")
    model = onnx.load(packed)
    assert (model.opset_import[0].version, model.ir_version) == versions
    assert (onnx.load(plain).opset_import[0].version, onnx.load(plain).ir_version) == (13, 8)
    weights = [t for t in model.graph.initializer if t.name.startswith("conv_w") and len(t.dims) == 4]
    if bytes_per_weight is None:
        assert sum(len(t.raw_data) for t in weights) == net.graph().weight_bytes_packed
    else:
        assert sum(len(t.raw_data) for t in weights) == 64 * 16 * 9 * bytes_per_weight
    saved = 64 * 16 * 9 - sum(len(t.raw_data) for t in weights)
    assert plain.stat().st_size - packed.stat().st_size >= saved - 1000


def test_sorted_channels_need_no_index_table(tmp_path):
    net = Builder((4, 5, 5), 0)
    net.conv("image", "conv", 6, 3)
    (quantize, conv), weights = net.ops, net.ops[1].weights
    for bits, gathers in (([2, 2, 3, 4, 8, 8], 0), ([2, 8, 3, 4, 8, 2], 1)):
        values = np.clip(weights.values, -1, 1)
        ordered = replace(conv, weights=replace(weights, bits=bits, values=values))
        graph = replace(net.graph(), ops=(quantize, ordered))
        path = write_onnx(graph, tmp_path / "net.onnx")
        assert [node.op_type for node in onnx.load(path).graph.node].count("Gather") == gathers


def test_names_and_metadata(tmp_path):
    """Any names are allowed; ONNX sees safe ones, without clashes."""
    names = {"a": "a/b", "b": "a.b", "c": "0", "d": "\u00e9\n\"'", "x": "a_b"}
    tensors = tuple(IntegerTensor(names[key], (4,), 0.1) for key in "abcd")
    ops = (
        Quantize(names["x"], names["a"]),
        Rescale(names["a"], names["b"]),
        Rescale(names["b"], names["c"]),
        Add(names["c"], names["a"], names["d"]),
    )
    graph = IntegerGraph(tensors, ops, tuple(t.name for t in tensors))
    path = write_onnx(graph, tmp_path / "net.onnx", metadata={"plan": "p", "a": "1"})
    model = onnx.load(path)
    entries = [(entry.key, entry.value) for entry in model.metadata_props]
    own = [name for name, _ in entries if name.startswith("zerobit.")]
    assert own == ["zerobit.container", "zerobit.input", "zerobit.version"]
    assert entries == sorted(entries)
    assert [entry for entry in entries if entry[0] not in own] == [("a", "1"), ("plan", "p")]
    assert model.graph.input[0].name == "a_b"
    assert all(name.isascii() and name.isidentifier() for node in model.graph.node for name in node.output)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_file_equals_twin(graph, some_inputs(graph, 0), path)


def test_layers_may_share_constants(tmp_path):
    """Equal biases and scales are stored once, which must not confuse the runtime's rewriting."""
    values = np.random.default_rng(0).integers(-127, 128, (4, 4, 1, 1))
    weights = Weights(values, np.full(4, 8), np.full(4, 0.004), np.zeros(4))
    flat = replace(weights, values=values[:, :, 0, 0])
    sizes = {"x": (4, 3, 3), "c1": (4, 3, 3), "c2": (4, 3, 3), "m": (4,), "l1": (4,), "l2": (4,)}
    tensors = tuple(IntegerTensor(name, shape, 0.1, signed=True) for name, shape in sizes.items())
    form = ((1, 1), ((0, 0), (0, 0)), (1, 1))
    convs = (Conv("x", "c1", weights, *form), Conv("c1", "c2", weights, *form))
    ops = (Quantize("in", "x"), *convs, Mean("c2", "m"), Linear("m", "l1", flat), Linear("l1", "l2", flat))
    graph = IntegerGraph(tensors, ops, ("l2",))
    for container in ("packcast", "int8"):
        path = write_onnx(graph, tmp_path / "net.onnx", container)
        assert_file_equals_twin(graph, some_inputs(graph, 0), path)
        if not SATURATES:
            assert_file_equals_twin(graph, some_inputs(graph, 0), path, wide_sums=False)


def test_same_graph_gives_the_same_bytes(tmp_path):
    one, two = (write_onnx(residual(0).graph(), tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_onnx(perceptron(0).graph(), tmp_path / "net.onnx")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_onnx(perceptron(1).graph(), path)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_builder, "pack_bits", lambda *_: b"")
        with pytest.raises(ExportError, match="checker refuses"):
            write_onnx(perceptron(1).graph(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_invalid_graph_is_not_written(tmp_path):
    graph = perceptron(0).graph()
    with pytest.raises(ZerobitError, match="before it is made"):
        write_onnx(replace(graph, ops=graph.ops[::-1]), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="`container` is 'zip'"):
        write_onnx(graph, tmp_path / "net.onnx", "zip")
    assert not list(tmp_path.iterdir())


def test_mean_that_the_kernel_refuses_is_named(tmp_path):
    tensors = (IntegerTensor("x", (1, 2, 2), 1e3), IntegerTensor("m", (1,), 0.5))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), Mean("x", "m")), ("m",))
    with pytest.raises(ExportError, match="Mean 'm' scales by 500"):
        write_onnx(graph, tmp_path / "net.onnx")


def test_batches_are_joined(tmp_path):
    graph = perceptron(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx")
    assert input_names(path) == ("x",)
    x = some_inputs(graph, 0)
    for batch_size in (1, 3, 100):
        assert_file_equals_twin(graph, x, path, batch_size=batch_size)


def test_running_names_what_is_wrong(tmp_path):
    path = write_onnx(perceptron(0).graph(), tmp_path / "net.onnx")
    x = np.zeros((2, 13), np.float32)
    for feeds, batch_size in (({"y": x}, 1), (x[:0], 1), (x, 0)):
        with pytest.raises(ExportError, match="`x` has inputs"):
            run_onnx(path, feeds, batch_size)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"broken.onnx can't be run"):
        run_onnx(tmp_path / "broken.onnx", x)
