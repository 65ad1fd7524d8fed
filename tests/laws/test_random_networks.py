"""The laws of capture and cut on random networks."""

import copy

import torch
from hypothesis import HealthCheck, event, given, settings

from cases import as_data, dyadic
from strategies import Recipe, RecipeNet, recipes
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import ChannelGroup
from zerobit.graph.program import masked_run

slow_is_fine = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def _keep(group: ChannelGroup, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    keep = (torch.rand(group.units, generator=random) < 0.5).int()
    keep[torch.randint(group.units, (), generator=random)] = 1
    return keep


@slow_is_fine
@given(recipes())
@torch.no_grad()
def test_laws_hold_on_random_networks(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = dyadic(RecipeNet(recipe), seed=1)
    random = torch.Generator().manual_seed(2)
    x = torch.randint(-4, 5, (3, *recipe.size), generator=random).double()
    program = capture(model, x[:1])
    assert torch.equal(program(x), model(x))
    fold_batch_norm(program)
    assert torch.equal(program(x), model(x))  # values are so short that folding is exact, too
    graph = describe(program)
    assert as_data(describe(program)) == as_data(graph)
    groups = [g for g in graph.groups if g.frozen is None]
    event(f"{len(groups)} groups that can be cut")
    for chosen in (*([g] for g in groups), groups):
        keep = {group: _keep(group, seed) for seed, group in enumerate(chosen)}
        small = copy.deepcopy(program)
        cut(small, graph, {g.name: torch.nonzero(k).ravel().tolist() for g, k in keep.items()})
        (expected,) = masked_run(program, keep, x)
        assert torch.equal(small(x), expected)
        sizes = {**describe(small).shapes, **describe(small).parameters}
        for group, kept in keep.items():
            for member in group.members:
                assert sizes[member.tensor][member.dim] >= int(kept.sum()) * member.index.shape[1]
