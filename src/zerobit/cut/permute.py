"""Which units of a group stay, and with which widths, where it is given how many do.

Units of a group cost alike: exchanging two, with the widths of all their channels, changes no cost. So those that stay
are assigned to the places of the group that are worth most to them.
Shape legend: U units of a group, P places, each with the widths of the unit that stands there now.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from zerobit.cut.choices import Floats, Ints, Selection

#: Units up to which a group is assigned anew; it takes their cube.
_UNITS = 128


def permute(selection: Selection) -> None:
    """Assign the units of every group to its places, in place; groups are left alone whose units aren't alike."""
    for group, place in selection.offer.units.items():
        rows = _rows(selection, group)
        if rows is not None and place.stop - place.start <= _UNITS:
            _assign(selection, place, rows)


def _rows(selection: Selection, group: str) -> Ints | None:
    """[U, R], owners of the channels of each unit, the same R channels of each; None where channels are not their own.

    Channels of two groups, owners of several units and units of different extent are not exchanged.
    """
    offer = selection.offer
    place = offer.units[group]
    units = place.stop - place.start
    columns: list[Ints] = []
    for weight, by_group in offer.unit.items():
        own = [unit for unit in by_group if ((unit >= place.start) & (unit < place.stop)).any()]
        if not own:
            continue
        inside = np.flatnonzero(own[0] >= 0)
        owners = offer.owner[weight][inside]
        counts = np.bincount(own[0][inside] - place.start, minlength=units)
        if len(by_group) > 1 or (counts != counts[0]).any() or len(np.unique(owners)) < len(owners):
            return None
        order = np.argsort(own[0][inside], kind="stable")
        columns.append(owners[order].reshape(units, -1))
    return np.concatenate(columns, axis=1) if columns else None


def _assign(selection: Selection, place: slice, rows: Ints) -> None:
    offer = selection.offer
    free = np.flatnonzero(np.isfinite(offer.keep_score[place]))
    kept = free[selection.keep[place][free]]
    if not len(kept) or len(kept) == len(free) == 1:
        return
    value = _values(selection, offer.keep_value[place][free], rows[free], rows[kept])
    if not np.isfinite(value).all():  # a width that not all units are offered
        return
    unit, slot = linear_sum_assignment(value, maximize=True)
    columns = selection.column[rows[kept]]
    selection.keep[place.start + free] = False
    selection.keep[place.start + free[unit]] = True
    selection.column[rows[free[unit]]] = columns[slot]


def _values(selection: Selection, keep: Floats, rows: Ints, places: Ints) -> Floats:
    """[U, P], value of each unit at each place."""
    value = np.repeat(keep[:, None], len(places), axis=1)
    for own, other in zip(rows.T, places.T, strict=True):
        value += selection.offer.width_value[own][:, selection.column[other]]
    return value
