"""Files that take pixels compute what the twin does of pixel * float32(1/255), and say how inputs become integers."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from integer_networks import NETWORKS, branches, gated, perceptron, residual, tokens
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import ExportError, ZerobitError
from zerobit.export import onnx as export_onnx
from zerobit.export.onnx_file import build_written, write_onnx
from zerobit.export.onnx_layers import layer_rows
from zerobit.export.onnx_metadata import takes_pixels
from zerobit.export.onnx_run import metadata, run_onnx
from zerobit.export.pixels import pixels_to_real, real_to_pixels
from zerobit.export.verify import verify_onnx
from zerobit.integer.ir import IntegerGraph, Quantize
from zerobit.integer.lower import lower
from zerobit.integer.twins.fixed31 import run_fixed31
from zerobit.integer.twins.float32 import run_float32
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

CONTAINERS = ["packcast", "int8", "exact"]


def some_pixels(graph: IntegerGraph, seed: int) -> np.ndarray:
    (shape,) = graph.inputs.values()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, *shape)).astype(np.uint8)
    pixels[:2] = np.array([0, 255]).reshape(2, 1, 1, 1)
    return pixels


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", [residual, branches, gated, tokens])
def test_every_tensor_equals_the_twin(network, seed, container, tmp_path):
    graph = network(seed).graph()
    path = write_onnx(graph, tmp_path / "net.onnx", container, image=True)
    pixels = some_pixels(graph, seed)
    real = pixels.astype(np.float32) * (np.float32(1) / np.float32(255))
    if container == "exact":
        values = run_fixed31(graph, real)
        wanted = tuple(values[name] for name in graph.outputs)
    else:
        wanted = run_float32(graph, real)
    for name, got, expected in zip(graph.outputs, run_onnx(path, pixels), wanted, strict=True):
        np.testing.assert_array_equal(got, expected, err_msg=name)


def takes_an_image(network) -> bool:
    (shape,) = network(0).graph().inputs.values()
    return len(shape) == 3


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("network", "image"), [(n, i) for n in NETWORKS for i in (False, True)[: 1 + takes_an_image(n)]]
)
def test_the_metadata_are_enough_to_quantise(network, image, container, tmp_path):
    graph = network(1).graph()
    (shape,) = graph.inputs.values()
    path = write_onnx(graph, tmp_path / "net.onnx", container, image=image)
    (entry,) = json.loads(metadata(path)["zerobit.input"]).values()
    x = some_pixels(graph, 0) if image else np.random.default_rng(0).normal(0, 2, (20, *shape)).astype(np.float32)
    assert entry["type"] == x.dtype
    value = x * np.float32(entry["factor"]) if image else x
    assert value.dtype == np.float32
    for key, combine in (("mean", np.subtract), ("std", np.divide)):
        if entry[key] is not None:
            value = combine(value, np.array(entry[key], np.float32).reshape(-1, *(1,) * (len(shape) - 1)))
    stored = (np.rint(value / np.float32(entry["scale"])) + entry["zero_point"]).clip(*entry["range"])
    quantize = next(op for op in graph.ops if isinstance(op, Quantize))
    twin = run_float32(graph, pixels_to_real(x) if image else x, keep=True)[quantize.output]
    np.testing.assert_array_equal(stored - entry["zero_point"], twin)


@pytest.mark.parametrize("container", CONTAINERS)
def test_pixels_are_compared_too(container, tmp_path):
    """Bytes, or the real values they mean; anything else is no image."""
    graph = gated(2).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx", container, image=True)
    assert takes_pixels(metadata(path))
    pixels = some_pixels(graph, 0)
    rows = layer_rows(graph, path, {"x": pixels})
    assert rows == layer_rows(graph, path, {"x": pixels_to_real(pixels)})
    assert len(rows) == 2 * len(graph.tensors)
    assert not any(row.differences for row in (*rows, *verify_onnx(graph, path, {"x": pixels})))
    with pytest.raises(ExportError, match=r"`samples` span 0.0..255.0; .*uint8"):
        layer_rows(graph, path, {"x": pixels.astype(np.float32)})
    with pytest.raises(ZerobitError, match="must map the graph inputs"):
        verify_onnx(graph, path, {"y": pixels})


def test_a_network_is_exported_with_its_normalisation(tmp_path):
    """From a trained network: pixels in, normalised inside the file, in every container."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5))
    search = attach(model.eval(), torch.randn(4, 3, 6, 6), ChannelSoftmax())
    net = apply(search, decide(search)).eval()
    moments = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    graph = lower(net, **moments)
    pixels = some_pixels(graph, 0)
    for container in CONTAINERS:
        path = export_onnx(net, tmp_path / "net.onnx", container=container, image=True, **moments)
        assert not any(row.differences for row in layer_rows(graph, path, dict.fromkeys(graph.inputs, pixels)))
        entries = metadata(path)
        assert entries["zerobit.plan"] == net.plan.hash
        (entry,) = json.loads(entries["zerobit.input"]).values()
        assert entry["mean"] == np.array(moments["mean"], np.float32).tolist()


def test_every_pixel_survives_the_way_there_and_back():
    pixels = np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(real_to_pixels(pixels_to_real(pixels)), pixels)
    np.testing.assert_array_equal(real_to_pixels(pixels / 255), pixels)


def test_pixels_take_no_name_from_outputs(tmp_path):
    graph = residual(0).graph()
    with_pixels, without = (
        [info.name for info in build_written(graph, "packcast", {}, image=image).model.graph.output]
        for image in (True, False)
    )
    assert with_pixels == without


@pytest.mark.parametrize("network", [n for n in NETWORKS if not takes_an_image(n)])
def test_what_is_no_image_is_refused(network, tmp_path):
    with pytest.raises(ExportError, match=r"`image` is True, but the inputs are .*'float32'.*leave it False"):
        write_onnx(network(0).graph(), tmp_path / "net.onnx", image=True)
    assert not list(tmp_path.iterdir())


def test_floats_are_not_said_to_be_pixels(tmp_path):
    path = write_onnx(perceptron(0).graph(), tmp_path / "net.onnx")
    assert not takes_pixels(metadata(path))
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
