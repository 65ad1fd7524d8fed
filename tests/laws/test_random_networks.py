"""The laws of capture, cut and search on random networks."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, event, example, given, settings
from torch import Tensor, nn

from cases import as_data, dyadic, randomised
from laws.test_cut_equals_masked import Keep, cut_copy, keep_one, keep_some, masked, removable, results, units
from searches import scramble
from strategies import Recipe, RecipeNet, Step, recipes
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import kept_positions
from zerobit.graph.folding import fold
from zerobit.graph.ir import Graph
from zerobit.graph.program import Program
from zerobit.plan import Plan
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

quick = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
long = settings(quick, max_examples=300)


def _between(form: str, *numbers: int) -> Recipe:
    """A form between two convolutions: what is drawn too seldom to rely on chance."""
    conv = (8, 1, 1, 1)
    return Recipe((3, 4, 4), (Step("conv", (0,), conv), Step(form, (1,), numbers), Step("conv", (2,), conv)), "flatten")


def _random_net(recipe: Recipe, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network of a recipe with no parameter left at zero or one, and an input of three samples."""
    torch.manual_seed(0)
    net = randomised(RecipeNet(recipe))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1 or name.endswith("value"):
                parameter.uniform_(0.4, 1.4).mul_(torch.where(torch.rand(parameter.shape) < 0.3, -1.0, 1.0))
    return net.to(dtype), torch.randn(3, *recipe.size, dtype=torch.float64).to(dtype)


@torch.no_grad()
def _eager(model: nn.Module, x: Tensor) -> Tensor:
    """What the model computes in evaluation; its attention as in training, since the fused form rounds otherwise."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return model.eval()(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _choices(graph: Graph) -> list[Keep]:
    """All groups at once, by chance and down to one unit; and every group alone."""
    groups = removable(graph)
    alone: list[Keep] = [{g: keep_some(g, seed)} for seed, g in enumerate(groups)]
    if not groups:
        return []
    return [{g: keep_some(g, seed) for seed, g in enumerate(groups)}, {g: keep_one(g, 1) for g in groups}, *alone]


def _check_sizes(small: Program, graph: Graph, keep: Keep) -> Graph:
    """What is left has the sizes that were kept, and is described anew; returns its graph."""
    after, kept = describe(small), kept_positions(graph, units(keep))
    sizes = {**after.shapes, **after.parameters}
    for name, shape in {**graph.shapes, **graph.parameters}.items():
        expected = tuple(len(kept[name, d]) if (name, d) in kept else size for d, size in enumerate(shape))
        assert sizes[name] == expected, name
    return after


def _assert_near(one: Tensor, other: Tensor) -> None:
    largest = float(other.abs().max()) if other.numel() else 0.0
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, largest))


def _captured(recipe: Recipe) -> tuple[FloatProgram, Tensor]:
    model, x = _random_net(recipe)
    expected = _eager(model, x)
    assume(bool(expected.isfinite().all()) and float(expected.abs().max()) < 1e6)
    program = capture(model, x)
    assert torch.equal(results(program, (x,))[0], expected)
    return program, x


def check_cuts(recipe: Recipe) -> None:
    """Capture is eager bit for bit; what is cut is what is masked, also of what has been cut already."""
    program, x = _captured(recipe)
    before = results(program, (x,))
    fold(program)
    _assert_near(results(program, (x,))[0], before[0])
    graph = describe(program)
    event(f"{len(removable(graph))} groups that can be cut")
    for number, keep in enumerate(_choices(graph)):
        small = cut_copy(program, graph, keep)
        left = _check_sizes(small, graph, keep)
        _assert_near(results(small, (x,))[0], masked(program, keep, (x,))[0])
        for again in _choices(left)[: 1 if number == 0 else 0]:
            smaller = cut_copy(small, left, again)
            _check_sizes(smaller, left, again)
            _assert_near(results(smaller, (x,))[0], masked(small, again, (x,))[0])


def check_exact_cuts(recipe: Recipe) -> None:
    """The same bit for bit, with values so short that every sum is exact."""
    torch.manual_seed(0)
    model = dyadic(RecipeNet(recipe), seed=1)
    x = torch.randint(-4, 5, (3, *recipe.size), generator=torch.Generator().manual_seed(2)).double()
    program = capture(model, x[:1])
    expected = _eager(model, x)
    assert torch.equal(results(program, (x,))[0], expected)
    fold(program)
    assert torch.equal(results(program, (x,))[0], expected)
    graph = describe(program)
    assert as_data(describe(copy.deepcopy(program))) == as_data(graph)
    for keep in _choices(graph):
        assert torch.equal(results(cut_copy(program, graph, keep), (x,))[0], masked(program, keep, (x,))[0])


def check_search(recipe: Recipe) -> None:
    """A search network evaluates as the network that is cut from it; its plan is JSON; all of it can be trained."""
    model, x = _random_net(recipe)
    assume(float(_eager(model, x).abs().max()) < 1e6)
    net = scramble(attach(model, x, ChannelSoftmax()), 3).eval()
    plan = Plan.from_json(decide(net).to_json())
    assert plan == decide(net)
    with torch.no_grad():
        expected = net(x)
        small = apply(net, plan)
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    net.train()(x).square().mean().backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@quick
@given(recipes())
@example(_between("pad_value"))
@example(_between("gated_halves", 1, 0))
@example(_between("narrow", 1, 1))
@example(_between("pixel_shuffle"))
def test_cut_equals_masked_on_random_networks(recipe: Recipe) -> None:
    check_cuts(recipe)


@quick
@given(recipes(exact=True))
def test_cut_equals_masked_bit_for_bit_on_random_networks(recipe: Recipe) -> None:
    check_exact_cuts(recipe)


@quick
@given(recipes(weighted=True))
def test_random_networks_compute_what_they_were_searched_as(recipe: Recipe) -> None:
    check_search(recipe)


@pytest.mark.matrix
@long
@given(recipes(max_steps=10))
def test_cut_equals_masked_on_many_random_networks(recipe: Recipe) -> None:
    check_cuts(recipe)


@pytest.mark.matrix
@long
@given(recipes(max_steps=10, weighted=True))
def test_many_random_networks_compute_what_they_were_searched_as(recipe: Recipe) -> None:
    check_search(recipe)
