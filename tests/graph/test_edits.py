"""Slots: put on edges, seen through by `describe`, taken out again."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, ModelCase, as_data, captured, case, leaves
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import insert_slot, insert_source, strip_slots
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import Kind
from zerobit.graph.program import Program, assign, fetch, remove, slot_name

every_case = pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)


class Scale(nn.Module):
    """A slot with a parameter of its own; at 1 it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor, *sources: Tensor) -> Tensor:
        self.calls += 1
        if not x.is_floating_point():  # positions that are picked, conditions
            return x
        for source in sources:
            x = x * source
        return x * self.factor


class Source(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        return self.gate


def _with_slots(program: Program) -> dict[str, Scale]:
    """A slot on every layer's weight and every op's result, all with one source."""
    graph = describe(program)
    source = insert_source(program, slot_name("all", "choice"), Source())
    tensors = [op.name for op in graph.ops if graph.shapes[op.name]]
    tensors += dict.fromkeys(op.weight for op in graph.weighted if op.weight is not None)
    slots = {tensor: Scale() for tensor in tensors}
    for tensor, slot in slots.items():
        insert_slot(program, tensor, slot_name("scales", tensor), slot, (source,))
    return slots


@torch.no_grad()
def _run(program: Program, row: ModelCase) -> list[Tensor]:
    return [x for x in leaves(program(*row.inputs(2))) if isinstance(x, Tensor)]


@every_case
def test_slots_are_run_and_seen_through(row: ModelCase) -> None:
    _, program = captured(row)
    graph, tensors, before = describe(program), program.tensors(), _run(program, row)
    slots = _with_slots(program)
    torch.testing.assert_close(_run(program, row), before)
    assert {name for name, slot in slots.items() if slot.calls != 1} == set()
    assert as_data(describe(program)) == as_data(graph)
    assert {k: id(v) for k, v in program.tensors().items()} == {k: id(v) for k, v in tensors.items()}
    ours = [name for name, _ in program.named_parameters() if name not in program.tensors()]
    assert len(ours) == len(slots) + 1
    assert all(name.startswith("slots.") for name in ours)


@every_case
def test_slots_can_be_taken_out_again(row: ModelCase) -> None:
    _, program = captured(row)
    plain = copy.deepcopy(program)
    _with_slots(program)
    strip_slots(program)
    fold_batch_norm(program)
    fold_batch_norm(plain)
    assert list(program.state_dict()) == list(plain.state_dict())
    assert str(program.code) == str(plain.code)
    assert dict(program.named_modules()).keys() - {"slots"} == dict(plain.named_modules()).keys() - {"slots"}
    assert all(torch.equal(a, b) for a, b in zip(_run(program, row), _run(plain, row), strict=True))


def test_slots_of_tensors_with_similar_names_are_two() -> None:
    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(nn.Linear(3, 3))
            self.stage_0 = nn.Linear(3, 3)
            self.w = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.stage_0(self.stage(x)), self.w)

    program = capture(Similar(), torch.randn(2, 3))
    source = insert_source(program, slot_name("w", "choice"), Source())
    slots = {name: Scale() for name in ("stage.0.weight", "stage_0.weight", "w")}
    for name, slot in slots.items():
        insert_slot(program, name, slot_name(name), slot, (source,))
    program(torch.randn(2, 3))
    assert [slot.calls for slot in slots.values()] == [1, 1, 1]


def test_one_slot_can_serve_several_tensors() -> None:
    _, program = captured(case("concat_branches"))
    slot = Scale()
    insert_slot(program, "relu", slot_name("cat", "quantizer"), slot)
    insert_slot(program, "conv2d_1", slot_name("cat", "quantizer"), Scale())  # the name is taken: that slot is used
    program(*case("concat_branches").inputs(2))
    assert slot.calls == 2
    assert fetch(program, slot_name("cat", "quantizer")) is slot


def test_gradients_reach_slots_and_sources() -> None:
    row = case("clashing_names")
    _, program = captured(row)
    slots = _with_slots(program)
    program.train()(*row.inputs(3)).sum().backward()
    gate = program.get_parameter(slot_name("all", "choice") + ".gate")
    assert gate.grad is not None
    assert all(slot.factor.grad is not None for slot in slots.values())


def test_dropout_is_an_op_and_no_slot() -> None:
    _, program = captured(case("dropouts"))
    graph = describe(program)
    kinds = {op.module: op.kind for op in graph.ops if op.target == "dropout"}
    assert kinds == dict.fromkeys(("", "whole", "alpha", "plain"), Kind.IDENTITY)
    strip_slots(program)
    assert as_data(describe(program)) == as_data(graph)


def test_assign_keeps_order_and_persistence() -> None:
    root = nn.Module()
    assign(root, "a.weight", nn.Parameter(torch.zeros(1)))
    assign(root, "a.bias", nn.Parameter(torch.zeros(1)))
    assign(root, "a.hidden", torch.zeros(1), persistent=False)
    assign(root, "a.weight", nn.Parameter(torch.ones(2)))
    assign(root, "a.hidden", torch.ones(1))
    assert list(root.state_dict()) == ["a.weight", "a.bias"]
    assert fetch(root, "a.weight").tolist() == [1, 1]
    assign(root, "a.weight", torch.zeros(3))
    assert [name for name, _ in root.named_parameters()] == ["a.bias"]
    assert list(root.state_dict()) == ["a.bias", "a.weight"]
    remove(root, "a.weight")
    remove(root, "a.hidden")
    assign(root, "a.hidden", torch.ones(1))
    assert list(root.state_dict()) == ["a.bias", "a.hidden"]


def test_program_attributes_do_not_clash_with_layers() -> None:
    _, program = captured(case("clashing_names"))
    program.graph = describe(program)  # as classes built on a program do
    assert "graph.weight" in program.state_dict()
    assert [g.name for g in program.graph.groups] == ["code", "slots.0", "tensors.0", "graph"]
    program(*case("clashing_names").inputs(2))
