"""`Plan`: the decision as data. Which units stay, and the integer widths and ranges of every named tensor.

A plan is JSON; it can be read, compared and edited by hand. To prune a unit take its number out of `kept`, and write 0
for its channels in the `bits` of the weights that make it. To change a weight's widths write others and, since steps
belong to widths, null for `step`. An activation needs a step of its own: twice as large for a bit less.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zerobit.bits import BitDist, NetBits
from zerobit.errors import PlanError
from zerobit.formats import GRID

_VERSION = 1


@dataclass(frozen=True)
class WeightPlan:
    """A weight tensor.

    Attributes:
        bits: width of each output channel of the uncut tensor; 0 where it is removed.
        step: quantisation step of each output channel (0 where removed), or None to fit it anew.
        full_range: whether the lowest level of two's complement is used.
    """

    bits: tuple[int, ...]
    step: tuple[float, ...] | None = None
    full_range: bool = False


@dataclass(frozen=True)
class ActivationPlan:
    """One activation quantizer.

    Attributes:
        tensors: the tensors it quantises.
        bits: their width.
        signed: whether values can be negative.
        step: quantisation step.
    """

    tensors: tuple[str, ...]
    bits: int
    signed: bool
    step: float


@dataclass(frozen=True)
class Plan:
    """The decision for a whole network.

    Attributes:
        units: group name -> number of units before the cut.
        kept: group name -> units that stay, ascending.
        weights: weight name -> its widths and steps.
        activations: quantizer name -> its width and range.

    Raises:
        PlanError: kept units out of order or range, a group without units, or a width off the grid.
    """

    units: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, WeightPlan]
    activations: Mapping[str, ActivationPlan]

    def __post_init__(self) -> None:
        if set(self.units) != set(self.kept):
            _fail(
                "kept",
                sorted(self.kept),
                f"one entry for each of {sorted(self.units)}",
                "add or remove entries",
            )
        for name, kept in self.kept.items():
            ascending = all(a < b for a, b in itertools.pairwise(kept))
            if not kept or not ascending or kept[0] < 0 or kept[-1] >= self.units[name]:
                allowed = f"at least one of 0..{self.units[name] - 1}, ascending"
                _fail(f"kept.{name}", list(kept), allowed, "list the units that stay")
        for name, weight in self.weights.items():
            wrong = sorted(set(weight.bits) - set(GRID))
            if wrong:
                _fail(f"weights.{name}.bits", wrong, GRID, "choose widths from these")
            if weight.step is not None:
                _check_steps(f"weights.{name}.step", weight.step, weight.bits)
        for name, activation in self.activations.items():
            if activation.bits not in GRID[1:] or not _is_step(activation.step):
                what = f"{activation.bits} bits with step {activation.step}"
                _fail(f"activations.{name}", what, f"bits from {GRID[1:]}, a positive step", "correct the entry")

    @property
    def hash(self) -> str:
        """Fingerprint of kept units and widths; ranges don't count."""
        parts = {
            "kept": {k: list(v) for k, v in sorted(self.kept.items())},
            "weights": {k: list(v.bits) for k, v in sorted(self.weights.items())},
            "activations": {k: v.bits for k, v in sorted(self.activations.items())},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def net_bits(self) -> NetBits:
        """The plan as one-hot distributions over the uncut network."""
        keep = {}
        for name, kept in self.kept.items():
            keep[name] = torch.zeros(self.units[name], dtype=torch.float64)
            keep[name][list(kept)] = 1
        weights = {name: BitDist.one_hot(w.bits) for name, w in self.weights.items()}
        activations = {tensor: BitDist.one_hot([a.bits]) for a in self.activations.values() for tensor in a.tensors}
        return NetBits(keep, weights, activations)

    def to_json(self) -> str:
        """JSON text, one tensor a line; floats keep all digits."""
        sections = {
            "units": dict(self.units),
            "kept": {k: list(v) for k, v in self.kept.items()},
            "weights": {k: vars(v) for k, v in self.weights.items()},
            "activations": {k: vars(v) for k, v in self.activations.items()},
        }
        lines = [f'  "version": {_VERSION}']
        for title, entries in sections.items():
            body = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
            lines.append(f'  "{title}": {{\n{body}\n  }}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            PlanError: not JSON, another version, or an entry missing or of the wrong type.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["version"] != _VERSION:
                _fail("version", data["version"], _VERSION, "make the plan anew with this version of zerobit")
            return Plan(
                units={k: _int(v) for k, v in data["units"].items()},
                kept={k: _ints(v) for k, v in data["kept"].items()},
                weights={
                    k: WeightPlan(_ints(v["bits"]), _floats(v["step"]), _bool(v["full_range"]))
                    for k, v in data["weights"].items()
                },
                activations={
                    k: ActivationPlan(tuple(v["tensors"]), _int(v["bits"]), _bool(v["signed"]), float(v["step"]))
                    for k, v in data["activations"].items()
                },
            )
        except PlanError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            msg = f"`plan` can't be read ({what}); it must be JSON as `Plan.to_json` writes it; make the plan anew"
            raise PlanError(msg) from None


def _check_steps(argument: str, step: tuple[float, ...], bits: tuple[int, ...]) -> None:
    allowed = f"one for each of {len(bits)} channels, positive where bits are not 0, or null to fit them anew"
    if len(step) != len(bits):
        _fail(argument, f"{len(step)} steps", allowed, "correct the list")
    wrong = [s for s, b in zip(step, bits, strict=True) if b and not _is_step(s)]
    if wrong:
        _fail(argument, wrong[0], allowed, "correct the list")


def _is_step(value: float) -> bool:
    limits = torch.finfo(torch.float32)
    return limits.tiny <= value <= limits.max


def _fail(argument: str, was: object, allowed: object, advice: str) -> None:
    msg = f"`{argument}` is {was}; allowed is {allowed}; {advice}"
    raise PlanError(msg)


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(_int(v) for v in values)


def _int(value: Any) -> int:
    if value != int(value):
        msg = f"{value} is not a whole number"
        raise ValueError(msg)
    return int(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        msg = f"{value!r} is neither true nor false"
        raise ValueError(msg)
    return value


def _floats(values: Sequence[Any] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)
