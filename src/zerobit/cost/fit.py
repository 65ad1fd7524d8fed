"""Fitting a `MeasuredCost` to measurements, and finding out what the fit is worth.

Coefficients are those >= 0 of least squared *relative* error (C. L. Lawson, R. J. Hanson, "Solving Least Squares
Problems", 1974, as in scipy.optimize.nnls), for each op on its own. Which terms it has is chosen by cross-validation
within the rows it is made from: the tile size with the smallest error, then terms go whose absence costs nothing; of
two that are alike in a table, the later one.

Measurements are set apart by shape, never by row, since a shape at another width says nearly all of this one.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerobit.cost.measured import MeasuredCost, Quality
from zerobit.cost.measurements import OPS, Measurement, Table
from zerobit.cost.terms import Widths, amounts_of_rows, term
from zerobit.errors import BudgetError

#: Sizes of tiles of output channels that are tried; 1 is none.
TILES = (1, 4, 8, 16, 32)
#: A term stays only if the squared error without it is larger by this share.
_WORTH = 0.02
#: A term of a smaller share, on average, is what rounding left of one that isn't there.
_ROUNDING = 1e-9
#: Quarters: for what is held out, and within each fit.
_FOLDS = 4
#: Terms that cross-validation leaves alone: within one network others can look like them, and mislead elsewhere.
_KEPT = ("call", "macs")
_TERMS = {
    "conv": ("call", "windows", "reads", "macs", "inputs", "outputs", "weights", "weight_bytes"),
    "depthwise": ("call", "windows", "macs", "inputs", "outputs", "weights", "weight_bytes"),
    "linear": ("call", "windows", "macs", "inputs", "outputs", "weights", "weight_bytes"),
}
_TILED = {"conv": ("tiles", "tiled"), "depthwise": ("tiles",), "linear": ("tiles", "tiled")}

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Rows:
    """The measurements of one op.

    Attributes:
        design: term -> float64 [N].
        values: float64 [N], measured.
        shapes: which rows stay together.
    """

    design: dict[str, Vector]
    values: Vector
    shapes: tuple[tuple[object, ...], ...]

    def matrix(self, terms: Sequence[str]) -> Vector:
        """[N, terms], relative to what was measured."""
        return np.stack([self.design[name] for name in terms], 1) / self.values[:, None]

    def part(self, chosen: NDArray[np.bool_]) -> "_Rows":
        shapes = tuple(s for s, c in zip(self.shapes, chosen, strict=True) if c)
        return _Rows({k: v[chosen] for k, v in self.design.items()}, self.values[chosen], shapes)


def fit(table: Table, name: str, seed: int = 0) -> MeasuredCost:
    """A cost from measurements, and how well one without a quarter of them predicts those.

    Args:
        table: the measurements.
        name: of the cost.
        seed: of what is held out.

    Raises:
        BudgetError: there are no measurements.
    """
    if not table.rows:
        msg = f"`table` {table.source!r} has no rows; at least one is needed; measure some layers"
        raise BudgetError(msg)
    widths = Widths(*(tuple(sorted({b(row) for row in table.rows})) for b in _WIDTHS))
    qualities = {
        title: quality([pair for ours, theirs in parts for pair in predicted(ours, theirs, widths, seed)])
        for title, parts in (("channels", splits(table.rows, seed)), ("layers", layer_splits(table.rows)))
    }
    return MeasuredCost(
        name, table.unit, fit_terms(table.rows, widths, seed), widths, table.source, table.machine,
        table.channel_multiple, {title: quality for title, quality in qualities.items() if quality is not None},
    )  # fmt: skip


_WIDTHS: tuple[Callable[[Measurement], int], ...] = (lambda r: r.weight_bits, lambda r: r.activation_bits)


def splits(rows: Sequence[Measurement], seed: int) -> list[tuple[list[Measurement], list[Measurement]]]:
    """Rows to fit and rows to hold out, four times: each shape is held out once, with all its widths.

    A quarter of the shapes of every layer at a time, at random.

    Args:
        rows: all of them.
        seed: of the quarters.
    """
    folds = _folds([row.shape for row in rows], seed)
    return [
        (
            [r for r, out in zip(rows, fold, strict=True) if not out],
            [r for r, out in zip(rows, fold, strict=True) if out],
        )
        for fold in folds
    ]


def layer_splits(rows: Sequence[Measurement]) -> list[tuple[list[Measurement], list[Measurement]]]:
    """Rows to fit and rows to hold out, once for each layer: it is held out with all its channel counts and widths.

    Args:
        rows: all of them.
    """
    layers = sorted({row.layer for row in rows}, key=repr)
    return [([r for r in rows if r.layer != layer], [r for r in rows if r.layer == layer]) for layer in layers]


def fit_terms(rows: Sequence[Measurement], widths: Widths, seed: int = 0) -> dict[str, dict[str, float]]:
    """Op -> coefficient of each of its terms; terms of coefficient 0 are left out.

    Args:
        rows: measurements, of any ops.
        widths: that were measured.
        seed: of the cross-validation.
    """
    result = {}
    for op in OPS:
        chosen = [row for row in rows if row.op == op]
        if chosen:
            ours = _prepare(op, chosen, widths)
            terms = _chosen_terms(op, ours, widths, seed)
            matrix = ours.matrix(terms)
            found = zip(terms, _solve(matrix), matrix.mean(0), strict=True)
            result[op] = {t: float(c) for t, c, mean in found if c * mean > _ROUNDING}
    return result


def _prepare(op: str, rows: Sequence[Measurement], widths: Widths) -> _Rows:
    amounts = amounts_of_rows(rows, widths)
    names = (*_TERMS[op], *_wider(widths), *(f"{kind}/{t}" for kind in _TILED[op] for t in TILES[1:]))
    design = {name: term(name, amounts, widths).numpy() for name in names}
    return _Rows(design, np.array([row.value for row in rows]), tuple(row.shape for row in rows))


def _wider(widths: Widths) -> tuple[str, ...]:
    weights = tuple(f"macs_w>{b}" for b in widths.weights[:-1])
    return weights + tuple(f"macs_a>{b}" for b in widths.activations[:-1])


def _chosen_terms(op: str, rows: _Rows, widths: Widths, seed: int) -> tuple[str, ...]:
    """By cross-validation over shapes; where there are too few of them, arithmetic and the overhead of a call."""
    folds = _folds(rows.shapes, seed)
    if len(folds) < _FOLDS:
        return ("macs",) if len(folds) == 1 else _KEPT
    plain = (*_TERMS[op], *_wider(widths))
    options = [plain] + [(*plain, *(f"{kind}/{t}" for kind in _TILED[op])) for t in TILES[1:]]
    errors = [_validated(rows, folds, option) for option in options]
    terms, error = options[int(np.argmin(errors))], min(errors)
    while set(terms) - set(_KEPT):
        fewer = [tuple(t for t in terms if t != gone) for gone in reversed(terms) if gone not in _KEPT]
        without = [_validated(rows, folds, option) for option in fewer]
        if min(without) > error * (1 + _WORTH) + 1e-20:
            break
        terms, error = fewer[int(np.argmin(without))], min(min(without), error)
    return terms


def _folds(shapes: Sequence[tuple[object, ...]], seed: int) -> list[NDArray[np.bool_]]:
    """Masks of the rows that each fold leaves out: of every layer about as many of its shapes."""
    distinct = sorted(set(shapes), key=repr)
    random.Random(seed).shuffle(distinct)
    distinct.sort(key=lambda shape: repr(shape[:-2]))
    of = {shape: i % _FOLDS for i, shape in enumerate(distinct)}
    number = np.array([of[shape] for shape in shapes])
    return [number == i for i in sorted(set(number.tolist()))]


def _validated(rows: _Rows, folds: Sequence[NDArray[np.bool_]], terms: Sequence[str]) -> float:
    """Mean squared relative error over the folds."""
    matrix = rows.matrix(terms)
    errors = [matrix[fold] @ _solve(matrix[~fold]) - 1 for fold in folds]
    return float(np.mean(np.concatenate(errors) ** 2))


def _solve(relative: Vector) -> Vector:
    """Coefficients >= 0 that make `relative @ coefficients` closest to 1; columns are scaled to length 1 first."""
    from scipy.optimize import nnls  # heavy; only fits need it

    length = np.linalg.norm(relative, axis=0)
    length[length == 0] = 1
    return nnls(relative / length, np.ones(len(relative)))[0] / length


def predicted(
    ours: Sequence[Measurement], theirs: Sequence[Measurement], widths: Widths, seed: int
) -> list[tuple[float, float]]:
    """(predicted, measured) of `theirs` by a fit to `ours`; rows of an op that `ours` lacks are left out.

    Args:
        ours: to fit.
        theirs: to predict.
        widths: that were measured.
        seed: of the cross-validation.
    """
    terms = fit_terms(ours, widths, seed)
    pairs: list[tuple[float, float]] = []
    for op, coefficients in terms.items():
        rows = [row for row in theirs if row.op == op]
        if rows:
            amounts = amounts_of_rows(rows, widths)
            found = sum((term(t, amounts, widths).numpy() * c for t, c in coefficients.items()), np.zeros(len(rows)))
            pairs += zip(found.tolist(), (row.value for row in rows), strict=True)
    return pairs


def quality(pairs: Sequence[tuple[float, float]]) -> Quality | None:
    """Median relative error and rank correlation of (predicted, measured); None for fewer than three.

    Args:
        pairs: what was predicted, and what was measured.
    """
    from scipy.stats import spearmanr

    if len(pairs) < 3:
        return None
    # Nine digits: what differs by rounding alone is a tie.
    predicted, measured = np.array([[float(f"{value:.9g}") for value in pair] for pair in pairs]).T
    if not (np.ptp(predicted) and np.ptp(measured)):
        return None
    error = float(np.median(np.abs(predicted / measured - 1)))
    correlation: Any = spearmanr(predicted, measured)
    return Quality(len(pairs), error, float(correlation.statistic))
