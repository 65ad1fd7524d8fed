"""Which channels go together, spelled out for networks where it can be worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import captured, case
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import ChannelGroup, Graph

OUTPUT = "an output of the network"


def _graph(name: str) -> Graph:
    return describe(fold_batch_norm(captured(case(name))[1]))


def _group(graph: Graph, name: str) -> ChannelGroup:
    return next(g for g in graph.groups if g.name == name)


def _parameters(graph: Graph, group: str) -> dict[tuple[str, int], tuple[int, ...]]:
    """(parameter, dimension) -> shape of the index array."""
    members = _group(graph, group).members
    return {(m.tensor, m.dim): m.index.shape for m in members if m.tensor in graph.parameters}


def _index(graph: Graph, group: str, tensor: str, dim: int) -> list[list[int]]:
    (member,) = [m for m in _group(graph, group).members if (m.tensor, m.dim) == (tensor, dim)]
    return member.index.tolist()


def _modules(graph: Graph, group: str) -> list[str]:
    """The user's layers whose output a mask zeroes."""
    affine = _group(graph, group).affine
    return [op.module for op in graph.ops if op.name in affine]


def _summary(graph: Graph) -> list[tuple[str, int, str | None]]:
    return [(g.name, g.units, g.frozen) for g in graph.groups]


def _one_each(units: int, *axes: tuple[str, int]) -> dict[tuple[str, int], tuple[int, ...]]:
    return dict.fromkeys(axes, (units, 1))


def test_resnet8() -> None:
    graph = _graph("resnet8")
    assert _summary(graph) == [
        ("conv", 16, None),
        ("block1.conv1", 16, None),
        ("block2.conv1", 32, None),
        ("block2.conv2", 32, None),
        ("block3.conv1", 64, None),
        ("block3.conv2", 64, None),
        ("classifier", 10, OUTPUT),
    ]
    # The stem and the second convolution of the first block meet in a sum, and feed all that reads it.
    assert _modules(graph, "conv") == ["conv", "block1.conv2"]
    assert _parameters(graph, "conv") == _one_each(
        16,
        ("conv.weight", 0),
        ("conv.bias", 0),
        ("block1.conv1.weight", 1),
        ("block1.conv2.weight", 0),
        ("block1.conv2.bias", 0),
        ("block2.conv1.weight", 1),
        ("block2.shortcut_conv.weight", 1),
    )
    assert _modules(graph, "block2.conv2") == ["block2.conv2", "block2.shortcut_conv"]
    assert _modules(graph, "block3.conv2") == ["block3.conv2", "block3.shortcut_conv"]
    assert _parameters(graph, "block3.conv2") == _one_each(
        64,
        ("block3.conv2.weight", 0),
        ("block3.conv2.bias", 0),
        ("block3.shortcut_conv.weight", 0),
        ("block3.shortcut_conv.bias", 0),
        ("classifier.weight", 1),
    )
    assert _parameters(graph, "block1.conv1") == _one_each(
        16, ("block1.conv1.weight", 0), ("block1.conv1.bias", 0), ("block1.conv2.weight", 1)
    )


def test_dscnn() -> None:
    graph = _graph("dscnn")
    names = ["conv", *(f"block{i}.pointwise" for i in (1, 2, 3, 4))]
    assert _summary(graph) == [*((name, 64, None) for name in names), ("classifier", 12, OUTPUT)]
    # A depthwise convolution goes with the channels it reads; its weight has no input dimension to cut.
    assert _modules(graph, "conv") == ["conv", "block1.depthwise"]
    assert _parameters(graph, "conv") == _one_each(
        64,
        ("conv.weight", 0),
        ("conv.bias", 0),
        ("block1.depthwise.weight", 0),
        ("block1.depthwise.bias", 0),
        ("block1.pointwise.weight", 1),
    )
    assert _parameters(graph, "block4.pointwise") == _one_each(
        64, ("block4.pointwise.weight", 0), ("block4.pointwise.bias", 0), ("classifier.weight", 1)
    )


