"""A .tflite file in TFLite Micro against its twin, every tensor."""

from collections import Counter
from pathlib import Path

import numpy as np

from integer_networks import Builder
from zerobit.export.tflite_file import write_tflite
from zerobit.export.tflite_model import runtime, schema
from zerobit.export.tflite_run import run_tflite
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.twins.gemmlowp import run_gemmlowp


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


def narrow_weights(form) -> Builder:
    net = Builder((8, 6, 6), 0)
    x = net.conv("image", "conv", 16, 3, widths=(2, 3, 4), full=True)
    x = net.conv(x, "depthwise", 16, 3, groups=16, widths=(2, 4), full=True)
    x = net.conv(x, "grouped", 6, (1, 3), groups=2, widths=(3, 4), full=True)
    net.linear(net.mean(x, "mean"), "linear", 5, widths=form)
    return net
