"""Multiple-choice knapsack: one option for each item, the most value within several limits.

The dual of the linear relaxation is solved by cutting planes; it has as many variables as there are limits. Its prices
decide nearly all items for good. What an option falls short of the best one of its item at these prices is its loss,
and the value of a choice is the dual's bound less all losses and less the price of the room that is left. A choice that
keeps the limits is found by repair, and bettered by a dynamic program over the items of the smallest losses.
Shape legend: N options of all items together, K limits, S states.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linprog

from zerobit.cut.choices import Bools, Floats, Ints

_CUTTING_PLANES = 60
#: Items and states of the dynamic program at most. With fewer of both it is exact.
_CORE_ITEMS = 48
_STATES = 1500
#: Rounds of the repair; each makes as many changes as are needed by its estimate.
_REPAIRS = 100


@dataclass(frozen=True, eq=False)
class Options:
    """What there is to choose from.

    Attributes:
        item: [N], item of each option, ascending from 0 without gaps.
        value: [N].
        cost: [K, N].
        room: [K], what all chosen options may cost together.
    """

    item: Ints
    value: Floats
    cost: Floats
    room: Floats

    @cached_property
    def starts(self) -> Ints:
        """First option of each item."""
        return np.flatnonzero(np.diff(self.item, prepend=-1))

    @cached_property
    def ends(self) -> Ints:
        """One past the last option of each item."""
        return np.append(self.starts[1:], len(self.item))

    def slack(self, chosen: Ints) -> Floats:
        """[K], room that a choice leaves; below 0 where it costs too much."""
        return self.room - self.cost[:, chosen].sum(1)


def solve(options: Options) -> Ints | None:
    """The chosen option of each item, or None where no choice within the limits is found.

    Exact up to `_CORE_ITEMS` items while there are at most `_STATES` states that may lead to the best choice.
    """
    if not len(options.item):
        return np.zeros(0, dtype=np.int64)
    price = dual_prices(options)
    reduced = options.value - price @ options.cost
    best = _best(options, reduced)
    repaired = _repaired(options, reduced, best)
    start = None if repaired is None else _filled(options, repaired)
    return _Core(options, price, reduced, best).search(start)


def _best(options: Options, reduced: Floats) -> Ints:
    """The option of the largest reduced value, of each item; the first of equals."""
    starts = options.starts
    top = np.maximum.reduceat(reduced, starts)[options.item]
    order = np.where(reduced >= top, np.arange(len(reduced)), len(reduced))
    return np.minimum.reduceat(order, starts)


def dual_prices(options: Options) -> Floats:
    """[K], prices that minimise price @ room + sum over items of the best reduced value; Kelley's cutting planes."""
    limits = len(options.room)
    least = np.array([np.minimum.reduceat(c, options.starts).sum() for c in options.cost])
    slack = np.maximum(options.room - least, 1e-9)
    spread = float((np.maximum.reduceat(options.value, options.starts)).sum() - options.value.min())
    ceiling = np.maximum(spread, 1.0) / slack  # at this price nothing but the least is bought
    cuts, offsets = [], []
    price = np.zeros(limits)
    lowest, found = np.inf, price
    for _ in range(_CUTTING_PLANES):
        best = _best(options, options.value - price @ options.cost)
        value, slope = options.value[best].sum(), options.slack(best)
        bound = value + price @ slope
        if bound < lowest:
            lowest, found = bound, price
        cuts.append(slope)
        offsets.append(value)
        lowest_point = _crossing if limits == 1 else _lowest_point
        price, height = lowest_point(np.array(cuts), np.array(offsets), ceiling)
        if lowest - height <= 1e-9 * max(1.0, abs(lowest)):
            break
    return found


def _lowest_point(slopes: Floats, offsets: Floats, ceiling: Floats) -> tuple[Floats, float]:
    """Prices at which the highest of the cuts is lowest, and how high it is there; infinitely where none is found.

    Args:
        slopes: [cuts, K].
        offsets: [cuts].
        ceiling: [K], largest prices.
    """
    step = linprog(
        [*np.zeros(len(ceiling)), 1.0],
        A_ub=np.column_stack([slopes, -np.ones(len(slopes))]),
        b_ub=-offsets,
        bounds=[*((0.0, c) for c in ceiling), (None, None)],
    )
    return (ceiling, np.inf) if step.x is None else (step.x[:-1], float(step.x[-1]))


def _crossing(slopes: Floats, offsets: Floats, ceiling: Floats) -> tuple[Floats, float]:
    """`_lowest_point` of a single limit: where the last cut that falls meets the last that rises.

    Each cut touches a convex function between the points of these two, so that the others lie below.
    """
    falling, rising = np.flatnonzero(slopes[:, 0] < 0), np.flatnonzero(slopes[:, 0] >= 0)
    if not len(falling):
        return np.zeros(1), float(offsets[rising[-1]])
    down = falling[-1]
    price = ceiling
    if len(rising):
        up = rising[-1]
        price = np.clip((offsets[down] - offsets[up]) / (slopes[up] - slopes[down]), 0.0, ceiling)
    return price, float(offsets[down] + price[0] * slopes[down, 0])


def _repaired(options: Options, reduced: Floats, chosen: Ints) -> Ints | None:
    """Within the limits by changes of the least loss for what they take off the excess; None if it gets stuck."""
    chosen = chosen.copy()
    for _ in range(_REPAIRS):
        slack = options.slack(chosen)
        excess = np.maximum(-slack, 0)
        if not excess.any():
            return chosen
        change = options.cost - options.cost[:, chosen][:, options.item]
        gain = excess.sum() - np.maximum(change - slack[:, None], 0).sum(0)
        loss = np.maximum(reduced[chosen][options.item] - reduced, 0)
        useful = np.flatnonzero(gain > 0)
        if not len(useful):
            return None
        order = useful[np.argsort(loss[useful] / gain[useful], kind="stable")]
        order = _one_each(options, order)
        count = int(np.searchsorted(np.cumsum(gain[order]), excess.sum()))
        chosen[options.item[order[: max(1, count)]]] = order[: max(1, count)]
    return None


