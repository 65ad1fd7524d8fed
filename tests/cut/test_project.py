"""The discrete projection: next to the best of all selections, within every limit, with nothing left that is free."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offers import ALL, SMALL, largest, limits_at, random_offer
from searches import scramble
from usages import Words
from zerobit.bits import BitDist, NetBits
from zerobit.cost.price import Limit
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.choices import Offer, Selection, smallest
from zerobit.cut.decide import read_offer
from zerobit.cut.permute import permute
from zerobit.cut.pricing import Pricing, WidthPricing
from zerobit.cut.project import project
from zerobit.cut.widths import promote
from zerobit.formats import GRID
from zerobit.graph.ir import Graph
from zerobit.search.attach import attach
from zerobit.search.choice import UnitRule
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import MODELS

#: What is limited together.
COSTS = (("size",), ("bops",), ("mpic",), ("ne16",), ("ram",), ("size", "ne16"), ("size", "bops"))


def _best_value(graph: Graph, limits: Sequence[Limit], offer: Offer) -> float:
    """The most value of all selections within the limits, counted on each."""
    offered = [np.flatnonzero(np.isfinite(row)) for row in offer.width_score]
    free = np.flatnonzero(np.isfinite(offer.keep_score))
    best = -np.inf
    for kept in itertools.product((False, True), repeat=len(free)):
        keep = np.ones(len(offer.keep_score), dtype=bool)
        keep[free] = kept
        if not all(keep[place].any() for place in offer.units.values()):
            continue
        one = Selection(offer, keep, np.array([c[0] for c in offered]))
        stays = one.owned() > 0
        choices = [c if s else c[:1] for c, s in zip(offered, stays, strict=True)]
        columns = np.array(list(itertools.product(*choices)))
        value = (
            offer.width_value[np.arange(len(offered)), columns][:, stays].sum(1)
            + offer.keep_value[free][keep[free]].sum()
        )
        rows = {
            name: torch.from_numpy(np.where(one.kept_channels(name), columns[:, owner], 0))
            for name, owner in offer.owner.items()
        }
        weights = {n: BitDist(torch.nn.functional.one_hot(r, len(GRID)).double()) for n, r in rows.items()}
        units = {name: torch.from_numpy(keep[place]).double() for name, place in offer.units.items()}
        use = usage(graph, NetBits(units, weights, offer.activations))
        within = np.all([x.cost(use).expand(len(columns)).numpy() <= x.amount for x in limits], axis=0)
        best = max(best, value[within].max(initial=-np.inf))
    return best


@settings(max_examples=12)
@given(
    name=st.sampled_from(sorted(SMALL)),
    names=st.sampled_from(COSTS),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.0, 1.0),
)
@example("chain", ("ne16",), 10, 0.06)
@example("residual", ("size", "ne16"), 5, 0.2)
def test_small_networks_come_within_a_percent_of_the_best(
    name: str, names: tuple[str, ...], seed: int, share: float
) -> None:
    graph, offer, keep = random_offer(name, seed)
    limits = limits_at(graph, offer, names, share)
    found = project(graph, limits, offer, keep)
    assert Pricing(graph, limits).fits(found)
    base = min(smallest(offer).value(), found.value())
    best = _best_value(graph, limits, offer)
    assert found.value() <= best + 1e-9
    assert found.value() - base >= 0.99 * (best - base)


_FEW = (("ne16",), ("cortex_m.flash",), ("bops", "ram"))
QUICK = [*(("digits", names) for names in ALL), *(("dscnn", names) for names in _FEW), ("resnet8", ("ne16",))]
ZOO = [
    pytest.param(
        name, names, marks=() if (name, names) in QUICK else pytest.mark.matrix, id=f"{name}-{'+'.join(names)}"
    )
    for name in MODELS
    for names in ALL
]


@pytest.mark.parametrize(("name", "names"), ZOO)
def test_limits_of_the_zoo_are_kept_and_spent(name: str, names: tuple[str, ...]) -> None:
    seed = 1 + sum(map(ord, name + "".join(names)))
    share = np.random.default_rng(seed).uniform(0.1, 0.7)
    graph, offer, keep = random_offer(name, seed)
    limits = limits_at(graph, offer, names, share)
    pricing = Pricing(graph, limits)
    found = project(graph, limits, offer, keep)
    use = usage(graph, found.net_bits())
    assert all(float(limit.cost(use)) <= limit.amount for limit in limits)
    most = largest(offer)
    is_largest = (found.keep == most.keep).all() and (found.column == most.column).all()
    assert is_largest or pricing.totals(found).max() >= 0.95
    _assert_legal(found)
    if all(limit.cost.per_channel for limit in limits):
        _assert_nothing_more_fits(pricing, found)


def _assert_legal(found: Selection) -> None:
    offer = found.offer
    for group, place in offer.units.items():
        units, kept = place.stop - place.start, len(found.kept(group))
        assert offer.rules[group].nearest(kept, units) == kept
        assert found.keep[place][np.isinf(offer.keep_score[place])].all()
    assert np.isfinite(offer.width_score[np.arange(len(found.column)), found.column]).all()


def _steps(found: Selection, *, wider: bool = True, units: bool = True) -> Iterator[Selection]:
    """Selections with one channel wider, or one unit more; one for all that cost alike."""
    offer = found.offer
    for weight, owner in offer.owner.items() if wider else ():
        stays = found.kept_channels(weight)
        for low in np.unique(found.column[owner[stays]]):
            first = owner[stays & (found.column[owner] == low)][0]
            for high in np.flatnonzero(np.isfinite(offer.width_score[first])):
                if high > low:
                    step = found.copy()
                    step.column[first] = high
                    yield step
    for place in offer.units.values() if units else ():
        out = place.start + np.flatnonzero(~found.keep[place])
        for unit in out[:1]:
            step = found.copy()
            step.keep[unit] = True
            yield step


def _assert_nothing_more_fits(pricing: Pricing, found: Selection) -> None:
    for step in _steps(found, units=all(rule.multiple_of == 1 for rule in found.offer.rules.values())):
        then = pricing.totals(step)
        assert (then > 1).any()


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("name", ["digits", "dscnn"])
def test_nothing_that_is_free_is_left(name: str, granularity: str) -> None:
    graph, offer, keep = random_offer(name, 3, ChannelSoftmax(granularity=granularity))
    limits = limits_at(graph, offer, ("ne16",), 0.4)
    pricing, found = Pricing(graph, limits), project(graph, limits, offer, keep)
    now = pricing.totals(found)
    steps = list(_steps(found, units=False))
    assert steps
    assert all((pricing.totals(step) > now).any() for step in steps)


@pytest.mark.parametrize("names", [("ne16",), ("size", "ne16")])
def test_channels_are_widened_in_whole_tiles(names: tuple[str, ...]) -> None:
    """One channel alone would open a tile of its own width; many together don't."""
    graph, offer, _ = random_offer("resnet8", 3)
    pricing, found = Pricing(graph, limits_at(graph, offer, names, 0.5)), smallest(offer)
    before = found.value()
    promote(pricing, found)
    assert pricing.fits(found)
    assert found.value() > before
    steps = list(_steps(found, units=False))
    assert not any(pricing.fits(step) for step in steps)


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(SMALL)), seed=st.integers(0, 2**32 - 1))
def test_units_are_assigned_to_the_places_of_their_group(name: str, seed: int) -> None:
    """The best of all permutations of the units of each group, with the widths of all their channels; at equal cost."""
    graph, offer, keep = random_offer(name, seed)
    rng = np.random.default_rng(seed)
    column = np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in offer.width_score])
    found = Selection(offer, keep.copy(), column)
    start = found.copy()
    permute(found)
    best = -np.inf
    owners = {u: offer.owners_of_unit[u].indices for u in range(len(keep))}
    places = [range(p.start, p.stop) for p in offer.units.values() if np.isfinite(offer.keep_score[p]).all()]
    for orders in itertools.product(*(itertools.permutations(place) for place in places)):
        other = start.copy()
        moved = zip(itertools.chain(*places), itertools.chain(*orders), strict=True)
        for old, new in moved:
            other.keep[new] = start.keep[old]
            other.column[owners[new]] = start.column[owners[old]]
        best = max(best, other.value())
    assert found.value() == pytest.approx(best, rel=1e-12)
    pricing = Pricing(graph, [Limit(named_cost(cost), 1.0) for cost in ("size", "bops", "ne16", "ram")])
    assert (pricing.totals(found) == pricing.totals(start)).all()


