"""The coverage report: shares, reasons, and a print that stays readable."""

import copy
import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from cases import CASES, ModelCase, case
from zerobit.coverage import Coverage, OpRow, inspect, show_float_ops
from zerobit.graph.ir import FROZEN
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax


def _inspect(name: str, **control: Any) -> Coverage:
    row = case(name)
    return inspect(row.build().eval(), row.inputs(2), **control)


def _text(found: Coverage, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    found.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_shares_are_those_of_the_search(row: ModelCase) -> None:
    """What the report says is searched and may go is what `attach` searches and lets go."""
    model = row.build().eval()
    found, net = inspect(model, row.inputs(2)), attach(model, row.inputs(2), ChannelSoftmax())
    searched = sum(net.tensors()[name].numel() for name in net.graph.searched_weights)
    in_float = sum(weight.size for weight in found.float_weights)
    assert found.weights == searched + in_float
    assert found.searched_share == searched / found.weights
    assert sum(layer.weights for layer in found.layers if layer.bits) == searched
    assert {g.name for g in found.groups if g.kept_because is None} == net.choosing_groups
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert sum(layer.mac_share for layer in found.layers) == pytest.approx(1 if found.macs else 0)
    for layer in found.layers:
        assert layer.prunable <= layer.channels
        assert layer.kept_because or layer.prunable == layer.channels
        assert layer.bits or layer.float_because
    json.dumps(found.as_dict())
    assert all(len(line) <= 100 for line in _text(found).splitlines())


def test_reasons_of_a_small_network() -> None:
    found = _inspect("barrier", frozen=["conv3"], bits={"conv1": (4, 8)})
    rows = {row.name: row for row in found.layers}
    assert rows["conv1"].bits == (4, 8)
    assert rows["conv1"].kept_because == "0 is not among the widths of `conv1.weight`"
    assert (rows["conv3"].kind, rows["conv3"].float_because) == ("barrier", FROZEN)
    assert rows["fc"].kept_because == "an output of the network"
    assert [(w.name, w.size) for w in found.float_weights] == [("conv3.weight", 12)]
    assert FROZEN in {row.reason for row in found.barriers}
    weights = {"conv1": 10, "conv2": 20, "conv3": 12, "fc": 144}
    assert {name: row.weights for name, row in rows.items()} == weights
    assert found.searched_share == (186 - 12) / 186
    assert {name: row.macs for name, row in rows.items()} == {"conv1": 160, "conv2": 320, "conv3": 0, "fc": 144}


def test_macs_are_prunable_where_inputs_or_outputs_may_go() -> None:
    found = _inspect("mlp")
    assert [(row.prunable, row.macs_prunable) for row in found.layers] == [(12, True), (8, True), (0, True)]
    assert found.prunable_share == 1
    kept = _inspect("mlp", bits={"fc1": 8})
    assert [(row.prunable, row.macs_prunable) for row in kept.layers] == [(0, False), (8, True), (0, True)]
    assert kept.prunable_share == (96 + 24) / (192 + 96 + 24)


def test_a_weight_of_two_calls_counts_once() -> None:
    found = _inspect("shared")
    calls = [row for row in found.layers if row.name == "twice"]
    assert [row.weights for row in calls] == [225, 0]
    assert all(row.macs > 0 for row in calls)


class _Drops(nn.Module):
    """Dropout inside an op, which an evaluation-mode capture can't keep."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(x, x, x)[0].mean(1))


def test_what_acts_in_training_only_is_named() -> None:
    found = inspect(_Drops().eval(), torch.randn(2, 5, 8))
    assert any("attention" in name for name in found.dropped)
    assert "training only" in _text(found)


class _Brackets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({"[bold]": nn.Conv2d(2, 2, 1), "[/x]": nn.Conv2d(2, 2, 1)})

    def forward(self, x: Tensor) -> Tensor:
        return self.convs["[/x]"](self.convs["[bold]"](x))


def test_names_with_brackets_are_shown_as_they_are() -> None:
    text = _text(inspect(_Brackets().eval(), torch.randn(1, 2, 4, 4)))
    assert "convs.[bold] " in text
    assert "convs.[/x] " in text


def test_a_long_network_stays_readable() -> None:
    """Every layer is one line at 100 columns, and a reason that many share is written once."""
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(40)]
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1),
        nn.ModuleDict({"a_rather_long_name_of_a_block": nn.Sequential(*layers)})["a_rather_long_name_of_a_block"],
    )
    found = inspect(model.eval(), torch.randn(1, 2, 4, 4), frozen=["1.39.0"])
    text = _text(found)
    lines = text.splitlines()
    assert all(any(f" 1.{i}.0 " in line for line in lines) for i in range(40))
    assert sum(FROZEN in line for line in lines) <= 2
    assert len(lines) < 40 + 30


def test_float_ops_are_listed_once_with_their_reason() -> None:
    rows = [OpRow(f"softmax_{i}", "aten.softmax.int", f"block.{i}", "no integer form") for i in range(30)]
    console = Console(file=io.StringIO(), width=100)
    show_float_ops(rows, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("aten.softmax.int") == text.count("no integer form") == 1
    assert "30" in text
    assert "block.0 .. block.29" in text
    empty = Console(file=io.StringIO())
    show_float_ops([], empty)
    assert isinstance(empty.file, io.StringIO)
    assert empty.file.getvalue() == ""


def test_inspecting_leaves_the_model_alone() -> None:
    model = case("digits").build()
    before = copy.deepcopy(model.state_dict())
    inspect(model, case("digits").inputs(1), frozen=["conv"])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
