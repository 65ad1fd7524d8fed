"""Which channels go together, spelled out for networks where it can be worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Forward, captured, case
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
    affine = _group(graph, group).masked
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
        ("conv2", 4, "read by `sort` (aten.sort.default): zerobit has no rule for this op"),
        ("conv3", 3, None),
        ("fc", 3, OUTPUT),
    ]
    assert [op.name for op in graph.barriers] == ["sort", "getitem"]


def test_a_gate_goes_with_what_it_gates() -> None:
    """The product is zero where `stem` is masked, whatever the sigmoid says: it needs no mask itself."""
    graph = _graph("gated")
    assert _summary(graph) == [("stem", 6, None), ("squeeze", 4, None), ("conv", 4, None), ("fc", 3, OUTPUT)]
    assert _modules(graph, "stem") == ["stem", "excite"]
    assert _parameters(graph, "stem") == _one_each(
        6,
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("squeeze.weight", 1),
        ("excite.weight", 0),
        ("excite.bias", 0),
        ("conv.weight", 1),
    )


def test_tied_parameters_are_one_and_what_a_barrier_reads_keeps_its_shape() -> None:
    graph = _graph("tied")
    reason = "`fc1.weight` is read by `sort` (aten.sort.default): zerobit has no rule for this op"
    assert _summary(graph) == [("left", 6, None), ("conv", 2, reason), ("fc1", 4, reason), ("fc2", 3, OUTPUT)]
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


def test_units_that_lie_otherwise_are_a_group_of_their_own() -> None:
    """Channels of `c` go with those of `a` in its first half, with those of `b` in its second."""
    graph = _graph("concat_add")
    assert _summary(graph) == [("a", 3, None), ("b", 3, None), ("last", 2, OUTPUT)]
    assert _index(graph, "a", "c.weight", 0) == [[0], [1], [2]]
    assert _index(graph, "b", "c.weight", 0) == [[3], [4], [5]]
    assert _index(graph, "b", "b.weight", 0) == [[0], [1], [2]]
    assert _index(graph, "b", "last.weight", 1) == [[3], [4], [5]]


def test_a_range_of_channels_is_a_group_with_a_number() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv1d(2, 6, 1), nn.Conv1d(4, 2, 1), nn.Conv1d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.left(y[:, :4]) + self.right(y[:, 3:])

    graph = describe(capture(Parts(), torch.randn(2, 2, 3)))
    assert _summary(graph) == [("stem", 3, None), ("stem#2", 1, None), ("stem#3", 2, None), ("left", 2, OUTPUT)]
    assert _index(graph, "stem", "stem.weight", 0) == [[0], [1], [2]]
    assert _index(graph, "stem#2", "stem.weight", 0) == [[3]]
    assert _index(graph, "stem#2", "left.weight", 1) == [[3]]
    assert _index(graph, "stem#2", "right.weight", 1) == [[0]]
    assert _index(graph, "stem#3", "stem.bias", 0) == [[4], [5]]
    assert _index(graph, "stem#3", "right.weight", 1) == [[1], [2]]


def test_what_does_not_keep_zero_is_masked_where_it_must_be_zero() -> None:
    """Padding with one is, and the sum it is read by; zero padding is not."""
    graph = _graph("padded")
    assert _summary(graph) == [("conv1", 4, None), ("conv2", 5, None), ("conv2b", 4, None), ("conv3", 3, OUTPUT)]
    assert _group(graph, "conv1").masked == ("conv2d",)
    assert _group(graph, "conv2b").masked == ("conv2d_2", "pad_2")


def test_parameters_that_are_added_are_masked() -> None:
    """A class token in front and positions: what is added to a channel that is gone must go with it."""
    graph = _graph("class_token")
    (group,) = [g for g in graph.groups if g.name == "embed"]
    assert group.frozen is None
    assert {("token", 2), ("positions", 2)} <= set(_parameters(graph, "embed"))
    assert {"token", "positions"} <= set(group.masked)


def test_heads_go_as_a_whole() -> None:
    """Of queries, keys and values of one layer, [3, heads, 4] in each row; their channels are not cut."""
    graph = _graph("attention")
    index = np.arange(24).reshape(3, 2, 4).transpose(1, 0, 2).reshape(2, 12)
    assert _group(graph, "qkv").units == 2
    assert _group(graph, "qkv").frozen is None
    assert _index(graph, "qkv", "qkv.weight", 0) == index.tolist()
    assert _index(graph, "qkv", "out.weight", 1) == np.arange(8).reshape(2, 4).tolist()


def test_blocks_of_a_pixel_shuffle_go_as_a_whole() -> None:
    graph = _graph("pixel_shuffle")
    assert _index(graph, "conv", "conv.weight", 0) == np.arange(16).reshape(4, 4).tolist()
    assert _index(graph, "conv", "last.weight", 1) == [[0], [1], [2], [3]]


def test_channels_on_another_dimension_freeze_a_convolution() -> None:
    graph = _graph("rows")
    assert _group(graph, "rows").frozen == "not on the channel dimension of `conv1d_1`"
    assert _modules(graph, "conv1") == ["conv1", "rows"]
    assert _parameters(graph, "conv1") == _one_each(6, ("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1))


def test_channels_on_another_dimension_freeze_a_batch_norm() -> None:
    """Those it normalises are averaged over later, and count there when they are gone."""
    graph = _graph("rows_mean")
    assert _group(graph, "conv").frozen is None
    assert _group(graph, "rows").frozen == "not on the channel dimension of `batch_norm`"


def test_of_several_reasons_the_first_is_given() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            b = self.b(x)
            return b.sort().values, self.a(x) + b

    (group,) = describe(capture(Twice(), torch.randn(2, 3))).groups
    assert group.frozen == "read by `sort` (aten.sort.default): zerobit has no rule for this op"


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
        ((6, 4), (4, 6), "conv2", "elements are mixed in `view`"),
        ((6, 4), (2, 12), "conv2", None),
        ((6, 4), (3, 8), "fc", None),
        ((6, 4), (3, 2, 4), "fc", OUTPUT),
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


def test_the_factor_with_most_units_carries_them() -> None:
    """Twelve channels as 2 x 6 or 6 x 2: the six are the units, with two channels each."""
    for after, index in (
        ((2, 6, 3), [[i, i + 6] for i in range(6)]),
        ((6, 2, 3), [[2 * i, 2 * i + 1] for i in range(6)]),
    ):
        model = Forward(
            lambda m, x, after=after: m.fc(F.relu(m.conv(x)).reshape(-1, *after).flatten(1)),
            conv=nn.Conv1d(2, 12, 1),
            fc=nn.Linear(36, 2),
        )
        assert _index(describe(capture(model, torch.randn(2, 2, 3))), "conv", "conv.weight", 0) == index


def test_a_view_merges_channels_with_the_batch() -> None:
    """A mask can't lie along such a dimension, so they stay where one would have to."""

    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 1)
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).reshape(-1, 3)).reshape(x.shape[0], 8).sum(1, keepdim=True)

    graph = describe(capture(Merge(), torch.randn(2, 2, 3)))
    assert graph.groups[0].frozen == "merged with the batch in `linear`"
