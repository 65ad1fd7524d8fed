"""A settled network computes what its integers compute, but for values close to a tie."""

import copy

import numpy as np
import pytest
import torch

from cases import CASES, ModelCase
from searches import QUICK, attached, scramble
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.integer.agreement import agreement
from zerobit.integer.ir import Conv, Linear
from zerobit.integer.lower import lower, settle

ROWS = [row for row in CASES if row.name in QUICK]
#: Of all values: those that lie so close to a tie that float sums decide, and what follows from them.
_SHARE = 2e-3


def cut(row: ModelCase) -> QuantNet:
    net = scramble(attached(row.name), 1)
    return apply(net, decide(net)).eval()


def share_and_rows(row: ModelCase, net: QuantNet) -> tuple[float, int]:
    graph, inputs = lower(net), row.inputs(16)
    rows = agreement(net, graph, inputs, {n: x.numpy() for n, x in zip(graph.inputs, inputs, strict=True)})
    assert {r.tensor for r in rows} <= set(graph.by_name)
    return sum(r.differences for r in rows) / sum(r.values for r in rows), len(rows)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_settled_network_agrees_with_its_integers(row):
    net = cut(row)
    before, count = share_and_rows(row, net)
    assert count > 1
    settled = settle(copy.deepcopy(net))
    after, _ = share_and_rows(row, settled)
    assert after <= min(before, _SHARE)


def test_biases_are_what_makes_the_difference():
    row = next(row for row in ROWS if row.name == "digits")
    before, _ = share_and_rows(row, cut(row))
    assert before > 2 * _SHARE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_settling_changes_no_integer_and_happens_once(row):
    net = cut(row)
    wanted = lower(net)
    assert settle(net) is net
    for graph in (lower(net), lower(settle(net))):
        for one, other in zip(graph.ops, wanted.ops, strict=True):
            if isinstance(one, Conv | Linear):
                assert isinstance(other, Conv | Linear)
                np.testing.assert_array_equal(one.weights.bias, other.weights.bias)
                np.testing.assert_array_equal(one.weights.values, other.weights.values)


def test_a_difference_is_found():
    row = next(row for row in ROWS if row.name == "digits")
    net = settle(cut(row))
    graph, inputs = lower(net), row.inputs(4)
    with torch.no_grad():
        first = next(op for op in net.graph.ops if op.bias)
        net.tensors()[first.bias].add_(1.0)
    rows = agreement(net, graph, inputs, {n: x.numpy() for n, x in zip(graph.inputs, inputs, strict=True)})
    assert rows[0].differences == 0, "the input comes before the layer"
    assert rows[1].differences > 0
    assert rows[1].largest >= 1
