"""The .tflite file computes in TFLite Micro exactly what its twin computes, in every tensor."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from integer_networks import NETWORKS, Builder, perceptron, residual, volumes
from mixed_networks import MIXED
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import ExportError, FormatError, ZerobitError
from zerobit.export import tflite as export_tflite
from zerobit.export import tflite_model
from zerobit.export.packing import pack_bits
from zerobit.export.tflite_file import build_tflite, write_tflite
from zerobit.export.tflite_logits import integer_logits, with_logit_scales
from zerobit.export.tflite_model import runtime, schema
from zerobit.export.tflite_run import logit_scales, read_metadata, run_tflite
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Multiply,
    Quantize,
    Rescale,
    Reshape,
    Subtract,
    Weights,
)
from zerobit.integer.lower import lower
from zerobit.integer.shapes import window_counts
from zerobit.integer.twins.float32 import run_float32
from zerobit.integer.twins.gemmlowp import run_gemmlowp
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

HELD = [network for network in NETWORKS if network is not volumes]


def some_inputs(graph: IntegerGraph, seed: int, count: int = 8) -> np.ndarray:
    """Random, all zero, and so large that everything saturates."""
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(seed).normal(0, 1.5, (count, *shape)).astype(np.float32)
    x[:2] *= 100
    x[2] = 0
    return x


def assert_file_equals_twin(graph: IntegerGraph, x, path: Path) -> None:
    """Every tensor with memory of its own, and the outputs in shared memory."""
    wanted = run_gemmlowp(graph, x, keep=True)
    for keep in (True, False):
        found = run_tflite(path, graph, x, keep=keep)
        assert set(found) == set(wanted if keep else graph.outputs)
        for name, values in found.items():
            assert values.dtype == wanted[name].dtype
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def check(graph: IntegerGraph, tmp_path: Path, x=None) -> Counter:
    """Compare, and return the file's operators by name."""
    x = some_inputs(graph, 0) if x is None else x
    path = write_tflite(graph, tmp_path / "net.tflite")
    assert_file_equals_twin(graph, x, path)
    return operators(path)


