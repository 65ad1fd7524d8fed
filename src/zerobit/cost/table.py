"""Latency from a table of throughputs: one TOML file per device.

cycles = sum over layers, weight widths w and activation widths a of p_a * MACs_w / table[a][w].
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from zerobit.bits import BitDist
from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.device import Device, timed
from zerobit.errors import BudgetError
from zerobit.formats import GRID

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_REQUIRED = ("source", "weight_bits", "macs_per_cycle")
_OPTIONAL = ("clock_hz", "power_w", "channel_multiple")


@dataclass(frozen=True)
class TableLatency(AbstractCost):
    """Cycles of a device whose throughput depends on the widths of weight and activation.

    Attributes:
        name: of the device.
        weight_bits: columns of the table.
        activation_bits: rows of the table.
        macs_per_cycle: throughput, [row][column].
        source: where the figures are from.
        channel_multiple: the number of channels that stay is best a multiple of this.
    """

    name: str
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    macs_per_cycle: tuple[tuple[float, ...], ...]
    source: str
    channel_multiple: int = 1
    unit = "cycle"

    @staticmethod
    def load(name: str) -> "TableLatency":
        """The device of a TOML file in `cost/targets`.

        Raises:
            BudgetError: there is no such device.
        """
        if name not in target_names():
            msg = f"`target` is {name!r}; known devices are {target_names()}; choose one of these"
            raise BudgetError(msg)
        path = next(p for p in target_files() if p.name == f"{name}.toml")
        cost = load_target(path).metrics["cycles"]
        assert isinstance(cost, TableLatency)
        return cost

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

    @cached_property
    @torch.inference_mode(mode=False)  # it outlives whoever asks first
    def _table(self) -> Tensor:
        return self.cycles_per_mac()

    def __call__(self, use: Usage) -> Tensor:
        """Cycles per sample."""
        return total([_cycles(layer, self._table) for layer in use.layers])


def _cycles(layer: LayerUse, table: Tensor) -> Tensor:
    """Of one layer; an input in float costs what the widest of the table does."""
    macs = layer.macs_by_width
    p = BitDist.one_hot([max(GRID)]).p if layer.activation is None else layer.activation.p
    # a product of matrices may add up in another order for many choices at once
    return (macs * (p[0].to(macs.device) @ table.to(macs.device))).sum(-1)


def target_files() -> tuple["Traversable", ...]:
    """The TOML files in `cost/targets`, by name."""
    folder = files("zerobit.cost").joinpath("targets")
    return tuple(sorted((p for p in folder.iterdir() if p.name.endswith(".toml")), key=lambda p: p.name))


def target_names() -> tuple[str, ...]:
    """Devices with a table."""
    return tuple(p.name.removesuffix(".toml") for p in target_files())


def load_target(path: "str | Path | Traversable") -> Device:
    """A device of a TOML file; it is named like the file.

    Keys: `source` (text), `weight_bits` (widths, ascending, 8 among them), a table `macs_per_cycle` (activation width =
    one throughput per weight width, 8 among the widths), and if known `clock_hz`, `power_w` (mean power while it
    computes), `channel_multiple`.

    Args:
        path: of the file.

    Raises:
        BudgetError: it can't be read, or a key is missing, unknown or not as above.
    """
    file = Path(path) if isinstance(path, str) else path
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"`target` {str(path)!r} can't be read: {error}; give the path of a TOML file with a table of throughputs"
        raise BudgetError(msg) from error
    return _Reader(str(path), data).device(file.name.removesuffix(".toml"))


@dataclass(frozen=True)
class _Reader:
    """Checks what a file holds; every message names file and key."""

    path: str
    data: Mapping[str, Any]

    def device(self, name: str) -> Device:
        for key in self.data:
            self._require(key in (*_REQUIRED, *_OPTIONAL), key, f"one of {(*_REQUIRED, *_OPTIONAL)}", "is a key")
        for key in _REQUIRED:
            self._require(key in self.data, key, "given", "is missing")
        source = self.data["source"]
        self._require(isinstance(source, str) and bool(source), "source", "text that says where the figures are from")
        weight_bits = self._widths("weight_bits", self.data["weight_bits"])
        rows = self._rows(len(weight_bits))
        multiple = self.data.get("channel_multiple", 1)
        self._require(_is_integer(multiple) and multiple > 0, "channel_multiple", "an integer from 1")
        cost = TableLatency(name, weight_bits, tuple(rows), tuple(rows.values()), source, multiple)
        clock, power = self._optional("clock_hz"), self._optional("power_w")
        self._require(power is None or clock is not None, "clock_hz", "given where `power_w` is", "is missing")
        return timed(name, source, cost, clock_hz=clock, power_w=power)

    def _rows(self, columns: int) -> dict[int, tuple[float, ...]]:
        """Throughputs by activation width."""
        given = self.data["macs_per_cycle"]
        allowed = f"a table: activation width = [{columns} positive numbers, one per weight width]"
        self._require(isinstance(given, dict) and all(k.isdecimal() for k in given), "macs_per_cycle", allowed)
        widths = self._widths("macs_per_cycle", sorted(map(int, given)))
        for row in given.values():
            fits = isinstance(row, list) and len(row) == columns and all(_is_positive(v) for v in row)
            self._require(fits, "macs_per_cycle", allowed)
        by_width = {int(key): row for key, row in given.items()}
        return {width: tuple(map(float, by_width[width])) for width in widths}

    def _widths(self, key: str, widths: Any) -> tuple[int, ...]:
        """Every network starts at 8 bit, and what is left in float counts as the widest: 8 has to be there."""
        fits = isinstance(widths, list) and all(_is_integer(w) and w in GRID[1:] for w in widths)
        self._require(
            fits and widths == sorted(set(widths)) and max(GRID) in widths,
            key,
            f"ascending widths of {GRID[1:]}, 8 among them",
        )
        return tuple(widths)

    def _optional(self, key: str) -> float | None:
        value = self.data.get(key)
        self._require(value is None or _is_positive(value), key, "a positive number")
        return value

    def _require(self, fits: bool, key: str, allowed: str, problem: str = "") -> None:
        if not fits:
            what = problem or f"is {self.data[key]!r}"
            msg = f"`{key}` {what} in the target {self.path!r}; allowed is {allowed}; write that"
            raise BudgetError(msg)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and 0 < value < math.inf