def _filled(options: Options, chosen: Ints) -> Ints:
    """The same with what is left of the room spent on the changes of most value per cost."""
    chosen = chosen.copy()
    for _ in range(_REPAIRS):
        slack = options.slack(chosen)
        change = options.cost - options.cost[:, chosen][:, options.item]
        gain = options.value - options.value[chosen][options.item]
        useful = np.flatnonzero((gain > 0) & (change <= slack[:, None]).all(0))
        if not len(useful):
            break
        spent = np.maximum(np.maximum(change[:, useful], 0).sum(0), 1e-12)
        order = _one_each(options, useful[np.argsort(-gain[useful] / spent, kind="stable")])
        misfits = np.flatnonzero((np.cumsum(change[:, order], axis=1) > slack[:, None]).any(0))
        count = max(1, int(misfits[0]) if len(misfits) else len(order))
        chosen[options.item[order[:count]]] = order[:count]
    return chosen


def _one_each(options: Options, order: Ints) -> Ints:
    """The first option of each item, in the same order."""
    _, first = np.unique(options.item[order], return_index=True)
    return order[np.sort(first)]


@dataclass(eq=False)
class _States:
    """Partial choices: the first items are decided, all others at their best.

    Attributes:
        loss: [S].
        slack: [S, K].
    """

    loss: Floats
    slack: Floats

    def __getitem__(self, index: Ints | Bools) -> "_States":
        """Some of them."""
        return _States(self.loss[index], self.slack[index])


class _Core:
    """Dynamic program over the items that the dual is least sure of.

    Args:
        options: all of them.
        price: [K], of the dual.
        reduced: [N], values at these prices.
        best: option of each item at these prices.
    """

    def __init__(self, options: Options, price: Floats, reduced: Floats, best: Ints) -> None:
        self.options, self.price, self.best = options, price, best
        self.loss = np.maximum(reduced[best][options.item] - reduced, 0)
        self.change = options.cost - options.cost[:, best][:, options.item]
        other = self.loss.copy()
        other[best] = np.inf
        self.least = np.minimum.reduceat(other, options.starts)
        self.order = np.argsort(self.least, kind="stable")[:_CORE_ITEMS]
        saving = np.array([np.maximum.reduceat(-c, options.starts)[self.order] for c in self.change])
        later = np.cumsum(saving[:, ::-1], axis=1)[:, ::-1]
        #: [items + 1, K], what the items from here on can save at most.
        self.later = np.vstack([later.T, np.zeros((1, len(price)))])

    def search(self, start: Ints | None) -> Ints | None:
        """The best choice found; `start` is one within the limits, if any is known."""
        states = _States(np.zeros(1), self.options.slack(self.best)[None])
        trail: list[tuple[Ints, Ints]] = []
        gap, found = np.inf, start
        if start is not None:
            gap = float(self.loss[start].sum() + self.price @ self.options.slack(start))
        if (states.slack >= 0).all() and float(self._short(states)[0]) < gap:
            gap, found = float(self._short(states)[0]), self.best.copy()
        for number, item in enumerate(self.order.tolist()):
            if self.least[item] >= gap:
                break
            states, parent, option = self._extended(states, item, number, gap)
            if not len(states.loss):
                break
            trail.append((parent, option))
            short = np.where((states.slack >= 0).all(1), self._short(states), np.inf)
            if short.min() < gap:
                gap, found = float(short.min()), self._choice(trail, int(short.argmin()))
        return found

    def _short(self, states: _States) -> Floats:
        """[S], what each state's value falls short of the dual's bound."""
        return states.loss + states.slack @ self.price

    def _extended(self, states: _States, item: int, number: int, gap: float) -> tuple[_States, Ints, Ints]:
        """(states with one more item decided, their parents, its options)."""
        option = np.arange(self.options.starts[item], self.options.ends[item])
        option = option[self.loss[option] < gap]
        loss = (states.loss[:, None] + self.loss[option]).ravel()
        slack = (states.slack[:, None] - self.change[:, option].T).reshape(len(loss), len(self.price))
        new = _States(loss, slack)
        kept = np.flatnonzero((loss < gap) & (slack + self.later[number + 1] >= -1e-15).all(1))
        kept = kept[self._undominated(new[kept])]
        return new[kept], kept // len(option), option[kept % len(option)]

    def _undominated(self, states: _States) -> Ints:
        """The states that no other one beats in value and in room, by their value; for several limits only the cut."""
        short = self._short(states)
        order = np.argsort(short, kind="stable")
        if states.slack.shape[1] == 1:
            slack = states.slack[order, 0]
            before = np.maximum.accumulate(np.concatenate([[-np.inf], slack[:-1]]))
            order = order[slack > before]
        if len(order) > _STATES:
            away = states.loss[order] + np.abs(states.slack[order]) @ self.price
            order = order[np.sort(np.argsort(away, kind="stable")[:_STATES])]
        return order

    def _choice(self, trail: list[tuple[Ints, Ints]], state: int) -> Ints:
        chosen = self.best.copy()
        for parent, option in reversed(trail):
            chosen[self.options.item[option[state]]] = option[state]
            state = int(parent[state])
        return chosen