def test_concat_adds_offsets() -> None:
    graph = _graph("concat_branches")
    assert _summary(graph) == [("left", 4, None), ("right", 6, None), ("conv", 5, None), ("fc", 3, OUTPUT)]
    assert _index(graph, "left", "cat", 1) == [[0], [1], [2], [3]]
    assert _index(graph, "right", "cat", 1) == [[4], [5], [6], [7], [8], [9]]
    assert _index(graph, "left", "conv.weight", 1) == [[0], [1], [2], [3]]
    assert _index(graph, "right", "conv.weight", 1) == [[4], [5], [6], [7], [8], [9]]


def test_concat_leaves_room_for_the_input() -> None:
    graph = _graph("concat_identity")
    assert _summary(graph) == [("left", 4, None), ("conv", 5, OUTPUT)]
    assert _index(graph, "left", "cat", 1) == [[2], [3], [4], [5]]
    assert _index(graph, "left", "conv.weight", 1) == [[2], [3], [4], [5]]


def test_flatten_gives_each_channel_its_positions() -> None:
    graph = _graph("concat_batch_norm")
    expected = np.arange(8 * 16).reshape(8, 16)
    assert _index(graph, "a", "flatten", 1) == expected[:3].tolist()
    assert _index(graph, "b", "flatten", 1) == expected[3:].tolist()
    assert _index(graph, "b", "fc.weight", 1) == expected[3:].tolist()
    # The BatchNorm reads both groups, and a mask of either goes behind it.
    assert _index(graph, "b", "bn.running_var", 0) == [[3], [4], [5], [6], [7]]
    assert _modules(graph, "a") == ["a", "bn"]
    assert _modules(graph, "b") == ["b", "bn"]


def test_grouped_convolutions_are_cut_equally() -> None:
    graph = _graph("grouped")
    # The input has no channels to cut, so the two groups of `image` (2 filters each) stay equal by pairing filters.
    assert _index(graph, "image", "image.weight", 0) == [[0, 2], [1, 3]]
    assert _index(graph, "image", "conv1.weight", 1) == [[0], [1]]
    assert _index(graph, "conv1", "conv1.weight", 0) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert _index(graph, "conv1", "conv2.weight", 1) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # Depthwise with two filters per channel.
    assert _index(graph, "conv2", "double_.weight", 0) == [[2 * i, 2 * i + 1] for i in range(6)]
    assert _modules(graph, "conv2") == ["conv2", "double_"]


def test_a_barrier_freezes_what_it_reads_and_is_named() -> None:
    graph = _graph("barrier")
    assert _summary(graph) == [
        ("conv1", 5, None),
        ("conv2", 4, "read by `floor` (aten.floor.default), an op without a rule"),
        ("conv3", 3, None),
        ("fc", 3, OUTPUT),
    ]
    assert [op.name for op in graph.barriers] == ["floor"]


def test_a_gate_freezes_both_its_sides_only() -> None:
    graph = _graph("gated")
    frozen = {g.name: g.frozen for g in graph.groups}
    assert frozen == {
        "stem": "read by `mul` (aten.mul.Tensor), an op without a rule",
        "squeeze": None,
        "excite": "read by `sigmoid` (aten.sigmoid.default), an op without a rule",
        "conv": None,
        "fc": OUTPUT,
    }


def test_tied_parameters_are_one_and_what_a_barrier_reads_keeps_its_shape() -> None:
    graph = _graph("tied")
    reason = "`fc1.weight` is read by `sin` (aten.sin.default), an op without a rule"
    assert _summary(graph) == [
        ("left", 6, None),
        ("conv", 2, reason),
        ("fc1", 4, reason),
        ("fc2", 3, "read by `mul` (aten.mul.Tensor), an op without a rule"),
    ]
    assert _parameters(graph, "left") == _one_each(
        6, ("left.weight", 0), ("left.bias", 0), ("right.bias", 0), ("conv.weight", 1)
    )
    assert [op.weight for op in graph.ops if op.module == "right"] == ["left.weight"]
    assert "right.weight" not in graph.parameters
    assert _modules(graph, "left") == ["left", "right"]


