"""Amounts as people write and read them: "25%", "64kB", "5ms"."""

import math
import re

from zerobit.cost.base import AbstractCost
from zerobit.errors import BudgetError

#: Of things that are counted, in either case; and of seconds and joules, where m is not M.
_UNITS = {"": 1.0, "k": 1e3, "ki": 1024.0, "m": 1e6, "mi": 1024.0**2, "g": 1e9, "gi": 1024.0**3}
_SMALL_UNITS = {"": 1.0, "k": 1e3, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_limit(cost: AbstractCost, limit: str | float) -> tuple[float, bool]:
    """(amount, whether it is a share of the 8-bit network) of "25%", "64kB", "48 KiB" or a number.

    Raises:
        BudgetError: the text can't be read, the unit is another cost's, or the amount is not positive.
    """
    text = str(limit).strip()
    share = text.endswith("%")
    match = _AMOUNT.fullmatch(text.removesuffix("%"))
    amount = _number(match.group(1)) if match else None
    letters = match.group(2) if match else ""
    prefix, prefixes = _prefix(letters, cost.unit)
    if amount is None or not 0 < amount < math.inf or prefix not in prefixes or (share and letters):
        msg = (
            f"`budget` for {cost.name} is {text!r}; allowed are a positive number, a number with a unit like "
            f"'64k{cost.unit}', or a percentage of the 8-bit network like '25%'; write one of these"
        )
        raise BudgetError(msg)
    scale = 0.01 if share else prefixes[prefix]
    return amount * scale, share


def _prefix(letters: str, unit: str) -> tuple[str, dict[str, float]]:
    """The prefix before a unit, and those that the unit may have."""
    if unit in ("s", "J"):
        return letters.removesuffix(unit), _SMALL_UNITS
    letters = letters.lower()
    units = (unit.lower() + "s", unit.lower()) if unit else ()
    return next((letters.removesuffix(u) for u in units if letters.endswith(u)), letters), _UNITS


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def written(value: float, unit: str) -> str:
    """A value with its unit: "19,339 B", "0.42 ms"; of seconds and joules with a prefix, "5.21 ms"."""
    if unit not in ("s", "J"):
        return f"{value:,.0f} {unit}" if value >= 1000 or value == int(value) else f"{value:.4g} {unit}"
    prefix = next((p for p in ("", "m", "u") if value >= _SMALL_UNITS[p]), "n")
    return f"{value / _SMALL_UNITS[prefix]:.4g} {prefix}{unit}"
