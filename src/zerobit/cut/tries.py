"""Local search over the units that stay: other units are tried, everything else follows, improvements stay."""

import itertools
from collections.abc import Iterator

import numpy as np

from zerobit.cut.choices import Bools, Ints, Selection
from zerobit.cut.greedy import fill, shrink
from zerobit.cut.permute import permute
from zerobit.cut.pricing import Pricing
from zerobit.cut.widths import choose_widths, promote

#: Work that goes into tries, in owners and in weights settled; networks with more owners are too large for any.
_OWNERS = 4000
_WEIGHTS = 100
#: Numbers of units that are started from, or all combinations up to so many.
_STARTS = 5
_COMBINATIONS = 24
#: Units of a group that is small.
_SMALL = 8
#: Channels in the tiles of the devices known; other numbers of units are found unit by unit.
_TILE = 16


def settle(pricing: Pricing, selection: Selection, pinned: Bools | None = None) -> bool:
    """Keep the limits and spend what is left, in place; False where the limits are not kept.

    Args:
        pricing: of the limits.
        selection: changed in place.
        pinned: [U], units that stay as they are.
    """
    if not shrink(pricing, selection, pinned):
        choose_widths(pricing, selection)  # at a price that is a mean slope, one channel of a tile saves nothing
        if not pricing.fits(selection):
            return False
    fill(pricing, selection, pinned)
    choose_widths(pricing, selection)
    _spend(pricing, selection, pinned)
    return True


def _spend(pricing: Pricing, selection: Selection, pinned: Bools | None = None) -> None:
    fill(pricing, selection, pinned)
    if not pricing.is_linear:
        promote(pricing, selection)


def improve(pricing: Pricing, selection: Selection) -> None:
    """Try other units, in place.

    Args:
        pricing: of the limits, which the selection keeps.
        selection: changed in place.
    """
    tries = min(_OWNERS // max(1, len(selection.column)), _WEIGHTS // max(1, len(selection.offer.owner)))
    if not tries:
        return
    for start in list(_starts(pricing, selection)):
        if start.value() > selection.value():
            selection.take(start)
    best = selection.value()
    improved = True
    while improved:
        improved = False
        for units in itertools.islice(_candidates(pricing, selection), tries):
            tries -= 1
            for trial in list(_trials(pricing, selection, units)):
                if trial.value() > best + 1e-9 * abs(best):
                    selection.take(trial)
                    best, improved = trial.value(), True
            if improved:
                break
    _spend(pricing, selection)  # on the units that a trial held back too


def _starts(pricing: Pricing, selection: Selection) -> Iterator[Selection]:
    """With other numbers of units, those of most value, at the best widths."""
    offer = selection.offer
    numbers = _numbers(selection)
    for order in (selection.unit_value(), offer.keep_value)[: 2 if len(numbers) > _STARTS else 1]:
        value = np.where(np.isfinite(offer.keep_score), order, np.inf)
        for counts in numbers:
            start = selection.copy()
            for place, count in zip(offer.units.values(), counts, strict=True):
                start.keep[place] = False
                start.keep[place.start + np.argsort(-value[place], kind="stable")[:count]] = True
            if _choose(pricing, start):
                _spend(pricing, start)
                yield start


def _numbers(selection: Selection) -> list[list[int]]:
    """Units of each group: all combinations where there are few, else some shares of all groups alike."""
    offer = selection.offer
    allowed: list[list[int]] = []
    for group, place in offer.units.items():
        units, fixed = place.stop - place.start, int(np.isinf(offer.keep_score[place]).sum())
        counts = {max(fixed, offer.rules[group].nearest(count, units)) for count in range(fixed, units + 1)}
        allowed.append(sorted(counts))
    if np.prod([float(len(counts)) for counts in allowed]) <= _COMBINATIONS:
        return [list(counts) for counts in itertools.product(*allowed)]
    return [[c[round(share * (len(c) - 1))] for c in allowed] for share in np.linspace(0, 1, _STARTS)]


def _choose(pricing: Pricing, selection: Selection) -> bool:
    """The best widths for the number of units of each group, and the best units for these; whether limits are kept."""
    choose_widths(pricing, selection)
    if not pricing.fits(selection):
        return False
    other = selection.copy()
    permute(other)
    if other.value() > selection.value() and pricing.fits(other):
        selection.take(other)
        choose_widths(pricing, selection)
    return True


def _trials(pricing: Pricing, selection: Selection, units: Ints) -> Iterator[Selection]:
    """With some units in or out, within the limits: all others as they were, and others following."""
    pinned = np.zeros(len(selection.keep), dtype=bool)
    pinned[units] = True
    trial = selection.copy()
    trial.keep[units] ^= True
    other = trial.copy()
    fits = _choose(pricing, trial)
    if fits:
        _spend(pricing, trial, pinned)
        yield trial
    if (pricing.is_linear or not fits) and settle(pricing, other, pinned):
        yield other


def _candidates(pricing: Pricing, selection: Selection) -> Iterator[Ints]:
    """Units in or out, the most promising first: by value against what the limits' prices ask.

    First of one group, then out of one and into one, which may be the same.
    """
    value, cost = selection.unit_value(), pricing.prices(selection).unit.sum(0)
    out: list[tuple[float, Ints]] = []
    into: list[tuple[float, Ints]] = []
    for group in selection.offer.units:
        for moves, remove in ((out, True), (into, False)):
            for units in _steps(selection, group, value, remove=remove):
                gain = float(value[units].sum()) / max(float(cost[units].sum()), 1e-12)
                moves.append((gain if remove else -gain, units))
    single = sorted([*out, *into], key=lambda move: move[0])
    yield from (units for _, units in single)
    double = [(a + b, np.concatenate([first, second])) for a, first in out for b, second in into]
    yield from (units for _, units in sorted(double, key=lambda move: move[0]))


def _steps(selection: Selection, group: str, value: np.ndarray, *, remove: bool) -> Iterator[Ints]:
    """Units of a group that lead to the next number of units, and to the next tile; of a small group any one."""
    offer = selection.offer
    place, rule = offer.units[group], offer.rules[group]
    keep = selection.keep[place]
    movable = (keep if remove else ~keep) & np.isfinite(offer.keep_score[place])
    order = place.start + np.flatnonzero(movable)
    order = order[np.argsort(value[order] if remove else -value[order], kind="stable")]
    count, units = int(keep.sum()), len(keep)
    for then in sorted(_counts(count, rule.multiple_of, remove=remove)):
        size = abs(then - count)
        if 0 < size <= len(order) and rule.fewest(units) <= then <= units and rule.nearest(then, units) == then:
            yield order[:size]
            if size == 1 and units <= _SMALL:  # which unit is best depends on widths that follow
                yield from (order[i : i + 1] for i in range(1, len(order)))


def _counts(count: int, multiple: int, *, remove: bool) -> set[int]:
    """Numbers of units next to one, and at the next tile."""
    steps = (multiple, max(multiple, _TILE))
    return {(count - 1) // step * step if remove else (count // step + 1) * step for step in steps}