def test_a_layer_called_twice_ties_its_outputs_to_its_inputs() -> None:
    graph = _graph("shared")
    assert _summary(graph) == [
        ("first", 2, "`first.weight` is used twice, once where its channels can't be told apart"),
        ("stem", 5, None),
        ("fc", 3, OUTPUT),
    ]
    assert _modules(graph, "stem") == ["stem", "twice", "bn1", "twice", "bn2"]
    norms = [f"bn{i}.{part}" for i in (1, 2) for part in ("weight", "bias", "running_mean", "running_var")]
    assert _parameters(graph, "stem") == _one_each(
        5,
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("twice.weight", 0),
        ("twice.weight", 1),
        ("twice.bias", 0),
        ("fc.weight", 1),
        *((name, 0) for name in norms),
    )


def test_a_parameter_that_is_returned_keeps_its_shape() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(3, 4)
            self.fc2 = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc2(self.fc1(x)), self.fc1.bias

    graph = describe(capture(Returns(), torch.randn(2, 3)))
    assert _summary(graph) == [("fc1", 4, OUTPUT), ("fc2", 2, OUTPUT)]
    assert graph.outputs == ("linear_1", "fc1.bias")


def test_what_meets_unevenly_is_frozen() -> None:
    graph = _graph("concat_add")
    assert _summary(graph) == [("a", 6, "its channels lie unevenly along `conv2d_1`"), ("last", 2, OUTPUT)]


def test_padding_that_is_not_zero_freezes() -> None:
    frozen = {g.name: g.frozen for g in _graph("padded").groups}
    assert frozen["conv1"] is None
    assert frozen["conv2"] is None
    assert frozen["conv2b"] == "an absent channel would not read as zero in `conv2d_3`"


def test_channels_on_another_dimension_freeze_a_convolution() -> None:
    graph = _graph("rows")
    assert _group(graph, "rows").frozen == "not on the channel dimension of `conv1d_1`"
    assert _modules(graph, "conv1") == ["conv1", "rows"]
    assert _parameters(graph, "conv1") == _one_each(6, ("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1))


def test_channels_on_another_dimension_freeze_a_batch_norm() -> None:
    graph = _graph("rows_mean")
    assert _group(graph, "conv").frozen == "averaged over in `mean`"
    assert _group(graph, "rows").frozen == "not on the channel dimension of `batch_norm`"


def test_of_several_reasons_the_first_is_given() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            b = self.b(x)
            return torch.floor(b), self.a(x) + b

    (group,) = describe(capture(Twice(), torch.randn(2, 3))).groups
    assert group.frozen == "read by `floor` (aten.floor.default), an op without a rule"


def test_a_batch_norm_that_stays_is_masked_too() -> None:
    graph = _graph("pre_activation")
    assert _modules(graph, "stem") == ["stem", "bn1", "conv2", "bn3"]
    assert {name for name, _ in _parameters(graph, "stem")} == {
        "stem.weight",
        "stem.bias",
        *(f"bn{i}.{part}" for i in (1, 3) for part in ("weight", "bias", "running_mean", "running_var")),
        "conv1.weight",
        "conv2.weight",
        "conv2.bias",
        "fc.weight",
    }


@pytest.mark.parametrize(
    ("before", "after", "target", "reason"),
    [
        ((6, 4), (6, 4), "conv2", None),
        ((6, 4), (24,), "fc", None),
        ((6, 4), (4, 6), "conv2", "channels are split or mixed in `view`"),
        ((6, 4), (2, 12), "conv2", "channels are split or mixed in `view`"),
        ((6, 4), (3, 2, 4), "fc", "channels are split or mixed in `view`"),
        ((6, 1), (1, 6, 1), "fc1", None),
    ],
)
def test_views(before: Sequence[int], after: Sequence[int], target: str, reason: str | None) -> None:
    """A view splits, joins or keeps channels; the head fits what comes out."""

    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, before[0], 1)
            self.conv2 = nn.Conv1d(after[0], 2, 1)
            self.fc = nn.Linear(after[-1], 2)
            self.fc1 = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).view(x.shape[0], *after)
            return self.fc1(y.squeeze(3).squeeze(1)) if target == "fc1" else getattr(self, target)(y)

    graph = describe(capture(View(), torch.randn(2, 2, before[1])))
    assert graph.groups[0].frozen == reason


def test_a_view_that_mixes_the_batch_freezes() -> None:
    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 1)
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).reshape(-1, 3))

    graph = describe(capture(Merge(), torch.randn(2, 2, 3)))
    assert graph.groups[0].frozen == "channels are split or mixed in `reshape`"
