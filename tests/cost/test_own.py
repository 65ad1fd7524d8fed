"""Costs that users bring along: functions, and sums over measured layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import CASES, ModelCase
from offers import with_unit
from own_costs import EVERY, TERMS, WIDTHS, layer_rows, synthetic
from searches import attached, scramble
from zerobit.bits import BitDist, NetBits
from zerobit.cost import AbstractCost, Bops, Macs
from zerobit.cost.base import LayerUse, Usage, WeightUse
from zerobit.cost.measured import MeasuredCost, read_toml
from zerobit.cost.measurements import OPS, Measurement, Table
from zerobit.cost.own import FunctionCost, load_cost
from zerobit.cost.terms import Widths, amounts_of_rows, term
from zerobit.cost.usage import uniform, usage
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.ir import Kind

SMOOTH = MeasuredCost("smooth", "us", {op: dict.fromkeys(TERMS[:-2], 1.0) for op in OPS}, WIDTHS)


def operations(layer: LayerUse) -> Tensor:
    """Bit operations, written as a user would."""
    bits = torch.tensor(GRID, dtype=torch.float64, device=layer.weight.counts.device)
    return layer.macs_by_width @ bits * layer.activation_bits


OWN = FunctionCost("operations", "BOP", operations, per_channel=True)
COSTS: dict[str, AbstractCost] = {"every": EVERY, "smooth": SMOOTH, "function": OWN}


def _layer(counts: Tensor, inputs: Tensor, kernel: tuple[int, ...] = (3, 3)) -> LayerUse:
    """16 x 16 results, stride 2."""
    weight = WeightUse("w", counts, inputs * 9)
    shape, activation = (1, 32, 16, 16), BitDist.one_hot([8])
    positions = torch.tensor(256.0, dtype=torch.float64)
    return LayerUse("conv", Kind.CONV, weight, inputs, positions, shape, kernel, False, 1, activation, (2, 2))


def _counts(**by_width: int) -> Tensor:
    return torch.tensor([float(by_width.get(f"w{b}", 0)) for b in GRID], dtype=torch.float64)


def _use(*layers: LayerUse) -> Usage:
    return Usage(tuple(layer.weight for layer in layers), layers, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("call", 1),
        ("windows", 256 * 9),
        ("reads", 256 * 144),
        ("macs", 256 * 144 * 20),
        ("macs_w>2", 256 * 144 * 18),
        ("macs_w>4", 256 * 144 * 5),  # of 5 and 8 bits
        ("macs_a>4", 256 * 144 * 20),
        ("inputs", 16 * 256 * 4),
        ("outputs", 256 * 20),
        ("weights", 144 * 20),
        ("weight_bytes", 144 * (2 * 2 + 13 * 4 + 5 * 8) / 8),
        ("tiles/16", 256 * 9 * 2),
        ("tiled/16", 256 * 144 * 32),
    ],
)
def test_terms_are_what_they_say(name: str, value: float) -> None:
    """16 inputs, 3 x 3, stride 2, 16 x 16 results; 2 channels of 2 bits, 13 of 3 and 4, 5 of 5 and 8; 9 removed."""
    layer = _layer(_counts(w0=9, w2=2, w3=3, w4=10, w5=1, w8=4), torch.tensor(16.0, dtype=torch.float64))
    cost = MeasuredCost("one", "us", {"conv": {name: 0.5}}, WIDTHS)
    assert cost(_use(layer)).item() == 0.5 * value


@pytest.mark.parametrize("name", TERMS)
def test_a_measured_layer_costs_what_a_layer_in_use_does(name: str) -> None:
    row = Measurement("conv", 16, 20, (3, 3), (2, 2), 16, 16, 4, 8, 1.0)
    layer = _layer(_counts(w4=20), torch.tensor(16.0, dtype=torch.float64))
    cost = MeasuredCost("one", "us", {"conv": {name: 1.0}}, WIDTHS)
    assert term(name, amounts_of_rows([row], WIDTHS), WIDTHS).tolist() == [cost(_use(layer)).item()]


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_channel_more_and_a_bit_more_never_cost_less(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=True)
    for cost in COSTS.values():
        for i, group in enumerate(net.graph.groups):
            if group.frozen is None:
                few, many = (cost(usage(net.graph, with_unit(net.graph, bits, i, 0, keep=k))) for k in (False, True))
                assert few <= many
        now = cost(usage(net.graph, bits))
        for weight, dist in bits.weights.items():
            wider = [GRID[min(GRID.index(b) + 1, len(GRID) - 1)] if b else 0 for b in dist.bits.int().tolist()]
            more = NetBits(bits.keep, {**bits.weights, weight: BitDist.one_hot(wider)}, bits.activations)
            assert now <= cost(usage(net.graph, more))
        narrow = {t: BitDist.one_hot([4]) for t in bits.activations}
        assert cost(usage(net.graph, NetBits(bits.keep, bits.weights, narrow))) <= now


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_many_choices_at_once_cost_what_each_does(row: ModelCase) -> None:
    net = scramble(attached(row.name), 2)
    use = usage(net.graph, net.bits(hard=True))
    scales = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    for cost in COSTS.values():
        for i, layer in enumerate(use.layers):

            def changed(s: Tensor, i: int = i, layer: LayerUse = layer) -> Usage:
                weight = WeightUse(layer.weight.name, layer.weight.counts * s[..., None], layer.weight.fan_in * s)
                layers = list(use.layers)
                layers[i] = replace(layer, weight=weight, inputs=layer.inputs * s)
                return replace(use, layers=tuple(layers))

            together = cost(changed(scales))
            assert together.dtype == torch.float64
            assert together.expand(3).tolist() == [cost(changed(s)).item() for s in scales]


@pytest.mark.parametrize("cost", ["smooth", "function"])
@pytest.mark.parametrize("name", ["digits", "inverted_residual", "concat_branches", "grouped", "mlp"])
def test_gradients_are_those_of_finite_differences(name: str, cost: str) -> None:
    """Without tiles a cost is linear in each width and at most quadratic in keeps: central differences are exact."""
    net = attached(name, "activations")
    soft = scramble(net, 3).bits()
    parts = [soft.keep, *({k: d.p for k, d in ds.items()} for ds in (soft.weights, soft.activations))]
    leaves = [{k: torch.full_like(v, 0.5).requires_grad_() for k, v in part.items()} for part in parts]
    bits = NetBits(leaves[0], *({k: BitDist(p) for k, p in part.items()} for part in leaves[1:]))
    value = COSTS[cost](usage(net.graph, bits))
    flat = [leaf for part in leaves for leaf in part.values()]
    grads = torch.autograd.grad(value, flat, allow_unused=True)
    random = torch.Generator().manual_seed(0)
    for leaf, grad in zip(flat, grads, strict=True):
        direction = torch.rand(leaf.shape, generator=random, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 0.125 * direction)
                ends.append(float(COSTS[cost](usage(net.graph, bits))))
                leaf.sub_(sign * 0.125 * direction)
        found = 0.0 if grad is None else float((grad * direction).sum())
        assert found == pytest.approx((ends[0] - ends[1]) / 0.25, rel=1e-9, abs=1e-9 * float(value.detach()))


@pytest.mark.parametrize("name", ["tiles/16", "tiled/16"])
def test_the_gradient_of_tiles_is_what_the_next_tile_costs(name: str) -> None:
    cost = MeasuredCost("tiles", "us", {"conv": {name: 1.0}}, WIDTHS)
    inputs = torch.tensor(16.0, dtype=torch.float64)
    counts = _counts(w8=32).requires_grad_()
    now = cost(_use(_layer(counts, inputs)))
    now.backward()
    assert counts.grad is not None
    assert counts.grad[-1].item() * 16 == (cost(_use(_layer(_counts(w8=48), inputs))) - now).item() > 0


def test_what_a_cost_says_of_itself() -> None:
    assert SMOOTH.per_channel
    assert not EVERY.per_channel
    assert EVERY.storage == (2, 4, 8)
    assert EVERY.by_weight


def test_widths_that_are_not_stored_come_to_a_function_at_the_next_one() -> None:
    counts = _counts(w2=1, w3=2, w5=4, w8=8).requires_grad_()
    use = _use(_layer(counts, torch.tensor(16.0, dtype=torch.float64)))
    seen: list[Tensor] = []

    def weights(layer: LayerUse) -> Tensor:
        seen.append(layer.weight.counts)
        return operations(layer)

    value = FunctionCost("mine", "", weights, storage=(4, 8))(use)
    assert torch.equal(seen[0], _counts(w4=3, w8=12))
    assert value.item() == 144 * 256 * 8 * (3 * 4 + 12 * 8)
    (grad,) = torch.autograd.grad(value, counts)
    assert (grad / grad[1]).tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    FunctionCost("mine", "", weights)(use)
    assert any(one is counts for one in seen)
    with pytest.raises(BudgetError, match=r"`storage` of the cost mine is \(8, 16\); allowed are widths"):
        FunctionCost("mine", "", weights, storage=(8, 16))


def test_a_kind_of_layer_that_was_not_measured_is_named() -> None:
    net = attached("inverted_residual")
    cost = MeasuredCost("narrow", "us", {"conv": {"macs": 1.0}}, WIDTHS)
    with pytest.raises(BudgetError, match=r"narrow has measurements of \['conv'\], but '\w+' is of the kind"):
        cost(usage(net.graph, uniform(net.graph, 8)))


# A user's function.


def _price(function: Callable[[LayerUse], object], grad: bool = False) -> Tensor:
    counts = _counts(w8=8).requires_grad_(grad)
    cost = FunctionCost("mine", "J", function)  # type: ignore[arg-type]
    return cost(_use(_layer(counts, torch.tensor(16.0, dtype=torch.float64))))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda layer: 3.0, "returned a float at layer 'conv'; allowed is a tensor"),
        (lambda layer: layer.inputs.float(), "returned torch.float32 at layer 'conv'"),
        (lambda layer: layer.weight.counts, r"returned the shape \(8,\) at layer 'conv'"),
        (lambda layer: layer.inputs / 0, r"returned inf at layer 'conv'; allowed is finite numbers"),
        (lambda layer: layer.nothing, "failed at layer 'conv' .*AttributeError"),
        (lambda layer: layer.weight.counts[7] * layer.inputs, "several choices at once"),
        (lambda layer: {8.0: layer.inputs}[float(layer.weight.counts[..., 7])], "several choices at once"),
        (lambda layer: layer.weight.counts.sum() * layer.inputs, "another value for several choices at once"),
        (
            lambda layer: layer.inputs if layer.weight.counts[..., 7] > 3 else 2 * layer.inputs,
            "several choices at once",
        ),
    ],
)
def test_a_function_that_returns_something_else_is_refused(
    function: Callable[[LayerUse], object], message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        _price(function)


def test_a_function_without_a_gradient_is_refused_where_one_is_asked_for() -> None:
    detached = lambda layer: operations(layer).detach()  # noqa: E731
    with pytest.raises(BudgetError, match="returned a value without gradient"):
        _price(detached, grad=True)
    assert _price(detached).item() == 16 * 9 * 256 * 8 * 64


def test_a_function_is_checked_once_and_counts_as_the_cost_that_it_says() -> None:
    calls: list[str] = []
    cost = FunctionCost("mine", "MAC", lambda layer: calls.append(layer.name) or layer.macs_by_width[..., 1:].sum(-1))
    net = scramble(attached("digits"), 1)
    use = usage(net.graph, net.bits(hard=True))
    assert cost(use) == cost(use) == Macs()(use)
    names = [layer.name for layer in use.layers]
    assert calls == [name for name in names for _ in range(3)] + names, (
        "alone, another choice, both at once; then as it is"
    )
    assert OWN(use) == Bops()(use)
    assert not cost.per_channel
    assert OWN.per_channel


# Loading.


def test_costs_are_loaded_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = layer_rows(synthetic({"call": 1.0, "macs": 1e-3}, Widths((2, 4, 8), (8,))))
    Table(rows, "us", "made up", "none", 4).write(tmp_path / "table.csv")
    fitted = load_cost(str(tmp_path / "table.csv"))
    assert isinstance(fitted, MeasuredCost)
    assert (fitted.name, fitted.unit, fitted.channel_multiple) == ("table", "us", 4)
    assert "rank correlation 1.000" in fitted.describe()
    fitted.save(tmp_path / "fit.toml")
    assert load_cost(str(tmp_path / "fit.toml")) == fitted
    device = 'source = "s"\nweight_bits = [8]\nclock_hz = 1e6\n[macs_per_cycle]\n8 = [2.0]\n'
    (tmp_path / "mine.toml").write_text(device)
    assert load_cost(str(tmp_path / "mine.toml")).name == "mine"
    ready, priced = "ready = Macs()", "def priced(layer):\n    return layer.inputs\n\npriced.unit = 'J'"
    lines = ("from zerobit.cost import Macs", ready, "number = 3", priced, "")
    (tmp_path / "brought_along.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert load_cost("brought_along:ready") == Macs()
    own = load_cost("brought_along:priced")
    assert isinstance(own, FunctionCost)
    assert (own.name, own.unit, own.per_channel) == ("priced", "J", False)
    for wrong in ("brought_along:number", "brought_along:nothing", "nowhere:cost", "neither", ":", "a:"):
        with pytest.raises(BudgetError, match=f"`target` (is )?'{wrong}'"):
            load_cost(wrong)


@pytest.mark.parametrize("name", ["gone.toml", "gone.csv"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BudgetError, match=rf"`path` .*{name}.* can't be read"):
        load_cost(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"kind = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(BudgetError, match=r"`path` .*bad\.toml.* can't be read"):
        read_toml(path)