def operators(path: Path) -> Counter:
    model = runtime.convert_bytearray_to_object(path.read_bytes())
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return Counter(names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("network", HELD)
def test_every_tensor_equals_the_twin(network, seed, weights, tmp_path):
    graph = network(seed).graph()
    x = some_inputs(graph, seed)
    graph = integer_logits(graph, x)
    assert_file_equals_twin(graph, x, write_tflite(graph, tmp_path / "net.tflite", weights))


@pytest.mark.parametrize("network", HELD)
def test_last_tensors_equal_the_twin(network, tmp_path):
    """As users run it: memory is shared as soon as nothing reads a tensor any more."""
    graph = network(9).graph(every=False)
    x = some_inputs(graph, 9, 24)
    graph = integer_logits(graph, x)
    assert_file_equals_twin(graph, x, write_tflite(graph, tmp_path / "net.tflite"))


def _narrow(form) -> Builder:
    net = Builder((8, 6, 6), 0)
    x = net.conv("image", "conv", 16, 3, widths=(2, 3, 4), full=True)
    x = net.conv(x, "depthwise", 16, 3, groups=16, widths=(2, 4), full=True)
    x = net.conv(x, "grouped", 6, (1, 3), groups=2, widths=(3, 4), full=True)
    net.linear(net.mean(x, "mean"), "linear", 5, widths=form)
    return net


def test_four_bits_are_packed(tmp_path):
    for widths, kinds in (((4,), {"INT4": 4}), ((5,), {"INT4": 3, "INT8": 1}), ((8,), {"INT4": 3, "INT8": 1})):
        graph = _narrow(widths).graph()
        x = some_inputs(graph, 0)
        paths = [write_tflite(graph, tmp_path / f"{kind}.tflite", kind) for kind in ("int8", "int4")]
        one, other = (run_tflite(path, graph, x, keep=True) for path in paths)
        for name, wanted in run_gemmlowp(graph, x, keep=True).items():
            np.testing.assert_array_equal(one[name], wanted)
            np.testing.assert_array_equal(other[name], wanted)
        model = runtime.convert_bytearray_to_object(paths[1].read_bytes())
        names = {value: name for name, value in vars(schema.TensorType).items()}
        tensors = [t for t in model.subgraphs[0].tensors if t.name.endswith(b"/weights")]
        assert Counter(names[tensor.type] for tensor in tensors) == kinds
        stored = sum(len(model.buffers[tensor.buffer].data) for tensor in tensors)
        assert stored == (16 * 8 * 9 + 16 * 9 + 6 * 8 * 3) // 2 + 6 * 5 // (2 if widths == (4,) else 1)


def test_nibbles_lie_low_first():
    assert pack_bits(np.array([1, -1, -8], np.int8), 4) == bytes([0xF1, 0x08])


_DYADIC = [(0.5, 0.5, 1.0), (0.25, 1.0, 0.5), (0.1, 0.1, 0.2)]


@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize("signed", [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)])
def test_every_pair_of_bytes(kind, signed, tmp_path):
    """All 65,536 results on scales with many exact ties, and on random ones."""
    rng = np.random.default_rng(sum(signed))
    for scales in [*_DYADIC, *rng.uniform(0.01, 0.05, (4, 3)) * (1, 1, 2)]:
        forms = zip("aby", scales, signed, strict=True)
        a, b, y = (IntegerTensor(name, (256, 256), scale, 8, bool(sign)) for name, scale, sign in forms)
        if kind is Multiply:
            y = replace(y, scale=y.step * 64 * max(scales))
        ops = (Quantize("left", "a"), Quantize("right", "b"), kind("a", "b", "y"))
        graph = IntegerGraph((a, b, y), ops, ("y",))
        grid = np.meshgrid(*(np.arange(t.low, t.high + 1) * t.step for t in (a, b)))
        feeds = {name: values.astype(np.float32)[None] for name, values in zip(graph.inputs, grid, strict=True)}
        check(graph, tmp_path, feeds)


@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize(
    "shapes",
    [((4, 1, 1), (4, 3, 5)), ((4, 3, 5), (4, 1, 1)), ((1, 3, 1), (4, 1, 5)), ((2, 1, 3, 4), (1, 5, 3, 1))],
)
def test_pairs_that_broadcast(kind, shapes, tmp_path):
    rng = np.random.default_rng(0)
    a, b = (IntegerTensor(n, s, rng.uniform(0.01, 0.05), 8, True) for n, s in zip("ab", shapes, strict=True))
    y = IntegerTensor("y", np.broadcast_shapes(*shapes), 0.02 if kind is Multiply else 0.05, 8, True)
    graph = IntegerGraph((a, b, y), (Quantize("l", "a"), Quantize("r", "b"), kind("a", "b", "y")), ("y",))
    check(
        graph, tmp_path, {n: rng.normal(0, 3, (20, *s)).astype(np.float32) for n, s in zip("lr", shapes, strict=True)}
    )


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("sizes", "kernel", "stride", "padding"),
    [
        ((8,), (2,), (2,), ((0, 1),)),
        ((9,), (3,), (1,), ((2, 1),)),
        ((7, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((7, 8), (3, 2), (1, 2), ((1, 0), (0, 1))),
        ((6, 6), (2, 4), (2, 3), ((0, 0), (0, 0))),
        ((30, 3), (15, 1), (1, 1), ((14, 14), (0, 0))),
    ],
)
def test_windows(sizes, kernel, stride, padding, signed, include, tmp_path):
    """Means and maxima, also where padding doesn't count and where TFLite's SAME is not symmetric."""
    x = IntegerTensor("x", (3, *sizes), 0.1, 8, signed)
    shape = (3, *window_counts(sizes, kernel, stride, padding, (1,) * len(kernel)))
    tensors = (x, IntegerTensor("mean", shape, 0.07, 7, signed), IntegerTensor("max", shape, 0.1, 8, signed))
    ops = (
        Quantize("in", "x"),
        AvgPool("x", "mean", kernel, stride, padding, include),
        MaxPool("x", "max", kernel, stride, padding),
    )
    graph = IntegerGraph(tensors, ops, ("mean", "max"))
    image = np.random.default_rng(0).integers(x.low, x.high + 1, (20, *x.shape)) * x.step
    check(graph, tmp_path, image.astype(np.float32))


@pytest.mark.parametrize(
    ("count", "scale", "target", "total"),
    [
        (24, 16.869043350219727, 0.5958716869354248, 142),
        (13, 11.378293991088867, 0.7725241184234619, 94),
        (11, 9.467489242553711, 0.9006505608558655, 169),
    ],
)
def test_the_scale_of_a_window_is_the_one_that_is_stored(count, scale, target, total, tmp_path):
    """Scales where 1 / count in float32 makes another integer of this sum than 1 / count in float64."""
    tensors = (IntegerTensor("x", (1, count), scale), IntegerTensor("y", (1, 1), target))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), AvgPool("x", "y", (count,), (1,), ((0, 0),))), ("y",))
    image = np.zeros((1, 1, count), np.float32)
    image[0, 0, 0] = total * scale
    check(graph, tmp_path, image)


