"""Where activations are quantised: on what integer ops read, signed where values can be negative."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import case
from searches import attached
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.ir import Graph, Kind
from zerobit.quant.placement import activation_sites, assign, float_reason, place
from zerobit.search.attach import SearchNet

#: network -> (module or kind of op whose result is quantised, signed), in order.
EXPECTED = {
    "resnet8": [
        ("input", True),
        ("conv+relu", False),
        ("block1.conv1+relu", False),
        ("block1.conv2", True),  # before a sum
        ("add+relu", False),
        ("block2.conv1+relu", False),
        ("block2.conv2", True),
        ("block2.shortcut_conv", True),
        ("add+relu", False),
        ("block3.conv1+relu", False),
        ("block3.conv2", True),
        ("block3.shortcut_conv", True),
        ("add+relu", False),
        ("adaptive_avg_pool2d", False),
    ],
    "dscnn": [
        ("input", True),
        ("conv+relu", False),
        *[(f"block{i}.{part}+relu", False) for i in (1, 2, 3, 4) for part in ("depthwise", "pointwise")],
        ("adaptive_avg_pool2d", False),
    ],
    "mlp": [("input", True), ("fc1+relu", False), ("fc2+relu", False)],
    "tcn": [
        ("input", True),
        ("conv1+relu", False),
        ("conv2+relu", False),
        ("add", False),  # of two that are not negative
        ("avg_pool1d", False),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_sites(name: str) -> None:
    net = attached(name)
    graph, found = net.graph, []
    for site in net.sites:
        op = graph.producer(site.name)
        title = "input" if op is None else op.target.split(".")[1]
        if op is not None and op.kind is Kind.RELU:
            source = graph.producer(op.inputs[0])
            assert source is not None
            title = f"{(source.weight or 'add').removesuffix('.weight')}+relu"
        elif op is not None and op.weight is not None:
            title = op.weight.removesuffix(".weight")
        found.append((title, site.signed))
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", ["resnet8", "dscnn", "digits", "mlp", "concat_identity", "dict_output"])
def test_results_of_the_network_are_not_quantised_for_the_caller(name: str) -> None:
    net = attached(name)
    quantised = {t for site in net.sites for t in site.tensors}
    read = {t for op in net.graph.ops for t in op.inputs}
    assert not quantised & (set(net.graph.outputs) - read)


@pytest.mark.parametrize("name", ["concat_branches", "concat_identity"])
def test_members_of_a_concatenation_share_one_quantizer(name: str) -> None:
    net = attached(name)
    shared = [site for site in net.sites if len(site.tensors) > 1]
    assert len(shared) == 1
    (concat,) = (op for op in net.graph.ops if op.kind is Kind.CONCAT)
    assert set(shared[0].tensors) == set(concat.inputs)
    assert shared[0].signed  # as one member can be negative


class _Parts(nn.Module):
    def __init__(self, tail: str) -> None:
        super().__init__()
        self.conv, self.last, self.tail = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), tail

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        moved = {
            "relu": lambda: F.relu(y),
            "relu6": lambda: F.relu6(y),
            "pool": lambda: F.max_pool2d(y, 2),
            "pool of relu": lambda: F.max_pool2d(F.relu(y), 2),
            "mean of relu": lambda: F.avg_pool2d(F.relu(y), 2),
            "both": lambda: F.relu(y) + y,
            "pad below": lambda: F.pad(F.relu(y), (1, 1), value=-1.0),
            "twice": lambda: F.relu(F.relu(y)),
        }
        return self.last(moved[self.tail]())


@pytest.mark.parametrize(
    ("tail", "signs"),
    [
        ("relu", [True, False]),
        ("relu6", [True, False]),
        ("pool", [True, True]),
        ("pool of relu", [True, False]),
        ("mean of relu", [True, False, False]),
        ("both", [True, True, False, True]),
        ("pad below", [True, False, True]),
        ("twice", [True, False, False]),
    ],
)
def test_signs(tail: str, signs: list[bool]) -> None:
    program = capture(_Parts(tail).eval(), torch.randn(1, 2, 4, 4))
    assert [site.signed for site in activation_sites(describe(program))] == signs


def test_quantised_ranges_cover_the_sign_of_what_flows() -> None:
    row = case("digits")
    net = attached("digits").eval()
    low: dict[str, float] = {}
    for site in net.sites:
        hook = lambda m, i, o, s=site.name: low.update({s: min(low.get(s, 0.0), float(o.detach().min()))})  # noqa: E731
        net.activation_slot(site.name).register_forward_hook(hook)
    net(*row.inputs(8, seed=3))
    assert all(value == 0.0 for site, value in low.items() if not _signed(net, site))
    assert all(value < 0.0 for site, value in low.items() if _signed(net, site))


def _signed(net: SearchNet, site: str) -> bool:
    return next(s.signed for s in net.sites if s.name == site)


class _Mixed(nn.Module):
    """A layer, something between, and a layer."""

    def __init__(self, between: Callable[["_Mixed", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm, self.gain, self.between = nn.LayerNorm(4), nn.Parameter(torch.randn(4)), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.one(x), self.two(x)))


def _mixed(between: Callable[[_Mixed, Tensor, Tensor], Tensor]) -> Graph:
    return describe(capture(_Mixed(between).eval(), torch.randn(2, 5, 4)))


@pytest.mark.parametrize(
    ("between", "floats"),
    [
        (lambda m, a, b: F.gelu(a) * m.gain + b, []),
        (lambda m, a, b: a * torch.sigmoid(b), []),
        # a norm that is written out: its factors span a wide range, and so the product stays in float
        (
            lambda m, a, b: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6),
            ["pow", "mean", "add", "rsqrt", "mul"],
        ),
        # what is in float stays so until a layer reads it
        (lambda m, a, b: F.gelu(m.norm(a)).reshape(-1, 5, 4), ["layer_norm", "gelu", "reshape"]),
        # a sum with one operand on integers is on integers
        (lambda m, a, b: m.norm(a) + b, ["layer_norm"]),
        (lambda m, a, b: m.norm(a + b), ["add", "layer_norm"]),
    ],
)
def test_what_is_computed_in_float(between: Callable[[_Mixed, Tensor, Tensor], Tensor], floats: list[str]) -> None:
    graph = _mixed(between)
    found = [op.target.split(".")[1] for op in graph.ops if float_reason(graph, op) is not None]
    assert found == floats


def test_a_float_result_is_quantised_right_where_a_layer_reads_it() -> None:
    graph = _mixed(lambda m, a, b: F.gelu(m.norm(a)).reshape(-1, 5, 4))
    sites = [site.name for site in activation_sites(graph)]
    reshape = next(op.name for op in graph.ops if op.kind is Kind.RESHAPE)
    assert sites == [graph.inputs[0], "linear", reshape]


@pytest.mark.parametrize("name", ["resnet8", "concat_branches", "pre_activation", "rows_mean", "gated", "recurrent"])
def test_quantizers_alone_tell_what_is_integer(name: str) -> None:
    """So that a plan can be lowered after a cut that changes ops."""
    graph = attached(name).graph
    sites = {tensor: site.name for site in activation_sites(graph) for tensor in site.tensors}
    again, once = assign(graph, sites, sites), place(graph)
    assert (dict(again.reasons), dict(again.governor)) == (dict(once.reasons), dict(once.governor))


def test_members_of_a_concatenation_with_quantizers_of_their_own_are_joined_in_float() -> None:
    graph = attached("concat_branches").graph
    sites = {tensor: tensor for site in activation_sites(graph) for tensor in site.tensors}
    (concat,) = (op for op in graph.ops if op.kind is Kind.CONCAT)
    assert "quantised apart" in assign(graph, sites, sites).reasons[concat.name]


def test_integers_and_other_orders_of_dimensions_stay_in_float() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(torch.relu(ids + 1))
            return self.fc(torch.relu(x.transpose(0, 1)).transpose(0, 1))

    graph = describe(capture(Net().eval(), torch.zeros(2, 5, dtype=torch.int64)))
    last = graph.ops[-2].name
    assert [site.name for site in activation_sites(graph)] == [last]
    assert list(place(graph).reasons) == [op.name for op in graph.ops[:-1]]
