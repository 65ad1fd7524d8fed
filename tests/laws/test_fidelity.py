"""A captured network computes what the model computes, and shares nothing with it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import BATCH_NORMS, CASES, ModelCase, as_data, captured, case, leaves
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import Kind

# BatchNorms that read a sum, a concatenation, an input, rows, or a layer that is called twice.
UNFOLDED = {
    "pre_activation": ["bn1", "bn3"],
    "concat_batch_norm": ["bn"],
    "linear_batch_norm": ["bn0"],
    "shared": ["bn1", "bn2"],
    "rows_mean": ["bn"],
}

every_case = pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad():
        return leaves(model(*[x.clone() for x in inputs]))


def _assert_equal(actual: list[Any], expected: list[Any]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


def _distance(actual: list[Any], expected: list[Any]) -> float:
    """Largest difference, relative to the largest value."""
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if isinstance(b, Tensor)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item() for a, b in pairs)


@every_case
def test_capture_is_bit_identical_at_any_batch_size(row: ModelCase) -> None:
    model, program = captured(row)
    for batch in (1, 2, 5):
        inputs = row.inputs(batch, seed=batch)
        _assert_equal(_run(program, inputs), _run(model, inputs))


@every_case
def test_capture_is_bit_identical_in_float64_and_on_other_memory_layouts(row: ModelCase) -> None:
    model, program = captured(row, torch.float64)
    inputs = row.inputs(4, seed=7, dtype=torch.float64)
    scattered = tuple(x.transpose(1, -1).contiguous().transpose(1, -1) for x in inputs)
    assert not scattered[0].is_contiguous()
    if row.name == "mlp":  # the model itself needs contiguous inputs, as it uses `view`
        with pytest.raises(RuntimeError, match="view size"):
            model(*scattered)
        scattered = inputs
    _assert_equal(_run(program, scattered), _run(model, scattered))


@every_case
def test_results_are_nested_as_the_models(row: ModelCase) -> None:
    model, program = captured(row)
    expected, actual = model(*row.inputs(2)), program(*row.inputs(2))
    assert _outline(actual) == _outline(expected)


def _outline(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _outline(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_outline(v) for v in value)
    return type(value)


@every_case
def test_state_dict_is_the_users(row: ModelCase) -> None:
    model, program = captured(row)
    expected, actual = model.state_dict(), program.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@every_case
def test_capture_leaves_the_model_alone(row: ModelCase) -> None:
    torch.manual_seed(0)
    model = row.build().train()
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    program = capture(model, row.inputs(2))
    fold_batch_norm(program)
    _sgd_step(program, row)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def _sgd_step(program: FloatProgram, row: ModelCase) -> None:
    parameters = list(program.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    results = [x for x in leaves(program(*row.inputs(2))) if isinstance(x, Tensor)]
    torch.stack([x.sum() for x in results]).sum().backward()
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


@every_case
def test_batch_norm_folds_into_layers(row: ModelCase) -> None:
    model, program = captured(row, torch.float64)
    assert _norms(program) == sorted(name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS))
    fold_batch_norm(program)
    inputs = row.inputs(3, dtype=torch.float64)
    assert _distance(_run(program, inputs), _run(model, inputs)) <= 1e-12
    assert _norms(program) == UNFOLDED.get(row.name, [])


def _norms(program: FloatProgram) -> list[str]:
    return sorted(op.module for op in describe(program).ops if op.kind is Kind.NORM)


@every_case
def test_copies_and_pickles_are_whole_and_apart(row: ModelCase) -> None:
    _, program = captured(row)
    inputs = row.inputs(3)
    expected = _run(program, inputs)
    for twin in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        _assert_equal(_run(twin, inputs), expected)
        assert as_data(describe(twin)) == as_data(describe(program))
        with torch.no_grad():
            for tensor in twin.tensors().values():
                tensor.zero_()
        fold_batch_norm(twin)
        _assert_equal(_run(program, inputs), expected)


@every_case
def test_describing_twice_gives_the_same_and_changes_nothing(row: ModelCase) -> None:
    _, program = captured(row)
    program.train()
    graph = describe(program)
    assert as_data(describe(program)) == as_data(graph)
    assert all(module.training for module in program.modules())
    assert as_data(copy.deepcopy(graph)) == as_data(graph)


@pytest.mark.parametrize("row", [c for c in CASES if c.name != "clashing_names"], ids=lambda row: row.name)
def test_a_capture_can_be_captured(row: ModelCase) -> None:
    model, program = captured(row)
    again = capture(program, row.inputs(2))
    _assert_equal(_run(again, row.inputs(3)), _run(model, row.inputs(3)))
    assert [k for k in again.state_dict() if k not in model.state_dict()] == []


@pytest.mark.parametrize("name", ["dropouts", "in_place", "clashing_names", "dscnn"])
def test_dropout_is_active_in_training_only(name: str) -> None:
    model, program = captured(case(name))
    inputs = case(name).inputs(4)
    torch.manual_seed(3)
    first = _run(program.train(), inputs)
    assert _distance(_run(program, inputs), first) > 1e-3
    torch.manual_seed(3)
    _assert_equal(_run(program, inputs), first)
    torch.manual_seed(3)
    _assert_equal(_run(_only_dropouts_training(model), inputs), first)
    _assert_equal(_run(program.eval(), inputs), _run(model.eval(), inputs))


def _only_dropouts_training(model: nn.Module) -> nn.Module:
    """A BatchNorm of a program is fixed, so the model to compare with keeps it in evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
    return model


