"""Discrete projection: the hard choice, moved as little as possible until a budget is kept, then the rest spent.

Size, MACs, BOPs and table latencies are linear in each channel's choice while the others stand, so the gradient of the
cost at a one-hot point is the exact price of every single move. Moves are taken in order of preference lost per cost
saved, a batch at a time, with prices made anew between batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zerobit.bits import BitDist, NetBits
from zerobit.cost.base import AbstractCost
from zerobit.cost.usage import usage
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.ir import Graph
from zerobit.search.choice import UnitRule

#: Share of the cost that one batch of moves may change, so that prices stay true.
_BATCH = 0.05
#: Marks a move of all channels of a unit.
_UNIT = "unit:"


@dataclass
class Choices:
    """The state of a projection; what a search prefers and what is chosen now.

    Attributes:
        keep: group -> bool [units].
        width: weight -> int [C], grid column of each output channel, as if it were kept.
        keep_score: group -> [units], log odds of staying; +inf where a unit must stay.
        width_score: weight -> [C, B], log preference of each grid column; -inf where it is not offered.
        units: weight -> group -> int [C], unit of each output channel, -1 where it is not of this group.
        activations: as chosen.
        rules: group -> how many of its units may stay.
        tied: weight -> "layer" where all its channels share one choice, "unit" where a unit's channels do, in all
            weights of its group; these move together.
    """

    keep: dict[str, Tensor]
    width: dict[str, Tensor]
    keep_score: Mapping[str, Tensor]
    width_score: Mapping[str, Tensor]
    units: Mapping[str, Mapping[str, Tensor]]
    activations: Mapping[str, BitDist]
    rules: Mapping[str, UnitRule]
    tied: Mapping[str, str]

    def kept_channels(self, weight: str) -> Tensor:
        """Bool [C]."""
        kept = torch.ones(len(self.width[weight]), dtype=torch.bool)
        for group, unit in self.units[weight].items():
            kept &= (unit < 0) | self.keep[group][unit]
        return kept

    def bits(self, weight: str) -> list[int]:
        """Width of each output channel, 0 where removed."""
        kept = self.kept_channels(weight).tolist()
        return [GRID[c] if k else 0 for c, k in zip(self.width[weight].tolist(), kept, strict=True)]

    def net_bits(self, *, differentiable: bool = False) -> NetBits:
        """As one-hot distributions, optionally leaves that gradients reach."""
        keep = {name: k.double().requires_grad_(differentiable) for name, k in self.keep.items()}
        weights = {}
        for name in self.width:
            p = BitDist.one_hot(self.bits(name)).p
            weights[name] = BitDist(p.requires_grad_(differentiable))
        return NetBits(keep, weights, self.activations)


@dataclass(frozen=True, eq=False)
class _Prices:
    """Cost now, and what each choice adds to it: per unit (through its readers), per channel and column."""

    total: float
    unit: Mapping[str, Tensor]
    column: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Move:
    """One change: units of a group in or out, or channels of a weight (none: all of them) to another column."""

    where: str
    index: tuple[int, ...]
    column: int | None
    cost: float
    value: float


def project(graph: Graph, cost: AbstractCost, limit: float, choices: Choices) -> None:
    """Change choices in place until cost <= limit, then spend what is left of the limit.

    Raises:
        BudgetError: even the smallest choices cost more; names the smallest reachable value.
    """
    check_reachable(graph, cost, limit, choices)
    _shrink(graph, cost, limit, choices)
    _fill(graph, cost, limit, choices)
    assert _total(graph, cost, choices) <= limit * (1 + 1e-12)


def smallest(choices: Choices) -> Choices:
    """Every group at its fewest units, every channel at its narrowest width."""
    keep = {}
    for name, score in choices.keep_score.items():
        must = torch.isinf(score)
        fewest = choices.rules[name].fewest(len(score))
        keep[name] = must if int(must.sum()) >= fewest else must.index_fill(0, torch.topk(score, fewest).indices, True)
    width = {name: torch.isfinite(s).double().argmax(1) for name, s in choices.width_score.items()}
    return replace(choices, keep=keep, width=width)


def check_reachable(graph: Graph, cost: AbstractCost, limit: float, choices: Choices) -> None:
    """Check that the smallest choices keep a limit.

    Raises:
        BudgetError: they don't; names the value they reach and the layers that hold most of it.
    """
    least = smallest(choices)
    reachable = _total(graph, cost, least)
    if reachable > limit:
        column = _prices(graph, cost, least).column
        share = {w: float((p * least.net_bits().weights[w].p).sum()) for w, p in column.items()}
        largest = sorted(share, key=share.__getitem__, reverse=True)[:3]
        held = ", ".join(f"{name} ({share[name]:,.4g} {cost.unit})" for name in largest if share[name] > 0)
        rest = reachable - sum(share.values())
        if rest > 1e-6 * reachable:
            held = ", ".join(filter(None, [f"weights left in float ({rest:,.4g} {cost.unit})", held]))
        msg = (
            f"`budget` for {cost.name} is {limit:,.6g} {cost.unit}; the smallest reachable is "
            f"{reachable:,.6g} {cost.unit}, held by {held}; allow at least that, offer "
            "narrower widths, or a smaller network"
        )
        raise BudgetError(msg)


def _total(graph: Graph, cost: AbstractCost, choices: Choices) -> float:
    return float(cost(usage(graph, choices.net_bits())))


def _prices(graph: Graph, cost: AbstractCost, choices: Choices) -> _Prices:
    bits = choices.net_bits(differentiable=True)
    total = cost(usage(graph, bits))
    leaves = [*bits.keep.values(), *(d.p for d in bits.weights.values())]
    if total.requires_grad:
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    else:  # a network without layers has no multiplications, one that is frozen no choice
        grads = tuple(torch.zeros_like(leaf) for leaf in leaves)
    unit = dict(zip(bits.keep, grads[: len(bits.keep)], strict=True))
    column = dict(zip(bits.weights, grads[len(bits.keep) :], strict=True))
    return _Prices(float(total.detach()), unit, column)


def _unit_prices(prices: _Prices, choices: Choices, group: str) -> Tensor:
    """[units], what each unit costs with the widths its channels have (or would have)."""
    result = prices.unit[group].clone()
    for weight, units in choices.units.items():
        if group in units:
            own = prices.column[weight].gather(1, choices.width[weight][:, None])[:, 0]
            ours = units[group] >= 0
            result.index_add_(0, units[group][ours], (own - prices.column[weight][:, 0])[ours])
    return result


def _unit_moves(prices: _Prices, choices: Choices, *, remove: bool) -> list[_Move]:
    moves = []
    for group in choices.keep:
        score, cost = choices.keep_score[group], _unit_prices(prices, choices, group)
        for units in _unit_steps(choices, group, remove=remove):
            index = torch.tensor(units)
            sign = -1 if remove else 1
            moves.append(_Move(group, units, None, sign * float(cost[index].sum()), sign * float(score[index].sum())))
    return moves


def _unit_steps(choices: Choices, group: str, *, remove: bool) -> list[tuple[int, ...]]:
    """Sets of units that may go, or come back, next: single ones, or the block that leads to the next multiple."""
    keep, score, rule = choices.keep[group], choices.keep_score[group], choices.rules[group]
    candidates = torch.nonzero((keep if remove else ~keep) & torch.isfinite(score))[:, 0].tolist()
    candidates.sort(key=lambda u: float(score[u]), reverse=not remove)
    count = int(keep.sum())
    if remove:
        candidates = candidates[: max(0, count - rule.fewest(len(score)))]
    if not candidates or rule.multiple_of == 1:
        return [(u,) for u in candidates]
    size = count - rule.below(count) if remove else rule.above(count, len(score)) - count
    return [tuple(candidates[:size])]


def _width_moves(prices: _Prices, choices: Choices, *, up: bool) -> list[_Move]:
    """The next width up or down that costs otherwise, for every kept channel; tied channels move as one."""
    moves: list[_Move] = []
    for weight, column in choices.width.items():
        score, price = choices.width_score[weight], prices.column[weight]
        kept = choices.kept_channels(weight)
        target = _next_offered(score, price, column, up=up)
        for c in torch.nonzero(kept & (target >= 0))[:, 0].tolist():
            now, then = int(column[c]), int(target[c])
            cost, value = price[c, then] - price[c, now], score[c, then] - score[c, now]
            moves.append(_Move(weight, (c,), then, float(cost), float(value)))
    return _tie(moves, choices)


def _next_offered(score: Tensor, price: Tensor, column: Tensor, *, up: bool) -> Tensor:
    """[C], the preferred column of the nearest price above or below, -1 where there is none.

    A target stores several widths alike, and a width can be free: to stop at each of them would be to stop for good.
    """
    sign = 1 if up else -1
    ahead = sign * (price - price.gather(1, column[:, None]))
    margin = 1e-9 * price.abs().amax(1, keepdim=True)
    usable = torch.isfinite(score) & (ahead > margin)
    nearest = torch.where(usable, ahead, torch.inf).amin(1, keepdim=True)
    preferred = torch.where(usable & (ahead <= nearest + margin), score, -torch.inf)
    return torch.where(usable.any(1), preferred.argmax(1), -1)


def _tie(moves: list[_Move], choices: Choices) -> list[_Move]:
    """Merge the moves of channels that share one choice: a layer's, or a unit's across layers."""
    merged: dict[tuple[str, tuple[int, ...]], _Move] = {}
    for move in moves:
        where, index = _owner(move.where, move.index[0], choices)
        old = merged.get((where, index))
        if old is None:
            merged[where, index] = _Move(where, index, move.column, move.cost, move.value)
        else:
            value = old.value if where.startswith(_UNIT) else old.value + move.value
            merged[where, index] = _Move(where, index, move.column, old.cost + move.cost, value)
    return list(merged.values())


def _owner(weight: str, channel: int, choices: Choices) -> tuple[str, tuple[int, ...]]:
    """Whose choice a channel's width is: its own, its layer's (no index), or that of a unit ("unit:" + group)."""
    tied = choices.tied.get(weight)
    if tied == "layer":
        return weight, ()
    if tied == "unit":
        return next((_UNIT + g, (int(u[channel]),)) for g, u in choices.units[weight].items() if u[channel] >= 0)
    return weight, (channel,)


def _apply(move: _Move, choices: Choices) -> None:
    if move.column is None:
        units = list(move.index)
        choices.keep[move.where][units] = ~choices.keep[move.where][units]
    elif move.where.startswith(_UNIT):
        for weight, tied in choices.tied.items():
            unit = choices.units[weight].get(move.where.removeprefix(_UNIT))
            if tied == "unit" and unit is not None:
                choices.width[weight][unit == move.index[0]] = move.column
    else:
        choices.width[move.where][list(move.index) or slice(None)] = move.column


def _shrink(graph: Graph, cost: AbstractCost, limit: float, choices: Choices) -> None:
    while True:
        prices = _prices(graph, cost, choices)
        excess = prices.total - limit
        if excess <= 0:
            return
        moves = [*_unit_moves(prices, choices, remove=True), *_width_moves(prices, choices, up=False)]
        moves = [m for m in moves if m.cost < 0]
        assert moves, "a reachable limit, but no move saves anything"
        moves.sort(key=lambda m: max(-m.value, 0.0) / -m.cost)
        saved = 0.0
        for move in moves:
            if saved >= min(excess, _BATCH * prices.total):
                break
            if move.column is None and not _spare(move, choices):
                continue
            _apply(move, choices)
            saved -= move.cost


def _spare(move: _Move, choices: Choices) -> bool:
    """Whether a group can lose these units and keep enough."""
    keep = choices.keep[move.where]
    return int(keep.sum()) - len(move.index) >= choices.rules[move.where].fewest(len(keep))


def _fill(graph: Graph, cost: AbstractCost, limit: float, choices: Choices) -> None:
    """Take the preferred of the moves that still fit, until none does."""
    batch = _BATCH
    failed: set[tuple[str, tuple[int, ...], int | None]] = set()
    while True:
        prices = _prices(graph, cost, choices)
        room = limit - prices.total
        moves = [*_unit_moves(prices, choices, remove=False), *_width_moves(prices, choices, up=True)]
        moves = [m for m in moves if 0 < m.cost <= room and (m.where, m.index, m.column) not in failed]
        moves.sort(key=lambda m: -m.value)
        if not moves:
            return
        before = (
            {k: v.clone() for k, v in choices.keep.items()},
            {k: v.clone() for k, v in choices.width.items()},
        )
        spent, taken = 0.0, 0
        for move in moves:
            if spent + move.cost <= room and (taken == 0 or spent < batch * prices.total):
                _apply(move, choices)
                spent += move.cost
                taken += 1
        if _total(graph, cost, choices) > limit:  # moves raise each other's prices, a unit even its own
            choices.keep, choices.width = before
            if taken == 1:
                failed.add((moves[0].where, moves[0].index, moves[0].column))
            batch /= 4
