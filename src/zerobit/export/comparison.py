"""Layer by layer: what a file computed against what its twin computed, for every runtime.

Shape legend: N batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

#: Most random inputs of one kind.
_RANDOM = 64


@dataclass(frozen=True)
class LayerComparison:
    """One tensor on one set of inputs.

    Attributes:
        layer: name of the tensor in the integer graph, which is that of the layer that makes it.
        inputs: what was fed.
        values: values compared.
        differences: how many differ.
        largest: largest absolute difference, in steps of the tensor's integers; of float logits in their own unit.
    """

    layer: str
    inputs: str
    values: int
    differences: int
    largest: float


def compare_tensors(
    order: Sequence[str], found: Mapping[str, Array], wanted: Mapping[str, Array], inputs: str
) -> list[LayerComparison]:
    """Compare tensors by name.

    Args:
        order: names in order of execution; the first row with differences is the first layer that diverges.
        found: what the file made, [N, *shape] by name; integers, or float logits.
        wanted: what the twin made. Both have all names in `order`, in equal shapes; other names are ignored.
        inputs: what was fed, for the rows.

    Returns:
        A row for each name.
    """
    return [_compared(name, found[name], wanted[name], inputs) for name in order]


def _compared(name: str, found: Array, wanted: Array, inputs: str) -> LayerComparison:
    assert found.shape == wanted.shape, f"{name}: {found.shape} against {wanted.shape}"
    gap = gaps(found, wanted)
    return LayerComparison(name, inputs, gap.size, int((gap != 0).sum()), float(gap.max(initial=0.0)))


def joined(parts: Iterable[Sequence[LayerComparison]]) -> list[LayerComparison]:
    """Rows of several batches of one set of inputs as rows of the whole set.

    Args:
        parts: rows of each batch, of the same layers in the same order.
    """
    return [_sum_of(rows) for rows in zip(*parts, strict=True)]


def _sum_of(rows: Sequence[LayerComparison]) -> LayerComparison:
    values, differences = sum(row.values for row in rows), sum(row.differences for row in rows)
    return replace(rows[0], values=values, differences=differences, largest=max(row.largest for row in rows))


def gaps(a: Array, b: Array) -> NDArray[np.float64]:
    """Absolute differences of two arrays; 0 where both are the same infinity or no number."""
    one, two = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - two)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    return np.where(same, 0.0, np.nan_to_num(gap, nan=np.inf))


def input_sets(
    samples: Mapping[str, Array], seed: int, *, whole: bool = False
) -> Iterator[tuple[str, dict[str, Array]]]:
    """What files are compared on: real samples, and random extremes.

    Args:
        samples: real inputs by name, [N, ...].
        seed: of the random ones.
        whole: make as many random inputs as there are samples, for networks that take one size only; else at most
            64.

    Yields:
        A title, and inputs by name.
    """
    rng = np.random.default_rng(seed)
    yield "samples", dict(samples)
    yield "random extremes", {name: _extremes(x, rng, whole=whole) for name, x in samples.items()}


def _extremes(x: Array, rng: np.random.Generator, *, whole: bool) -> Array:
    """Inputs far outside the data: every value at one of the ends, or well beyond; of integers, those there are."""
    if x.ndim == 0:
        return x
    count = len(x) if whole else min(len(x), _RANDOM)
    if not np.issubdtype(x.dtype, np.floating):
        return rng.choice(np.unique(x), size=(count, *x.shape[1:]))
    low, high = float(x.min()), float(x.max())
    spread = max(high - low, 1.0)
    corners = np.array([low - spread, low, (low + high) / 2, high, high + spread], np.float32)
    return rng.choice(corners, size=(count, *x.shape[1:]))
