"""The ONNX file computes exactly what its twin computes, in every tensor, and stays fused and small."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerobit.errors import ExportError, ZerobitError
from zerobit.export import onnx_file
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_run import input_names, open_session, run_onnx
from zerobit.integer.check import window_counts
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    Weights,
    reads,
)
from zerobit.integer.twins import run_float32


class Builder:
    """Grows a random network; scales are such that a part of every tensor saturates."""

    def __init__(self, shape, seed, *, normalise=False, **form):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, IntegerTensor] = {}
        self.ops: list[Op] = []
        moments = (self.rng.normal(size=shape[0]), self.rng.uniform(0.5, 2, shape[0])) if normalise else ()
        self._put("image", shape, 0.02, **form)
        self.ops.append(Quantize("x", "image", *moments))

    def graph(self, *, every: bool = True) -> IntegerGraph:
        """The network with every tensor as an output, or only those that no op reads."""
        read = {name for op in self.ops for name in reads(op)}
        names = tuple(name for name in self.tensors if every or name not in read)
        return IntegerGraph(tuple(self.tensors.values()), tuple(self.ops), names).validate()

    def _put(self, name, shape, scale, bits=8, signed=False):
        self.tensors[name] = IntegerTensor(name, shape, scale, bits, signed)

    def _new(self, op: Op, source: str, shape, bits=8, signed=False, logits=False) -> str:
        given = self.tensors[source]
        reach = given.step * max(-given.low, given.high) * self.rng.uniform(0.3, 1.1)
        scale = None if logits else reach / (2 ** (bits - signed) - 1)
        self._put(op.output, shape, scale, bits, signed)
        self.ops.append(op)
        return op.output

    def _same(self, op: Op, source: str, shape) -> str:
        self.tensors[op.output] = replace(self.tensors[source], name=op.output, shape=shape)
        self.ops.append(op)
        return op.output

    def _weights(self, shape, widths, full) -> Weights:
        bits = self.rng.choice(widths, shape[0])
        half = 2 ** (bits - 1)
        values = np.stack([self.rng.integers(-h if full else 1 - h, h, shape[1:]) for h in half])
        scale = self.rng.uniform(0.5, 2, shape[0]) / (half * np.sqrt(np.prod(shape[1:])))
        return Weights(values, bits, scale, self.rng.integers(-300, 300, shape[0]))

    def conv(self, x, name, channels, kernel, *, stride=1, padding=None, dilation=1, groups=1,
             widths=(2, 4, 8), full=False, clip_low=None, clip_high=None, **form):  # fmt: skip
        inputs, *sizes = self.tensors[x].shape
        kernel, stride, dilation = (
            value if isinstance(value, tuple) else (value,) * len(sizes) for value in (kernel, stride, dilation)
        )
        padding = padding or tuple((width // 2, width // 2) for width in kernel)
        weights = self._weights((channels, inputs // groups, *kernel), widths, full)
        shape = (channels, *window_counts(sizes, kernel, stride, padding, dilation))
        op = Conv(x, name, weights, stride, padding, dilation, groups, clip_low, clip_high)
        return self._new(op, x, shape, **form)

    def linear(self, x, name, features, *, widths=(2, 4, 8), clip_high=None, **form):
        weights = self._weights((features, *self.tensors[x].shape), widths, full=False)
        return self._new(Linear(x, name, weights, clip_high=clip_high), x, (features,), **form)

    def add(self, a, b, name, *, clip_high=None, **form):
        return self._new(Add(a, b, name, clip_high=clip_high), a, self.tensors[a].shape, **form)

    def rescale(self, x, name, *, clip_low=None, **form):
        return self._new(Rescale(x, name, clip_low=clip_low), x, self.tensors[x].shape, **form)

    def mean(self, x, name, *, keepdim=False, **form):
        channels, *sizes = self.tensors[x].shape
        shape = (channels, *((1,) * len(sizes) if keepdim else ()))
        return self._new(Mean(x, name, keepdim), x, shape, **form)

    def _pooled(self, x, kernel, stride, padding):
        channels, *sizes = self.tensors[x].shape
        return (channels, *window_counts(sizes, kernel, stride, padding, (1,) * len(kernel)))

    def avg_pool(self, x, name, kernel, stride, padding, *, include_pad, **form):
        op = AvgPool(x, name, kernel, stride, padding, include_pad)
        return self._new(op, x, self._pooled(x, kernel, stride, padding), **form)

    def max_pool(self, x, name, kernel, stride, padding):
        op = MaxPool(x, name, kernel, stride, padding)
        return self._same(op, x, self._pooled(x, kernel, stride, padding))

    def pad(self, x, name, padding):
        channels, *sizes = self.tensors[x].shape
        grown = (size + sum(pair) for size, pair in zip(sizes, padding, strict=True))
        return self._same(Pad(x, name, padding), x, (channels, *grown))

    def reshape(self, x, name, shape):
        return self._same(Reshape(x, name), x, shape)

    def concat(self, names, name):
        channels = sum(self.tensors[other].shape[0] for other in names)
        return self._same(Concat(names, name), names[0], (channels, *self.tensors[names[0]].shape[1:]))


def residual(seed: int) -> Builder:
    """ResNet-8 at 16 x 16: normalised input, signed sums, unsorted channels of 2, 4 and 8 bits."""
    net = Builder((3, 16, 16), seed, normalise=True, signed=True)
    x = net.conv("image", "stem", 16, 3)
    for stage, (channels, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
        y = net.conv(x, f"{stage}.one", channels, 3, stride=stride, clip_high=200)
        y = net.conv(y, f"{stage}.two", channels, 3, signed=True)
        if stride == 2:
            x = net.conv(x, f"{stage}.short", channels, 1, stride=stride, padding=((0, 0),) * 2, signed=True)
        x = net.add(x, y, f"{stage}.sum")
    net.linear(net.mean(x, "mean"), "logits", 10, logits=True)
    return net


def separable(seed: int) -> Builder:
    """Depthwise-separable with 4-bit activations, in 7 and 5 channels: packed bytes have gaps."""
    net = Builder((1, 9, 10), seed, bits=8)
    x = net.conv("image", "stem", 7, 3, stride=(2, 1), widths=(2,), bits=4)
    x = net.conv(x, "dw1", 7, 3, groups=7, widths=(2, 4), bits=4)
    x = net.conv(x, "pw1", 5, 1, widths=(4,), bits=8)
    x = net.conv(x, "dw2", 10, (1, 3), groups=5, stride=(1, 2), bits=4)
    x = net.conv(x, "pw2", 3, 1, bits=2)
    x = net.mean(x, "mean", keepdim=True, bits=6)
    net.linear(net.reshape(x, "flat", (3,)), "logits", 2, widths=(8,), logits=True)
    return net


def branches(seed: int) -> Builder:
    """Concatenation, pools, paddings, groups, dilation, odd widths, rescaling, signed 4 and 5 bits."""
    net = Builder((5, 9, 8), seed, bits=6, signed=bool(seed % 2))
    a = net.conv("image", "a", 6, 3, stride=(2, 1), padding=((0, 1), (1, 2)), widths=(3, 5, 6, 7), bits=4)
    b = net.conv(a, "grouped", 9, 3, groups=3, padding=((2, 2),) * 2, dilation=2, full=True, signed=True)
    c = net.conv(b, "depthwise", 9, 3, groups=9, bits=4, signed=True, clip_low=-3, clip_high=5)
    d = net.add(b, net.rescale(c, "relu"), "add", bits=5, signed=True)
    e = net.max_pool(d, "max", (3, 2), (1, 1), ((1, 1), (0, 1)))
    f = net.concat((e, d), "concat")
    net.conv(f, "float", 4, 3, logits=True)
    g = net.conv(net.pad(e, "pad", ((1, 0), (0, 2))), "valid", 3, 3, padding=((0, 0),) * 2, signed=True)
    for include in (True, False):
        for source in (f, a):
            name = f"avg {source} {include}"
            net.avg_pool(source, name, (3, 2), (2, 1), ((1, 0), (1, 1)), include_pad=include,
                         signed=source == f, bits=8 if include else 4)  # fmt: skip
    net.linear(net.reshape(g, "flat", (3 * 3 * 9,)), "hidden", 7, widths=(4,), signed=True)
    net.linear(net.rescale("hidden", "hidden relu", signed=True, clip_low=0), "logits", 3, logits=True)
    net.mean(g, "mean", signed=True)
    return net


def one_dimensional(seed: int) -> Builder:
    """Every spatial op on [C, L]."""
    net = Builder((3, 33), seed, signed=True)
    x = net.conv("image", "stem", 8, 5, stride=2, widths=(2,))
    y = net.conv(x, "depthwise", 8, 3, groups=8, signed=True)
    z = net.conv(y, "grouped", 12, 3, groups=4, dilation=2, padding=((4, 0),))
    y = net.add(y, x, "add", signed=True)
    y = net.avg_pool(y, "avg", (3,), (2,), ((1, 0),), include_pad=bool(seed % 2), signed=True)
    y = net.pad(net.max_pool(y, "max", (2,), (2,), ((0, 1),)), "pad", ((2, 1),))
    net.conv(y, "float", 3, 3, logits=True)
    net.linear(net.mean(z, "mean"), "logits", 5, logits=True)
    return net


def perceptron(seed: int) -> Builder:
    """Linear layers only, of one feature too."""
    net = Builder((13,), seed, normalise=True, signed=bool(seed % 2), bits=5)
    x = net.linear("image", "one", 11, clip_high=99)
    x = net.linear(x, "equal", 11)
    x = net.linear(x, "two", 1, widths=(2, 3), signed=True, bits=4)
    net.linear(x, "logits", 4, logits=True)
    return net


def chain_of_rescales(seed: int) -> Builder:
    """Neighbouring quantise/dequantise pairs, which ONNX Runtime would merge into one on another scale."""
    net = Builder((9,), seed, signed=True)
    x = net.rescale("image", "relu")
    x = net.rescale(x, "signed", signed=True)
    x = net.rescale(x, "narrow", bits=4)
    net.add(x, x, "twice")
    return net


NETWORKS = [residual, separable, branches, one_dimensional, perceptron, chain_of_rescales]


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
    assert_file_equals_twin(graph, some_inputs(graph, seed), path)
    assert_file_equals_twin(graph, some_inputs(graph, seed), path, wide_sums=True, threads=2)


@pytest.mark.parametrize("container", ["packcast", "int8"])
@pytest.mark.parametrize("every", [False, True])
def test_network_is_fused(container, every, tmp_path):
    path = write_onnx(residual(0).graph(every=every), tmp_path / "net.onnx", container)
    open_session(path, optimized_path=tmp_path / "fused.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert kinds["QLinearConv"] == 9
    assert kinds["QLinearAdd"] == 3
    assert kinds["QLinearGlobalAveragePool"] == kinds["QGemm"] == 1
    helpers = {"Sub", "Div", "QuantizeLinear", "Transpose", "Clip", "Flatten"}
    fused = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"}
    assert set(kinds) - helpers - fused == ({"DequantizeLinear"} if every else set())


def test_other_kernels_are_fused_too(tmp_path):
    path = write_onnx(branches(0).graph(), tmp_path / "net.onnx")
    open_session(path, optimized_path=tmp_path / "fused.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAveragePool"], kinds["QGemm"]) == (4, 4, 2)
    assert not {"Conv", "AveragePool", "Gemm", "GlobalAveragePool"} & set(kinds)


_DYADIC = [(0.5, 0.5, 1.0), (0.25, 1.0, 0.5), (0.1, 0.1, 0.2)]


@pytest.mark.parametrize("signed", [(a, b, y) for a in (0, 1) for b in (0, 1) for y in (0, 1)])
def test_add_of_every_pair_of_bytes(signed, tmp_path):
    """All 65,536 sums on scales with many exact ties, and on random ones."""
    rng = np.random.default_rng(sum(signed))
    for scales in [*_DYADIC, *rng.uniform(0.01, 0.05, (5, 3)) * (1, 1, 2)]:
        forms = zip("aby", scales, signed, strict=True)
        a, b, y = (IntegerTensor(name, (256,), scale, 8, bool(sign)) for name, scale, sign in forms)
        ops = (Quantize("left", "a"), Quantize("right", "b"), Add("a", "b", "y"))
        graph = IntegerGraph((a, b, y), ops, ("y",))
        grid = np.meshgrid(*(np.arange(t.low, t.high + 1) * t.step for t in (a, b)))
        feeds = {name: values.astype(np.float32) for name, values in zip(graph.inputs, grid, strict=True)}
        assert_file_equals_twin(graph, feeds, write_onnx(graph, tmp_path / "add.onnx"))


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
    raw = onnx_file.pack_bits(values, bits)
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
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "1"), ("plan", "p")]
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
        assert_file_equals_twin(graph, some_inputs(graph, 0), path, wide_sums=True)


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
        patch.setattr(onnx_file, "pack_bits", lambda *_: b"")
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
