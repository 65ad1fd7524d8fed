"""Networks whose weights, biases and gates lie otherwise than in a convolution: searched, cut, stored, counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Forward, randomised
from searches import METHODS, scramble
from zerobit.cost import Bops, Macs, Size, TableLatency
from zerobit.cost.base import FLOAT_BITS
from zerobit.cost.price import Budget
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.cut.store import load, save
from zerobit.errors import CaptureError
from zerobit.graph.rows import to_rows
from zerobit.plan import Plan
from zerobit.search.attach import attach
from zerobit.search.net import SearchNet


def _image(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 2, 4, 4),)


def _tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (batch, 5)),)


def transposed() -> nn.Module:
    """Dense, grouped and depthwise transposed convolutions."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.up(F.relu(m.stem(x))))
        x = F.relu(m.depthwise(F.relu(m.grouped(x))))
        return m.last(x).mean((2, 3))

    return Forward(
        forward,
        stem=nn.Conv2d(2, 6, 1),
        up=nn.ConvTranspose2d(6, 8, 2, stride=2),
        grouped=nn.ConvTranspose2d(8, 12, 3, padding=1, groups=2),
        depthwise=nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12, bias=False),
        last=nn.Conv2d(12, 3, 1),
    )


class Stored(nn.Module):
    """Linear layers whose weights are stored as [I, O]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(32, 9)), nn.Parameter(torch.randn(9, 3))
        self.bias = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.addmm(self.bias, x.flatten(1), self.first))
        return x @ self.second


class Embedded(nn.Module):
    """Tokens with a position, then a layer on every one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.place
        return self.last(F.relu(self.first(x)).mean(1))


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(4, 8), nn.Linear(8, 3 * 12)
        self.out, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1, 2))
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 12)
        return self.last((x + self.out(y)).mean(1))