@pytest.mark.parametrize(
    ("scales", "sums"),
    [
        ((0.5598408579826355, 0.7369346618652344, 0.6827236413955688), 163),
        ((1.080287218093872, 0.5864816904067993, 1.2023930549621582), 130),
        ((0.963028609752655, 1.3884516954421997, 1.727378249168396), 135),
    ],
)
def test_a_single_output_is_scaled_in_float64(scales, sums, tmp_path):
    """The kernel has a path of its own for one scale; with its product in float32 this sum would be another integer."""
    step, scale, target = scales
    tensors = (IntegerTensor("x", (1,), step, 8, True), IntegerTensor("y", (1,), target, 8, True))
    layer = Linear("x", "y", Weights([[1]], [8], [scale], [sums]))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), layer), ("y",)).validate()
    check(graph, tmp_path, np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(("scale", "target"), [(0.4796, 0.4796), (0.25, 0.5), (0.3853, 0.5137333)])
def test_every_sum_has_its_mean(scale, target, keepdim, tmp_path):
    count = 12
    shape = (1, 1, 1) if keepdim else (1,)
    tensors = (IntegerTensor("x", (1, 3, 4), scale), IntegerTensor("m", shape, target))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), Mean("x", "m", keepdim)), ("m",))
    sums = np.arange(255 * count + 1)[:, None]
    image = np.clip(sums - 255 * np.arange(count), 0, 255).reshape(-1, 1, 3, 4) * np.float32(scale)
    assert check(graph, tmp_path, image.astype(np.float32)) == {"MEAN": 1}


@pytest.mark.parametrize("signed", [(a, b) for a in (False, True) for b in (False, True)])
@pytest.mark.parametrize(("scale", "target"), [(0.1, 0.1), (0.5, 0.25), (0.25, 0.5), (0.0471, 0.0632), (3.0, 1e-3)])
def test_every_byte_is_rescaled(scale, target, signed, tmp_path):
    x, y = (IntegerTensor(n, (256,), s, 8, k) for n, s, k in zip("xy", (scale, target), signed, strict=True))
    graph = IntegerGraph((x, y), (Quantize("in", "x"), Rescale("x", "y")), ("y",))
    image = (np.arange(x.low, x.high + 1) * np.float32(scale)).astype(np.float32)[None]
    assert check(graph, tmp_path, image) == {"QUANTIZE": 1}


