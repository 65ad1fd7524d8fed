"""Files with islands: what is integer equals the twin exactly, what is float is named and stays float."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from mixed_networks import MIXED, MixedCase
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.errors import ExportError
from zerobit.export import onnx as export_onnx
from zerobit.export import onnx_islands
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_run import input_names, open_session, run_onnx, with_outputs
from zerobit.export.verify import verify_islands, verify_onnx
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.integer.twins.float32 import run_float32
from zerobit.plan import Plan
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

every_case = pytest.mark.parametrize("row", MIXED, ids=lambda row: row.name)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Row -> its network, integer graph and file; each made once."""
    made: dict[str, tuple[QuantNet, IntegerGraph, Path]] = {}

    def get(row: MixedCase | str) -> tuple[QuantNet, IntegerGraph, Path]:
        row = next(r for r in MIXED if r.name == row) if isinstance(row, str) else row
        if row.name not in made:
            net = fixed(row.build(), row.inputs(4))
            path = export_onnx(net, tmp_path_factory.mktemp(row.name) / "net.onnx")
            made[row.name] = net, lower(net), path
        return made[row.name]

    return get


def fixed(model: nn.Module, inputs: Any, bits: int | None = None) -> QuantNet:
    torch.manual_seed(0)
    net = attach(model.eval(), inputs, ChannelSoftmax())
    plan = decide(net)
    if bits is not None:
        text = json.loads(plan.to_json())
        for weight in text["weights"].values():
            weight |= {"bits": [bits] * len(weight["bits"]), "step": None}
        plan = Plan.from_json(json.dumps(text))
    return apply(net, plan).eval()


def feeds(graph: IntegerGraph, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}


@every_case
def test_integers_equal_the_twin(row: MixedCase, written: Any) -> None:
    _, graph, path = written(row)
    for batch in (1, 6):
        rows = verify_onnx(graph, path, feeds(graph, row.inputs(batch)), seed=batch)
        assert len(rows) == 2 * len(graph.outputs)
        assert [r for r in rows if r.differences] == []
        assert all(r.values for r in rows)


class _Ids(nn.Module):
    """Hands an input of integers out as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(torch.relu(self.hidden(self.words(ids).mean(1)))), ids


class _Fixed(nn.Module):
    """Takes one batch size only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.hidden, self.head = batch, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.head(torch.relu(self.hidden(x)).reshape(self.batch, 8)).reshape(self.batch, 2, 2)
        return torch.softmax(pairs, -1).reshape(self.batch, 4)


