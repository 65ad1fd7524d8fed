"""What a search offers and prefers, and a selection from it, as flat arrays.

Every unit of every group, and every owner of a width, has a place in an array, so that thousands of channels are
compared in one expression. A width is owned by an output channel, by a layer, or by a unit across layers.

A selection's value is a sum over the steps it takes: one for each unit that stays and one for each width that a channel
is raised above its narrowest. A step that the search took is worth its log odds; one that it did not take is worth a
little, less the surer the search was: what is left of a budget is spent on something.
Shape legend: U units of all groups, O owners, C output channels of a weight, N of all weights, B = len(GRID).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from zerobit.bits import BitDist, NetBits
from zerobit.formats import GRID
from zerobit.search.choice import UnitRule

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_EYE = torch.eye(len(GRID), dtype=torch.float64)
#: Least value of a step that the search took, and what one that it did not take is worth beside it.
_TAKEN = 0.2
_UNTAKEN = 1e-4
#: However sure the search was, a step is worth more than nothing.
_LEAST = 1e-8


def step_value(log_odds: Floats) -> Floats:
    """Value of taking a step, positive: its log odds where the search took it, next to nothing where it did not.

    The weights were trained with the steps that were taken: a selection that trades one of them for some that were not
    is another network, however even the odds are.
    """
    untaken = _UNTAKEN * np.exp(np.minimum(log_odds, 0.0)) + _LEAST / (1 + np.maximum(-log_odds, 0))
    return np.where(log_odds > 0, _TAKEN + log_odds, untaken)


@dataclass(frozen=True, eq=False)
class Offer:
    """What can be chosen, and what each choice is worth.

    Attributes:
        units: group -> its place among all units.
        rules: group -> how many of its units may stay.
        keep_score: [U], log odds of staying; +inf where a unit must stay.
        owner: weight -> [C], owner of each output channel's width.
        width_score: [O, B], log preference of each grid column; -inf where it is not offered.
        channels: [O], output channels that each owner's preference speaks for.
        unit: weight -> for each group that removes rows of it, [C] unit of each output channel, -1 where it is not of
            this group.
        activations: as chosen.
        searched: [U], units that the search keeps; all if None.
    """

    units: Mapping[str, slice]
    rules: Mapping[str, UnitRule]
    keep_score: Floats
    owner: Mapping[str, Ints]
    width_score: Floats
    channels: Floats
    unit: Mapping[str, tuple[Ints, ...]]
    activations: Mapping[str, BitDist]
    searched: Bools | None = None

    @cached_property
    def rows(self) -> Mapping[str, slice]:
        """Weight -> place of its output channels among those of all weights, N."""
        ends = np.cumsum([0, *(len(owner) for owner in self.owner.values())]).tolist()
        return {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.owner)}

    @cached_property
    def channel_owner(self) -> Ints:
        """[N], owner of each output channel's width."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.owner.values()])

    @cached_property
    def channel_units(self) -> Ints:
        """[G, N], the units that each output channel goes with, -1 where there is no further one."""
        most = max((len(units) for units in self.unit.values()), default=0)
        result = np.full((most, len(self.channel_owner)), -1, dtype=np.int64)
        for weight, units in self.unit.items():
            result[: len(units), self.rows[weight]] = np.stack(units) if units else -1
        return result

    @cached_property
    def units_channels(self) -> tuple[Ints, Ints]:
        """([P], [P]), all pairs of a unit and an output channel that goes with it, in order of the channels."""
        channel, place = np.nonzero(self.channel_units.T >= 0)
        return self.channel_units[place, channel], channel

    @cached_property
    def keep_value(self) -> Floats:
        """[U], value of each unit that stays."""
        return step_value(np.minimum(self.keep_score, 1e3))

    @cached_property
    def width_value(self) -> Floats:
        """[O, B], value of each width above the narrowest offered, -inf where it is not offered.

        Preferences are made to rise up to the preferred width and to fall from there, so that each step towards it was
        taken and each step beyond it was not.
        """
        score = np.maximum(self.width_score, -1e3)
        rising = np.maximum.accumulate(score, axis=1)
        falling = np.maximum.accumulate(score[:, ::-1], axis=1)[:, ::-1]
        offered = np.isfinite(self.width_score)
        best = score.argmax(1)[:, None]
        columns = np.arange(len(GRID))[None]
        envelope = np.where(columns <= best, rising, falling)
        result = np.full_like(score, -np.inf)
        below = np.full(len(score), np.nan)
        value = np.zeros(len(score))
        for j in range(len(GRID)):
            here = offered[:, j]
            first = np.isnan(below)
            step = step_value(np.where(first, 0.0, envelope[:, j] - np.nan_to_num(below)))
            value = np.where(here & ~first, value + self.channels * step, value)
            result[here, j] = value[here]
            below = np.where(here, envelope[:, j], below)
        # a channel that the search removed took no step, whatever width it would have had
        result[~self._trained_owners()] *= _UNTAKEN
        return result

    def _trained_owners(self) -> Bools:
        """[O], whether the search keeps a channel of each owner."""
        if self.searched is None:
            return np.ones(len(self.width_score), dtype=bool)
        return Selection(self, self.searched, np.zeros(len(self.width_score), dtype=np.int64)).owned() > 0

    @cached_property
    def owners_of_unit(self) -> csr_matrix:
        """[U, O], 1 where an owner has channels in one unit only: it goes with it."""
        unit, channel = self.units_channels
        owner = self.channel_owner[channel]
        shape = len(self.keep_score), len(self.width_score)
        shared = csr_matrix((np.ones(len(unit)), (unit, owner)), shape=shape)
        channels = np.bincount(self.channel_owner, minlength=shape[1])
        shared.data = (shared.data >= channels[shared.indices]).astype(np.float64)
        return shared

    @cached_property
    def owner_family(self) -> Ints:
        """[O], owners whose channels cost alike: those of one weight."""
        family = np.zeros(len(self.width_score), dtype=np.int64)
        for number, owners in enumerate(self.owner.values()):
            family[owners] = number
        return family

    @cached_property
    def unit_family(self) -> Ints:
        """[U], number of each unit's group."""
        sizes = [place.stop - place.start for place in self.units.values()]
        return np.repeat(np.arange(len(sizes)), sizes)