_SCALE = 6 / 100  # ReLU6 is 100, ReLU1 is 17


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high", "clamps"),
    [
        (8, False, None, None, {}),
        (8, True, None, None, {}),
        (8, True, 0, None, {}),
        (8, False, None, 100, {}),
        (8, True, 0, 100, {}),
        (8, True, -17, 17, {}),
        (8, False, None, 101, {"MINIMUM": 1}),
        (4, False, None, None, {"MINIMUM": 1}),
        (4, True, None, None, {"MINIMUM": 1, "MAXIMUM": 1}),
        (8, True, 0, 99, {"MINIMUM": 1}),
        (8, False, 3, None, {"MAXIMUM": 1}),
    ],
)
def test_ranges_are_fused_where_an_activation_has_them(bits, signed, low, high, clamps, tmp_path):
    x = IntegerTensor("x", (2, 6, 6), 0.05, 8, True)
    y = IntegerTensor("y", (2, 6, 6), _SCALE, bits, signed)
    weights = Weights(np.full((2, 1, 1, 1), 100), [8, 8], [0.02, 0.03], [0, 40])
    conv = Conv("x", "y", weights, (1, 1), ((0, 0), (0, 0)), (1, 1), 2, low, high)
    graph = IntegerGraph((x, y), (Quantize("in", "x"), conv), ("y",)).validate()
    found = check(graph, tmp_path)
    assert found == {"DEPTHWISE_CONV_2D": 1, **clamps}


@pytest.mark.parametrize("dims", [*permutations(range(3)), (1, 0), (3, 0, 2, 1), (1, 0, 3, 2, 4)])
@pytest.mark.parametrize("windows", [False, True])
def test_dimensions_change_places(dims, windows, tmp_path):
    net = Builder((2, 3, 4, 2, 3)[: len(dims)], 0, signed=True)
    x = "image"
    if windows and len(dims) <= 3:
        x = net.pad(x, "pad", ((1, 0),) * (len(dims) - 1))
    net.permute(x, "moved", dims)
    net.rescale("moved", "again")
    check(net.graph(), tmp_path)


def test_dimensions_of_one_are_not_moved(tmp_path):
    net = Builder((5, 1, 1), 0)
    x = net.conv("image", "conv", 4, 1)
    net.reshape(net.permute(x, "moved", (1, 2, 0)), "flat", (4,))
    net.linear(net.reshape(x, "features", (4,)), "linear", 3)
    assert check(net.graph(), tmp_path) == {"CONV_2D": 1, "RESHAPE": 3, "FULLY_CONNECTED": 1}


def test_tokens_are_read_off_an_image_without_moving_it(tmp_path):
    net = Builder((3, 8, 8), 0)
    x = net.conv("image", "patches", 6, 4, stride=4, padding=((0, 0),) * 2)
    rows = net.permute(net.reshape(x, "flat", (6, 4)), "rows", (1, 0))
    net.linear(rows, "query", 5)
    assert "TRANSPOSE" not in check(net.graph(), tmp_path)


def test_what_moves(tmp_path):
    """Slices and concatenations of many dimensions and of many tensors, repeats, spreads, expansion, in 1-D too."""
    net = Builder((2, 3, 4, 5), 0, signed=True)
    parts = [net.slice("image", f"{axis} {step}", axis, 1, size, step) for axis, size, step in
             ((0, 2, 1), (1, 3, 1), (2, 4, 2), (3, 5, 3))]  # fmt: skip
    net.concat((parts[0], parts[0], "image"), "joined")
    check(net.graph(), tmp_path)
    for shape, factors in (((2, 5), (3,)), ((2, 3, 4), (2, 3)), ((2, 3, 4), (1, 2)), ((2, 3, 1), (4, 1))):
        net = Builder(shape, 1)
        net.conv(net.spread("image", "spread", factors), "conv", 3, 3)
        net.conv(net.repeat("image", "repeat", factors), "other", 3, 3)
        net.concat(["image"] * 23, "many")
        net.expand(net.slice("image", "first", len(shape) - 1, 0, 1), "wide", shape)
        check(net.graph(), tmp_path)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_is_left_to_the_kernel_where_it_can_be(groups, dilation, tmp_path):
    net = Builder((4, 7, 8), 0, signed=True)
    net.conv("image", "same", 8, 3, padding=((dilation, dilation),) * 2, dilation=dilation, groups=groups)
    kind = "DEPTHWISE_CONV_2D" if groups == 4 else "CONV_2D"
    assert check(net.graph(every=False), tmp_path) == {kind: 1}
    net.conv("image", "shifted", 8, 3, padding=((2, 0), (1, 1)), dilation=dilation, groups=groups)
    assert check(net.graph(every=False), tmp_path) == {kind: 2, "PAD": 1}


