"""Labels along tensor dimensions: which positions stand for the same channel.

Every channel that a layer makes is an *atom*. A labelled axis is an int array with the atom of each position;
ops copy, permute, repeat and join such arrays, and unite atoms that must be cut together. Dimensions without
channels (batch, space) have no labels.

Where an axis is laid out as several (channels into heads), a tensor stays a tensor only if what is kept forms a
product. Such places are noted as a `Product` and settled when all else is known: one of the factors carries the
units, the others stay whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.graph.ir import Shape

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axes:
    """Labels of one tensor.

    Attributes:
        labels: one entry per dimension, None where the dimension carries no channels.
        spoilers: names of the tensors because of which an absent channel does not read as zero here: what an op made
            that maps zero elsewhere, a parameter that is added. With these masked, it does.
        stays: why no channel can go once the tensor is read, or None.
    """

    labels: tuple[Labels | None, ...]
    spoilers: frozenset[str] = frozenset()
    stays: str | None = None

    @property
    def zero(self) -> bool:
        """Whether an absent channel reads as zero."""
        return not self.spoilers or all(labels is None for labels in self.labels)

    @property
    def atoms(self) -> Labels:
        """All atoms on any dimension."""
        present = [a for a in self.labels if a is not None]
        return np.concatenate(present) if present else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Product:
    """An axis that is the product of several in another tensor.

    Attributes:
        op: where the one becomes the other.
        flat: labels of the whole axis, in row-major order of the factors.
        factors: labels of each factor, at least two.
    """

    op: str
    flat: Labels
    factors: tuple[Labels, ...]


class Atoms:
    """Union-find over channels, with the axis each was born on and the reasons why some can't go."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._origin: list[int] = []
        self._held: list[bool] = []
        self._head: list[bool] = []
        self._made: list[bool] = []
        self.origins: list[str] = []
        self.pins: dict[int, str] = {}

    def fresh(self, origin: str, count: int) -> Labels:
        """New atoms for the channels that a layer makes."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        self._origin += [len(self.origins)] * count
        self._held += [False] * count
        self._head += [False] * count
        self._made += [bool(origin)] * count
        self.origins.append(origin)
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """Representative of an atom's class: the oldest atom in it."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self) -> Labels:
        """Representative of every atom."""
        return np.array([self.root(atom) for atom in range(len(self._parent))], np.int64)

    def unite(self, a: Labels, b: Labels) -> None:
        """Make positions of two axes stand for the same channels, one by one."""
        assert a.shape == b.shape, (a.shape, b.shape)
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            low, high = sorted((self.root(x), self.root(y)))
            self._parent[high] = low
            self._held[low] |= self._held[high]
            self._head[low] |= self._head[high]
            self._made[low] |= self._made[high]

    def pin(self, labels: Labels, reason: str) -> None:
        """Forbid removing these channels; the first reason is kept."""
        for atom in labels.ravel().tolist():
            self.pins.setdefault(atom, reason)
            self._held[self.root(atom)] = True

    def is_pinned(self, atom: int) -> bool:
        """Whether anything forbids removing a channel."""
        return self._held[self.root(atom)]

    def mark_heads(self, labels: Labels) -> None:
        """Note that products of matrices run side by side on these."""
        for atom in labels.ravel().tolist():
            self._head[self.root(atom)] = True

    def is_head(self, atom: int) -> bool:
        """Whether products of matrices run side by side on a channel."""
        return self._head[self.root(atom)]

    def is_made(self, atom: int) -> bool:
        """Whether a layer makes a channel."""
        return self._made[self.root(atom)]

    def origin_of(self, atom: int) -> int:
        """Number of the axis an atom was born on."""
        return self._origin[atom]

    def __len__(self) -> int:
        return len(self._parent)


class AxisState:
    """Labels of all tensors and parameters while rules are applied in execution order.

    Attributes:
        atoms: all channels.
        tensors: labels of the activations so far.
        parameters: labels of the parameters so far.
        masked: names of the tensors that a mask must zero: results of layers, and what would spoil a zero.
        products: places where an axis is laid out as several.
        shapes: of all activations and parameters.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.atoms = Atoms()
        self.tensors: dict[str, Axes] = {}
        self.parameters: dict[str, tuple[Labels | None, ...]] = {}
        self.masked: set[str] = set()
        self.products: list[Product] = []
        self.shapes = shapes

    def axes(self, name: str) -> Axes:
        """Labels of an operand; a parameter that no layer has labelled yet gets channels of its own."""
        if name in self.tensors:
            return self.tensors[name]
        if name not in self.parameters:
            sizes = self.shapes[name]
            self.parameters[name] = tuple(self.atoms.fresh("", n) if n > 1 else None for n in sizes)
        return Axes(self.parameters[name], frozenset({name}))

    def label_parameter(self, name: str, labels: tuple[Labels | None, ...]) -> None:
        """Say which channels a parameter's dimensions hold; a second use unites them with the first."""
        known = self.parameters.get(name)
        if known is None:
            self.parameters[name] = labels
            return
        for old, new in zip(known, labels, strict=True):
            if old is not None and new is not None:
                self.atoms.unite(old, new)
            elif old is not None or new is not None:
                lone = old if old is not None else new
                assert lone is not None
                self.atoms.pin(lone, f"`{name}` is used twice, once where its channels can't be told apart")

    def require_zero(self, axes: Axes) -> None:
        """Let the absent channels of a tensor read as zero: mask what spoils it."""
        if not axes.zero:
            self.masked |= axes.spoilers

    def pin(self, tensor: str, reason: str) -> None:
        """Forbid removing any channel of a tensor."""
        self.atoms.pin(self.axes(tensor).atoms, reason)

    def pin_axis(self, labels: Labels | None, reason: str) -> None:
        """Forbid removing the channels of an axis, if it has any."""
        if labels is not None:
            self.atoms.pin(labels, reason)

    def meet(self, column: Iterable[Labels | None], reason: str) -> Labels | None:
        """Unite axes of equal size; where one has no channels, those of the others stay, for this reason."""
        axes = list(column)
        present = [labels for labels in axes if labels is not None]
        if not present:
            return None
        for other in present[1:]:
            self.atoms.unite(present[0], other)
        if len(present) == len(axes):
            return present[0]
        self.atoms.pin(present[0], reason)
        return None
