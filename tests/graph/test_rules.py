"""Each aten call that a rule reads, and the forms of it that a rule must leave to be a barrier."""

import copy
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rule_rows import IMAGE, MADE_BY_CUTS, ROWS, Parts, RuleRow
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.ir import ChannelGroup, Graph, Kind, Op
from zerobit.graph.program import Program
from zerobit.graph.rules import RULES
from zerobit.graph.walks import masked_run

aten = torch.ops.aten
CONVOLUTIONS = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
COMPUTED = "its weight or bias is computed, not a parameter"
COMPUTED_SCALE = "its scale or shift is computed, not a parameter"

Call = Callable[[Any, Tensor], Tensor]


class Called(Parts):
    """The parameters and the call of a row."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class Between(nn.Module):
    """A convolution, the call under test, and a linear layer over all that it returns."""

    def __init__(self, call: Call, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[len(shape)](2, shape[0], 1)
        self.call = Called(call)
        self.double()
        with torch.no_grad():
            size = self.call(torch.zeros(2, *shape, dtype=torch.float64)).numel() // 2
        self.fc = nn.Linear(size, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.call(self.conv(x)).reshape(x.shape[0], -1))


@torch.no_grad()
def _captured(call: Call, shape: tuple[int, ...] = IMAGE) -> tuple[FloatProgram, Tensor]:
    torch.manual_seed(0)
    model = Between(call, shape).eval()
    x = torch.randn(2, 2, *shape[1:], dtype=torch.float64)
    program = capture(model, x)
    assert torch.equal(program(x), model(x))
    return program, x


def _op(graph: Graph, target: str) -> Op:
    """The call under test, not one of the surroundings."""
    return next(op for op in graph.ops if op.target == target and op.module not in ("conv", "fc"))


def _group(graph: Graph, name: str) -> ChannelGroup:
    return next(group for group in graph.groups if group.name == name)


@torch.no_grad()
def _assert_law(program: Program, x: Tensor, kept: list[int]) -> Program:
    """Cut equals masked, with these units left of every group that may go; returns what is left."""
    graph = describe(program)
    groups = [g for g in graph.groups if g.frozen is None and any(u < g.units for u in kept)]
    keep = {g: torch.tensor([int(u in kept) for u in range(g.units)]) for g in groups}
    small = copy.deepcopy(program)
    cut(small, graph, {g.name: [u for u in kept if u < g.units] for g in groups})
    expected = masked_run(program, keep, x)[0]
    assert (small(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    return small


@pytest.fixture
def _as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture that leaves each call as it is, so that rules see those that it spells in another way."""
    monkeypatch.setattr("zerobit.graph.capture.normalise", lambda code: None)


def test_every_target_of_every_rule_is_tested() -> None:
    assert sorted([*ROWS, *MADE_BY_CUTS]) == sorted(RULES)


@pytest.mark.usefixtures("_as_written")
@pytest.mark.parametrize("target", ROWS)
def test_channels_pass_and_can_be_cut_or_stay_for_a_reason(target: str) -> None:
    row = ROWS[target]
    program, x = _captured(row.call, row.shape)
    graph = describe(program)
    assert graph.barriers == ()
    assert _op(graph, target).reason is None
    assert (_group(graph, row.group).frozen or "") == row.reason
    for kept in ([1], [0, 2], [1, 2, 3]):
        _assert_law(program, x, kept)


@pytest.mark.parametrize("target", MADE_BY_CUTS)
def test_what_a_cut_makes_of_a_call_can_be_cut_again(target: str) -> None:
    row = MADE_BY_CUTS[target]
    program, x = _captured(row.call, row.shape)
    assert target not in {op.target for op in describe(program).ops}
    once = _assert_law(program, x, [0, 1, 2])
    graph = describe(once)
    assert _op(graph, target).kind is Kind.FLOAT
    assert _group(graph, "conv").frozen is None
    _assert_law(once, x, [1])