@pytest.mark.parametrize(
    ("model", "x"),
    [(_Ids(), torch.arange(28).reshape(4, 7) % 11), (_Fixed(128), torch.randn(128, 6))],
    ids=["input handed out", "one batch of 128"],
)
@pytest.mark.filterwarnings("ignore:.*batch:UserWarning")
def test_forms_of_inputs_and_outputs(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    net = attach(model.eval(), x, ChannelSoftmax())
    small = apply(net, decide(net)).eval()
    graph = lower(small)
    path = export_onnx(small, tmp_path / "model.onnx")
    rows = verify_onnx(graph, path, {name: x.numpy() for name in graph.inputs})
    assert [row for row in rows if row.differences] == []
    assert sum(row.values for row in rows) > 0


@every_case
def test_islands_agree_with_torch_but_for_the_last_bits(row: MixedCase, written: Any) -> None:
    _, graph, path = written(row)
    rows = verify_islands(graph, path, feeds(graph, row.inputs(6)))
    assert {r.tensor for r in rows} == {*graph.float_tensors}
    assert all(r.relative <= 1e-5 for r in rows), rows
    assert all(r.steps is None or r.steps <= 1 for r in rows)


@every_case
def test_what_is_shipped_is_what_was_verified(row: MixedCase, written: Any) -> None:
    """Handing out inner tensors must not change what the runtime computes."""
    _, graph, path = written(row)
    inputs = feeds(graph, row.inputs(5))
    fed = dict(zip(input_names(path), inputs.values(), strict=True))
    names = [n for island in islands_of(path).values() for n in island["tensors"].values()]
    copied = run_onnx(with_outputs(path, names), fed, batch_size=5)
    shipped = run_onnx(path, fed, batch_size=5)
    assert len(copied) == len(shipped) + len(names)
    for a, b in zip(shipped, copied, strict=False):
        np.testing.assert_array_equal(a, b)


@every_case
def test_outputs_have_the_shapes_and_types_that_the_file_declares(row: MixedCase, written: Any) -> None:
    _, graph, path = written(row)
    inputs = feeds(graph, row.inputs(3))
    found = run_onnx(path, dict(zip(input_names(path), inputs.values(), strict=True)))
    for info, values in zip(onnx.load(path).graph.output, found, strict=True):
        kind = info.type.tensor_type
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == values.dtype
        declared = [d.dim_value or 3 for d in kind.shape.dim]
        assert declared == list(values.shape)


def islands_of(path: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(entries.get(onnx_islands.ISLANDS, "{}"))


def test_the_file_names_its_islands(written: Any) -> None:
    _, graph, path = written("tokens")
    described = islands_of(path)
    assert {*described} == {island.name for island in graph.islands}
    ops = [op for island in described.values() for op in island["ops"]]
    assert {"aten.embedding.default", "aten.scaled_dot_product_attention.default"} <= {op["target"] for op in ops}
    assert all(op["reason"] for op in ops)
    made = {name for node in onnx.load(path).graph.node for name in node.output}
    assert {name for island in described.values() for name in island["tensors"].values()} <= made


def test_a_network_without_islands_says_nothing_of_them(written: Any) -> None:
    _, graph, path = written("excite")
    assert islands_of(path) == {}
    assert verify_islands(graph, path, {}) == []


def _kinds(path: Path, folder: Path) -> Counter[str]:
    open_session(path, wide_sums=False, optimized_path=folder / "fused.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


def test_islands_are_not_turned_into_integer_kernels(tmp_path: Path) -> None:
    """A product and a sigmoid between quantised tensors are just what the runtime likes to fuse."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c((self.a(x) @ self.b(x).transpose(1, 2)).softmax(-1))

    net = fixed(Net(), torch.randn(4, 4, 4))
    graph = lower(net)
    path = write_onnx(graph, tmp_path / "net.onnx")
    kinds = _kinds(path, tmp_path)
    assert kinds["MatMul"] + kinds["FusedMatMul"] == kinds["Softmax"] == 1
    assert kinds["QGemm"] == 3
    assert not {"QLinearMatMul", "MatMulIntegerToFloat", "QLinearSoftmax", "DynamicQuantizeMatMul"} & {*kinds}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_of_islands_are_packed(bits: int, tmp_path: Path) -> None:
    row = next(r for r in MIXED if r.name == "lstm")
    net = fixed(row.build(), row.inputs(4), bits)
    path = export_onnx(net, tmp_path / "net.onnx")
    tensors = onnx.load(path).graph.initializer
    weights = sum(int(np.prod(net.graph.parameters[name])) for name in net.graph.searched_weights)
    kind = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}[bits]
    assert sum(int(np.prod(t.dims)) for t in tensors if t.data_type == kind and len(t.dims) > 1) == weights
    floats = [int(np.prod(t.dims)) for t in tensors if t.data_type == TensorProto.FLOAT]
    assert max(floats) < 100  # biases and scales, no matrix
    graph = lower(net)
    assert not any(r.differences for r in verify_onnx(graph, path, feeds(graph, row.inputs(4))))
    # The runtime unpacks them once, when it loads the file.
    assert "Cast" not in _kinds(path, tmp_path)


def test_the_container_of_bytes_holds_islands_too(tmp_path: Path, written: Any) -> None:
    net, graph, packed = written("lstm")
    path = export_onnx(net, tmp_path / "net.onnx", container="int8")
    assert [o.version for o in onnx.load(path).opset_import] == [20]
    inputs = feeds(graph, next(r for r in MIXED if r.name == "lstm").inputs(4))
    fed = dict(zip(input_names(path), inputs.values(), strict=True))
    np.testing.assert_allclose(run_onnx(path, fed)[0], run_onnx(packed, fed)[0], atol=1e-6)


def test_raw_inputs_are_normalised_for_islands_too(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.sort(x, 3).values)

    x = torch.randn(4, 3, 2, 5)
    mean, std = np.array([0.1, 0.2, 0.3], np.float32), np.array([1.0, 2.0, 0.5], np.float32)
    net = fixed(Net(), x)
    raw = x.numpy() * std[:, None, None] + mean[:, None, None]
    path = export_onnx(net, tmp_path / "net.onnx", mean=mean.tolist(), std=std.tolist())
    graph = lower(net, mean.tolist(), std.tolist())
    assert not any(r.differences for r in verify_onnx(graph, path, {"x": raw}))
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, raw)[0], net(x).numpy(), atol=0.02)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.cumsum(self.one(x.reshape(2, 6)), 1))

    with pytest.warns(UserWarning, match="fixes its batch"):
        net = fixed(Net(), torch.randn(2, 2, 3))
    graph = lower(net)
    assert (graph.batch, len(graph.islands)) == (2, 1)
    path = export_onnx(net, tmp_path / "net.onnx")
    x = torch.randn(2, 2, 3).numpy()
    (info,) = onnx.load(path).graph.input
    assert [d.dim_value for d in info.type.tensor_type.shape.dim] == [2, 2, 3]
    assert not any(r.differences for r in verify_onnx(graph, path, {"x": x}))


def test_values_of_other_precision_are_cast_before_they_are_rounded(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.cumsum(self.one(x).double(), 1).float()) + torch.cumsum(x.double(), 1)[:, :3]

    x = torch.randn(4, 6)
    net = fixed(Net(), x)
    graph = lower(net)
    path = export_onnx(net, tmp_path / "net.onnx")
    assert not any(r.differences for r in verify_onnx(graph, path, {"x": x.numpy()}))
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, x.numpy())[0], net(x).numpy(), atol=0.02)


def test_an_op_that_torch_cannot_write_is_named(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.qr(self.fc(x)).Q

    net = fixed(Net(), torch.randn(3, 4, 4))
    with pytest.raises(ExportError, match=r"`net` has ops without an integer form that torch can't write.*linalg_qr"):
        export_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_exporter_is_named(tmp_path: Path, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, *_ = written("lstm")

    def missing(*_: Any, **__: Any) -> None:
        msg = "No module named 'onnxscript'"
        raise ModuleNotFoundError(msg)

    monkeypatch.setattr(onnx_islands.torch.onnx, "export", missing)
    with pytest.raises(ExportError, match=r"onnxscript.*install"):
        export_onnx(net, tmp_path / "net.onnx")


def test_same_network_gives_the_same_bytes(tmp_path: Path, written: Any) -> None:
    net, _, path = written("vision_transformer")
    assert export_onnx(net, tmp_path / "net.onnx").read_bytes() == path.read_bytes()


def test_a_wrong_island_is_found(written: Any) -> None:
    """The comparison of islands can fail: a twin whose function is another one differs."""
    _, graph, path = written("perceptron")
    (island,) = graph.islands

    class Shifted(nn.Module):
        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return tuple(value + 0.5 for value in island.function(*values))

    row = next(r for r in MIXED if r.name == "perceptron")
    ops = tuple(type(op)(**{**vars(op), "function": Shifted()}) if op is island else op for op in graph.ops)
    other = IntegerGraph(graph.tensors, ops, graph.outputs)
    (samples, extremes) = verify_islands(other, path, feeds(graph, row.inputs(4)))
    assert min(samples.largest, extremes.largest) == pytest.approx(0.5, abs=1e-5)
    assert run_float32(graph, feeds(graph, row.inputs(4)))[0].shape == (4, 3)
