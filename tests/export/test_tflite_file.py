"""What a .tflite file can't hold, what it says of itself, and files that are damaged."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from integer_networks import Builder, perceptron, residual, volumes
from mixed_networks import MIXED
from tflite_twin import assert_file_equals_twin, check, narrow_weights, some_inputs
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import ExportError, FormatError, ZerobitError
from zerobit.export import tflite as export_tflite
from zerobit.export import tflite_model
from zerobit.export.tflite_file import build_tflite, write_tflite
from zerobit.export.tflite_logits import integer_logits, with_logit_scales
from zerobit.export.tflite_model import runtime
from zerobit.export.tflite_run import logit_scales, read_metadata, run_tflite
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
    Reshape,
    Weights,
)
from zerobit.integer.lower import lower
from zerobit.integer.twins.float32 import run_float32
from zerobit.integer.twins.gemmlowp import run_gemmlowp
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax


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
    one, two = (build_tflite(narrow_weights((4,)).graph(), "int4", {}) for _ in range(2))
    assert one == two


def test_wrong_options_are_named(tmp_path):
    graph = narrow_weights((4,)).graph()
    with pytest.raises(ExportError, match="`weights` is 'int2'"):
        write_tflite(graph, tmp_path / "net.tflite", "int2")
    with pytest.raises(ExportError, match="OfflineMemoryAllocation"):
        write_tflite(graph, tmp_path / "net.tflite", metadata={"OfflineMemoryAllocation": ""})
    with pytest.raises(ZerobitError, match="before it is made"):
        write_tflite(replace(graph, ops=graph.ops[::-1]), tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_tflite(narrow_weights((4,)).graph(), tmp_path / "net.tflite")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_tflite(narrow_weights((8,)).graph(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_whole_are_refused(tmp_path):
    """The runtime itself would read beyond their end."""
    graph = narrow_weights((8,)).graph()
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
