"""The laws on every network of the matrix. A few rows are in `make test`, all in `make test-all`."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laws.test_cut_equals_masked import cut_copy, keep_one, keep_some, removable
from matrix.measure import TOLERANCE, captured, cut_difference, difference, folded, run, tensors
from matrix.row import MatrixRow
from matrix.rows import MATRIX
from searches import scramble
from zerobit.cost import Size
from zerobit.cost.price import Budget
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.export.runtimes.base import Exported
from zerobit.export.runtimes.c_library import HostC
from zerobit.export.runtimes.onnx_runtime import OnnxRuntime
from zerobit.export.runtimes.tflite_micro import TfliteMicro
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.plan import Plan
from zerobit.search.attach import SearchNet, attach
from zerobit.search.methods.softmax import ChannelSoftmax


def _marks(row: MatrixRow) -> list[pytest.MarkDecorator]:
    """All laws of a row in one worker, so that it is captured once; and the tier."""
    return [pytest.mark.xdist_group(row.name), *([] if row.is_quick else [pytest.mark.matrix])]


every_row = pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=_marks(row)) for row in MATRIX])


@pytest.fixture(autouse=True)
def _needs_the_package(request: pytest.FixtureRequest) -> None:
    row = request.getfixturevalue("row") if "row" in request.fixturenames else None
    if row is not None and row.origin:
        pytest.importorskip(row.origin)


@functools.cache
def _attached(row: MatrixRow) -> tuple[nn.Module, "Snapshot", SearchNet]:
    """The user's model, what it was before, and its search network."""
    model, inputs = row.model(), row.sample(3)
    before = Snapshot.of(model, inputs)
    torch.manual_seed(0)
    return model, before, attach(model, inputs, ChannelSoftmax())


def searched(row: MatrixRow, seed: int = 1) -> SearchNet:
    """The search network of a row with choices by chance; a copy of its own."""
    return scramble(copy.deepcopy(_attached(row)[2]), seed)


@functools.cache
def _cut(row: MatrixRow) -> tuple[Plan, QuantNet]:
    net = searched(row)
    plan = decide(net)
    small = apply(net, plan)
    return plan, small.eval()


@functools.cache
def _lowered(row: MatrixRow) -> IntegerGraph:
    return lower(_cut(row)[1])


def finite(values: list[Tensor]) -> bool:
    # What a network masks is minus infinity; no value of the matrix ends there.
    return all(bool(x.isfinite().all()) for x in values)


@pytest.fixture
def written_out_attention() -> Iterator[None]:
    """nn.MultiheadAttention by its own code, which a capture holds; torch's fused layer rounds in another order."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(was_enabled)


@every_row
@pytest.mark.usefixtures("written_out_attention")
def test_the_capture_computes_the_same_bits(row: MatrixRow) -> None:
    model, program = row.model(), captured(row)
    for batch, seed in ((3, 1), (1, 2), (5, 3)):
        inputs = row.sample(batch, seed)
        ours, theirs = run(program, inputs), run(model, inputs)
        assert theirs
        assert finite(theirs)
        assert [x.dtype for x in ours] == [x.dtype for x in theirs]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@every_row
def test_folding_changes_no_more_than_rounding(row: MatrixRow) -> None:
    inputs = row.sample(2, seed=1, dtype=torch.float64)
    assert difference(run(folded(row, torch.float64), inputs), run(captured(row, torch.float64), inputs)) <= TOLERANCE


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What can be seen of a model.

    Attributes:
        tensors: name -> the parameter or buffer, its value, and whether it needs a gradient.
        modules: name -> the module, the names of its attributes, and whether it trains.
        results: of the inputs.
    """

    tensors: dict[str, tuple[Tensor, Tensor, bool]]
    modules: dict[str, tuple[nn.Module, set[str], bool]]
    results: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Tensor, ...]) -> "Snapshot":
        results = run(model, inputs)  # first: some keep what they have computed
        state = model.state_dict(keep_vars=True)
        return cls(
            {name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in state.items()},
            {name: (module, set(vars(module)), module.training) for name, module in model.named_modules()},
            results,
        )


@every_row
def test_the_users_model_is_untouched(row: MatrixRow) -> None:
    model, before, _ = _attached(row)
    after = Snapshot.of(model, row.sample(3))
    assert after.modules == before.modules
    assert list(after.tensors) == list(before.tensors)
    for name, (tensor, value, requires_grad) in after.tensors.items():
        was, old, required = before.tensors[name]
        assert tensor is was
        assert requires_grad == required
        assert tensor.grad is None
        assert torch.equal(value, old)
    assert all(torch.equal(a, b) for a, b in zip(after.results, before.results, strict=True))


@every_row
def test_cutting_equals_masking(row: MatrixRow) -> None:
    program = folded(row, torch.float64)
    graph = describe(program)
    gap = cut_difference(program, graph, row)
    assert gap is None or gap <= TOLERANCE
    unfolded = captured(row, torch.float64)
    gap = cut_difference(unfolded, describe(unfolded), row)
    assert gap is None or gap <= TOLERANCE


