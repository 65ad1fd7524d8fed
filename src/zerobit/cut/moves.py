"""Moves of units and widths: what each is worth, and what it costs by the marginal prices.

Shape legend: K limits, M moves, U units.
"""

from dataclasses import dataclass

import numpy as np

from zerobit.cut.choices import Bools, Floats, Ints, Selection
from zerobit.cut.pricing import Prices
from zerobit.search.choice import UnitRule


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sets of units that go, or come back, together: the n-th is unit[start[n]:end[n]].

    Attributes:
        unit: units of all blocks.
        start: [N].
        end: [N].
    """

    unit: Ints
    start: Ints
    end: Ints

    @staticmethod
    def of(order: list[Ints], sizes: list[Ints]) -> "Blocks":
        """Of units in order and the sizes of their blocks, in parts."""
        none = np.zeros(0, dtype=np.int64)
        size = np.concatenate([none, *sizes])
        end = np.cumsum(size)
        return Blocks(np.concatenate([none, *order]), end - size, end)

    def sums(self, values: Floats) -> Floats:
        """[..., N], sums of [..., U] values over each block."""
        if not len(self.start):
            return np.zeros((*values.shape[:-1], 0))
        return np.add.reduceat(values[..., self.unit], self.start, axis=-1)

    def units(self, blocks: Ints) -> Ints:
        """Units of some of them."""
        sizes = self.end[blocks] - self.start[blocks]
        place = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.unit[np.repeat(self.start[blocks], sizes) + place]


@dataclass(frozen=True, eq=False)
class Moves:
    """M changes: a block of units in or out, or an owner to another column.

    Attributes:
        cost: [K, M].
        value: [M].
        owner: [M], -1 for blocks of units.
        column: [M], new column of the owner.
        blocks: of units, which are the first moves.
        family: [M], moves that cost alike: of one group, or of one weight between the same columns.
    """

    cost: Floats
    value: Floats
    owner: Ints
    column: Ints
    blocks: Blocks
    family: Ints

    def apply(self, moves: Ints, selection: Selection) -> None:
        """Make some changes in place; they touch different units and owners."""
        is_block = self.owner[moves] < 0
        selection.keep[self.blocks.units(moves[is_block])] ^= True
        widths = moves[~is_block]
        selection.column[self.owner[widths]] = self.column[widths]


def moves_down(selection: Selection, prices: Prices, over: Bools, pinned: Bools) -> Moves:
    """Units out, and every owner's column of least value lost per cost saved."""
    blocks = _blocks(selection, pinned, remove=True)
    price = prices.column[over].sum(0)
    now = np.arange(len(price)), selection.column
    value = selection.offer.width_value
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = value[now][:, None] - value
        saved = price[now][:, None] - price
        ratio = np.where(
            np.isfinite(value) & (saved > 1e-9 * np.abs(price).max(1, keepdims=True)), lost / saved, np.inf
        )
    return _moves(selection, prices, blocks, ratio, remove=True)


def moves_up(selection: Selection, prices: Prices, room: Floats, pinned: Bools) -> Moves:
    """Units in, and every owner's column of most value gained per cost among those that fit."""
    blocks = _blocks(selection, pinned, remove=False)
    now = np.arange(len(selection.column)), selection.column
    value = selection.offer.width_value
    cost = prices.column - prices.column[:, now[0], now[1]][:, :, None]
    with np.errstate(invalid="ignore"):
        gain = value - value[now][:, None]
    usable = np.isfinite(value) & (gain > 0) & (cost <= room[:, None, None]).all(0)
    ratio = np.where(usable, -gain / np.maximum(np.maximum(cost, 0).sum(0), 1e-12), np.inf)
    return _moves(selection, prices, blocks, ratio, remove=False)


def _moves(selection: Selection, prices: Prices, blocks: Blocks, ratio: Floats, *, remove: bool) -> Moves:
    """Blocks of units, and for each owner that has channels its column of the least ratio."""
    sign = -1.0 if remove else 1.0
    offer = selection.offer
    column = ratio.argmin(1) if len(ratio) else np.zeros(0, dtype=np.int64)
    rows = np.arange(len(ratio))
    owner = np.flatnonzero((ratio[rows, column] < np.inf) & (selection.owned() > 0))
    column, now = column[owner], selection.column[owner]
    cost = prices.column[:, owner, column] - prices.column[:, owner, now]
    value = offer.width_value[owner, column] - offer.width_value[owner, now]
    count = len(blocks.start)
    family = offer.owner_family[owner] * 64 + now * 8 + column
    return Moves(
        cost=np.concatenate([sign * blocks.sums(prices.unit), cost], axis=1),
        value=np.concatenate([sign * blocks.sums(selection.unit_value()), value]),
        owner=np.concatenate([np.full(count, -1), owner]).astype(np.int64),
        column=np.concatenate([np.zeros(count, dtype=np.int64), column]),
        blocks=blocks,
        family=np.concatenate([_block_family(selection, prices)[blocks.unit[blocks.start]], family]),
    )


def _block_family(selection: Selection, prices: Prices) -> Ints:
    """[U], negative numbers, equal for units of one group whose channels have the same widths.

    With tiles for all units of a group: how full they are counts for more than widths.
    """
    offer = selection.offer
    if not prices.is_linear:
        return -1 - offer.unit_family
    widths: Ints = (offer.owners_of_unit @ ((offer.owner_family + 1) * selection.column)).astype(np.int64)
    return -1 - (offer.unit_family * (1 + int(np.max(widths, initial=0))) + widths)


def _blocks(selection: Selection, pinned: Bools, *, remove: bool) -> Blocks:
    """Sets of units that may go, or come back, independently of each other: single ones, or whole multiples."""
    orders: list[Ints] = []
    sizes: list[Ints] = []
    offer = selection.offer
    value = selection.unit_value()
    for group, place in offer.units.items():
        rule, keep = offer.rules[group], selection.keep[place]
        free = np.isfinite(offer.keep_score[place]) & ~pinned[place]
        movable = place.start + np.flatnonzero((keep if remove else ~keep) & free)
        order = movable[np.argsort(value[movable] if remove else -value[movable], kind="stable")]
        if rule.multiple_of == 1:
            spare = max(0, int(keep.sum()) - rule.fewest(len(keep))) if remove else len(order)
            size = np.ones(min(spare, len(order)), dtype=np.int64)
        else:
            size = _multiples(len(order), int(keep.sum()), rule, len(keep), remove=remove)
        orders.append(order[: size.sum()])
        sizes.append(size)
    return Blocks.of(orders, sizes)


def _multiples(available: int, count: int, rule: UnitRule, units: int, *, remove: bool) -> Ints:
    """Sizes of blocks that lead from one allowed number of units to the next; a ragged one only alone."""
    sizes: list[int] = []
    while (count > rule.fewest(units)) if remove else (count < units):
        then = rule.below(count) if remove else rule.above(count, units)
        size = abs(then - count)
        ragged = size != rule.multiple_of
        if sum(sizes) + size > available or (ragged and not remove and sizes) or then < rule.fewest(units):
            break
        sizes.append(size)
        count = then
        if ragged and remove:
            break
    return np.array(sizes, dtype=np.int64)
