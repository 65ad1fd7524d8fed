"""A lowered network computes what the trained one computes, and says what it leaves in float."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import leaves
from mixed_networks import MIXED, MixedCase
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.integer.ir import Conv, IntegerGraph, Island, Linear, Lookup, QuantizeFloat
from zerobit.integer.lower import lower
from zerobit.integer.twins.float32 import run_float32
from zerobit.quant.placement import place
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

every_case = pytest.mark.parametrize("row", MIXED, ids=lambda row: row.name)


def fixed(model: nn.Module, inputs: Any) -> QuantNet:
    net = attach(model.eval(), inputs, ChannelSoftmax())
    return apply(net, decide(net)).eval()


@cache
def lowered(row: MixedCase) -> tuple[QuantNet, IntegerGraph]:
    torch.manual_seed(0)
    net = fixed(row.build(), row.inputs(4))
    return net, lower(net)


def feeds(graph: IntegerGraph, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}


@every_case
@pytest.mark.parametrize("batch", [1, 5])
def test_twin_computes_what_the_network_computes(row: MixedCase, batch: int) -> None:
    net, graph = lowered(row)
    inputs = row.inputs(batch)
    found = run_float32(graph, feeds(graph, inputs))
    with torch.no_grad():
        expected = [x for x in leaves(net(*inputs)) if isinstance(x, Tensor)]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == tuple(b.shape)
        # A value that lies halfway between two integers may go either way, and the difference travels on.
        gap = np.abs(a.astype(np.float64) - b.double().numpy())
        assert gap.max() <= 0.03 * max(1e-6, b.double().abs().max().item())


@every_case
def test_islands_are_named_with_their_reasons(row: MixedCase) -> None:
    net, graph = lowered(row)
    assert len(graph.islands) == row.islands
    named = {op.name: op.reason for island in graph.islands for op in island.ops}
    assert named == dict(place(net.graph).reasons)
    assert all(named.values())
    targets = {op.name: op.target for op in net.graph.ops}
    assert all(op.target == targets[op.name] for island in graph.islands for op in island.ops)


@every_case
def test_every_searched_weight_is_stored_as_integers(row: MixedCase) -> None:
    net, graph = lowered(row)
    layers = [op.weights for op in graph.ops if isinstance(op, Conv | Linear)]
    stored = [weight.weights for island in graph.islands for weight in island.weights]
    sizes = sorted(weights.values.size for weights in (*layers, *stored))
    assert sizes == sorted(int(np.prod(net.graph.parameters[name])) for name in net.graph.searched_weights)


@pytest.mark.parametrize("row", [r for r in MIXED if r.name not in ("branch", "assorted")], ids=lambda row: row.name)
def test_batches_change_nothing(row: MixedCase) -> None:
    _, graph = lowered(row)
    inputs = feeds(graph, row.inputs(5))
    for a, b in zip(run_float32(graph, inputs, batch_size=2), run_float32(graph, inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_tables_hold_every_level_of_a_function() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(F.gelu(self.fc(x))))

    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.5, 2)
    net = fixed(model, torch.randn(8, 3, 4))
    graph = lower(net)
    one, each = (op for op in graph.ops if isinstance(op, Lookup))
    assert (one.axis, one.table.shape, each.axis, each.table.shape) == (None, (256,), 0, (3, 256))
    for op, function in ((one, lambda x: F.gelu(x)), (each, lambda x: model.norm(x))):
        source, target = graph.by_name[op.input], graph.by_name[op.output]
        codes = np.arange(256, dtype=np.uint8).view(source.dtype)
        real = torch.from_numpy(codes.astype(np.float32) * source.step)
        with torch.no_grad():
            y = function(real[:, None, None].expand(256, 3, 1))[..., 0].numpy()
        expected = np.rint(y / target.step).clip(target.low, target.high)
        np.testing.assert_array_equal(np.broadcast_to(op.table, (3, 256)), expected.T)


def test_a_relu_behind_a_norm_becomes_part_of_its_table() -> None:
    _, graph = lowered(next(row for row in MIXED if row.name == "dense"))
    tables = [op for op in graph.ops if isinstance(op, Lookup)]
    assert len(tables) == 3
    assert all(op.table.min() == 0 for op in tables)
    assert not any(type(op).__name__ == "Rescale" for op in graph.ops)


def test_an_op_that_nothing_on_integers_reads_is_not_rounded() -> None:
    _, graph = lowered(next(row for row in MIXED if row.name == "tail"))
    assert sorted(type(op).__name__ for op in graph.ops) == ["Conv", "Island", "Island", "Linear", "Quantize"]
    assert all(graph.by_name[name].is_float for island in graph.islands for name in island.inputs)


def test_results_of_islands_are_rounded_where_integers_are_read() -> None:
    _, graph = lowered(next(row for row in MIXED if row.name == "vision_transformer"))
    rounded = {op.input for op in graph.ops if isinstance(op, QuantizeFloat)}
    read = {name for op in graph.ops if isinstance(op, Island) for name in op.inputs if graph.by_name[name].is_float}
    assert set(graph.float_tensors) == rounded | read
    assert not rounded & {*graph.outputs}


def test_a_bias_far_larger_than_its_weights_is_kept() -> None:
    """In units of the channel's accumulators it would not fit 32 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] *= 1e-9
        model[0].bias.copy_(torch.tensor([3.0, 2.0, 0.5]))
    x = torch.randn(16, 4)
    net = fixed(model, x)
    graph = lower(net)
    (found,) = run_float32(graph, x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x).numpy(), atol=0.02)