@every_row
def test_the_law_is_not_empty(row: MatrixRow) -> None:
    """Results depend on the inputs, and on what is cut away."""
    program = captured(row, torch.float64)
    graph, inputs = describe(program), row.sample(2, seed=1, dtype=torch.float64)
    whole = run(program, inputs)
    assert difference(run(program, row.sample(2, seed=2, dtype=torch.float64)), whole) > 1e-3
    keep = {group: keep_one(group, 0) for group in removable(graph)}
    assert not keep or difference(run(cut_copy(program, graph, keep), inputs), whole) > 1e-3


@every_row
def test_a_cut_removes_what_it_should(row: MatrixRow) -> None:
    """Every tensor loses the positions of the units that go, and a description of the result is that of a network."""
    program = captured(row)
    graph = describe(program)
    keep = {group: keep_some(group, 3) for group in removable(graph)}
    sizes = {name: list(shape) for name, shape in {**graph.shapes, **graph.parameters}.items()}
    for group, mask in keep.items():
        for member in group.members:
            sizes[member.tensor][member.dim] -= int((1 - mask).sum()) * member.index.shape[1]
    small = describe(cut_copy(program, graph, keep))
    assert {**small.shapes, **small.parameters} == {name: tuple(size) for name, size in sizes.items()}


@every_row
def test_one_step_of_the_search_reaches_every_parameter(row: MatrixRow) -> None:
    net = searched(row).train()
    budget = Budget(Size(), "50%")
    outputs = [x for x in tensors(net(*row.sample(3))) if x.is_floating_point()]
    loss = torch.stack([x.clamp(-1e3, 1e3).square().mean() for x in outputs]).sum()
    (loss + budget(net)).backward()
    read = {node.target for node in net.code.nodes if node.op == "get_attr" and node.users}
    missing = [n for n, p in net.named_parameters() if p.requires_grad and n in read and p.grad is None]
    assert not missing
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@every_row
def test_a_plan_survives_its_file(row: MatrixRow) -> None:
    plan, _ = _cut(row)
    assert Plan.from_json(plan.to_json()) == plan


@every_row
def test_the_quantised_network_runs(row: MatrixRow) -> None:
    _, small = _cut(row)
    inputs = row.sample(2, seed=1)
    results = run(small, inputs)
    assert finite(results)
    theirs = run(searched(row).eval(), inputs)
    assert [x.shape for x in results] == [x.shape for x in theirs]
    assert small.graph.searched_weights == searched(row).graph.searched_weights


@every_row
def test_applying_twice_is_applying_once(row: MatrixRow) -> None:
    plan, small = _cut(row)
    again = apply(copy.deepcopy(small), plan).eval()
    inputs = row.sample(2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(run(again, inputs), run(small, inputs), strict=True))
    assert list(again.state_dict()) == list(small.state_dict())


@every_row
def test_the_exported_file_runs(row: MatrixRow, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from zerobit.export.onnx_file import write_onnx

    _, small = _cut(row)
    session = onnxruntime.InferenceSession(write_onnx(_lowered(row), tmp_path / "net.onnx"))
    inputs = row.sample(2, seed=1)
    feeds = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
    results = [torch.from_numpy(x) for x in session.run(None, feeds)]
    assert [x.shape for x in results] == [x.shape for x in run(small, inputs)]
    assert finite(results)


@pytest.mark.matrix  # islands are exported by torch, which takes seconds
@every_row
def test_exports_equal_their_twins(row: MatrixRow, tmp_path: Path) -> None:
    """Every layer, in ONNX Runtime, and as C and in TFLite Micro where these hold the network."""
    graph = _lowered(row)
    inputs = dict(zip(graph.inputs, (x.numpy() for x in row.sample(2, seed=1)), strict=True))
    exported = Exported(graph, tmp_path, inputs)
    for runtime in (OnnxRuntime(), HostC(), TfliteMicro()):
        if not (reason := runtime.missing(exported)):
            assert [r for r in runtime.rows(exported) if r.differences] == [], runtime.title
        else:
            assert graph.islands or "spatial" in reason or "installed" in reason or "onnx" in reason, reason


def test_the_matrix_is_wide() -> None:
    names = [row.name for row in MATRIX]
    assert len(set(names)) == len(names)
    assert {row.family for row in MATRIX} == {"conv", "attention", "recurrent", "mixed"}
    assert len([row for row in MATRIX if row.origin]) >= 22
    assert {row.family for row in MATRIX if row.is_quick} == {row.family for row in MATRIX}


def test_networks_are_the_same_at_every_build() -> None:
    row = next(row for row in MATRIX if row.name == "grouped_shuffle")
    one, two = row.model(), row.model()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert row.sample(2)[0].double().allclose(row.sample(2, dtype=torch.float64)[0])


def test_statistics_and_biases_are_not_those_of_a_fresh_network() -> None:
    """With a mean of zero and a bias of zero, a wrong cut would go unseen."""
    for row in (row for row in MATRIX if not row.origin):
        for name, tensor in row.model().named_parameters():
            assert tensor.numel() == 1 or bool((tensor != tensor.flatten()[0]).any()), f"{row.name}: {name}"


def test_a_capture_of_a_cut_network_is_possible() -> None:
    row = next(row for row in MATRIX if row.name == "squeeze_excite")
    program = captured(row)
    graph = describe(program)
    small = cut_copy(program, graph, {group: keep_some(group, 3) for group in removable(graph)})
    again = capture(small, row.sample(3))
    assert difference(run(again, row.sample(2, 1)), run(small, row.sample(2, 1))) == 0
