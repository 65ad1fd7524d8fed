"""`MeasuredCost`: a cost fitted to measurements of single layers, and its TOML file.

cost = sum over layers and terms (terms.py) of coefficient * term, all coefficients >= 0.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zerobit.atomic import replacing
from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.measurements import OPS
from zerobit.cost.terms import Widths, amounts_of, is_term, op_of, term
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.ir import Kind


@dataclass(frozen=True)
class Quality:
    """How well a fit predicts measurements that it was not made from.

    Attributes:
        rows: that were predicted.
        error: median of |predicted / measured - 1|.
        rank_correlation: Spearman's, between predicted and measured.
    """

    rows: int
    error: float
    rank_correlation: float


@dataclass(frozen=True)
class MeasuredCost(AbstractCost):
    """A cost fitted to measurements.

    Attributes:
        name: of the cost.
        unit: of the measurements.
        terms: op -> coefficient of each term.
        widths: that were measured.
        source: what the measurements are of.
        machine: what they were made on.
        channel_multiple: what was measured are multiples of this.
        qualities: "channels" -> how well a fit predicts the quarter of all shapes that it was made without, each shape
            once; "layers" -> the same for each layer, held out with all its channel counts.
    """

    name: str
    unit: str
    terms: Mapping[str, Mapping[str, float]]
    widths: Widths
    source: str = ""
    machine: str = ""
    channel_multiple: int = 1
    qualities: Mapping[str, Quality] = field(default_factory=dict[str, Quality])
    storage: tuple[int, ...] = field(init=False)
    per_channel: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", self.widths.weights)
        tiled = any("/" in name for terms in self.terms.values() for name in terms)
        object.__setattr__(self, "per_channel", not tiled)

    def __call__(self, use: Usage) -> Tensor:
        """In the unit of the measurements.

        Raises:
            BudgetError: a layer of a kind that was not measured; names it.
        """
        return total([self._layer(layer) for layer in use.layers if layer.kind is not Kind.EMBEDDING])

    def _layer(self, layer: LayerUse) -> Tensor:
        op = op_of(layer)
        if op not in self.terms:
            msg = (
                f"`target` {self.name} has measurements of {sorted(self.terms)}, but {layer.name!r} is of the kind "
                f"{op!r}; add measurements of such layers"
            )
            raise BudgetError(msg)
        amounts = amounts_of(layer, self.widths)
        return total([term(name, amounts, self.widths) * c for name, c in self.terms[op].items()])

    def describe(self) -> str:
        """The name, and what the fit is worth."""
        parts = [f"{title} held out: {q.rows} rows, median error {100 * q.error:.1f} %, rank correlation "
                 f"{q.rank_correlation:.3f}" for title, q in self.qualities.items()]  # fmt: skip
        return f"{self.name} [{self.unit}]; {'; '.join(parts) or 'nothing held out'}"

    def save(self, path: Path) -> None:
        """Write the fit as TOML, in one step; floats keep all digits.

        Args:
            path: of the file.
        """
        lines = ["# A cost fitted to measurements; what the terms are: zerobit.cost.measured.", 'kind = "fit"']
        lines += [f"{key} = {_quoted(getattr(self, key))}" for key in ("name", "unit", "source", "machine")]
        lines.append(f"channel_multiple = {self.channel_multiple}")
        lines.append(f"weight_bits = {list(self.widths.weights)}")
        lines.append(f"activation_bits = {list(self.widths.activations)}")
        for title, quality in self.qualities.items():
            lines += ["", f"[quality.{_quoted(title)}]", *(f"{k} = {v!r}" for k, v in vars(quality).items())]
        for op, terms in self.terms.items():
            lines += ["", f"[terms.{op}]", *(f"{_quoted(k)} = {v!r}" for k, v in terms.items())]
        with replacing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "MeasuredCost":
        """Read what `save` wrote.

        Args:
            path: of the file.

        Raises:
            BudgetError: the file is missing, or an entry can't be read; names it.
        """
        return parse_fit(read_toml(path), path.name)


def _quoted(text: str) -> str:
    """As TOML writes it: as JSON, but for characters beyond 16 bits and for the one control character JSON leaves."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: Path) -> dict[str, Any]:
    """The entries of a TOML file.

    Args:
        path: of the file.

    Raises:
        BudgetError: the file is missing, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        msg = f"`path` {str(path)!r} can't be read ({error}); it must be a TOML file; check the name and what is in it"
        raise BudgetError(msg) from None


def parse_fit(data: Mapping[str, Any], name: str) -> MeasuredCost:
    """A fit from the entries of its file.

    Args:
        data: the entries.
        name: of the file, for messages.

    Raises:
        BudgetError: an entry is missing, unknown or of the wrong kind; names it.
    """
    entries = _Entries(name, data)
    entries.only(("kind", "name", "unit", "source", "machine", "channel_multiple", "weight_bits", "activation_bits",
                  "quality", "terms"))  # fmt: skip
    if data.get("kind") != "fit":
        entries.fail("kind", '"fit"')
    texts = {key: entries.get(key, _is_text, "a text") for key in ("name", "unit", "source", "machine")}
    multiple = entries.get("channel_multiple", _is_count, "a whole number from 1")
    allowed = f"an ascending list of widths from {GRID[1:]}"
    widths = Widths(*(tuple(entries.get(key, _is_widths, allowed)) for key in ("weight_bits", "activation_bits")))
    tables: Mapping[str, Any] = entries.get("terms", _is_table, f"a table for each measured kind of {OPS}")
    terms = {op: _Entries(name, tables, "terms.").terms(op, widths) for op in tables}
    given: Mapping[str, Any] = _Entries(name, {"quality": {}, **data}).get("quality", _is_table, "a table")
    qualities = {title: _quality(_Entries(name, given, "quality.").table(title)) for title in given}
    return MeasuredCost(terms=terms, widths=widths, channel_multiple=multiple, qualities=qualities, **texts)


@dataclass(frozen=True)
class _Entries:
    """A table of a file, and where it stands."""

    file: str
    data: Mapping[str, Any]
    at: str = ""

    def fail(self, key: str, allowed: str) -> Any:
        was = repr(self.data[key]) if key in self.data else "missing"
        msg = f"`{self.at}{key}` of {self.file} is {was}; allowed is {allowed}; correct the entry"
        raise BudgetError(msg)

    def get(self, key: str, fits: Callable[[Any], bool], allowed: str) -> Any:
        return self.data[key] if key in self.data and fits(self.data[key]) else self.fail(key, allowed)

    def only(self, known: Sequence[str]) -> None:
        for key in self.data:
            if key not in known:
                self.fail(key, f"nothing of that name, but {tuple(known)}")

    def table(self, key: str) -> "_Entries":
        return _Entries(self.file, self.get(key, _is_table, "a table"), f"{self.at}{key}.")

    def terms(self, op: str, widths: Widths) -> dict[str, float]:
        if op not in OPS:
            self.fail(op, f"nothing of that name, but {OPS}")
        inner = self.table(op)
        for key in inner.data:
            if not is_term(key, widths):
                inner.fail(key, "a term of zerobit.cost.measured, of widths that were measured")
        return {key: float(inner.get(key, _is_amount, "a number from 0")) for key in inner.data}


def _quality(entries: _Entries) -> Quality:
    entries.only(("rows", "error", "rank_correlation"))
    return Quality(
        entries.get("rows", _is_count, "a whole number from 1"),
        float(entries.get("error", _is_amount, "a number from 0")),
        float(entries.get("rank_correlation", lambda v: _is_amount(abs(v)), "a number from -1 to 1")),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_widths(value: Any) -> bool:
    whole = isinstance(value, list) and bool(value) and all(type(b) is int and b in GRID[1:] for b in value)
    return whole and value == sorted(set(value))
