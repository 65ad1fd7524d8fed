"""Every method on every network of the zoo under every cost: gradients, budgets, and files that compute the same."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from cases import randomised
from searches import METHODS, choice_parameters, scramble
from zerobit import export
from zerobit.bits import NetBits
from zerobit.cost.price import Budget
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.choices import smallest
from zerobit.cut.decide import decide, read_offer
from zerobit.deployment import runtimes
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.runtimes.c_library import EmulatedC
from zerobit.export.verify import verify_onnx
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower, settle
from zerobit.search.attach import attach
from zerobit.search.net import SearchNet
from zerobit.zoo.models import MODELS

COSTS = ("size", "macs", "bops", "ram", "mpic", "ne16", "gap8", "diana", "cortex_m", "cortex_m.flash")
#: A formula and tiles, on the networks of every run; `make test-all` has all costs on the smallest.
FEW_COSTS = ("bops", "ne16")
#: One row of each family.
FAMILIES = ("default", "djpq", "fracbits", "bsq", "fixed_4", "sequential")
#: Networks of every run; the others take minutes.
QUICK = ("digits", "dscnn", "resnet8")


def _tier(name: str, method: str, cost: str | None = None) -> str:
    """In every run, in that of the model matrix, or where every method is asked for."""
    is_family, few = method in FAMILIES, cost in (None, *FEW_COSTS)
    if (name == "digits" and cost in (None, "bops")) or (name in QUICK and is_family and few):
        return "quick"
    # bit planes are 14 numbers per weight: they take minutes on the larger networks
    is_matrix = is_family and (name == "digits" or (cost in (None, "bops") and method != "bsq"))
    return "matrix" if is_matrix else "every_method"


def _row(*values: str) -> object:
    tier = _tier(*values)
    marks = [pytest.mark.xdist_group(f"methods-{values[0]}-{values[1]}")]
    if tier != "quick":
        marks.append(getattr(pytest.mark, tier))
    return pytest.param(*values, id="-".join(values), marks=marks)


PAIRS = [_row(name, method) for name in MODELS for method in METHODS]
TRIPLES = [_row(name, method, cost) for name in MODELS for method in METHODS for cost in COSTS]


@lru_cache(maxsize=1)
def _searched(name: str, method: str) -> SearchNet:
    """Random choices; a network is captured once for its laws, which follow each other."""
    definition = MODELS[name]
    torch.manual_seed(0)
    model = randomised(definition.build(10)).eval()
    return scramble(attach(model, torch.randn(4, *definition.input_shape), METHODS[method]), 1)


@lru_cache(maxsize=1)
def _ends(name: str, method: str) -> tuple[NetBits, NetBits]:
    """The smallest that a network can become, and what it is without a budget."""
    net = _searched(name, method)
    return smallest(read_offer(net)[0]).net_bits(), decide(net).net_bits()


@pytest.mark.parametrize(("name", "method", "cost_name"), TRIPLES)
def test_every_cost_has_gradients_and_every_budget_is_kept(name: str, method: str, cost_name: str) -> None:
    net, cost = _searched(name, method), named_cost(cost_name)
    value = cost(usage(net.graph, net.bits()))
    if value.requires_grad:  # a network without choices has none
        gradients = torch.autograd.grad(value, choice_parameters(net), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    least, most = (float(cost(usage(net.graph, bits))) for bits in _ends(name, method))
    limit = max(least, 0.5 * (least + most)) if net.method.chooses else most
    plan = decide(net, Budget(cost, limit * (1 + 1e-9)))
    assert float(cost(usage(net.graph, plan.net_bits()))) <= limit * (1 + 1e-9)


def _lowered(name: str, method: str) -> tuple[QuantNet, IntegerGraph]:
    net = _searched(name, method)
    small = apply(net, decide(net)).eval()
    settle(small)
    return small, lower(small)


def _samples(graph: IntegerGraph, count: int) -> dict[str, np.ndarray]:
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(0).normal(0, 1, (count, *shape)).astype(np.float32)
    return dict.fromkeys(graph.inputs, x)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_method_ends_in_a_file_that_computes_the_same(name: str, method: str, tmp_path: Path) -> None:
    small, graph = _lowered(name, method)
    samples = _samples(graph, 2 if name == "mobilenet_v2" else 8)
    rows = verify_onnx(graph, export.onnx(small, tmp_path / "model.onnx"), samples)
    assert [row for row in rows if row.differences] == []
    assert sum(row.values for row in rows) > 0


@pytest.mark.parametrize("runtime", [r for r in runtimes() if not isinstance(r, EmulatedC)], ids=lambda r: r.title)
@pytest.mark.parametrize("method", ["djpq", "djpq_power_of_two", "fracbits_activations", "bsq_channel"])
def test_widths_of_any_kind_are_the_same_in_every_runtime(
    method: str, runtime: AbstractRuntime, tmp_path: Path
) -> None:
    """Activations of 2 to 8 bit, some of them signed."""
    _, graph = _lowered("digits", method)
    network = Exported(graph, tmp_path, _samples(graph, 4))
    if reason := runtime.missing(network):
        pytest.skip(reason)
    rows = runtime.rows(network)
    assert [row for row in rows if row.differences] == []
    assert sum(row.values for row in rows) > 10_000