@pytest.mark.parametrize("cost", ["size", "bops", "gap8", "diana", "cortex_m"])
def test_widths_of_a_weight_that_is_read_along_both_dimensions_cost_what_the_network_does(cost: str) -> None:
    net = scramble(attach(Words(is_tied=True), torch.randint(0, 40, (2, 5)), ChannelSoftmax()), 1)
    offer = read_offer(net)[0]
    pricing = Pricing(net.graph, [Limit(named_cost(cost), 1.0)])
    wide = largest(offer)
    for weight, owner in offer.owner.items():
        mixed = wide.copy()
        mixed.column[owner[: len(owner) // 3]] = GRID.index(2)
        counts = np.stack([np.bincount(s.columns(weight), minlength=len(GRID)) for s in (wide, mixed)])
        before, after = WidthPricing(pricing, wide)(weight, counts)[0]
        assert after - before == pytest.approx((pricing.totals(mixed) - pricing.totals(wide))[0], rel=1e-9)


def test_prices_that_are_remembered_are_those_of_the_selection_as_it_is_now() -> None:
    graph, offer, keep = random_offer("digits", 5)
    limits = limits_at(graph, offer, ("size", "bops"), 0.5)
    pricing, selection = Pricing(graph, limits), Selection(offer, keep.copy(), largest(offer).column.copy())
    for unit in [*range(len(keep)), *reversed(range(len(keep)))]:  # more selections than are remembered, each twice
        selection.keep[unit] ^= True
        anew = Pricing(graph, limits)
        assert (pricing.totals(selection) == anew.totals(selection)).all()
        assert (pricing.prices(selection).unit == anew.prices(selection).unit).all()


@pytest.mark.parametrize("names", [("size",), ("ne16",), ("bops", "ram")])
def test_units_stay_in_multiples_and_as_many_as_must(names: tuple[str, ...]) -> None:
    graph, offer, _ = random_offer("digits", 4)
    rules = {group: UnitRule(at_least=3, multiple_of=4) for group in offer.rules}
    offer = dataclasses.replace(offer, rules=rules)
    limits = limits_at(graph, offer, names, 0.3)
    found = project(graph, limits, offer, np.ones(len(offer.keep_score), dtype=bool))
    assert Pricing(graph, limits).fits(found)
    assert Pricing(graph, limits).totals(found).max() >= 0.9
    _assert_legal(found)
    kept = {len(found.kept(group)) for group in offer.units}
    assert min(kept) >= 4
    assert any(4 <= len(found.kept(g)) < place.stop - place.start for g, place in offer.units.items())


@pytest.mark.parametrize("names", [("size",), ("ne16", "size")])
def test_it_is_silent_and_gives_the_same_selection_twice(
    names: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    graph, offer, keep = random_offer("dscnn", 5)
    limits = limits_at(graph, offer, names, 0.2)
    first, second = (project(graph, limits, offer, keep) for _ in range(2))
    assert (first.keep == second.keep).all()
    assert (first.column == second.column).all()
    assert capfd.readouterr() == ("", "")


def test_the_arguments_are_left_alone() -> None:
    graph, offer, keep = random_offer("digits", 6)
    before = keep.copy(), offer.keep_score.copy(), offer.width_score.copy()
    project(graph, limits_at(graph, offer, ("size",), 0.2), offer, keep)
    for array, copy in zip((keep, offer.keep_score, offer.width_score), before, strict=True):
        assert (array == copy).all()
