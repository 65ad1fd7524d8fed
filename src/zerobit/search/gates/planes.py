"""A gate without parameters: a unit goes once the bit planes of its weights have lost a share of their norm."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zerobit.quant.fake import straight_through
from zerobit.search.choice import AbstractGroupChoice, Sample, UnitRule, ranks
from zerobit.search.widths.planes import LASSO_EPS, VANISHED, PlaneQuantizer


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Which rows of a weight belong to the units of a group.

    Attributes:
        quantizer: of the weight.
        unit: int64 [C], the unit of each row, -1 for none.
    """

    quantizer: PlaneQuantizer
    unit: Tensor

    def total(self, rows: Tensor, units: int) -> Tensor:
        """[units], sum of what belongs to each unit.

        Args:
            rows: [C].
            units: number of units.
        """
        unit = self.unit.to(rows.device)
        return rows.new_zeros(units).index_add(0, unit[unit >= 0], rows[unit >= 0])


#: The least important unit goes once its norm is below this share of what was written, the most important one last, as
#: planes do. (Digits task, size 12 %: with one share for all units they go at once, and accuracy with them.)
_FIRST_GONE = 0.9
#: Odds are not smaller, so that their logarithms are finite; nor are those of what just stays or just goes equal.
_LEAST_ODDS = 1e-9


class PlaneGate(AbstractGroupChoice):
    """Whether the units of a group stay, as their planes say.

    A cost sees the norm of all digits of a unit behind the hard choice: its gradient is that of a group lasso with the
    unit as the group, which drives whole units to zero. The forward pass has the hard choice without a
    gradient: that of the digits is there already.

    Args:
        units: number of units.
        rule: how many units may stay.
    """

    share: Tensor

    def __init__(self, units: int, rule: UnitRule) -> None:
        super().__init__("hard")
        self.units, self.rule = units, rule
        self.register_buffer("share", torch.full((units,), VANISHED))
        # a tuple is no submodule: planes belong to their weights, whose parameters must not be listed twice
        self.rows: tuple[UnitRows, ...] = ()

    def bind(self, rows: Iterable[UnitRows]) -> None:
        """Follow the planes of these weights; those of which none is followed stay."""
        self.rows = tuple(rows)

    def norm(self) -> Tensor:
        """[units], norm of all digits of each unit: the term of a group lasso over units."""
        squares = [rows.total(rows.quantizer.planes.squares().sum(0), self.units) for rows in self.rows]
        return (LASSO_EPS + torch.stack(squares).sum(0)).sqrt()

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units], norm of each unit's digits relative to what was written, no gradient; 1 where that is nothing."""
        del noise
        if not self.rows:
            return torch.ones_like(self.share)
        planes = [(rows, rows.quantizer.planes) for rows in self.rows]
        now = torch.stack([rows.total(p.known_squares().sum(0), self.units) for rows, p in planes]).sum(0)
        then = torch.stack([rows.total(p.written.sum(0), self.units) for rows, p in planes]).sum(0)
        return torch.where(then > 0, now / then.clamp_min(LASSO_EPS), 1.0).sqrt()

    @torch.no_grad()
    def order(self, importance: Tensor) -> None:
        """Let important units go at a smaller share of their norm, in place.

        Under a price that all units pay alike their digits shrink alike; units that went at one share would go at once.

        Args:
            importance: [units], larger is more important.
        """
        rank = ranks(importance).to(self.share)
        self.share.copy_(_FIRST_GONE - (_FIRST_GONE - VANISHED) * rank / max(1, len(rank) - 1))

    @torch.no_grad()
    def wanted(self) -> Tensor:
        """Bool [units], units that have kept their share, and of which an integer is not zero; before the rule."""
        if not self.rows:
            return torch.ones_like(self.share, dtype=torch.bool)
        found = []
        for rows in self.rows:
            integers = rows.quantizer.planes.clipped(rows.quantizer.planes.known_sums())
            found.append(rows.total(integers.abs().sum(1), self.units) > 0)
        return torch.stack(found).any(0) & (self.probability() >= self.share)

    def gone(self) -> Iterator[tuple[PlaneQuantizer, Tensor]]:
        """Of each weight, bool [C]: its rows in units that are gone."""
        gone = torch.cat([~self.hard(), torch.zeros(1, dtype=torch.bool, device=self.share.device)])
        for rows in self.rows:
            yield rows.quantizer, gone[rows.unit.to(gone.device)]

    @torch.no_grad()
    def hard(self) -> Tensor:
        """[units], bool: as many of those wanted as the rule allows."""
        return self.rule.apply(self.wanted(), self.log_odds())

    def keep(self, *, hard: bool) -> Tensor:
        """[units]."""
        stays = self.hard().double()
        return stays if hard or not self.rows else straight_through(stays, self.norm().double())

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """[units], how far the norm is above the share at which the unit goes; negative where it is gone."""
        odds = (self.probability().double() / self.share).clamp_min(_LEAST_ODDS).log()
        return torch.where(self.wanted(), odds.clamp_min(0.0) + _LEAST_ODDS, -odds.abs() - _LEAST_ODDS)

    def forward(self) -> Sample:
        """The hard choice as factors."""
        return Sample(self.hard().to(torch.get_default_dtype()))

    def extra_repr(self) -> str:
        """Number of units."""
        return f"units={self.units}"
