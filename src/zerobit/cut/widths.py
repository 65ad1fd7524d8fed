"""Widths with all units given: a multiple-choice knapsack, and promotions that cost nothing.

Where every cost is linear in the number of channels at each width, each owner is an item. Where a device works in
tiles, each weight is: its options say how many of its channels get which width, and are priced by the cost itself.
Shape legend: K limits, C channels of a weight that stay, W widths it offers, M options, B = len(GRID).
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from zerobit.cut.choices import Bools, Floats, Ints, Selection
from zerobit.cut.knapsack import Options, solve
from zerobit.cut.pricing import MARGIN, Pricing, WidthPricing
from zerobit.formats import GRID

#: Options of one weight at most, about; and channels up to which they are all valued by the best assignment.
_MOST_OPTIONS = 250
_EXACT_CHANNELS = 8
#: Channels up to which the final assignment of widths to channels is the best one.
_ASSIGNED_CHANNELS = 320


def choose_widths(pricing: Pricing, selection: Selection) -> None:
    """Give every owner the width that is worth most within the limits, in place; the units stand.

    A selection that is better than what is found stays as it is.
    """
    if not pricing.is_linear and _is_tied(selection):
        return  # a width that several weights share has no price of its own under a device that works in tiles
    for margin in (MARGIN, -MARGIN):  # what fits exactly is to be found, and what fits by a rounding error is not
        found = (_by_owner if pricing.is_linear else _by_weight)(pricing, selection, margin)
        if found is None:
            return
        if pricing.fits(found):
            if found.value() > selection.value() or not pricing.fits(selection):
                selection.take(found)
            return


def cheapen(pricing: Pricing, selection: Selection) -> None:
    """Give the weights the widths that cost the least under the one limit, in place; the units stand.

    Weights that share owners get one width together.
    """
    if not _is_tied(selection):
        exact = WidthPricing(pricing, selection)
        for weight in selection.offer.owner:
            table = _Table.of(exact, selection, weight)
            if table is not None:
                table.assign(int(table.cost[0].argmin()), selection)
        return
    for owners in _tied(selection):
        trials = []
        for column in np.flatnonzero(np.isfinite(selection.offer.width_value[owners]).all(0)):
            trial = selection.copy()
            trial.column[owners] = column
            trials.append((float(pricing.totals(trial)[0]), int(column)))
        selection.column[owners] = min(trials)[1]


def _tied(selection: Selection) -> list[Ints]:
    """Owners of the weights that share some, for each set of such weights."""
    sets: list[set[int]] = []
    for owner in selection.offer.owner.values():
        owners = set(owner.tolist())
        touched = [s for s in sets if s & owners]
        sets = [s for s in sets if not s & owners] + [owners.union(*touched)]
    return [np.array(sorted(s), dtype=np.int64) for s in sets]


def _is_tied(selection: Selection) -> bool:
    """Whether an owner has channels in several weights."""
    owners = [np.unique(owner) for owner in selection.offer.owner.values()]
    return sum(map(len, owners)) > len(set().union(*(o.tolist() for o in owners)))


def _by_owner(pricing: Pricing, selection: Selection, margin: float) -> Selection | None:
    prices = pricing.prices(selection)
    owners = np.flatnonzero(selection.owned() > 0)
    now = prices.column[:, owners, selection.column[owners]].sum(1)
    item, column = np.nonzero(np.isfinite(selection.offer.width_value[owners]))
    options = Options(
        item=item,
        value=selection.offer.width_value[owners[item], column],
        cost=prices.column[:, owners[item], column],
        room=1 - prices.total + now + margin,
    )
    chosen = solve(options)
    if chosen is None:
        return None
    found = selection.copy()
    found.column[owners] = column[chosen]
    return found


def _by_weight(pricing: Pricing, selection: Selection, margin: float) -> Selection | None:
    exact = WidthPricing(pricing, selection)
    tables = [t for w in selection.offer.owner if (t := _Table.of(exact, selection, w)) is not None]
    if not tables:
        return None
    now = sum((t.cost[:, 0] for t in tables), np.zeros(len(pricing.limits)))
    options = Options(
        item=np.repeat(np.arange(len(tables)), [len(t.value) for t in tables]),
        value=np.concatenate([t.value for t in tables]),
        cost=np.concatenate([t.cost for t in tables], axis=1),
        room=1 - pricing.totals(selection) + now + margin,
    )
    chosen = solve(options)
    if chosen is None:
        return None
    found = selection.copy()
    for table, option in zip(tables, chosen - options.starts, strict=True):
        table.assign(int(option), found)
    return found


class _Table:
    """Options of one weight; the first is how it stands.

    Attributes:
        value: [M].
        cost: [K, M].
    """

    def __init__(self, owners: Ints, columns: Ints, counts: Ints, values: Floats, cost: Floats, layer: bool) -> None:
        self.owners, self.columns, self.counts, self.values, self.cost = owners, columns, counts, values, cost
        self.layer = layer
        self.value = self._value()

    @staticmethod
    def of(exact: WidthPricing, selection: Selection, weight: str) -> "_Table | None":
        """Of a weight that has channels and a choice."""
        offer = selection.offer
        kept = selection.kept_channels(weight)
        owners = offer.owner[weight][kept]
        if not len(owners):
            return None
        columns = np.flatnonzero(np.isfinite(offer.width_value[owners[0]]))
        layer = len(owners) > 1 and bool((owners == owners[0]).all())
        now = np.array([(selection.column[owners] == c).sum() for c in columns])
        counts = np.vstack([now, _count_vectors(len(owners), len(columns), whole=layer)])
        full = np.zeros((len(counts), len(GRID)), dtype=np.int64)
        full[:, columns] = counts
        values = offer.width_value[np.ix_(owners[:1] if layer else owners, columns)]
        return _Table(owners, columns, counts, values, exact(weight, full), layer)

    def _value(self) -> Floats:
        """Of the best assignment of widths to channels for few channels, else of the one by rank."""
        if self.layer:
            return self.values[0][self.counts.argmax(1)]
        if len(self.owners) <= _EXACT_CHANNELS:
            return np.array([_assign(self.values, row)[1] for row in self.counts])
        sums = np.vstack([np.zeros(self.values.shape[1]), np.cumsum(self.values[self._rank()], axis=0)])
        result = np.zeros(len(self.counts))
        end = np.zeros(len(self.counts), dtype=np.int64)
        for j in reversed(range(self.counts.shape[1])):  # the widest go to the channels that want them most
            start, end = end, end + self.counts[:, j]
            result += sums[end, j] - sums[start, j]
        return result

    def _rank(self) -> Ints:
        """[C], channels in order, those first that gain most by the widest width."""
        return np.argsort(self.values[:, 0] - self.values[:, -1], kind="stable")

    def assign(self, option: int, selection: Selection) -> None:
        """Give the channels their widths."""
        counts = self.counts[option]
        if self.layer:
            selection.column[self.owners[0]] = self.columns[counts.argmax()]
        elif len(self.owners) <= _ASSIGNED_CHANNELS:
            selection.column[self.owners] = self.columns[_assign(self.values, counts)[0]]
        else:
            selection.column[self.owners[self._rank()]] = np.repeat(self.columns[::-1], counts[::-1])


def _assign(values: Floats, counts: Ints) -> tuple[Ints, float]:
    """([C] index of each channel's width, value) of the best assignment with so many channels at each width."""
    slots = np.repeat(np.arange(len(counts)), counts)
    rows, places = linear_sum_assignment(values[:, slots], maximize=True)
    return slots[places], float(values[rows, slots[places]].sum())


def _count_vectors(channels: int, widths: int, *, whole: bool) -> Ints:
    """[M, W], ways to split channels among widths: all of them, or those in even steps, of two widths if need be."""
    if whole or widths == 1:
        return channels * np.eye(widths, dtype=np.int64)
    step = 1
    while _ways(-(-channels // step), min(widths, 3)) > _MOST_OPTIONS:
        step *= 2
    parts = -(-channels // step)
    subsets = [tuple(range(widths))] if widths <= 3 else list(itertools.combinations(range(widths), 2))
    rows = [_spread(split, subset, widths) for subset in subsets for split in _splits(parts, len(subset))]
    counts = step * np.array(rows, dtype=np.int64)
    counts[np.arange(len(counts)), counts.argmax(1)] -= step * parts - channels
    return np.unique(counts, axis=0)


def _ways(parts: int, widths: int) -> int:
    return parts + 1 if widths == 2 else (parts + 1) * (parts + 2) // 2


def _splits(parts: int, widths: int) -> list[tuple[int, ...]]:
    if widths == 1:
        return [(parts,)]
    return [(first, *rest) for first in range(parts + 1) for rest in _splits(parts - first, widths - 1)]


def _spread(split: Sequence[int], subset: Sequence[int], widths: int) -> list[int]:
    row = [0] * widths
    for count, place in zip(split, subset, strict=True):
        row[place] = count
    return row


def promote(pricing: Pricing, selection: Selection) -> None:
    """Widen channels where the exact cost allows it, in place: first where it costs nothing, as in a half-empty tile.

    Of every weight and pair of widths as many channels are widened as fit, those that gain most first.
    """
    if _is_tied(selection):
        return
    exact = WidthPricing(pricing, selection)
    room = 1 - pricing.totals(selection)
    before = selection.copy()
    for free in (True, False):
        for weight in selection.offer.owner:
            limit = np.minimum(room, 0) if free else room
            while (cost := _promote_weight(exact, selection, weight, limit)) is not None:
                room = room - cost
                limit = np.minimum(room, 0) if free else room
    if not pricing.fits(selection):  # by a rounding error
        selection.take(before)


def _promote_weight(exact: WidthPricing, selection: Selection, weight: str, room: Floats) -> Floats | None:
    """Take the promotion of most value within some room, whose cost is returned; None where there is none."""
    offer = selection.offer
    kept = offer.owner[weight][selection.kept_channels(weight)]
    owners = np.unique(kept)
    if not len(owners):
        return None
    channels = np.bincount(kept, minlength=len(selection.column))
    now = np.bincount(selection.column[owners], weights=channels[owners], minlength=len(GRID)).astype(np.int64)
    moves: list[tuple[Ints, int, float]] = []
    counts = [now]
    value = offer.width_value
    for low, high in itertools.combinations(np.flatnonzero(np.isfinite(value[owners[0]])), 2):
        here = owners[selection.column[owners] == low]
        gain = value[here, high] - value[here, low]
        order = np.argsort(-gain, kind="stable")
        total = np.cumsum(gain[order])
        for n in range(1, len(here) + 1):
            moved = here[order[:n]]
            row = now.copy()
            size = int(channels[moved].sum())
            row[low] -= size
            row[high] += size
            counts.append(row)
            moves.append((moved, int(high), float(total[n - 1])))
    if not moves:
        return None
    cost = exact(weight, np.array(counts))
    extra = cost[:, 1:] - cost[:, :1]
    within: Bools = extra <= np.maximum(room, 0)[:, None]
    gains = np.where(within.all(0), [m[2] for m in moves], -np.inf)
    best = int(gains.argmax())
    if not gains[best] > 0:
        return None
    moved, high, _ = moves[best]
    selection.column[moved] = high
    return extra[:, best]
