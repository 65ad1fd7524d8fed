"""Graphs of the zoo and networks of one layer, for costs."""

import math
from functools import cache

import torch
from torch import Tensor, nn

from zerobit.cost.base import LayerUse, Usage, WeightUse
from zerobit.formats import GRID
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import Graph, Kind
from zerobit.zoo.models import model as zoo_model

CLASSES = {"resnet8": 10, "dscnn": 12}


@cache
def zoo_graph(name: str) -> Graph:
    definition = zoo_model(name)
    example = torch.zeros(1, *definition.input_shape)
    return describe(fold_batch_norm(capture(definition.build(CLASSES[name]).eval(), example)))


def one_layer(
    counts: dict[int, float] | Tensor,
    inputs: float | Tensor,
    *,
    kernel: tuple[int, ...] = (),
    size: tuple[int, ...] = (),
    depthwise: bool = False,
    groups: int = 1,
    kind: Kind | None = None,
) -> Usage:
    """A network of one layer: channels by width, input channels, and its output's size."""
    if isinstance(counts, dict):
        counts = torch.tensor([float(counts.get(b, 0)) for b in GRID], dtype=torch.float64)
    inputs = torch.as_tensor(inputs, dtype=torch.float64)
    per_row = torch.ones((), dtype=torch.float64) if depthwise else inputs / groups
    weight = WeightUse("w", counts, per_row * math.prod(kernel))
    channels = int(counts.sum())
    if kind is None:
        kind = Kind.CONV if kernel else Kind.LINEAR
    shape = (1, *size, channels) if kind is Kind.LINEAR else (1, channels, *size)
    positions = torch.tensor(float(math.prod(size)), dtype=torch.float64)
    layer = LayerUse("layer", kind, weight, inputs, positions, shape, kernel, depthwise, groups, None)
    return Usage((weight,), (layer,), torch.zeros((), dtype=torch.float64))


class Words(nn.Module):
    """A table of words, and a layer over all of them that may be the table."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        if is_tied:
            self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.inner(self.table(words)).relu())