@dataclass(eq=False)
class Selection:
    """One choice for everything; owners of channels that are removed keep theirs, as if they stayed.

    Attributes:
        offer: what it selects from.
        keep: [U], whether each unit stays.
        column: [O], grid column of each owner.
    """

    offer: Offer
    keep: Bools
    column: Ints

    def copy(self) -> "Selection":
        """Independent of this one."""
        return Selection(self.offer, self.keep.copy(), self.column.copy())

    def take(self, other: "Selection") -> None:
        """Become equal to another one."""
        self.keep[:], self.column[:] = other.keep, other.column

    def key(self) -> bytes:
        """Equal for equal selections from the same offer."""
        return self.keep.tobytes() + self.column.tobytes()

    def kept_channels(self, weight: str) -> Bools:
        """[C], whether each output channel stays."""
        return self._stays(self.offer.channel_units[:, self.offer.rows[weight]])

    def all_kept(self) -> Bools:
        """[N], whether each output channel of each weight stays."""
        return self._stays(self.offer.channel_units)

    def _stays(self, units: Ints) -> Bools:
        stays: Bools = np.append(self.keep, True)[units]
        return np.logical_and.reduce(stays, axis=0)

    def owned(self) -> Ints:
        """[O], output channels of each owner that stay."""
        return np.bincount(self.offer.channel_owner[self.all_kept()], minlength=len(self.column))

    def columns(self, weight: str) -> Ints:
        """[C], grid column of each output channel, 0 where it is removed."""
        return np.where(self.kept_channels(weight), self.column[self.offer.owner[weight]], 0)

    def all_columns(self) -> Ints:
        """[N], grid column of each output channel of each weight, 0 where it is removed."""
        return np.where(self.all_kept(), self.column[self.offer.channel_owner], 0)

    def bits(self, weight: str) -> list[int]:
        """[C], width of each output channel, 0 where it is removed."""
        return [GRID[c] for c in self.columns(weight)]

    def kept(self, group: str) -> list[int]:
        """Units of a group that stay, ascending."""
        return np.flatnonzero(self.keep[self.offer.units[group]]).tolist()

    def net_bits(self, *, differentiable: bool = False) -> NetBits:
        """As one-hot distributions, optionally leaves that gradients reach."""
        keep = {
            name: torch.from_numpy(self.keep[place]).double().requires_grad_(differentiable)
            for name, place in self.offer.units.items()
        }
        rows = _EYE[torch.from_numpy(self.all_columns())]
        weights = {name: BitDist(rows[place].requires_grad_(differentiable)) for name, place in self.offer.rows.items()}
        return NetBits(keep, weights, self.offer.activations)

    def unit_value(self) -> Floats:
        """[U], value of each unit and of the widths that go with it; 0 for one that must stay."""
        offer = self.offer
        keep = np.where(np.isfinite(offer.keep_score), offer.keep_value, 0.0)
        return keep + offer.owners_of_unit @ offer.width_value[np.arange(len(self.column)), self.column]

    def value(self) -> float:
        """Sum over the steps taken; the smallest selection has the least."""
        offer, alive = self.offer, self.owned() > 0
        free = np.isfinite(offer.keep_score)
        widths = offer.width_value[np.arange(len(self.column)), self.column]
        return float(offer.keep_value[self.keep & free].sum() + widths[alive].sum())


def together(selections: Sequence[Selection]) -> NetBits:
    """Several selections of one offer as one-hot distributions with a leading dimension."""
    offer = selections[0].offer
    keep = np.stack([s.keep for s in selections])
    units = {name: torch.from_numpy(keep[:, place]).double() for name, place in offer.units.items()}
    rows = _EYE[torch.from_numpy(np.stack([s.all_columns() for s in selections]))]
    weights = {name: BitDist(rows[:, place]) for name, place in offer.rows.items()}
    return NetBits(units, weights, offer.activations)


def preferred(offer: Offer, keep: Bools) -> Selection:
    """The preferred width everywhere, with given units."""
    return Selection(offer, keep.copy(), offer.width_score.argmax(1).astype(np.int64))


def smallest(offer: Offer) -> Selection:
    """Every group at its fewest units, everything at its narrowest width."""
    keep = np.isinf(offer.keep_score)
    for name, place in offer.units.items():
        score = offer.keep_score[place]
        fewest = offer.rules[name].fewest(len(score))
        if int(keep[place].sum()) < fewest:
            keep[place.start + np.argsort(-score, kind="stable")[:fewest]] = True
    return Selection(offer, keep, np.isfinite(offer.width_score).argmax(1).astype(np.int64))
