"""Moves of units and widths, taken in order of value per cost: down until every limit is kept, up until nothing fits.

Marginal prices rank the moves; after every batch of moves the cost is taken anew, so that limits are kept exactly
whatever the cost is. A device that works in tiles jumps where its price is a mean slope: what turns out not to fit is
not tried again for the same layer.
"""

import numpy as np

from zerobit.cut.choices import Bools, Floats, Ints, Selection
from zerobit.cut.moves import Moves, moves_down, moves_up
from zerobit.cut.pricing import MARGIN, Prices, Pricing

#: Share of the limits that one batch of moves may change, so that prices stay true.
_BATCH = 0.05
#: Numbers of moves that are priced in one go while it is found how many of a batch fit.
_AT_ONCE = 7
#: Moves that may turn out not to fit before all are priced anew, while the batch still has many.
_MISFITS = 4
_MANY = 200


def shrink(pricing: Pricing, selection: Selection, pinned: Bools | None = None) -> bool:
    """Take moves of little value per cost saved until every limit is kept, or no price says that a move saves anything.

    Args:
        pricing: of the limits.
        selection: changed in place.
        pinned: [U], units that stay as they are.

    Returns:
        Whether every limit is kept.
    """
    pinned = np.zeros(len(selection.keep), dtype=bool) if pinned is None else pinned
    failed: list[int] = []
    most = len(selection.keep) + len(selection.column)
    prices = pricing.prices(selection)
    while (prices.total > 1).any():
        moves = moves_down(selection, prices, prices.total > 1, pinned)
        batch = _saving(moves, prices, failed)[:most]
        if not len(batch):
            return False
        trial = selection.copy()
        moves.apply(batch, trial)
        after = pricing.prices(trial)
        if (_excess(after), trial.value()) < (_excess(prices), selection.value()):  # so that it ends
            selection.take(trial)
            prices, most = after, 2 * most
        elif len(batch) > 1:
            most = len(batch) // 2
        else:
            failed.append(int(moves.family[batch[0]]))
    return True


def _excess(prices: Prices) -> float:
    return float(np.maximum(prices.total - 1, 0).sum())


def _saving(moves: Moves, prices: Prices, failed: list[int]) -> Ints:
    """The first moves by value per cost saved that keep the limits, or take off `_BATCH` of them."""
    over = prices.total > 1
    saved = -moves.cost[over].sum(0)
    useful = np.flatnonzero((saved > 1e-12 * prices.total[over].sum()) & ~np.isin(moves.family, failed))
    order = useful[np.argsort(-moves.value[useful] / saved[useful], kind="stable")]
    wanted = min(_excess(prices), _BATCH * prices.total[over].sum())
    return order[: int(np.searchsorted(np.cumsum(saved[order]), wanted * (1 - 1e-12))) + 1]


def fill(pricing: Pricing, selection: Selection, pinned: Bools | None = None) -> None:
    """Take moves of much value per cost, those that cost nothing first, until none fits."""
    pinned = np.zeros(len(selection.keep), dtype=bool) if pinned is None else pinned
    failed: set[int] = set()
    while True:
        prices = pricing.prices(selection)
        room = 1 - prices.total + MARGIN
        moves = moves_up(selection, prices, room, pinned)
        usable = (moves.cost <= room[:, None]).all(0) & ~np.isin(moves.family, list(failed))
        spent = np.maximum(moves.cost, 0).sum(0)
        order = np.argsort(-moves.value / np.maximum(spent, 1e-12), kind="stable")
        batch = _batch(moves, order[usable[order]], room)
        if not len(batch):
            batch = _mispriced(pricing, selection, moves, order, failed)
        if not len(batch):
            return
        for _ in range(_MISFITS):
            fitting = _fitting(pricing, selection, moves, batch)
            if fitting == len(batch):
                break
            misfit = int(moves.family[batch[fitting]])
            failed.add(misfit)
            batch = batch[fitting + 1 :]
            batch = batch[moves.family[batch] != misfit]
            if len(batch) < _MANY:
                break


def _mispriced(pricing: Pricing, selection: Selection, moves: Moves, order: Ints, failed: set[int]) -> Ints:
    """Blocks of one group that fit, at least the first, though their price doesn't: it may be a mean slope."""
    if all(limit.cost.per_channel and limit.cost.by_weight for limit in pricing.limits):
        return np.zeros(0, dtype=np.int64)
    blocks = order[(moves.owner[order] < 0) & ~np.isin(moves.family[order], list(failed))]
    families, first = np.unique(moves.family[blocks], return_index=True)
    trials = [selection.copy() for _ in families]
    for trial, move in zip(trials, blocks[first], strict=True):
        moves.apply(np.array([move]), trial)
    fits = np.array(pricing.fit(trials), dtype=bool) if trials else np.zeros(0, dtype=bool)
    failed.update(families[~fits].tolist())
    return blocks[moves.family[blocks] == families[first == first[fits].min()]] if fits.any() else blocks[:0]


def _batch(moves: Moves, order: Ints, room: Floats) -> Ints:
    """The first moves that fit together, about `_BATCH` of the limits."""
    left, budget = room.copy(), _BATCH
    taken: list[Ints] = []
    while budget > 0 and len(order):
        cost = moves.cost[:, order]
        sums, spent = np.cumsum(cost, axis=1), np.cumsum(np.maximum(cost.max(0), 0))
        misfits = np.flatnonzero((sums > left[:, None]).any(0))
        enough = int(np.searchsorted(spent, budget)) + 1
        count = min(int(misfits[0]) if len(misfits) else len(order), enough)
        if count:
            taken.append(order[:count])
            left, budget = left - sums[:, count - 1], budget - float(spent[count - 1])
        order = order[count:]
        order = order[(moves.cost[:, order] <= left[:, None]).all(0)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *taken])


def _fitting(pricing: Pricing, selection: Selection, moves: Moves, batch: Ints) -> int:
    """Make the first moves of a batch that fit by their exact cost; how many, found by bisection.

    Moves raise each other's prices, and tiles begin: what fits by the sum of prices may not fit.
    """

    def tried(count: int) -> Selection:
        result = selection.copy()
        moves.apply(batch[:count], result)
        return result

    low, high = 0, len(batch) + 1  # so many fit, so many don't
    counts = [len(batch)]
    while counts:
        trials = [tried(count) for count in counts]
        fits = pricing.fit(trials)
        low = max([low, *(n for n, fit in zip(counts, fits, strict=True) if fit)])
        high = min([high, *(n for n, fit in zip(counts, fits, strict=True) if not fit and n > low)])
        counts = sorted({int(n) for n in np.linspace(low, high, _AT_ONCE + 2)[1:-1]} - {low, high})
    while 0 < low < len(batch) and not pricing.fits(tried(low)):
        low -= 1
    selection.take(tried(low))
    return low
