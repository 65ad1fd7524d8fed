"""What a network costs; every cost is a differentiable function of the widths."""

from zerobit.cost.analytic import Bops, Macs, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.table import TableLatency, target_names

__all__ = ["AbstractCost", "Bops", "Macs", "Size", "TableLatency", "target_names"]
