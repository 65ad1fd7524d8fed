"""Each aten call that a rule reads, and the forms of it that a rule must leave to be a barrier."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import dyadic
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.ir import Graph, Kind, Op
from zerobit.graph.program import masked_run
from zerobit.graph.rules import RULES

aten = torch.ops.aten

# Calls on a [B, 4, 4, 4] result of a convolution; what they return is contracted by a last layer.
PLANE: dict[str, Callable[[Tensor], Tensor]] = {
    "aten.relu.default": torch.relu,
    "aten.relu6.default": aten.relu6.default,
    "aten.hardtanh.default": lambda x: F.hardtanh(x, 0.0, 3.0),
    "aten.clamp.default": lambda x: x.clamp(min=0),
    "aten.clone.default": torch.clone,
    "aten.contiguous.default": lambda x: aten.contiguous.default(x),
    "aten.alias.default": aten.alias.default,
    "aten.detach.default": lambda x: x.detach(),
    "aten.add.Tensor": lambda x: x + torch.relu(x),
    "aten.pad.default": lambda x: F.pad(x, (1, 0, 0, 2)),
    "aten.constant_pad_nd.default": lambda x: aten.constant_pad_nd.default(x, [0, 1]),
    "aten.cat.default": lambda x: torch.cat([x, x.relu()], 1),
    "aten.concat.default": lambda x: torch.concat([x, x.relu()], -3),
    "aten.concatenate.default": lambda x: torch.concatenate([x, x], 2),
    "aten.max_pool2d.default": lambda x: F.max_pool2d(x, 2),
    "aten.avg_pool2d.default": lambda x: F.avg_pool2d(x, 2),
    "aten.adaptive_avg_pool2d.default": lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
    "aten.mean.dim": lambda x: x.mean(-1),
    "aten.flatten.using_ints": lambda x: x.flatten(1, 2),
    "aten.view.default": lambda x: x.view(-1, 4, 16),
    "aten.reshape.default": lambda x: x.reshape(x.shape[0], 64),
    "aten._unsafe_view.default": lambda x: aten._unsafe_view.default(x, [x.shape[0], -1, 4]),
    "aten.squeeze.dim": lambda x: x.mean((2, 3), keepdim=True).squeeze(3),
    "aten.squeeze.dims": lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3)),
    "aten.unsqueeze.default": lambda x: x.unsqueeze(1),
}
# The same on a [B, 4, 8] result.
LINE: dict[str, Callable[[Tensor], Tensor]] = {
    "aten.max_pool1d.default": lambda x: F.max_pool1d(x, 2),
    "aten.avg_pool1d.default": lambda x: F.avg_pool1d(x, 2),
    "aten.adaptive_avg_pool1d.default": lambda x: F.adaptive_avg_pool1d(x, 2),
}
# Layers between two convolutions, and the shape of what they read without batch.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "aten.conv1d.default": (lambda: nn.Conv1d(4, 6, 3), (4, 8)),
    "aten.conv2d.default": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "aten.conv3d.default": (lambda: nn.Conv3d(4, 6, 2, stride=2), (4, 2, 4, 2)),
    "aten.conv1d.padding": (lambda: nn.Conv1d(4, 6, 2, padding="same", dilation=2), (4, 8)),
    "aten.conv2d.padding": (lambda: nn.Conv2d(4, 4, (3, 1), padding="same", groups=4), (4, 4, 4)),
    "aten.conv3d.padding": (lambda: nn.Conv3d(4, 6, 2, padding="valid"), (4, 2, 2, 2)),
    "aten.linear.default": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 6)), (4, 8)),
    "aten.batch_norm.default": (lambda: nn.BatchNorm2d(4), (4, 4, 4)),
}
CONVOLUTIONS = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}


class Between(nn.Module):
    """A convolution, the call under test, and a linear layer over all that it returns."""

    def __init__(self, call: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[len(shape)](2, shape[0], 1)
        self.call = call
        with torch.no_grad():
            size = call(torch.zeros(1, *shape)).numel()
        self.fc = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.conv(x))
        return self.fc(y.reshape(x.shape[0], -1))


def _captured(call: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[FloatProgram, Tensor]:
    torch.manual_seed(0)
    model = dyadic(Between(call, shape))
    random = torch.Generator().manual_seed(1)
    x = torch.randint(-8, 9, (2, 2, *shape[1:]), generator=random).double() / 8
    program = capture(model, x)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
    return program, x


def _op(graph: Graph, target: str) -> Op:
    """The call under test, not one of the surroundings."""
    return next(op for op in graph.ops if op.target == target and op.module not in ("conv", "fc"))


def _assert_law(program: FloatProgram, x: Tensor) -> None:
    graph = describe(program)
    groups = [g for g in graph.groups if g.frozen is None]
    assert groups[0].name == "conv"
    for kept in ([0], [1], [1, 3], [0, 1, 2]):
        keep = {g: torch.tensor([int(u in kept) for u in range(g.units)]) for g in groups if g.units > max(kept)}
        small = copy.deepcopy(program)
        cut(small, graph, {g.name: [u for u in kept if u < g.units] for g in keep})
        with torch.no_grad():
            assert torch.equal(small(x), masked_run(program, keep, x)[0])


def test_every_target_of_every_rule_is_tested() -> None:
    assert sorted({**PLANE, **LINE, **LAYERS}) == sorted(RULES)


@pytest.mark.parametrize("target", [*PLANE, *LINE])
def test_channels_pass_and_can_be_cut(target: str) -> None:
    call, shape = (PLANE[target], (4, 4, 4)) if target in PLANE else (LINE[target], (4, 8))
    program, x = _captured(call, shape)
    assert _op(describe(program), target).kind is not Kind.BARRIER
    _assert_law(program, x)


@pytest.mark.parametrize("target", LAYERS)
def test_layers_can_be_cut(target: str) -> None:
    build, shape = LAYERS[target]
    program, x = _captured(build(), shape)
    op = _op(describe(program), target)
    assert op.kind is (Kind.CONV if "conv" in target else Kind.LINEAR if "linear" in target else Kind.NORM)
    assert op.module.split(".")[0] == "call"
    _assert_law(program, x)


# What a rule's call can also be told to do, which the rule does not treat: the op stays a barrier.
REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh from -1": F.hardtanh,
    "clamp from 1": lambda x: x.clamp(min=1),
    "clamp from above only": lambda x: x.clamp(max=1),
    "clamp to nothing": lambda x: x.clamp(0, 0),
    "scaled sum": lambda x: torch.add(x, x.relu(), alpha=2),
    "sum with itself": lambda x: x + x,
    "sum with a number": lambda x: x + 1,
    "reflected padding": lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"),
    "max pool, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, dilation=2),
    "average pool, ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average pool, other divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "mean over the batch": lambda x: x.mean(0, keepdim=True).expand(x.shape[0], -1, -1, -1),
    "mean in another type": lambda x: x.mean((2, 3), dtype=torch.float32).double(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_without_a_rule_is_a_barrier(name: str) -> None:
    program, _ = _captured(REFUSED[name], (4, 4, 4))
    graph = describe(program)
    assert any(op.target in RULES for op in graph.barriers)
    assert graph.groups[0].frozen is not None
    assert "an op without a rule" in graph.groups[0].frozen


# What a rule treats, but through which nothing can be cut.
FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "padded along channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), "padded along channels in `pad`"),
    "shifted along channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), "padded along channels in `pad`"),
    "padded with one": (lambda x: F.pad(x, (1, 0), value=1.0), "an absent channel would not read as zero in `linear`"),
    "averaged over channels": (lambda x: x.mean(1), "averaged over in `mean`"),
    "broadcast": (lambda x: x + x.mean((2, 3), keepdim=True), "broadcast in `add`"),
    "added to what stays": (lambda x: x + x.neg(), "read by `neg` (aten.neg.default), an op without a rule"),
    "pooled over channels": (
        lambda x: F.max_pool2d(x.reshape(x.shape[0], 1, 4, 16), 2),
        "pooled over in `max_pool2d`",
    ),
    "split": (lambda x: x.reshape(x.shape[0], 2, 2, 16), "channels are split or mixed in `reshape`"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_nothing_is_cut_where_that_would_not_be_exact(name: str) -> None:
    call, reason = FROZEN[name]
    program, _ = _captured(call, (4, 4, 4))
    frozen = describe(program).groups[0].frozen
    assert frozen is not None
    assert reason in frozen


class ReadsParameter(nn.Module):
    """Calls that have a rule for data, but read a parameter here."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.plane = nn.Parameter(torch.randn(1, 4, 4, 4))
        self.row = nn.Parameter(torch.randn(4, 4))
        self.call = call
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.call(self, self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: x + m.plane,
        lambda m, x: x + m.plane.relu(),
        lambda m, x: torch.cat([x, m.plane.expand(x.shape[0], 4, 4, 4)], 2),
        lambda m, x: x + F.linear(m.plane, m.row),
        lambda m, x: F.linear(x, m.row.clone()),
        lambda m, x: F.conv2d(x, m.row.reshape(4, 4, 1, 1)),
        lambda m, x: F.conv2d(x, m.row.reshape(4, 4, 1, 1), m.row.mean(1)),
        lambda m, x: F.conv2d(x, m.row[:, :, None, None].contiguous()),
        lambda m, x: F.linear(m.row, x.mean((0, 1)))[None, None].expand(x.shape[0], 4, 4, 4),
        lambda m, x: F.batch_norm(x, m.row[0].detach(), m.row[1].detach().abs()),
        lambda m, x: F.max_pool2d(m.plane, 1) + F.avg_pool2d(m.plane, 1) + F.pad(m.plane, (0, 0)) + x,
    ],
)
def test_rules_are_for_data_only(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = ReadsParameter(call).eval()
    program = capture(model, torch.randn(3, 2, 4, 4))
    x = torch.randn(5, 2, 4, 4)
    assert torch.equal(program(x), model(x))
    graph = describe(program)
    assert graph.groups[0].frozen is not None
    assert [op.weight for op in graph.weighted] == ["conv.weight", "fc.weight"]


def test_a_convolution_without_a_batch_is_a_barrier() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.warns(UserWarning, match="fixes its batch size"):
        program = capture(model, torch.randn(2, 4, 4))
    graph = describe(program)
    assert [op.kind for op in graph.ops] == [Kind.BARRIER, Kind.RELU, Kind.BARRIER]
    assert graph.groups == ()


def test_attributes_are_normalised() -> None:
    def call(x: Tensor) -> Tensor:
        x = F.pad(F.avg_pool2d(F.max_pool2d(x, 2, 1), (3, 1), padding=(1, 0)), (1, 0, 0, 2), value=0)
        return torch.cat([x, x], -1).mean((-1, 2), keepdim=True)

    graph = describe(_captured(call, (4, 4, 4))[0])
    attrs = {op.kind: dict(op.attrs) for op in graph.ops}
    assert attrs[Kind.MAX_POOL] == {"rank": 2, "kernel": (2, 2), "stride": (1, 1), "padding": (0, 0)}
    assert attrs[Kind.AVG_POOL] == {
        "rank": 2,
        "kernel": (3, 1),
        "stride": (3, 1),
        "padding": (1, 0),
        "count_include_pad": True,
    }
    assert attrs[Kind.PAD] == {"pad": ((1, 0), (0, 2)), "value": 0.0}
    assert attrs[Kind.CONCAT] == {"dim": 3}
    assert attrs[Kind.MEAN] == {"dims": (2, 3), "keepdim": True}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("kernel", "dilation", "expected"), [(3, 1, (1, 1)), (2, 1, (0, 1)), (4, 2, (3, 3)), (2, 3, (1, 2))]
)
def test_same_padding_is_counted_as_torch_does(kernel: int, dilation: int, expected: tuple[int, int]) -> None:
    conv = nn.Conv1d(2, 3, kernel, padding="same", dilation=dilation)
    (op,) = describe(capture(conv, torch.randn(2, 2, 9))).ops
    assert op.attrs["padding"] == (expected,)
    x = torch.randn(1, 2, 9)
    explicit = F.conv1d(F.pad(x, expected), conv.weight, conv.bias, dilation=dilation)
    torch.testing.assert_close(conv(x), explicit)
