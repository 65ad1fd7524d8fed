"""Labels along tensor dimensions: which positions stand for the same channel.

Every channel that a layer makes is an *atom*. A labelled axis is an int array with the atom of each position;
ops copy, permute, repeat and join such arrays, and unite atoms that must be cut together. Dimensions without
channels (batch, space) have no labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axes:
    """Labels of one tensor.

    Attributes:
        labels: one entry per dimension, None where the dimension carries no channels.
        zero: whether an absent channel reads as zero here. False behind an op that maps zero elsewhere; a
            contraction that reads such a channel could not be cut exactly.
    """

    labels: tuple[Labels | None, ...]
    zero: bool = True

    @property
    def atoms(self) -> Labels:
        """All atoms on any dimension."""
        present = [a for a in self.labels if a is not None]
        return np.concatenate(present) if present else np.zeros(0, np.int64)


class Atoms:
    """Union-find over channels, with the axis each was born on and the reasons why some can't go."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._origin: list[int] = []
        self.origins: list[str] = []
        self.pins: dict[int, str] = {}

    def fresh(self, origin: str, count: int) -> Labels:
        """New atoms for the channels that a layer makes."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        self._origin += [len(self.origins)] * count
        self.origins.append(origin)
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """Representative of an atom's class: the oldest atom in it."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self, labels: Labels) -> Labels:
        """Representatives of many atoms."""
        return np.array([self.root(int(a)) for a in labels], np.int64)

    def unite(self, a: Labels, b: Labels) -> None:
        """Make positions of two axes stand for the same channels, one by one."""
        assert a.shape == b.shape, (a.shape, b.shape)
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.root(x), self.root(y)))
            self._parent[high] = low

    def pin(self, labels: Labels, reason: str) -> None:
        """Forbid removing these channels; the first reason is kept."""
        for atom in labels.tolist():
            self.pins.setdefault(atom, reason)

    def origin_of(self, atom: int) -> int:
        """Number of the axis an atom was born on."""
        return self._origin[atom]

    def __len__(self) -> int:
        return len(self._parent)


class AxisState:
    """Labels of all tensors and parameters while rules are applied in execution order."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.tensors: dict[str, Axes] = {}
        self.parameters: dict[str, tuple[Labels | None, ...]] = {}
        self.affine: dict[str, int] = {}

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

    def pin(self, tensor: str, reason: str) -> None:
        """Forbid removing any channel of a tensor."""
        self.atoms.pin(self.tensors[tensor].atoms, reason)