def _refusals() -> list[tuple[str, IntegerGraph, str]]:
    deep = Builder((2, 3, 4, 5), 0)
    deep.pad("image", "padded", ((1, 0),) * 3)
    wide = Builder((1, 2, 1, 2, 1), 0)
    wide.expand("image", "wide", (3, 2, 3, 2, 3))
    mixed = Builder((2, 3, 2, 3, 2, 3), 0)
    mixed.permute("image", "mixed", (5, 4, 3, 2, 1, 0))
    mean = Builder((2, 3, 4, 5), 0)
    mean.mean("image", "mean")
    return [
        ("Pad 'padded'.*three spatial dimensions.*ONNX", deep.graph(), "pad"),
        ("Expand 'wide'.*ONNX", wide.graph(), "expand"),
        ("'image' has 6 dimensions that change places.*ONNX", mixed.graph(), "permute"),
        ("Mean 'mean'.*three spatial dimensions.*ONNX", mean.graph(), "mean"),
        ("Conv 'stem'.*three spatial dimensions.*ONNX", volumes(0).graph(every=False), "conv"),
        ("'logits' is float32.*integer_logits", residual(0).graph(), "logits"),
        ("batch of 3", replace(perceptron(0).graph(), batch=3), "batch"),
    ]


@pytest.mark.parametrize(("text", "graph", "kind"), _refusals(), ids=[row[2] for row in _refusals()])
def test_what_has_no_kernel_is_named(text, graph, kind, tmp_path):
    with pytest.raises(ExportError, match=text):
        write_tflite(graph, tmp_path / f"{kind}.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["layer", "sum", "product", "rescale", "mean", "average"])
def test_scales_that_would_overflow_are_refused(kind, tmp_path):
    """The kernels would compute nonsense, or end the process."""
    x, y = IntegerTensor("x", (1, 2, 2), 2.0**30), IntegerTensor("y", (1, 2, 2), 1.0)
    small = replace(y, shape=(1, 1, 1))
    op, target = {
        "layer": (Conv("x", "y", Weights(np.ones((1, 1, 1, 1)), [8], [1], [9]), (1, 1), ((0, 0),) * 2, (1, 1)), y),
        "sum": (Add("x", "x", "y"), y),
        "product": (Multiply("x", "x", "y"), y),
        "rescale": (Rescale("x", "y"), y),
        "mean": (Mean("x", "y", keepdim=True), small),
        "average": (AvgPool("x", "y", (2, 2), (1, 1), ((0, 0),) * 2), small),
    }[kind]
    graph = IntegerGraph((x, target), (Quantize("in", "x"), op), ("y",)).validate()
    with pytest.raises(FormatError, match="'y'"):
        write_tflite(graph, tmp_path / "net.tflite")
    with pytest.raises(FormatError, match="'y'"):
        run_gemmlowp(graph, np.zeros((1, 1, 2, 2), np.float32))


MADE = {}


def made(row):
    """An integer graph of a trained form, and its inputs."""
    if row.name not in MADE:
        torch.manual_seed(0)
        net = attach(row.build().eval(), row.inputs(4), ChannelSoftmax())
        net = apply(net, decide(net)).eval()
        graph = lower(net)
        feeds = {name: value.numpy() for name, value in zip(graph.inputs, row.inputs(4), strict=True)}
        MADE[row.name] = net, graph, feeds
    return MADE[row.name]


@pytest.mark.parametrize("row", MIXED, ids=lambda row: row.name)
def test_networks_of_users(row, tmp_path):
    """What lowers to integers throughout runs and equals the twin; islands are named, with the op and the reason."""
    _, graph, feeds = made(row)
    if graph.islands:
        with pytest.raises(ExportError, match="floating point"):
            integer_logits(graph, feeds)
        with pytest.raises(ExportError, match="ONNX") as caught:
            write_tflite(graph, tmp_path / "net.tflite")
        island = graph.islands[0]
        assert all(text in str(caught.value) for text in (island.name, *(op.reason for op in island.ops)))
        return
    graph = integer_logits(graph, feeds)
    if row.name == "volume":
        with pytest.raises(ExportError, match="three spatial dimensions"):
            write_tflite(graph, tmp_path / "net.tflite")
        return
    check(replace(graph, outputs=tuple(t.name for t in graph.tensors)), tmp_path, feeds)


def test_export_of_a_network(tmp_path):
    """Logits take the scale that samples give, raw inputs are described, and the file says where it comes from."""
    net, _, feeds = made(next(row for row in MIXED if row.name == "excite"))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    path = export_tflite(net, tmp_path / "net.tflite", feeds, mean=mean, std=std, weights="int4", metadata={"by": "me"})
    graph = lower(net, mean, std)
    entries = read_metadata(path)
    assert entries["zerobit.plan"] == net.plan.hash
    assert entries["by"] == "me"
    assert set(entries) == {"zerobit.plan", "by", "zerobit.version", "zerobit.input", "zerobit.tensors"}
    whole = integer_logits(graph, feeds)
    again = with_logit_scales(graph, logit_scales(path, graph))
    assert again.tensors == whole.tensors
    assert_file_equals_twin(again, feeds, path)


def test_logits_fill_the_byte():
    graph = residual(0).graph(every=False)
    x = some_inputs(graph, 0)
    (name,) = graph.outputs
    whole = integer_logits(graph, x)
    assert (whole.by_name[name].bits, whole.by_name[name].signed) == (8, True)
    assert np.abs(run_gemmlowp(whole, x)[name].astype(int)).max() in (126, 127, 128)
    real = run_float32(graph, x)[0]
    assert np.float32(np.abs(real).max() / np.float32(127)) == whole.by_name[name].scale
    assert integer_logits(whole, x) is whole
    values = Weights(np.zeros((2, 4)), [8, 8], [1, 1], [0, 0])
    tensors = (IntegerTensor("a", (4,), 0.1), IntegerTensor("zero", (2,), None))
    nothing = IntegerGraph(tensors, (Quantize("x", "a"), Linear("a", "zero", values)), ("zero",))
    with pytest.raises(ExportError, match="'zero' zero everywhere"):
        integer_logits(nothing, np.ones((2, 4), np.float32))


def test_metadata_says_how_inputs_become_integers(tmp_path):
    net = Builder((3, 4, 4), 0, normalise=True, bits=7)
    net.conv("image", "conv", 5, 3, signed=True)
    graph = net.graph(every=False)
    x = some_inputs(graph, 0)
    path = write_tflite(graph, tmp_path / "net.tflite")
    ((name, entry),) = json.loads(read_metadata(path)["zerobit.input"]).items()
    mean, std = (np.array(entry[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    steps = np.rint((x - mean) / std / np.float32(entry["scale"])) + entry["zero_point"]
    interpreter = runtime.Interpreter.from_file(str(path), arena_size=1 << 20)
    details = interpreter.get_input_details(0)
    assert details["quantization_parameters"]["scales"] == np.float32(entry["scale"])
    assert details["quantization_parameters"]["zero_points"] == entry["zero_point"]
    stored = steps.clip(*entry["range"]).astype(np.int8).transpose(0, 2, 3, 1)
    wanted = run_gemmlowp(graph, x)[graph.outputs[0]]
    for image, logits in zip(stored, wanted, strict=True):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_output(0)[0].transpose(2, 0, 1), logits)
    assert (entry["input"], name) == ("x", "image")


def test_any_names_are_allowed(tmp_path):
    names = ["a/b", "a.b", "0", "\u00e9\n\"'", "a.b/weights"]
    tensors = tuple(IntegerTensor(name, (4,), 0.1) for name in names)
    ops = (Quantize("x", names[0]), *(Rescale(a, b) for a, b in pairwise(names)))
    check(IntegerGraph(tensors, ops, tuple(names)), tmp_path)


def test_same_graph_gives_the_same_bytes():
    one, two = (build_tflite(_narrow((4,)).graph(), "int4", {}) for _ in range(2))
    assert one == two


def test_wrong_options_are_named(tmp_path):
    graph = _narrow((4,)).graph()
    with pytest.raises(ExportError, match="`weights` is 'int2'"):
        write_tflite(graph, tmp_path / "net.tflite", "int2")
    with pytest.raises(ExportError, match="OfflineMemoryAllocation"):
        write_tflite(graph, tmp_path / "net.tflite", metadata={"OfflineMemoryAllocation": ""})
    with pytest.raises(ZerobitError, match="before it is made"):
        write_tflite(replace(graph, ops=graph.ops[::-1]), tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_tflite(_narrow((4,)).graph(), tmp_path / "net.tflite")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_tflite(_narrow((8,)).graph(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_whole_are_refused(tmp_path):
    """The runtime itself would read beyond their end."""
    graph = _narrow((8,)).graph()
    x = some_inputs(graph, 0)
    path = write_tflite(graph, tmp_path / "net.tflite")
    data = path.read_bytes()
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:length])
        with pytest.raises(ExportError, match=r"net\.tflite"):
            run_tflite(path, graph, x)
    path.write_bytes(data)
    with pytest.raises(ExportError, match="was not written from this graph"):
        run_tflite(path, perceptron(0).graph(), x)


def test_reading_an_edited_file_raises_nothing_else(tmp_path):
    """What is read here without the runtime: wrong values can't be seen, but nothing else may happen."""
    graph = perceptron(0).graph()
    x = some_inputs(graph, 0)
    path = write_tflite(integer_logits(graph, x), tmp_path / "net.tflite")
    data, rng, raised = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        edited = bytearray(data)
        edited[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(edited)
        try:
            read_metadata(path)
            logit_scales(path, graph)
        except ExportError:
            raised += 1
    assert 10 < raised < 290


def test_a_file_that_the_runtime_refuses_is_named(tmp_path, monkeypatch):
    graph = IntegerGraph(
        (IntegerTensor("a", (4,), 0.1), IntegerTensor("b", (2, 2), 0.1)),
        (Quantize("x", "a"), Reshape("a", "b")),
        ("b",),
    )
    unknown = {"RESHAPE": "HASHTABLE_LOOKUP"}
    monkeypatch.setattr(tflite_model, "_VERSIONS", dict.fromkeys([*tflite_model._VERSIONS, *unknown.values()], 1))
    operator = tflite_model.Model.operator
    monkeypatch.setattr(
        tflite_model.Model, "operator", lambda self, kind, *rest, **fields: operator(self, unknown[kind], *rest[:2])
    )
    path = write_tflite(graph, tmp_path / "net.tflite")
    with pytest.raises(ExportError, match=r"net\.tflite can't be run by TFLite Micro"):
        run_tflite(path, graph, np.zeros((1, 4), np.float32))
