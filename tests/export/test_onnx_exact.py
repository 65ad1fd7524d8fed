"""The exact container computes in integers just what the fixed-point twin says, up to the ends of int64."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from integer_networks import NETWORKS, perceptron, residual
from zerobit.errors import ExportError
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_run import metadata, open_session, run_onnx
from zerobit.export.verify import verify_onnx
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Feed,
    FloatOp,
    IntegerGraph,
    IntegerTensor,
    Island,
    Linear,
    Multiply,
    Quantize,
    Rescale,
    Subtract,
    Weights,
)
from zerobit.integer.twins.fixed31 import fixed_point, logit_scale, run_fixed31


def some_inputs(graph: IntegerGraph, seed: int) -> np.ndarray:
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(seed).normal(0, 1.5, (24, *shape)).astype(np.float32)
    x[:4] *= 100
    return x


def assert_file_equals_twin(graph: IntegerGraph, x, path: Path) -> None:
    wanted = run_fixed31(graph, x)
    for name, got in zip(graph.outputs, run_onnx(path, x), strict=True):
        assert got.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(got, wanted[name], err_msg=name)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("network", NETWORKS)
def test_every_tensor_equals_the_twin(network, seed, every, tmp_path):
    graph = network(seed).graph(every=every)
    path = write_onnx(graph, tmp_path / "net.onnx", "exact")
    assert_file_equals_twin(graph, some_inputs(graph, seed), path)


@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize("signed", [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)])
def test_every_pair_of_bytes(kind, signed, tmp_path):
    """All 65,536 results, with many exact ties: rounded up, not to even, on both sides of zero."""
    for scales in [(0.5, 0.5, 1.0), (0.25, 1.0, 0.5), (0.013, 0.031, 0.05)]:
        forms = zip("aby", scales, signed, strict=True)
        a, b, y = (IntegerTensor(name, (256,), scale, 8, bool(sign)) for name, scale, sign in forms)
        ops = (Quantize("left", "a"), Quantize("right", "b"), kind("a", "b", "y"))
        graph = IntegerGraph((a, b, y), ops, ("y",))
        grid = np.meshgrid(*(np.arange(t.low, t.high + 1) * t.step for t in (a, b)))
        feeds = {name: values.astype(np.float32) for name, values in zip(graph.inputs, grid, strict=True)}
        assert_file_equals_twin(graph, feeds, write_onnx(graph, tmp_path / "pairs.onnx", "exact"))


_LARGEST = 2**31 - 1 - 255


@pytest.mark.parametrize("power", [-70, -33, -32, -31, -30, -24, -8, 0, 20, 29])
@pytest.mark.parametrize("mantissa", [1.0, 1 + 2.0**-22, 1.5, 2 - 2.0**-23])
def test_accumulators_at_the_ends_of_int32(power, mantissa, tmp_path):
    """Shifts from 1 to 62 with multipliers up to 2^31, where the int64 products are as large as they can be."""
    ratio = math.ldexp(mantissa, power)
    bias = np.array([_LARGEST, -_LARGEST, _LARGEST - 1, 1 - _LARGEST, 2**30, -(2**30), 1, -1, 0])
    weights = Weights(np.ones((len(bias), 1)), np.full(len(bias), 2), np.ones(len(bias)), bias)
    scale = np.float32(2.0) ** np.clip(power // 2, -60, 60)
    tensors = (
        IntegerTensor("x", (1,), np.float32(ratio) * scale),
        IntegerTensor("y", (len(bias),), scale, signed=True),
        IntegerTensor("z", (len(bias),), scale),
    )
    ops = (Quantize("in", "x"), Linear("x", "y", weights), Linear("x", "z", weights))
    graph = IntegerGraph(tensors, ops, ("y", "z"))
    x = (np.arange(256) * np.float64(tensors[0].step)).astype(np.float32)[:, None]
    assert_file_equals_twin(graph, x, write_onnx(graph, tmp_path / "net.onnx", "exact"))


def test_the_table_above_reaches_both_ends_of_the_shifts():
    shifts = [int(fixed_point(math.ldexp(1.0, power)).shift) for power in (-70, 29)]
    assert shifts == [62, 1]


@pytest.mark.parametrize("include_pad", [False, True])
def test_averages_with_ties(include_pad, tmp_path):
    x = IntegerTensor("x", (3, 8, 7), 0.1, 8, signed=True)
    tensors = (x, IntegerTensor("p", (3, 5, 4), 0.1, 8, signed=True))
    ops = (Quantize("in", "x"), AvgPool("x", "p", (2, 2), (2, 2), ((1, 1), (1, 0)), include_pad))
    graph = IntegerGraph(tensors, ops, ("p",))
    image = np.random.default_rng(0).integers(-128, 128, (200, 3, 8, 7)) * x.step
    assert_file_equals_twin(graph, image.astype(np.float32), write_onnx(graph, tmp_path / "avg.onnx", "exact"))


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_behind_the_input_is_float(network, tmp_path):
    graph = network(0).graph()
    path = write_onnx(graph, tmp_path / "net.onnx", "exact")
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    floats = {
        makers[info.name] for info in model.graph.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    assert floats <= {"Sub", "Div"}
    assert not {"DequantizeLinear", "Conv", "Gemm", "MatMul", "Add"} & floats
    assert {info.type.tensor_type.elem_type for info in model.graph.output} <= {
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
    }


def test_the_runtime_fuses_nothing(tmp_path):
    path = write_onnx(residual(0).graph(), tmp_path / "net.onnx", "exact")
    open_session(path, optimized_path=tmp_path / "fused.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("ConvInteger") == 9
    assert kinds.count("MatMulInteger") == 1
    assert {node.domain for node in onnx.load(tmp_path / "fused.onnx").graph.node} == {""}


@pytest.mark.parametrize("network", NETWORKS)
def test_scales_of_the_outputs_are_in_the_file(network, tmp_path):
    graph = network(1).graph()
    path = write_onnx(graph, tmp_path / "net.onnx", "exact")
    names = [info.name for info in onnx.load(path).graph.output]
    described = json.loads(metadata(path)["zerobit.output"])
    assert {*described} == {*names}
    makers = {op.output: op for op in graph.ops}
    for name, tensor in zip(names, (graph.by_name[o] for o in graph.outputs), strict=True):
        op = makers[tensor.name]
        wanted = logit_scale(op, graph.by_name[op.input]) if tensor.is_float else float(tensor.step)
        assert described[name] == {"scale": wanted}


@pytest.mark.parametrize("container", ["packcast", "int8", "exact"])
def test_verify_takes_the_twin_of_the_container(container, tmp_path):
    graph = residual(3).graph(every=False)
    path = write_onnx(graph, tmp_path / "net.onnx", container)
    rows = verify_onnx(graph, path, {"x": some_inputs(graph, 0)})
    assert [(row.inputs, row.values, row.differences) for row in rows] == [
        ("samples", 240, 0),
        ("random extremes", 240, 0),
    ]


def test_islands_are_refused_by_name(tmp_path):
    tensors = (IntegerTensor("f", (4,), None), IntegerTensor("g", (4,), None))
    ops = (FloatOp("sorted", "aten.sort.default", "", "has no integer form"),)
    island = Island("island 0", ("f",), ("g",), nn.Identity(), ops=ops)
    graph = IntegerGraph(tensors, (Feed("x", "f", np.dtype(np.float32)), island), ("g",))
    with pytest.raises(ExportError, match=r"'exact', but 'sorted' is computed in float .*'packcast' or 'int8'"):
        write_onnx(graph, tmp_path / "net.onnx", "exact")
    assert not list(tmp_path.iterdir())


def test_scales_too_far_apart_are_named(tmp_path):
    tensors = (IntegerTensor("x", (4,), 1e6), IntegerTensor("y", (4,), 1e-4))
    graph = IntegerGraph(tensors, (Quantize("in", "x"), Rescale("x", "y")), ("y",))
    with pytest.raises(ExportError, match=r"Rescale 'y': the ratio of two scales is 1e\+10"):
        write_onnx(graph, tmp_path / "net.onnx", "exact")
    assert not list(tmp_path.iterdir())


def test_same_graph_gives_the_same_bytes(tmp_path):
    one, two = (write_onnx(perceptron(0).graph(), tmp_path / name, "exact") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