# More forms of calls that have a row: what passes through them is found by the law as well.
FORMS: dict[str, RuleRow] = {
    "clamp from below zero": RuleRow(lambda m, x: F.hardtanh(x)),
    "clamp from above only": RuleRow(lambda m, x: x.clamp(max=1)),
    "clamp to nothing": RuleRow(lambda m, x: x.clamp(0, 0) + x),
    "scaled sum": RuleRow(lambda m, x: torch.add(x, x.relu(), alpha=2)),
    "sum with itself": RuleRow(lambda m, x: x + x),
    "sum with a number": RuleRow(lambda m, x: (x + 1).tanh()),
    "difference with a parameter": RuleRow(lambda m, x: m.plane - x),
    "product with a spoiled parameter": RuleRow(lambda m, x: m.plane.exp() * x.exp()),
    "divided by a parameter": RuleRow(lambda m, x: x / m.plane, reason="divides in `div`"),
    "a parameter times a number": RuleRow(lambda m, x: (m.plane * 2 + 1) * x),
    "excited": RuleRow(lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "sum that broadcasts": RuleRow(lambda m, x: x + x.mean((2, 3), keepdim=True)),
    "sum that broadcasts over channels": RuleRow(lambda m, x: x + x[:, :1], reason="broadcast in `add`"),
    "a channel picked out": RuleRow(lambda m, x: x[:, 3], group="conv#2", reason="picked out in `select`"),
    "every second channel": RuleRow(lambda m, x: x[:, ::2], reason="taken apart in `slice_2`"),
    "overlapping ranges": RuleRow(lambda m, x: torch.cat([x[:, :3].relu(), x[:, 2:].sigmoid()], 1)),
    "gated halves": RuleRow(lambda m, x: (lambda a, b: a * b.sigmoid())(*x.chunk(2, 1))),
    "reflected padding": RuleRow(lambda m, x: F.pad(x, (1, 1, 1, 0), mode="reflect")),
    "padded along channels": RuleRow(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)),
    "padded with one": RuleRow(lambda m, x: F.pad(x, (1, 0), value=1.0)),
    "shifted along channels": RuleRow(
        lambda m, x: F.pad(x, (0, 0, 0, 0, 1, -1)), reason="padded along channels in `pad`"
    ),
    "averaged over channels": RuleRow(lambda m, x: x.exp().mean((1, 3))),
    "averaged over channels in another type": RuleRow(
        lambda m, x: x.mean(1, dtype=torch.float32).double(), reason="reduced over in `mean`"
    ),
    "averaged in another type": RuleRow(lambda m, x: x.cos().mean((2, 3), dtype=torch.float32).double()),
    "largest of the channels": RuleRow(lambda m, x: torch.linalg.vector_norm(x.exp(), float("inf"), 1)),
    "number that is not zero": RuleRow(lambda m, x: torch.linalg.vector_norm(x, 0, 1)),
    "smallest of the channels": RuleRow(
        lambda m, x: torch.linalg.vector_norm(x, -1, 1), reason="reduced over in `linalg_vector_norm`"
    ),
    "positions of maxima": RuleRow(lambda m, x: torch.add(*x.max(3))),
    "positions of pooled maxima": RuleRow(
        lambda m, x: torch.add(*F.adaptive_max_pool2d(x, 2, return_indices=True)),
        reason="its positions are read in `getitem_1`",
    ),
    "softmax over channels": RuleRow(lambda m, x: x.softmax(1), reason="not treated alike in `softmax`"),
    "summed up over channels": RuleRow(lambda m, x: x.cumsum(1), reason="not treated alike in `cumsum`"),
    "chosen by a condition": RuleRow(lambda m, x: torch.where(x > 0, x, 0.1 * x)),
    "pooled over channels": RuleRow(
        lambda m, x: F.max_pool2d(x.reshape(x.shape[0], 1, 4, 16), 2), reason="pooled over in `max_pool2d`"
    ),
    "no number at zero": RuleRow(lambda m, x: x.reciprocal(), reason="has no value at zero in `reciprocal`"),
    "a rest that is no number": RuleRow(lambda m, x: torch.remainder(1 + x.cos(), x), reason="divides in `remainder`"),
    "squeezed where it is more than one": RuleRow(lambda m, x: x.movedim(1, -1).squeeze(-1) @ m.square),
    "RMSNorm beside spoiled channels": RuleRow(lambda m, x: torch.einsum(
        "bcij,dc->bdij", F.rms_norm(x.sigmoid(), (4,)), m.square)),
    "GroupNorm of one group": RuleRow(lambda m, x: F.group_norm(x, 1, m.scale, m.shift)),
    "GroupNorm of single channels": RuleRow(lambda m, x: F.group_norm(x, 4)),
    "LayerNorm over all": RuleRow(lambda m, x: F.layer_norm(x, (4, 4, 4), m.plane)),
    "BatchNorm without scale": RuleRow(lambda m, x: F.batch_norm(x.relu(), m.average, m.variance)),
    "depthwise with two filters": RuleRow(lambda m, x: F.conv2d(x, m.twofold, groups=4, stride=2)),
    "transposed, two filters": RuleRow(
        lambda m, x: F.conv_transpose2d(x, m.pairs, groups=4, stride=2, output_padding=1)
    ),
    "heads": RuleRow(lambda m, x: F.scaled_dot_product_attention(*(m.qkv(x.flatten(2).transpose(1, 2))
                     .reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0))), group="call.qkv"),
    "queries that share heads": RuleRow(lambda m, x: F.scaled_dot_product_attention(
        torch.cat([x, x.cos()], 1), x, x.exp(), enable_gqa=True)),
    "attention with a mask": RuleRow(lambda m, x: F.scaled_dot_product_attention(x, x, x, m.square)),
    "channels shuffled": RuleRow(lambda m, x: x.reshape(-1, 2, 2, 4, 4).transpose(1, 2).reshape(-1, 4, 4, 4)),
    "stacked": RuleRow(lambda m, x: torch.stack([x, x.exp()], 2)),
    "joined to a parameter": RuleRow(lambda m, x: torch.cat([x, m.plane.expand(x.shape[0], 4, 4, 4)], 2)),
    "a parameter as wide as an image": RuleRow(lambda m, x: m.scale[:, None, None].expand_as(x) * x),
    "as wide as another image": RuleRow(
        lambda m, x: m.plane.expand_as(F.linear(x.movedim(1, 3), m.square)) + x[..., :1].movedim(1, 3)),
    "a parameter of an image's type": RuleRow(lambda m, x: m.plane.type_as(x) * x),
    "a parameter in an image's shape": RuleRow(lambda m, x: m.plane[None].view_as(x[:1]) * x),
    "in another shape than a layer makes": RuleRow(
        lambda m, x: x.reshape_as(F.linear(x.movedim(1, 3), m.square)),
        reason="meets channels that stay in `reshape_as`"),
    "a weight that is read before its layer": RuleRow(
        lambda m, x: F.linear(x.movedim(1, 3) + m.square.mean(0), m.square), group="call.square"),
    "a token in front": RuleRow(lambda m, x: torch.cat(
        [m.plane[:1, :1].expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1) + m.plane[0, 0]),
    "merged with the batch": RuleRow(
        lambda m, x: F.linear(x.reshape(-1, 4), m.square, m.shift).reshape(x.shape[0], 16, 4),
        reason="merged with the batch in `linear`",
    ),
    "heads merged with the batch": RuleRow(lambda m, x: torch.bmm(
        x.reshape(-1, 4, 4).softmax(-1), x.reshape(-1, 4, 4)).reshape(-1, 4, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_other_forms(name: str) -> None:
    row = FORMS[name]
    program, x = _captured(row.call, row.shape)
    graph = describe(program)
    assert graph.barriers == ()
    assert (_group(graph, row.group).frozen or "") == row.reason
    for kept in ([1], [0, 2], [1, 2, 3]):
        _assert_law(program, x, kept)


@pytest.mark.parametrize("name", ["view_as", "reshape_as", "expand_as"])
def test_channels_go_with_those_of_the_tensor_that_gives_the_shape(name: str) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        other = F.linear(x.movedim(1, 3), m.square).movedim(3, 1)
        return getattr(x.exp(), name)(other)

    program, x = _captured(call)
    (group, _) = describe(program).groups
    assert {"conv.weight", "call.square"} <= {member.tensor for member in group.members}
    _assert_law(program, x, [0, 2])


# What a rule's call can also be told to do, which the rule does not treat: the op stays a barrier, and says why.
REFUSED: dict[str, tuple[Call, str]] = {
    "conv": (lambda m, x: F.conv2d(x, m.square.relu()[:, :, None, None]), COMPUTED),
    "conv with a computed bias": (lambda m, x: F.conv2d(x, m.depthwise, m.shift.relu(), groups=4), COMPUTED),
    "conv_transpose": (lambda m, x: F.conv_transpose2d(x, m.grouped_back.relu(), groups=2), COMPUTED),
    "linear": (lambda m, x: F.linear(x, m.square.clone()), COMPUTED),
    "linear of a parameter": (lambda m, x: x + F.linear(m.plane, m.square), "it reads parameters only"),
    "linear with a vector": (
        lambda m, x: F.linear(x, m.shift),
        "its weight is no matrix, or its bias no vector of its outputs",
    ),
    "addmm": (lambda m, x: torch.addmm(m.six, x.flatten(1), m.wide, beta=2), COMPUTED),
    "addmm, computed": (lambda m, x: torch.addmm(m.six, x.flatten(1), m.wide.relu()), COMPUTED),
    "addmm of a row each": (lambda m, x: torch.addmm(m.six[None] + x[:, 0, 0, :1], x.flatten(1), m.wide), COMPUTED),
    "addmm of a plane": (lambda m, x: torch.addmm(m.row, x.flatten(1), m.wide), "its bias is no vector of its outputs"),
    "embedding": (lambda m, x: F.embedding((x > 0).long(), m.table.relu()), COMPUTED),
    "no batch": (lambda m, x: x + F.linear(x.sum((0, 1, 2)), m.square), "its input has no batch dimension"),
    "vector": (lambda m, x: torch.matmul(x, m.shift), "a product with a vector"),
    "einsum, a diagonal": (lambda m, x: torch.einsum("bcii->bci", x),
                           "einsum 'bcii->bci': only plain letters, none twice in a term, with '->'"),
    "einsum, dots": (lambda m, x: torch.einsum("...ij->...ji", x),
                     "einsum '...ij->...ji': only plain letters, none twice in a term, with '->'"),
    "attention, ranks": (lambda m, x: F.scaled_dot_product_attention(x, m.plane, x),
                         "attention on tensors of different rank"),
    "dropout": (lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=1.0 - 1e-16),
                "attention with dropout in evaluation"),
    "BatchNorm of the batch": (lambda m, x: F.batch_norm(x, None, None, training=True),
                               "a BatchNorm over the statistics of its batch"),
    "BatchNorm, statistics": (lambda m, x: F.batch_norm(x, m.average * 2, m.variance),
                              "a BatchNorm whose statistics are computed"),
    "BatchNorm, scale": (lambda m, x: F.batch_norm(x, m.average, m.variance, m.scale.exp()), COMPUTED_SCALE),
    "InstanceNorm, stored": (lambda m, x: F.instance_norm(x, m.average, m.variance, use_input_stats=False),
                             "an InstanceNorm over stored statistics"),
    "InstanceNorm, scale": (lambda m, x: F.instance_norm(x, weight=m.scale.exp()), COMPUTED_SCALE),
    "GroupNorm, shift": (lambda m, x: F.group_norm(x, 2, m.scale, m.shift.exp()), COMPUTED_SCALE),
    "LayerNorm, scale": (lambda m, x: F.layer_norm(x, (4,), m.scale.exp()), COMPUTED_SCALE),
    "times a size": (lambda m, x: x * x.shape[0], "one of its constants is a size that is computed"),
    "prelu": (lambda m, x: F.prelu(x, m.slope.exp()), "its slope is computed, not a parameter"),
    "select": (lambda m, x: torch.cat([x, x], 0)[x.shape[0]][None] + x, "its position is computed"),
    "slice": (lambda m, x: torch.cat([x, x], 0)[x.shape[0]:], "its range is computed"),
    "repeat": (lambda m, x: x.repeat_interleave(2).reshape(x.shape[0], -1), "it flattens, or its count is computed"),
    "roll": (lambda m, x: x.roll(1), "it runs over the flattened tensor"),
    "index": (lambda m, x: x[:, torch.tensor([0, 1]), torch.tensor([1, 3])], "several dimensions are indexed at once"),
    "mask": (lambda m, x: x * x[x > 0].sum(0), "a mask over several dimensions picks positions"),
    "pad": (lambda m, x: F.pad(x, (0, x.shape[0]))[..., :4], "its extent is computed"),
    "mean of all": (lambda m, x: x * x.mean(dim=()), "it runs over all dimensions, the batch included"),
    "sum of all": (lambda m, x: x * x.sum(dim=None, keepdim=True), "it runs over all dimensions, the batch included"),
    "mean over the batch": (lambda m, x: x * x.mean(0, keepdim=True), "it runs over the batch"),
    "projection": (lambda m, x: m.projecting(x.flatten(2).transpose(1, 2))[0], "it projects its hidden state"),
    "no rule": (lambda m, x: torch.fft.fft(x).real, "zerobit has no rule for this op"),
    "parameters only": (lambda m, x: F.pixel_shuffle(m.plane, 2).sum() * x, "it reads parameters only"),
    "computed weights": (lambda m, x: torch.rnn_tanh(
        x.flatten(2).transpose(1, 2), x.new_zeros(1, x.shape[0], 3), [m.tanh.weight_ih_l0 * 2, m.tanh.weight_hh_l0],
        False, 1, 0.0, False, False, True)[0], "its weights are computed, not parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_a_rule_can_not_treat_is_a_barrier_and_says_why(name: str) -> None:
    call, reason = REFUSED[name]
    graph = describe(_captured(call)[0])
    (op, *_) = (op for op in graph.barriers if op.reason == reason)
    assert (op.target in RULES) is (name != "no rule")
    for tensor in op.inputs:
        assert all(g.frozen for g in graph.groups if tensor in {member.tensor for member in g.members})


def test_every_reason_is_reached() -> None:
    """No text of a refusal in the rules is without a form that meets it."""
    texts = {reason for _, reason in REFUSED.values()} | {"it normalises over sizes that are free"}
    for module in {type(rule).__module__ for rule in RULES.values()}:
        source = inspect.getsource(sys.modules[module])
        for text in re.findall(r'refuse\(op, f?"([^"{]*)', source):
            assert any(known.startswith(text) for known in texts), text


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.linear(x, m.square.clone()),
        lambda m, x: F.conv2d(x, m.square.reshape(4, 4, 1, 1)),
        lambda m, x: F.conv2d(x, m.square.reshape(4, 4, 1, 1), m.square.mean(1)),
        lambda m, x: F.conv2d(x, m.square[:, :, None, None].contiguous()),
        lambda m, x: F.linear(m.square, x.mean((0, 1)))[None, None].expand(x.shape[0], 4, 4, 4),
    ],
)
def test_a_weight_that_is_computed_is_not_searched(call: Call) -> None:
    graph = describe(_captured(call)[0])
    assert _group(graph, "conv").frozen is not None
    assert [op.weight for op in graph.weighted] == ["conv.weight", "fc.weight"]


def test_a_convolution_without_a_batch_is_a_barrier() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 1))
    with pytest.warns(UserWarning, match="fixes its batch size"):
        program = capture(model, torch.randn(2, 4, 4))
    graph = describe(program)
    assert [op.kind for op in graph.ops] == [Kind.BARRIER, Kind.RELU, Kind.BARRIER]
    assert {op.reason for op in graph.barriers} == {"its input has no batch dimension"}
    assert graph.groups == ()


def test_attributes_are_normalised() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        x = F.pad(F.avg_pool2d(F.max_pool2d(x, 2, 1), (3, 1), padding=(1, 0)), (1, 0, 0, 2), value=0)
        return torch.cat([x, x], -1).mean((-1, 2), keepdim=True)

    graph = describe(_captured(call)[0])
    attrs = {op.kind: dict(op.attrs) for op in graph.ops}
    assert attrs[Kind.MAX_POOL] == {
        "rank": 2,
        "kernel": (2, 2),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "ceil_mode": False,
    }
    assert attrs[Kind.AVG_POOL] == {
        "rank": 2,
        "kernel": (3, 1),
        "stride": (3, 1),
        "padding": (1, 0),
        "count_include_pad": True,
        "ceil_mode": False,
        "divisor_override": None,
    }
    assert attrs[Kind.PAD] == {"pad": ((1, 0), (0, 2)), "value": 0.0}
    assert attrs[Kind.CONCAT]["dim"] == 3
    mean = attrs[Kind.MEAN]
    assert (mean["dims"], mean["keepdim"]) == ((2, 3), True)


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