def recurrent() -> nn.Module:
    """Recurrent layers, which have no rule, between layers that have."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, _ = m.lstm(F.relu(m.conv(x.flatten(2))).transpose(1, 2))
        y, _ = m.gru(y)
        return m.last(F.relu(m.fc(y[:, -1])))

    return Forward(
        forward,
        conv=nn.Conv1d(2, 6, 1),
        lstm=nn.LSTM(6, 5, batch_first=True),
        gru=nn.GRU(5, 4, batch_first=True),
        fc=nn.Linear(4, 7),
        last=nn.Linear(7, 3),
    )


def normalised() -> nn.Module:
    """GroupNorm and a sigmoid, behind which absent channels would not be zero unless gated."""
    return Forward(
        lambda m, x: m.last(torch.sigmoid(m.conv(F.relu(m.norm(m.stem(x)))))).mean((2, 3)),
        stem=nn.Conv2d(2, 8, 1),
        norm=nn.GroupNorm(4, 8),
        conv=nn.Conv2d(8, 6, 1),
        last=nn.Conv2d(6, 3, 1),
    )


def all_barrier() -> nn.Module:
    """Nothing but what has no rule."""
    return Forward(lambda m, x: m.gru(x.flatten(2).transpose(1, 2))[0][:, -1].sin(), gru=nn.GRU(2, 5, batch_first=True))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "transposed": (transposed, _image),
    "stored": (Stored, _image),
    "embedded": (Embedded, _tokens),
    "attention": (Attention, lambda batch: (torch.randn(batch, 2, 3, 4),)),
    "recurrent": (recurrent, _image),
    "normalised": (normalised, _image),
    "all_barrier": (all_barrier, _image),
}
#: Networks that have channels to cut.
CUT = [name for name in NETWORKS if name != "all_barrier"]


def _attached(name: str, method: str = "default") -> SearchNet:
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    return attach(randomised(build()), inputs(4), METHODS[method])


def _run(net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return net(*inputs)


@pytest.mark.parametrize("method", ["default", "shared", "layer", "minmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cut_network_computes_what_the_search_evaluates(name: str, method: str) -> None:
    net = scramble(_attached(name, method), seed=3, spread=5.0).eval()
    plan = decide(net)
    small = apply(net, plan)
    if name in CUT and method == "default":
        assert any(len(plan.kept[g.name]) < g.units for g in net.graph.groups), "nothing is cut"
    inputs = NETWORKS[name][1](3)
    expected = _run(net, inputs)
    torch.testing.assert_close(_run(small, inputs), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    again = apply(small, Plan.from_json(plan.to_json()))
    assert torch.equal(_run(again, inputs), _run(small, inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    net = _attached(name).train()
    use = usage(net.graph, net.bits())
    cost = sum(c(use) / c(use).detach().clamp_min(1) for c in (Size(), Bops()))
    (net(*NETWORKS[name][1](4)).sum() + cost).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_of_a_weight_are_those_of_its_rows(name: str) -> None:
    """Each output channel lies on the grid of its own width, in whatever layout."""
    small = apply(net := scramble(_attached(name), seed=4), decide(net))
    for weight in small.plan.weights:
        slot, value = small.weight_slot(weight), small.tensors()[weight].detach()
        levels = to_rows(slot.integers(value), small.graph.rows[weight])
        assert len(levels) == len(slot.bits)
        for row, bits in zip(levels, slot.bits, strict=True):
            assert int(row.abs().max()) <= 2 ** (bits - 1) - 1
        steps = slot.log_step.detach().exp()
        quantised = to_rows(slot(value), small.graph.rows[weight])
        torch.testing.assert_close(quantised, steps * levels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_s_size_is_that_of_the_cut_tensors(name: str) -> None:
    net = scramble(_attached(name), seed=5)
    plan = decide(net)
    small = apply(net, plan)
    stored = {b: 2 if b == 2 else 4 if b <= 4 else 8 for b in range(2, 9)}
    bits = 0
    for weight in plan.weights:
        per_row = small.tensors()[weight].numel() // len(small.weight_slot(weight).bits)
        bits += sum(stored[b] for b in small.weight_slot(weight).bits) * per_row
    bits += sum(FLOAT_BITS * small.tensors()[w].numel() for w in small.graph.float_weights)
    assert Size()(usage(net.graph, plan.net_bits())).item() == bits / 8
    assert Size()(usage(net.graph, net.bits(hard=True))).item() == bits / 8


@pytest.mark.parametrize("name", CUT)
def test_budgets_are_kept(name: str) -> None:
    net = scramble(_attached(name), seed=6)
    for cost, share in ((Size(), "40%"), (Macs(), "90%")):
        budget = Budget(cost, share)
        plan = decide(net, budget)
        assert float(cost(usage(net.graph, plan.net_bits()))) <= budget.limit(net.graph)


def test_multiplications_of_a_transposed_convolution() -> None:
    """Each weight meets each input position: 6 x 8 x 4 of the first at 16 positions, at 64 those of the others."""
    net = _attached("transposed")
    use = usage(net.graph, uniform(net.graph, 8))
    macs = {layer.name: float(layer.macs_by_width.sum()) for layer in use.layers}
    expected = [2 * 6 * 16, 6 * 8 * 4 * 16, 8 * 6 * 9 * 64, 12 * 9 * 64, 12 * 3 * 64]
    assert list(macs.values()) == expected


def test_an_embedding_multiplies_nothing() -> None:
    net = _attached("embedded")
    use = usage(net.graph, uniform(net.graph, 8))
    macs = {layer.weight.name: float(layer.macs_by_width.sum()) for layer in use.layers}
    assert macs["table.weight"] == 0
    assert macs["first.weight"] == 5 * 8 * 6
    sizes = {w.name: float(w.fan_in * w.counts.sum()) for w in use.weights}
    assert sizes["table.weight"] == 11 * 8


def test_weights_of_ops_without_a_rule_are_quantised_where_they_are_stored() -> None:
    net = _attached("all_barrier")
    assert set(net.graph.searched_weights) == {"gru.weight_ih_l0", "gru.weight_hh_l0"}
    budget = Budget(Size(), "50%")
    plan = decide(scramble(net, 1), budget)
    assert {b for w in plan.weights.values() for b in w.bits} <= {2, 4, 8}
    assert float(Macs()(usage(net.graph, plan.net_bits()))) == 0
    assert float(Size()(usage(net.graph, plan.net_bits()))) <= budget.limit(net.graph)


def test_an_input_without_a_quantizer_counts_in_float() -> None:
    net = _attached("embedded")
    use = usage(net.graph, net.bits(hard=True))
    bits = {layer.weight.name: float(layer.activation_bits) for layer in use.layers}
    assert bits == {"table.weight": FLOAT_BITS, "first.weight": 8, "last.weight": 8}
    in_float = replace(use, layers=tuple(replace(layer, activation=None) for layer in use.layers))
    assert float(Bops()(in_float)) == FLOAT_BITS / 8 * float(Bops()(use))
    mpic = TableLatency.load("mpic")
    assert float(mpic(in_float)) == float(mpic(use)), "the widest row of the table"


def test_rows_of_a_weight_are_gated_once() -> None:
    """By its own slot: a soft gate in a second place would be squared."""
    net = _attached("recurrent", "softmax")
    gates = [str(node.target) for node in net.code.nodes if node.op == "call_module" and "gates:" in str(node.target)]
    dims = {(parts[1].replace("/", "."), int(parts[2])) for parts in (name.split(":") for name in gates)}
    assert ("lstm.bias_hh_l0", 0) in dims
    assert not {(name, rows.dim) for name, rows in net.graph.rows.items()} & dims


def test_images_of_any_size_where_the_network_allows_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = attach(randomised(transposed()), _image(4), METHODS["default"], free_size=True)
    small = apply(scramble(net, 1).eval(), decide(net)).eval()
    wide = (torch.randn(2, 2, 6, 5),)
    expected = _run(net, wide)
    torch.testing.assert_close(_run(small, wide), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    again = load(save(small, tmp_path / "small.safetensors"), transposed().eval())
    assert torch.equal(_run(again, wide), _run(small, wide))
    with pytest.raises(CaptureError, match=r"captured for"):
        _attached("transposed")(*wide)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_rebuilt_from_its_file(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    net = scramble(_attached(name), seed=7)
    small = apply(net, decide(net)).eval()
    path = save(small, tmp_path / "small.safetensors")
    example = inputs(2)
    assert torch.equal(_run(load(path, build().eval()), example), _run(small, example))
