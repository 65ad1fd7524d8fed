"""Latency from a table of throughputs: one TOML file per device.

cycles = sum over layers, weight widths w and activation widths a of p_a * MACs_w / table[a][w].
"""

import sys
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from zerobit.bits import BitDist
from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.errors import BudgetError
from zerobit.formats import GRID

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class TableLatency(AbstractCost):
    """Cycles of a device whose throughput depends on the widths of weight and activation.

    Attributes:
        name: of the device.
        weight_bits: columns of the table.
        activation_bits: rows of the table.
        macs_per_cycle: throughput, [row][column].
        source: where the figures are from.
    """

    name: str
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    macs_per_cycle: tuple[tuple[float, ...], ...]
    source: str
    unit = "cycle"

    @staticmethod
    def load(name: str) -> "TableLatency":
        """The device of a TOML file in `cost/targets`.

        Raises:
            BudgetError: there is no such device.
        """
        path = files("zerobit.cost").joinpath("targets").joinpath(f"{name}.toml")
        if name not in target_names():
            msg = f"`target` is {name!r}; known devices are {target_names()}; choose one of these"
            raise BudgetError(msg)
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = data["macs_per_cycle"]
        activations = tuple(sorted(int(a) for a in rows))
        weights = tuple(data["weight_bits"])
        table = tuple(tuple(float(v) for v in rows[str(a)]) for a in activations)
        assert all(len(row) == len(weights) for row in table), name
        return TableLatency(name, weights, activations, table, data["source"])

    def cycles_per_mac(self) -> Tensor:
        """[B activations, B weights]; a width not in the table costs what the next wider one does."""
        result = torch.zeros(len(GRID), len(GRID), dtype=torch.float64)
        for i, a in enumerate(GRID):
            for j, w in enumerate(GRID):
                if a and w:
                    row = next(r for r, known in enumerate(self.activation_bits) if known >= a)
                    column = next(c for c, known in enumerate(self.weight_bits) if known >= w)
                    result[i, j] = 1 / self.macs_per_cycle[row][column]
        return result

    def __call__(self, use: Usage) -> Tensor:
        """Cycles per sample."""
        table = self.cycles_per_mac()
        return total([_cycles(layer, table) for layer in use.layers])


def _cycles(layer: LayerUse, table: Tensor) -> Tensor:
    """Of one layer; an input in float costs what the widest of the table does."""
    macs = layer.macs_by_width
    p = BitDist.one_hot([max(GRID)]).p if layer.activation is None else layer.activation.p
    return macs @ (p[0].to(macs.device) @ table.to(macs.device))


def target_names() -> tuple[str, ...]:
    """Devices with a table."""
    folder = files("zerobit.cost").joinpath("targets")
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))