def test_tied_parameters_stay_tied() -> None:
    _, program = captured(case("tied"))
    tensors = program.tensors()
    assert tensors["left.weight"] is tensors["right.weight"]
    assert len(list(program.parameters())) == len(list(captured(case("tied"))[0].parameters()))


def test_constants_in_the_code_are_copied() -> None:
    table = torch.ones(3)

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + table

    program = capture(Table(), torch.zeros(2, 3))
    assert program.state_dict() == {}
    (own,) = program.tensors().values()
    own.zero_()
    assert table.tolist() == [1, 1, 1]
    assert program(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_frozen_parameters_stay_frozen() -> None:
    model = case("pre_activation").build()
    model.get_submodule("conv1").requires_grad_(False)
    program = capture(model, case("pre_activation").inputs(2))
    frozen = {n: p.requires_grad for n, p in program.named_parameters()}
    assert frozen == {n: p.requires_grad for n, p in model.named_parameters()}
    fold_batch_norm(program)
    folded = {n for n, p in program.named_parameters() if not p.requires_grad}
    assert folded == {"conv1.weight", "conv1.bias"}
    cut(program, describe(program), {"stem": [0, 1], "conv1": [2, 3]})
    assert {n for n, p in program.named_parameters() if not p.requires_grad} == folded


def test_buffers_that_the_state_dict_leaves_out_are_kept() -> None:
    _, program = captured(case("clashing_names"))
    assert "mean" not in program.state_dict()
    assert program.tensors()["mean"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("batch", [1, 4])
def test_named_and_nested_inputs(batch: int) -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, *more: Tensor, scale: Any = None, flag: bool = False) -> Tensor:
            x = x + more[0] * scale["by"][0]
            return x if flag else -x

    generator = torch.Generator().manual_seed(0)

    def values(size: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        a, b, c = torch.randn(3, size, 5, generator=generator)
        return (a, b), {"flag": False, "scale": {"by": [c]}}

    args, kwargs = values(batch)
    program = capture(Nested(), args, kwargs)
    for size in (1, 3):
        args, kwargs = values(size)
        swapped = dict(reversed(kwargs.items()))
        assert torch.equal(program(*args, **swapped), Nested()(*args, **kwargs))
    with pytest.raises(Exception, match=r"`inputs` hold True; False.* is built in"):
        program(*args, **{**kwargs, "flag": True})


def test_inputs_without_a_batch_keep_their_size() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
            return x * scale * factor

    program = capture(Scaled(), (torch.randn(4, 3), torch.randn(1, 3), torch.tensor(2.0)))
    x, scale, factor = torch.randn(7, 3), torch.randn(1, 3), torch.tensor(3.0)
    assert torch.equal(program(x, scale, factor), x * scale * factor)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_kept_with_a_warning(batch: int) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(batch, 6))

    model = Fixed()
    with pytest.warns(UserWarning, match=f"fixes its batch size.* for batches of {batch} only"):
        program = capture(model, torch.randn(batch, 2, 3))
    x = torch.randn(batch, 2, 3)
    assert torch.equal(program(x), model(x))
    assert describe(program).shapes["linear"] == (batch, 3)
    with pytest.raises(ValueError, match=r"shape \(5, 2, 3\).*captured for \(.*, 2, 3\)"):
        program(torch.randn(5, 2, 3))


def test_a_batch_of_some_sizes_is_kept_with_a_warning() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] // 2, 2, 3).sum(1)

    with pytest.warns(UserWarning, match="what torch finds free"):
        program = capture(Pairs(), torch.randn(4, 3))
    x = torch.randn(6, 3)
    assert torch.equal(program(x), Pairs()(x))
    assert describe(program).shapes[describe(program).outputs[0]] == (2, 3)


def test_control_flow_on_tensors_is_kept() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (y,))

    program = copy.deepcopy(capture(Branch(), torch.randn(2, 3)))
    for x in (torch.ones(3, 3), -torch.ones(4, 3)):
        assert torch.equal(program(x), Branch()(x))
    assert describe(program).barriers


def test_casts_in_the_model_take_inputs_of_any_type() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.float().to(self.fc.weight.dtype)).double()

    model = Cast()
    program = capture(model, torch.randn(2, 3))
    x = torch.randn(4, 3)
    assert torch.equal(program(x), model(x))
    assert torch.equal(program(x.double()), model(x.double()))


def test_dropout_that_is_always_active_stays_so() -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    program = capture(Always(), torch.ones(2, 50))
    assert (program.eval()(torch.ones(2, 50)) == 0).any()


def test_counters_are_dropped() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + 1

    model = Counting()
    program = capture(model, torch.ones(2, 3))
    program(torch.ones(2, 3))
    assert program.state_dict() == {"calls": torch.zeros(())}
    assert model.calls == 0
