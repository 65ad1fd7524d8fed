"""Weights as one row per output channel: there and back, and what each row is by the gradient of its channel."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zerobit.graph.ir import Rows
from zerobit.graph.rows import from_rows, to_rows


@dataclass(frozen=True)
class Layout:
    """A layer: how it computes from an input and a weight, and how its output channels lie.

    Attributes:
        weight: shape.
        rows: of the weight.
        layer: of a weight and an input; output channels on dimension `dim`.
        inputs: shape of the input.
        dim: of the output's channels.
    """

    weight: tuple[int, ...]
    rows: Rows
    layer: Callable[[Tensor, Tensor], Tensor]
    inputs: tuple[int, ...]
    dim: int = 1


INDEX = torch.tensor([[0, 4, 2], [1, 1, 3]])
LAYOUTS = {
    "conv": Layout((6, 4, 3), Rows(), lambda w, x: F.conv1d(x, w, padding=1), (2, 4, 5)),
    "conv, grouped": Layout((6, 2, 3, 2), Rows(), lambda w, x: F.conv2d(x, w, groups=2), (2, 4, 5, 3)),
    "conv, depthwise": Layout((8, 1, 2), Rows(), lambda w, x: F.conv1d(x, w, groups=4), (2, 4, 5)),
    "transposed": Layout((4, 6, 3), Rows(1, 1), lambda w, x: F.conv_transpose1d(x, w), (2, 4, 5)),
    "transposed, grouped": Layout(
        (6, 4, 3, 2), Rows(1, 3), lambda w, x: F.conv_transpose2d(x, w, stride=2, groups=3), (2, 6, 3, 2)
    ),
    "transposed, depthwise": Layout(
        (4, 2, 3), Rows(1, 4), lambda w, x: F.conv_transpose1d(x, w, groups=4), (2, 4, 5)
    ),
    "linear": Layout((5, 4), Rows(), lambda w, x: F.linear(x, w), (2, 3, 4), -1),
    "linear, [I, O]": Layout((4, 5), Rows(1), lambda w, x: x @ w, (2, 3, 4), -1),
    "embedding": Layout((5, 3), Rows(1), lambda w, x: F.embedding(INDEX, w) * x, (2, 3, 1), -1),
}  # fmt: skip

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def _numbered(layout: Layout) -> Tensor:
    """A weight of different numbers."""
    return torch.arange(1, torch.Size(layout.weight).numel() + 1, dtype=torch.float64).reshape(layout.weight)


@every_layout
def test_there_and_back(layout: Layout) -> None:
    w = _numbered(layout)
    flat = to_rows(w, layout.rows)
    assert flat.shape == (layout.rows.count(layout.weight), w.numel() // layout.rows.count(layout.weight))
    assert sorted(flat.ravel().tolist()) == sorted(w.ravel().tolist())
    assert torch.equal(from_rows(flat, w, layout.rows), w)
    assert torch.equal(from_rows(flat, torch.empty(layout.weight), layout.rows), w)
    other = torch.randn(flat.shape)
    assert torch.equal(to_rows(from_rows(other, w, layout.rows), layout.rows), other)


@every_layout
def test_a_row_is_what_feeds_its_channel(layout: Layout) -> None:
    """Exactly those weights that the sum over an output channel depends on."""
    torch.manual_seed(0)
    w = _numbered(layout).requires_grad_()
    result = layout.layer(w, torch.rand(layout.inputs, dtype=torch.float64) + 1)
    rows = to_rows(w.detach(), layout.rows)
    assert result.shape[layout.dim] == len(rows)
    for channel, row in enumerate(rows):
        (gradient,) = torch.autograd.grad(result.select(layout.dim, channel).sum(), w, retain_graph=True)
        assert w.detach()[gradient != 0].tolist() == sorted(row.tolist())


@every_layout
def test_scaling_a_row_scales_its_channel(layout: Layout) -> None:
    w, x = _numbered(layout), torch.rand(layout.inputs, dtype=torch.float64)
    factors = 2.0 ** torch.arange(layout.rows.count(layout.weight), dtype=torch.float64)
    scaled = from_rows(to_rows(w, layout.rows) * factors[:, None], w, layout.rows)
    along = factors.reshape(-1, *(1,) * (0 if layout.dim == -1 else len(layout.inputs) - 2))
    assert torch.equal(layout.layer(scaled, x), layout.layer(w, x) * along)
