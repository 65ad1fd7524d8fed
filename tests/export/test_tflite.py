"""The .tflite file computes in TFLite Micro exactly what its twin computes, in every tensor."""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from integer_networks import NETWORKS, Builder, volumes
from tflite_twin import assert_file_equals_twin, check, narrow_weights, some_inputs
from zerobit.export.packing import pack_bits
from zerobit.export.tflite_file import write_tflite
from zerobit.export.tflite_logits import integer_logits
from zerobit.export.tflite_model import runtime, schema
from zerobit.export.tflite_run import run_tflite
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
    Subtract,
    Weights,
)
from zerobit.integer.shapes import window_counts
from zerobit.integer.twins.gemmlowp import run_gemmlowp

HELD = [network for network in NETWORKS if network is not volumes]


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


def test_four_bits_are_packed(tmp_path):
    for widths, kinds in (((4,), {"INT4": 4}), ((5,), {"INT4": 3, "INT8": 1}), ((8,), {"INT4": 3, "INT8": 1})):
        graph = narrow_weights(widths).graph()
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
